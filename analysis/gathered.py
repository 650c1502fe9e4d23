"""What a pass found, of all neurons together: from its columns, or from where it was kept."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.column_pass import Column
from neuronlake.analysis.moments import BASIC_FIELDS, DTYPES, FIELDS, Moments

FOLD_FIELDS = ("mean", "m2", "absolute", "active")
"""What is kept per fold: enough for every ranker that starts from moments."""
Arrays = Mapping[tuple[str, str], NDArray[Any]]


def moment_fields(basic: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Fields of `Moments` that there are per tag, and per fold."""
    return (BASIC_FIELDS, BASIC_FIELDS) if basic else (FIELDS, FOLD_FIELDS)


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """Statistics of some layers."""

    tags: tuple[str, ...]
    """All that occur, with too few tokens or not."""
    layers: tuple[int, ...]
    count: NDArray[np.int64]
    """Tokens, (tags, folds)."""
    pooled: Moments = field(repr=False)
    """(tags, layers, neurons); only some fields mean anything, see `moment_fields`."""
    by_fold: Moments | None = field(repr=False)
    """(tags × folds, layers, neurons), likewise. None if it was not loaded."""
    exponent: NDArray[np.int16] | None = field(repr=False)
    """Scales of the histograms' bins, (layers, neurons)."""
    derived: Mapping[str, NDArray[Any]] = field(repr=False)
    """Of the tags with enough tokens, ([tags,] layers, neurons)."""
    attributes: dict[str, Any] = field(repr=False)


class Gathering:
    """Puts columns together as they come, from several threads: results are held once, not twice."""

    def __init__(self, *, layers: tuple[int, ...], neurons: int, basic: bool):
        self._layers, self._neurons = layers, neurons
        self._basic = basic
        self._whole: dict[tuple[str, str], NDArray[Any]] = {}
        self._lock = Lock()

    def put(self, column: Column) -> None:
        """Copy a column's arrays to where they belong."""
        self.put_arrays(column.layer, column.first, arrays_of(column, self._basic))

    def put_arrays(self, layer: int, first: int, arrays: Arrays) -> None:
        """Copy what `arrays_of` gave of the neurons ``first …`` of a layer."""
        with self._lock:
            for key, values in arrays.items():
                if key not in self._whole:
                    shape = *values.shape[:-1], len(self._layers), self._neurons
                    self._whole[key] = np.empty(shape, dtype=values.dtype)
        for key, values in arrays.items():
            neurons = slice(first, first + values.shape[-1])
            self._whole[key][..., self._layers.index(layer), neurons] = values

    def gathered(self, *, tags: tuple[str, ...], count: NDArray[np.int64], attributes: dict[str, Any]) -> Gathered:
        """Return all, once every column was put."""
        pooled, by_fold, derived = (
            {name: values for (place, name), values in self._whole.items() if place == kind}
            for kind in ("pooled", "by_fold", "derived")
        )
        return Gathered(
            tags=tags,
            layers=self._layers,
            count=count,
            pooled=some_moments(count.sum(axis=1), pooled),
            by_fold=some_moments(count, by_fold),
            exponent=self._whole.get(("histogram", "exponent")),
            derived=derived,
            attributes=attributes,
        )


def arrays_of(column: Column, basic: bool) -> Arrays:
    """What is gathered of a column, by kind and name."""
    part, (per_tag, per_fold) = column.partials, moment_fields(basic)
    return {
        **{("pooled", name): getattr(part.pooled, name) for name in per_tag},
        **{("by_fold", name): getattr(part.by_fold, name) for name in per_fold},
        **{("derived", name): values for name, values in column.derived.items()},
        **({} if part.exponent is None else {("histogram", "exponent"): part.exponent}),
    }


def some_moments(count: NDArray[np.int64], fields: Mapping[str, NDArray[Any]]) -> Moments:
    """Moments of which only some fields are known; the others are zeros that take no memory, not to be written to.

    Parameters
    ----------
    count : int64, any shape
        Of the groups.
    fields
        (groups, …).
    """
    shape = fields["mean"].shape
    zero = {name: np.broadcast_to(np.zeros(1, dtype=dtype), shape) for name, dtype in DTYPES.items()}
    return Moments(count=count.reshape(-1, *(1 for _ in shape[1:])), **{**zero, **fields})
