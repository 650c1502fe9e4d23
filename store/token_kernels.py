"""Compiled loops of the index: the strongest neurons of every token, as the chunks of all layers pass by.

A token has a bag of `_SPACE` entries. When it is full, the best `STRONGEST` stay, and from then on only neurons beyond the
worst of these enter; nothing is sorted before the end. An entry is one number that orders as the lists do: the magnitude
first, of equal ones the lower neuron. 64 neurons at a time are compared with what their token asks for, by values or by
quantised codes, and only the set bits of the answer are looked at. All loops release the GIL.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from neuronlake.store.lanes import LANES, all_lanes, load, trailing_zeros

STRONGEST = 32
"""Neurons that are listed per token."""
NOBODY = np.uint32(0xFFFFFFFF)
"""In a token's list: an entry that no neuron has taken."""
_SPACE = 96
_TAIL = 33  # bits of an entry behind the magnitude: the neuron, counted from the last, and the sign
_LAST = (1 << _TAIL) - 1
_COARSE = 8  # bits of a magnitude that are dropped to look up codes
_BUCKETS = 0x8000 >> _COARSE
_ZERO = 128  # where the pattern of code 0 is


def _reaching(bits: int) -> Any:
    """Return (address of 64 values, a magnitude) → uint64: which of their magnitudes reach it."""

    @intrinsic  # type: ignore[untyped-decorator]
    def reaching(typing_context: Any, values: Any, threshold: Any) -> Any:  # noqa: ARG001  (numba's signature)
        lane = ir.IntType(bits)

        def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            magnitude = builder.and_(
                load(builder, args[0], lane), all_lanes(builder, ir.Constant(lane, (1 << (bits - 1)) - 1))
            )
            bound = builder.trunc(args[1], lane) if bits < 32 else args[1]
            return builder.bitcast(builder.icmp_unsigned(">=", magnitude, all_lanes(builder, bound)), ir.IntType(64))

        return types.uint64(types.uint64, types.uint32), emit

    return reaching


@intrinsic  # type: ignore[untyped-decorator]
def _codes_reaching(typing_context: Any, codes: Any, limits: Any) -> Any:  # noqa: ARG001
    """(addresses of 64 codes and of their limits) → uint64: which are as large."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        lane = ir.IntType(8)
        some, bound = (load(builder, each, lane) for each in args)
        sign = builder.ashr(some, all_lanes(builder, ir.Constant(lane, 7)))
        size = builder.sub(builder.xor(some, sign), sign)
        return builder.bitcast(builder.icmp_unsigned(">=", size, bound), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), emit


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _thin(bag: Any, count: int) -> Any:
    """Keep the best STRONGEST of more entries; returns a bound between these and the others."""
    first, last = bag[0], bag[0]
    for i in range(count):
        first = min(first, bag[i])
        last = max(last, bag[i])
    while True:  # entries differ, so that there is such a bound; halving needs no sort, and counting is vectorised
        bound, reached = first + ((last - first + numba.uint64(1)) >> numba.uint64(1)), 0
        for i in range(count):
            reached += bag[i] >= bound
        if reached == STRONGEST or first == last:
            break
        if reached > STRONGEST:
            first = bound
        else:
            last = bound - numba.uint64(1)
    kept = 0
    for i in range(count):  # without a branch, which would be guessed wrong every other time
        some = bag[i]
        bag[kept] = some
        kept += some >= bound
    return bound


@numba.njit(nogil=True, inline="always")  # type: ignore[untyped-decorator]
def _enter(bags: Any, bounds: Any, counts: Any, row: int, entry: Any) -> None:
    if entry >= bounds[row]:
        bags[row, counts[row]] = entry
        counts[row] += 1
        if counts[row] == _SPACE:
            bounds[row] = _thin(bags[row], _SPACE)
            counts[row] = STRONGEST


def _make_add(reaching: Any, magnitude: Any, sign: int) -> Any:
    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def add(patterns: Any, used: Any, width: int, first_neuron: int, bags: Any, bounds: Any, counts: Any) -> None:
        vector = patterns.shape[1] % LANES == 0
        for i in range(used.shape[0]):
            row = used[i]
            line = patterns[row]
            for first in range(0, width, LANES):
                mask = ~numba.uint64(0) >> numba.uint64(LANES - min(LANES, width - first))
                if vector:
                    bound = numba.uint32(bounds[row] >> numba.uint64(_TAIL))
                    mask &= reaching(numba.uint64(line[first:].ctypes.data), bound)
                while mask:
                    j = first + numba.int64(trailing_zeros(mask))
                    mask &= mask - numba.uint64(1)
                    tail = numba.uint64(2 * (first_neuron + j)) + (numba.uint64(line[j]) >> numba.uint64(sign))
                    entry = (numba.uint64(line[j] & magnitude) << numba.uint64(_TAIL)) + (numba.uint64(_LAST) - tail)
                    _enter(bags, bounds, counts, row, entry)

    return add


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _translate(floor: Any, patterns: Any, limits: Any) -> None:
    """Smallest magnitude of code whose value reaches a value's magnitude, for every neuron; 128 where none does."""
    limits[:] = 0
    for k in range(_ZERO, 2 * _ZERO):
        line = patterns[k]
        for j in range(limits.shape[0]):
            limits[j] += numba.uint8(line[j] < floor)


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _add_codes(
    codes: Any,
    patterns: Any,
    used: Any,
    width: int,
    first_neuron: int,
    limits: Any,
    known: Any,
    bags: Any,
    bounds: Any,
    counts: Any,
) -> None:
    vector = codes.shape[1] % LANES == 0
    known[:] = False
    for i in range(used.shape[0]):
        row = used[i]
        line = codes[row]
        for first in range(0, width, LANES):
            mask = ~numba.uint64(0) >> numba.uint64(LANES - min(LANES, width - first))
            if vector:
                bucket = numba.int64(bounds[row] >> numba.uint64(_TAIL + _COARSE))
                if not known[bucket]:
                    _translate(numba.uint16(bucket << _COARSE), patterns, limits[bucket])
                    known[bucket] = True
                limit = limits[bucket]
                mask &= _codes_reaching(numba.uint64(line[first:].ctypes.data), numba.uint64(limit[first:].ctypes.data))
            while mask:
                j = first + numba.int64(trailing_zeros(mask))
                mask &= mask - numba.uint64(1)
                pattern = numba.uint64(patterns[numba.int64(line[j]) + _ZERO, j])
                tail = numba.uint64(2 * (first_neuron + j)) + (pattern >> numba.uint64(15))
                entry = ((pattern & numba.uint64(0x7FFF)) << numba.uint64(_TAIL)) + (numba.uint64(_LAST) - tail)
                _enter(bags, bounds, counts, row, entry)


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _merge(bags: Any, bounds: Any, counts: Any, more_bags: Any, more_counts: Any) -> None:
    for row in range(counts.shape[0]):
        for i in range(more_counts[row]):
            _enter(bags, bounds, counts, row, more_bags[row, i])


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _sort(bags: Any, counts: Any) -> None:
    """Leave the best STRONGEST entries of every bag, best first."""
    for row in range(counts.shape[0]):
        bag = bags[row]
        if counts[row] > STRONGEST:
            _thin(bag, counts[row])
            counts[row] = STRONGEST
        for i in range(1, counts[row]):
            some, j = bag[i], i - 1
            while j >= 0 and bag[j] < some:
                bag[j + 1] = bag[j]
                j -= 1
            bag[j + 1] = some


_ADD = {
    2: _make_add(_reaching(16), numba.uint16(0x7FFF), 15),
    4: _make_add(_reaching(32), numba.uint32(0x7FFFFFFF), 31),
}


class StrongestNeurons:
    """Collects the strongest neurons of every token of a block, chunk by chunk in any order; for one thread.

    Parameters
    ----------
    rows
        Rows of the block.
    """

    def __init__(self, rows: int):
        self._bags = np.empty((rows, _SPACE), dtype=np.uint64)
        self._bounds, self._counts = np.zeros(rows, dtype=np.uint64), np.zeros(rows, dtype=np.int64)
        self._codes: tuple[NDArray[np.uint8], NDArray[np.bool_]] | None = None

    def add(self, patterns: NDArray[Any], used: NDArray[np.int64], width: int, first_neuron: int) -> None:
        """Add a chunk of values.

        Parameters
        ----------
        patterns : uint16, uint32 or float32 (block rows, c), C order
            Bit patterns of the values.
        used : int64 (n,)
            Rows that count.
        width
            Neurons in use.
        first_neuron
            Number of the chunk's first neuron, counted through all layers.
        """
        bits = patterns.view(np.uint32) if patterns.dtype == np.float32 else patterns
        _ADD[bits.itemsize](bits, used, width, first_neuron, self._bags, self._bounds, self._counts)

    def add_codes(
        self, codes: NDArray[np.int8], patterns: NDArray[np.uint16], used: NDArray[np.int64], width: int, first_neuron: int
    ) -> None:
        """Add a quantised chunk: codes int8 (block rows, c), and the patterns of codes −128 to 127, uint16 (256, c)."""
        if self._codes is None:
            self._codes = np.empty((_BUCKETS, codes.shape[1]), dtype=np.uint8), np.empty(_BUCKETS, dtype=np.bool_)
        arrays = (*self._codes, self._bags, self._bounds, self._counts)
        _add_codes(codes, patterns, used, width, first_neuron, *arrays)

    def merge(self, other: "StrongestNeurons") -> None:
        """Add what another thread has collected, of other chunks."""
        _merge(self._bags, self._bounds, self._counts, other._bags, other._counts)

    def lists(self, bits: np.dtype[Any]) -> tuple[NDArray[np.uint32], NDArray[Any]]:
        """Return neurons, uint32 (block rows, STRONGEST), and the bit patterns of their values.

        Largest magnitude first, of equal ones the lower neuron first; NOBODY and zero where a list ends.
        """
        _sort(self._bags, self._counts)
        entries = self._bags[:, :STRONGEST]
        tail = np.uint64(_LAST) - (entries & np.uint64(_LAST))
        magnitude = entries >> np.uint64(_TAIL)
        values = (magnitude | (tail & np.uint64(1)) << np.uint64(8 * bits.itemsize - 1)).astype(bits)
        neurons = (tail >> np.uint64(1)).astype(np.uint32)
        nobody = np.arange(STRONGEST) >= self._counts[:, None]
        values[nobody], neurons[nobody] = 0, NOBODY
        return neurons, values
