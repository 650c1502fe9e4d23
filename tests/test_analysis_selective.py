"""Selective neurons against direct loops, planted neurons, and K from 2 to 6."""

import json
import math

import numpy as np
import pytest
import xarray as xr
from memory_lake import MemoryLake
from scipy import stats

from neuronlake.analysis import compute_statistics
from neuronlake.analysis.selective import (
    CATEGORIES,
    CLASSES,
    SharedCategories,
    language_classes,
    lape,
    selectivity,
    shared_categories,
)
from neuronlake.store.errors import InputError

LANGUAGES = ["en", "de", "fr", "es", "zh", "cs"]


def activity(tags: int, *, layers: int = 4, neurons: int = 250, seed: int = 0) -> xr.Dataset:
    """Shares of active tokens: most neurons seldom active and for all tags alike, some dead."""
    rng = np.random.default_rng(seed)
    p = rng.beta(2, 20, size=(1, layers, neurons)) * rng.uniform(0.7, 1.3, size=(tags, layers, neurons))
    p[:, :, :5] = 0
    return xr.Dataset(
        {"fraction_active": (("tag", "layer", "neuron"), p)},
        coords={"tag": LANGUAGES[:tags], "layer": np.arange(layers) * 3, "neuron": np.arange(neurons)},
        attrs={"by": "language"},
    )


def plant(dataset: xr.Dataset) -> xr.Dataset:
    """Layer 3 serves one tag per neuron, layer 6 pairs of neighbours, and one neuron of layer 9 all of them."""
    tags = dataset.sizes["tag"]
    for tag in range(tags):
        dataset["fraction_active"][:, 1, 10 + tag] = np.where(np.arange(tags) == tag, 0.9, 0.01)
        pair = np.isin(np.arange(tags), [tag, (tag + 1) % tags])
        dataset["fraction_active"][:, 2, 10 + tag] = np.where(pair, 0.9, 0.01)
    dataset["fraction_active"][:, 3, 10] = 0.97
    return dataset


def by_loops(p: np.ndarray, percentile: float) -> tuple[dict[tuple[int, int], float], float]:
    """Entropy of every neuron by SciPy, and the bar by sorting."""
    entropy = {}
    for layer, neuron in np.ndindex(p.shape[1:]):
        own = p[:, layer, neuron]
        entropy[layer, neuron] = float(stats.entropy(own)) if own.sum() else math.log(len(own))
    return entropy, sorted(p.ravel())[round(p.size * percentile / 100) - 1]


@pytest.mark.parametrize("tags", [2, 3, 4, 5, 6])
@pytest.mark.parametrize(("percentile", "share"), [(95, 0.01), (80, 0.1), (99.5, 0.2), (1, 1)])
def test_lape_against_loops(tags, percentile, share):
    dataset = plant(activity(tags, seed=tags))
    p = dataset["fraction_active"].to_numpy()
    entropy, bar = by_loops(p, percentile)
    passing = [place for place in entropy if p[:, *place].max() > bar]
    kept = sorted(passing, key=lambda place: (entropy[place], place))[: round(share * len(entropy))]
    found = lape(dataset, activity_percentile=percentile, keep_share=share)
    assert found.attrs["activity_bar"] == bar
    for place, expected in entropy.items():
        assert found["entropy"].to_numpy()[place] == pytest.approx(expected, rel=1e-12, abs=1e-12)
        assert bool(found["selected"].to_numpy()[place]) == (place in kept)
        assert found["assigned"].to_numpy()[:, *place].tolist() == [place in kept and bool(x > bar) for x in p[:, *place]]
    json.dumps(found.attrs, allow_nan=False)


@pytest.mark.parametrize("tags", [2, 3, 4, 5, 6])
def test_lape_finds_planted_neurons(tags):
    dataset = plant(activity(tags))
    found = lape(dataset, keep_share=tags / 1000)  # as many as there are neurons of one tag
    assert int(found["selected"].sum()) == tags
    for place, tag in enumerate(dataset["tag"].to_numpy()):
        mine = found["assigned"].sel(layer=3, neuron=10 + place)
        assert dataset["tag"].to_numpy()[mine.to_numpy()].tolist() == [tag]
    assert found["entropy"].sel(layer=3, neuron=0) == math.log(tags)  # never active: no information


def expected_classes(p: np.ndarray, share: float, weight: float) -> tuple[dict[tuple[int, int], str], bool]:
    """Class of every neuron at a given λ, and whether a selected one has all tags above the bar."""
    tags = len(p)
    entropy, bar = by_loops(p, 95)
    harmonic = sum(1 / k for k in range(1, tags + 1))
    score = {
        place: value / math.log(tags) - weight * p[:, *place].max() / (harmonic / tags) for place, value in entropy.items()
    }
    kept = set(sorted(score, key=lambda place: (score[place], place))[: round(share * len(score))])
    number = {place: int((p[:, *place] > bar).sum()) for place in score}
    classes = dict.fromkeys(score, "agnostic")
    for place in kept:
        classes[place] = "specific" if number[place] == 1 else "related" if 1 < number[place] < tags else "agnostic"
    return classes, any(number[place] == tags for place in kept)


@pytest.mark.parametrize("tags", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("share", [0.01, 0.05])
def test_language_classes_against_loops(tags, share):
    dataset = plant(activity(tags, seed=7))
    p = dataset["fraction_active"].to_numpy()
    found = language_classes(dataset, keep_share=share)
    weight = found.attrs["lambda"]
    classes, everywhere = expected_classes(p, share, weight)
    assert not everywhere
    assert found.attrs["lambda_found"] is True
    if weight < 0.2:  # the largest: a little more selects a neuron that serves all tags
        assert expected_classes(p, share, weight + 1e-3)[1]
    for place, name in classes.items():
        assert CLASSES[found["class_code"].to_numpy()[place]] == name
    counted = [
        [sum(c == name and place[0] == layer for place, c in classes.items()) for name in CLASSES] for layer in range(4)
    ]
    assert found["neurons"].to_numpy().tolist() == counted
    assert found["neurons"].dims == ("layer", "class")
    assert found["class"].to_numpy().tolist() == list(CLASSES)
    bar = found.attrs["activity_bar"]
    np.testing.assert_array_equal(found["n_tags"], (p > bar).sum(axis=0))
    np.testing.assert_array_equal(found["assigned"], found["selected"].to_numpy() & (p > bar))
    json.dumps(found.attrs, allow_nan=False)


@pytest.mark.parametrize("tags", [3, 4, 5, 6])
def test_language_classes_find_planted_neurons(tags):
    dataset = plant(activity(tags))
    found = language_classes(dataset, keep_share=2 * tags / 1000)
    assert 0 < found.attrs["lambda"] <= 0.2
    expected = np.full((4, 250), 2)
    expected[1, 10 : 10 + tags], expected[2, 10 : 10 + tags] = 0, 1
    np.testing.assert_array_equal(found["class_code"], expected)
    assert int(found["n_tags"].sel(layer=9, neuron=10)) == tags


def test_lambda_that_does_not_exist():
    """Every neuron above the bar serves all tags, and one of them is selected whatever λ is."""
    dataset = activity(3)
    dataset["fraction_active"][:] = 0.01
    dataset["fraction_active"][:, 0, :5] = 0.9
    dataset["fraction_active"][0, 0, :5] = 0.95
    found = language_classes(dataset)
    assert (found.attrs["lambda"], found.attrs["lambda_found"]) == (0.0, False)
    assert found["selected"].to_numpy()[0, :5].all()
    assert found["neurons"].sum("layer").to_numpy().tolist() == [0, 0, 1000]


def test_the_largest_lambda_needs_no_search():
    dataset = activity(2)
    dataset["fraction_active"][0] = 0
    found = language_classes(dataset)
    assert found.attrs["lambda"] == 0.2


def test_another_language_is_another_value_of_the_label():
    four, five = (
        compute_statistics(MemoryLake(tags=LANGUAGES[:count], documents=12, seed=1), basic=True) for count in (4, 5)
    )
    for dataset, count in ((four, 4), (five, 5)):
        assert lape(dataset)["assigned"].sizes["tag"] == count
        assert language_classes(dataset, keep_share=0.2)["n_tags"].max() <= count


def test_planted_in_a_lake():
    lake = MemoryLake(tags=LANGUAGES[:3], documents=30, sentences=4, seed=2)
    for layer in lake.layers:
        lake.values[layer] -= 2.5  # seldom active
    german = lake.column("upos") == "de"
    lake.values[2][german, 4] += 5
    found = lape(compute_statistics(lake, basic=True), activity_percentile=95, keep_share=0.05)
    assert found["selected"].to_numpy().nonzero() == (1, 4)
    assert found["tag"].to_numpy()[found["assigned"].sel(layer=2, neuron=4).to_numpy()].tolist() == ["de"]


def test_equal_entropies_are_taken_in_order():
    dataset = activity(2, layers=2, neurons=10)
    dataset["fraction_active"][:] = np.array([0.9, 0.1])[:, None, None]
    assert np.flatnonzero(lape(dataset, activity_percentile=40, keep_share=0.35)["selected"]).tolist() == list(range(7))
    assert np.flatnonzero(language_classes(dataset, keep_share=0.35)["selected"]).tolist() == list(range(7))


def test_one_neuron_at_least_but_none_that_is_too_seldom_active():
    dataset = activity(2, layers=1, neurons=20, seed=3)
    assert int(lape(dataset, keep_share=0.001)["selected"].sum()) == 1
    assert int(lape(dataset, activity_percentile=100, keep_share=1)["selected"].sum()) == 0
    dataset["fraction_active"][:] = 0
    assert not lape(dataset)["selected"].any()
    assert language_classes(dataset)["neurons"].to_numpy().tolist() == [[0, 0, 20]]


def test_entropies_are_between_none_and_even():
    p = np.array([[0.5, 0.2, 0.0, 1.0], [0.0, 0.2, 0.0, 1.0], [0.0, 0.2, 0.0, 1.0]])
    found = selectivity(p, activity_percentile=50)
    np.testing.assert_allclose(found.entropy, [0, np.log(3), np.log(3), np.log(3)], rtol=1e-15)
    assert not np.signbit(found.entropy).any()
    assert found.share[:, 2].tolist() == [0, 0, 0]


@pytest.mark.parametrize("wrong", [{"keep_share": 0}, {"keep_share": 1.5}, {"activity_percentile": 101}])
@pytest.mark.parametrize("method", [lape, language_classes])
def test_wrong_settings(method, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        method(activity(3), **wrong)


def test_what_cannot_be_compared():
    with pytest.raises(InputError, match="at least 2, got 1"):
        lape(activity(1))
    with pytest.raises(InputError, match="'fraction_active'"):
        language_classes(activity(2).drop_vars("fraction_active"))
    with pytest.raises(InputError, match="max_lambda must be at least 0"):
        language_classes(activity(2), max_lambda=-1)


def categories_by_loops(active: np.ndarray) -> np.ndarray:
    counts = {name: np.zeros(active.shape[2], dtype=int) for name in CATEGORIES}
    for one in active:
        for neuron in range(active.shape[2]):
            shared = sum(bool(x) for x in one[:, neuron])
            name = {0: "non_activated", 1: "specific", len(one): "all_shared"}.get(shared, "partial_shared")
            counts[name][neuron] += 1
    return np.array([counts[name] for name in CATEGORIES])


@pytest.mark.parametrize("languages", [2, 3, 4, 5, 6])
def test_shared_categories_against_loops(languages):
    rng = np.random.default_rng(languages)
    active = rng.random((40, languages, 15)) < rng.random(15)
    active[:, :, 0], active[:, :, 1], active[:, :, 2] = True, False, np.arange(languages) == 1
    expected = categories_by_loops(active)
    found = shared_categories(active)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.int64
    assert expected[:, :3].argmax(axis=0).tolist() == [3, 0, 1]
    np.testing.assert_array_equal(shared_categories(active * rng.integers(1, 9, active.shape)), expected)
    streamed = SharedCategories(languages=languages, neurons=15)
    assert streamed.shares().tolist() == [[0] * 15] * 4
    for part in np.array_split(active, [1, 1, 25]):
        streamed.add(part)
    np.testing.assert_array_equal(streamed.counts, expected)
    assert streamed.inputs == 40
    np.testing.assert_allclose(streamed.shares().sum(axis=0), 1)


def test_wrong_arrays():
    with pytest.raises(InputError, match="at least 2, got 1"):
        shared_categories(np.ones((3, 1, 4), dtype=bool))
    with pytest.raises(InputError, match="got 2 dimensions"):
        shared_categories(np.ones((3, 2), dtype=bool))
    with pytest.raises(InputError, match=r"\(inputs, 3, 4\).*got \(5, 2, 4\)"):
        SharedCategories(languages=3, neurons=4).add(np.ones((5, 2, 4), dtype=bool))
    with pytest.raises(InputError, match="compare the values with 0 first"):
        shared_categories(np.ones((3, 2, 4)))
