"""The planted benchmark in small: rankers find what was planted, and random labels are not found to say anything."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

sys.path.append(str(Path(__file__).parent.parent))  # the benchmarks

from benchmarks import planted as benchmark
from benchmarks.planted import most_allowed, random_labels, recall, textbook_p
from benchmarks.swiglu import TAGS, Activations, choose_neurons, corpus, write_activations
from neuronlake.analysis import compute_statistics, score
from neuronlake.analysis.statistics import statistics_of_labels

NEURONS, TOKENS, DRAWS = 600, 6000, 20
SOME = ("NOUN", "VERB", "PUNCT", "NUM", "INTJ", "X")
TESTED = benchmark.tested()
OF_MEANS = ("cohen_d", "welch_t", "f_statistic", "eta_squared", "variance_reduction")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Any, dict[str, Any]]:
    """A lake of 1,200 neurons and where they are planted: 20 per tag raised by one deviation, as many with doubled ones."""
    tags = {tag: TAGS[tag] for tag in SOME}
    chosen = choose_neurons(7, (2, NEURONS), each=20, tags=SOME, forms=("raised 1 sd", "wider ×2"))
    lake = write_activations(
        tmp_path_factory.mktemp("planted") / "a.lake", seed=7, tokens=corpus(TOKENS, 7, tags, documents=40), layers=2,
        neurons=NEURONS, encoding="int8a", planted=chosen,
    )  # fmt: skip
    return lake, chosen


@pytest.fixture(scope="module")
def planted(world) -> dict[str, Any]:
    return recall(*world, (*OF_MEANS, "auroc", "mutual_information", "mean_difference"))


@pytest.mark.parametrize("method", [*OF_MEANS, "auroc", "mutual_information"])
def test_neurons_that_a_tag_raises_are_found(planted, method):
    frequent = [found for tag, found in planted[method]["raised 1 sd"].items() if tag not in ("X", "INTJ")]
    assert np.mean(frequent) >= 0.95
    if method in ("auroc", "mutual_information"):
        assert np.mean(list(planted[method]["raised 1 sd"].values())) >= 0.95


def test_what_leaves_the_mean_alone_is_seen_by_rankers_of_the_distribution(world):
    lake, chosen = world
    statistics = compute_statistics(lake, "upos", also=benchmark.ON_REQUEST)

    def seen(method: str) -> float:
        q = score(statistics, method)["q"]
        places = {tag: np.unravel_index(chosen["wider ×2"][tag], (2, NEURONS)) for tag in ("NOUN", "VERB", "PUNCT")}
        return float(np.mean([q.sel(tag=tag).to_numpy()[place] <= 0.05 for tag, place in places.items()]))

    assert seen("mutual_information") == 1
    assert seen("localizer") >= 0.8
    assert seen("welch_t") < 0.1
    assert seen("f_statistic") < 0.1


def test_a_difference_in_activation_units_follows_the_scale(planted):
    assert np.mean(list(planted["mean_difference"]["raised 1 sd"].values())) < 0.6


@pytest.fixture(scope="module")
def null(tmp_path_factory) -> dict[str, list[np.ndarray]]:
    """p of every draw of random labels, by ranker."""
    lake = write_activations(
        tmp_path_factory.mktemp("null") / "a.lake",
        seed=8,
        tokens=corpus(TOKENS, 8),
        layers=2,
        neurons=NEURONS,
        encoding="int8a",
    )
    found: dict[str, list[np.ndarray]] = {}
    for batch in random_labels(lake, DRAWS, seed=8):
        for statistics in statistics_of_labels(lake, batch, also=benchmark.ON_REQUEST):
            for name in TESTED:
                found.setdefault(name, []).append(score(statistics, name)["p"].to_numpy())
            for name in ("welch_t", "localizer", "f_statistic", "chi_squared"):
                found.setdefault(f"{name}, textbook", []).append(textbook_p(statistics, name))
    return found


def rejected(draws: list[np.ndarray]) -> int:
    """Draws in which anything has q ≤ 0.05."""
    return sum(bool((scipy.stats.false_discovery_control(p, axis=None) <= 0.05).any()) for p in draws)


@pytest.mark.parametrize("method", TESTED)
def test_random_labels_are_rejected_no_more_than_chance_would(null, method):
    assert scipy.stats.binom.sf(most_allowed(DRAWS), DRAWS, 0.05) < 0.05
    assert rejected(null[method]) <= most_allowed(DRAWS)
    # in the tail that a correction over many tests looks at: 408,000 tests, of neurons that depend on each other
    assert np.mean([(p <= 1e-3).mean() for p in null[method]]) <= 1.5e-3


@pytest.mark.parametrize("method", ["welch_t", "localizer", "f_statistic", "chi_squared"])
def test_what_textbooks_give_would_not_pass(null, method):
    """So that the test above can fail: it does with the p that these rankers would have otherwise."""
    assert rejected(null[f"{method}, textbook"]) > most_allowed(DRAWS)


@pytest.mark.parametrize("method", ["auroc", "fraction_active_difference"])
def test_halved_p_would_not_pass(null, method):
    """Where p is exact or nearly; bounds have more to spare."""
    assert np.mean([(p / 2 <= 1e-3).mean() for p in null[method]]) > 1.5e-3


def test_slices_are_of_the_same_activations():
    tokens = corpus(3000, 0)
    planted = choose_neurons(0, (1, 400), each=2, tags=list(TAGS))
    layer = Activations(seed=0, layer=0, neurons=400, tokens=tokens, planted=planted)
    bare = Activations(seed=0, layer=0, neurons=400, tokens=tokens)[0:3000]
    whole = layer[0:3000]
    np.testing.assert_array_equal(whole[1000:2100], layer[1000:2100])
    touched = np.zeros(400, dtype=bool)
    for form, tags in planted.items():
        for tag, places in tags.items():
            touched[places] = True
            here = tokens["upos"] == tag
            np.testing.assert_array_equal(whole[~here][:, places], bare[~here][:, places])
            moved = (whole - bare)[here][:, places].mean(axis=0) / bare[:, places].std(axis=0)
            if form.startswith(("raised", "lowered")):
                np.testing.assert_allclose(moved, float(form.split()[1]) * (1 if form[0] == "r" else -1), rtol=0.15)
    np.testing.assert_array_equal(whole[:, ~touched], bare[:, ~touched])
    assert scipy.stats.kurtosis(bare, axis=0).min() > 3
