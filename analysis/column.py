"""Statistics of one column of the lake: one inner chunk's neurons of one layer, block after block.

A column is what a core works on: its accumulators, a few hundred kilobytes, stay in the cache while the blocks pass through,
and their size does not depend on the number of tokens.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.groups import BlockGroups
from neuronlake.analysis.histogram import Binning, empty_histogram
from neuronlake.analysis.moments import (
    FIELDS,
    Moments,
    add_moments,
    as_float32,
    chunk_basic,
    chunk_moments,
    combine_moments,
    merge_folds,
    no_moments,
)

_SAMPLE = 64  # rows


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


class ColumnAccumulator:
    """Adds up the chunks of one column.

    Parameters
    ----------
    tags, folds
        What the groups of the blocks are made of.
    width
        Neurons.
    values
        Format of the values: ``float16``, ``bfloat16`` or ``float32``.
    histogram
        Also count values by bin.
    basic
        Of the moments only count, mean, m2 and active.
    earlier
        Go on from here.
    exponent
        Scales of the histogram's bins, int16 (width,); by default those of `earlier`, or chosen by the first chunk.
    """

    def __init__(
        self,
        *,
        tags: int,
        folds: int,
        width: int,
        values: str,
        histogram: bool,
        basic: bool = False,
        earlier: Partials | None = None,
        exponent: NDArray[np.int16] | None = None,
    ):
        self._tags, self._width, self._values, self._folds = tags, width, values, folds
        self._moments: Moments | None = None
        self._basic = basic
        self._shift: NDArray[np.float64] | None = None
        self._earlier = earlier
        self._binning: Binning | None = None
        self._histogram: NDArray[np.uint32] | None = None
        if histogram:
            self._histogram = empty_histogram(tags, width)
            if exponent is not None:
                self._binning = Binning.of_exponents(exponent)
            if earlier is not None and earlier.histogram is not None and earlier.exponent is not None:
                self._histogram[:] = earlier.histogram
                self._binning = Binning.of_exponents(earlier.exponent)

    def add(self, codes: NDArray[Any], groups: BlockGroups) -> None:
        """Add the labelled rows of one chunk: uint16 patterns or float32 (rows, c), C order."""
        if self._basic:
            if self._shift is None:
                sample = as_float32(codes[groups.rows[:_SAMPLE], : self._width], self._values)
                self._shift = sample.mean(axis=0, dtype=np.float64)
            found = chunk_basic(codes, groups, self._shift, width=self._width, values=self._values)
        else:
            found = chunk_moments(codes, groups, width=self._width, values=self._values)
        if self._moments is None:
            self._moments = found
        else:
            add_moments(self._moments, found)
        if self._histogram is not None:
            if self._binning is None:
                self._binning = Binning.of_sample(codes, groups, width=self._width, values=self._values)
            self._binning.add(codes, groups, self._histogram, width=self._width, values=self._values)

    def partials(self) -> Partials:
        """Return what was added up."""
        by_fold = self._moments or no_moments(self._tags * self._folds, self._width)
        pooled = merge_folds(by_fold, self._folds)
        if self._earlier is not None:
            pooled = combine_moments(self._earlier.pooled, pooled)
            by_fold = combine_moments(self._earlier.by_fold, by_fold)
        return Partials(
            pooled=pooled,
            by_fold=by_fold,
            exponent=None if self._binning is None else self._binning.exponent,
            histogram=self._histogram,
        )


def combine_partials(first: Partials, second: Partials) -> Partials:
    """Partials of two disjoint sets of blocks together; their histograms have the same bins."""
    if first.exponent is not None and not np.array_equal(first.exponent, there(second.exponent)):
        raise AssertionError("histograms with different bins cannot be added")
    counted = first.histogram is not None and second.histogram is not None
    return Partials(
        pooled=combine_moments(first.pooled, second.pooled),
        by_fold=combine_moments(first.by_fold, second.by_fold),
        exponent=first.exponent,
        histogram=there(first.histogram) + there(second.histogram) if counted else None,
    )


def join_neurons(parts: list[Partials]) -> Partials:
    """Partials of neighbouring neurons as one."""

    def join(moments: list[Moments]) -> Moments:
        fields = {name: np.concatenate([getattr(part, name) for part in moments], axis=1) for name in FIELDS}
        return Moments(count=moments[0].count, **fields)

    with_histogram = parts[0].histogram is not None
    return Partials(
        pooled=join([part.pooled for part in parts]),
        by_fold=join([part.by_fold for part in parts]),
        exponent=np.concatenate([there(part.exponent) for part in parts]) if with_histogram else None,
        histogram=np.concatenate([there(part.histogram) for part in parts], axis=1) if with_histogram else None,
    )


def slice_neurons(part: Partials, neurons: slice) -> Partials:
    """Partials of some of the neurons."""

    def cut(moments: Moments) -> Moments:
        return Moments(count=moments.count, **{name: getattr(moments, name)[:, neurons] for name in FIELDS})

    return Partials(
        pooled=cut(part.pooled),
        by_fold=cut(part.by_fold),
        exponent=None if part.exponent is None else part.exponent[neurons],
        histogram=None if part.histogram is None else part.histogram[:, neurons],
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
