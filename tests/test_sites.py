"""Lakes of two sites of different width: every question is of one of them, and right there."""

import hashlib
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from lakes import foreign_values, two_site_lake
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from neuronlake.analysis import (
    LabelRequest,
    StatisticsBuilder,
    TagListsBuilder,
    coactivation,
    complete_tag_lists,
    compute_statistics,
    describe_neuron,
    firing_neurons,
    neighbours,
    permutation_test,
    probe,
    rank,
    redundancy_clusters,
    refine,
    similar_tokens,
    strongest_neurons,
    tokens_above,
    top_tokens,
    top_tokens_weighted,
)
from neuronlake.analysis.chosen_rows import choose_rows
from neuronlake.analysis.chosen_tokens import eligible_tokens
from neuronlake.analysis.kept_statistics import StatisticsKey
from neuronlake.analysis.probing.features import whole_layers
from neuronlake.analysis.probing.matrix import LakeMatrix
from neuronlake.analysis.token_vectors import vector_index
from neuronlake.store import InputError, Lake, complete_index, open_lake, verify
from neuronlake.store.kept import INDEX, KEPT, kept_results
from neuronlake.store.reader import ShardReader

WIDTHS = {"mlp.post": 10, "resid.post": 7}
SITES = tuple(WIDTHS)


@pytest.fixture(scope="module", params=["float16", "int8a"])
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lakes") / "a.lake"
    two_site_lake(root, encoding=request.param)
    return root


@pytest.fixture
def lake(original: Path, tmp_path: Path) -> Lake:
    return open_lake(shutil.copytree(original, tmp_path / "a.lake"))


def truth(lake: Lake, site: str) -> NDArray[np.float32]:
    """Every stored value, by zarr-python and the formula in the attributes: float32 (layers, rows, units)."""
    return np.stack([foreign_values(lake.path, layer, site) for layer in lake.layers])


def labels(lake: Lake) -> NDArray[Any]:
    """Tag of every row, None of padding."""
    return np.array(lake.tokens(labels=["upos"]).column("upos").to_pylist(), dtype=object)


@pytest.mark.parametrize("site", SITES)
def test_everything_is_read_at_its_site(lake: Lake, site: str) -> None:
    here, expected = lake.at(site), truth(lake, site)
    assert (here.site, here.neurons, here.sites) == (site, WIDTHS[site], SITES)
    assert expected.shape[-1] == WIDTHS[site]
    for place, layer in enumerate(lake.layers):
        np.testing.assert_array_equal(here.read(layer=layer), expected[place])
        np.testing.assert_array_equal(lake.read(layer=layer, site=site, neurons=[6, 2]), expected[place][:, [6, 2]])
        np.testing.assert_array_equal(here.array(layer=layer)[5:90, ::2], expected[place][5:90, ::2])
        np.testing.assert_array_equal(here.dask(layer=layer).compute(scheduler="synchronous"), expected[place])
        np.testing.assert_array_equal(lake.dask(layer=layer, site=site).max(axis=0), expected[place].max(axis=0))
    array = here.xarray(labels=["upos"])
    assert (array.name, array.attrs["site"]) == (site, site)
    np.testing.assert_array_equal(array.values, expected)
    tiles = here.scan(lambda tile: (tile.site, tile.layer, tile.first_neuron, tile.values.max(axis=0)))
    highest = np.full(expected.shape[::2], -np.inf)
    for said, layer, first, values in tiles:
        assert said == site
        part = highest[layer, first : first + len(values)]
        np.maximum(part, values, out=part)
    used = lake.tokens().column("flags").to_numpy() == 0
    np.testing.assert_array_equal(np.maximum(highest, 0), np.maximum(expected[:, used].max(axis=1), 0))


def test_a_lake_goes_to_its_sites(lake: Lake) -> None:
    other = lake.at("resid.post")
    assert lake.at(None) is lake
    assert lake.at("mlp.post") is lake
    assert lake.at("resid.post") is other
    assert other.at(None) is other
    assert other.at("mlp.post").neurons == 10
    for here in (lake, other):
        with pytest.raises(InputError, match=r"no site 'resid.pre' in .*: it has mlp.post, resid.post"):
            here.at("resid.pre")
    with pytest.raises(InputError, match="neurons 0 to 6"):
        top_tokens(other, 0, 7)
    assert "7 neurons of resid.post" in repr(other)


def test_a_worker_elsewhere_is_at_the_same_site(lake: Lake) -> None:
    other = pickle.loads(pickle.dumps(lake.at("resid.post")))
    assert (other.site, other.neurons) == ("resid.post", 7)
    expected = truth(lake, "resid.post")[1]
    with dask.config.set({"multiprocessing.context": "fork"}):
        np.testing.assert_array_equal(lake.at("resid.post").dask(layer=1).compute(scheduler="processes"), expected)
        found = compute_statistics(lake.at("resid.post"), scheduler="processes", keep=False)
    tags = labels(lake)
    for tag in found["tag"].to_numpy():
        np.testing.assert_allclose(found["mean"].sel(tag=tag, layer=1), expected[tags == tag].mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("site", SITES)
def test_statistics_and_ranks(lake: Lake, site: str) -> None:
    here, values, tags = lake.at(site), truth(lake, site), labels(lake)
    found = compute_statistics(here)
    assert found.attrs["site"] == site
    assert found.sizes == {"tag": 3, "layer": 2, "neuron": WIDTHS[site]}
    exact = refine(here, found, "auroc", top=100)
    labelled = np.flatnonzero([tag is not None for tag in tags])
    for tag in found["tag"].to_numpy():
        mine, every = found.sel(tag=tag), values[:, tags == tag].astype(np.float64)
        np.testing.assert_allclose(mine["mean"], every.mean(axis=1), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(mine["variance"], every.var(axis=1, ddof=1), rtol=1e-9)
        np.testing.assert_array_equal(mine["maximum"], every.max(axis=1))
        np.testing.assert_allclose(mine["fraction_active"], (every > 0).mean(axis=1))
        area = [
            [roc_auc_score(tags[labelled] == tag, values[layer, labelled, unit]) for unit in range(WIDTHS[site])]
            for layer in range(2)
        ]
        np.testing.assert_allclose(exact["auroc"].sel(tag=tag), area, atol=1e-12)
        best = rank(exact, "auroc", top=1, tags=[str(tag)])[0]
        distance = np.abs(np.array(area) - 0.5)
        assert distance[best["layer"], best["neuron"]] == pytest.approx(distance.max(), abs=1e-12)
    assert {entry["neuron"] for entry in rank(exact, "auroc", top=2, tags=["NOUN"])} == {3}


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("site", SITES)
def test_extreme_tokens_with_and_without_the_index(lake: Lake, site: str, indexed: bool) -> None:
    if indexed:
        assert complete_tag_lists(lake.at(site), "upos") == len(lake.blocks)
    else:
        shutil.rmtree(lake.path / INDEX)
    here, values, tags = open_lake(lake.path).at(site), truth(lake, site), labels(lake)
    assert (len(here.index().segments) > 0, len(here.index().tag_lists)) == (indexed, int(indexed))
    for layer, unit in [(0, 3), (1, WIDTHS[site] - 1)]:
        column = values[layer, :, unit]
        for where, rows in [(None, tags != None), (("upos", "VERB"), tags == "VERB")]:  # noqa: E711
            lines = np.flatnonzero(rows)
            for bottom in (False, True):
                order = lines[np.argsort(column[lines] if bottom else -column[lines], kind="stable")]
                found = top_tokens(here, layer, unit, 12, bottom=bottom, where=where)
                assert [entry["row"] for entry in found] == order[:12].tolist()
                np.testing.assert_array_equal([entry["value"] for entry in found], column[order[:12]])
        bar = float(np.quantile(column[tags != None], 0.9))  # noqa: E711
        assert sorted(tokens_above(here, layer, unit, bar).lines) == np.flatnonzero((column > bar) & (tags != None)).tolist()  # noqa: E711
    lines = np.flatnonzero(tags != None)  # noqa: E711
    weighted = values[0, lines, 3].astype(np.float64) * 0.7 - values[1, lines, 6].astype(np.float64) * 0.2
    found = top_tokens_weighted(here, {(0, 3): 0.7, (1, 6): -0.2}, 5)
    np.testing.assert_allclose([entry["value"] for entry in found], np.sort(weighted)[::-1][:5], rtol=1e-9)
    row = int(lines[17])
    flat = np.abs(values[:, row].ravel())
    strongest = strongest_neurons(here, row, 5)
    np.testing.assert_allclose([abs(entry["value"]) for entry in strongest], np.sort(flat)[::-1][:5])
    assert all(values[entry["layer"], row, entry["neuron"]] == entry["value"] for entry in strongest)


@pytest.mark.parametrize("site", SITES)
def test_neurons_and_tokens_that_are_alike(lake: Lake, site: str) -> None:
    here, values, tags = lake.at(site), truth(lake, site), labels(lake)
    lines = np.flatnonzero(tags != None)  # noqa: E711
    flat = np.concatenate(list(values[:, lines]), axis=1).astype(np.float64)
    expected = np.corrcoef(flat.T)
    own = WIDTHS[site] + 3  # L1.N3
    np.testing.assert_allclose(coactivation(here, (1, 3)).values.ravel(), expected[own], atol=1e-6)
    (best,) = neighbours(here, 1, 3, 1)
    order = np.argsort(-np.abs(expected[own]))
    assert best["layer"] * WIDTHS[site] + best["neuron"] == order[1]
    clusters = redundancy_clusters(here, 0.3)
    assert all(int(name.split("N")[1]) < WIDTHS[site] for cluster in clusters for name in cluster["neurons"])
    assert [
        sketch.startswith(f"sketch-{site}-") for sketch in kept_results(here.path, kept=INDEX) if "sketch" in sketch
    ] == [True]
    standard = (values[1, lines].astype(np.float64) - values[1, lines].mean(axis=0)) / values[1, lines].std(axis=0)
    standard /= np.linalg.norm(standard, axis=1, keepdims=True)
    cosines = standard @ standard[4]
    found = similar_tokens(here, int(lines[4]), 1, 3, exact=True)
    np.testing.assert_allclose([entry["similarity"] for entry in found], np.sort(cosines)[::-1][1:4], atol=1e-5)
    nouns = choose_rows(here, where="upos='NOUN'")
    first = firing_neurons(here, nouns, 2)
    assert {entry["neuron"] for entry in first} == {3}
    assert {entry["neuron"] for entry in firing_neurons(here, nouns, 2, score="hits")} <= set(range(WIDTHS[site]))
    described = describe_neuron(here, 1, 3)
    assert (described["site"], described["weights"]) == (site, None)
    assert described["moments"]["mean"] == pytest.approx(values[1, lines, 3].mean(dtype=np.float64))


def test_kept_results_of_two_sites_do_not_mix(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    other = lake.at("resid.post")
    answers: dict[str, Any] = {}
    for here in (lake, other):
        kept = refine(here, compute_statistics(here), "auroc", top=5)
        probed = probe(here, "upos", layer=1, classifier="lda", random_draws=0)
        neighbours(here, 0, 3, 2)
        vector_index(here, 1)
        answers[here.site] = kept, probed
        assert (kept.attrs["site"], probed.settings["site"]) == (here.site, here.site)
    names = [answers[site][0].attrs["kept"] for site in SITES]
    assert len({*names}) == 2
    assert sorted(kept_results(lake.path)) == sorted(names)
    assert {len(kept_results(lake.path, kept=kind)) for kind in KEPT if "covar" in kind} == {2}
    for kind in ("sketch", "vectors"):
        assert len([name for name in kept_results(lake.path, kept=INDEX) if name.startswith(f"{kind}-")]) == 2
    assert verify(lake.path, full=True).ok
    monkeypatch.setattr(ShardReader, "_read", lambda *_: pytest.fail("an activation was read"))
    for site in SITES:
        here = open_lake(lake.path).at(site)
        again = refine(here, compute_statistics(here), "auroc", top=5)
        assert again.identical(answers[site][0])
        neighbours_of = vector_index(here, 1)
        assert neighbours_of.record["site"] == site
    with pytest.raises(InputError, match=r"statistics are of mlp.post, the lake is at resid.post"):
        refine(other, answers["mlp.post"][0], "auroc", top=5)
    with pytest.raises(InputError, match=r"statistics are of resid.post, the lake is at mlp.post"):
        permutation_test(lake, answers["resid.post"][0], "cohen_d", permutations=1)


def test_a_key_is_what_the_format_says(lake: Lake) -> None:
    """Results that were kept before a lake was at a site are still found."""
    for site in SITES:
        key = {
            "lake": lake.fingerprint,
            "site": site,
            "labels": {"by": "upos", "where": None, "subword": "last", "shift": 0},
            "folds": 10,
            "basic": False,
            "version": 1,
        }
        mark = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        made = StatisticsKey.of(lake.at(site), LabelRequest(by="upos"), folds=10, basic=False)
        assert (made.as_dict(), made.name) == (key, f"upos-{mark}")


def test_a_probe_learns_from_the_site(tmp_path: Path) -> None:
    two_site_lake(tmp_path / "two.lake", encoding="float32")
    lake = open_lake(tmp_path / "two.lake")
    other = lake.at("resid.post")
    settings: dict[str, Any] = {"layer": 1, "classifier": "ridge", "random_draws": 0, "seed": 3}
    assert probe(other, "upos", **settings).counts["n_features"] == 7
    assert probe(lake, "upos", **settings).counts["n_features"] == 10
    with pytest.raises(InputError, match=r"10 neurons at mlp.post, the other one 2 of 7 at resid.post"):
        probe(other, "upos", test=lake, **settings)
    rows = np.ones(len(lake.blocks) * lake.block_rows, dtype=np.bool_)
    for here in (lake, other):
        every = LakeMatrix(here, whole_layers(here, [0, 1]), rows)
        np.testing.assert_array_equal(np.asarray(every), np.concatenate(list(truth(lake, here.site)), axis=1))
        (name,) = probe(here, "upos", tag="NOUN", top_k=1, random_draws=0).neurons or []
        assert name in ("L0.N3", "L1.N3")


def test_the_index_of_both_sites_is_made_again_and_checked(lake: Lake) -> None:
    before = set(kept_results(lake.path, kept=INDEX))
    shutil.rmtree(lake.path / INDEX)
    assert complete_index(open_lake(lake.path)) == len(lake.blocks)
    after = kept_results(lake.path, kept=INDEX)
    assert {name.split("-")[1] for name in after} == {name.split("-")[1] for name in before} == set(SITES)
    for site in SITES:
        assert complete_tag_lists(open_lake(lake.path).at(site), "upos") == len(lake.blocks)
    report = verify(lake.path, full=True)
    assert report.ok, report.damage
    shard = next((lake.path / "activations/resid.post/1").glob("c.2.0"))
    data = bytearray(shard.read_bytes())
    data[3] ^= 1
    shard.write_bytes(data)
    report = verify(lake.path, full=True)
    assert not report.ok
    assert all("resid.post" in line for line in report.damage), report.damage


@pytest.mark.parametrize("sites", [WIDTHS, {"resid.pre": 7}, {"resid.post": 7, "mlp.post": 10}])
def test_what_is_gathered_while_extracting_is_of_the_first_site(
    tmp_path: Path, sites: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    builders: list[Any] = []

    def start(root: Path) -> Any:
        builders.extend(make(root, "upos") for make in (StatisticsBuilder, TagListsBuilder))
        return lambda *chunk: [builder.add(*chunk) for builder in builders]

    two_site_lake(tmp_path / "a.lake", start=start, sites=sites)
    for builder in builders:
        builder.finish()
    lake = open_lake(tmp_path / "a.lake")
    assert lake.site == next(iter(sites))
    assert [lists.record["site"] for site in lake.sites for lists in lake.at(site).index().tag_lists] == [lake.site]
    with monkeypatch.context() as patch:
        patch.setattr(ShardReader, "_read", lambda *_: pytest.fail("an activation was read"))
        found = compute_statistics(lake)
        top = top_tokens(lake, 1, 3, 5, where=("upos", "NOUN"))
    values, tags = truth(lake, lake.site), labels(lake)
    for tag in found["tag"].to_numpy():
        np.testing.assert_allclose(found["mean"].sel(tag=tag), values[:, tags == tag].mean(axis=1, dtype=float), atol=1e-9)
    nouns = values[1, tags == "NOUN", 3]
    np.testing.assert_array_equal([entry["value"] for entry in top], np.sort(nouns)[::-1][:5])
    for site in lake.sites[1:]:  # which tokens are nouns is known from the lists of the first
        values = truth(lake, site)
        with monkeypatch.context() as patch:
            patch.setattr(Lake, "words", lambda *_, **__: pytest.fail("a table was read"))
            mask = eligible_tokens(lake.at(site), ("upos", "NOUN"), special=False)
        np.testing.assert_array_equal(mask, tags == "NOUN")
        top = top_tokens(lake.at(site), 1, 3, 5, where=("upos", "NOUN"))
        np.testing.assert_array_equal([entry["value"] for entry in top], np.sort(values[1, mask, 3])[::-1][:5])
    assert verify(lake.path, full=True).ok
