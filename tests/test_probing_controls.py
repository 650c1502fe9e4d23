"""Controls, selection, transfer and sweeps of probes, and what they refuse."""

import json

import numpy as np
import pytest
from lakes import synthetic_lake
from memory_lake import MemoryLake

from neuronlake.analysis import probe, probe_sweep, token_labels
from neuronlake.analysis.probing.controls import control_labels, word_types
from neuronlake.analysis.probing.features import chosen_neurons, whole_layers
from neuronlake.analysis.probing.settings import ProbeSettings
from neuronlake.analysis.probing.task import prepare
from neuronlake.analysis.probing.variants import beside_random, names_of
from neuronlake.store import Lake, open_lake, write_lake
from neuronlake.store.errors import InputError

FAST = {"classifier": "lda", "bootstrap_draws": 50}


def planted(*, strength=2.0, seed=0, documents=20, **settings):
    """A lake whose L2.N4 and L2.N5 tell nouns and verbs apart, imperfectly."""
    lake = MemoryLake(documents=documents, encoding="float32", seed=seed, **settings)
    upos = lake.column("upos")
    lake.values[2][upos == "NOUN", 4] += strength
    lake.values[2][upos == "VERB", 5] -= strength
    return lake


@pytest.mark.parametrize("shift", [0, 1, -2])
def test_word_types_are_those_of_the_labelled_words(shift):
    lake = planted()
    labels = token_labels(lake, "upos", shift=shift)
    half = labels.documents < 10
    train, test = labels.keep(half), labels.keep(~half)
    types = word_types(lake, train, lake, test)
    forms = {word["word"]: (word["sentence"], word["form"]) for word in lake.words().to_pylist()}
    for side, numbers in ((train, types.train), (test, types.test)):
        words = side.words[side.codes >= 0]
        found = {}
        for word, number in zip(words, numbers, strict=True):
            assert forms[word + shift][0] == forms[word][0]
            found.setdefault(forms[word + shift][1], set()).add(number)
        assert all(len(numbers) == 1 for numbers in found.values())
        assert len({next(iter(numbers)) for numbers in found.values()}) == len(found)


def test_a_control_task_gives_every_word_type_one_random_tag():
    lake = planted(vocabulary=400, documents=40)
    settings = ProbeSettings(control_draws=3)
    task = prepare(lake, settings.task, None)
    assert task.kinds == ("task", *["control_task"] * 3, *["shuffled_labels"] * 3)
    types = word_types(lake, task.train, lake, task.test)
    every = np.concatenate([types.train, types.test])
    for labelling, truth in zip(task.labellings[1:4], task.truths[1:4], strict=True):
        tags = np.concatenate([labelling, truth])
        assert all(len(np.unique(tags[every == kind])) == 1 for kind in np.unique(every))
    assert not np.array_equal(task.labellings[1], task.labellings[2])
    true = task.labellings[0]
    shares = np.bincount(true, minlength=3) / len(true)
    many = np.concatenate([np.bincount(control_labels(types, true, 3, seed=seed)[0], minlength=3) for seed in range(40)])
    np.testing.assert_allclose(many.reshape(40, 3).sum(axis=0) / many.sum(), shares, atol=0.02)
    for labelling, truth in zip(task.labellings[4:], task.truths[4:], strict=True):
        assert sorted(labelling) == sorted(true)
        assert np.mean(labelling == true) < 0.6
        np.testing.assert_array_equal(truth, task.truths[0])


def test_a_probe_that_remembers_words_is_not_selective():
    """Neurons that name the word type do the control task as well as the task: selectivity says so."""
    lake = planted(strength=0, vocabulary=8, documents=30)
    forms = lake.column("form")
    for neuron in range(8):
        lake.values[0][forms == f"w{neuron}", neuron] += 50
    remembers = probe(lake, layer=0, random_draws=2, **FAST)
    assert remembers.controls["control_task"]["accuracy"] > 0.98
    assert remembers.balanced_accuracy == pytest.approx(np.mean([scores["recall"] for scores in remembers.per_tag.values()]))
    assert remembers.selectivity < 0
    knows = probe(planted(strength=6, vocabulary=400, documents=30), layer=2, random_draws=2, **FAST)
    assert knows.selectivity > 0.3
    assert knows.selectivity == pytest.approx(knows.accuracy - knows.controls["control_task"]["accuracy"])
    low, high = knows.intervals["selectivity"]
    assert low < knows.selectivity < high


def test_controls_are_at_chance_where_they_must_be():
    result = probe(planted(strength=6), neurons=["L2.N4", "L2.N5"], control_draws=2, **FAST)
    assert result.accuracy > 0.95
    majority = result.baselines["majority"]["accuracy"]
    assert abs(result.controls["shuffled_labels"]["accuracy"] - majority) < 0.25
    drawn = result.controls["random_neurons"]
    assert drawn["neurons"] == 2
    assert len(drawn["draws"]) == 10
    assert drawn["accuracy"] == pytest.approx(np.mean([draw["accuracy"] for draw in drawn["draws"]]))
    assert drawn["accuracy"] < 0.75
    assert len(result.controls["control_task"]["draws"]) == 2


def test_random_neurons_match_the_layers_of_those_chosen():
    lake = planted()
    chosen = chosen_neurons(lake, ["L0.N3", "L2.N4", "L2.N5"])
    columns = beside_random(lake, chosen, draws=6, share=0.1, layer_matched=True, size=0, seed=1)
    assert names_of(columns.features, columns.chosen) == ["L0.N3", "L2.N4", "L2.N5"]
    drawn = [names_of(columns.features, draw) for draw in columns.draws]
    assert all(sorted(name[:2] for name in names) == ["L0", "L2", "L2"] for names in drawn)
    assert all(len(set(names)) == 3 for names in drawn)
    assert len({tuple(sorted(names)) for names in drawn}) > 3
    whole = beside_random(lake, whole_layers(lake, [2]), draws=3, share=0.3, layer_matched=True, size=0, seed=1)
    assert whole.chosen is None
    assert [len(draw) for draw in whole.draws] == [3, 3, 3]
    sparse = beside_random(lake, chosen, draws=4, share=0.1, layer_matched=False, size=7, seed=1)
    assert [len(set(draw)) for draw in sparse.draws] == [7] * 4


@pytest.mark.parametrize("settings", [{"top_k": 1, "method": "auroc"}, {"k": 2}, {"k": 2, "top_k": 3}])
def test_a_leak_into_test_documents_is_not_chosen(settings):
    """A neuron that gives the tags away, but in the test documents only, cannot be known from the training documents."""
    lake = planted()
    labels = token_labels(lake, "upos")
    test = np.isin(labels.documents, prepare(lake, ProbeSettings().task, None).test_documents)
    for tag in range(3):
        lake.values[0][test & (labels.codes == tag), 7] += 100 * tag
    honest = probe(lake, **settings, **FAST)
    assert "L0.N7" not in honest.neurons
    assert honest.accuracy > 0.75
    everywhere = planted()
    for tag in range(3):
        everywhere.values[0][labels.codes == tag, 7] += 100 * tag
    assert "L0.N7" in probe(everywhere, **settings, **FAST).neurons  # the same leak where it may be seen


def test_the_sides_share_no_document():
    lake = planted()
    for split in ("document", "sentence"):
        task = prepare(lake, ProbeSettings(split=split).task, None)
        ids = {"document": lambda side: side.documents, "sentence": lambda side: side.sentences}[split]
        train, test = (set(ids(side)[side.codes >= 0].tolist()) for side in (task.train, task.test))
        assert not train & test
    task = prepare(lake, ProbeSettings(where="form < 'w2'", test_where="form >= 'w2'").task, None)
    forms = lake.column("form")
    assert (forms[task.train_rows] < "w2").all()
    assert (forms[task.test_rows] >= "w2").all()
    assert not set(task.train.documents[task.train_rows]) & set(task.test_documents)


def test_chosen_numbers_of_neurons():
    lake = planted()
    sweep = probe_sweep(lake, over="all", ks=[4, 1, 2], **FAST)
    assert [result.counts["n_features"] for result in sweep] == [1, 2, 4]
    assert sweep[2].neurons[:2] == sweep[1].neurons
    assert set(sweep[1].neurons) == {"L2.N4", "L2.N5"}
    assert [result.controls["random_neurons"]["neurons"] for result in sweep] == [1, 2, 4]
    assert sweep[1].accuracy == probe(lake, neurons=["L2.N5", "L2.N4"], **FAST).accuracy
    assert sweep[1].accuracy > sweep[0].accuracy + 0.1
    alone = probe(lake, k=2, **FAST)
    assert alone.neurons == sweep[1].neurons
    assert alone.accuracy == sweep[1].accuracy


def test_a_sweep_over_layers_and_shifts_is_probes_one_by_one():
    lake = planted()
    reports = []
    sweep = probe_sweep(lake, shifts=[0, 1], progress=lambda done, of: reports.append((done, of)), **FAST)
    assert [(result.settings["shift"], result.settings["layers"]) for result in sweep] == [
        (0, [0]), (0, [2]), (1, [0]), (1, [2])
    ]  # fmt: skip
    for result in sweep:
        alone = probe(lake, layer=result.settings["layers"][0], shift=result.settings["shift"], **FAST)
        assert alone.to_dict() == result.to_dict()
    assert reports[-1] == (4, 4)
    assert sweep[1].accuracy > 0.75 > 0.5 > sweep[3].accuracy  # the next word's tag is random


def test_one_tag_against_the_rest_and_some_tags():
    lake = planted()
    one = probe(lake, layer=2, tag="NOUN", **FAST)
    assert one.tags == ("not NOUN", "NOUN")
    assert one.accuracy > 0.8
    some = probe(lake, layer=2, tags=["VERB", "NOUN"], **FAST)
    assert some.tags == ("NOUN", "VERB")
    labels = token_labels(lake, "upos")
    assert some.counts["n_train"] + some.counts["n_test"] == (labels.codes > 0).sum()
    for classifier in ("cav", "car"):
        found = probe(lake, layer=2, tag="NOUN", classifier=classifier, bootstrap_draws=50)
        assert found.accuracy > 0.7
        assert found.settings["rows_fitted"] <= found.counts["n_train"]
    gaussian = probe_sweep(lake, layers=[2], ks=[1, 2], classifier="gaussian", bootstrap_draws=50)
    assert set(gaussian[1].neurons) == {"L2.N4", "L2.N5"}
    assert gaussian[1].accuracy > 0.75


def test_another_lake_is_tested_on_whole():
    learned, asked = planted(seed=0), planted(seed=1, documents=7)
    asked.fingerprint = "other"
    asked._words[5]["upos"] = "NEW"
    result = probe(learned, layer=2, test=asked, **FAST)
    labels = token_labels(asked, "upos", min_tokens=1)
    assert result.dropped == {"NEW": 1}
    assert (result.counts["n_train"], result.counts["n_test"]) == (token_labels(learned, "upos").tokens, labels.tokens - 1)
    assert result.counts["n_test_documents"] == 7
    assert result.accuracy > 0.75
    assert result.settings["split"] is None
    assert result.settings["test_lake"] == "other"
    with pytest.raises(InputError, match="holds the same tokens"):
        probe(learned, test=planted(seed=0))
    with pytest.raises(InputError, match=r"12 neurons at mlp\.post, the other one 2 of 10"):
        probe(learned, test=MemoryLake(neurons=12))


def test_a_lake_of_another_model_is_refused(tmp_path):
    synthetic_lake(tmp_path / "a.lake")
    synthetic_lake(tmp_path / "b.lake")
    spec = tmp_path / "b.lake" / "zarr.json"
    assert '"sha256": "0"' in spec.read_text() or '"sha256":"0"' in spec.read_text()
    other = open_lake(tmp_path / "b.lake")
    other.spec.model["sha256"] = "1"
    other = Lake(other.path, other.spec, other.plan, other.blocks)  # as one opens whose record says so
    with pytest.raises(InputError, match="was extracted from another model"):
        probe(open_lake(tmp_path / "a.lake"), test=other)


def test_neurons_that_fire_in_test_documents_only_are_constant(tmp_path):
    """With covariances of all tokens less those of test tokens, nothing but rounding is left of them."""
    lake = sparse_lake(tmp_path / "a.lake")
    for seed in range(3):
        for classifier in ("lda", "ridge"):
            kept = probe(lake, layer=0, classifier=classifier, seed=seed, control_draws=0, random_draws=0)
            fresh = probe(lake, layer=0, classifier=classifier, seed=seed, control_draws=0, random_draws=0, keep=False)
            assert kept.counts["n_constant_features"] == fresh.counts["n_constant_features"] > 0
            np.testing.assert_array_equal(kept.confusion, fresh.confusion)


def sparse_lake(root):
    """Features of which most fire in one document only."""
    rng = np.random.default_rng(0)
    documents = np.arange(1600) // 80
    values = np.maximum(rng.standard_normal((1600, 60)), 0)
    for feature in range(40):
        values[~np.isin(documents, rng.choice(20, size=1)), feature] = 0
    tags = rng.integers(3, size=1600)
    values[:, 50] += tags
    labels = {"upos": np.array(["A", "B", "C"])[tags], "document": documents}
    return write_lake(root, values.astype(np.float32), tokens=labels, name="sparse", encoding="float32")


def test_a_control_of_a_rare_tag_is_drawn_until_it_has_two(tmp_path):
    rng = np.random.default_rng(0)
    rare = rng.random(1500) < 0.02
    values = rng.standard_normal((1500, 12)).astype(np.float32)
    values[:, 3] += 4 * rare
    forms = np.array([f"w{number}" for number in rng.integers(200, size=1500)])
    labels = {"upos": np.where(rare, "B", "A"), "form": forms, "document": np.arange(1500) // 50}
    lake = write_lake(tmp_path / "a.lake", values, tokens=labels, name="rare", encoding="float32")
    for seed in range(4):
        for classifier in ("cav", "car"):
            found = probe(lake, layer=0, tag="B", classifier=classifier, seed=seed, bootstrap_draws=20, random_draws=2)
            assert found.balanced_accuracy > 0.8
            assert "control_task" in found.controls


def test_no_control_by_words_where_there_are_none(tmp_path):
    lake = sparse_lake(tmp_path / "a.lake")
    found = probe(lake, layer=0, bootstrap_draws=20, classifier="lda")
    assert found.counts["n_test_known_words"] == 0
    assert found.selectivity is None
    assert "control_task" not in found.controls
    assert "shuffled_labels" in found.controls


def test_fewer_neurons_than_asked_for_where_they_repeat():
    lake = planted()
    for neuron in range(6, 10):
        lake.values[2][:, neuron] = lake.values[2][:, 4]
    sweep = probe_sweep(lake, layers=[2], ks=[2, 6, 9, 10], **FAST)
    assert [result.counts["n_features"] for result in sweep] == [2, 6]
    assert sweep[1].controls["random_neurons"]["neurons"] == 6
    assert sweep[1].settings["k"] == [2, 6, 9, 10]


def test_results_as_a_tidy_table(tmp_path):
    from neuronlake.analysis.probing.result import write_results

    sweep = probe_sweep(planted(), random_draws=3, **FAST)
    table = sweep.table()
    rows = table.to_pylist()
    mine = [row for row in rows if row["layer"] == 2]
    one = {(row["what"], row["draw"], row["tag"], row["metric"]): row for row in mine}
    assert len(one) == len(mine)
    assert one["probe", None, None, "accuracy"]["value"] == sweep[1].accuracy
    assert one["probe", None, None, "accuracy"]["low"] == sweep[1].intervals["accuracy"][0]
    assert one["random_neurons", 2, None, "macro_f1"]["value"] == sweep[1].controls["random_neurons"]["draws"][2]["macro_f1"]
    assert one["selectivity", None, None, "accuracy"]["value"] == sweep[1].selectivity
    assert one["probe", None, "NOUN", "f1"]["value"] == sweep[1].per_tag["NOUN"]["f1"]
    import pyarrow.parquet as pq

    write_results(sweep.results, tmp_path / "a.parquet")
    assert pq.read_table(tmp_path / "a.parquet").to_pylist() == rows
    write_results(sweep.results, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())[1]["accuracy"] == sweep[1].accuracy
    with pytest.raises(InputError, match="exists"):
        write_results(sweep.results, tmp_path / "a.json")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shift": 40}, "no word has one labelled 'upos' 40 words later in its sentence"),
        ({"shift": -40}, "40 words earlier in its sentence"),
        ({"where": "upos = 'NOUN'"}, "the training tokens hold two or more only of 'NOUN'"),
        ({"by": "CAST(row AS VARCHAR)"}, "no value of .* has 2 or more tokens among the"),
        ({"tag": "ADV"}, "no token is labelled 'ADV' by 'upos': there are ADJ, NOUN, VERB"),
        ({"tags": ["NOUN"]}, "two different tags or more"),
        ({"tags": ["NOUN", "VERB"], "tag": "NOUN"}, "give only one of them"),
        ({"k": 30}, "k=30 neurons cannot be chosen from 20"),
        ({"k": 0}, "k must be at least 1"),
        ({"classifier": "cav"}, "give tag, for example"),
        ({"epochs": 0, "max_passes": 0}, "nothing would be fitted"),
        ({"test_where": "form = 'nowhere'"}, "is true of none of the"),
        ({"random_share": 0}, "random_share must be above 0"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"penalty": float("inf")}, "above 0 and finite"),
        ({"k": 2.5}, "k must be at least 1, and whole"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        probe(planted(), **settings)
