"""Bins against their edges, for every format and for values that hardly exist."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_lake import from_codes, to_codes

from neuronlake.analysis.column import Accumulator
from neuronlake.analysis.groups import group_rows
from neuronlake.analysis.histogram import BINS, ZERO_BIN, Binning

ENCODINGS = ("float16", "bfloat16", "float32")
SPECIAL = [0.0, -0.0, 6e-8, -6e-8, 6.1e-5, 1e-3, 1.0, -1.0, 1.0005, 235.0, -235.0, 6e4, -6e4]
LARGE = [*SPECIAL, 3.3e38, -3.3e38, 1e-45, -1e-38]


@st.composite
def patterns(draw):
    encoding = draw(st.sampled_from(ENCODINGS))
    special = SPECIAL if encoding == "float16" else LARGE
    size = draw(st.integers(1, 200))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.normal(size=size) * 10.0 ** draw(st.integers(-6, 4))
    values[rng.random(size) < draw(st.sampled_from([0.0, 0.3]))] = 0
    values = np.concatenate([values, draw(st.lists(st.sampled_from(special), max_size=12))])
    limit = 65504 if encoding == "float16" else 3.38e38
    return to_codes(np.clip(values, -limit, limit).astype(np.float32)[:, None], encoding), encoding


def histogram_of(codes, groups, encoding, exponent=None, tags=1, folds=1, more=()):
    """Histogram (tags, neurons, 256) of one chunk, and of some more."""
    accumulator = Accumulator(
        tags=tags,
        folds=folds,
        neurons=codes.shape[1],
        chunk_neurons=codes.shape[1],
        values=encoding,
        histogram=True,
        exponent=exponent,
    )
    for part in (codes, *more):
        accumulator.add(0, part, groups)
    return accumulator.partials()


def bins_of(codes, encoding, binning):
    """The bin of every value, by counting each under a tag of its own."""
    labels = np.arange(len(codes), dtype=np.int16)
    groups = group_rows(labels, np.zeros(len(codes), dtype=np.int32), tags=len(codes))
    found = histogram_of(codes, groups, encoding, binning.exponent, tags=len(codes)).histogram[:, 0]
    np.testing.assert_array_equal(found.sum(axis=1), 1)
    return found.argmax(axis=1)


@given(patterns(), st.sampled_from([None, -100, -20, 0, 13, 100]))
def test_every_value_lies_in_its_bin(case, exponent):
    codes, encoding = case
    groups = group_rows(np.zeros(len(codes), dtype=np.int16), np.zeros(len(codes), dtype=np.int32), tags=1)
    binning = Binning.of_exponents(histogram_of(codes, groups, encoding).exponent)
    if exponent is not None:
        binning = Binning.of_exponents(np.array([exponent], dtype=np.int16))
    assert Binning.of_exponents(binning.exponent).scale == binning.scale
    bins, values = bins_of(codes, encoding, binning), from_codes(codes, encoding)[:, 0].astype(np.float64)
    lower, upper = (ends[0] for ends in binning.edges())
    assert np.all(lower[bins] <= values)
    assert np.all(values <= upper[bins])
    order = np.argsort(values, kind="stable")
    assert np.all(np.diff(bins[order]) >= 0)
    assert np.all((np.diff(values[order]) > 0) | (np.diff(bins[order]) == 0))
    np.testing.assert_array_equal(bins == ZERO_BIN, values == 0)
    np.testing.assert_array_equal(np.sign(bins - ZERO_BIN), np.sign(values))
    whole = histogram_of(codes, groups, encoding, binning.exponent).histogram
    np.testing.assert_array_equal(whole[0, 0], np.bincount(bins, minlength=BINS))


@pytest.mark.parametrize("exponent", [-100, -3, 0, 40, 100])
def test_one_edge_is_that_of_all_edges(exponent):
    binning = Binning.of_exponents(np.full(BINS, exponent, dtype=np.int16))
    _, upper = binning.edges()
    every = np.arange(BINS)
    np.testing.assert_array_equal(binning.upper_edge(every), upper[every, every])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_few_rows_and_more_than_a_small_counter_holds(encoding):
    rng = np.random.default_rng(1)
    sizes = [1, 47, 48, 49, 1000, 140_000]
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int16)
    values = rng.normal(size=(len(labels), 3)).astype(np.float32)
    values[:, 2] = 1  # one bin for all
    codes = to_codes(values, encoding)
    groups = group_rows(labels, (np.arange(len(labels)) // 100).astype(np.int32), tags=len(sizes), folds=3)
    found = histogram_of(codes, groups, encoding, tags=len(sizes), folds=3)
    histogram, binning = found.histogram, Binning.of_exponents(found.exponent)
    np.testing.assert_array_equal(histogram.sum(axis=2), np.broadcast_to(np.array(sizes)[:, None], (6, 3)))
    np.testing.assert_array_equal(histogram[:, 2].max(axis=1), sizes)
    lower, _ = binning.edges()
    stored = from_codes(codes, encoding).astype(np.float64)
    for tag in range(len(sizes)):
        for neuron in range(2):
            mine = stored[labels == tag, neuron]
            # edges of neighbouring bins overlap by the rounding of |x| + s, so a count may differ by what lies there
            above = (mine[:, None] >= lower[neuron][None, 129:]).sum(axis=0)
            counted = histogram[tag, neuron, 129:][::-1].cumsum()[::-1]
            assert np.all(np.abs(above - counted) <= 2 + 1e-3 * len(mine))
