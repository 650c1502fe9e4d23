"""The elastic net against scikit-learn's, against its own ℓ2 relative, and its ranking against a plain loop."""

import numpy as np
import pytest
from memory_lake import MemoryLake
from sklearn.linear_model import LogisticRegression

from neuronlake.analysis import probe
from neuronlake.analysis.probing.closed_form import standard_of_scatter
from neuronlake.analysis.probing.elastic_net import fit_elastic_net, nonzero_features, ranked_by_weight
from neuronlake.analysis.probing.kernels import descend_coordinates
from neuronlake.analysis.probing.linear import LinearClassifier, Problem
from neuronlake.analysis.probing.matrix import ArrayMatrix
from neuronlake.analysis.probing.scatter import centre_of, gather_scatter
from neuronlake.analysis.probing.streaming import fit_streaming
from neuronlake.analysis.probing.survey import survey
from neuronlake.store.errors import InputError

ROWS, FEATURES, TAGS = 400, 12, 4


@pytest.fixture(scope="module")
def data():
    """Correlated features with large means, four of which decide between four tags; one is constant."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, FEATURES)) @ (np.eye(FEATURES) + 0.4 * rng.normal(size=(FEATURES, FEATURES)))
    truth = np.zeros((FEATURES, TAGS))
    truth[:4] = 1.5 * rng.normal(size=(4, TAGS))
    y = np.argmax(x @ truth + rng.gumbel(size=(ROWS, TAGS)), axis=1).astype(np.int16)
    x += 100 * rng.normal(size=FEATURES)
    x[:, 5] = 3.7
    return x, y


def net(x, labellings, problems=None, *, penalty=1e-2, l1_ratio=0.5, max_passes=2000, tolerance=1e-18, tags=TAGS):
    """The fit of an array, and the standardised array."""
    matrix = ArrayMatrix(x)
    scatter = gather_scatter(matrix, centre_of(matrix))
    standard = standard_of_scatter(scatter, x.dtype)
    found = fit_elastic_net(
        matrix,
        labellings,
        problems or [Problem(name="task")],
        scatter,
        standard,
        tags=tags,
        penalty=penalty,
        l1_ratio=l1_ratio,
        max_passes=max_passes,
        tolerance=tolerance,
    )
    return found, (x - standard.centre) * standard.factor


def objective(classifier, z, y, penalty, l1_ratio):
    """By NumPy alone."""
    scores = z @ classifier.weights + classifier.bias
    loss = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(y)), y]
    weights = classifier.weights
    return loss.mean() + penalty * (l1_ratio * np.abs(weights).sum() + (1 - l1_ratio) / 2 * (weights**2).sum())


@pytest.mark.parametrize(("penalty", "l1_ratio"), [(1e-3, 0.5), (1e-2, 0.5), (3e-2, 0.9), (1e-2, 0.0)])
def test_coefficients_equal_scikit_learn(data, penalty, l1_ratio):
    x, y = data
    found, z = net(x, [y], penalty=penalty, l1_ratio=l1_ratio)
    oracle = LogisticRegression(solver="saga", l1_ratio=l1_ratio, C=1 / (penalty * ROWS), tol=1e-12, max_iter=100_000)
    oracle.fit(z, y)
    (classifier,) = found.classifiers
    assert found.converged
    np.testing.assert_allclose(classifier.weights.T, oracle.coef_, rtol=0, atol=1e-6)
    bias = classifier.bias - classifier.bias.mean()
    np.testing.assert_allclose(bias, oracle.intercept_ - oracle.intercept_.mean(), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(classifier.weights.T == 0, oracle.coef_ == 0)
    assert (classifier.weights == 0).sum() >= (TAGS if l1_ratio == 0 else TAGS + 1)  # the constant feature, and others
    assert found.objective == pytest.approx(objective(classifier, z, y, penalty, l1_ratio), rel=1e-12)


def test_lasso_reaches_the_optimum(data):
    """Without an ℓ2 part several weights are best: only the objective is the same."""
    x, y = data
    found, z = net(x, [y], l1_ratio=1.0)
    oracle = LogisticRegression(solver="saga", l1_ratio=1.0, C=100 / ROWS, tol=1e-12, max_iter=100_000).fit(z, y)
    best = LinearClassifier(weights=oracle.coef_.T, bias=oracle.intercept_)
    assert objective(found.classifiers[0], z, y, 1e-2, 1.0) == pytest.approx(objective(best, z, y, 1e-2, 1.0), rel=1e-10)


def test_two_tags_are_the_binary_problem_with_half_the_ridge(data):
    x, y = data
    y = (y > 1).astype(np.int16)
    found, z = net(x, [y], penalty=1e-2, l1_ratio=0.5, tags=2)
    lasso, ridge = 0.5e-2, 0.25e-2
    oracle = LogisticRegression(
        solver="saga", l1_ratio=lasso / (lasso + ridge), C=1 / ((lasso + ridge) * ROWS), tol=1e-12, max_iter=100_000
    ).fit(z, y)
    weights = found.classifiers[0].weights
    np.testing.assert_allclose(weights[:, 1] - weights[:, 0], oracle.coef_[0], rtol=0, atol=1e-6)


def test_without_lasso_it_is_logistic_regression(data):
    x, y = data
    found, z = net(x, [y], penalty=1e-2, l1_ratio=0.0)
    matrix = ArrayMatrix(x)
    other = fit_streaming(
        matrix,
        [y],
        [Problem(name="task")],
        survey(matrix, seed=0),
        tags=TAGS,
        loss="logistic",
        penalty=1e-2,
        epochs=0,
        max_passes=1000,
        tolerance=1e-14,
        seed=0,
    )
    np.testing.assert_allclose(found.classifiers[0].weights, other.classifiers[0].weights, rtol=0, atol=1e-5)
    assert found.objective <= other.objective + 1e-12
    assert found.objective == pytest.approx(other.objective, rel=1e-10)
    assert len(z) == ROWS


def test_the_objective_never_ends_higher(data):
    x, y = data
    reached = [net(x, [y], penalty=1e-3, max_passes=passes)[0].objective for passes in (1, 2, 4, 8, 16, 32, 64)]
    assert reached == sorted(reached, reverse=True)
    found, z = net(x, [y], penalty=1e-3, max_passes=3)
    assert (found.passes, found.converged) == (3, False)
    assert objective(found.classifiers[0], z, y, 1e-3, 0.5) <= found.objective


def test_several_problems_at_once_are_those_one_by_one(data):
    x, y = data
    shuffled = np.random.default_rng(1).permutation(y)
    few = np.array([0, 2, 3, 7])
    problems = [
        Problem(name="task"),
        Problem(name="shuffled_labels", labelling=1),
        Problem(name="random_neurons", columns=few),
        Problem(name="random_neurons", columns=few, labelling=1),
    ]
    together, _ = net(x, [y, shuffled], problems)
    for problem, classifier in zip(problems, together.classifiers, strict=True):
        alone, _ = net(x, [y, shuffled], [problem])
        np.testing.assert_allclose(classifier.weights, alone.classifiers[0].weights, rtol=0, atol=1e-9)
        assert classifier.columns is problem.columns
    by_hand, _ = net(x[:, few], [y])
    np.testing.assert_allclose(together.classifiers[2].weights, by_hand.classifiers[0].weights, rtol=0, atol=1e-9)


@pytest.mark.parametrize("lasso", [0.0, 0.3])
def test_coordinate_descent_fulfils_the_optimality_conditions(lasso):
    rng = np.random.default_rng(2)
    root = rng.normal(size=(9, 15))
    bound, start, slope = root @ root.T / 15, rng.normal(size=9), rng.normal(size=9)
    weights, left = start.copy(), slope.copy()
    gained = descend_coordinates(bound, 0.1, lasso, weights, left, 1e-16, 10_000)
    moved = weights - start
    np.testing.assert_allclose(left, slope + bound @ moved, rtol=0, atol=1e-12)
    pull = left + 0.1 * weights
    assert np.all(np.abs(pull[weights == 0]) <= lasso + 1e-9)
    np.testing.assert_allclose(pull[weights != 0], -lasso * np.sign(weights[weights != 0]), rtol=0, atol=1e-7)
    before, after = (lasso * np.abs(w).sum() + 0.05 * w @ w for w in (start, weights))
    fell = before - after - slope @ moved - 0.5 * moved @ bound @ moved
    assert 0 < gained <= fell + 1e-12


def test_ranked_by_weight_is_a_plain_loop():
    rng = np.random.default_rng(3)
    weights = rng.normal(size=(30, 3)) * (rng.random(size=(30, 3)) < 0.5)
    weights[:, 2] = 0
    weights[[4, 9], 0] = 2.5, -2.5
    columns = np.arange(100, 160, 2)
    classifier = LinearClassifier(weights=weights, bias=np.zeros(3), columns=columns)
    for share in (0.01, 0.3, 0.9, 1.0):
        for tag, found in enumerate(ranked_by_weight(classifier, share)):
            left = [(-abs(weight), place) for place, weight in enumerate(weights[:, tag]) if weight]
            mass, covered, expected = sum(-weight for weight, _ in left), 0.0, []
            for weight, place in sorted(left):
                expected.append(columns[place])
                covered -= weight
                if covered >= share * mass * (1 - 1e-12):
                    break
            assert found.tolist() == expected
    whole = LinearClassifier(weights=weights, bias=np.zeros(3))
    assert ranked_by_weight(whole, 1e-9)[0].tolist() == [4]
    assert len(ranked_by_weight(whole, 1.0)[1]) == np.count_nonzero(weights[:, 1])
    assert nonzero_features(whole) == sum(bool(row.any()) for row in weights)
    for share in (0.0, 1.1):
        with pytest.raises(InputError, match="share must be above 0"):
            ranked_by_weight(whole, share)


def test_a_probe_reports_how_sparse_it_is():
    lake = MemoryLake(documents=20, encoding="float32")
    upos = lake.column("upos")
    lake.values[2][upos == "NOUN", 4] += 2
    lake.values[2][upos == "VERB", 5] -= 2
    found = probe(lake, layer=2, classifier="elastic_net", penalty=0.1, control_draws=0, random_draws=2)
    settings = found.settings
    assert settings["n_nonzero"] == 2
    assert (settings["l1_ratio"], settings["penalty"], settings["max_passes"]) == (0.5, 0.1, 60)
    assert settings["converged"]
    assert found.accuracy > 0.75
    loose = probe(lake, layer=2, classifier="elastic_net", penalty=0.1, l1_ratio=0.0, control_draws=0, random_draws=2)
    assert loose.settings["n_nonzero"] == 10
    by_k = probe(lake, classifier="elastic_net", k=3, control_draws=0, random_draws=2)
    assert by_k.settings["n_nonzero"] <= 3
