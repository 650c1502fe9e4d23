"""Compiled loops of the index: the extreme tokens of every neuron of a chunk, and its sum.

Values come as stored bit patterns and are compared as integers: a sign-magnitude float becomes a key that orders as the
value does, −0 equal to +0. Few values matter, so 64 at a time are compared with their thresholds and only the set bits of
the answer are looked at: numba cannot write that, hence the LLVM intrinsic. All loops release the GIL.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from neuronlake.store.floats import bf16bits_to_f32, bits_to_f32, f16bits_to_f32
from neuronlake.store.lanes import LANES, all_lanes, load, trailing_zeros

_RANK = 4  # the threshold is the fourth largest of a sample in which the lists' last is expected to be the first
_SPACE = 16  # candidates per entry of a list; a neuron with more of them (ties) is sorted in full


def _compare(bits: int) -> Any:
    """Return (addresses of 64 values, of as many high and low thresholds) -> which keys are ≥ high, which ≤ low: uint64."""
    sign = bits - 1

    @intrinsic  # type: ignore[untyped-decorator]
    def compare(typing_context: Any, values: Any, high: Any, low: Any) -> Any:  # noqa: ARG001  (numba's signature)
        lane = ir.IntType(bits)

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            def splat(value: int) -> Any:
                return all_lanes(builder, ir.Constant(lane, value))

            raw = load(builder, args[0], lane)
            negative = builder.ashr(raw, splat(sign))
            key = builder.sub(builder.xor(builder.and_(raw, splat((1 << sign) - 1)), negative), negative)
            above = builder.icmp_signed(">=", key, load(builder, args[1], lane))
            below = builder.icmp_signed("<=", key, load(builder, args[2], lane))
            masks = [builder.bitcast(found, ir.IntType(64)) for found in (above, below)]
            return context.make_tuple(builder, signature.return_type, masks)

        pair = types.Tuple((types.uint64, types.uint64))  # type: ignore[attr-defined]
        return pair(types.uint64, types.uint64, types.uint64), emit

    return compare


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _key_16(bits: Any) -> Any:
    signed = numba.int32(numba.int16(bits))
    return signed if signed >= 0 else -(signed & numba.int32(0x7FFF))


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _key_32(bits: Any) -> Any:
    signed = numba.int32(bits)
    return signed if signed >= 0 else -(signed & numba.int32(0x7FFFFFFF))


COMPARE = {2: _compare(16), 4: _compare(32)}
"""Bytes of a value → (addresses of 64 values, of as many high and low thresholds) → which keys are ≥, which ≤: bits."""
KEY = {2: _key_16, 4: _key_32}
"""Bytes of a value → (bit pattern) → signed integer that orders as the value does."""


def _make_extremes(key: Any, compare: Any, kind: Any, lowest: int) -> Any:
    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def thresholds_of(codes: Any, used: Any, sample: int, ranked: Any, high: Any, low: Any) -> None:
        """Fourth largest and smallest key of every column in a sample of the rows."""
        total, width = used.shape[0], codes.shape[1]
        ranked[:, :_RANK] = lowest
        for i in range(sample):
            line = codes[used[i * total // sample]]
            for j in range(width):
                value = numba.int32(key(line[j]))
                up, down = value, -value
                for rank in range(_RANK):
                    best = ranked[0, rank, j]
                    ranked[0, rank, j] = max(best, up)
                    up = min(best, up)
                    best = ranked[1, rank, j]
                    ranked[1, rank, j] = max(best, down)
                    down = min(best, down)
        for j in range(width):
            high[j] = kind(ranked[0, _RANK - 1, j])
            low[j] = kind(-ranked[1, _RANK - 1, j])

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def choose(keys: Any, rows: Any, count: int, size: int) -> int:
        """Leave the best `size` of some candidates, which come by row, best first, of equal ones the lower row first."""
        first, last = numba.int64(keys[0]), numba.int64(keys[0])
        for i in range(count):
            first = min(first, numba.int64(keys[i]))
            last = max(last, numba.int64(keys[i]))
        while first < last:  # the largest key that `size` candidates reach: halving needs no sort, counting is vectorised
            middle = (first + last + 1) >> 1
            bound, reached = kind(middle), numba.int32(0)
            for i in range(count):
                reached = numba.int32(reached + numba.int32(keys[i] >= bound))
            if reached >= size:
                first = middle
            else:
                last = middle - 1
        cut, equal = kind(first), size
        for i in range(count):
            equal -= keys[i] > cut
        kept = 0
        for i in range(count):  # without a branch, which would be guessed wrong every other time
            some, row = keys[i], rows[i]
            keys[kept], rows[kept] = some, row
            same = some == cut
            kept += (some > cut) | (same & (equal > 0))
            equal -= same
        for i in range(1, kept):
            some, row = keys[i], rows[i]
            j = i - 1
            while j >= 0 and keys[j] < some:
                keys[j + 1], rows[j + 1] = keys[j], rows[j]
                j -= 1
            keys[j + 1], rows[j + 1] = some, row
        return kept

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def extremes(codes: Any, used: Any, width: int, work: Any, keys: Any, rows: Any) -> None:
        found, found_rows, every, every_rows, counts, ranked, high, low = work
        total, size, space = used.shape[0], keys.shape[2], found.shape[2]
        counts[:] = 0
        if total > 4 * _RANK * size and codes.shape[1] % LANES == 0:
            thresholds_of(codes, used, total // size, ranked, high, low)
            for first in range(0, codes.shape[1], LANES):
                highs, lows = high[first:].ctypes.data, low[first:].ctypes.data
                for i in range(total):
                    row = used[i]
                    line = codes[row]
                    above, below = compare(numba.uint64(line[first:].ctypes.data), numba.uint64(highs), numba.uint64(lows))
                    while above:
                        j = first + numba.int64(trailing_zeros(above))
                        above &= above - numba.uint64(1)
                        at = counts[0, j]
                        if at < space:
                            found[0, j, at] = key(line[j])
                            found_rows[0, j, at] = row
                        counts[0, j] = at + 1
                    while below:
                        j = first + numba.int64(trailing_zeros(below))
                        below &= below - numba.uint64(1)
                        at = counts[1, j]
                        if at < space:
                            found[1, j, at] = -key(line[j])
                            found_rows[1, j, at] = row
                        counts[1, j] = at + 1
        for j in range(width):
            for side in range(2):
                count = counts[side, j]
                if min(size, total) <= count <= space:
                    some, some_rows = found[side, j], found_rows[side, j]
                else:
                    count, some, some_rows = total, every, every_rows
                    sign = 1 - 2 * side
                    for i in range(total):
                        some[i] = sign * key(codes[used[i], j])
                        some_rows[i] = used[i]
                kept = choose(some, some_rows, count, min(size, total)) if count else 0
                for i in range(kept):
                    keys[side, j, i] = some[i]
                    rows[side, j, i] = some_rows[i]

    return extremes


def _make_sums(decode: Any) -> Any:
    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def sums(codes: Any, used: Any, out: Any) -> None:
        total = used.shape[0] - used.shape[0] % 4
        for i in range(0, total, 4):  # four rows for every load and store of the sums
            a, b, c, d = codes[used[i]], codes[used[i + 1]], codes[used[i + 2]], codes[used[i + 3]]
            for j in range(out.shape[0]):
                left = numba.float64(decode(a[j])) + numba.float64(decode(b[j]))
                out[j] += left + (numba.float64(decode(c[j])) + numba.float64(decode(d[j])))
        for i in range(total, used.shape[0]):
            line = codes[used[i]]
            for j in range(out.shape[0]):
                out[j] += numba.float64(decode(line[j]))

    return sums


_SUMS = {
    "float16": _make_sums(f16bits_to_f32),
    "bfloat16": _make_sums(bf16bits_to_f32),
    "float32": _make_sums(bits_to_f32),
}
_EXTREMES = {
    2: _make_extremes(KEY[2], COMPARE[2], numba.int16, -(1 << 15)),
    4: _make_extremes(KEY[4], COMPARE[4], numba.int32, -(1 << 31) + 1),
}


class ExtremesWork:
    """What `extremes` needs besides its arguments, for chunks of one shape; one per thread."""

    def __init__(self, codes: np.dtype[Any], *, width: int, size: int, row: np.dtype[Any], rows: int):
        signed = np.dtype(f"i{codes.itemsize}")
        self.arrays = (
            np.empty((2, width, _SPACE * size), dtype=signed),
            np.empty((2, width, _SPACE * size), dtype=row),
            np.empty(rows, dtype=signed),
            np.empty(rows, dtype=row),
            np.empty((2, width), dtype=np.int64),
            np.empty((2, _RANK, width), dtype=np.int32),
            np.empty(width, dtype=signed),
            np.empty(width, dtype=signed),
        )


def extremes(
    codes: NDArray[Any],
    used: NDArray[np.int64],
    width: int,
    work: ExtremesWork,
    keys: NDArray[np.int32],
    rows: NDArray[Any],
) -> None:
    """Find the highest and the lowest values of every neuron of a chunk.

    Parameters
    ----------
    codes : uint16 or float32 (block rows, c), C order
        Bit patterns of the values.
    used : int64 (n,)
        Rows that count, ascending.
    width
        Neurons in use.
    work
        Scratch memory.
    keys : int32 (2, width, size)
        Filled with the keys of the highest values, descending, and with the negated ones of the lowest; where there are
        fewer than `size` rows the rest is left as it is.
    rows : (2, width, size)
        Filled with their rows; of equal values the lower row comes first.
    """
    _EXTREMES[codes.itemsize](_bits(codes), used, width, work.arrays, keys, rows)


def sums(codes: NDArray[Any], used: NDArray[np.int64], width: int, values: str) -> NDArray[np.float64]:
    """Sum of every neuron of a chunk over the rows that count, float64 (width,); `values` is the format of the patterns."""
    out = np.zeros(width, dtype=np.float64)
    _SUMS[values](_bits(codes), used, out)
    return out


def pattern_values(patterns: NDArray[Any], values: str) -> NDArray[Any]:
    """Decode bit patterns of `values` (an encoding's): float16 of float16, float32 of the others; both exact."""
    if values == "bfloat16":
        return (patterns.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return patterns.view(np.float16 if values == "float16" else np.float32)


def key_values(keys: NDArray[np.int32], values: str) -> NDArray[Any]:
    """Decode keys, see `pattern_values`; zeros are positive."""
    kind, sign = (np.uint32, np.uint32(1 << 31)) if values == "float32" else (np.uint16, np.uint16(1 << 15))
    return pattern_values(np.abs(keys).astype(kind) | np.where(keys < 0, sign, kind(0)), values)


def value_keys(values: NDArray[Any], kind: str) -> NDArray[np.int32]:
    """Keys of values as `key_values` gives them; `kind` is its `values`."""
    if kind == "float16":
        bits = values.view(np.int16).astype(np.int32)
    else:
        bits = values.view(np.int32)
        if kind == "bfloat16":
            bits = bits >> 16
    magnitude = bits & np.int32((1 << 31) - 1 if kind == "float32" else (1 << 15) - 1)
    return np.where(bits < 0, -magnitude, magnitude)


def _bits(codes: NDArray[Any]) -> NDArray[Any]:
    return codes.view(np.uint32) if codes.dtype == np.float32 else codes
