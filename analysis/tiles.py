"""Rows of a chunk decoded into a tile: 16 neurons × up to 128 rows of one group, float32, 8 KiB, in the first-level cache.

What is gathered of a tile then does not depend on how the lake stores its values.
"""

from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import overload

from neuronlake.analysis.vectors import (
    absolute32,
    any_less32,
    floor32,
    half_rounded,
    if_positive32,
    load32,
    load_bfloat16,
    load_codes,
    load_float16,
    load_row,
    multiply_add32,
    power_of_two,
    smaller,
    splat32,
    store32,
    with_sign,
)

TILE_ROWS = 128
_ROW = np.uint64(64)  # bytes of 16 float32
_INDEX = np.uint64(4)  # of a row's number


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _quadratic(at: Any, unit: Any, knee: Any) -> Any:
    """Decode as `quantise._decode` does, bit by bit."""
    q = load_codes(at)
    a = absolute32(q)
    m = smaller(a, knee)
    return with_sign(unit * (m * multiply_add32(a, splat32(np.float32(2)), splat32(np.float32(-0.0)) - m)), q)


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _segmented(at: Any, unit: Any, knee: Any) -> Any:
    """Decode as `quantise._decode_segmented` does."""
    q = load_codes(at)
    a, m = absolute32(q), splat32(np.float32(0)) - knee
    e = floor32(a / m)
    return with_sign(unit * ((m + a - e * m) * power_of_two(e) - m), q)


def fill(codes: Any, tile: Any, at: Any, stride: Any, rows: Any, count: int, unit: Any, knee: Any) -> None:
    """Decode 16 neurons of some rows of a chunk into a tile.

    Parameters
    ----------
    codes
        The chunk: what its type is decides how it is decoded. int8 are codes of `int8a`, uint16 float16, int16 bfloat16.
    tile, at, rows, unit, knee
        Addresses: of the tile, of the neurons in the chunk's first row, of row numbers (int32), of the neurons' units and
        knees, which are looked at for codes alone.
    stride
        Bytes from row to row of the chunk.
    """
    raise NotImplementedError("for compiled code only")


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _fill_int8a(tile: Any, at: Any, stride: Any, rows: Any, count: int, unit: Any, knee: Any) -> None:
    u, k, zero = load32(unit), load32(knee), splat32(np.float32(0))
    if any_less32(k, zero):  # few neurons are segmented
        bend = if_positive32(k, splat32(np.float32(-1)), k)
        for _ in range(count):
            here = at + np.uint64(load_row(rows)) * stride
            x = if_positive32(k, _quadratic(here, u, k), _segmented(here, u, bend))
            store32(tile, half_rounded(x))
            rows += _INDEX
            tile += _ROW
        return
    for _ in range(count):
        store32(tile, half_rounded(_quadratic(at + np.uint64(load_row(rows)) * stride, u, k)))
        rows += _INDEX
        tile += _ROW


def _make_fill(load: Any) -> Any:
    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def filled(tile: Any, at: Any, stride: Any, rows: Any, count: int, unit: Any, knee: Any) -> None:  # noqa: ARG001
        for _ in range(count):
            store32(tile, load(at + np.uint64(load_row(rows)) * stride))
            rows += _INDEX
            tile += _ROW

    return filled


_FILL = {
    types.int8: _fill_int8a,
    types.uint16: _make_fill(load_float16),
    types.int16: _make_fill(load_bfloat16),
    types.float32: _make_fill(load32),
}


@overload(fill)
def _typed_fill(codes, tile, at, stride, rows, count, unit, knee):  # type: ignore[no-untyped-def] # noqa: ARG001
    found = _FILL[codes.dtype]
    return lambda codes, tile, at, stride, rows, count, unit, knee: found(tile, at, stride, rows, count, unit, knee)
