"""Casts and chunk codecs against NumPy's and torch's own."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from neuronlake.store import ENCODINGS, DamageError, InputError
from neuronlake.store.encodings import get_encoding
from neuronlake.store.kernels import gather, scatter, unpack

FLOATS = arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 9)),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def cast(name: str, values: NDArray[np.float32], width: int = 4) -> tuple[NDArray[np.generic], bool]:
    """Scatter whole rows in order and return the stored values as (rows, neurons)."""
    rows, neurons = values.shape
    chunks = -(-neurons // width)
    tiles = np.zeros((chunks, rows, width), dtype=ENCODINGS[name].stored)
    finite = scatter(ENCODINGS[name].values, values, np.arange(rows), np.arange(rows), tiles, 0)
    return tiles.transpose(1, 0, 2).reshape(rows, chunks * width)[:, :neurons], finite


@given(FLOATS)
def test_float16_cast_is_numpys(values: NDArray[np.float32]) -> None:
    stored, finite = cast("float16", values)
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    np.testing.assert_array_equal(stored, expected.view(np.uint16))
    assert finite == bool(np.isfinite(expected).all())


@given(FLOATS)
def test_bfloat16_cast_is_torchs(values: NDArray[np.float32]) -> None:
    stored, finite = cast("bfloat16", values)
    expected = torch.from_numpy(values).to(torch.bfloat16)
    np.testing.assert_array_equal(stored, expected.view(torch.uint16).numpy())
    assert finite == bool(torch.isfinite(expected).all())


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", list(ENCODINGS))
def test_not_finite_is_reported(name: str, value: float) -> None:
    values = np.zeros((3, 5), dtype=np.float32)
    values[1, 4] = value
    assert not cast(name, values)[1]


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_every_bit_pattern_decodes(name: str) -> None:
    codes = np.arange(1 << 16, dtype=np.uint16).reshape(-1, 16)
    out = np.empty(codes.shape, dtype=np.float32)
    unpack(name, codes, 16, out, 0)
    kind = torch.float16 if name == "float16" else torch.bfloat16
    expected = torch.from_numpy(codes).view(kind).to(torch.float32).numpy()
    np.testing.assert_array_equal(out, expected)


def test_gather_picks_rows_and_columns() -> None:
    values = np.arange(24, dtype=np.float32).reshape(6, 4)
    out = np.full((2, 3), -1, dtype=np.float32)
    gather("float32", values, np.array([5, 0]), np.array([3, 1]), out, np.array([0, 1]), np.array([2, 0]))
    np.testing.assert_array_equal(out, [[21, -1, 23], [1, -1, 3]])


@pytest.mark.parametrize("name", list(ENCODINGS))
def test_chunk_round_trip_and_any_flip_is_found(name: str) -> None:
    encoding = get_encoding(name)
    rng = np.random.default_rng(0)
    if encoding.quantised:
        chunk = rng.integers(-127, 128, size=(64, 8), dtype=np.int8)
    else:
        chunk = cast(name, rng.standard_normal((64, 8)).astype(np.float32), width=8)[0].copy()
    data = np.frombuffer(b"".join(encoding.compress(chunk)), dtype=np.uint8)
    out = np.empty_like(chunk)
    encoding.decompress(data, out, "chunk")
    np.testing.assert_array_equal(out, chunk)
    for bit in rng.choice(len(data) * 8, size=200, replace=False):
        broken = data.copy()
        broken[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(DamageError, match="checksum does not match"):
            encoding.decompress(broken, out, "chunk")
    for length in range(0, len(data), 7):
        with pytest.raises(DamageError, match="checksum does not match"):
            encoding.decompress(data[:length], out, "chunk")


@pytest.mark.parametrize("rows", [3, 63, 65, 1000, 100_000])
@pytest.mark.parametrize("name", list(ENCODINGS))
def test_a_whole_chunk_of_another_shape_is_refused(name: str, rows: int) -> None:
    """Its checksum fits, as when files of two lakes are mixed up; sizes across all widths of a zstd header."""
    encoding = get_encoding(name)
    data = np.frombuffer(b"".join(encoding.compress(np.zeros((rows, 8), dtype=encoding.codes))), dtype=np.uint8)
    with pytest.raises(DamageError, match="expected"):
        encoding.decompress(data, np.empty((64, 8), dtype=encoding.codes), "chunk")
    whole = np.empty((rows, 8), dtype=encoding.codes)
    encoding.decompress(data, whole, "chunk")
    assert not whole.any()


def test_unknown_encoding_lists_the_known() -> None:
    with pytest.raises(InputError, match=r"float32, float16, bfloat16, int8a"):
        get_encoding("float8")
