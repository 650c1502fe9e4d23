"""Compiled loops of the lists per tag: the highest and lowest tokens of every neuron of a chunk, tag by tag.

A list is a bag of `SPACE` entries. The first tokens of a tag fill it; when it is full, all but the best `SIZE` leave it, and
from then on only tokens beyond the worst of these enter. Nothing is sorted before the end. As in `index_kernels`, keys are
signed integers that order as the values do, and 64 neurons at a time are compared with the bounds of their bags. All loops
release the GIL.
"""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from neuronlake.store.index_kernels import COMPARE, KEY
from neuronlake.store.lanes import LANES, trailing_zeros

SIZE = 64
"""Tokens wanted per list."""
SPACE = 128
"""Entries of a bag."""
FULL = -1
"""In `fill`: the bags were full before."""


def _make_thin(kind: Any) -> Any:
    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def thin(keys: Any, rows: Any) -> Any:
        """Keep the best SIZE of a full bag, of equal keys those of the lower rows; returns the worst kept key."""
        low, high = keys[0], keys[0]
        for i in range(SPACE):
            low = min(low, keys[i])
            high = max(high, keys[i])
        first, last = numba.int64(low), numba.int64(high)
        while first < last:  # the largest key that SIZE entries reach: halving needs no sort, and counting is vectorised
            middle = (first + last + 1) >> 1
            bound, reached = kind(middle), kind(0)
            for i in range(SPACE):
                reached = kind(reached + kind(keys[i] >= bound))
            if reached >= SIZE:
                first = middle
            else:
                last = middle - 1
        cut, above, equal = kind(first), kind(0), kind(0)
        for i in range(SPACE):
            above = kind(above + kind(keys[i] > cut))
            equal = kind(equal + kind(keys[i] == cut))
        last_row = numba.uint32(0xFFFFFFFF)
        if above + equal > SIZE:
            from_row = numba.uint32(0)
            while from_row < last_row:
                middle_row, reached = numba.uint32((numba.int64(from_row) + numba.int64(last_row)) >> 1), kind(0)
                for i in range(SPACE):
                    reached = kind(reached + kind(keys[i] == cut and rows[i] <= middle_row))
                if reached >= SIZE - above:
                    last_row = middle_row
                else:
                    from_row = numba.uint32(middle_row + 1)
        kept = 0
        for i in range(SPACE):  # without a branch, which would be guessed wrong every other time
            some, row = keys[i], rows[i]
            keys[kept], rows[kept] = some, row
            kept += (some > cut) | ((some == cut) & (row <= last_row))
        return cut

    return thin


def _make_update(key: Any, compare: Any, kind: Any, highest: int) -> Any:
    """`highest`: no key is as high, none as low as its negation."""
    thin = _make_thin(kind)

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def update(
        codes: Any, order: Any, starts: Any, first_row: int, first_neuron: int, width: int, later: bool, fill: Any,
        cuts: Any, counts: Any, keys: Any, rows: Any,
    ) -> None:  # fmt: skip
        high, low = np.empty(LANES, dtype=cuts.dtype), np.empty(LANES, dtype=cuts.dtype)
        beyond = 1 if later else 0  # of rows after all listed ones an equal value has no place
        vector = codes.shape[1] % LANES == 0
        for tag in range(starts.shape[0] - 1):
            begin, end = starts[tag], starts[tag + 1]
            if begin == end:
                continue
            filled = fill[tag]
            some = 0 if filled == FULL else min(end - begin, SPACE - filled)
            for first in range(0, width, LANES):
                lanes, base = min(LANES, width - first), first_neuron + first
                for j in range(lanes if some else 0):
                    best, worst = keys[tag, 0, base + j], keys[tag, 1, base + j]
                    numbers, more_numbers = rows[tag, 0, base + j], rows[tag, 1, base + j]
                    for i in range(some):
                        row, place = order[begin + i], filled + i
                        value = key(codes[row, first + j])
                        best[place], worst[place] = value, -value
                        numbers[place] = more_numbers[place] = first_row + row
                if filled != FULL:
                    if filled + some < SPACE:
                        continue
                    for side in range(2):
                        for j in range(base, base + lanes):
                            cuts[tag, side, j] = thin(keys[tag, side, j], rows[tag, side, j])
                            counts[tag, side, j] = SIZE
                for j in range(LANES):
                    high[j], low[j] = highest, -highest
                for j in range(lanes):
                    high[j] = cuts[tag, 0, base + j] + beyond
                    low[j] = -(cuts[tag, 1, base + j] + beyond)
                addresses = high.ctypes.data, low.ctypes.data
                for i in range(begin + some, end):
                    line = codes[order[i]]
                    if vector:
                        above, below = compare(
                            numba.uint64(line[first:].ctypes.data), numba.uint64(addresses[0]), numba.uint64(addresses[1])
                        )
                        mask = above | below  # a loop for each is a fifth slower
                    else:
                        mask = ~numba.uint64(0) >> numba.uint64(LANES - lanes)
                    while mask:
                        lane = numba.int64(trailing_zeros(mask))
                        mask &= mask - numba.uint64(1)
                        j, value = base + lane, key(line[first + lane])
                        for side in range(2):
                            if (side == 0 and value < high[lane]) or (side == 1 and value > low[lane]):
                                continue
                            at = counts[tag, side, j]
                            keys[tag, side, j, at] = value if side == 0 else -value
                            rows[tag, side, j, at] = first_row + order[i]
                            counts[tag, side, j] = at + 1
                            if at + 1 == SPACE:
                                cut = thin(keys[tag, side, j], rows[tag, side, j])
                                cuts[tag, side, j] = cut
                                counts[tag, side, j] = SIZE
                                if side == 0:
                                    high[lane] = cut + beyond
                                else:
                                    low[lane] = -(cut + beyond)
            if filled != FULL:
                fill[tag] = FULL if filled + some == SPACE else filled + some

    return update


_UPDATE = {
    2: _make_update(KEY[2], COMPARE[2], numba.int16, (1 << 15) - 1),
    4: _make_update(KEY[4], COMPARE[4], numba.int32, (1 << 31) - 1),
}


def update_bags(
    codes: NDArray[Any],
    order: NDArray[np.int32],
    starts: NDArray[np.int64],
    first_row: int,
    first_neuron: int,
    width: int,
    fill: NDArray[np.int64],
    cuts: NDArray[Any],
    counts: NDArray[np.uint8],
    keys: NDArray[Any],
    rows: NDArray[np.uint32],
    *,
    later: bool,
) -> None:
    """Add the rows of a chunk to the bags of its neurons, in place.

    Parameters
    ----------
    codes : uint16, uint32 or float32 (block rows, c), C order
        Bit patterns of the values.
    order : int32 (n,)
        Rows that have a tag, by tag, ascending within each.
    starts : int64 (tags + 1,)
        Where each tag begins in `order`, and the end.
    first_row
        Number of the block's first row.
    first_neuron, width
        Which neurons of the layer the chunk has.
    fill : int64 (tags,)
        Entries of the tag's bags, the same for all neurons; FULL once they were full.
    cuts : int16 or int32 (tags, 2, neurons)
        Worst key that was kept when a bag was full last.
    counts : uint8 (tags, 2, neurons)
        Entries of bags that were full before.
    keys : int16 or int32 (tags, 2, neurons, SPACE)
        Keys of the highest values, negated keys of the lowest, in no order.
    rows : uint32 (tags, 2, neurons, SPACE)
        Their rows.
    later
        Whether all these rows come after all that were added before.
    """
    bits = codes.view(np.uint32) if codes.dtype == np.float32 else codes
    _UPDATE[codes.itemsize](bits, order, starts, first_row, first_neuron, width, later, fill, cuts, counts, keys, rows)
