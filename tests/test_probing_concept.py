"""Concept activation vectors and regions against the solvers they rest on, and their null distributions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from neuronlake.analysis.probing.concept import CARProbe, CAVProbe
from neuronlake.analysis.probing.concept_null import random_concepts
from neuronlake.store.errors import InputError


def shifted(n=600, features=6, share=0.2, seed=0, dtype=np.float64):
    """A concept that lies along one direction, in features of different scales and offsets."""
    rng = np.random.default_rng(seed)
    concept = rng.random(n) < share
    X = rng.standard_normal((n, features)) + 1.5 * concept[:, None] * rng.standard_normal(features)
    return (X * 10.0 ** rng.integers(-1, 2, features) + rng.integers(-3, 4, features)).astype(dtype), concept


def ring(n=800, seed=0):
    """A concept in the middle of everything else: no direction tells it."""
    rng = np.random.default_rng(seed)
    concept = rng.random(n) < 0.4
    angle, radius = rng.uniform(0, 2 * np.pi, n), np.where(concept, 0.5, 2.0) + 0.2 * rng.standard_normal(n)
    return np.column_stack((radius * np.cos(angle), radius * np.sin(angle))), concept


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_vector_is_the_normal_of_the_logistic_plane(dtype):
    X, concept = shifted(dtype=dtype)
    probe = CAVProbe().fit(X, concept)
    reference = make_pipeline(
        StandardScaler(), LogisticRegression(C=64.0 / len(X), class_weight="balanced", max_iter=1000, tol=1e-6)
    ).fit(X.astype(np.float64), concept)
    assert probe.converged_
    assert np.linalg.norm(probe.vector_) == pytest.approx(1.0)
    assert (probe.predict(X) == reference.predict(X)).mean() > 0.995
    # The distance to the plane is a multiple of the logit.
    logit, distance = reference.decision_function(X), probe.decision_function(X)
    np.testing.assert_allclose(logit / np.abs(logit).max(), distance / np.abs(distance).max(), atol=5e-3)
    assert distance[concept].mean() > distance[~concept].mean()


def test_the_vector_is_a_gradient_in_the_units_of_the_features():
    X, concept = shifted()
    probe = CAVProbe().fit(X, concept)
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=64.0 / len(X), class_weight="balanced")).fit(X, concept)
    steps = np.eye(X.shape[1]) * 1e-3
    logit = reference.decision_function
    gradient = (logit(X[:1] + steps) - logit(X[:1] - steps)) / 2e-3
    np.testing.assert_allclose(probe.vector_, gradient / np.linalg.norm(gradient), atol=5e-3)


def test_class_weights_are_balanced():
    X, concept = shifted(share=0.05, n=2000)
    probe = CAVProbe().fit(X, concept)
    # The intercept of a logistic regression makes weighted expectations equal weighted counts: half and half.
    standardised = StandardScaler().fit_transform(X)
    model = LogisticRegression(C=64.0 / len(X), class_weight="balanced").fit(standardised, concept)
    weights = np.where(concept, 0.5 / concept.mean(), 0.5 / (1 - concept.mean()))
    assert np.mean(weights * expit(model.decision_function(standardised))) == pytest.approx(0.5, abs=1e-3)
    assert (probe.predict(X) == model.predict(standardised)).mean() > 0.995


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), offset=st.floats(-100, 100))
def test_mean_difference(seed, offset):
    X, concept = shifted(seed=seed, n=100)
    X += offset
    probe = CAVProbe("mean_difference").fit(X, concept)
    difference = X[concept].mean(axis=0) - X[~concept].mean(axis=0)
    np.testing.assert_allclose(probe.vector_, difference / np.linalg.norm(difference), atol=1e-9)
    middle = (X[concept].mean(axis=0) + X[~concept].mean(axis=0)) / 2
    assert probe.decision_function(middle[None])[0] == pytest.approx(0, abs=1e-9)
    nearer = np.linalg.norm(X - X[concept].mean(axis=0), axis=1) < np.linalg.norm(X - X[~concept].mean(axis=0), axis=1)
    assert (probe.predict(X) == nearer).all()  # without loss of generality for a plane half way


def test_constant_features_have_no_part():
    X, concept = shifted(n=100)
    X[:, 2] = 0.1
    for kind in ("logistic", "mean_difference"):
        probe = CAVProbe(kind).fit(X, concept)
        assert probe.vector_[2] == pytest.approx(0.0, abs=1e-12)
        assert np.isfinite(probe.decision_function(X)).all()


@pytest.mark.parametrize("gamma", ["scale", 0.7])
def test_the_region_is_a_support_vector_machine_of_a_balanced_sample(gamma):
    X, concept = ring()
    probe = CARProbe(per_side=100, gamma=gamma, random_state=3).fit(X, concept)
    assert np.bincount(concept[probe.sample_].astype(int)).tolist() == [100, 100]
    assert len(np.unique(probe.sample_)) == 200
    reference = SVC(gamma=gamma, C=10.0).fit(X[probe.sample_], concept[probe.sample_])
    np.testing.assert_allclose(probe.decision_function(X), reference.decision_function(X), atol=1e-9)
    assert (probe.predict(X) == reference.predict(X)).all()
    assert (CARProbe(per_side=100, random_state=4).fit(X, concept).sample_ != probe.sample_).any()


def test_a_small_class_limits_the_sample():
    X, concept = ring()
    concept &= np.arange(len(concept)) < 50
    assert len(CARProbe().fit(X, concept).sample_) == 2 * concept.sum()


def test_a_kernel_width_by_held_out_rows():
    X, concept = ring()
    X = np.column_stack((X, 3 * np.random.default_rng(0).standard_normal((len(X), 3))))
    probe = CARProbe(per_side=200, gamma="held_out").fit(X, concept)
    scale = 1 / (X.shape[1] * X[probe.sample_].var())
    np.testing.assert_allclose(sorted(probe.gamma_scores_), np.array([1 / 16, 1 / 4, 1, 4]) * scale)
    assert probe.gamma_scores_[probe.gamma_] == max(probe.gamma_scores_.values())
    assert probe.machine_.gamma == probe.gamma_


def test_a_region_tells_what_no_direction_does():
    X, concept = ring()
    train = np.arange(len(X)) < 600
    scores = {
        type(probe).__name__: balanced_accuracy_score(
            concept[~train], probe.fit(X[train], concept[train]).predict(X[~train])
        )
        for probe in (CAVProbe(), CARProbe())
    }
    assert scores["CARProbe"] > 0.95
    assert scores["CAVProbe"] < 0.65


def test_a_true_concept_beats_all_random_ones():
    X, concept = shifted(n=300)
    sentences = np.arange(300) // 10
    found = random_concepts(CAVProbe(), X, concept, sentences, draws=19)
    assert found.p_value == 1 / 20
    assert found.permuted == "rows of a group"
    assert found.null.shape == (19,)
    assert abs(found.null.mean() - 0.5) < 0.1
    assert found.n_train + found.n_test == 300
    assert found.n_test == 60
    again = random_concepts(CAVProbe(), X, concept, sentences, draws=19)
    assert (again.null == found.null).all()


def test_p_values_of_noise_are_uniform_or_larger():
    rng = np.random.default_rng(0)
    p = [
        random_concepts(
            CAVProbe("mean_difference"),
            rng.standard_normal((60, 3)),
            rng.random(60) < 0.5,
            draws=9,
            test_share=0.5,
            random_state=seed,
        ).p_value
        for seed in range(200)
    ]
    for level in (0.1, 0.3, 0.5):  # n+1 rule: P(p ≤ level) ≤ level; four binomial standard errors of slack
        assert np.mean(np.array(p) <= level) <= level + 4 * np.sqrt(level * (1 - level) / 200)


def test_what_documents_differ_in_is_no_evidence():
    rng = np.random.default_rng(1)
    documents = np.arange(400) // 10
    style = rng.standard_normal((40, 4))[documents] * 3
    # The concept is frequent in some documents, and nothing but their style tells where.
    concept = rng.random(400) < np.where(style[:, 0] > 0, 0.8, 0.2)
    X = style + 0.1 * rng.standard_normal((400, 4))
    found = random_concepts(CAVProbe(), X, concept, documents, draws=39, random_state=2)
    assert found.balanced_accuracy > 0.65
    assert found.p_value > 0.05
    assert random_concepts(CAVProbe(), X, concept, draws=39, random_state=2).p_value == 1 / 40


def test_whole_groups_exchange_labels_where_each_has_one():
    rng = np.random.default_rng(0)
    documents = np.arange(200) // 10
    concept = documents % 2 == 0
    X = rng.standard_normal((200, 3)) + concept[:, None]
    found = random_concepts(CARProbe(per_side=40), X, concept, documents, draws=19)
    assert found.permuted == "groups"
    assert found.balanced_accuracy > 0.7
    assert found.p_value <= 0.1


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (CAVProbe("svm"), "unknown kind 'svm': known are logistic, mean_difference"),
        (CAVProbe(strength=0), "strength must be above 0"),
        (CARProbe(gamma="auto"), "gamma must be scale, held_out or a number above 0, got 'auto'"),
        (CARProbe(gamma=-1.0), "gamma must be"),
        (CARProbe(per_side=1), "per_side must be at least 2"),
        (CARProbe(C=0), "C must be above 0"),
    ],
)
def test_wrong_settings(probe, message):
    with pytest.raises(InputError, match=message):
        probe.fit(*ring(n=50))


@pytest.mark.parametrize("probe", [CAVProbe(), CARProbe()])
def test_wrong_labels(probe):
    X, concept = ring(n=50)
    with pytest.raises(InputError, match="3 classes; pass y == tag"):
        probe.fit(X, np.arange(50) % 3)
    with pytest.raises(InputError, match="one class only, 'False'"):
        probe.fit(X, np.zeros(50, dtype=bool))
    with pytest.raises(InputError, match="one row only, such as 'True'"):
        probe.fit(X, np.arange(50) == 3)
    named = np.where(concept, "VERB", "NOUN")
    assert set(probe.fit(X, named).predict(X)) <= {"VERB", "NOUN"}
    assert probe.classes_[1] == "VERB"


def test_no_direction():
    with pytest.raises(InputError, match="no direction tells True from False"):
        CAVProbe("mean_difference").fit(np.ones((4, 2)), [True, True, False, False])
    with pytest.raises(InputError, match="the 2 features are constant"):
        CAVProbe().fit(np.ones((4, 2)), [True, True, False, False])


def test_random_concepts_refuse():
    X, concept = ring(n=50)
    with pytest.raises(InputError, match="draws must be at least 1"):
        random_concepts(CAVProbe(), X, concept, draws=0)
    with pytest.raises(InputError, match="test_share must lie between 0 and 1"):
        random_concepts(CAVProbe(), X, concept, draws=1, test_share=1.0)
    with pytest.raises(InputError, match="got 50, 50 and 49"):
        random_concepts(CAVProbe(), X, concept, np.arange(49), draws=1)
    with pytest.raises(InputError, match="one side has fewer than two rows of a class"):
        random_concepts(CAVProbe(), X, concept, np.zeros(50), draws=1)


@parametrize_with_checks([CAVProbe(), CAVProbe("mean_difference"), CARProbe(), CARProbe(gamma="held_out", per_side=20)])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def test_a_solver_that_is_not_done_says_so():
    probe = CAVProbe(max_iter=2)
    with pytest.warns(ConvergenceWarning):
        probe.fit(*shifted())
    assert not probe.converged_
