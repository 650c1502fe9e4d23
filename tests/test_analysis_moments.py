"""Moments against NumPy in float64."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_lake import from_codes, to_codes
from scipy import stats

from neuronlake.analysis.column import Accumulator
from neuronlake.analysis.groups import group_rows
from neuronlake.analysis.moments import FIELDS, combine_moments, merge_folds, no_moments, rest_moments

ENCODINGS = ("float16", "bfloat16", "float32")


def brute_force(values, labels, tags):
    """Mean and unbiased variance per tag, by NumPy in float64."""
    groups = [values[labels == tag].astype(np.float64) for tag in range(tags)]
    return np.array([group.mean(axis=0) for group in groups]), np.array([group.var(axis=0, ddof=1) for group in groups])


def moments_of(codes, labels, tags, encoding, width=None):
    groups = group_rows(labels, np.zeros(len(labels), dtype=np.int32), tags=tags)
    return partials_of(codes, groups, tags, encoding, width=width).by_fold


def partials_of(codes, groups, tags, encoding, width=None, folds=1):
    neurons = codes.shape[1] if width is None else width
    accumulator = Accumulator(
        tags=tags, folds=folds, neurons=neurons, chunk_neurons=codes.shape[1], values=encoding, histogram=False
    )
    accumulator.add(0, codes, groups)
    return accumulator.partials()


def variance_of(m2, count):
    return m2 / (count - 1)


def random_labels(rng, rows, tags):
    labels = rng.integers(-1, tags, size=rows).astype(np.int16)
    labels[: 2 * tags] = np.repeat(np.arange(tags), 2)  # every tag twice at least
    return labels


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("folds", [1, 4])
def test_equals_numpy_and_scipy(encoding, folds):
    rng = np.random.default_rng(1)
    codes = to_codes((rng.normal(size=(400, 7)) ** 3 + 0.3).astype(np.float32), encoding)
    labels = random_labels(rng, 400, 3)
    documents = rng.integers(0, 30, 400).astype(np.int32)
    groups = group_rows(labels, documents, tags=3, folds=folds)
    partials = partials_of(codes, groups, 3, encoding, folds=folds)
    found, by_fold = partials.pooled, partials.by_fold
    merged = merge_folds(by_fold, folds)
    for name in FIELDS:
        np.testing.assert_allclose(getattr(merged, name), getattr(found, name), rtol=1e-12, atol=1e-12)
    values = from_codes(codes, encoding).astype(np.float64)
    for tag in range(3):
        mine = values[labels == tag]
        n, mean = len(mine), mine.mean(axis=0)
        assert found.count[tag, 0] == n
        np.testing.assert_allclose(found.mean[tag], mean, rtol=1e-10)
        np.testing.assert_allclose(found.m2[tag] / n, stats.moment(mine, 2), rtol=1e-10)
        np.testing.assert_allclose(found.m3[tag] / n, stats.moment(mine, 3), rtol=1e-10, atol=1e-11)
        np.testing.assert_allclose(found.m4[tag] / n, stats.moment(mine, 4), rtol=1e-10)
        np.testing.assert_allclose(found.absolute[tag], np.abs(mine).mean(axis=0), rtol=1e-10)
        np.testing.assert_array_equal(found.active[tag], (mine > 0).sum(axis=0))
        np.testing.assert_array_equal(found.minimum[tag], mine.min(axis=0))
        np.testing.assert_array_equal(found.maximum[tag], mine.max(axis=0))
        for fold in range(folds):
            part = values[(labels == tag) & (documents % folds == fold)]
            assert by_fold.count[tag * folds + fold, 0] == len(part)
            np.testing.assert_allclose(by_fold.mean[tag * folds + fold], part.mean(axis=0), rtol=1e-10)


def test_large_offsets_keep_ten_digits():
    rng = np.random.default_rng(2)
    values = (rng.normal(size=(3000, 4)) + 1e6).astype(np.float32)
    values[:, 1] *= -1
    labels = random_labels(rng, 3000, 2)
    values[labels == 1, 2] += 1e6  # each tag has an offset of its own
    found = moments_of(values, labels, 2, "float32")
    mean, variance = brute_force(values, labels, 2)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-14)
    np.testing.assert_allclose(variance_of(found.m2, found.count), variance, rtol=1e-10)


def test_an_outlier_in_the_first_row_costs_no_digits():
    rng = np.random.default_rng(3)
    values = np.vstack([np.full((1, 3), 1e9), np.full((1, 3), -1e9), rng.normal(size=(500, 3))]).astype(np.float32)
    labels = np.zeros(502, dtype=np.int16)
    labels[1] = -1
    whole = moments_of(values, labels, 1, "float32")
    expected = values[labels == 0].astype(np.float64).var(axis=0, ddof=1)
    np.testing.assert_allclose(variance_of(whole.m2, whole.count)[0], expected, rtol=1e-10)
    values[0], labels[0] = 40_000, 0  # 16-bit range, many rows: cancellation is at its worst relative to the spread
    values[1:] = (values[1:] * 1e-3).astype(np.float32)
    values[0, 1] = 0
    first = moments_of(values, labels, 1, "float32")
    expected = values[labels == 0].astype(np.float64).var(axis=0, ddof=1)
    np.testing.assert_allclose(variance_of(first.m2, first.count)[0], expected, rtol=1e-10)


def test_a_far_first_value_of_a_narrow_neuron_is_repeated_about_the_mean():
    rng = np.random.default_rng(4)
    values = (1 + 1e-4 * rng.normal(size=(100_000, 2))).astype(np.float32)
    values[0] = 1.5
    found = moments_of(values, np.zeros(100_000, dtype=np.int16), 1, "float32")
    expected = values.astype(np.float64).var(axis=0, ddof=1)
    np.testing.assert_allclose(variance_of(found.m2, found.count)[0], expected, rtol=1e-10)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("value", [0.0, -0.0, 0.099853515625, -40000.0])
def test_a_constant_neuron_has_no_variance_at_all(encoding, value):
    codes = to_codes(np.full((1000, 3), value, dtype=np.float32), encoding)
    labels = random_labels(np.random.default_rng(5), 1000, 2)
    found = moments_of(codes, labels, 2, encoding)
    np.testing.assert_array_equal(found.m2, 0)
    np.testing.assert_array_equal(found.mean, from_codes(codes, encoding)[:2].astype(np.float64))
    np.testing.assert_array_equal(found.active, np.broadcast_to(found.count * (value > 0), found.active.shape))
    np.testing.assert_array_equal((found.m3, found.m4), 0)


def test_surplus_columns_of_the_last_chunk_are_left_out():
    codes = to_codes(np.arange(40, dtype=np.float32).reshape(10, 4), "float16")
    found = moments_of(codes, np.zeros(10, dtype=np.int16), 1, "float16", width=3)
    assert found.mean.shape == (1, 3)
    np.testing.assert_array_equal(found.mean[0], from_codes(codes, "float16")[:, :3].mean(axis=0))


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 4))
def test_combining_chunks_equals_the_whole(seed, sizes, tags):
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(sum(sizes), 3)) + rng.choice([0.0, 1e6])).astype(np.float32)
    labels = rng.integers(-1, tags, size=len(values)).astype(np.int16)  # tags may be absent from chunks
    if not np.any(labels >= 0):
        labels[0] = 0
    bounds = np.cumsum([0, *sizes])
    combined = None
    for first, last in itertools.pairwise(bounds):
        if np.any(labels[first:last] >= 0):
            part = moments_of(np.ascontiguousarray(values[first:last]), labels[first:last], tags, "float32")
            combined = part if combined is None else combine_moments(combined, part)
    whole = moments_of(values, labels, tags, "float32")
    np.testing.assert_array_equal(combined.count, whole.count)
    np.testing.assert_array_equal(combined.active, whole.active)
    np.testing.assert_allclose(combined.mean, whole.mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(combined.m2, whole.m2, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(combined.m3, whole.m3, rtol=1e-8, atol=1e-7)
    np.testing.assert_allclose(combined.m4, whole.m4, rtol=1e-8, atol=1e-7)
    np.testing.assert_allclose(combined.absolute, whole.absolute, rtol=1e-12)
    np.testing.assert_array_equal((combined.minimum, combined.maximum), (whole.minimum, whole.maximum))


def test_an_empty_side_changes_nothing():
    some = moments_of(np.arange(6, dtype=np.float32).reshape(3, 2), np.zeros(3, dtype=np.int16), 1, "float32")
    none = no_moments(1, 2)
    for both in (combine_moments(some, none), combine_moments(none, some)):
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(both, name), getattr(some, name))


@pytest.mark.parametrize("tags", [2, 3, 5])
def test_rest_is_all_other_tags(tags):
    rng = np.random.default_rng(6)
    values = (rng.normal(size=(300, 4)) * [1, 1, 1e-3, 1] + [0, 1e6, 0, 5]).astype(np.float32)
    values[:, 3] = 5
    labels = random_labels(rng, 300, tags)
    found = moments_of(values, labels, tags, "float32")
    count, mean, m2 = rest_moments(found.count, found.mean, found.m2)
    for tag in range(tags):
        rest = values[(labels >= 0) & (labels != tag)].astype(np.float64)
        assert count[tag, 0] == len(rest)
        np.testing.assert_allclose(mean[tag], rest.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(variance_of(m2, count)[tag], rest.var(axis=0, ddof=1), rtol=1e-10)
    np.testing.assert_array_equal(m2[:, 3], 0)
