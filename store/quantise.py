"""The `int8a` encoding: eight bits per value, with a scale chosen for every neuron and block (`scale_choice`).

A scale is a pair (unit, knee). With a positive knee it is *quadratic*: a code q stands for

    x = sign(q) · unit · (q² − max(|q| − knee, 0)²)

which is unit·q² up to the knee and goes on as a straight line, with the same slope, beyond it: steps grow with the square
root of the magnitude, as suits activations that crowd around zero, and stop growing in the tail, where the top tokens are.
With a negative knee −m it is *segmented*, as in telephony (ITU-T G.711): with e = ⌊|q| / m⌋

    x = sign(q) · unit · ((m + |q| − e·m) · 2^e − m)

whose steps double every m codes: for neurons whose largest value is thousands of times the usual one.

Either way the value is rounded to float16, and code 0 stands for exact zeros and nothing else: signs are exact.
"""

import math
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from neuronlake.store.floats import bits_to_f32, f16bits_to_f32, f32_bits, f32_to_f16bits
from neuronlake.store.scale_choice import LARGEST_CODE, Sample

TARGET_RHO = 0.9994
"""Spearman's ρ of stored against true values aimed at, per neuron and block."""
TARGET_L2 = 0.04
"""‖stored − true‖ / ‖true‖ aimed at, at most, per neuron and block."""
PARAMETERS = 2
"""Numbers per neuron and block in the scales array: unit, knee."""

_HALF = np.float32(0.5)


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _quantise(tile: Any, inverse: Any, knee: Any, half_knee: Any, half_slope: Any, out: Any) -> None:
    """Quadratic scales: `inverse` = 1/unit or 0, `half_knee` = knee/2, `half_slope` = 1/(2·knee)."""
    for i in range(tile.shape[0]):
        row, codes = tile[i], out[i]
        for j in range(row.shape[0]):
            x = f16bits_to_f32(row[j])
            ratio = abs(x) * inverse[j]
            code = math.sqrt(ratio) if ratio < knee[j] * knee[j] else ratio * half_slope[j] + half_knee[j]
            # No value but zero becomes zero.
            whole = max(numba.int32(code + _HALF), numba.int32(1))
            whole = numba.int32(0) if x == 0 else whole
            codes[j] = numba.int8(whole if x > 0 else -whole)


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _quantise_segmented(tile: Any, unit: Any, knee: Any, columns: Any, out: Any) -> None:
    for j in columns:
        m = -knee[j]
        inverse, share = numba.float32(1) / unit[j], numba.float32(1) / m
        for i in range(tile.shape[0]):
            x = f16bits_to_f32(tile[i, j])
            ratio = abs(x) * inverse + m
            # ⌊log₂(ratio / m)⌋ and its power of two from the bits of the quotient, which is at least 1 but for rounding
            e = max(numba.int32(f32_bits(ratio * share) >> numba.uint32(23)) - numba.int32(127), numba.int32(0))
            shrink = bits_to_f32(numba.uint32(numba.int32(127) - e) << numba.uint32(23))
            code = numba.float32(e) * m + ratio * shrink - m
            whole = min(max(numba.int32(code + _HALF), numba.int32(1)), numba.int32(LARGEST_CODE))
            whole = numba.int32(0) if x == 0 else whole
            out[i, j] = numba.int8(whole if x > 0 else -whole)


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _decode(code: Any, unit: Any, knee: Any) -> Any:
    q = numba.float32(code)
    a = abs(q)
    m = min(a, knee)
    x = unit * (m * (a + a - m))  # q² − max(a − knee, 0)², a whole number: exact
    return f32_to_f16bits(math.copysign(x, q))


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _decode_segmented(code: Any, unit: Any, knee: Any) -> Any:
    q, m = abs(numba.float32(code)), -knee
    e = numba.float32(math.floor(q / m))
    bracket = (m + q - e * m) * numba.float32(2.0**e) - m
    x = unit * bracket
    return f32_to_f16bits(x if code >= 0 else -x)


# Segmented neurons are few, and branches or calls would keep LLVM from vectorising the others: two loops, and the second
# looks values up.
@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _table(unit: Any, knee: Any, table: Any) -> None:
    for k in range(256):
        table[k] = _decode_segmented(numba.int8(k - 128), unit, knee)


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _expand(codes: Any, unit: Any, knee: Any, out: Any) -> None:
    for i in range(codes.shape[0]):
        row, values = codes[i], out[i]
        for j in range(row.shape[0]):
            values[j] = _decode(row[j], unit[j], knee[j])


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _expand_segmented(codes: Any, unit: Any, knee: Any, segmented: Any, out: Any) -> None:
    table = np.empty(256, dtype=np.uint16)
    for j in segmented:
        _table(unit[j], knee[j], table)
        for i in range(codes.shape[0]):
            out[i, j] = table[numba.int64(codes[i, j]) + 128]


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _unpack(codes: Any, unit: Any, knee: Any, width: int, out: Any, column: int) -> None:
    for i in range(codes.shape[0]):
        row, values = codes[i], out[i, column : column + width]
        for j in range(values.shape[0]):
            values[j] = f16bits_to_f32(_decode(row[j], unit[j], knee[j]))


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _unpack_segmented(codes: Any, unit: Any, knee: Any, segmented: Any, out: Any, column: int) -> None:
    table = np.empty(256, dtype=np.uint16)
    for j in segmented:
        _table(unit[j], knee[j], table)
        for i in range(codes.shape[0]):
            out[i, column + j] = f16bits_to_f32(table[numba.int64(codes[i, j]) + 128])


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _gather(codes: Any, unit: Any, knee: Any, rows: Any, columns: Any, out: Any, out_rows: Any, out_columns: Any) -> None:
    for i in range(rows.shape[0]):
        for j in range(columns.shape[0]):
            c = columns[j]
            code = codes[rows[i], c]
            bits = _decode(code, unit[c], knee[c]) if knee[c] > 0 else _decode_segmented(code, unit[c], knee[c])
            out[out_rows[i], out_columns[j]] = f16bits_to_f32(bits)


def quantise(
    tile: NDArray[np.uint16], rows: int, out: NDArray[np.int8], *, rho: float = TARGET_RHO, l2: float = TARGET_L2
) -> NDArray[np.float32]:
    """Choose every neuron's scale for a chunk, and write its codes.

    Parameters
    ----------
    tile : uint16 (block rows, c), C order
        float16 bit patterns, all finite.
    rows
        Rows in use; the others do not count.
    out : int8 (block rows, c), C order
    rho, l2
        The two promises.

    Returns
    -------
    float32 (c, 2)
        Unit and knee. The unit of a neuron that is zero throughout is 0.
    """
    sample = Sample(tile, rows)
    scales = sample.choose(rho, l2)
    codes = out[: len(sample.rows)]  # for now
    _apply(sample.rows, scales, codes)
    sample.refine(codes, scales, rho, l2)
    _apply(tile, scales, out)
    return scales


def expand(codes: NDArray[np.int8], scales: NDArray[np.float32], out: NDArray[np.uint16]) -> None:
    """Write the float16 patterns that the codes stand for: codes int8 (rows, c), scales float32 (c, 2), out (rows, c)."""
    unit, knee = _columns(scales)
    _expand(codes, unit, knee, out)
    segmented = np.flatnonzero(knee < 0)
    if len(segmented):
        _expand_segmented(codes, unit, knee, segmented, out)


def unpack_codes(
    codes: NDArray[np.int8], scales: NDArray[np.float32], width: int, out: NDArray[np.float32], column: int
) -> None:
    """Decode the first `width` columns of a chunk into ``out[:, column:column + width]``: `expand`, then float32."""
    unit, knee = _columns(scales)
    _unpack(codes, unit, knee, width, out, column)
    segmented = np.flatnonzero(knee[:width] < 0)
    if len(segmented):
        _unpack_segmented(codes, unit, knee, segmented, out, column)


def gather_codes(
    codes: NDArray[np.int8],
    scales: NDArray[np.float32],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    out: NDArray[np.float32],
    out_rows: NDArray[np.int64],
    out_columns: NDArray[np.int64],
) -> None:
    """Decode ``codes[rows × columns]`` into ``out[out_rows × out_columns]``."""
    _gather(codes, *_columns(scales), rows, columns, out, out_rows, out_columns)


def _apply(tile: NDArray[np.uint16], scales: NDArray[np.float32], out: NDArray[np.int8]) -> None:
    unit, knee = _columns(scales)
    inverse = np.divide(1, unit, out=np.zeros_like(unit), where=unit > 0)
    segmented = np.flatnonzero(knee < 0)
    bend = np.abs(knee)
    inverse[segmented] = 0  # keeps the vectorised pass within its range; what it writes there is overwritten
    _quantise(tile, inverse, bend, bend / 2, 1 / (2 * bend), out)
    if len(segmented):
        _quantise_segmented(tile, unit, knee, segmented, out)


def _columns(scales: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return np.ascontiguousarray(scales[:, 0]), np.ascontiguousarray(scales[:, 1])
