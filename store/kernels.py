"""Compiled inner loops of the store: cast-and-scatter on the way in, decode on the way out. All release the GIL."""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from neuronlake.store.floats import bf16bits_to_f32, f16bits_to_f32, f32_bits, f32_to_bf16bits, f32_to_f16bits

_EXPONENT = {"float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80}


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _as_is(value: Any) -> Any:
    return value


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _magnitude_16(bits: Any) -> Any:
    return numba.uint16(bits & numba.uint16(0x7FFF))  # numba widens the operation: narrow lanes are a third faster


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _magnitude_32(value: Any) -> Any:
    return f32_bits(value) & numba.uint32(0x7FFFFFFF)


def _make_scatter(cast: Any, magnitude: Any, kind: Any) -> Any:
    @numba.njit(inline="always")  # type: ignore[untyped-decorator]
    def store(row: Any, out: Any, largest: Any) -> Any:
        for j in range(row.shape[0]):
            stored = cast(row[j])
            out[j] = stored
            largest = max(largest, magnitude(stored))
        return largest

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def scatter(values: Any, source: Any, target: Any, tiles: Any, first: Any) -> Any:
        # One-dimensional views: with full indexing LLVM gives up on vectorising, at a fifth of the speed. What precedes
        # the first whole chunk is apart: an offset in the loop over chunks would cost the common case a tenth.
        width, neurons = tiles.shape[2], values.shape[1]
        head = min(-first % width, neurons)
        chunk = (first + head) // width
        largest = kind(0)
        for i in range(source.shape[0]):
            if head > 0:
                largest = store(values[source[i], :head], tiles[first // width, target[i], first % width :], largest)
            for k in range((neurons - head + width - 1) // width):
                begin = head + k * width
                row = values[source[i], begin : min(begin + width, neurons)]
                largest = store(row, tiles[chunk + k, target[i]], largest)
        return largest

    return scatter


def _make_gather(decode: Any) -> Any:
    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def gather(codes: Any, rows: Any, columns: Any, out: Any, out_rows: Any, out_columns: Any) -> None:
        for i in range(rows.shape[0]):
            for j in range(columns.shape[0]):
                out[out_rows[i], out_columns[j]] = decode(codes[rows[i], columns[j]])

    return gather


def _make_unpack(decode: Any) -> Any:
    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def unpack(codes: Any, width: int, out: Any, column: int) -> None:
        # Whole arrays and an offset, not slices: a C-ordered argument lets LLVM vectorise the inner loop.
        for i in range(codes.shape[0]):
            for j in range(width):
                out[i, column + j] = decode(codes[i, j])

    return unpack


_DECODE = {"float32": _as_is, "float16": f16bits_to_f32, "bfloat16": bf16bits_to_f32}
_GATHER = {name: _make_gather(decode) for name, decode in _DECODE.items()}
_UNPACK = {name: _make_unpack(decode) for name, decode in _DECODE.items()}
_SCATTER = {
    "float32": _make_scatter(_as_is, _magnitude_32, numba.uint32),
    "float16": _make_scatter(f32_to_f16bits, _magnitude_16, numba.uint16),
    "bfloat16": _make_scatter(f32_to_bf16bits, _magnitude_16, numba.uint16),
}
_SCATTER_PATTERNS = _make_scatter(_as_is, _magnitude_16, numba.uint16)


def scatter(
    encoding: str,
    values: NDArray[Any],
    source: NDArray[Any],
    target: NDArray[Any],
    tiles: NDArray[Any],
    first: int,
) -> bool:
    """Cast ``values[source]`` and write them to rows `target` of the tiled buffer, in one pass.

    Parameters
    ----------
    encoding
        Value format of the tiles: ``float32``, ``float16`` or ``bfloat16``.
    values : float32 (positions, neurons), C order
        Or uint16, bit patterns that were cast already.
    source, target : int64 (n,)
        Row of `values` → row of the block.
    tiles : stored dtype (chunks, rows, width)
        The block's buffer, already in the order of the chunks on disk.
    first
        Neuron that the first column of `values` is; it need not be the first of a chunk.

    Returns
    -------
    bool
        Whether every stored value is finite.
    """
    kernel = _SCATTER_PATTERNS if values.dtype == np.uint16 else _SCATTER[encoding]
    return bool(kernel(values, source, target, tiles, first) < _EXPONENT[encoding])


def unpack(encoding: str, codes: NDArray[Any], width: int, out: NDArray[np.float32], column: int) -> None:
    """Decode the first `width` columns of a chunk (rows, c) into ``out[:, column:column + width]``."""
    _UNPACK[encoding](codes, width, out, column)


def gather(
    encoding: str,
    codes: NDArray[Any],
    rows: NDArray[Any],
    columns: NDArray[Any],
    out: NDArray[np.float32],
    out_rows: NDArray[Any],
    out_columns: NDArray[Any],
) -> None:
    """Decode ``codes[rows × columns]`` into ``out[out_rows × out_columns]``; all indices int64."""
    _GATHER[encoding](codes, rows, columns, out, out_rows, out_columns)
