"""Rankers against SciPy, and the order, signs and edge cases of rankings."""

import json

import numpy as np
import pytest
import scipy.stats
import xarray as xr
from memory_lake import MemoryLake

from neuronlake.analysis import RANKERS, benjamini_hochberg, compute_statistics, rank, score, token_labels
from neuronlake.store.errors import InputError


@pytest.fixture(scope="module")
def lake():
    made = MemoryLake(seed=3)
    labels = token_labels(made, "upos")
    made.values[2][labels.codes == 1, 4] += 3  # NOUN raises L2.N4
    made.values[2][labels.codes == 2, 5] -= 3  # VERB lowers L2.N5
    return made


@pytest.fixture(scope="module")
def dataset(lake):
    return compute_statistics(lake)


def groups(lake, tag):
    labels = token_labels(lake, "upos")
    mine = labels.codes == labels.tags.index(tag)
    rest = (labels.codes >= 0) & ~mine
    for position, layer in enumerate(lake.layers):
        values = lake.stored(layer).astype(np.float64)
        yield position, values[mine], values[rest]


def test_every_ranker_against_scipy(lake, dataset):
    scores = {name: score(dataset, name) for name in RANKERS}
    for tag in ("ADJ", "NOUN", "VERB"):
        for position, mine, rest in groups(lake, tag):
            welch = scipy.stats.ttest_ind(mine, rest, equal_var=False)
            pooled = np.sqrt(
                ((len(mine) - 1) * mine.var(axis=0, ddof=1) + (len(rest) - 1) * rest.var(axis=0, ddof=1))
                / (len(mine) + len(rest) - 2)
            )
            expected = {
                "mean_difference": mine.mean(axis=0) - rest.mean(axis=0),
                "cohen_d": (mine.mean(axis=0) - rest.mean(axis=0)) / pooled,
                "welch_t": welch.statistic,
                "auroc": scipy.stats.mannwhitneyu(mine, rest).statistic / (len(mine) * len(rest)),
            }
            for name, values in expected.items():
                found = scores[name].sel(tag=tag).isel(layer=position)
                np.testing.assert_allclose(found[name], values, rtol=1e-9, atol=1e-12)
                neutral = 0.5 if name == "auroc" else 0
                np.testing.assert_array_equal(found["sign"], np.where(values < neutral, -1, 1))
            found = scores["welch_t"].sel(tag=tag).isel(layer=position)
            np.testing.assert_allclose(found["p"], welch.pvalue, rtol=1e-7)
            rank_sum = scipy.stats.ranksums(mine, rest)  # the normal approximation without ties
            found = scores["auroc"].sel(tag=tag).isel(layer=position)
            np.testing.assert_allclose(found["p"], rank_sum.pvalue, rtol=1e-6)


@pytest.mark.parametrize("name", ["welch_t", "auroc"])
def test_q_covers_all_neurons_and_tags(dataset, name):
    scores = score(dataset, name)
    expected = scipy.stats.false_discovery_control(scores["p"].to_numpy().ravel())
    np.testing.assert_allclose(scores["q"].to_numpy().ravel(), expected, rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_benjamini_hochberg_against_scipy(seed):
    p = np.random.default_rng(seed).random((3, 50)) ** (seed + 1)
    p[0, :10] = p[0, 0]
    expected = scipy.stats.false_discovery_control(p, axis=None).reshape(p.shape)
    np.testing.assert_allclose(benjamini_hochberg(p), expected, rtol=1e-12)


def test_benjamini_hochberg_of_extremes():
    assert benjamini_hochberg(np.array([])).shape == (0,)
    np.testing.assert_array_equal(benjamini_hochberg(np.array([0.0, 1.0, 1.0])), [0, 1, 1])


@pytest.mark.parametrize("method", RANKERS)
def test_planted_neurons_come_first(dataset, method):
    best = {entry["tag"]: entry for entry in rank(dataset, method, top=1)}
    assert (best["NOUN"]["name"], best["NOUN"]["sign"]) == ("L2.N4", 1)
    assert (best["VERB"]["name"], best["VERB"]["sign"]) == ("L2.N5", -1)


@pytest.mark.parametrize("method", RANKERS)
def test_rank_follows_the_scores(dataset, method):
    entries = rank(dataset, method, top=1000, tags=["VERB"])
    assert len(entries) == 20  # all neurons
    assert [entry["rank"] for entry in entries] == list(range(1, 21))
    scores = score(dataset, method).sel(tag="VERB")
    assert [entry["score"] for entry in entries] == sorted(scores["score"].to_numpy().ravel(), reverse=True)
    for entry in json.loads(json.dumps(entries, allow_nan=False)):
        found = scores.sel(layer=entry["layer"], neuron=entry["neuron"])
        for name in {method, "p", "q", "mean", "mean_rest", "score", "sign", "count"} & set(scores):
            assert entry[name] == found[name]
        assert {"tag", "layer", "neuron", "name", "rank", "score", "sign", method, "mean", "mean_rest", "count"} <= set(
            entry
        )


def constant_dataset():
    """Neurons: all zero; all equal; two constants; one group constant; and a negative constant. Tags a and b."""
    mean = np.array([[0, 0.1, 0.25, 1, -3], [0, 0.1, -0.5, 2, -3.5]])[:, None]
    variance = np.array([[0, 0, 0, 0, 0], [0, 0, 0, 4.0, 0]])[:, None]
    return xr.Dataset(
        {
            "count": ("tag", [2, 5]),
            "mean": (("tag", "layer", "neuron"), mean),
            "variance": (("tag", "layer", "neuron"), variance),
            "auroc": (("tag", "layer", "neuron"), np.array([[0.5, 0.5, 1, 0.3, 1], [0.5, 0.5, 0, 0.7, 0]])[:, None]),
        },
        coords={"tag": ["a", "b"], "layer": [0], "neuron": np.arange(5)},
    )


@pytest.mark.parametrize("method", RANKERS)
def test_constant_neurons_stay_finite(method):
    entries = rank(constant_dataset(), method, top=5)
    json.dumps(entries, allow_nan=False)
    if method in ("cohen_d", "welch_t"):
        by_neuron = {entry["neuron"]: entry for entry in entries if entry["tag"] == "a"}
        assert by_neuron[0][method] == by_neuron[1][method] == 0
        assert by_neuron[2]["score"] > 1e6
        assert by_neuron[2]["sign"] == 1
        # the better separated pair of constants, relative to its size, ranks higher
        assert [entry["neuron"] for entry in entries if entry["tag"] == "a"] == [2, 4, 3, 0, 1]
    if method == "welch_t":
        assert by_neuron[0]["p"] == by_neuron[1]["p"] == 1
        assert by_neuron[2]["p"] < 1e-6


def test_equal_scores_are_ordered_by_layer_and_neuron(dataset):
    flat = dataset.assign(auroc=xr.full_like(dataset["auroc"], 0.75))
    names = [entry["name"] for entry in rank(flat, "auroc", top=12, tags=["ADJ"])]
    assert names == [f"L0.N{neuron}" for neuron in range(10)] + ["L2.N0", "L2.N1"]


def test_unknown_names_list_the_known_ones(dataset):
    with pytest.raises(InputError, match="known are mean_difference, cohen_d, welch_t, auroc"):
        rank(dataset, "magic")
    with pytest.raises(InputError, match="unknown tag 'X': known are ADJ, NOUN, VERB"):
        rank(dataset, "auroc", tags=["X"])
    with pytest.raises(InputError, match="top must be at least 1"):
        rank(dataset, "auroc", top=0)


def test_what_cannot_be_ranked(dataset):
    with pytest.raises(InputError, match="auroc=True"):
        rank(dataset.drop_vars("auroc"), "auroc")
    with pytest.raises(InputError, match="ranking compares tags"):
        rank(dataset.isel(tag=[0]), "cohen_d")


def test_the_registry_describes_itself():
    for name, ranker in RANKERS.items():
        assert ranker.name == name
        assert ranker.description
        assert ranker.formula
        assert ranker.source


def test_functions_of_the_registry_take_plain_statistics(dataset):
    for name, ranker in RANKERS.items():
        assert {"score", "sign", name} <= set(ranker.function(dataset))
        assert set(ranker.needs) <= set(dataset)
