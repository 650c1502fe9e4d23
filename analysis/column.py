"""Statistics of some columns of the lake (a column is one inner chunk's neurons of one layer), chunk after chunk.

Their accumulators' size does not depend on the number of tokens.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.groups import BlockGroups
from neuronlake.analysis.histogram import Binning, empty_histogram
from neuronlake.analysis.moments import (
    FIELDS,
    Moments,
    add_chunk,
    add_chunk_basic,
    combine_moments,
    merge_folds,
    no_moments,
)


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
    counts
        Memory for the histogram, uint32 (tags, neurons, 256), whatever it holds: fresh memory is slow.
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
        counts: NDArray[np.uint32] | None = None,
    ):
        self._neurons, self._width, self._values, self._folds = neurons, chunk_neurons, values, folds
        columns, groups = -(-neurons // chunk_neurons), tags * folds
        self._count = np.zeros((columns, groups), dtype=np.int64)
        self._moments = no_moments(groups, neurons)
        self._shift = np.empty((columns, chunk_neurons)) if basic else None
        self._earlier = earlier
        self._histogram: NDArray[np.uint32] | None = None
        self._binning: list[Binning | None] = [None] * columns
        if histogram:
            self._histogram = empty_histogram(tags, neurons) if counts is None else counts
            self._histogram[:] = 0
            if earlier is not None and earlier.histogram is not None and earlier.exponent is not None:
                self._histogram[:] = earlier.histogram
                exponent = earlier.exponent
            if exponent is not None:
                firsts = range(0, neurons, chunk_neurons)
                self._binning = [Binning.of_exponents(exponent[first : first + chunk_neurons]) for first in firsts]

    def add(self, column: int, codes: NDArray[Any], groups: BlockGroups) -> None:
        """Add the labelled rows of one chunk: uint16 patterns or float32 (rows, c), C order."""
        first = column * self._width
        width = min(self._width, self._neurons - first)
        where: dict[str, Any] = {"first": first, "width": width, "values": self._values}
        if self._shift is not None:
            add_chunk_basic(self._moments, self._count[column], self._shift[column], codes, groups, **where)
        else:
            add_chunk(self._moments, self._count[column], codes, groups, **where)
        if self._histogram is not None:
            binning = self._binning[column]
            if binning is None:
                binning = Binning.of_sample(codes, groups, width=width, values=self._values)
                self._binning[column] = binning
            binning.add(codes, groups, self._histogram, **where)

    def partials(self) -> Partials:
        """Return what was added up: arrays that a later `add` would change."""
        if np.any(self._count != self._count[0]):
            raise AssertionError("some columns were given blocks that others were not")
        by_fold = replace(self._moments, count=self._count[0][:, None])
        pooled = merge_folds(by_fold, self._folds)
        if self._earlier is not None:
            pooled = combine_moments(self._earlier.pooled, pooled)
            by_fold = combine_moments(self._earlier.by_fold, by_fold)
        scales = [binning for binning in self._binning if binning is not None]
        return Partials(
            pooled=pooled,
            by_fold=by_fold,
            exponent=np.concatenate([binning.exponent for binning in scales]) if self._complete(scales) else None,
            histogram=self._histogram,
        )

    def _complete(self, scales: list[Binning]) -> bool:
        return self._histogram is not None and len(scales) == len(self._binning)


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
