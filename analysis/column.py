"""Statistics of some columns of the lake (a column is one inner chunk's neurons of one layer), chunk after chunk.

Their accumulators' size does not depend on the number of tokens.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import local
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis import group_kernels
from neuronlake.analysis.groups import BlockGroups
from neuronlake.analysis.histogram import BINS, Binning
from neuronlake.analysis.moments import BASIC_FIELDS, DTYPES, EMPTY, FIELDS, Moments, combine_moments, no_moments
from neuronlake.analysis.vectors import LANES

_local = local()
_CACHE_LINE = 64  # bytes
_TABLE_TOKENS = 65535  # more might overflow uint16
_NO_SCALES = np.zeros((2, LANES), dtype=np.float32)
_ANY_BINNING = Binning(scale=np.ones(0, dtype=np.float32))
_NO_TABLE = np.zeros((0, LANES, BINS), dtype=np.uint16)


@dataclass(frozen=True, kw_only=True)
class Partials:
    """Everything that later blocks are added to, of some neurons of one layer."""

    pooled: Moments
    """Per tag."""
    by_fold: Moments
    """Per group (tag, then fold); of its fields only some are kept, see `gathered.moment_fields`."""
    exponent: NDArray[np.int16] | None
    """Scales of the histogram's bins, (neurons,)."""
    histogram: NDArray[np.uint32] | None
    """(tags, neurons, 256)."""


class Accumulator:
    """Adds up the chunks of some neighbouring columns, in any order; different columns from different threads.

    Parameters
    ----------
    tags, folds
        What the groups of the blocks are made of.
    neurons
        Of all columns together.
    chunk_neurons
        Of a column; the last may have fewer.
    values
        Format of the values: ``float16``, ``bfloat16`` or ``float32``.
    histogram
        Also count values by bin.
    basic
        Of the moments only count, mean, m2 and active.
    earlier
        Go on from here.
    exponent
        Scales of the histogram's bins, int16 (neurons,); by default those of `earlier`, or chosen by the first chunk.
    memory
        Where arrays are left for the next accumulator and taken from, whatever they hold: fresh memory is slow. What
        `partials` returned is then overwritten.
    """

    def __init__(
        self,
        *,
        tags: int,
        folds: int,
        neurons: int,
        chunk_neurons: int,
        values: str,
        histogram: bool,
        basic: bool = False,
        earlier: Partials | None = None,
        exponent: NDArray[np.int16] | None = None,
        memory: dict[str, NDArray[Any]] | None = None,
    ):
        self._neurons, self._width, self._values, self._tags, self._folds = neurons, chunk_neurons, values, tags, folds
        self._lanes = -(-chunk_neurons // LANES) * LANES  # of a column: the kernels do so many neurons at once
        self._memory = {} if memory is None else memory
        columns, groups = -(-neurons // chunk_neurons), tags * folds
        self._count = np.zeros((columns, groups), dtype=np.int64)
        self._fields = BASIC_FIELDS if basic else FIELDS
        self._moments = self._no_moments("group", groups)
        self._of_column = [tuple(array[column] for array in self._moments) for column in range(columns)]
        self._shift = np.empty((columns, self._lanes)) if basic else None
        self._earlier = earlier
        self._counted = histogram
        self._counts: list[NDArray[np.uint32] | None] = [None] * columns  # (tags, lanes, 256) each
        self._tables: dict[int, NDArray[np.uint16]] = {}  # counts on top of those
        self._pending = [0] * columns  # most tokens of a tag in the table
        self._binning: list[Binning | None] = [None] * columns
        known = earlier if histogram else None
        if known is not None and known.histogram is not None and known.exponent is not None:
            exponent = known.exponent
            for column, first in enumerate(range(0, neurons, chunk_neurons)):
                part = known.histogram[:, first : first + chunk_neurons]
                self._whole_counts(column)[:, : part.shape[1]] = part
        if histogram and exponent is not None:
            firsts = range(0, neurons, chunk_neurons)
            self._binning = [Binning.of_exponents(exponent[first : first + chunk_neurons]) for first in firsts]

    def add(
        self,
        column: int,
        codes: NDArray[Any],
        groups: BlockGroups,
        *,
        scales: NDArray[np.float32] | None = None,
        more: bool = False,
    ) -> None:
        """Add the labelled rows of one chunk.

        Parameters
        ----------
        codes : int8, uint16 or float32 (rows, c), C order
            Quantised codes, or else bit patterns of the values.
        scales : float32 (c, 2)
            Unit and knee of codes, None for patterns.
        more
            More of this column will come from this thread, and then `close`: until then its counts stay in a small table.
        """
        if codes.shape[1] != self._lanes:
            codes = np.pad(codes, [(0, 0), (0, self._lanes - codes.shape[1])])
        units = _NO_SCALES
        if scales is not None:
            units = np.zeros((2, self._lanes), dtype=np.float32)
            units[:, : len(scales)] = scales.T
        elif self._values == "bfloat16":
            codes = codes.view(np.int16)  # so the kernels know it
        if self._counted and self._binning[column] is None:
            # Measured on real activations, the AUROC's bound is smallest with a scale of a sixth to a twelfth of the median;
            # the mean would follow a single massive activation.
            chosen = np.empty(self._lanes, dtype=np.int32)
            group_kernels.scale_exponents(codes, units, groups.sample, chosen, _work())
            width = min(self._width, self._neurons - column * self._width)
            self._binning[column] = Binning.of_exponents(chosen[:width].astype(np.int16))
        count, moments = self._count[column], self._of_column[column]
        if self._shift is not None:
            basics, shift = tuple(moments[FIELDS.index(name)] for name in BASIC_FIELDS), self._shift[column]
            group_kernels.basic(codes, units, groups.rows, groups.start, count, groups.sample, shift, basics, _work())
            return
        binning, table = self._binning[column], _NO_TABLE
        edges = (binning or _ANY_BINNING).lanes(self._lanes)
        for start, most in _windows(groups):
            if binning is not None:
                table = self._table(column, most)
            group_kernels.everything(codes, units, groups.rows, start, self._folds, count, moments, edges, table, _work())
        if not more:
            self.close(column)

    def counts(self, column: int) -> NDArray[np.uint16] | NDArray[np.uint32]:
        """Return the histogram of a column that is not closed: (tags, neurons, 256), C order."""
        width = min(self._width, self._neurons - column * self._width)
        if self._counts[column] is None and column in self._tables:
            return np.ascontiguousarray(self._tables[column][:, :width])
        self.close(column)
        return np.ascontiguousarray(self._whole_counts(column)[:, :width])

    def close(self, column: int, *, forget: bool = False) -> None:
        """Add the counts of a column that stayed in a table; or forget them, if nobody will ask for the histograms."""
        table = self._tables.pop(column, None)
        if table is None:
            return
        if forget:
            table[:] = 0
        else:
            group_kernels.flush(table, self._whole_counts(column))
        self._pending[column] = 0
        _free_tables(self._tags, self._lanes).append(table)

    def partials(self, *, histogram: bool = True) -> Partials:
        """Return what was added up: arrays that a later `add` would change. Without the histogram, if asked to."""
        if np.any(self._count != self._count[0]):
            raise AssertionError("some columns were given blocks that others were not")
        fields = self._no_moments("tag", self._tags)
        for column, moments in enumerate(self._of_column):
            tags = tuple(array[column] for array in fields)
            group_kernels.pool(self._count[0], self._folds, moments, self._shift is not None, tags, _work())
        by_fold = self._as_moments("group", self._moments, self._count[0])
        pooled = self._as_moments("tag", fields, self._count[0].reshape(self._tags, -1).sum(axis=1))
        if self._earlier is not None:
            pooled = combine_moments(self._earlier.pooled, pooled)
            by_fold = combine_moments(self._earlier.by_fold, by_fold)
        scales = [binning for binning in self._binning if binning is not None]
        complete = self._counted and len(scales) == len(self._binning)
        counts = None
        if histogram and self._counted:
            counts = self._side_by_side("counts of all", [self._whole_counts(c) for c in range(len(self._counts))])
        return Partials(
            pooled=pooled,
            by_fold=by_fold,
            exponent=np.concatenate([binning.exponent for binning in scales]) if complete else None,
            histogram=counts,
        )

    def _table(self, column: int, tokens: int) -> NDArray[np.uint16]:
        """Table of small counters for at most so many more tokens of a tag."""
        if self._pending[column] + tokens > _TABLE_TOKENS:
            self.close(column)
        if column not in self._tables:
            free = _free_tables(self._tags, self._lanes)
            self._tables[column] = free.pop() if free else _zero_table(self._tags, self._lanes)
        self._pending[column] += tokens
        return self._tables[column]

    def _whole_counts(self, column: int) -> NDArray[np.uint32]:
        """Counts of a column but for those in its table."""
        counts = self._counts[column]
        if counts is None:
            counts = self._array(f"counts {column}", (self._tags, self._lanes, BINS), np.uint32)
            counts[:] = 0
            self._counts[column] = counts
        return counts

    def _array(self, name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """An array whose content is left to the caller."""
        size = math.prod(shape)
        if name not in self._memory or self._memory[name].size < size:
            self._memory[name] = _aligned(size, np.dtype(dtype))
        return self._memory[name][:size].reshape(shape)

    def _no_moments(self, name: str, groups: int) -> tuple[NDArray[Any], ...]:
        """Fields of `Moments` of no tokens, (columns, groups, lanes); what is not gathered has no groups.

        A column's lie together: rows of all columns, 4 KiB apart, would share few sets of the caches.
        """
        found = []
        for field, dtype in DTYPES.items():
            shape = len(self._count), groups if field in self._fields else 0, self._lanes
            array = self._array(f"{name} {field}", shape, dtype)
            array[:] = EMPTY.get(field, 0)
            found.append(array)
        return tuple(found)

    def _as_moments(self, name: str, fields: tuple[NDArray[Any], ...], count: NDArray[np.int64]) -> Moments:
        found: dict[str, NDArray[Any]] = {}
        for field, array in zip(FIELDS, fields, strict=True):
            if field in self._fields:
                found[field] = self._side_by_side(f"{name} {field} of all", array)
            else:
                found[field] = np.broadcast_to(array.dtype.type(0), (len(count), self._neurons))
        return Moments(count=count[:, None], **found)

    def _side_by_side(self, name: str, columns: Sequence[NDArray[Any]] | NDArray[Any]) -> NDArray[Any]:
        """(columns, groups, lanes, …) -> (groups, neurons, …)."""
        groups, _, *rest = columns[0].shape
        whole = self._array(name, (groups, self._neurons, *rest), columns[0].dtype)
        for column, first in enumerate(range(0, self._neurons, self._width)):
            part = whole[:, first : first + self._width]
            part[:] = columns[column][:, : part.shape[1]]
        return whole


def _windows(groups: BlockGroups) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Divide groups so that no tag has more tokens at once than a small counter holds: `BlockGroups.start`, and how many."""
    if groups.most <= _TABLE_TOKENS:
        yield groups.start, groups.most
        return
    for first in range(0, len(groups.rows), _TABLE_TOKENS):
        yield np.clip(groups.start, first, first + _TABLE_TOKENS), _TABLE_TOKENS


def _work() -> NDArray[np.float32]:
    """Return this thread's scratch memory for the kernels."""
    if not hasattr(_local, "work"):
        _local.work = np.empty(group_kernels.WORK, dtype=np.float32)
    return _local.work  # type: ignore[no-any-return]


def _zero_table(tags: int, lanes: int) -> NDArray[np.uint16]:
    table = _aligned(tags * lanes * BINS, np.dtype(np.uint16)).reshape(tags, lanes, BINS)
    table[:] = 0
    return table


def _aligned(size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Uninitialised memory that begins with a cache line, so that a vector never lies in two."""
    raw = np.empty(size * dtype.itemsize + _CACHE_LINE, dtype=np.uint8)
    start = -raw.ctypes.data % _CACHE_LINE
    return raw[start : start + size * dtype.itemsize].view(dtype)


def _free_tables(tags: int, lanes: int) -> list[NDArray[np.uint16]]:
    """Tables of zeros that this thread may take, and gives back."""
    known: dict[tuple[int, int], list[NDArray[np.uint16]]] = _local.__dict__.setdefault("tables", {})
    return known.setdefault((tags, lanes), [])


def combine_partials(first: Partials, second: Partials) -> Partials:
    """Partials of two disjoint sets of blocks together; their histograms have the same bins."""
    exponents = [part.exponent for part in (first, second) if part.exponent is not None]
    if len(exponents) > 1 and not np.array_equal(exponents[0], exponents[1]):
        raise AssertionError("histograms with different bins cannot be added")
    counted = first.histogram is not None and second.histogram is not None
    return Partials(
        pooled=combine_moments(first.pooled, second.pooled),
        by_fold=combine_moments(first.by_fold, second.by_fold),
        exponent=exponents[0] if exponents else None,
        histogram=there(first.histogram) + there(second.histogram) if counted else None,
    )


def retag(part: Partials, places: NDArray[np.int64], folds: int) -> Partials:
    """Partials for another set of tags: tag i comes from tag ``places[i]``, or is new where that is −1.

    Labels of later blocks may bring tags that earlier blocks did not have.
    """
    new = places < 0
    tags = np.where(new, 0, places)
    groups = (tags[:, None] * folds + np.arange(folds)).ravel()

    def take(moments: Moments, rows: NDArray[np.int64], fresh: NDArray[np.bool_]) -> Moments:
        neurons = moments.mean.shape[1]
        empty = no_moments(len(rows), neurons)
        return Moments(
            count=np.where(fresh[:, None], empty.count, moments.count[rows]),
            **{name: np.where(fresh[:, None], getattr(empty, name), getattr(moments, name)[rows]) for name in FIELDS},
        )

    histogram = part.histogram
    if histogram is not None:
        histogram = np.where(new[:, None, None], np.uint32(0), histogram[tags])
    return Partials(
        pooled=take(part.pooled, tags, new),
        by_fold=take(part.by_fold, groups, np.repeat(new, folds)),
        exponent=part.exponent,
        histogram=histogram,
    )


def there(array: Any) -> Any:
    """Return an array that must be there."""
    if array is None:
        raise AssertionError("all parts have a histogram, or none")
    return array
