"""A few features that predict together as much as they can: forward selection from class sums and the scatter matrix."""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.probing.linear import Standard
from neuronlake.analysis.probing.scatter import ClassSums, Scatter

_COLLINEAR = 1e-6  # share of a feature's variance below which nothing new is left of it


def select_forward(scatter: Scatter, sums: ClassSums, standard: Standard, k: int) -> NDArray[np.int64]:
    """Choose k features one after the other, each the one that explains most of what is left of the tags' indicators.

    Orthogonal least squares (Chen, Billings & Luo 1989): with Z the standardised features made orthogonal to those chosen
    so far, the gain of a feature j is Σ_k (z_jᵀy_k)²/(z_jᵀz_j), y_k the centred indicator of tag k. No row is read; k steps
    take D·k²/2 products.

    Returns
    -------
    int64 (at most k,)
        Features in the order of choice; fewer than k where the others are constant or combinations of those chosen.
    """
    scale = standard.factor
    mean = scatter.total / scatter.rows
    covariance = scatter.gram / scatter.rows - np.outer(mean, mean)
    covariance *= scale
    covariance *= scale[:, None]
    cross = ((sums.total - sums.count[:, None] * mean) * scale / scatter.rows).T  # (D, tags)
    chosen: NDArray[np.int64] = _choose(covariance, np.ascontiguousarray(cross), min(k, len(scale)))
    return chosen


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _choose(covariance: Any, cross: Any, k: int) -> Any:
    size, tags = cross.shape
    left = np.diag(covariance).copy()
    rows = np.zeros((k, size))  # of the Cholesky factor, pivoted by the choices
    chosen = np.empty(k, dtype=np.int64)
    usable = left > 1e-12
    for step in range(k):
        best, best_gain = -1, 0.0
        for j in range(size):
            if usable[j]:
                gain = 0.0
                for t in range(tags):
                    gain += cross[j, t] * cross[j, t]
                gain /= left[j]
                if gain > best_gain:
                    best, best_gain = j, gain
        if best < 0:
            return chosen[:step]
        chosen[step] = best
        usable[best] = False
        root = np.sqrt(left[best])
        row = rows[step]
        for j in range(size):
            row[j] = covariance[best, j]
        for earlier in range(step):
            share = rows[earlier, best]
            other = rows[earlier]
            for j in range(size):
                row[j] -= share * other[j]
        for j in range(size):
            row[j] /= root
        weights = cross[best].copy() / root
        for j in range(size):
            left[j] -= row[j] * row[j]
            if left[j] < _COLLINEAR * covariance[j, j]:
                usable[j] = False
            for t in range(tags):
                cross[j, t] -= row[j] * weights[t]
    return chosen
