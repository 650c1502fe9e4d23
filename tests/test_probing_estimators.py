"""The estimators against scikit-learn's, on arrays and on lakes that are never held whole."""

import numpy as np
import pytest
from lakes import synthetic_lake
from memory_lake import MemoryLake
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from neuronlake.analysis import (
    CAVProbe,
    ElasticNetProbe,
    GaussianProbe,
    LDAProbe,
    LinearSVMProbe,
    LogisticProbe,
    RidgeProbe,
    SparseProbe,
    labelled_matrix,
    ranked_by_weight,
    token_labels,
)
from neuronlake.store import open_lake
from neuronlake.store.errors import InputError

EVERY = [LDAProbe(), RidgeProbe(), LogisticProbe(), LinearSVMProbe(), ElasticNetProbe(tolerance=1e-12), SparseProbe(k=2)]
FEW_PASSES = {"max_passes": 20, "tolerance": 1e-4}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks(
    [
        LDAProbe(),
        RidgeProbe(),
        LogisticProbe(**FEW_PASSES),
        LinearSVMProbe(**FEW_PASSES),
        ElasticNetProbe(),
        SparseProbe(k=2, **FEW_PASSES),
        SparseProbe(k=2, classifier="lda"),
    ]
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def data(classes, rows=300, features=8, seed=0):
    """Correlated features on a grid of 2⁻¹⁰, so that adding 2³⁰ moves them exactly; the classes are text."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, features)) @ (np.eye(features) + 0.5 * rng.normal(size=(features, features)))
    x = np.round(x * 1024) / 1024 * rng.choice([1, 8, 64], size=features)
    scores = x / x.std(axis=0) @ rng.normal(size=(features, classes)) + rng.gumbel(size=(rows, classes))
    return x, np.array([f"class {k}" for k in range(classes)])[scores.argmax(axis=1)]


@pytest.fixture(params=[2, 4], ids=["two", "four"])
def xy(request):
    return data(request.param)


def standardised(oracle, x, y):
    """The oracle of standardised features, with coefficients for raw ones."""
    scaler = StandardScaler().fit(x)
    oracle.fit(scaler.transform(x), y)
    coef = np.atleast_2d(oracle.coef_) / scaler.scale_
    return oracle.decision_function(scaler.transform(x)), coef, oracle.intercept_ - coef @ scaler.mean_


def assert_same(probe, oracle, x, y, tolerance, *, shift=False):
    """Decisions, coefficients and intercepts; `shift`: equal but for one number that all classes of a row share."""
    decision, coef, intercept = standardised(oracle, x, y)
    found = probe.decision_function(x)
    assert found.shape == decision.shape
    assert probe.coef_.shape == coef.shape
    if shift and decision.ndim == 2:
        found, decision = (each - each.mean(axis=1, keepdims=True) for each in (found, decision))
        intercept = intercept - intercept.mean()
        np.testing.assert_allclose(probe.intercept_ - probe.intercept_.mean(), intercept, rtol=tolerance, atol=tolerance)
    else:
        np.testing.assert_allclose(probe.intercept_, intercept, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(found, decision, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(probe.coef_, coef, rtol=tolerance, atol=tolerance)
    raw = x @ probe.coef_.T + probe.intercept_
    np.testing.assert_allclose(raw.reshape(probe.decision_function(x).shape), probe.decision_function(x), atol=1e-9)
    assert np.array_equal(probe.classes_, oracle.classes_)
    scaled = StandardScaler().fit_transform(x)
    assert np.array_equal(probe.predict(x), oracle.predict(scaled))
    assert probe.score(x, y) == oracle.score(scaled, y)
    if hasattr(probe, "predict_proba"):
        np.testing.assert_allclose(probe.predict_proba(x), oracle.predict_proba(scaled), atol=tolerance)
        np.testing.assert_allclose(np.exp(probe.predict_log_proba(x)), probe.predict_proba(x), rtol=1e-12)


@pytest.mark.parametrize("shrinkage", [0.01, 0.5])
def test_lda_is_scikit_learns(xy, shrinkage):
    x, y = xy
    oracle = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
    assert_same(LDAProbe(shrinkage=shrinkage).fit(x, y), oracle, x, y, 1e-9)


@pytest.mark.parametrize("penalty", [1e-3, 0.5])
def test_ridge_is_scikit_learns(xy, penalty):
    x, y = xy
    probe = RidgeProbe(penalty=penalty).fit(x, y)
    assert_same(probe, RidgeClassifier(alpha=penalty * len(x)), x, y, 1e-9)
    assert not hasattr(probe, "predict_proba")


@pytest.mark.parametrize("penalty", [1e-3, 0.1])
def test_logistic_regression_is_scikit_learns(xy, penalty):
    x, y = xy
    probe = LogisticProbe(penalty=penalty, tolerance=1e-14, max_passes=1000).fit(x, y)
    strength = (2 if len(probe.classes_) == 2 else 1) / (penalty * len(x))
    assert_same(probe, LogisticRegression(C=strength, tol=1e-9, max_iter=10_000), x, y, 1e-5, shift=True)
    assert probe.converged_
    assert probe.passes_ > 1


def test_support_vectors_are_scikit_learns(xy):
    """LinearSVC penalises the intercept; scaled by a thousand, that penalty is a millionth."""
    x, y = xy
    probe = LinearSVMProbe(penalty=0.01, tolerance=1e-14, max_passes=1000).fit(x, y)
    oracle = LinearSVC(C=1 / (0.01 * len(x)), dual=False, tol=1e-12, intercept_scaling=1000, max_iter=100_000)
    assert_same(probe, oracle, x, y, 1e-5)


@pytest.mark.parametrize("l1_ratio", [0.2, 0.8])
def test_elastic_net_is_scikit_learns(l1_ratio):
    x, y = data(4)
    probe = ElasticNetProbe(penalty=0.01, l1_ratio=l1_ratio, tolerance=1e-16, max_passes=5000).fit(x, y)
    oracle = LogisticRegression(solver="saga", l1_ratio=l1_ratio, C=100 / len(x), tol=1e-10, max_iter=100_000)
    assert_same(probe, oracle, x, y, 1e-5, shift=True)
    assert 0 < np.count_nonzero(probe.coef_) < probe.coef_.size


@pytest.mark.parametrize("classifier", ["lda", "ridge", "logistic", "svm"])
def test_sparse_probes_choose_greedily(xy, classifier):
    x, y = xy
    probe = SparseProbe(k=3, classifier=classifier).fit(x, y)
    indicators = (y[:, None] == probe.classes_).astype(float)
    centred, targets, chosen = x - x.mean(axis=0), indicators - indicators.mean(axis=0), []
    for _ in range(3):
        errors = {}
        for feature in set(range(x.shape[1])) - set(chosen):
            used = centred[:, [*chosen, feature]]
            errors[feature] = ((targets - used @ np.linalg.lstsq(used, targets)[0]) ** 2).sum()
        chosen.append(min(errors, key=errors.__getitem__))
    assert probe.chosen_.tolist() == chosen
    assert np.flatnonzero(probe.coef_.any(axis=0)).tolist() == sorted(chosen)
    alone = {"lda": LDAProbe(), "ridge": RidgeProbe(), "logistic": LogisticProbe(), "svm": LinearSVMProbe()}[classifier]
    alone.fit(x[:, sorted(chosen)], y)
    np.testing.assert_allclose(probe.decision_function(x), alone.decision_function(x[:, sorted(chosen)]), atol=1e-8)
    assert hasattr(probe, "predict_proba") == (classifier in ("lda", "logistic"))


@pytest.mark.parametrize("probe", [*EVERY, SparseProbe(k=3, classifier="ridge")], ids=str)
def test_large_means_lose_no_digit(xy, probe):
    x, y = xy
    plain = probe.fit(x, y).decision_function(x)
    moved = probe.fit(x + 2**30, y).decision_function(x + 2**30)
    np.testing.assert_allclose(moved, plain, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("probe", [LDAProbe(), RidgeProbe()], ids=str)
def test_large_means_in_float32(probe):
    """Means of 2¹³ beside deviations of 1: a mean rounded to float32 is off by up to 5e-4."""
    rng = np.random.default_rng(5)
    x = np.round(rng.normal(size=(400, 6)) * 1024) / 1024
    y = (x[:, 0] + x[:, 1] + rng.normal(size=400) > 0) * 1 + (x[:, 2] > 1)
    plain = probe.fit(x, y).decision_function(x)
    moved = (x + 2**13).astype(np.float32)
    assert np.array_equal(moved.astype(np.float64) - 2**13, x)
    np.testing.assert_allclose(probe.fit(moved, y).decision_function(moved), plain, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("probe", [LDAProbe, RidgeProbe])
def test_batches_add_up(xy, probe):
    x, y = xy
    classes = np.unique(y)
    whole = probe().fit(x, y)
    batched = probe().partial_fit(x[:1], y[:1], classes=classes[::-1])
    assert np.all(batched.predict(x) == y[0])  # nothing else was seen
    for rows in (slice(1, 20), slice(20, 230), slice(230, 300)):
        batched.partial_fit(x[rows], y[rows])
    np.testing.assert_allclose(batched.coef_, whole.coef_, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(batched.decision_function(x), whole.decision_function(x), rtol=1e-9, atol=1e-9)
    more = probe().fit(x[:200], y[:200]).partial_fit(x[200:], y[200:])
    np.testing.assert_allclose(more.coef_, whole.coef_, rtol=1e-9, atol=1e-12)


def test_partial_fit_refuses_what_does_not_add_up():
    x, y = data(4)
    with pytest.raises(InputError, match="classes must be given on the first call"):
        LDAProbe().partial_fit(x, y)
    probe = LDAProbe().partial_fit(x, y, classes=np.unique(y))
    with pytest.raises(InputError, match="'class 9', which is none of"):
        probe.partial_fit(x[:1], ["class 9"])
    with pytest.raises(InputError, match="must be those of the first call"):
        probe.partial_fit(x, y, classes=["a", "b"])
    with pytest.raises(InputError, match="one class only"):
        LDAProbe().partial_fit(x[:1], y[:1], classes=y[:1])


@pytest.fixture(scope="module")
def planted():
    """A lake whose L2.N4 and L2.N5 tell nouns and verbs apart, imperfectly."""
    lake = MemoryLake(documents=20, encoding="float32")
    upos = lake.column("upos")
    lake.values[2][upos == "NOUN", 4] += 2
    lake.values[2][upos == "VERB", 5] -= 2
    return lake


def test_labelled_tokens_by_plain_indexing(planted):
    labels = token_labels(planted, "upos")
    rows = labels.codes >= 0
    x, y, documents = labelled_matrix(planted, "upos", layer=2)
    assert (x.shape, len(x), len(y)) == ((labels.tokens, 10), labels.tokens, labels.tokens)
    assert y.tolist() == [labels.tags[code] for code in labels.codes[rows]]
    np.testing.assert_array_equal(documents, labels.documents[rows])
    assert read(x).tolist() == planted.stored(2)[rows].tolist()
    few, _, _ = labelled_matrix(planted, "upos", neurons=["L2.N5", (0, 3)], subword="first")
    first = token_labels(planted, "upos", subword="first").codes >= 0
    assert read(few).tolist() == np.stack([planted.stored(0)[first, 3], planted.stored(2)[first, 5]], axis=1).tolist()
    assert labelled_matrix(planted, "upos")[0].shape[1] == 20
    with pytest.raises(InputError, match="give only one of them"):
        labelled_matrix(planted, "upos", layer=2, neurons=["L2.N5"])


def read(matrix):
    """All of a small matrix."""
    found = np.empty(matrix.shape, dtype=np.float32)
    for place, rows in enumerate(matrix.tiles):
        matrix.read(place, found[rows])
    return found


def test_rows_of_a_lake_matrix(planted):
    x, _, documents = labelled_matrix(planted, "upos", layer=2)
    values, n = read(x), len(x)
    mask = documents % 3 == 0
    centre, factor = np.arange(10.0), np.full(10, 2.0)
    for rows in (mask, np.flatnonzero(mask), slice(5, 80, 3), slice(None), [0, n - 1], 7):
        expected = np.atleast_2d(values[rows])
        np.testing.assert_array_equal(read(x[rows]), expected)
        np.testing.assert_array_equal(read(x[rows, ...]), expected)
        np.testing.assert_allclose(read(x.scaled(centre, factor)[rows]), (expected - centre) * 2, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(read(x[mask][[1, 2]]), values[mask][[1, 2]])
    with pytest.raises(InputError, match="sort the row numbers"):
        x[[3, 1]]
    with pytest.raises(InputError, match="index its rows only"):
        x[:, 3]
    with pytest.raises(IndexError):
        x[[n]]


@pytest.mark.parametrize("probe", EVERY, ids=str)
def test_a_lake_is_fitted_like_its_array(planted, probe):
    x, y, _ = labelled_matrix(planted, "upos", layer=2)
    values = read(x)
    expected = probe.fit(values.astype(np.float64), y)
    predicted, decision, coef = expected.predict(values), expected.decision_function(values), expected.coef_
    found = probe.fit(x, y)
    assert found.n_features_in_ == 10
    # float32 values tell objectives apart to 5e-7 of them, which leaves the streamed weights this much room
    np.testing.assert_allclose(found.coef_, coef, rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(found.decision_function(x), decision, rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(found.decision_function(x), found.decision_function(values), rtol=1e-5, atol=1e-5)
    assert np.mean(found.predict(x) == predicted) > 0.99
    assert found.score(x, y) > 0.75


def test_documents_are_kept_whole_by_scikit_learns_splitters(planted):
    x, y, documents = labelled_matrix(planted, "upos", layer=2)
    folds = GroupKFold(4)
    scores = cross_val_score(LDAProbe(), x, y, groups=documents, cv=folds)
    oracle = make_pipeline(StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.01))
    expected = cross_val_score(oracle, read(x).astype(np.float64), y, groups=documents, cv=folds)
    np.testing.assert_allclose(scores, expected, rtol=1e-12)


def test_a_lake_on_disk_in_batches(tmp_path):
    synthetic_lake(tmp_path / "a.lake", tokens=200, layers=2)
    x, y, documents = labelled_matrix(open_lake(tmp_path / "a.lake"), "upos", layer=1)
    whole = LDAProbe().fit(x, y)
    batched = LDAProbe()
    for document in np.unique(documents):
        batched.partial_fit(x[documents == document], y[documents == document], classes=np.unique(y))
    np.testing.assert_allclose(batched.coef_, whole.coef_, rtol=1e-6, atol=1e-8)


def test_wrong_use_of_a_lake(planted):
    x, y, _ = labelled_matrix(planted, "upos", layer=2)
    with pytest.raises(InputError, match="one label per row"):
        LDAProbe().fit(x, y[1:])
    with pytest.raises(InputError, match="1 rows: 2 or more"):
        LDAProbe().fit(x[:1], y[:1])
    probe = LDAProbe().fit(x, y)
    with pytest.raises(InputError, match="X has 20 features, LDAProbe was fitted with 10"):
        probe.predict(labelled_matrix(planted, "upos")[0])


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (LDAProbe(shrinkage=0.0), "shrinkage must be above 0"),
        (RidgeProbe(penalty=-1.0), "penalty must be above 0"),
        (LogisticProbe(epochs=0, max_passes=0), "nothing would be fitted"),
        (LinearSVMProbe(epochs=-1), "epochs must be at least 0"),
        (ElasticNetProbe(l1_ratio=2), "l1_ratio must lie between"),
        (ElasticNetProbe(max_passes=0), "max_passes must be at least 1"),
        (SparseProbe(k=0), "k must be at least 1"),
        (SparseProbe(classifier="forest"), "known are lda, ridge, logistic, svm"),
    ],
    ids=str,
)
def test_parameters_out_of_range(probe, message):
    with pytest.raises(InputError, match=message):
        probe.fit(*data(2))


def test_too_few_passes_are_told():
    x, y = data(4, rows=5000)  # of fewer, the streamed ones pass more often than they are told to
    for probe in (LogisticProbe(max_passes=2), ElasticNetProbe(max_passes=2), SparseProbe(classifier="svm", max_passes=2)):
        with pytest.warns(ConvergenceWarning, match="has not converged after max_passes=2"):
            probe.fit(x, y)


def test_nothing_to_choose_from():
    with pytest.raises(InputError, match="none of the 3 features"):
        SparseProbe().fit(np.ones((10, 3)), [0, 1] * 5)
    with pytest.raises(InputError, match="40000 classes, at most 32767"):
        LDAProbe().fit(np.ones((100_000, 1)), np.arange(100_000) % 40_000)


def test_weights_of_a_fitted_estimator_are_ranked():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6))
    y = np.where(x[:, 2] + 0.1 * rng.normal(size=300) > 0, "a", "b")
    fitted = ElasticNetProbe(penalty=0.05).fit(x, y)
    assert {int(columns[0]) for columns in ranked_by_weight(fitted, 0.5)} == {2}


def test_what_needs_its_rows_in_memory_reads_a_lake_matrix():
    lake = MemoryLake(documents=8, encoding="float32")
    X, y, _ = labelled_matrix(lake, "upos", layer=np.int64(0))
    np.testing.assert_array_equal(np.asarray(X), lake.stored(0)[X.rows])
    concept = y == "NOUN"
    assert CAVProbe().fit(X, concept).score(X, concept) == CAVProbe().fit(np.asarray(X), concept).score(X, concept)
    GaussianProbe(2).fit(X, y).predict(X)
    with pytest.raises(InputError, match="layer must be a number"):
        labelled_matrix(lake, "upos", layer="all")
