"""What a pass found, of all neurons together: from its columns, or from where it was kept."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.column_pass import Column
from neuronlake.analysis.moments import DTYPES, FIELDS, Moments
from neuronlake.store.parallel import usable_cpus

_AT_ONCE = 16  # pieces

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
    per_tag, per_fold = moment_fields(basic)
    first = _arrays(columns[0], per_tag, per_fold)
    whole = {key: np.empty((*values.shape[:-1], len(layers), neurons), dtype=values.dtype) for key, values in first.items()}

    def put(column: Column) -> None:
        for key, values in _arrays(column, per_tag, per_fold).items():
            whole[key][..., place[column.layer], column.first : column.first + values.shape[-1]] = values

    with ThreadPoolExecutor(usable_cpus()) as pool:  # fresh memory is slow to write to
        while columns:
            for _ in pool.map(put, [columns.pop() for _ in range(min(len(columns), _AT_ONCE))]):
                pass
    pooled, by_fold, derived = (
        {name: values for (place, name), values in whole.items() if place == kind}
        for kind in ("pooled", "by_fold", "derived")
    )
    return Gathered(
        tags=tags,
        layers=layers,
        count=count,
        pooled=some_moments(count.sum(axis=1), pooled),
        by_fold=some_moments(count, by_fold),
        exponent=whole.get(("histogram", "exponent")),
        derived=derived,
        attributes=attributes,
    )


def _arrays(column: Column, per_tag: Sequence[str], per_fold: Sequence[str]) -> dict[tuple[str, str], NDArray[Any]]:
    part = column.partials
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
