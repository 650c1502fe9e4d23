"""Statistics of histograms against SciPy, scikit-learn and NumPy on the values behind them."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import average_precision_score, mutual_info_score

from neuronlake.analysis.histogram_statistics import (
    auroc_of_histogram,
    average_precision_of_histogram,
    hits_of_histogram,
    mutual_information_of_histogram,
    quantiles_of_histogram,
    summary_of_histogram,
)

ZERO = 4
LOWER = np.array([-4.0, -3, -2, -1, 0, 0.25, 1, 2, 3])
UPPER = np.array([-3.25, -2.25, -1.25, -0.25, 0, 0.75, 1.75, 2.75, 4])
ROUNDING = 1e-12  # of float64, on top of every stated error


def histogram_of(values: np.ndarray, codes: np.ndarray, tags: int) -> np.ndarray:
    """Count values that lie in the bins above: uint32 (tags, 1, bins)."""
    place = np.searchsorted(LOWER, values, side="right") - 1
    assert np.all((LOWER[place] <= values) & (values <= UPPER[place]))
    counted = np.zeros((tags, 1, len(LOWER)), dtype=np.uint32)
    np.add.at(counted, (codes, 0, place), 1)
    return counted


@st.composite
def samples(draw) -> tuple[np.ndarray, np.ndarray]:
    """Values and tags (0 to 2); many equal values, every bin reachable, any order within a bin."""
    steps = draw(st.sampled_from([1, 2, 4]))
    element = st.tuples(st.integers(0, len(LOWER) - 1), st.integers(0, steps), st.integers(0, 2))
    rows = draw(st.lists(element, min_size=1, max_size=60))
    place, step, codes = (np.array(column) for column in zip(*rows, strict=True))
    return LOWER[place] + (UPPER - LOWER)[place] * step / steps, codes


def in_one_bin(values: list[float], codes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(values), np.array(codes)


def exact_auroc(values: np.ndarray, mine: np.ndarray) -> float:
    return float(stats.mannwhitneyu(values[mine], values[~mine]).statistic / (mine.sum() * (~mine).sum()))


@given(samples())
def test_exact_auroc_lies_within_the_error(sample):
    values, codes = sample
    area, error = auroc_of_histogram(histogram_of(values, codes, 3), zero_bin=ZERO)
    for tag in range(3):
        mine = codes == tag
        if mine.all() or not mine.any():
            assert (area[tag, 0], error[tag, 0]) == (0.5, 0)
        else:
            assert abs(area[tag, 0] - exact_auroc(values, mine)) <= error[tag, 0] + ROUNDING


@given(samples())
@example(in_one_bin([1.75, 1.75, 1.75, 1, 1, 1.25], [0, 0, 0, 1, 1, 2]))  # equal positives first: the best there is
@example(in_one_bin([1, 1.25, 1.5, 1.75, 1.75, 1.7], [0, 0, 0, 1, 1, 2]))  # negatives first, then each alone: the worst
@example(in_one_bin([1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 2]))
@example(in_one_bin([0, 0, 0, 0], [0, 1, 2, 1]))
@pytest.mark.filterwarnings("ignore:No positive class")
def test_exact_average_precision_lies_within_the_error(sample):
    values, codes = sample
    counted = histogram_of(values, codes, 3)
    for low in (False, True):
        precision, error = average_precision_of_histogram(counted, zero_bin=ZERO, low=low)
        for tag in range(3):
            expected = average_precision_score(codes == tag, -values if low else values)
            assert abs(precision[tag, 0] - expected) <= error[tag, 0] + ROUNDING


def worst_and_best(positives: int, negatives: int, before: tuple[int, int]) -> tuple[float, float]:
    """Average precision of the least and most fortunate order inside one bin, below a bin of sure tokens."""
    labels, values = [True] * before[0] + [False] * before[1], [3.0] * sum(before)
    labels += [True] * positives + [False] * negatives
    worst = values + list(np.linspace(1, 1.5, positives)) + [1.75] * negatives
    best = values + [1.75] * positives + [1.0] * negatives
    return average_precision_score(labels, worst), average_precision_score(labels, best)


@pytest.mark.parametrize("before", [(0, 0), (3, 0), (0, 5), (40, 7)])
@pytest.mark.parametrize(("positives", "negatives"), [(1, 1), (1, 30), (30, 1), (7, 11), (400, 300), (5, 0)])
def test_the_bounds_of_average_precision_are_tight(positives, negatives, before):
    """No smaller error would do: both ends are reached, but for the bound of a sum by a logarithm."""
    counted = np.zeros((2, 1, 9), dtype=np.uint32)
    counted[:, 0, 6], counted[:, 0, 8] = (positives, negatives), before
    precision, error = average_precision_of_histogram(counted, zero_bin=-1)
    worst, best = worst_and_best(positives, negatives, before)
    if before[0]:  # the bin above is open, too
        above = np.array(worst_and_best(*before, (0, 0))) - before[0] / sum(before)
        worst, best = (worst, best) + above * before[0] / (before[0] + positives)
    assert precision[0, 0] + error[0, 0] == pytest.approx(best, rel=1e-12)
    assert worst - 0.01 <= precision[0, 0] - error[0, 0] <= worst + ROUNDING


@given(samples())
def test_mutual_information(sample):
    values, codes = sample
    counted = histogram_of(values, codes, 3)
    bins = np.searchsorted(LOWER, values, side="right")
    found = mutual_information_of_histogram(counted)
    expected = [[mutual_info_score(codes == tag, bins) / np.log(2)] for tag in range(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-14)
    assert found.min() >= 0


def test_mutual_information_of_weak_dependence_keeps_its_digits():
    counted = np.array([[[500_001, 499_999]], [[1_000_000, 1_000_000]]], dtype=np.uint32)
    table = counted[:, 0].astype(float)
    expected = stats.contingency.chi2_contingency(table, correction=False, lambda_="log-likelihood").statistic
    bits = mutual_information_of_histogram(counted)[0, 0]
    # G ≈ χ² for so small a departure, and the latter has no cancellation
    squared = stats.contingency.chi2_contingency(table, correction=False).statistic
    np.testing.assert_allclose(bits * 2 * np.log(2) * 3e6, squared, rtol=1e-4)
    np.testing.assert_allclose(expected, squared, rtol=1e-2)


@given(samples(), st.sampled_from([0.005, 0.05, 0.3, 0.9]))
def test_hits(sample, share):
    values, codes = sample
    hits, first = hits_of_histogram(histogram_of(values, codes, 3), share=share)
    edge = UPPER[first[0] - 1]
    assert hits[:, 0].tolist() == [int(np.sum(values[codes == tag] > edge)) for tag in range(3)]
    distance = [abs(np.sum(values > end) - share * len(values)) for end in UPPER]
    assert distance[first[0] - 1] == min(distance)
    assert distance.index(min(distance)) == first[0] - 1


@given(samples(), st.sampled_from([0.0, 0.01, 0.25, 0.5, 1 / 3, 0.95, 1.0]))
def test_exact_quantile_lies_in_the_interval(sample, q):
    values, codes = sample
    lower, upper = LOWER[None], UPPER[None]
    estimate, low, high = quantiles_of_histogram(histogram_of(values, codes, 3), lower, upper, q)
    for tag in range(3):
        mine = values[codes == tag]
        if mine.size:
            exact = np.quantile(mine, q, method="inverted_cdf")
            assert low[tag, 0] <= exact <= high[tag, 0]
            assert (low[tag, 0], high[tag, 0]) in set(zip(LOWER, UPPER, strict=True))
        else:
            assert (estimate[tag, 0], low[tag, 0], high[tag, 0]) == (0, -4, 4)
        assert low[tag, 0] <= estimate[tag, 0] <= high[tag, 0]


def test_quantiles_are_those_of_values_spread_evenly():
    counted = np.zeros((1, 1, 9), dtype=np.uint32)
    counted[0, 0, 7], counted[0, 0, ZERO] = 1000, 1000
    spread = np.concatenate([np.zeros(1000), 2 + 0.75 * (np.arange(1000) + 0.5) / 1000])
    shares = [0.1, 0.5, 0.5005, 0.75, 0.999]
    estimate, low, high = quantiles_of_histogram(counted, LOWER[None], UPPER[None], shares)
    assert estimate.shape == low.shape == high.shape == (5, 1, 1)
    expected = np.quantile(spread, shares, method="inverted_cdf")
    np.testing.assert_allclose(estimate[:, 0, 0], expected, rtol=1e-12)
    np.testing.assert_array_equal(estimate[:2], 0)
    ends = np.clip(LOWER, 2.1, 2.2)[None, None], np.clip(UPPER, 2.1, 2.2)[None, None]
    assert quantiles_of_histogram(counted, *ends, 0.75)[0] == pytest.approx(2.15, abs=1e-4)


def test_many_neurons_and_bins_at_once():
    rng = np.random.default_rng(5)
    counted = rng.poisson(rng.gamma(0.3, 4, size=(4, 6, 256))).astype(np.uint32)
    counted[:, :, 128] *= 3
    area, error = auroc_of_histogram(counted, zero_bin=128)
    precision, slack = average_precision_of_histogram(counted, zero_bin=128)
    bits = mutual_information_of_histogram(counted)
    hits, first = hits_of_histogram(counted, share=0.05)
    for tag in range(4):
        for neuron in range(6):
            mine, rest = counted[tag, neuron], counted[np.arange(4) != tag, neuron].sum(axis=0, dtype=np.uint32)
            values = np.concatenate([np.repeat(np.arange(256), mine), np.repeat(np.arange(256), rest)])
            labels = np.arange(len(values)) < mine.sum()
            assert area[tag, neuron] == pytest.approx(exact_auroc(values, labels), rel=1e-12)  # bins as values
            inside = np.delete(mine.astype(float) * rest, 128).sum()
            assert error[tag, neuron] == pytest.approx(0.5 * inside / (mine.sum() * rest.sum()), rel=1e-12)
            assert abs(precision[tag, neuron] - average_precision_score(labels, values)) <= slack[tag, neuron]
            assert bits[tag, neuron] == pytest.approx(mutual_info_score(labels, values) / np.log(2), rel=1e-10)
            assert hits[tag, neuron] == mine[first[neuron] :].sum()
            above = [(values >= edge).sum() for edge in range(1, 257)]
            assert first[neuron] == 1 + np.argmin(np.abs(np.array(above) - 0.05 * len(values)))
    one = auroc_of_histogram(counted[:, 2:3], zero_bin=128)
    np.testing.assert_array_equal(one, (area[:, 2:3], error[:, 2:3]))
    summary = summary_of_histogram(counted, zero_bin=128, share=0.05)
    np.testing.assert_array_equal(summary.occupied, (counted.sum(axis=0) > 0).sum(axis=1))


def test_zeros_are_exact():
    counted = np.zeros((2, 1, 256), dtype=np.uint32)
    counted[:, 0, 128], counted[0, 0, 200], counted[1, 0, 100] = (700, 300), 5, 6
    for zero_bin, exact in ((128, True), (-1, False)):
        assert bool(auroc_of_histogram(counted, zero_bin=zero_bin)[1][0, 0] == 0) is exact
    values = np.repeat([0, 1, 0, -1], [700, 5, 300, 6])
    labels = np.arange(1011) < 705
    precision, error = average_precision_of_histogram(counted, zero_bin=128)
    # 5 tokens alone in their bin may still be equal or not, but precede all others: precision 1 either way
    assert error[0, 0] == 0
    assert precision[0, 0] == pytest.approx(average_precision_score(labels, values), rel=1e-14)


@pytest.mark.parametrize("large", [2**31 - 1, 2**32 - 1])
def test_huge_counts_do_not_overflow(large):
    counted = np.full((5, 1, 3), large, dtype=np.uint32)
    for values, error in (auroc_of_histogram(counted, zero_bin=1), average_precision_of_histogram(counted, zero_bin=1)):
        assert np.all((values > 0) & (values < 1) & (error > 0) & (error < 0.5))
    np.testing.assert_allclose(auroc_of_histogram(counted, zero_bin=1)[0], 0.5, rtol=1e-12)
    np.testing.assert_allclose(mutual_information_of_histogram(counted), 0, atol=1e-15)
    assert hits_of_histogram(counted, share=0.3)[0].tolist() == [[large]] * 5
    assert summary_of_histogram(counted, zero_bin=1, share=0.3).occupied.tolist() == [3]
    edges = np.array([[-2.0, 0, 1]]), np.array([[-1.0, 0, 2]])
    assert quantiles_of_histogram(counted, *edges, 0.5)[0].tolist() == [[0.0]] * 5
    counted[1:] = 0
    counted[1, 0, 2] = 1  # one token against billions, above nearly all
    area, error = auroc_of_histogram(counted, zero_bin=1)
    np.testing.assert_allclose(area[1, 0], 5 / 6, rtol=1e-12)
    precision, slack = average_precision_of_histogram(counted, zero_bin=1)
    assert precision[1, 0] - slack[1, 0] == pytest.approx(1 / (large + 1), rel=1e-6)
    assert precision[1, 0] + slack[1, 0] == pytest.approx(1)


@pytest.mark.parametrize("place", [0, ZERO, 8])
def test_constant_neurons(place):
    counted = np.zeros((3, 1, 9), dtype=np.uint32)
    counted[:2, 0, place] = 3, 9
    area, error = auroc_of_histogram(counted, zero_bin=ZERO)
    np.testing.assert_array_equal(area[:, 0], 0.5)
    np.testing.assert_array_equal(error[:, 0], [0, 0, 0] if place == ZERO else [0.5, 0.5, 0])
    for low in (False, True):
        precision, slack = average_precision_of_histogram(counted, zero_bin=ZERO, low=low)
        assert precision[2, 0] == slack[2, 0] == 0
        for tag, share in ((0, 0.25), (1, 0.75)):
            assert abs(precision[tag, 0] - share) <= slack[tag, 0] + ROUNDING
    np.testing.assert_array_equal(mutual_information_of_histogram(counted), 0)
    hits, first = hits_of_histogram(counted, share=0.05)
    assert hits[:, 0].tolist() == [0, 0, 0]
    assert first.tolist() == [place + 1]


def test_no_tokens_at_all():
    nothing = np.zeros((2, 1, 9), dtype=np.uint32)
    assert auroc_of_histogram(nothing, zero_bin=ZERO)[0].tolist() == [[0.5], [0.5]]
    assert average_precision_of_histogram(nothing, zero_bin=ZERO)[0].tolist() == [[0], [0]]
    assert mutual_information_of_histogram(nothing).tolist() == [[0], [0]]
    assert hits_of_histogram(nothing, share=0.05)[0].tolist() == [[0], [0]]
    assert quantiles_of_histogram(nothing, LOWER[None] + 5, UPPER[None] + 5, 0.5)[0].tolist() == [[1.0], [1.0]]
    assert average_precision_of_histogram(nothing + np.array([[[1]], [[0]]], np.uint32), zero_bin=-1)[0].tolist() == [
        [1],
        [0],
    ]
