"""Compiled inner loops: moments merged, and exact ranks. All release the GIL.

A chunk is token-major (rows, c). Exact ranks need the opposite order, so keys are transposed on the way, in tiles.
"""

from typing import Any

import numba
import numpy as np

_njit = numba.njit(nogil=True, cache=True)
KEYS = 1 << 16
_TILE = 32  # rows transposed at once: 32 uint16 keys fill a cache line
_SKIP = 8  # keys skipped at once where a table is empty: one vector register


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
