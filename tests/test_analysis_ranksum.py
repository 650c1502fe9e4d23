"""AUROC by counting against scikit-learn and SciPy, which sort."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from memory_lake import from_codes, to_codes
from sklearn.metrics import roc_auc_score

from neuronlake.analysis.ranksum import RankSums, auroc_error_of, auroc_of, order_keys, plan_segments
from neuronlake.store.errors import InputError

ENCODINGS = ("float16", "bfloat16", "float32")


def keys_of(codes, rows=None, width=None):
    rows = np.arange(len(codes)) if rows is None else rows
    keys = np.empty((codes.shape[1] if width is None else width, len(rows)), dtype=np.uint16)
    order_keys(codes, rows, keys, 0)
    return keys


def auroc_by_counting(codes, labels, tags, cuts=()):
    """AUROC and its error bound, of rows in one segment or in several."""
    sums = RankSums(neurons=codes.shape[1], tags=tags, exact=codes.dtype == np.uint16)
    rows = np.flatnonzero(labels >= 0)
    parts = [part for part in np.split(rows, cuts) if part.size]
    if len(parts) == 1:
        sums.one(keys_of(codes, rows), labels[rows])
    else:
        for part in parts:
            sums.count(keys_of(codes, part))
        sums.close()
        for part in parts:
            sums.add(keys_of(codes, part), labels[part])
    count = np.bincount(labels[rows], minlength=tags)
    return auroc_of(sums.ranks, count), auroc_error_of(sums.ties, count)


def auroc_by_sorting(values, labels, tags):
    kept = labels >= 0
    return np.array(
        [
            [roc_auc_score(labels[kept] == tag, values[kept, neuron]) for neuron in range(values.shape[1])]
            for tag in range(tags)
        ]
    )


def hard_cases():
    """Ties, both zeros, subnormals, the extremes, a constant, two values only; and labels of four tags."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(997, 8)).astype(np.float32)
    values[:, 1] = np.round(values[:, 1])  # ties, and −0 from rounding
    values[:, 2] = rng.choice([0.0, -0.0], size=997)
    values[:, 3] = rng.choice([-65504, 65504, 0, -0.0, 6e-8, -6e-8, 1e-5], size=997)
    values[:, 4] = 0.5
    values[:, 5] = rng.choice([-1, 1], size=997)
    values[:, 6] *= 1e-6
    values[:, 7] = np.abs(values[:, 7])
    labels = rng.integers(-1, 4, size=997).astype(np.int16)
    values[labels == 2, 0] += 1
    return values, labels


@pytest.mark.parametrize("encoding", ["float16", "bfloat16"])
def test_exact_for_sixteen_bits(encoding):
    values, labels = hard_cases()
    codes = to_codes(values, encoding)
    found, _ = auroc_by_counting(codes, labels, 4)
    stored = from_codes(codes, encoding)
    np.testing.assert_allclose(found, auroc_by_sorting(stored, labels, 4), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found[:, 4], 0.5)
    for tag in range(4):
        mine, rest = stored[labels == tag], stored[(labels >= 0) & (labels != tag)]
        statistic = scipy.stats.mannwhitneyu(mine.astype(np.float64), rest.astype(np.float64)).statistic
        np.testing.assert_allclose(found[tag], statistic / (len(mine) * len(rest)), rtol=0, atol=1e-12)


def test_float32_is_within_its_bound():
    values, labels = hard_cases()
    found, bound = auroc_by_counting(values, labels, 4)
    error = np.abs(found - auroc_by_sorting(values, labels, 4))
    assert np.all(error <= bound + 1e-12)
    assert bound[:, 0].max() < 5e-3


def test_the_bound_is_an_upper_bound_of_half_the_tied_pairs():
    values, labels = hard_cases()
    _, bound = auroc_by_counting(values, labels, 4)
    keys = keys_of(values)
    for tag in range(4):
        mine, rest = labels == tag, (labels >= 0) & (labels != tag)
        for neuron in range(values.shape[1]):
            p = np.bincount(keys[neuron, mine], minlength=65536).astype(np.int64)
            n = np.bincount(keys[neuron, rest], minlength=65536)
            assert bound[tag, neuron] >= 0.5 * np.sum(p * n) / (mine.sum() * rest.sum()) - 1e-15


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("cuts", [[1], [300, 301, 600]])
def test_segments_change_nothing(encoding, cuts):
    values, labels = hard_cases()
    codes = to_codes(values, encoding)
    whole, in_parts = auroc_by_counting(codes, labels, 4), auroc_by_counting(codes, labels, 4, cuts)
    np.testing.assert_array_equal(whole[0], in_parts[0])
    np.testing.assert_array_equal(whole[1], in_parts[1])


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 100))
def test_any_patterns(seed, distinct, rows):
    rng = np.random.default_rng(seed)
    patterns = rng.integers(0, 1 << 16, size=distinct).astype(np.uint16)
    patterns = patterns[np.isfinite(patterns.view(np.float16))]
    codes = rng.choice(np.append(patterns, [0, 0x8000]).astype(np.uint16), size=(rows + 4, 2))
    labels = np.append(rng.integers(-1, 2, size=rows), [0, 1, 0, 1]).astype(np.int16)
    found, _ = auroc_by_counting(codes, labels, 2)
    expected = auroc_by_sorting(codes.view(np.float16).astype(np.float64), labels, 2)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_keys_order_as_values_do(encoding):
    rng = np.random.default_rng(1)
    if encoding == "float32":
        codes = rng.integers(0, 1 << 32, size=(100_000, 1), dtype=np.uint64).astype(np.uint32).view(np.float32)
    else:
        codes = np.arange(1 << 16, dtype=np.uint16)[:, None]
    values = from_codes(codes, encoding)[:, 0]
    finite = np.isfinite(values)
    order = np.argsort(values[finite], kind="stable")
    keys = keys_of(codes)[0, finite][order].astype(np.int64)
    assert np.all(np.diff(keys) >= 0)
    if encoding != "float32":
        np.testing.assert_array_equal(np.diff(keys) > 0, np.diff(values[finite][order]) > 0)


def test_rows_and_width_are_respected():
    codes = to_codes(np.random.default_rng(2).normal(size=(200, 5)).astype(np.float32), "float16")
    rows = np.flatnonzero(np.random.default_rng(3).random(200) < 0.4)
    np.testing.assert_array_equal(keys_of(codes, rows, width=3), keys_of(codes)[:3, rows])


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 200))
def test_segments_cover_all_blocks_and_fit(rows, limit):
    segments = plan_segments(rows, row_bytes=2, segment_bytes=limit)
    assert [block for segment in segments for block in segment] == list(range(len(rows)))
    for segment in segments:
        assert len(segment) == 1 or sum(rows[block] for block in segment) * 2 <= limit


def test_more_tokens_than_ranks_can_number_are_refused():
    with pytest.raises(InputError, match="2147483648 labelled tokens"):
        plan_segments([1 << 30, 1 << 30], row_bytes=2, segment_bytes=1)
