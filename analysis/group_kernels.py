"""What is gathered of every group of a chunk's rows, from tiles that stay in the first-level cache.

16 neurons are done at a time, group by group, tile by tile (`tiles`): rows are decoded once, and every look at the tile
keeps the sums of its 16 neurons in registers. The groups' accumulators lie in memory, (groups, neurons), and a tile is
merged into them: Chan, Golub & LeVeque (1979), and Pébay (2008) for third and fourth moments.

All arrays are in C order: their addresses are taken. The compiled code that numba keeps is made again when this file
changes, not when `tiles` or `vectors` do: remove ``__pycache__`` then.
"""

from typing import Any

import numba
import numpy as np

from neuronlake.analysis.tiles import TILE_ROWS, fill
from neuronlake.analysis.vectors import (
    LANES,
    absolute32,
    absolute64,
    add_if_positive,
    add_less,
    add_positive,
    any_less64,
    bits32,
    count_lanes,
    if_less,
    if_positive,
    if_zero,
    larger,
    load32,
    load64,
    load_int,
    load_widened,
    multiply_add,
    prefetch,
    shifted_right,
    smaller,
    splat32,
    splat64,
    splat_int,
    store32,
    store64,
    store_bytes,
    store_int,
)

BINS = 256
ZERO_BIN = 128
BIN_SHIFT = 19  # of 23 bits of mantissa: sixteen bins from one power of two to the next
SAMPLE_ROWS = 256
WORK = SAMPLE_ROWS * LANES + LANES
"""float32 that a kernel wants as scratch memory: a tile and its bins, or a sample; some, to begin with a cache line."""
_POOR = 30.0  # sums about a shift five deviations away keep all but two of sixteen digits
_FAR = 1e-3  # a mean that is so small a share of the shift has lost as many digits
_LARGEST_EXPONENT = 100
_U64 = np.uint64
_LINE = _U64(64)  # bytes of a tile's row, 16 float32, and of a cache line
_BIN_LINE = _U64(LANES)  # bytes of the bins of a tile's row
_njit = numba.njit(nogil=True, cache=True)
_inline = numba.njit(inline="always")


@_inline  # type: ignore[untyped-decorator]
def _at(array: Any) -> Any:
    # of arguments alone: an array made here would be freed after its last use by name
    return _U64(array.ctypes.data)


@_inline  # type: ignore[untyped-decorator]
def _aligned(work: Any) -> Any:
    return (_at(work) + _LINE - _U64(1)) & ~(_LINE - _U64(1))


@_njit  # type: ignore[untyped-decorator]
def _mean_of(tile: Any, count: int) -> Any:
    total = splat64(0.0)
    for _ in range(count):
        total = total + load_widened(tile)
        tile += _LINE
    return total / splat64(np.float64(count))


@_njit  # type: ignore[untyped-decorator]
def _squares_of(tile: Any, count: int, mean: Any) -> Any:
    squares = splat64(0.0)
    for _ in range(count):
        d = load_widened(tile) - mean
        squares = multiply_add(d, d, squares)
        tile += _LINE
    return squares


@_njit  # type: ignore[untyped-decorator]
def _look_twice(codes: Any, tile: Any, at: Any, stride: Any, rows: Any, count: int, unit: Any, knee: Any, out: Any) -> None:
    """Write mean and sum of squares about it to `out`."""
    mean = squares = splat64(0.0)
    done = 0
    while done < count:
        some = min(count - done, TILE_ROWS)
        fill(codes, tile, at, stride, rows + _U64(4 * done), some, unit, knee)
        m = _mean_of(tile, some)
        delta, share = m - mean, some / (done + some)
        squares = squares + _squares_of(tile, some, m) + delta * delta * splat64(done * share)
        mean = mean + delta * splat64(share)
        done += some
    store64(out, mean)
    store64(out + _U64(8 * LANES), squares)


@_njit  # type: ignore[untyped-decorator]
def basic(
    codes: Any, scales: Any, rows: Any, start: Any, count: Any, sample: Any, shift: Any, moments: Any, work: Any
) -> None:
    """Add a chunk to mean, m2 and active (see `everything`) with one look about `shift`, float64 (16·k,).

    That is the mean of the rows `sample` of the first chunk, written then. Where it lies so far from a group's values that
    the difference of sums would cancel, the group is read again.
    """
    mean, m2, active = moments
    tile, stride = _aligned(work), _U64(codes.strides[0])
    out = tile + _U64(TILE_ROWS) * _LINE
    poor, far = splat64(_POOR), splat64(_FAR)
    if not count.any():
        some = min(sample.shape[0], SAMPLE_ROWS)
        for lane in range(0, codes.shape[1], LANES):
            here, unit, knee = _at(codes) + _U64(lane * codes.itemsize), _at(scales[0][lane:]), _at(scales[1][lane:])
            fill(codes, tile, here, stride, _at(sample), some, unit, knee)
            store64(_at(shift[lane:]), _mean_of(tile, some))
    for group in range(start.shape[0] - 1):  # outside: its rows stay in the first-level cache for all neurons
        i, n1, n2 = start[group], count[group], start[group + 1] - start[group]
        if n2 == 0:
            continue
        share = n2 / (n1 + n2)
        for lane in range(0, codes.shape[1], LANES):
            here, unit, knee = _at(codes) + _U64(lane * codes.itemsize), _at(scales[0][lane:]), _at(scales[1][lane:])
            for field in (mean, m2):  # wanted when the group is done
                prefetch(_at(field[group, lane:]))
                prefetch(_at(field[group, lane:]) + _LINE)
            prefetch(_at(active[group, lane:]))
            s = load64(_at(shift[lane:]))
            sums = squares = splat64(0.0)
            positive = splat_int(np.int32(0))
            done = 0
            while done < n2:
                some = min(n2 - done, TILE_ROWS)
                fill(codes, tile, here, stride, _at(rows[i + done :]), some, unit, knee)
                at = tile
                for _ in range(some):
                    x, d = load32(at), load_widened(at) - s
                    sums = sums + d
                    squares = multiply_add(d, d, squares)
                    positive = add_positive(positive, x)
                    at += _LINE
                done += some
            offset = sums / splat64(np.float64(n2))
            lost = offset * sums
            squares = squares - lost
            m = s + offset
            if any_less64(squares * poor, lost) or any_less64(absolute64(m), absolute64(s) * far):
                _look_twice(codes, tile, here, stride, _at(rows[i:]), n2, unit, knee, out)
                m, squares = load64(out), load64(out + _U64(8 * LANES))
            a, b, c = _at(mean[group, lane:]), _at(m2[group, lane:]), _at(active[group, lane:])
            known = load64(a)
            delta = m - known
            store64(a, known + delta * splat64(share))
            store64(b, load64(b) + squares + delta * delta * splat64(n1 * share))
            store_int(c, load_int(c) + positive)
        count[group] = n1 + n2


@_njit  # type: ignore[untyped-decorator]
def scale_exponents(codes: Any, scales: Any, sample: Any, exponent: Any, work: Any) -> None:
    """Write ⌊log₂(m / 6)⌋ of every neuron, int32; m is the median magnitude that is not zero in some rows (at most 256).

    0 where all are zero, and within ±100, which keeps every edge a normal float32. With m = 1.f·2^E that is E − 2 or, where
    1.f is below 1.5, E − 3: the nine highest bits of the pattern tell, found bit by bit by counting what lies below.
    """
    tile, stride, rows = _aligned(work), _U64(codes.strides[0]), min(sample.shape[0], SAMPLE_ROWS)
    nothing, one, all_rows = splat_int(np.int32(0)), splat_int(np.int32(1)), splat_int(np.int32(rows))
    least, most = splat_int(np.int32(-_LARGEST_EXPONENT)), splat_int(np.int32(_LARGEST_EXPONENT))
    for lane in range(0, codes.shape[1], LANES):
        here, unit, knee = _at(codes) + _U64(lane * codes.itemsize), _at(scales[0][lane:]), _at(scales[1][lane:])
        fill(codes, tile, here, stride, _at(sample), rows, unit, knee)
        zeros, at = nothing, tile
        for _ in range(rows):
            size = absolute32(load32(at))
            store32(at, size)  # magnitudes order as their patterns do
            zeros = add_less(zeros, bits32(size), one)
            at += _LINE
        rank = shifted_right(zeros + all_rows, one)  # the median of those that are not zero
        found = nothing
        for step in range(9):
            more, below, at = found + splat_int(np.int32(1 << (30 - step))), nothing, tile
            for _ in range(rows):
                below = add_less(below, load_int(at), more)
                at += _LINE
            found = if_less(rank, below, found, more)
        power = shifted_right(found, splat_int(np.int32(22))) - shifted_right(found, splat_int(np.int32(23)))
        power = power - splat_int(np.int32(127 + 3))
        power = if_less(power, least, least, if_less(most, power, most, power))
        store_int(_at(exponent[lane:]), if_less(zeros, all_rows, power, nothing))


@_njit  # type: ignore[untyped-decorator]
def _write_bins(tile: Any, count: int, scale: Any, origin: Any, ceiling: Any, bins: Any) -> None:
    """Write the bin of every value of a tile, one byte each; see `histogram` for what it means."""
    zero, by = splat_int(np.int32(ZERO_BIN)), splat_int(np.int32(BIN_SHIFT))
    above, below = splat_int(np.int32(ZERO_BIN + 1)), splat_int(np.int32(ZERO_BIN - 1))
    for _ in range(count):
        x = load32(tile)
        level = shifted_right(bits32(smaller(absolute32(x) + scale, ceiling)) - origin, by)
        store_bytes(bins, if_zero(x, zero, if_positive(x, above + level, below - level)))
        tile += _LINE
        bins += _BIN_LINE


@_njit  # type: ignore[untyped-decorator]
def everything(
    codes: Any, scales: Any, rows: Any, start: Any, folds: int, count: Any, moments: Any, binning: Any, table: Any, work: Any
) -> None:
    """Add a chunk to all moments, and count its values by bin unless the table is empty: two looks at every tile.

    Parameters
    ----------
    codes : int8, uint16, int16 or float32 (rows, 16·k)
        See `tiles.fill`.
    scales : float32 (2, 16·k)
        Units and knees of int8 codes; else anything.
    rows, start
        Of `BlockGroups`.
    count : int64 (groups,)
        Tokens so far; added to.
    moments : tuple of (groups, 16·k)
        The fields of `Moments` after the count.
    binning
        Of `Binning.lanes`.
    table : uint16 (tags, 16·k, 256), or (0, …)
        Added to.
    work : float32 (WORK,)
    """
    mean, m2, m3, m4, absolute, active, lowest, highest = moments
    tile, stride = _aligned(work), _U64(codes.strides[0])
    bins = tile + _U64(TILE_ROWS) * _LINE
    counted = table.shape[0] > 0
    # A tag's rows stay in the second-level cache for all neurons, its counts of 16 neurons in the first for all folds.
    lanes = codes.shape[1] // LANES
    for tag_lane in range((start.shape[0] - 1) // folds * lanes):
        tag, lane = tag_lane // lanes, tag_lane % lanes * LANES
        unit, knee = _at(scales[0][lane:]), _at(scales[1][lane:])
        here = _at(codes) + _U64(lane * codes.itemsize)
        scale, ceiling = load32(_at(binning[0][lane:])), load32(_at(binning[2][lane:]))
        origin = load_int(_at(binning[1][lane:]))
        if counted:
            for line in range(LANES * BINS * 2 // 64):
                prefetch(_at(table[tag, lane:]) + _U64(line) * _LINE)
        for group in range(tag * folds, tag * folds + folds):
            i, n1 = start[group], count[group]
            while i < start[group + 1]:
                n2 = min(start[group + 1] - i, TILE_ROWS)
                for field in (mean, m2, m3, m4, absolute):  # wanted when the tile is done
                    prefetch(_at(field[group, lane:]))
                    prefetch(_at(field[group, lane:]) + _LINE)
                prefetch(_at(active[group, lane:]))
                prefetch(_at(lowest[group, lane:]))
                prefetch(_at(highest[group, lane:]))
                fill(codes, tile, here, stride, _at(rows[i:]), n2, unit, knee)
                sums = above = splat64(0.0)
                positive = splat_int(np.int32(0))
                least, most = splat32(np.float32(np.inf)), splat32(np.float32(-np.inf))
                at = tile
                for _ in range(n2):
                    x, wide = load32(at), load_widened(at)
                    sums, above = sums + wide, add_if_positive(above, wide, x)
                    positive = add_positive(positive, x)
                    least, most = smaller(x, least), larger(x, most)
                    at += _LINE
                if counted:
                    _write_bins(tile, n2, scale, origin, ceiling, bins)
                whole = splat64(np.float64(n2))
                m = sums / whole
                s2 = s3 = s4 = splat64(0.0)
                at, line = tile, bins
                counts = _at(table[tag, lane:]) if counted else _U64(0)
                for _ in range(n2):
                    if counted:  # whole numbers here and floats below keep different units of the processor busy
                        count_lanes(line, counts)
                    d = load_widened(at) - m
                    q = d * d
                    s2 = s2 + q
                    s3 = multiply_add(q, d, s3)
                    s4 = multiply_add(q, q, s4)
                    at += _LINE
                    line += _BIN_LINE
                merge(
                    n1, n2, _at(mean[group, lane:]), _at(m2[group, lane:]), _at(m3[group, lane:]),
                    _at(m4[group, lane:]), m, s2, s3, s4,
                )  # fmt: skip
                a, b = _at(absolute[group, lane:]), _at(active[group, lane:])
                low, high = _at(lowest[group, lane:]), _at(highest[group, lane:])
                size = (above + above - sums) / whole  # of |x|, which neither sum exceeds: no digits are lost
                store64(a, load64(a) + (size - load64(a)) * splat64(n2 / (n1 + n2)))
                store_int(b, load_int(b) + positive)
                store32(low, smaller(least, load32(low)))
                store32(high, larger(most, load32(high)))
                n1 += n2
                i += n2
    for group in range(start.shape[0] - 1):
        count[group] += start[group + 1] - start[group]


@_njit  # type: ignore[untyped-decorator]
def merge(n1: int, n2: int, a: Any, b: Any, c: Any, d: Any, mean: Any, s2: Any, s3: Any, s4: Any) -> None:
    """Merge moments of n2 values into those at four addresses, of n1: Pébay 2008, eqs. 2.1, 2.2 and 2.4 (k = 2, 3, 4)."""
    w1, w2 = n1 / (n1 + n2), n2 / (n1 + n2)
    both = n1 * w2
    v1, v2 = splat64(w1), splat64(w2)
    old, f, g, h = load64(a), load64(b), load64(c), load64(d)
    delta = mean - old
    square = delta * delta
    inner = square * splat64(both * (w1 * w1 - w1 * w2 + w2 * w2)) + splat64(6.0) * (v1 * v1 * s2 + v2 * v2 * f)
    store64(d, h + s4 + square * inner + splat64(4.0) * delta * (v1 * s3 - v2 * g))
    store64(c, g + s3 + delta * (square * splat64(both * (w1 - w2)) + splat64(3.0) * (v1 * s2 - v2 * f)))
    store64(b, f + s2 + square * splat64(both))
    store64(a, old + delta * v2)


@_njit  # type: ignore[untyped-decorator]
def pool(count: Any, folds: int, moments: Any, basic: bool, pooled: Any, work: Any) -> None:
    """Merge the folds of every tag: `moments` (tags × folds, 16·k) into `pooled` (tags, 16·k), which are of no tokens."""
    mean, m2, m3, m4, absolute, active, lowest, highest = moments
    for group in range(count.shape[0]):
        tag, n2 = group // folds, count[group]
        n1 = count[tag * folds : group].sum()
        if n2 == 0:
            continue
        share = splat64(n2 / (n1 + n2))
        for lane in range(0, mean.shape[1], LANES):
            one, two = _at(pooled[0][tag, lane:]), _at(pooled[1][tag, lane:])
            three = four = _at(work)
            s3 = s4 = splat64(0.0)
            if not basic:
                three, four = _at(pooled[2][tag, lane:]), _at(pooled[3][tag, lane:])
                s3, s4 = load64(_at(m3[group, lane:])), load64(_at(m4[group, lane:]))
                a, low, high = _at(pooled[4][tag, lane:]), _at(pooled[6][tag, lane:]), _at(pooled[7][tag, lane:])
                store64(a, load64(a) + (load64(_at(absolute[group, lane:])) - load64(a)) * share)
                store32(low, smaller(load32(_at(lowest[group, lane:])), load32(low)))
                store32(high, larger(load32(_at(highest[group, lane:])), load32(high)))
            merge(n1, n2, one, two, three, four, load64(_at(mean[group, lane:])), load64(_at(m2[group, lane:])), s3, s4)
            b = _at(pooled[5][tag, lane:])
            store_int(b, load_int(b) + load_int(_at(active[group, lane:])))


@_njit  # type: ignore[untyped-decorator]
def flush(table: Any, counts: Any) -> None:
    """Add uint16 counts to uint32 ones of the same shape, and start them anew."""
    source, target = table.ravel(), counts.ravel()
    for i in range(source.shape[0]):
        target[i] += source[i]
    source[:] = 0
