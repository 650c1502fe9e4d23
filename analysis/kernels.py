"""Compiled inner loops of the analysis, straight on stored codes. All release the GIL.

A chunk is token-major (rows, c): the kernels of moments and histograms run along its contiguous neurons, so that LLVM
vectorises them and a group's accumulators stay in L1. Exact ranks need the opposite order, so keys are transposed on the
way, in tiles.
"""

from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import overload

from neuronlake.store.floats import bf16bits_to_f32, f16bits_to_f32, f32_bits

_njit = numba.njit(nogil=True, cache=True)
KEYS = 1 << 16
_TILE = 32  # rows transposed at once: 32 uint16 keys fill a cache line
_SKIP = 8  # keys skipped at once where a table is empty: one vector register
_POOR = 30.0  # sums about a shift five deviations away keep all but two of sixteen digits
_FAR = 1e3
_SHIFT_ROWS = 64
BINS = 256
ZERO_BIN = 128
BIN_SHIFT = 19  # of 23 bits of mantissa: sixteen bins from one power of two to the next
_BIN_ROWS = 16
_TABLE_ROWS = 65535  # more might overflow uint16
_FEW_ROWS = 48


def as_float32_value(bits: Any) -> Any:
    """Value of a stored pattern: uint16 is float16, int16 is bfloat16, float32 itself."""
    raise NotImplementedError("for compiled code only")


@overload(as_float32_value, inline="always")
def _typed_as_float32(bits):  # type: ignore[no-untyped-def] # numba compares signatures, annotations included
    if bits == types.uint16:
        return lambda bits: f16bits_to_f32(bits)
    if bits == types.int16:
        return lambda bits: bf16bits_to_f32(np.uint16(bits))
    return lambda bits: bits


def _is_positive(bits: Any) -> Any:
    """Whether a stored pattern's value is above zero."""
    raise NotImplementedError("for compiled code only")


@overload(_is_positive, inline="always")
def _typed_is_positive(bits):  # type: ignore[no-untyped-def]
    if bits == types.float32:
        return lambda bits: np.int32(bits > 0)
    return lambda bits: np.int32(np.int16(bits) > np.int16(0))  # sign and magnitude: a positive integer


@_njit  # type: ignore[untyped-decorator]
def add_basic(
    codes: Any, rows: Any, start: Any, width: int, first: int, count: Any, shift: Any, mean: Any, m2: Any, active: Any
) -> None:
    """Add the rows of a chunk to the moments of every group, in one pass about `shift`; see `moments.add_chunk_basic`.

    Where the shift lies so far from a group's values that the difference of sums would cancel, the group is read again.
    """
    a, b, c = np.empty(width), np.empty(width), np.empty(width, dtype=np.int32)
    if not count.any() and rows.shape[0]:
        shift[:] = 0
        some = min(rows.shape[0], _SHIFT_ROWS)
        for i in range(some):
            row = codes[rows[i * rows.shape[0] // some]]
            for j in range(width):
                shift[j] += np.float64(as_float32_value(row[j]))
        shift /= some
    for group in range(start.shape[0] - 1):
        i, end = start[group], start[group + 1]
        n1, n2 = count[group], end - i
        if n2 == 0:
            continue
        a[:] = 0
        b[:] = 0
        c[:] = 0
        # Four rows at once: accumulators that are loaded and stored for every row take two and a half times as long.
        while i + 4 <= end:
            r0, r1, r2, r3 = codes[rows[i]], codes[rows[i + 1]], codes[rows[i + 2]], codes[rows[i + 3]]
            for j in range(width):
                d0 = np.float64(as_float32_value(r0[j])) - shift[j]
                d1 = np.float64(as_float32_value(r1[j])) - shift[j]
                d2 = np.float64(as_float32_value(r2[j])) - shift[j]
                d3 = np.float64(as_float32_value(r3[j])) - shift[j]
                a[j] += (d0 + d1) + (d2 + d3)
                b[j] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
                c[j] += (_is_positive(r0[j]) + _is_positive(r1[j])) + (_is_positive(r2[j]) + _is_positive(r3[j]))
            i += 4
        while i < end:
            row = codes[rows[i]]
            for j in range(width):
                d = np.float64(as_float32_value(row[j])) - shift[j]
                a[j] += d
                b[j] += d * d
                c[j] += _is_positive(row[j])
            i += 1
        poor = False
        for j in range(width):
            offset = a[j] / n2
            lost = n2 * offset * offset
            a[j] = shift[j] + offset
            b[j] -= lost
            poor |= lost > _POOR * b[j] or abs(a[j]) * _FAR < abs(shift[j])
        if poor:
            _read_again(codes, rows, start[group], end, width, shift, a, b)
        share = n2 / (n1 + n2)
        both = n1 * share
        u, v, w = mean[group], m2[group], active[group]
        for j in range(width):
            delta = a[j] - u[first + j]
            v[first + j] += b[j] + delta * delta * both
            u[first + j] += delta * share
            w[first + j] += c[j]
        count[group] = n1 + n2


@_njit  # type: ignore[untyped-decorator]
def _read_again(codes: Any, rows: Any, start: int, end: int, width: int, shift: Any, a: Any, b: Any) -> None:
    count = end - start
    for j in range(width):
        lost = count * (a[j] - shift[j]) ** 2
        if lost > 0.5 * _POOR * b[j] or abs(a[j]) * 0.5 * _FAR < abs(shift[j]):
            total = 0.0
            for k in range(start, end):
                total += np.float64(as_float32_value(codes[rows[k], j]))
            a[j] = total / count
            b[j] = 0.0
            for k in range(start, end):
                b[j] += (np.float64(as_float32_value(codes[rows[k], j])) - a[j]) ** 2


@_njit  # type: ignore[untyped-decorator]
def add_moments(
    codes: Any, rows: Any, start: Any, width: int, first: int, count: Any, mean: Any, m2: Any, m3: Any, m4: Any,
    absolute: Any, active: Any, lowest: Any, highest: Any,
) -> None:  # fmt: skip
    """Add the rows of a chunk to the moments of every group, which is read twice while it is in L1."""
    a, b, c = np.empty(width), np.empty(width), np.empty(width, dtype=np.int32)
    s2, s3, s4 = np.empty(width), np.empty(width), np.empty(width)
    low, high = np.empty(width, dtype=np.float32), np.empty(width, dtype=np.float32)
    for group in range(start.shape[0] - 1):
        i, end = start[group], start[group + 1]
        n1, n2 = count[group], end - i
        if n2 == 0:
            continue
        a[:] = 0
        b[:] = 0
        c[:] = 0
        low[:] = np.inf
        high[:] = -np.inf
        while i + 4 <= end:
            r0, r1, r2, r3 = codes[rows[i]], codes[rows[i + 1]], codes[rows[i + 2]], codes[rows[i + 3]]
            for j in range(width):
                x0, x1, x2, x3 = (
                    as_float32_value(r0[j]),
                    as_float32_value(r1[j]),
                    as_float32_value(r2[j]),
                    as_float32_value(r3[j]),
                )
                y0, y1, y2, y3 = np.float64(x0), np.float64(x1), np.float64(x2), np.float64(x3)
                a[j] += (y0 + y1) + (y2 + y3)
                b[j] += (abs(y0) + abs(y1)) + (abs(y2) + abs(y3))
                c[j] += (_is_positive(r0[j]) + _is_positive(r1[j])) + (_is_positive(r2[j]) + _is_positive(r3[j]))
                # not min() and max(), whose care about NaN keeps LLVM from one instruction
                m0 = x0 if x0 < x1 else x1
                m1 = x2 if x2 < x3 else x3
                m = m0 if m0 < m1 else m1
                low[j] = m if m < low[j] else low[j]
                m0 = x0 if x0 > x1 else x1
                m1 = x2 if x2 > x3 else x3
                m = m0 if m0 > m1 else m1
                high[j] = m if m > high[j] else high[j]
            i += 4
        while i < end:
            row = codes[rows[i]]
            for j in range(width):
                x = as_float32_value(row[j])
                a[j] += np.float64(x)
                b[j] += abs(np.float64(x))
                c[j] += _is_positive(row[j])
                low[j] = x if x < low[j] else low[j]
                high[j] = x if x > high[j] else high[j]
            i += 1
        for j in range(width):
            a[j] /= n2  # now the mean
            b[j] /= n2
        s2[:] = 0
        s3[:] = 0
        s4[:] = 0
        i = start[group]
        while i + 4 <= end:
            r0, r1, r2, r3 = codes[rows[i]], codes[rows[i + 1]], codes[rows[i + 2]], codes[rows[i + 3]]
            for j in range(width):
                d0 = np.float64(as_float32_value(r0[j])) - a[j]
                d1 = np.float64(as_float32_value(r1[j])) - a[j]
                d2 = np.float64(as_float32_value(r2[j])) - a[j]
                d3 = np.float64(as_float32_value(r3[j])) - a[j]
                q0, q1, q2, q3 = d0 * d0, d1 * d1, d2 * d2, d3 * d3
                s2[j] += (q0 + q1) + (q2 + q3)
                s3[j] += (q0 * d0 + q1 * d1) + (q2 * d2 + q3 * d3)
                s4[j] += (q0 * q0 + q1 * q1) + (q2 * q2 + q3 * q3)
            i += 4
        while i < end:
            row = codes[rows[i]]
            for j in range(width):
                d0 = np.float64(as_float32_value(row[j])) - a[j]
                q0 = d0 * d0
                s2[j] += q0
                s3[j] += q0 * d0
                s4[j] += q0 * q0
            i += 1
        last = first + width
        u, v, w, lower, upper = (
            absolute[group, first:last], active[group, first:last], mean[group, first:last],
            lowest[group, first:last], highest[group, first:last],
        )  # fmt: skip
        _merge(n1, n2, w, m2[group, first:last], m3[group, first:last], m4[group, first:last], a, s2, s3, s4)
        w1, w2 = n1 / (n1 + n2), n2 / (n1 + n2)
        for j in range(width):
            u[j] = u[j] * w1 + b[j] * w2
            v[j] += c[j]
            lower[j] = low[j] if low[j] < lower[j] else lower[j]
            upper[j] = high[j] if high[j] > upper[j] else upper[j]
        count[group] = n1 + n2


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _merge(n1: Any, n2: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> None:
    whole = max(n1 + n2, 1)
    w1, w2 = n1 / whole, n2 / whole
    both = n1 * w2
    for j in range(a.shape[0]):
        delta = e[j] - a[j]
        square = delta * delta
        d[j] += (
            h[j]
            + square * (square * (both * (w1 * w1 - w1 * w2 + w2 * w2)) + 6 * (w1 * w1 * f[j] + w2 * w2 * b[j]))
            + 4 * delta * (w1 * g[j] - w2 * c[j])
        )
        c[j] += g[j] + delta * (square * (both * (w1 - w2)) + 3 * (w1 * f[j] - w2 * b[j]))
        b[j] += f[j] + square * both
        a[j] += delta * w2


@_njit  # type: ignore[untyped-decorator]
def merge_moments(
    n1: Any, n2: Any, mean1: Any, mean2: Any, m2_1: Any, m2_2: Any, m3_1: Any, m3_2: Any, m4_1: Any, m4_2: Any
) -> None:
    """Merge the second moments into the first, in place: Pébay 2008, eqs. 2.1, 2.2 and 2.4; counts (groups, 1)."""
    for group in range(n1.shape[0]):
        _merge(
            n1[group, 0], n2[group, 0], mean1[group], m2_1[group], m3_1[group], m4_1[group],
            mean2[group], m2_2[group], m3_2[group], m4_2[group],
        )  # fmt: skip


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _bins(row: Any, scale: Any, origin: Any, ceiling: Any, width: int, out: Any) -> None:
    for j in range(width):
        x = as_float32_value(row[j])
        shifted = abs(x) + scale[j]
        shifted = shifted if shifted < ceiling[j] else ceiling[j]
        level = np.uint8(np.uint8((f32_bits(shifted) - origin[j]) >> np.uint32(BIN_SHIFT)) + np.uint8(1))
        level = np.uint8(0) if x == 0 else level
        out[j] = np.uint8(np.uint8(ZERO_BIN) + level) if x > 0 else np.uint8(np.uint8(ZERO_BIN) - level)


@_njit  # type: ignore[untyped-decorator]
def add_to_histogram(
    codes: Any, rows: Any, start: Any, width: int, first: int, scale: Any, origin: Any, ceiling: Any, histogram: Any
) -> None:
    """Count the rows of each tag by bin: histogram uint32 (tags, neurons, 256); see `histogram.Binning`."""
    table = np.empty((width, BINS), dtype=np.uint16)  # 32 KiB for 64 neurons: fits the first-level cache, uint32 would not
    bins = np.empty((_BIN_ROWS, width), dtype=np.uint8)
    for tag in range(start.shape[0] - 1):
        i, end = start[tag], start[tag + 1]
        counts = histogram[tag]
        while i < end:
            stop = min(end, i + _TABLE_ROWS)
            few = stop - i < _FEW_ROWS  # adding the table would cost more than it saves
            if not few:
                table[:] = 0
            while i < stop:
                some = min(stop - i, _BIN_ROWS)
                for k in range(some):
                    _bins(codes[rows[i + k]], scale, origin, ceiling, width, bins[k])
                if few:
                    for k in range(some):
                        for j in range(width):
                            counts[first + j, bins[k, j]] += np.uint32(1)
                else:
                    for k in range(some):
                        line = bins[k]
                        for j in range(width):
                            table[j, line[j]] += np.uint16(1)
                i += some
            if not few:
                for j in range(width):
                    line, out = table[j], counts[first + j]
                    for k in range(BINS):
                        out[k] += line[k]


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _order_key(bits: Any) -> Any:
    # Sign and magnitude → offset order: negative patterns are inverted, the others get the top bit.
    negative = np.uint16(0) - (bits >> np.uint16(15))
    key = np.uint16(bits ^ np.uint16(negative | np.uint16(0x8000)))
    return np.uint16(0x8000) if bits == np.uint16(0x8000) else key  # −0 equals +0


@_njit  # type: ignore[untyped-decorator]
def order_keys_16(codes: Any, rows: Any, width: int, keys: Any, offset: int) -> None:
    """Write the order-preserving keys of ``codes[rows]`` (16-bit patterns) to ``keys[:width, offset:]``, transposed."""
    tile = np.empty((_TILE, width), dtype=np.uint16)
    full = rows.shape[0] // _TILE * _TILE
    for first in range(0, full, _TILE):
        for i in range(_TILE):
            row = rows[first + i]
            for j in range(width):
                tile[i, j] = _order_key(codes[row, j])
        for j in range(width):
            line = keys[j, offset + first : offset + first + _TILE]
            for i in range(_TILE):  # a constant length: twice as fast as one known at run time
                line[i] = tile[i, j]
    for i in range(full, rows.shape[0]):
        for j in range(width):
            keys[j, offset + i] = _order_key(codes[rows[i], j])


@_njit  # type: ignore[untyped-decorator]
def order_keys_32(codes: Any, rows: Any, width: int, keys: Any, offset: int) -> None:
    """Write keys as `order_keys_16` does, of the upper halves of float32 patterns (uint32)."""
    tile = np.empty((_TILE, width), dtype=np.uint16)
    full = rows.shape[0] // _TILE * _TILE
    for first in range(0, full, _TILE):
        for i in range(_TILE):
            row = rows[first + i]
            for j in range(width):
                tile[i, j] = _order_key(np.uint16(codes[row, j] >> np.uint32(16)))
        for j in range(width):
            line = keys[j, offset + first : offset + first + _TILE]
            for i in range(_TILE):
                line[i] = tile[i, j]
    for i in range(full, rows.shape[0]):
        for j in range(width):
            keys[j, offset + i] = _order_key(np.uint16(codes[rows[i], j] >> np.uint32(16)))


@_njit  # type: ignore[untyped-decorator]
def count_keys(keys: Any, table: Any) -> None:
    """Add the keys of one neuron, uint16 (rows,), to its counts, uint32 (65536,)."""
    for i in range(keys.shape[0]):
        table[keys[i]] += np.uint32(1)


@_njit  # type: ignore[untyped-decorator]
def counts_to_midranks(table: Any) -> None:
    """Replace counts by doubled midranks, 2·(rows below) + (rows here) + 1; entries without rows may keep anything."""
    below = np.uint32(0)
    for first in range(0, KEYS, _SKIP):
        some = np.uint32(0)
        for key in range(first, first + _SKIP):
            some |= table[key]
        if some != 0:
            for key in range(first, first + _SKIP):
                here = table[key]
                table[key] = np.uint32(2) * below + here + np.uint32(1)
                below += here


@_njit  # type: ignore[untyped-decorator]
def add_entries(keys: Any, labels: Any, table: Any, sums: Any) -> None:
    """Add ``table[keys]`` to ``sums[labels]``, int64 (tags,): exact."""
    # Four accumulators: one would wait for its own store whenever a tag follows itself.
    parts = np.zeros((4, sums.shape[0]), dtype=np.int64)
    full = keys.shape[0] // 4 * 4
    for i in range(0, full, 4):
        parts[0, labels[i]] += np.int64(table[keys[i]])
        parts[1, labels[i + 1]] += np.int64(table[keys[i + 1]])
        parts[2, labels[i + 2]] += np.int64(table[keys[i + 2]])
        parts[3, labels[i + 3]] += np.int64(table[keys[i + 3]])
    for i in range(full, keys.shape[0]):
        parts[0, labels[i]] += np.int64(table[keys[i]])
    for part in range(4):
        for tag in range(sums.shape[0]):
            sums[tag] += parts[part, tag]


@_njit  # type: ignore[untyped-decorator]
def count_segment(keys: Any, tables: Any) -> None:
    """Count every neuron of a segment: keys uint16 (c, rows), tables uint32 (c, 65536)."""
    for j in range(keys.shape[0]):
        count_keys(keys[j], tables[j])


@_njit  # type: ignore[untyped-decorator]
def midranks_of_tables(tables: Any) -> None:
    """Turn every neuron's counts into doubled midranks, in place."""
    for j in range(tables.shape[0]):
        counts_to_midranks(tables[j])


@_njit  # type: ignore[untyped-decorator]
def add_segment(keys: Any, labels: Any, tables: Any, sums: Any) -> None:
    """Add every row's table entry to its tag's sum: sums int64 (c, tags)."""
    for j in range(keys.shape[0]):
        add_entries(keys[j], labels, tables[j], sums[j])


@_njit  # type: ignore[untyped-decorator]
def rank_one_segment(keys: Any, labels: Any, with_ties: bool, ranks: Any, ties: Any) -> None:
    """Rank sums (and tie sums) of rows that are all at hand: one table, which stays in the cache, serves every neuron."""
    table = np.empty(KEYS, dtype=np.uint32)
    for j in range(keys.shape[0]):
        table[:] = 0
        count_keys(keys[j], table)
        if with_ties:
            add_entries(keys[j], labels, table, ties[j])
        counts_to_midranks(table)
        add_entries(keys[j], labels, table, ranks[j])
