"""What a pass found, of all neurons together: from its columns, or from where it was kept."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.column_pass import Column
from neuronlake.analysis.moments import DTYPES, FIELDS, Moments

FOLD_FIELDS = ("mean", "m2", "absolute", "active")
"""What is kept per fold: enough for every ranker that starts from moments."""
BASIC_FIELDS = ("mean", "m2", "active")
"""What there is of basic statistics, per tag and per fold."""


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


def gather_columns(
    columns: list[Column],
    *,
    layers: tuple[int, ...],
    neurons: int,
    tags: tuple[str, ...],
    count: NDArray[np.int64],
    attributes: dict[str, Any],
    basic: bool,
) -> Gathered:
    """Put columns together; the list is emptied on the way, so that results are held once, not twice."""
    place = {layer: position for position, layer in enumerate(layers)}
    pooled: dict[str, NDArray[Any]] = {}
    by_fold: dict[str, NDArray[Any]] = {}
    derived: dict[str, NDArray[Any]] = {}
    exponent = np.zeros((len(layers), neurons), dtype=np.int16) if columns[0].partials.exponent is not None else None

    def put(target: dict[str, NDArray[Any]], name: str, values: NDArray[Any], column: Column) -> None:
        if name not in target:
            target[name] = np.empty((*values.shape[:-1], len(layers), neurons), dtype=values.dtype)
        target[name][..., place[column.layer], column.first : column.first + values.shape[-1]] = values

    per_tag, per_fold = moment_fields(basic)
    while columns:
        column = columns.pop()
        for name in per_tag:
            put(pooled, name, getattr(column.partials.pooled, name), column)
        for name in per_fold:
            put(by_fold, name, getattr(column.partials.by_fold, name), column)
        for name, values in column.derived.items():
            put(derived, name, values, column)
        if exponent is not None and column.partials.exponent is not None:
            last = column.first + len(column.partials.exponent)
            exponent[place[column.layer], column.first : last] = column.partials.exponent
    return Gathered(
        tags=tags,
        layers=layers,
        count=count,
        pooled=some_moments(count.sum(axis=1), pooled),
        by_fold=some_moments(count, by_fold),
        exponent=exponent,
        derived=derived,
        attributes=attributes,
    )


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
