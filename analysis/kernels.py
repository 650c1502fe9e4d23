"""Compiled inner loops of the analysis, straight on stored codes. All release the GIL.

A chunk is token-major (rows, c): the moment kernels run along its contiguous neurons, so that LLVM vectorises them and a
tag's accumulators stay in L1. Counting needs the opposite order, so keys are transposed on the way, in tiles.
"""

from typing import Any

import numba
import numpy as np

from neuronlake.store.floats import bf16bits_to_f32, f16bits_to_f32

_njit = numba.njit(nogil=True, cache=True)
KEYS = 1 << 16
_TILE = 32  # rows transposed at once: 32 uint16 keys fill a cache line
_SKIP = 8  # keys skipped at once where a table is empty: one vector register


# One function per encoding, not a factory: numba cannot cache closures on disk, and compiling costs a second.
@_njit  # type: ignore[untyped-decorator]
def moments_f16(codes: Any, labels: Any, width: int, shift: Any, total: Any, square: Any, active: Any) -> None:
    """Accumulate Σ(x − shift), Σ(x − shift)² and count(x > 0) per label; see `moments.chunk_moments`."""
    for i in range(codes.shape[0]):
        tag = labels[i]
        if tag >= 0:
            for j in range(width):
                value = f16bits_to_f32(codes[i, j])
                delta = np.float64(value) - shift[tag, j]
                total[tag, j] += delta
                square[tag, j] += delta * delta
                active[tag, j] += np.int32(value > np.float32(0))


@_njit  # type: ignore[untyped-decorator]
def moments_bf16(codes: Any, labels: Any, width: int, shift: Any, total: Any, square: Any, active: Any) -> None:
    """Accumulate as `moments_f16` does, from bfloat16 bit patterns."""
    for i in range(codes.shape[0]):
        tag = labels[i]
        if tag >= 0:
            for j in range(width):
                value = bf16bits_to_f32(codes[i, j])
                delta = np.float64(value) - shift[tag, j]
                total[tag, j] += delta
                square[tag, j] += delta * delta
                active[tag, j] += np.int32(value > np.float32(0))


@_njit  # type: ignore[untyped-decorator]
def moments_f32(codes: Any, labels: Any, width: int, shift: Any, total: Any, square: Any, active: Any) -> None:
    """Accumulate as `moments_f16` does, from float32 values."""
    for i in range(codes.shape[0]):
        tag = labels[i]
        if tag >= 0:
            for j in range(width):
                value = codes[i, j]
                delta = np.float64(value) - shift[tag, j]
                total[tag, j] += delta
                square[tag, j] += delta * delta
                active[tag, j] += np.int32(value > np.float32(0))


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
