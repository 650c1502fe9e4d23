"""Linear classifiers of standardised features, and their predictions on a matrix, many in one pass."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.probing.matrix import Matrix, stream


@dataclass(frozen=True, kw_only=True)
class Standard:
    """How features are standardised: ``(x − centre)·factor``, by the training rows' mean and 1/deviation."""

    centre: NDArray[np.float64] = field(repr=False)
    """(D,)."""
    factor: NDArray[np.float64] = field(repr=False)
    """(D,); 0 for a feature that is constant in the training rows, which takes it out of everything."""

    def subset(self, columns: NDArray[np.int64] | None) -> "Standard":
        """Return that of some of the features."""
        return self if columns is None else Standard(centre=self.centre[columns], factor=self.factor[columns])


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One classifier to fit: one of several labellings of the same rows, on some or all of the same features."""

    name: str
    labelling: int = 0
    columns: NDArray[np.int64] | None = field(default=None, repr=False)
    """Features used, ascending; None for all."""


@dataclass(frozen=True, kw_only=True)
class LinearClassifier:
    """Predicts the tag with the largest ``z·weights + bias``, z the standardised features at `columns`."""

    weights: NDArray[np.float64] = field(repr=False)
    """(features used, tags), of standardised features: their magnitudes compare."""
    bias: NDArray[np.float64] = field(repr=False)
    """(tags,)."""
    columns: NDArray[np.int64] | None = field(default=None, repr=False)
    """Features used; None for all."""

    def scores(self, values: NDArray[Any]) -> NDArray[Any]:
        """Scores (n, tags) of standardised values (n, D)."""
        used = values if self.columns is None else values[:, self.columns]
        scores: NDArray[Any] = used @ self.weights.astype(values.dtype) + self.bias.astype(values.dtype)
        return scores


def standard_of(
    centre: NDArray[np.float64], mean: NDArray[np.float64], variance: NDArray[np.float64], dtype: np.dtype[Any]
) -> Standard:
    """Standardise by moments about `centre`: all (D,). A deviation within what `dtype` rounds away counts as none.

    A constant feature may show the rounding of its mean as spread.
    """
    deviation = np.sqrt(np.maximum(variance, 0))
    resolution = 4 * np.finfo(np.float32 if dtype == np.float32 else np.float64).eps
    origin = centre + mean
    constant = deviation <= resolution * (np.abs(centre) + np.abs(mean))
    if dtype == np.float32:  # what a float32 matrix takes from its values
        origin = origin.astype(np.float32).astype(np.float64)
    return Standard(centre=origin, factor=np.where(constant, 0.0, 1 / np.where(constant, 1.0, deviation)))


def predict(
    matrix: Matrix, standard: Standard, classifiers: Sequence[LinearClassifier], *, scores: bool = False
) -> list[NDArray[Any]]:
    """Predict every row with every classifier, in one pass over the matrix.

    Returns
    -------
    list
        Per classifier int16 (rows,): the predicted tags; with `scores` float (rows, tags) instead.
    """
    rows = matrix.shape[0]
    found: list[NDArray[Any]] = [
        np.empty((rows, len(each.bias)), dtype=matrix.dtype) if scores else np.empty(rows, dtype=np.int16)
        for each in classifiers
    ]
    if not rows:
        return found
    whole = [place for place, each in enumerate(classifiers) if each.columns is None]
    stacked = None
    if whole:  # one product for all that use every feature
        stacked = LinearClassifier(
            weights=np.concatenate([classifiers[place].weights for place in whole], axis=1),
            bias=np.concatenate([classifiers[place].bias for place in whole]),
        )
    for tile, values in stream(matrix.scaled(standard.centre, standard.factor)):
        at = 0
        together = None if stacked is None else stacked.scores(values)
        for place, each in enumerate(classifiers):
            if each.columns is None and together is not None:
                own = together[:, at : at + len(each.bias)]
                at += len(each.bias)
            else:
                own = each.scores(values)
            found[place][tile] = own if scores else np.argmax(own, axis=1)
    return found
