"""p-values for any distribution, against every choice of tokens there is, and against SciPy."""

import itertools

import numpy as np
import pytest
import scipy.special
import scipy.stats
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from neuronlake.analysis import score
from neuronlake.analysis.tails import absolute_population, count_p, g_mean_bound, g_p, g_variance_bound, mean_p, population

DIMS = ("tag", "layer", "neuron")
MOMENTS = ["mean", "variance", "mean_absolute", "third_moment", "fourth_moment", "minimum", "maximum"]


def statistics_of(*groups: np.ndarray) -> xr.Dataset:
    """Of two tags; values (tokens, neurons)."""
    parts = {
        "mean": [x.mean(axis=0) for x in groups],
        "variance": [x.var(axis=0, ddof=1) for x in groups],
        "mean_absolute": [np.abs(x).mean(axis=0) for x in groups],
        "third_moment": [((x - x.mean(axis=0)) ** 3).mean(axis=0) for x in groups],
        "fourth_moment": [((x - x.mean(axis=0)) ** 4).mean(axis=0) for x in groups],
        "minimum": [x.min(axis=0) for x in groups],
        "maximum": [x.max(axis=0) for x in groups],
        "fraction_active": [(x > 0).mean(axis=0) for x in groups],
    }
    return xr.Dataset(
        {"count": ("tag", [len(x) for x in groups]), **{name: (DIMS, np.array(x)[:, None]) for name, x in parts.items()}},
        coords={"tag": [f"t{tag}" for tag in range(len(groups))], "layer": [0], "neuron": np.arange(groups[0].shape[1])},
    )


VALUES = st.one_of(
    st.lists(st.integers(-3, 3), min_size=6, max_size=11),
    st.lists(st.sampled_from([0.0, 0.01, -0.02, 1.0, 50.0]), min_size=6, max_size=11),
    st.lists(st.floats(-100, 100, width=32), min_size=6, max_size=11),
)


@given(values=VALUES, share=st.floats(0.2, 0.8), seed=st.integers(0, 99))
def test_no_choice_of_tokens_is_as_rare_as_p_says(values, share, seed):
    """The exact permutation distribution of the mean, every choice enumerated."""
    x = np.random.default_rng(seed).permutation(np.array(values, dtype=np.float64))
    tokens = int(np.clip(round(share * len(x)), 2, len(x) - 2))
    dataset = statistics_of(x[:tokens, None], x[tokens:, None])
    lean = dataset.drop_vars(["third_moment", "fourth_moment", "minimum", "maximum"])
    choices = list(itertools.combinations(range(len(x)), tokens))
    for population_of, y in ((population, x), (absolute_population, np.abs(x))):
        away = np.abs(np.array([y[list(choice)].mean() for choice in choices]) - y.mean())
        exact = np.mean(away >= away[0] * (1 - 1e-9) - 1e-12)
        for each in (dataset, lean, dataset.drop_vars(["minimum", "maximum"])):
            p = mean_p(population_of(each)).ravel()
            assert np.all(p >= exact * (1 - 1e-9)) or np.ptp(y) < 1e-6 * np.abs(y).max()
            assert np.all(p <= 1)


@pytest.mark.parametrize("ones", [3, 40, 1000])
def test_far_tails_of_two_values_are_no_heavier(ones):
    """Values 0 and 1 have a known law: hypergeometric, where the normal one is wrong by orders of magnitude."""
    total, tokens = 20_000, 57
    seen = np.arange(min(ones, tokens) + 1)
    x = np.zeros((total, len(seen)))
    for column, count in enumerate(seen):
        x[:count, column] = 1
        x[tokens : tokens + ones - count, column] = 1
    law = scipy.stats.hypergeom(total, ones, tokens)
    p = mean_p(population(statistics_of(x[:tokens], x[tokens:])))[0, 0]
    exact = np.where(seen > law.mean(), law.sf(seen - 1), law.cdf(seen))
    assert np.all(p >= np.minimum(1, exact))
    assert np.all(np.log10(p) <= 1 + 0.8 * np.log10(exact))  # and it is of use
    welch = score(statistics_of(x[:tokens], x[tokens:]), "welch_t")["p"].to_numpy()[0, 0]
    assert np.all(welch >= p)


def test_of_normal_values_little_is_lost():
    """The exponent is nearly that of the normal law, whichever tag is the larger one."""
    rng = np.random.default_rng(0)
    for sizes in ((500, 20_000), (20_000, 500)):
        groups = [rng.normal(size=(size, 5)) for size in sizes]
        groups[0] += 0.35 * np.sign(sizes[1] - sizes[0])
        dataset = statistics_of(*groups)
        ours = np.log10(mean_p(population(dataset))[0, 0])
        normal = np.log10(scipy.stats.ttest_ind(*groups).pvalue)
        assert np.all(ours > normal)
        assert np.all(ours < 0.75 * normal)


@given(hits=st.integers(0, 60), count=st.integers(1, 60), hits_rest=st.integers(0, 4000), count_rest=st.integers(1, 4000))
def test_counts_against_scipy(hits, count, hits_rest, count_rest):
    hits, hits_rest = min(hits, count), min(hits_rest, count_rest)
    p = count_p(*(np.array([[float(x)]]) for x in (hits, count, hits_rest, count_rest)))
    law = scipy.stats.hypergeom(count + count_rest, hits + hits_rest, count)
    assert p[0, 0] == pytest.approx(min(1, 2 * min(law.cdf(hits), law.sf(hits - 1))), rel=1e-8, abs=1e-300)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.05, 0.17, 0.25, 0.33, 0.42, 0.5])
def test_no_bin_adds_more_to_g_than_its_law_allows(share):
    """Mean, variance and third cumulant of a bin's part of G, by summing the binomial law for any number of tokens."""
    mean, variance = g_mean_bound(share), g_variance_bound(share)
    for tokens in np.unique(np.geomspace(1, 100 / share, 80).astype(int)):
        mine = np.arange(min(tokens, int(tokens * share + 15 * np.sqrt(tokens * share) + 30)) + 1)
        weight = scipy.stats.binom.pmf(mine, tokens, share)
        rest = tokens - mine
        g = 2 * (
            scipy.special.xlogy(mine, mine / (tokens * share)) + scipy.special.xlogy(rest, rest / (tokens * (1 - share)))
        )
        assert np.sum(weight * g) <= mean
        assert np.sum(weight * (g - np.sum(weight * g)) ** 2) <= variance
        assert np.sum(weight * (g - np.sum(weight * g)) ** 3) <= 2 * variance**2 / mean


def test_g_of_sparse_tables_against_random_ones():
    """Tables of the worst kind, bins that expect 1.3 of the tag's tokens: χ² rejects too often, the law in use does not."""
    rng = np.random.default_rng(0)
    bins, tokens, rest = 150, 195, 20_000
    column = np.full(bins, (tokens + rest) // bins + 1)
    column[: column.sum() - tokens - rest] -= 1
    mine = rng.multivariate_hypergeometric(column, tokens, size=40_000, method="marginals")
    expected = column * tokens / column.sum()
    g = 2 * (
        scipy.special.xlogy(mine, mine / expected)
        + scipy.special.xlogy(column - mine, (column - mine) / (column - expected))
    )
    g = g.sum(axis=1)
    p = g_p(g, *(np.array(float(x)) for x in (bins, tokens, rest)))
    for level in (0.05, 0.01, 1e-3):
        assert np.mean(scipy.stats.chi2.sf(g, bins - 1) <= level) > 3 * level
        assert np.mean(p <= level) <= level


def test_constant_neurons_have_p_of_one():
    for value in (0.0, 0.1, 1e6, -3.7e-5):
        dataset = statistics_of(np.full((7, 1), value), np.full((11, 1), value))
        assert mean_p(population(dataset)).tolist() == mean_p(absolute_population(dataset)).tolist() == [[[1.0]], [[1.0]]]


@pytest.mark.parametrize("names", [MOMENTS, MOMENTS[:5], MOMENTS[:3]])
def test_less_knowledge_gives_a_larger_p(names):
    rng = np.random.default_rng(1)
    groups = [rng.standard_t(3, size=(size, 50)) + shift for size, shift in ((60, 1.5), (3000, 0))]
    whole = statistics_of(*groups)
    fewer = whole[["count", *names]]
    for population_of in (population, absolute_population):
        assert np.all(mean_p(population_of(fewer)) >= mean_p(population_of(whole)) * (1 - 1e-6))
