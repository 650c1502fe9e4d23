"""The Gaussian probe against brute force by SciPy, and against scikit-learn's quadratic discriminant analysis."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.metrics import log_loss
from sklearn.utils.estimator_checks import parametrize_with_checks

from neuronlake.analysis.probing.gaussian import GaussianProbe
from neuronlake.store.errors import InputError


def labelled(n=300, features=8, classes=3, seed=0):
    """Correlated features of very different scales and offsets, whose means and covariances depend on the class."""
    rng = np.random.default_rng(seed)
    y = np.concatenate((np.arange(classes).repeat(2), rng.choice(classes, n - 2 * classes, p=_shares(classes))))
    mixing = np.eye(features) + 0.4 * rng.standard_normal((classes, features, features))
    X = rng.standard_normal((n, features))
    for code in range(classes):
        X[y == code] = X[y == code] @ mixing[code]
    X += rng.standard_normal((classes, features))[y]
    X *= 10.0 ** rng.integers(-1, 1, features, endpoint=True)
    return X + rng.integers(-5, 5, features), np.array(["a", "b", "c", "d", "e"])[y]


def _shares(classes):
    shares = np.arange(1, classes + 1)
    return shares / shares.sum()


def brute_force_information(probe, X, y, dimensions):
    """H(y) + mean log₂ p(y | dimensions), from the densities of the classes' marginals."""
    names, counts = np.unique(y, return_counts=True)
    shares = counts / len(y)
    joint = np.column_stack(
        [
            np.log(prior)
            + multivariate_normal(mean[dimensions], covariance[np.ix_(dimensions, dimensions)]).logpdf(X[:, dimensions])
            for prior, mean, covariance in zip(probe.class_prior_, probe.means_, probe.covariances_, strict=True)
        ]
    )
    own = joint[np.arange(len(y)), np.searchsorted(names, y)]
    return -(shares * np.log2(shares)).sum() + np.mean(own - np.logaddexp.reduce(joint, axis=1)) / np.log(2)


def brute_force_greedy(probe, X, y, k):
    order, information = [], []
    for _ in range(k):
        found = {d: brute_force_information(probe, X, y, [*order, d]) for d in range(X.shape[1]) if d not in order}
        order.append(max(found, key=found.get))
        information.append(found[order[-1]])
    return order, information


@pytest.mark.parametrize("estimate", ["mode", "mean"])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), classes=st.integers(2, 5), features=st.integers(2, 7))
def test_greedy_order_and_bits_equal_brute_force(estimate, seed, classes, features):
    X, y = labelled(features=features, classes=classes, seed=seed)
    probe = GaussianProbe(features, estimate=estimate).fit(X, y)
    order, information = brute_force_greedy(probe, X, y, features)
    assert probe.selected_.tolist() == order
    np.testing.assert_allclose(probe.information_, information, rtol=0, atol=1e-8)
    np.testing.assert_allclose(probe.normalized_information_, probe.information_ / probe.entropy_)


def test_many_rows_and_candidates_take_several_tiles_and_pieces():
    X, y = labelled(n=2500, features=300, classes=3, seed=3)
    probe = GaussianProbe(3, estimate="mean").fit(X, y)
    for step in (1, 2, 3):
        expected = brute_force_information(probe, X, y, probe.selected_[:step])
        assert probe.information_[step - 1] == pytest.approx(expected, abs=1e-8)
    for other in np.random.default_rng(0).choice(np.setdiff1d(np.arange(300), probe.selected_), 15, replace=False):
        assert brute_force_information(probe, X, y, [*probe.selected_[:2], other]) <= probe.information_[2]


@pytest.mark.parametrize("estimate", ["mode", "mean"])
def test_posterior_formulas(estimate):
    X, y = labelled(classes=3, features=5)
    probe = GaussianProbe(prior_mean_strength=3.0, prior_scale=2.0, degrees_of_freedom=11.0, estimate=estimate).fit(X, y)
    for name, mean, covariance in zip(probe.classes_, probe.means_, probe.covariances_, strict=True):
        rows = X[y == name]
        n, off = len(rows), rows.mean(axis=0) - X.mean(axis=0)
        scale = 2.0 * np.diag(X.var(axis=0)) + (n - 1) * np.cov(rows.T) + 3.0 * n / (3.0 + n) * np.outer(off, off)
        divisor = 11.0 + n + 5 + 2 if estimate == "mode" else 11.0 + n - 5 - 1
        np.testing.assert_allclose(covariance, scale / divisor, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(mean, (3.0 * X.mean(axis=0) + n * rows.mean(axis=0)) / (3.0 + n))


def test_a_subset_alone_has_the_sub_block():
    X, y = labelled(features=8)
    some = [6, 1, 3]
    whole, part = (GaussianProbe(estimate="mean").fit(values, y) for values in (X, X[:, some]))
    np.testing.assert_allclose(part.means_, whole.means_[:, some])
    np.testing.assert_allclose(part.covariances_, whole.covariances_[np.ix_(range(3), some, some)], rtol=1e-9, atol=1e-12)
    # The joint mode is divided by a number that depends on D: given the larger problem's, it is the sub-block too.
    whole = GaussianProbe(degrees_of_freedom=10).fit(X, y)
    part = GaussianProbe(degrees_of_freedom=10 + 8 - 3).fit(X[:, some], y)
    np.testing.assert_allclose(part.covariances_, whole.covariances_[np.ix_(range(3), some, some)], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_fewer_dimensions_are_the_marginal(k):
    X, y = labelled()
    probe = GaussianProbe().fit(X, y)
    order = probe.selected_[:k]
    joint = np.column_stack(
        [
            np.log(prior) + multivariate_normal(mean[order], covariance[np.ix_(order, order)]).logpdf(X[:, order])
            for prior, mean, covariance in zip(probe.class_prior_, probe.means_, probe.covariances_, strict=True)
        ]
    )
    expected = joint - np.logaddexp.reduce(joint, axis=1, keepdims=True)
    np.testing.assert_allclose(probe.predict_log_proba(X, k=k), expected, rtol=1e-8, atol=1e-8)
    assert (probe.predict(X, k=k) == probe.classes_[expected.argmax(axis=1)]).all()


def test_without_a_prior_it_is_quadratic_discriminant_analysis():
    X, y = labelled(n=600, features=6)
    X /= X.std(axis=0)  # its tolerance for singular values is absolute
    reference = QuadraticDiscriminantAnalysis(store_covariance=True).fit(X, y)
    # Whether scikit-learn divides the scatter of a class by n or n − 1 depends on its version.
    less = int(np.allclose(reference.covariance_[0], np.cov(X[y == "a"].T)))
    probe = GaussianProbe(6, prior_mean_strength=0, prior_scale=0, degrees_of_freedom=-6 - 2 - less).fit(X, y)
    np.testing.assert_allclose(probe.covariances_, reference.covariance_, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(probe.predict_proba(X), reference.predict_proba(X), rtol=1e-6, atol=1e-9)
    assert (probe.predict(X) == reference.predict(X)).all()


def test_information_on_other_rows():
    X, y = labelled(n=400)
    probe = GaussianProbe(estimate="mean").fit(X[:200], y[:200])
    shares = np.unique(y[200:], return_counts=True)[1] / 200
    expected = [
        -(shares * np.log2(shares)).sum() - log_loss(y[200:], probe.predict_proba(X[200:], k=k)) / np.log(2)
        for k in range(1, 9)
    ]
    np.testing.assert_allclose(probe.information(X[200:], y[200:]), expected, atol=1e-9)
    np.testing.assert_allclose(probe.information(X[:200], y[:200], k=4), probe.information_[:4], atol=1e-9)
    with pytest.raises(InputError, match="'z' was not among"):
        probe.information(X[200:202], ["a", "z"])


def test_single_precision_chooses_the_same():
    X, y = labelled(n=3000, features=40, classes=5)
    X = (X - X.mean(axis=0) + 5 * X.std(axis=0)).astype(np.float32)
    single, double = GaussianProbe(15).fit(X, y), GaussianProbe(15).fit(X.astype(np.float64), y)
    assert (single.selected_ == double.selected_).all()
    np.testing.assert_allclose(single.information_, double.information_, atol=1e-5)


def test_units_do_not_matter():
    X, y = labelled(n=400)
    factors = 10.0 ** np.linspace(-180, 120, X.shape[1])
    plain, scaled = GaussianProbe().fit(X, y), GaussianProbe().fit(X * np.where(factors < 1e-100, 1e-100, factors), y)
    assert (plain.selected_ == scaled.selected_).all()
    np.testing.assert_allclose(plain.information_, scaled.information_, atol=1e-9)
    np.testing.assert_allclose(plain.predict_proba(X), scaled.predict_proba(X * np.where(factors < 1e-100, 1e-100, factors)))


def test_selection_on_some_rows_and_gaussians_of_all():
    X, y = labelled(n=2000)
    some, again, other = (GaussianProbe(selection_rows=500, random_state=seed).fit(X, y) for seed in (1, 1, 2))
    assert len(some.selection_rows_) == 500
    assert (some.selection_rows_ == again.selection_rows_).all()
    assert (some.selection_rows_ != other.selection_rows_).any()
    assert (some.covariances_ == GaussianProbe().fit(X, y).covariances_).all()
    rows = some.selection_rows_
    order, information = brute_force_greedy(some, X[rows], y[rows], 8)
    assert some.selected_.tolist() == order
    np.testing.assert_allclose(some.information_, information, atol=1e-8)


def test_constant_and_repeated_features_are_no_candidates():
    X, y = labelled(features=4)
    X = np.column_stack((np.full(len(X), 0.1), X, X[:, 1]))
    probe = GaussianProbe().fit(X, y)
    assert probe.usable_.tolist() == [1, 2, 3, 4, 5]
    assert 0 not in probe.selected_
    assert (probe.means_[:, 0] == 0.1).all()
    assert not probe.covariances_[:, 0].any()
    # Without a prior a copy adds nothing, and no variance is left of it.
    unregularised = GaussianProbe(prior_scale=0, prior_mean_strength=0).fit(X, y)
    assert len(unregularised.selected_) == 4
    with pytest.raises(InputError, match="only 4 could be chosen, 5 were wanted"):
        GaussianProbe(5, prior_scale=0, prior_mean_strength=0).fit(X, y)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"k": 9}, "k must be between 1 and the 8 usable features, got 9"),
        ({"k": 0}, "k must be between 1"),
        ({"estimate": "mle"}, "unknown estimate 'mle': known are mode, mean"),
        ({"selection_rows": 0}, "selection_rows must be at least 1"),
        ({"prior_scale": -1.0}, "must not be negative"),
        ({"degrees_of_freedom": -1000.0}, "has no posterior mode"),
        ({"max_bytes": 1000}, "lower selection_rows or k"),
    ],
)
def test_wrong_settings(settings_, message):
    X, y = labelled()
    with pytest.raises(InputError, match=message):
        GaussianProbe(**settings_).fit(X, y)


def test_wrong_data():
    X, y = labelled()
    with pytest.raises(InputError, match="one class only"):
        GaussianProbe().fit(X, np.full(len(y), "a"))
    with pytest.raises(InputError, match="1 of 4 classes have one row only, such as 'once'"):
        GaussianProbe().fit(X, np.where(np.arange(len(y)) == 7, "once", y))
    with pytest.raises(InputError, match="all 8 features are constant"):
        GaussianProbe().fit(np.ones_like(X), y)
    with pytest.raises(InputError, match=r"the 7 usable features \(1 more are constant\), got 8"):
        GaussianProbe(8).fit(np.where(np.arange(8) == 2, 1.0, X), y)
    with pytest.raises(InputError, match="k must be between 1 and the 8 dimensions chosen, got 9"):
        GaussianProbe().fit(X, y).predict(X, k=9)


@parametrize_with_checks([GaussianProbe(), GaussianProbe(estimate="mean", selection_rows=50)])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def test_the_package_alone_loads_no_scikit_learn():
    code = "import sys, neuronlake.analysis, neuronlake.analysis.probing; print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_without_selection_every_feature_is_used():
    rng = np.random.default_rng(5)
    y = rng.integers(3, size=400)
    x = rng.normal(size=(400, 6)) + y[:, None] * rng.normal(size=6)
    whole, chosen = GaussianProbe(select=False).fit(x, y), GaussianProbe(6).fit(x, y)
    assert whole.selected_.tolist() == list(range(6))
    np.testing.assert_allclose(whole.predict_log_proba(x), chosen.predict_log_proba(x), rtol=1e-8, atol=1e-10)
