"""What the kernels gather of every group, against NumPy in float64, for every form in which a chunk comes."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_lake import from_codes, to_codes

from neuronlake.analysis.column import Accumulator
from neuronlake.analysis.groups import group_rows
from neuronlake.analysis.histogram import ZERO_BIN, Binning
from neuronlake.analysis.moments import BASIC_FIELDS, FIELDS

FORMATS = ("int8a", "float16", "bfloat16", "float32")


def decoded(codes, scales):
    """Values of int8a codes as the format's documentation states them, float16 -> float64."""
    q = np.abs(codes.astype(np.float32))
    unit, knee = scales.T
    quadratic = q**2 - np.maximum(q - knee, 0) ** 2
    bend = np.where(knee < 0, -knee, 1)
    segmented = np.ldexp(q % bend + bend, (q // bend).astype(np.int32)) - bend
    with np.errstate(over="ignore"):
        values = np.sign(codes.astype(np.float32)) * unit * np.where(knee > 0, quadratic, segmented)
        return values.astype(np.float16).astype(np.float64)


def quantised(rng, rows, neurons):
    """Random codes whose neurons are quadratic, segmented, constant, almost zero or zero throughout."""
    codes = np.clip(rng.normal(0, 40, (rows, neurons)), -127, 127).astype(np.int8)
    scales = np.stack([rng.uniform(1e-4, 1e-3, neurons), rng.integers(20, 128, neurons)], axis=1).astype(np.float32)
    scales[1::5, 1] = -rng.integers(8, 30, len(scales[1::5]))  # segmented
    scales[1::5, 0] = 1e-5
    codes[:, 2::7], scales[2::7] = 17, (5e-4, 64)  # constant
    scales[3::7, 0] = 3e-7  # in float16's subnormal range, and below it
    codes[:, 4::9], scales[4::9, 0] = 0, 0  # what `quantise` writes of a neuron that is never active
    return codes, scales


def chunk_of(kind, rng, rows, neurons):
    """Stored form, scales, and the values in float64."""
    if kind == "int8a":
        codes, scales = quantised(rng, rows, neurons)
        return codes, scales, decoded(codes, scales)
    values = (rng.normal(size=(rows, neurons)) ** 3).astype(np.float32)
    values[rng.random(values.shape) < 0.2] = 0
    values[:, 2::7] = 0.5
    codes = to_codes(values, kind)
    return codes, None, from_codes(codes, kind).astype(np.float64)


def gathered(kind, chunks, groups, *, tags, folds, neurons, width, more=False, **options):
    values = "float16" if kind == "int8a" else kind
    accumulator = Accumulator(tags=tags, folds=folds, neurons=neurons, chunk_neurons=width, values=values, **options)
    for column in range(-(-neurons // width)):
        for place, ((codes, scales, _), group) in enumerate(zip(chunks, groups, strict=True)):
            some = np.zeros((len(codes), width), dtype=codes.dtype)  # a layer's last chunk is filled up with zeros
            part = codes[:, column * width : (column + 1) * width]
            some[:, : part.shape[1]] = part
            units = None
            if scales is not None:
                units = np.zeros((width, 2), dtype=np.float32)
                units[: part.shape[1]] = scales[column * width : (column + 1) * width]
            accumulator.add(column, some, group, scales=units, more=more and place < len(chunks) - 1)
    return accumulator.partials()


def check_moments(found, values, fields):
    """One group's moments: values float64 (rows, neurons), found a mapping."""
    mean = values.mean(axis=0)
    away = values - mean
    expected = {
        "mean": mean,
        "m2": (away**2).sum(axis=0),
        "m3": (away**3).sum(axis=0),
        "m4": (away**4).sum(axis=0),
        "absolute": np.abs(values).mean(axis=0),
        "active": (values > 0).sum(axis=0),
        "minimum": values.min(axis=0),
        "maximum": values.max(axis=0),
    }
    size = len(values) * np.abs(values).max(axis=0)
    for name in fields:
        power = {"m3": 3, "m4": 4, "m2": 2}.get(name, 1)
        room = 1e-13 * size**power if name in ("m3", "mean") else 0
        np.testing.assert_array_less(
            np.abs(found[name] - expected[name]), 1e-10 * np.abs(expected[name]) + room + 1e-300, err_msg=name
        )


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("neurons", "width"), [(64, 64), (40, 32), (7, 7), (21, 8)])
@pytest.mark.parametrize("basic", [False, True])
def test_every_group_of_every_format_equals_numpy(kind, neurons, width, basic):
    rng = np.random.default_rng(1)
    tags, folds = 5, 3
    chunks = [chunk_of(kind, rng, rows, neurons) for rows in (700, 64)]
    sizes = np.array([0.0, 0.05, 0.15, 0.5, 0.3])  # no rows, groups of very few, groups of several tiles
    labels = [
        np.where(rng.random(len(c)) < 0.2, -1, rng.choice(tags, len(c), p=sizes)).astype(np.int16) for c, _, _ in chunks
    ]
    labels[1][labels[1] == 1] = 3  # absent from the second chunk
    documents = [np.sort(rng.integers(0, 40, len(c))).astype(np.int32) for c, _, _ in chunks]
    groups = [group_rows(a, b, tags=tags, folds=folds) for a, b in zip(labels, documents, strict=True)]
    found = gathered(
        kind, chunks, groups, tags=tags, folds=folds, neurons=neurons, width=width, histogram=False, basic=basic
    )
    values, label = np.concatenate([c[2] for c in chunks]), np.concatenate(labels)
    fold = np.concatenate(documents) % folds
    fields = BASIC_FIELDS if basic else FIELDS
    assert found.pooled.mean.shape == (tags, neurons)
    for tag in range(tags):
        mine = values[label == tag]
        assert found.pooled.count[tag, 0] == len(mine)
        if len(mine) == 0:
            assert not np.any(found.pooled.mean[tag])
            assert not np.any(found.pooled.active[tag])
            continue
        check_moments({name: getattr(found.pooled, name)[tag] for name in fields}, mine, fields)
        for part in range(folds):
            group, mine = tag * folds + part, values[(label == tag) & (fold == part)]
            assert found.by_fold.count[group, 0] == len(mine)
            if len(mine):
                check_moments({name: getattr(found.by_fold, name)[group] for name in fields}, mine, fields)
    constant = np.ptp(values, axis=0) == 0
    assert np.count_nonzero(constant) >= neurons // 7
    np.testing.assert_array_equal(found.pooled.m2[:, constant], 0)


@pytest.mark.parametrize("basic", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1e6, -1e6])
def test_offsets_keep_ten_digits(offset, basic):
    rng = np.random.default_rng(2)
    values = (rng.normal(size=(3000, 20)) + offset).astype(np.float32)
    values[:, 1] = offset
    values[:, 2] *= -1
    values[::7, 3] -= np.float32(offset)  # far from the others, and from the mean that sums are taken about
    values[:1500, 4] += np.float32(1e6)
    labels = (np.arange(3000) // 1500).astype(np.int16)
    groups = group_rows(labels, np.zeros(3000, dtype=np.int32), tags=2)
    found = gathered(
        "float32", [(values, None, None)], [groups], tags=2, folds=1, neurons=20, width=20, histogram=False, basic=basic
    )
    for tag in range(2):
        mine = values[labels == tag].astype(np.float64)
        np.testing.assert_allclose(found.pooled.mean[tag], mine.mean(axis=0), rtol=1e-13, atol=1e-13)  # of a deviation of 1
        np.testing.assert_allclose(found.pooled.m2[tag], ((mine - mine.mean(axis=0)) ** 2).sum(axis=0), rtol=1e-10)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("neurons", "width"), [(64, 32), (7, 7)])
def test_histograms_equal_counts_by_edges(kind, neurons, width):
    rng = np.random.default_rng(3)
    tags, folds = 4, 2
    chunks = [chunk_of(kind, rng, rows, neurons) for rows in (900, 300)]
    labels = [rng.choice(tags + 1, len(c), p=[0.6, 0.2, 0.01, 0.0, 0.19]).astype(np.int16) for c, _, _ in chunks]
    labels = [np.where(each == tags, -1, each).astype(np.int16) for each in labels]
    groups = [group_rows(each, np.arange(len(each), dtype=np.int32) // 9, tags=tags, folds=folds) for each in labels]
    options = {"tags": tags, "folds": folds, "neurons": neurons, "width": width, "histogram": True}
    found = gathered(kind, chunks, groups, **options)
    at_once = gathered(kind, chunks, groups, more=True, **options)
    np.testing.assert_array_equal(found.histogram, at_once.histogram)
    np.testing.assert_array_equal(found.exponent, at_once.exponent)
    binning = Binning.of_exponents(found.exponent)
    values, label = np.concatenate([c[2] for c in chunks]).astype(np.float32), np.concatenate(labels)
    for tag, neuron in itertools.product(range(tags), range(neurons)):
        mine, scale = values[label == tag, neuron], binning.scale[neuron]
        # the bin as the module's docstring states it: sixteen from one doubling of |x| + s to the next, by pieces of lines
        fraction, power = np.frexp((np.abs(mine) + scale) / scale)
        level = np.minimum(np.floor((power - 1 + (2 * fraction - 1)) * 16).astype(int), 126)
        bins = np.where(mine == 0, ZERO_BIN, np.where(mine > 0, ZERO_BIN + 1 + level, ZERO_BIN - 1 - level))
        np.testing.assert_array_equal(found.histogram[tag, neuron], np.bincount(bins, minlength=256))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("rows", [1, 2, 101, 256, 1000])
def test_scales_follow_a_sixth_of_the_median(kind, rows):
    rng = np.random.default_rng(4)
    codes, scales, values = chunk_of(kind, rng, rows, 32)
    if kind == "int8a":
        codes[rows // 2 :] //= 4
        values = decoded(codes, scales)
    else:
        codes = (rng.normal(size=(rows, 32)) * 10.0 ** rng.integers(-4, 5, 32)).astype(np.float32)
        codes[:, 8], codes[:, 7], codes[: rows * 2 // 3, 6], codes[:, 5] = 0, -0.0, 0, 1.5
        if kind in ("bfloat16", "float32"):
            codes[:, 4], codes[:, 3] = 1e-40, 3e38
        codes = to_codes(codes, kind)
        values = from_codes(codes, kind).astype(np.float64)
    groups = group_rows(np.zeros(rows, dtype=np.int16), np.zeros(rows, dtype=np.int32), tags=1)
    found = gathered(kind, [(codes, scales, values)], [groups], tags=1, folds=1, neurons=32, width=32, histogram=True)
    for neuron, exponent in enumerate(found.exponent):
        some = np.sort(np.abs(values[:: -(-rows // 256), neuron]))  # at most 256 rows, spread over the block
        some = some[some > 0]
        expected = 0 if len(some) == 0 else np.clip(np.floor(np.log2(some[len(some) // 2] / 6)), -100, 100)
        assert exponent == expected


@given(
    st.integers(0, 2**32 - 1), st.sampled_from(FORMATS), st.lists(st.integers(1, 140), min_size=1, max_size=4), st.booleans()
)
def test_chunks_added_are_the_whole(seed, kind, sizes, basic):
    rng = np.random.default_rng(seed)
    codes, scales, values = chunk_of(kind, rng, sum(sizes), 19)
    labels = rng.integers(-1, 3, len(codes)).astype(np.int16)
    labels[0] = 2
    documents = np.zeros(len(codes), dtype=np.int32)
    bounds = list(itertools.pairwise(np.cumsum([0, *sizes])))
    chunks = [(codes[a:b], scales, values[a:b]) for a, b in bounds if np.any(labels[a:b] >= 0)]
    groups = [group_rows(labels[a:b], documents[a:b], tags=3) for a, b in bounds if np.any(labels[a:b] >= 0)]
    found = gathered(kind, chunks, groups, tags=3, folds=1, neurons=19, width=16, histogram=not basic, basic=basic)
    for tag in range(3):
        mine = values[labels == tag]
        assert found.pooled.count[tag, 0] == len(mine)
        if len(mine):
            fields = BASIC_FIELDS if basic else FIELDS
            check_moments({name: getattr(found.pooled, name)[tag] for name in fields}, mine, fields)
        if not basic:
            np.testing.assert_array_equal(found.histogram[tag].sum(axis=1), len(mine))
            np.testing.assert_array_equal(found.histogram[tag, :, ZERO_BIN], (mine == 0).sum(axis=0))
