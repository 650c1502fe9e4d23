"""Turn what users index with into int64 arrays, with errors that name the valid range."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.store.errors import InputError

Selection = slice | int | Sequence[int] | NDArray[Any] | None


def normalise_rows(rows: Selection, count: int) -> NDArray[np.int64]:
    """Return the chosen rows as int64 (n,)."""
    return _normalise(rows, count, "row")


def normalise_neurons(neurons: Selection, count: int) -> NDArray[np.int64]:
    """Return the chosen neurons as int64 (n,)."""
    return _normalise(neurons, count, "neuron")


def grouped(index: NDArray[np.int64], size: int) -> dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Group indices by ``index // size``: group → (places within the group, positions in `index`)."""
    if not len(index):
        return {}
    if (index[1:] > index[:-1]).all():  # the usual case; sorting a million rows takes longer than reading a column
        first = np.arange(index[0] // size, index[-1] // size + 1)
        starts = np.searchsorted(index, np.append(first, first[-1] + 1) * size)
        return {
            int(group): (index[start:stop] - group * size, np.arange(start, stop))
            for group, start, stop in zip(first, starts[:-1], starts[1:], strict=True)
            if stop > start
        }
    groups = index // size
    order = np.argsort(groups, kind="stable")
    found, starts = np.unique(groups[order], return_index=True)
    return {
        int(group): (index[positions] - group * size, positions)
        for group, positions in zip(found, np.split(order, starts[1:]), strict=True)
    }


def _normalise(selection: Selection, count: int, what: str) -> NDArray[np.int64]:
    if selection is None:
        return np.arange(count, dtype=np.int64)
    if isinstance(selection, slice):
        return np.arange(*selection.indices(count), dtype=np.int64)
    index = np.atleast_1d(np.asarray(selection))
    if index.dtype == np.bool_:
        if index.shape != (count,):
            raise InputError(f"a {what} mask needs {count} entries, got shape {index.shape}")
        return np.flatnonzero(index).astype(np.int64)
    if index.size == 0:
        return np.empty(0, dtype=np.int64)
    if index.ndim != 1 or not np.issubdtype(index.dtype, np.integer):
        raise InputError(f"{what}s are chosen by integers, a slice or a mask, got {index.dtype} of shape {index.shape}")
    wrong = index[(index < 0) | (index >= count)]
    if wrong.size:
        raise InputError(f"no {what} {wrong[0]}: valid are 0 to {count - 1}")
    return index.astype(np.int64)
