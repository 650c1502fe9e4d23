"""Compiled loops of the index for quantised chunks, on the codes themselves.

Within a neuron codes order as the values do, and there are 255 of them: counted once, they say how far the lists of extreme
tokens reach, where in its list each token belongs, and what the sum is. All loops release the GIL.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from neuronlake.store.floats import f16bits_to_f32
from neuronlake.store.index_kernels import KEY
from neuronlake.store.lanes import LANES, load, trailing_zeros
from neuronlake.store.quantise import expand

_CODES = 256
_STRIDE = 272  # between the counts of neurons: a power of two would have them compete for the same lines of the cache
_ZERO = 128  # the place of code 0
_key = KEY[2]


@intrinsic  # type: ignore[untyped-decorator]
def _compare(typing_context: Any, codes: Any, high: Any, low: Any) -> Any:  # noqa: ARG001  (numba's signature)
    """(addresses of 64 codes, of their high and low thresholds) → which are > high, which ≤ low: uint64."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        some, highs, lows = (load(builder, each, ir.IntType(8)) for each in args)
        found = builder.icmp_signed(">", some, highs), builder.icmp_signed("<=", some, lows)
        masks = [builder.bitcast(each, ir.IntType(64)) for each in found]
        return context.make_tuple(builder, signature.return_type, masks)

    pair = types.Tuple((types.uint64, types.uint64))  # type: ignore[attr-defined]
    return pair(types.uint64, types.uint64, types.uint64), emit


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _count(codes: Any, used: Any, counts: Any) -> None:
    flat = counts.ravel()
    for begin in range(0, codes.shape[1], LANES):
        end = min(begin + LANES, codes.shape[1])
        for i in range(used.shape[0]):
            row, base = codes[used[i]], numba.uint64(begin * _STRIDE)
            for j in range(begin, end):  # unsigned: a place that might count from the end takes three times as long
                flat[base + numba.uint64(numba.uint8(row[j]) ^ numba.uint8(_ZERO))] += flat.dtype.type(1)
                base += numba.uint64(_STRIDE)


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _reach(counts: Any, patterns: Any, width: int, size: int, starts: Any, high: Any, low: Any, out: Any) -> bool:
    """Find sums, the codes that the lists reach to, and where in its list each code begins.

    Returns False when two codes in use stand for the same value, whose rows would have to be mixed.
    """
    for j in range(width):
        before, total = -np.inf, 0.0
        for k in range(_CODES):
            if counts[j, k]:
                value = numba.float64(f16bits_to_f32(patterns[k, j]))
                if value == before:
                    return False
                before = value
                total += counts[j, k] * value
        out[j] = total
        reached, k = 0, _CODES
        while reached < size and k > 0:
            k -= 1
            starts[0, j, k] = reached
            reached += counts[j, k]
        high[j] = k - _ZERO - 1
        reached, k = 0, -1
        while reached < size and k < _CODES - 1:
            k += 1
            starts[1, j, k] = reached
            reached += counts[j, k]
        low[j] = k - _ZERO
    return True


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _collect(
    codes: Any, used: Any, width: int, size: int, patterns: Any, starts: Any, high: Any, low: Any, keys: Any, rows: Any
) -> None:
    vector = codes.shape[1] % LANES == 0
    for first in range(0, width, LANES):
        lanes = min(LANES, width - first)
        every = ~numba.uint64(0) >> numba.uint64(LANES - lanes)
        highs, lows = numba.uint64(high[first:].ctypes.data), numba.uint64(low[first:].ctypes.data)
        for i in range(used.shape[0]):
            row = used[i]
            line = codes[row]
            if vector:
                address = numba.uint64(line[first:].ctypes.data)
                above, below = _compare(address, highs, lows)
                above, below = above & every, below & every
            else:
                above = below = every
            while above:
                j = first + numba.int64(trailing_zeros(above))
                above &= above - numba.uint64(1)
                k = numba.int64(line[j]) + _ZERO
                if line[j] <= high[j]:
                    continue
                at = starts[0, j, k]
                if at < size:
                    keys[0, j, at], rows[0, j, at] = _key(patterns[k, j]), row
                    starts[0, j, k] = at + 1
                else:  # of equal ones the lower rows are in already
                    high[j] = line[j]
            while below:
                j = first + numba.int64(trailing_zeros(below))
                below &= below - numba.uint64(1)
                k = numba.int64(line[j]) + _ZERO
                if line[j] > low[j]:
                    continue
                at = starts[1, j, k]
                if at < size:
                    keys[1, j, at], rows[1, j, at] = -_key(patterns[k, j]), row
                    starts[1, j, k] = at + 1
                else:
                    low[j] = line[j] - 1


class CodesWork:
    """What `extreme_codes` needs besides its arguments, for chunks of one shape; one per thread."""

    def __init__(self, rows: int, width: int):
        every = np.arange(-_ZERO, _ZERO, dtype=np.int16).astype(np.int8)
        self.codes = np.repeat(every[:, None], width, axis=1)
        self.patterns = np.empty((_CODES, width), dtype=np.uint16)
        """Of codes −128 to 127."""
        kind = np.uint16 if rows < 1 << 16 else np.uint32  # the smaller, the more of them the nearest cache holds
        self.counts, self.starts = np.empty((width, _STRIDE), dtype=kind), np.empty((2, width, _CODES), dtype=kind)
        self.high, self.low = np.empty(width, dtype=np.int8), np.empty(width, dtype=np.int8)


def extreme_codes(
    codes: NDArray[np.int8],
    scales: NDArray[np.float32],
    used: NDArray[np.int64],
    width: int,
    work: CodesWork,
    keys: NDArray[np.int32],
    rows: NDArray[Any],
    sums: NDArray[np.float64],
) -> bool:
    """Do for a quantised chunk what `extremes` and `sums` of `index_kernels` do for its decoded values.

    Parameters
    ----------
    codes : int8 (block rows, c), C order
    scales : float32 (c, 2)
    used, width, keys, rows
        See there.
    work
        Scratch memory; its `patterns` are filled.
    sums : float64 (width,)
        Filled.

    Returns
    -------
    bool
        False, and the lists are not to be used, if two codes of a neuron stand for one value: then decode.
    """
    expand(work.codes, scales, work.patterns)
    work.counts[:] = 0
    _count(codes, used, work.counts)
    size = min(keys.shape[2], len(used))
    if not _reach(work.counts, work.patterns, width, size, work.starts, work.high, work.low, sums):
        return False
    _collect(codes, used, width, size, work.patterns, work.starts, work.high, work.low, keys, rows)
    return True
