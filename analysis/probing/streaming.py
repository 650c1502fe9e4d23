"""Classifiers fitted by streaming over the rows: never more than two tiles in memory, many classifiers in the same passes.

Mini-batch steps come first, scaled by the inverse of a bound of the Hessian: Böhning (1992) bounds that of the multinomial
logistic loss by ½·C, C the covariance of the features, whatever the weights; the squared hinge loss by 2·C. Two such epochs
are within half a point of the optimum's accuracy where plain gradient steps need hundreds, since neurons are correlated and
their variances differ. L-BFGS over full passes, in the coordinates that the bound makes round, then converges.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.probing.linear import LinearClassifier, Problem
from neuronlake.analysis.probing.matrix import Matrix, stream
from neuronlake.analysis.probing.passes import LOSSES, Fit, Group, Loss, alike, slopes
from neuronlake.analysis.probing.survey import Survey

_BATCH = 1024
FEW_ROWS = 4 * _BATCH  # of fewer, mini-batches are too few steps, and full passes take no time
_PASSES_OF_FEW = 200
_MOMENTUM = 0.9
_RATE = 0.5  # of the step that the bound allows, falling to nothing over all epochs
_DAMPING = 1e-4  # smallest curvature assumed
_CORRECTIONS = 10  # pairs of vectors that L-BFGS remembers


def fit_streaming(
    matrix: Matrix,
    labellings: Sequence[NDArray[np.int16]],
    problems: Sequence[Problem],
    survey: Survey,
    *,
    tags: int,
    loss: str,
    penalty: float,
    epochs: int,
    max_passes: int,
    tolerance: float,
    seed: int,
) -> Fit:
    """Minimise (1/n)·Σ loss + λ/2·‖W‖² of every problem, of standardised features and with a free bias.

    Parameters
    ----------
    matrix
        The training rows as they are stored.
    labellings
        int16 (rows,) each, 0 … tags − 1.
    problems
        What is fitted.
    survey
        Of the same matrix.
    loss
        ``logistic``: multinomial; scikit-learn's ``LogisticRegression(C=1/(λ·n))``. ``svm``: squared hinge of each tag
        against the rest; ``LinearSVC(C=1/(λ·n))`` but for its penalty on the bias.
    penalty
        λ, positive.
    epochs
        Passes in mini-batches of 1,024 rows, tiles and the rows of each in random order. None where there are less than
        4,096 rows.
    max_passes
        Most full passes after that; at least 200 where there are so few rows.
    tolerance
        L-BFGS ends when a step lowers the objective by less than this share.
    seed
        Of the orders.
    """
    scaled = matrix.scaled(survey.standard.centre, survey.standard.factor)
    groups = [_Group(members, labellings, problems, survey, tags, LOSSES[loss], penalty) for members in alike(problems)]
    if matrix.shape[0] < FEW_ROWS:
        max_passes = max(max_passes, _PASSES_OF_FEW)
    elif epochs:
        _mini_batches(scaled, groups, epochs=epochs, seed=seed)
    objective, passes, converged = float("nan"), 0, False
    if max_passes:
        objective, passes, converged = _full_passes(scaled, groups, max_passes=max_passes, tolerance=tolerance)
    classifiers: dict[int, LinearClassifier] = {}
    for group in groups:
        classifiers.update(group.classifiers())
    return Fit(
        classifiers=[classifiers[place] for place in range(len(problems))],
        objective=objective,
        passes=passes,
        converged=converged,
    )


class _Group(Group):
    """Problems on the same features, and the roots of the bound that makes their coordinates round."""

    def __init__(
        self,
        members: list[int],
        labellings: Sequence[NDArray[np.int16]],
        problems: Sequence[Problem],
        survey: Survey,
        tags: int,
        loss: Loss,
        penalty: float,
    ):
        from scipy.linalg import cholesky

        self.penalty = penalty
        self.parts = _parts(survey, problems[members[0]].columns)
        self.roots = []
        for _, correlation in self.parts:
            bound = loss.curvature * survey.spread * correlation
            bound[np.diag_indices_from(bound)] += max(penalty, _DAMPING * loss.curvature)
            self.roots.append(cholesky(bound, lower=True, overwrite_a=True, check_finite=False))
        features = sum(len(correlation) for _, correlation in self.parts)
        super().__init__(members, labellings, problems, features=features, tags=tags, loss=loss)

    @property
    def size(self) -> int:
        """Number of weights and biases."""
        return self.weights.size + self.bias.size

    def whiten(self, gradient: NDArray[np.float64]) -> NDArray[np.float64]:
        """Gradient in the coordinates V = Rᵀ·W in which the bound is the identity: R⁻¹·gradient."""
        from scipy.linalg import solve_triangular

        solved = [solve_triangular(root, gradient[part], lower=True) for (part, _), root in self._each()]
        return np.concatenate(solved)

    def unwhiten(self, whitened: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weights of coordinates V: R⁻ᵀ·V."""
        from scipy.linalg import solve_triangular

        return np.concatenate(
            [solve_triangular(root, whitened[part], lower=True, trans="T") for (part, _), root in self._each()]
        )

    def coordinates(self) -> NDArray[np.float64]:
        """Coordinates V of the present weights."""
        return np.concatenate([root.T @ self.weights[part] for (part, _), root in self._each()])

    def inverses(self, dtype: np.dtype[Any]) -> list[tuple[slice, NDArray[Any]]]:
        """Inverse of the bound, part by part."""
        from scipy.linalg import cho_solve

        return [(part, cho_solve((root, True), np.eye(len(root))).astype(dtype)) for (part, _), root in self._each()]

    def _each(self) -> Any:
        return zip(self.parts, self.roots, strict=True)


def _parts(survey: Survey, columns: NDArray[np.int64] | None) -> list[tuple[slice, NDArray[np.float64]]]:
    """The survey's correlations of some of the features, and where these lie among them."""
    if columns is None:
        return [(part, correlation.copy()) for part, correlation in zip(survey.parts, survey.correlations, strict=True)]
    found, first = [], 0
    for part, correlation in zip(survey.parts, survey.correlations, strict=True):
        mine = columns[(columns >= part.start) & (columns < part.stop)] - part.start
        if len(mine):
            found.append((slice(first, first + len(mine)), correlation[np.ix_(mine, mine)]))
            first += len(mine)
    return found


def _mini_batches(matrix: Matrix, groups: Sequence[_Group], *, epochs: int, seed: int) -> None:
    """Steps with momentum along the gradients of mini-batches, times the inverse bound."""
    dtype, generator = matrix.dtype, np.random.default_rng(seed)
    states = [_Momentum(group, dtype) for group in groups]
    steps = epochs * sum(-(-(tile.stop - tile.start) // _BATCH) for tile in matrix.tiles)
    batch = np.empty((_BATCH, matrix.shape[1]), dtype=dtype)
    done = 0
    for _ in range(epochs):
        for tile, values in stream(matrix, generator.permutation(len(matrix.tiles))):
            order = generator.permutation(len(values))
            for first in range(0, len(order), _BATCH):
                chosen = order[first : first + _BATCH]
                few = np.take(values, chosen, axis=0, out=batch[: len(chosen)], mode="clip")
                rate = _RATE * (1 - done / steps) * len(chosen) / _BATCH
                for state in states:
                    state.step(few, state.group.codes[tile][chosen], rate)
                done += 1
    for state in states:
        state.group.weights, state.group.bias = state.weights.astype(np.float64), state.bias.astype(np.float64)


class _Momentum:
    """Weights of a group on their way, in the matrix's precision."""

    def __init__(self, group: _Group, dtype: np.dtype[Any]):
        self.group = group
        self.weights, self.bias = group.weights.astype(dtype), group.bias.astype(dtype)
        self._speed, self._bias_speed = np.zeros_like(self.weights), np.zeros_like(self.bias)
        self._inverses = group.inverses(dtype)
        self._losses = np.zeros(len(group.members))  # nobody asks for these

    def step(self, values: NDArray[Any], codes: NDArray[np.int16], rate: float) -> None:
        group = self.group
        used = group.take(values)
        scores = used @ self.weights
        scores += self.bias
        group.loss.residuals(scores, codes, group.tags, self._losses)
        scores /= len(used)
        gradient = used.T @ scores
        gradient += gradient.dtype.type(group.penalty) * self.weights
        kind = gradient.dtype.type
        for part, inverse in self._inverses:
            self._speed[part] *= kind(_MOMENTUM)
            self._speed[part] += inverse @ gradient[part]
        self._bias_speed *= kind(_MOMENTUM)
        self._bias_speed += scores.sum(axis=0) / kind(group.loss.curvature)
        self.weights -= kind(rate * (1 - _MOMENTUM)) * self._speed
        self.bias -= kind(rate * (1 - _MOMENTUM)) * self._bias_speed


def _full_passes(matrix: Matrix, groups: Sequence[_Group], *, max_passes: int, tolerance: float) -> tuple[float, int, bool]:
    from scipy.optimize import minimize

    passes = 0

    def unpack(vector: NDArray[np.float64]) -> None:
        first = 0
        for group in groups:
            middle, last = first + group.weights.size, first + group.size
            group.weights = group.unwhiten(vector[first:middle].reshape(group.weights.shape))
            group.bias = vector[middle:last] / np.sqrt(group.loss.curvature)
            first = last

    def evaluate(vector: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        nonlocal passes
        passes += 1
        unpack(vector)
        objective, gradients = objective_and_gradients(matrix, groups)
        pieces = []
        for group, (weights, bias) in zip(groups, gradients, strict=True):
            pieces += [group.whiten(weights).ravel(), bias / np.sqrt(group.loss.curvature)]
        return objective, np.concatenate(pieces)

    start = np.concatenate(
        [piece for group in groups for piece in (group.coordinates().ravel(), group.bias * np.sqrt(group.loss.curvature))]
    )
    # below this share, steps are lost in the rounding of the scores
    least = 4 * float(np.finfo(matrix.dtype).eps)
    found = minimize(
        evaluate,
        start,
        jac=True,
        method="L-BFGS-B",
        options={
            "maxcor": _CORRECTIONS,
            "maxfun": max_passes,
            "maxiter": max_passes,
            "ftol": max(tolerance, least),
            "gtol": 1e-10,
        },
    )
    unpack(found.x)
    return float(found.fun), passes, bool(found.success)


def objective_and_gradients(
    matrix: Matrix, groups: Sequence[_Group]
) -> tuple[float, list[tuple[NDArray[np.float64], NDArray[np.float64]]]]:
    """Objective summed over all problems, and the gradient in every group's weights and biases: one pass."""
    objective, gradients = 0.0, []
    for group, slope in zip(groups, slopes(matrix, groups), strict=True):
        objective += float(slope.losses.sum()) + 0.5 * group.penalty * float(np.vdot(group.weights, group.weights))
        gradients.append((slope.weights + group.penalty * group.weights, slope.bias))
    return objective, gradients
