"""Rows of a chunk decoded into a tile: 16 neurons × up to 128 rows of one group, float32, 8 KiB, in the first-level cache.

What is gathered of a tile then does not depend on how the lake stores its values.
"""

from typing import Any

import numba
import numpy as np

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
    return with_sign(unit * (m * (a + a - m)), q)


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _segmented(at: Any, unit: Any, knee: Any) -> Any:
    """Decode as `quantise._decode_segmented` does."""
    q = load_codes(at)
    a, m = absolute32(q), splat32(np.float32(0)) - knee
    e = floor32(a / m)
    return with_sign(unit * ((m + a - e * m) * power_of_two(e) - m), q)


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _fill_int8a(tile: Any, codes: Any, stride: Any, rows: Any, count: int, unit: Any, knee: Any) -> None:
    u, k, zero, one = load32(unit), load32(knee), splat32(np.float32(0)), splat32(np.float32(1))
    if any_less32(k, zero):  # few neurons are segmented
        bend = if_positive32(k, splat32(np.float32(-1)), k)
        for _ in range(count):
            at = codes + np.uint64(load_row(rows)) * stride
            x = if_positive32(k, _quadratic(at, u, k), _segmented(at, u, bend))
            store32(tile, half_rounded(x))
            rows += _INDEX
            tile += _ROW
        return
    for _ in range(count):
        at = codes + np.uint64(load_row(rows)) * stride
        store32(tile, half_rounded(_quadratic(at, u, k)))
        rows += _INDEX
        tile += _ROW


def _make_fill(load: Any) -> Any:
    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def fill(tile: Any, codes: Any, stride: Any, rows: Any, count: int, unit: Any, knee: Any) -> None:  # noqa: ARG001
        for _ in range(count):
            store32(tile, load(codes + np.uint64(load_row(rows)) * stride))
            rows += _INDEX
            tile += _ROW

    return fill


FILL = {
    "int8a": _fill_int8a,
    "float16": _make_fill(load_float16),
    "bfloat16": _make_fill(load_bfloat16),
    "float32": _make_fill(load32),
}
"""By what a chunk holds: (tile, 16 lanes of the first row, bytes from row to row, row numbers, rows, units, knees), of which
all but the count are addresses; units and knees are looked at for codes alone."""
