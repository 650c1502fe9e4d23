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
