"""Compiled inner loops of the probes. All release the GIL."""

import math
from typing import Any

import numba
import numpy as np


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def take_columns(values: Any, columns: Any, out: Any) -> None:
    """Write ``values[:, columns]`` to `out`: NumPy takes three times as long, mostly for fresh memory."""
    for i in range(values.shape[0]):
        source, target = values[i], out[i]
        for j in range(columns.shape[0]):
            target[j] = source[columns[j]]


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def scale(values: Any, centre: Any, factor: Any) -> None:
    """Replace values (n, D) by ``(values − centre)·factor``; centre and factor (D,)."""
    for i in range(values.shape[0]):
        row = values[i]
        for j in range(row.shape[0]):
            row[j] = (row[j] - centre[j]) * factor[j]


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def add_class_sums(values: Any, codes: Any, total: Any) -> None:
    """Add every row of values (n, D) to the line of float64 total (tags, D) that its code int16 (n,) names."""
    for i in range(values.shape[0]):
        row, line = values[i], total[codes[i]]
        for j in range(row.shape[0]):
            line[j] += row[j]


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def add_moments(values: Any, centre: Any, total: Any, squares: Any) -> None:
    """Add Σ(x − centre) and Σ(x − centre)² of values (n, D) to two float64 (D,)."""
    for i in range(values.shape[0]):
        row = values[i]
        for j in range(row.shape[0]):
            d = np.float64(row[j]) - centre[j]
            total[j] += d
            squares[j] += d * d


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def logistic_residuals(scores: Any, codes: Any, tags: int, losses: Any) -> None:
    """Replace scores by the gradient of the multinomial logistic loss, and add the rows' losses up.

    Parameters
    ----------
    scores : (n, problems·tags)
        Of each problem its tags' scores, side by side; overwritten by p − 1[tag].
    codes : int16 (n, problems)
        The true tags.
    losses : float64 (problems,)
        Where they are added.
    """
    for i in range(scores.shape[0]):
        for problem in range(codes.shape[1]):
            row = scores[i, problem * tags : (problem + 1) * tags]
            largest = row[0]
            for k in range(1, tags):
                largest = max(largest, row[k])
            true = row[codes[i, problem]] - largest
            total = 0.0
            for k in range(tags):
                row[k] = math.exp(row[k] - largest)
                total += row[k]
            for k in range(tags):
                row[k] /= total
            row[codes[i, problem]] -= 1
            losses[problem] += math.log(total) - true


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def hinge_residuals(scores: Any, codes: Any, tags: int, losses: Any) -> None:
    """As `logistic_residuals`, of the squared hinge loss of each tag against the rest: Σ_k max(0, 1 − y_k·s_k)²."""
    for i in range(scores.shape[0]):
        for problem in range(codes.shape[1]):
            row = scores[i, problem * tags : (problem + 1) * tags]
            for k in range(tags):
                sign = 1.0 if codes[i, problem] == k else -1.0
                short = max(0.0, 1.0 - sign * row[k])
                losses[problem] += short * short
                row[k] = -2.0 * sign * short


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def descend_coordinates(
    bound: Any, ridge: float, lasso: float, weights: Any, slope: Any, tolerance: float, max_sweeps: int
) -> float:
    """Minimise slopeᵀ(w − v) + ½(w − v)ᵀ·bound·(w − v) + lasso·Σ|w| + ridge/2·Σw² over w, cyclically, from w = v.

    After a sweep over all coordinates come sweeps over those that are not zero, until these gain less than `tolerance` of
    what was gained in all; then all are looked at again.

    Parameters
    ----------
    bound : float64 (D, D)
        A diagonal of zero takes a coordinate out.
    weights : float64 (D,)
        v; overwritten by w.
    slope : float64 (D,)
        Overwritten by the slope at w, slope + bound·(w − v).

    Returns
    -------
    float
        What was gained at least: a sum of squares, so that it has all its digits however little it is.
    """
    size = weights.shape[0]
    total = 0.0
    everything = True
    for _ in range(max_sweeps):
        gained = 0.0
        for j in range(size):
            old = weights[j]
            curvature = bound[j, j]
            if curvature == 0.0 or (old == 0.0 and not everything):
                continue
            pull = curvature * old - slope[j]
            new = 0.0
            if pull > lasso:
                new = (pull - lasso) / (curvature + ridge)
            elif pull < -lasso:
                new = (pull + lasso) / (curvature + ridge)
            if new != old:
                change = new - old
                weights[j] = new
                gained += 0.5 * (curvature + ridge) * change * change
                row = bound[j]
                for i in range(size):
                    slope[i] += change * row[i]
        total += gained
        small = gained <= tolerance * total
        if small and everything:
            break
        everything = small
    return total
