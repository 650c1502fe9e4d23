"""Key neurons against Python sets and scipy's tests of the table; every method gives the same kind of result."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats
from tiny import conllu, make_model, some_sentences

from neuronlake.analysis import (
    activation_hits,
    choose_key_neurons,
    compute_statistics,
    hit_scores,
    key_list,
    rank,
    ranker_scores,
    scores_of,
    token_labels,
)
from neuronlake.cli.main import main
from neuronlake.extractor import AttributionSettings, ConlluCorpus, ExtractSettings, attribute, extract, resolve_model
from neuronlake.extractor.weights import store_weights
from neuronlake.store import Lake, open_lake

TAGS, LAYERS, NEURONS = ["DET", "NOUN", "VERB"], 3, 88


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    folder = tmp_path_factory.mktemp("made")
    source = resolve_model(str(make_model(folder / "model")))
    (folder / "corpus.conllu").write_text(conllu(some_sentences(60)), encoding="utf-8")
    extract(
        folder / "a.lake",
        ConlluCorpus(paths=(folder / "corpus.conllu",)),
        source,
        ExtractSettings(block_rows=256, encoding="float32"),
    )
    store_weights(folder / "a.lake", source)
    labels = lambda lake: token_labels(lake, "upos", subword="first", min_tokens=1)  # noqa: E731
    attribute(folder / "a.lake", source, labels, AttributionSettings(method="gradient", per_tag=50))
    return open_lake(folder / "a.lake")


def made_up(seed: int = 0) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    samples = np.array([40, 0, 90, 25])
    hits = rng.binomial(samples[:, None, None], rng.uniform(0, 0.6, size=(4, 2, 15)))
    return xr.Dataset(
        {"hits": (("tag", "layer", "neuron"), hits), "samples": ("tag", samples)},
        coords={"tag": list("ABCD"), "layer": [3, 5], "neuron": np.arange(15)},
    )


def test_scores_are_shares_with_a_test() -> None:
    dataset = made_up()
    found = hit_scores(dataset)
    assert found["tag"].to_numpy().tolist() == ["A", "C", "D"]  # B has no samples
    hits, samples = dataset["hits"].sel(tag=found["tag"]).to_numpy(), np.array([40, 90, 25])
    np.testing.assert_array_equal(found["score"], hits / samples[:, None, None])
    for place in np.ndindex(hits.shape):
        tag = place[0]
        own, rest = hits[place], hits[:, place[1], place[2]].sum() - hits[place]
        table = [[own, samples[tag] - own], [rest, samples.sum() - samples[tag] - rest]]
        squared = stats.chi2_contingency(table, correction=False).statistic if own + rest else 0.0
        assert float(found["cramers_v"][place]) == pytest.approx(np.sqrt(squared / samples.sum()), abs=1e-12)
        tails = [stats.fisher_exact(table, alternative=side).pvalue for side in ("less", "greater")]
        assert float(found["p"][place]) == pytest.approx(min(1.0, 2 * min(tails)), rel=1e-9)
        assert int(found["sign"][place]) == (-1 if own / samples[tag] < rest / (samples.sum() - samples[tag]) else 1)
    adjusted = stats.false_discovery_control(found["p"].to_numpy().ravel(), method="bh")
    np.testing.assert_allclose(found["q"].to_numpy().ravel(), adjusted, rtol=1e-12)


@pytest.mark.parametrize("per", ["layer", "overall"])
@pytest.mark.parametrize(("k", "fdr", "higher"), [(4, None, False), (4, 0.05, True), (15, 0.2, True)])
def test_selection_is_that_of_sorted_lists(per: str, k: int, fdr: float | None, higher: bool) -> None:
    scores = hit_scores(made_up(1))
    chosen = choose_key_neurons(scores, k=k, per=per, fdr=fdr, higher=higher)
    sets = []
    for tag in range(3):
        lines = [
            (-float(scores["score"][tag, layer, neuron]), layer, neuron)
            for layer in range(2)
            for neuron in range(15)
            if float(scores["score"][tag, layer, neuron]) > 0
            and (fdr is None or float(scores["q"][tag, layer, neuron]) <= fdr)
            and (not higher or int(scores["sign"][tag, layer, neuron]) > 0)
        ]
        groups = (
            [sorted(lines)] if per == "overall" else [sorted(line for line in lines if line[1] == layer) for layer in (0, 1)]
        )
        expected = {(layer, neuron): place + 1 for group in groups for place, (_, layer, neuron) in enumerate(group[:k])}
        found = np.argwhere(chosen["selected"].to_numpy()[tag])
        assert {tuple(map(int, pair)) for pair in found} == set(expected)
        for (layer, neuron), place in expected.items():
            assert int(chosen["rank"][tag, layer, neuron]) == place
        assert chosen["by_layer"].to_numpy()[tag].tolist() == [
            sum(pair[0] == layer for pair in expected) for layer in (0, 1)
        ]
        sets.append(set(expected))
    for one in range(3):
        for other in range(3):
            either = sets[one] | sets[other]
            expected_overlap = len(sets[one] & sets[other]) / len(either) if either else np.nan
            assert float(chosen["jaccard"][one, other]) == pytest.approx(expected_overlap, nan_ok=True)
    listed = key_list(chosen, tags=["C"])
    assert [entry["tag"] for entry in listed] == ["C"] * len(sets[1])
    assert [entry["score"] for entry in listed] == sorted((entry["score"] for entry in listed), reverse=True)
    assert {(entry["layer"], entry["neuron"]) for entry in listed} == {((3, 5)[layer], neuron) for layer, neuron in sets[1]}


def test_the_surrogate_is_brute_force(lake: Lake) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(lake.path.parent / "model")
    norms = np.stack([layer.mlp.down_proj.weight.detach().norm(dim=0).numpy() for layer in model.model.layers])
    labels = token_labels(lake, "upos", shift=1, min_tokens=1)
    rows = np.flatnonzero(labels.codes >= 0)
    size = np.stack([np.abs(lake.read(layer=layer)[rows]) * norms[layer] for layer in range(LAYERS)], axis=1)
    edge = np.sort(size.reshape(len(rows), -1), axis=1)[:, -round(0.05 * LAYERS * NEURONS)]
    hit = size >= edge[:, None, None]
    found = activation_hits(lake, "upos", shift=1, per_tag=None)
    for place, tag in enumerate(labels.tags):
        assert found["tag"].to_numpy()[place] == tag
        np.testing.assert_array_equal(found["hits"][place], hit[labels.codes[rows] == place].sum(axis=0))
    some = activation_hits(lake, "upos", per_tag=5, seed=1)
    assert some["samples"].to_numpy().tolist() == [5, 5, 5]
    assert (some["hits"].sum(["layer", "neuron"]) == 5 * round(0.05 * LAYERS * NEURONS)).all()


def test_rankers_go_the_same_way(lake: Lake) -> None:
    statistics = compute_statistics(lake, "upos")
    chosen = choose_key_neurons(ranker_scores(statistics, "cohen_d"), k=6, per="overall", higher=False)
    expected = rank(statistics, "cohen_d", top=6)
    assert [(entry["tag"], entry["name"]) for entry in key_list(chosen)] == [
        (entry["tag"], entry["name"]) for entry in expected
    ]
    for method in ("attribution", "activation_share", "auroc", "welch_t"):
        found = choose_key_neurons(scores_of(lake, "upos", method), k=5, fdr=None)
        assert found["selected"].sizes == {"tag": 3, "layer": LAYERS, "neuron": NEURONS}
        assert found.attrs["kind"] == method


def test_the_command(lake: Lake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method in ("attribution", "activation_share", "auroc"):
        assert main(["key-neurons", str(lake.path), "--method", method, "-k", "4", "--fdr", "1", "--json"]) == 0
        record: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert [entry["tag"] for entry in record["tags"]] == TAGS
        assert len(record["neurons"]) == sum(entry["selected"] for entry in record["tags"])
        assert record["overlap"]["NOUN"]["NOUN"] == 1.0
    out = tmp_path / "key.json"
    assert main(["key-neurons", str(lake.path), "-k", "4", "--fdr", "1", "--tags", "NOUN", "--out", str(out)]) == 0
    assert "NOUN" in capsys.readouterr().out
    assert {entry["tag"] for entry in json.loads(out.read_text())["neurons"]} == {"NOUN"}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["-k", "89"], "k must be from 1 to the 88 neurons that a layer has, got 89"),
        (["-k", "0"], "k must be from 1"),
        (["--method", "magic"], "unknown method 'magic': known are"),
        (["--by", "deprel"], "holds no such attributions of 'deprel'"),
        (["--tags", "XYZ"], "unknown tag 'XYZ': known are DET, NOUN, VERB"),
        (["--fdr", "0"], "fdr must be above 0"),
        (["--shift", "1"], "--shift is not of attribution"),
        (["--method", "auroc", "--name", "x"], "--name chooses among attributions"),
        (["--out", "key.txt"], "--out writes .json"),
    ],
)
def test_wrong_use(lake: Lake, extra: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    k = [] if "-k" in extra else ["-k", "5"]
    assert main(["key-neurons", str(lake.path), *k, *extra]) == 2
    assert message in capsys.readouterr().err
