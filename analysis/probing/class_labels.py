"""Labels checked before anything is fitted on them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.store.errors import InputError


def classes_and_codes(y: NDArray[Any], *, binary: bool = False) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Sorted classes, and the index of every row's class, int64 (n,).

    Raises
    ------
    InputError
        When there are fewer than two classes, or more where `binary`; when a class has fewer than two rows.
    """
    classes, codes, counts = np.unique(y, return_inverse=True, return_counts=True)
    if binary and len(classes) > 2:
        raise InputError(
            f"Only binary classification is supported: the labels hold {len(classes)} classes; pass y == tag for one of them"
        )
    if len(classes) < 2:
        raise InputError(f"the labels hold one class only, '{classes[0]}', in {len(y)} rows: a probe needs two")
    if counts.min() < 2:
        rare = [str(name) for name in classes[counts < 2]]
        raise InputError(
            f"{len(rare)} of {len(classes)} classes have one row only, such as {rare[0]!r}, a probe needs two of each: "
            "leave those rows out"
        )
    return classes, codes.astype(np.int64)


def balanced_accuracy(codes: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """Mean recall of classes 0 and 1, both of which occur."""
    return float(np.mean([np.mean(predicted[codes == code] == code) for code in (0, 1)]))
