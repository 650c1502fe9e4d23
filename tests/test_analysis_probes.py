"""Probes against scikit-learn and plain loops, and what they must not do: look at test documents."""

import json

import numpy as np
import pytest
from lakes import synthetic_lake
from memory_lake import MemoryLake
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import accuracy_score, f1_score
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

import neuronlake.analysis.svm as svm
from neuronlake.analysis import probe, split_documents, token_labels
from neuronlake.analysis.baselines import predict_by_word
from neuronlake.analysis.features import chosen_neurons, read_features, whole_layers
from neuronlake.analysis.lda import fit_lda
from neuronlake.analysis.scatter import add_tokens, empty_scatter, gather_scatter, within_covariance
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


@pytest.mark.parametrize("shrinkage", [0.01, 0.3, 1.0])
def test_lda_equals_scikit_learn(shrinkage):
    lake = planted()
    (x, y), (x_test, y_test) = train_and_test(lake, 2)
    scaler = StandardScaler().fit(x)
    oracle = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(scaler.transform(x), y)
    predicted = oracle.predict(scaler.transform(x_test))
    result = probe(lake, layer=2, shrinkage=shrinkage)
    assert result.accuracy == accuracy_score(y_test, predicted)
    assert result.macro_f1 == pytest.approx(f1_score(y_test, predicted, average="macro"), rel=1e-12)
    scatter = empty_scatter(tags=3, centre=x.mean(axis=0))
    add_tokens(scatter, x.astype(np.float32), y)
    model = fit_lda(scatter, shrinkage=shrinkage)
    decision = (x_test - model.centre) @ model.weights + model.bias
    np.testing.assert_allclose(
        decision - decision[:, :1],
        (lambda d: d - d[:, :1])(oracle.decision_function(scaler.transform(x_test))),
        rtol=1e-8,
        atol=1e-8,
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


def test_large_offsets_do_not_matter():
    lake = planted()
    plain = probe(lake, layer=2)
    for neuron in range(10):
        lake.values[2][:, neuron] += 1e5  # float32 still keeps three digits of the spread
    moved = probe(lake, layer=2)
    assert abs(plain.accuracy - moved.accuracy) < 0.02
    scatter = gather_scatter(
        lake, token_labels(lake, "upos"), whole_layers(lake, [2]), site="mlp.post", scheduler=None, max_bytes=1 << 20
    )
    labels = token_labels(lake, "upos")
    values = lake.stored(2).astype(np.float64)
    expected = (
        sum(np.cov(values[labels.codes == tag].T, ddof=0) * count for tag, count in enumerate(labels.counts)) / labels.tokens
    )
    np.testing.assert_allclose(within_covariance(scatter), expected, rtol=1e-8, atol=1e-9)


def test_constant_features_are_harmless():
    lake = planted()
    before = probe(lake, layer=2, neurons=None)
    lake.values[2][:, 0] = 0.1
    lake.values[2][:, 1] = 0
    after = probe(lake, layer=2)
    assert abs(before.accuracy - after.accuracy) < 0.1
    labels = token_labels(lake, "upos")
    test = np.isin(labels.documents, split_documents(labels).test)
    lake.values[2][test, 0] = 1e6  # constant in the training documents only: must weigh nothing
    assert probe(lake, layer=2).accuracy == after.accuracy
    for layer in lake.layers:
        lake.values[layer][:] = 1
    nothing = probe(lake)
    assert nothing.accuracy == nothing.baselines["majority"]["accuracy"]


def test_too_little_shrinkage_is_refused():
    lake = planted()
    lake.values[2][:, 1] = lake.values[2][:, 0]
    with pytest.raises(InputError, match="choose a larger one"):
        probe(lake, layer=2, shrinkage=1e-18)


@pytest.mark.parametrize("classifier", ["lda", "svm"])
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


def test_svm_reports_whether_it_converged(monkeypatch):
    assert probe(planted(), layer=2, classifier="svm").settings["converged"] is True
    monkeypatch.setattr(svm, "_MAX_ITERATIONS", 1)
    assert probe(planted(), layer=2, classifier="svm").settings["converged"] is False


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


def test_fitting_ignores_test_documents():
    lake = planted()
    labels = token_labels(lake, "upos")
    test = np.isin(labels.documents, split_documents(labels).test)
    honest = gather_scatter(
        lake, labels.keep(~test), whole_layers(lake, None), site="mlp.post", scheduler=None, max_bytes=1 << 20
    )
    for layer in lake.layers:
        lake.values[layer][test] = 1e3
    poisoned = gather_scatter(
        lake, labels.keep(~test), whole_layers(lake, None), site="mlp.post", scheduler=None, max_bytes=1 << 20
    )
    np.testing.assert_array_equal(honest.gram, poisoned.gram)


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
        ({"classifier": "forest"}, "known are lda, svm"),
        ({"method": "magic", "top_k": 1}, "known are mean_difference"),
        ({"neurons": ["L2.N4"], "top_k": 3}, "give only one"),
        ({"neurons": ["L2.N4"], "layer": 2}, "give only one"),
        ({"neurons": ["L1.N4"]}, "valid are layers 0, 2, neurons 0 to 9"),
        ({"neurons": ["four"]}, "for example L12.N345"),
        ({"neurons": []}, "no neuron given"),
        ({"layer": 1}, "no layer 1: stored are 0, 2"),
        ({"layer": "top"}, "layer must be a number"),
        ({"shrinkage": 0.0}, "shrinkage must be above 0"),
        ({"top_k": 0}, "top must be at least 1"),
        ({"split": "word"}, "known are document, sentence"),
        ({"by": "form", "test_share": 1.5}, "test_share must lie"),
        ({"max_bytes": 1000}, "the covariance of 20 features"),
        ({"max_bytes": 1000, "classifier": "svm"}, "an SVM on 573 tokens × 20 features"),
    ]:
        with pytest.raises(InputError, match=message.replace("573", r"\d+")):
            probe(lake, **settings)


def test_features_of_chosen_neurons():
    lake = planted()
    features = chosen_neurons(lake, ["L2.N5", (0, 3), "l2.n1", (2, 5)])
    assert features.names() == ["L0.N3", "L2.N1", "L2.N5"]
    rows = np.array([3, 0, 60])
    values = read_features(lake, features, block=1, rows=rows, site="mlp.post")
    expected = np.stack([lake.stored(layer)[64 + rows, neuron] for layer, neuron in ((0, 3), (2, 1), (2, 5))], axis=1)
    np.testing.assert_array_equal(values, expected)
    assert whole_layers(lake, [2]).names() == [f"L2.N{neuron}" for neuron in range(10)]


def test_the_memory_of_a_scatter_does_not_grow_with_blocks():
    lake = planted()
    labels = token_labels(lake, "upos")
    assert len(lake.blocks) > 8
    tight = 3 * 10 * 10 * 8  # room for three matrices: one group
    one_group, eight = (
        gather_scatter(lake, labels, whole_layers(lake, [2]), site="mlp.post", scheduler=None, max_bytes=size)
        for size in (tight, 1 << 20)
    )
    np.testing.assert_allclose(one_group.gram, eight.gram, rtol=1e-12, atol=1e-9)
    np.testing.assert_array_equal(one_group.count, eight.count)


def test_a_lake_on_disk(tmp_path):
    rng = np.random.default_rng(0)
    spec, rows, values = synthetic_lake(tmp_path / "a.lake", tokens=600, layers=2)
    lake = open_lake(tmp_path / "a.lake")
    upos = np.array(lake.tokens(labels=["upos"]).column("upos").to_pylist())[rows]
    values = values + (upos == "NOUN")[None, :, None] * rng.normal(size=(2, 1, spec.neurons)).astype(np.float32) * 2
    synthetic_lake(tmp_path / "b.lake", tokens=600, layers=2, values=values.astype(np.float32))
    before, after = (probe(open_lake(tmp_path / name), layer=1) for name in ("a.lake", "b.lake"))
    assert after.accuracy > before.accuracy + 0.15
