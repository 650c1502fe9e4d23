"""Probes against scikit-learn and plain loops, and what they must not do: look at test documents."""

import json

import numpy as np
import pytest
from lakes import synthetic_lake
from memory_lake import MemoryLake
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import accuracy_score, f1_score
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

import neuronlake.analysis.probing.streaming as streaming
from neuronlake.analysis import probe, split_documents, token_labels
from neuronlake.analysis.probing.baselines import predict_by_word
from neuronlake.analysis.probing.closed_form import fit_lda, fit_ridge, standard_of_scatter
from neuronlake.analysis.probing.features import chosen_neurons, whole_layers
from neuronlake.analysis.probing.fitting import LINEAR, Fitting
from neuronlake.analysis.probing.linear import Problem
from neuronlake.analysis.probing.matrix import ArrayMatrix, LakeMatrix
from neuronlake.analysis.probing.scatter import centre_of, gather_scatter, gather_sums, within_scatter
from neuronlake.analysis.probing.settings import ProbeSettings
from neuronlake.analysis.probing.task import prepare
from neuronlake.store import open_lake
from neuronlake.store.errors import InputError


def planted(**settings):
    """A lake whose L2.N4 and L2.N5 tell nouns and verbs apart, imperfectly."""
    lake = MemoryLake(documents=20, encoding=settings.pop("encoding", "float32"), **settings)
    upos = lake.column("upos")
    lake.values[2][upos == "NOUN", 4] += 2
    lake.values[2][upos == "VERB", 5] -= 2
    return lake


def train_and_test(lake, layer, **settings):
    """Feature matrices and tags of both sides, by plain indexing."""
    labels = token_labels(lake, "upos")
    split = split_documents(labels, **settings)
    sides = []
    for ids in (split.train, split.test):
        rows = np.isin(labels.documents, ids) & (labels.codes >= 0)
        sides.append((lake.stored(layer)[rows].astype(np.float64), labels.codes[rows]))
    return sides


def fitted(fit, x, y, **settings):
    """A closed-form classifier of an array, and the standardisation it applies to."""
    matrix = ArrayMatrix(x)
    scatter = gather_scatter(matrix, centre_of(matrix))
    (sums,) = gather_sums(matrix, scatter.centre, [y], int(y.max()) + 1)
    standard = standard_of_scatter(scatter, x.dtype)
    return fit(scatter, sums, standard, **settings), standard


@pytest.mark.parametrize("shrinkage", [0.01, 0.3, 1.0])
def test_lda_equals_scikit_learn(shrinkage):
    lake = planted()
    (x, y), (x_test, y_test) = train_and_test(lake, 2)
    scaler = StandardScaler().fit(x)
    oracle = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(scaler.transform(x), y)
    predicted = oracle.predict(scaler.transform(x_test))
    result = probe(lake, layer=2, classifier="lda", shrinkage=shrinkage)
    assert result.accuracy == accuracy_score(y_test, predicted)
    assert result.macro_f1 == pytest.approx(f1_score(y_test, predicted, average="macro"), rel=1e-12)
    model, standard = fitted(fit_lda, x, y, shrinkage=shrinkage)
    decision = model.scores((x_test - standard.centre) * standard.factor)
    np.testing.assert_allclose(
        decision - decision[:, :1],
        (lambda d: d - d[:, :1])(oracle.decision_function(scaler.transform(x_test))),
        rtol=1e-8,
        atol=1e-8,
    )


@pytest.mark.parametrize("penalty", [1e-3, 0.3])
def test_ridge_equals_scikit_learn(penalty):
    lake = planted()
    (x, y), (x_test, y_test) = train_and_test(lake, 2)
    scaler = StandardScaler().fit(x)
    oracle = RidgeClassifier(alpha=penalty * len(x)).fit(scaler.transform(x), y)
    model, standard = fitted(fit_ridge, x, y, penalty=penalty)
    scores = model.scores((x_test - standard.centre) * standard.factor)
    np.testing.assert_allclose(2 * scores - 1, oracle.decision_function(scaler.transform(x_test)), rtol=1e-8, atol=1e-8)
    assert probe(lake, layer=2, classifier="ridge", penalty=penalty).accuracy == oracle.score(
        scaler.transform(x_test), y_test
    )


def test_scores_against_scikit_learn():
    result = probe(planted(), layer=2).to_dict()
    confusion = np.array(result["confusion"])
    truth, predicted = (np.repeat(index.ravel(), confusion.ravel()) for index in np.indices(confusion.shape))
    assert result["accuracy"] == pytest.approx(accuracy_score(truth, predicted), rel=1e-12)
    assert result["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"), rel=1e-12)
    each = f1_score(truth, predicted, average=None)
    for tag, f1, support in zip(result["tags"], each, confusion.sum(axis=1), strict=True):
        assert result["per_tag"][tag]["f1"] == pytest.approx(f1, rel=1e-12)
        assert result["per_tag"][tag]["support"] == support
    assert confusion.sum() == result["n_test"]


@pytest.mark.parametrize("classifier", ["lda", "logistic"])
def test_large_offsets_do_not_matter(classifier):
    lake = planted()
    plain = probe(lake, layer=2, classifier=classifier)
    for neuron in range(10):
        lake.values[2][:, neuron] += 1e5  # float32 still keeps three digits of the spread
    moved = probe(lake, layer=2, classifier=classifier)
    assert abs(plain.accuracy - moved.accuracy) < 0.02
    labels = token_labels(lake, "upos")
    labelled = labels.codes >= 0
    matrix = LakeMatrix(lake, whole_layers(lake, [2]), labelled)
    scatter = gather_scatter(matrix, centre_of(matrix))
    (sums,) = gather_sums(matrix, scatter.centre, [labels.codes[labelled]], 3)
    values = lake.stored(2).astype(np.float64)
    expected = sum(np.cov(values[labels.codes == tag].T, ddof=0) * count for tag, count in enumerate(labels.counts))
    np.testing.assert_allclose(within_scatter(scatter, sums), expected, rtol=1e-8, atol=1e-9 * labels.tokens)


def test_constant_features_are_harmless():
    lake = planted()
    before = probe(lake, layer=2, neurons=None)
    lake.values[2][:, 0] = 0.1
    lake.values[2][:, 1] = 0
    after = probe(lake, layer=2)
    assert abs(before.accuracy - after.accuracy) < 0.1
    assert (before.counts["n_constant_features"], after.counts["n_constant_features"]) == (0, 2)
    labels = token_labels(lake, "upos")
    test = np.isin(labels.documents, split_documents(labels).test)
    lake.values[2][test, 0] = 1e6  # constant in the training documents only: must weigh nothing
    assert probe(lake, layer=2).accuracy == after.accuracy
    for layer in lake.layers:
        lake.values[layer][:] = 1
    with pytest.raises(InputError, match=r"none of the 20 neurons of layer 0, 2 varies over the \d+ training tokens"):
        probe(lake)


def test_too_little_shrinkage_is_refused():
    lake = planted()
    lake.values[2][:, 1] = lake.values[2][:, 0]
    with pytest.raises(InputError, match="choose a larger one"):
        probe(lake, layer=2, classifier="lda", shrinkage=1e-18)


@pytest.mark.parametrize("classifier", LINEAR)
def test_planted_signal_is_recovered(classifier):
    strong = probe(planted(), layer=2, classifier=classifier)
    weak = probe(planted(), layer=0, classifier=classifier)
    assert strong.accuracy > 0.75
    assert weak.accuracy < 0.45
    assert strong.settings["classifier"] == classifier


@pytest.mark.parametrize("tags", [("NOUN", "VERB", "ADJ"), ("NOUN", "VERB")])
def test_svm_equals_scikit_learn(tags):
    lake = planted(tags=tags)
    (x, y), (x_test, y_test) = train_and_test(lake, 2)
    scaler = StandardScaler().fit(x)
    oracle = LinearSVC(C=64 / len(x), dual=False, tol=1e-6).fit(scaler.transform(x), y)
    agreement = probe(lake, layer=2, classifier="svm").accuracy - oracle.score(scaler.transform(x_test), y_test)
    assert abs(agreement) < 0.02


@pytest.mark.parametrize("penalty", [1e-3, 0.1])
def test_logistic_regression_equals_scikit_learn(penalty):
    lake = planted()
    (x, y), (x_test, y_test) = train_and_test(lake, 2)
    scaler = StandardScaler().fit(x)
    oracle = LogisticRegression(C=1 / (penalty * len(x)), tol=1e-10, max_iter=1000).fit(scaler.transform(x), y)
    result = probe(lake, layer=2, penalty=penalty, max_passes=200, tolerance=1e-10)
    assert result.settings["converged"] is True
    assert result.accuracy == oracle.score(scaler.transform(x_test), y_test)


def test_convergence_is_reported(monkeypatch):
    assert probe(planted(), layer=2).settings["converged"] is True
    monkeypatch.setattr(streaming, "_PASSES_OF_FEW", 1)
    assert probe(planted(), layer=2, max_passes=2).settings["converged"] is False


@pytest.mark.parametrize("method", ["auroc", "cohen_d"])
def test_neurons_are_chosen_on_training_documents_only(method):
    lake = planted()
    labels = token_labels(lake, "upos")
    split = split_documents(labels)
    leaking = np.isin(labels.documents, split.test) & (labels.codes == 1)
    lake.values[0][leaking, 7] += 100  # separates nouns perfectly, in the test documents only
    result = probe(lake, top_k=1, method=method)
    assert "L0.N7" not in result.neurons
    assert {"L2.N4", "L2.N5"} <= set(result.neurons)
    assert result.accuracy > 0.75
    changed = probe(lake, neurons=result.neurons)
    assert changed.accuracy == result.accuracy  # and fitting on them by name is the same probe


@pytest.mark.parametrize("settings", [{"classifier": "lda"}, {"classifier": "logistic"}, {"k": 3, "classifier": "ridge"}])
def test_fitting_ignores_test_documents(settings):
    """Neurons, scales, weights: nothing comes from the test side, or its values would change them."""
    lake = planted()
    labels = token_labels(lake, "upos")
    honest = _fitted(lake, settings)
    test = np.isin(labels.documents, split_documents(labels).test)
    for layer in lake.layers:
        lake.values[layer][test] = 1e3
    poisoned = _fitted(lake, settings)
    np.testing.assert_array_equal(honest[0], poisoned[0])
    for mine, other in zip(honest[1], poisoned[1], strict=True):
        np.testing.assert_array_equal(mine.weights, other.weights)
        np.testing.assert_array_equal(mine.bias, other.bias)


def _fitted(lake, settings):
    chosen = ProbeSettings(**settings)
    fitting = Fitting(lake, prepare(lake, chosen.task, None), whole_layers(lake, None), chosen.fit)
    columns = None if chosen.k is None else np.sort(fitting.choose(chosen.k, None))
    classifiers, _ = fitting.fit([Problem(name="task", columns=columns)])
    return fitting.standard.centre if columns is None else columns, classifiers


def test_baselines_by_a_plain_loop():
    lake = planted()
    result = probe(lake, layer=2, shift=1)
    labels = token_labels(lake, "upos", shift=1)
    split = split_documents(labels)
    forms = {word["word"]: word["form"] for word in lake.words().to_pylist()}
    seen, truth, guesses = {}, [], []
    everything = []
    for code, document, word in zip(labels.codes, labels.documents, labels.words, strict=True):
        if code >= 0 and document in split.train:
            seen.setdefault(forms[word], []).append(code)
            everything.append(code)
    for code, document, word in zip(labels.codes, labels.documents, labels.words, strict=True):
        if code >= 0 and document in split.test:
            known = seen.get(forms[word], everything)
            truth.append(code)
            guesses.append(max(range(3), key=known.count))
    majority = max(range(3), key=everything.count)
    assert result.baselines["majority"]["accuracy"] == pytest.approx(np.mean(np.array(truth) == majority))
    assert result.baselines["most_frequent_tag_per_word"] == pytest.approx(
        {"accuracy": accuracy_score(truth, guesses), "macro_f1": f1_score(truth, guesses, average="macro")}
    )


def test_unknown_words_fall_back_to_lower_case_then_to_the_majority():
    train = ["Run", "run", "run", "Apple", "May", "may", "may"]
    tags = np.array([0, 1, 1, 0, 2, 1, 2], dtype=np.int16)
    asked = ["Run", "RUN", "apple", "zebra", "may", "MAY"]
    assert predict_by_word(train, tags, asked).tolist() == [0, 1, 0, 1, 1, 2]


@pytest.mark.parametrize("subword", ["last", "all"])
def test_counts_and_settings_are_recorded(subword):
    lake = planted()
    result = json.loads(json.dumps(probe(lake, layer=[2, 0], subword=subword, seed=5).to_dict(), allow_nan=False))
    labels = token_labels(lake, "upos", subword=subword)
    assert result["n_train"] + result["n_test"] == labels.tokens
    assert (result["n_train_documents"], result["n_test_documents"]) == (16, 4)
    assert result["n_train_sentences"] + result["n_test_sentences"] == 80
    assert result["n_features"] == 20
    assert result["neurons"] is None
    expected = {"by": "upos", "subword": subword, "shift": 0, "layers": [0, 2], "seed": 5, "split": "document"}
    assert expected.items() <= result["settings"].items()
    assert result["lake"] == "memory"


def test_probes_repeat_exactly():
    lake = planted()
    first, second = (probe(lake, top_k=2, seed=3).to_dict() for _ in range(2))
    assert first == second
    alone = probe(lake, top_k=2, seed=3, scheduler="synchronous").to_dict()
    assert alone == first


def test_one_document_needs_a_split_by_sentence():
    lake = MemoryLake(documents=1, sentences=30)
    with pytest.raises(InputError, match="split='sentence'"):
        probe(lake, layer=0)
    result = probe(lake, layer=0, split="sentence")
    assert (result.counts["n_train_sentences"], result.counts["n_test_sentences"]) == (24, 6)


def test_tags_that_cannot_be_learned_are_left_out_and_reported():
    lake = planted()
    labels = token_labels(lake, "upos")
    split = split_documents(labels)
    words = {document: labels.words[(labels.documents == document) & (labels.codes >= 0)] for document in range(20)}
    for word in words[split.test[0]][:5]:
        lake._words[word]["upos"] = "RARE"
    result = probe(lake, layer=2)
    assert result.dropped == {"RARE": 5}
    assert "RARE" not in result.tags
    assert result.counts["n_test"] == sum(len(words[document]) for document in split.test) - 5


def test_settings_that_clash_or_do_not_exist():
    lake = planted()
    for settings, message in [
        ({"classifier": "forest"}, "known are lda, ridge, logistic, svm, elastic_net, gaussian, cav, car"),
        ({"method": "magic", "top_k": 1}, "known are mean_difference"),
        ({"neurons": ["L2.N4"], "top_k": 3}, "give only one"),
        ({"neurons": ["L2.N4"], "layer": 2}, "give only one"),
        ({"neurons": ["L1.N4"]}, "valid are layers 0, 2, neurons 0 to 9"),
        ({"neurons": ["four"]}, "for example L12.N345"),
        ({"neurons": []}, "no neuron given"),
        ({"layer": 1}, "no layer 1: stored are 0, 2"),
        ({"layer": "top"}, "layer must be a number"),
        ({"shrinkage": 0.0}, "shrinkage must be above 0"),
        ({"penalty": 0.0}, "penalty must be above 0"),
        ({"l1_ratio": 1.5}, "l1_ratio must lie between 0 and 1"),
        ({"classifier": "elastic_net", "max_passes": 0}, "nothing would be fitted"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"split": "word"}, "known are document, sentence"),
        ({"by": "form", "test_share": 1.5}, "test_share must lie"),
        ({"max_bytes": 1000}, "20 features need 0.0 GiB"),
    ]:
        with pytest.raises(InputError, match=message):
            probe(lake, **settings)


def test_features_of_chosen_neurons():
    lake = planted()
    features = chosen_neurons(lake, ["L2.N5", (0, 3), "l2.n1", (2, 5)])
    assert features.names() == ["L0.N3", "L2.N1", "L2.N5"]
    assert whole_layers(lake, [2]).names() == [f"L2.N{neuron}" for neuron in range(10)]


def test_a_lake_on_disk(tmp_path):
    rng = np.random.default_rng(0)
    spec, rows, values = synthetic_lake(tmp_path / "a.lake", tokens=600, layers=2)
    lake = open_lake(tmp_path / "a.lake")
    upos = np.array(lake.tokens(labels=["upos"]).column("upos").to_pylist())[rows]
    values = values + (upos == "NOUN")[None, :, None] * rng.normal(size=(2, 1, spec.neurons)).astype(np.float32) * 2
    synthetic_lake(tmp_path / "b.lake", tokens=600, layers=2, values=values.astype(np.float32))
    before, after = (probe(open_lake(tmp_path / name), layer=1) for name in ("a.lake", "b.lake"))
    assert after.accuracy > before.accuracy + 0.15
