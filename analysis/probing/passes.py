"""Passes over the rows for many classifiers at once: their losses and gradients, never more than two tiles in memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.probing.kernels import hinge_residuals, logistic_residuals, take_columns
from neuronlake.analysis.probing.linear import LinearClassifier, Problem
from neuronlake.analysis.probing.matrix import Matrix, stream


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss of scores and tags."""

    residuals: Callable[[Any, Any, int, Any], None]
    curvature: float
    """The Hessian in the scores is at most this times the identity."""


LOSSES = {
    "logistic": Loss(residuals=logistic_residuals, curvature=0.5),
    "svm": Loss(residuals=hinge_residuals, curvature=2.0),
}


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What came of it."""

    classifiers: list[LinearClassifier] = field(repr=False)
    """In the order of the problems."""
    objective: float
    """Mean loss and penalty, summed over the problems; NaN without a full pass."""
    passes: int
    """Full passes, without mini-batch epochs."""
    converged: bool


def alike(problems: Sequence[Problem]) -> list[list[int]]:
    """Places of the problems that use the same features: their products are made together."""
    groups: dict[bytes | None, list[int]] = {}
    for place, problem in enumerate(problems):
        key = None if problem.columns is None else problem.columns.tobytes()
        groups.setdefault(key, []).append(place)
    return list(groups.values())


class Group:
    """Problems on the same features: weights side by side, float64 (D, problems·tags)."""

    def __init__(
        self,
        members: list[int],
        labellings: Sequence[NDArray[np.int16]],
        problems: Sequence[Problem],
        *,
        features: int,
        tags: int,
        loss: Loss,
    ):
        """`members` are the places of the problems, which use so many `features`. Weights are zero, biases best for that."""
        self.members, self.columns = members, problems[members[0]].columns
        self.tags, self.loss = tags, loss
        self.codes = np.stack([labellings[problems[place].labelling] for place in members], axis=1)
        self._taken: NDArray[Any] = np.empty((0, 0))
        self.weights = np.zeros((features, len(members) * tags))
        counts = np.stack([np.bincount(codes, minlength=tags) for codes in self.codes.T])
        shares = np.maximum(counts, 0.5) / len(self.codes)
        self.bias = (np.log(shares) if loss is LOSSES["logistic"] else 2 * shares - 1).ravel()

    def take(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the features used, (n, features): values themselves, or a buffer that the next call overwrites."""
        if self.columns is None:
            return values
        if len(self._taken) < len(values) or self._taken.dtype != values.dtype:
            self._taken = np.empty((len(values), len(self.columns)), dtype=values.dtype)
        out = self._taken[: len(values)]
        take_columns(values, self.columns, out)
        return out

    def classifiers(self) -> dict[int, LinearClassifier]:
        """Return the classifier of every member."""
        return {
            place: LinearClassifier(
                weights=self.weights[:, at * self.tags : (at + 1) * self.tags].copy(),
                bias=self.bias[at * self.tags : (at + 1) * self.tags].copy(),
                columns=self.columns,
            )
            for at, place in enumerate(self.members)
        }


@dataclass(frozen=True, kw_only=True)
class Slope:
    """Mean losses of a group's problems and their gradients, without penalty."""

    losses: NDArray[np.float64]
    """(problems,)."""
    weights: NDArray[np.float64]
    """(D, problems·tags)."""
    bias: NDArray[np.float64]
    """(problems·tags,)."""


def slopes(matrix: Matrix, groups: Sequence[Group]) -> list[Slope]:
    """Pass over standardised rows once, with every group's present weights."""
    rows = matrix.shape[0]
    found = [
        Slope(losses=np.zeros(group.codes.shape[1]), weights=np.zeros_like(group.weights), bias=np.zeros_like(group.bias))
        for group in groups
    ]
    narrow = [(group.weights.astype(matrix.dtype), group.bias.astype(matrix.dtype)) for group in groups]
    for tile, values in stream(matrix):
        for group, (weights, bias), into in zip(groups, narrow, found, strict=True):
            used = group.take(values)
            scores = used @ weights
            scores += bias
            group.loss.residuals(scores, group.codes[tile], group.tags, into.losses)
            into.weights[...] += used.T @ scores
            into.bias[...] += scores.sum(axis=0, dtype=np.float64)
    for into in found:
        for sums in (into.losses, into.weights, into.bias):
            sums /= rows
    return found
