"""Greedy choice of the dimensions by which class-conditional Gaussians tell the labels best."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from neuronlake.store.parallel import map_ordered

_PIECE_ROWS = 2048  # per thread and turn; sums of pieces are added in order, whatever the number of threads
_TILE_COLUMNS = 256
_TILE_ELEMENTS = 1 << 18  # of all classes: 1 MiB of float32, which stays in the second-level cache through all passes
# Share of a dimension's variance below which what the chosen ones leave over is rounding.
_DEPENDENT = {np.dtype(np.float32): 1e-8, np.dtype(np.float64): 1e-13}


@dataclass(frozen=True, kw_only=True)
class ClassGaussians:
    """One Gaussian per class."""

    means: NDArray[np.float64] = field(repr=False)
    """(classes, D)."""
    covariances: NDArray[np.float64] = field(repr=False)
    """(classes, D, D)."""
    log_priors: NDArray[np.float64] = field(repr=False)
    """log p(class), (classes,)."""


def selection_bytes(rows: int, classes: int, dimensions: int, k: int, itemsize: int) -> int:
    """Memory of `select_dimensions`, its arguments and covariances in the units of the features included."""
    per_row = (dimensions + classes * (k + 1)) * itemsize + classes * 8
    return rows * per_row + classes * dimensions * (2 * dimensions + 2 * k) * 8


def select_dimensions(
    values: NDArray[Any], codes: NDArray[np.int64], gaussians: ClassGaussians, *, k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Add, k times, the dimension that raises Σ log p(label | chosen dimensions) most.

    Torroba Hennigen et al. 2020, §4.2. Given the chosen dimensions C, a candidate d is a univariate Gaussian in every
    class, with variance Σ_dd − Σ_dC Σ_CC⁻¹ Σ_Cd. With the Cholesky factor L of Σ_CC, its columns continued to all
    candidates, and whitened coordinates z = L⁻¹ (x_C − μ_C), the deviation from its conditional mean is
    x_d − μ_d − L_d · z: a step costs n · classes · D · |C| multiplications, by BLAS, and no inverse. What is chosen adds a
    column to L (pivoted Cholesky) and one to z.

    Parameters
    ----------
    values : float32 or float64 (n, D)
        Comparable scales and means near zero keep digits: the work is done in this precision, the factors in float64.
    codes : int64 (n,)
        Class of every row.
    gaussians
        In the units of `values`.
    k
        At most D.

    Returns
    -------
    order : int64 (k,)
        Shorter when all other dimensions are, in some class, linear combinations of these.
    log_likelihood : float64 (k,)
        Mean log p(label | x_C), natural logarithm, after each step.
    """
    chain = _Chain(values, codes, gaussians, k)
    found = []
    with threadpool_limits(1, user_api="blas"):  # threads take rows
        for _ in range(k):
            free = chain.free()
            if not free.any():
                break
            likelihood = np.where(free, chain.likelihoods(free), -np.inf)
            best = int(np.argmax(likelihood))
            found.append(likelihood[best] / len(values))
            chain.choose(best)
    return np.array(chain.order, dtype=np.int64), np.array(found)


class _Chain:
    """The chosen dimensions, and everything else given them."""

    def __init__(self, values: NDArray[Any], codes: NDArray[np.int64], gaussians: ClassGaussians, k: int):
        classes, width = gaussians.means.shape
        self._values, self._codes, self._gaussians = values, codes, gaussians
        self.order: list[int] = []
        self._variance = np.diagonal(gaussians.covariances, axis1=1, axis2=2).copy()  # (classes, D)
        self._floor = self._variance * _DEPENDENT[values.dtype]
        self._factors = np.zeros((classes, k, width))  # column i of every L, as row i
        self._whitened = np.empty((classes, len(values), k + 1), dtype=values.dtype)
        self._whitened[:, :, 0] = 1  # takes the means into the product
        self._joint = np.repeat(gaussians.log_priors[:, None], len(values), axis=1)  # log p(class, x_C) + what all share

    def free(self) -> NDArray[np.bool_]:
        """Dimensions that are not determined by the chosen ones, bool (D,)."""
        free: NDArray[np.bool_] = np.all(self._variance > self._floor, axis=0)
        free[self.order] = False
        return free

    def likelihoods(self, free: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Σ log p(label | x_C, x_d) of every free d, float64 (D,)."""
        dtype, done = self._values.dtype, len(self.order)
        deviation = np.sqrt(np.where(free, self._variance, np.inf))
        unit = np.sqrt(0.5) / deviation  # its square is the exponent
        weights = np.concatenate((self._gaussians.means[:, None], self._factors[:, :done]), axis=1) * unit[:, None]
        constant = -np.log(np.where(free, deviation, 1.0))
        scored = _Candidates(
            values=self._values,
            codes=self._codes,
            whitened=self._whitened[:, :, : done + 1],
            joint=self._joint,
            unit=unit.astype(dtype),
            weights=weights.astype(dtype),
            constant=constant.astype(dtype),
        )
        total = np.zeros(len(free))
        for sums in map_ordered(scored.sums, _slices(len(self._values), _PIECE_ROWS)):
            total += sums
        return total

    def choose(self, best: int) -> None:
        """Condition on one more dimension."""
        done = len(self.order)
        deviation = np.sqrt(self._variance[:, best])
        known = self._factors[:, :done]
        column = self._gaussians.covariances[:, best] - np.einsum("ci,cid->cd", known[:, :, best], known)
        column /= deviation[:, None]  # (classes, D)
        weights = np.concatenate((self._gaussians.means[:, best, None], known[:, :, best]), axis=1)  # (classes, done + 1)
        for weight, scale, whitened, joint in zip(weights, deviation, self._whitened, self._joint, strict=True):
            new = (self._values[:, best] - whitened[:, : done + 1] @ weight) / scale  # float64 (n,)
            whitened[:, done + 1] = new
            joint -= 0.5 * new**2 + np.log(scale)
        self._joint -= self._joint.max(axis=0)
        self._factors[:, done] = column
        self._variance -= column**2
        self.order.append(best)


@dataclass(frozen=True, kw_only=True)
class _Candidates:
    """All dimensions as the next one, given those chosen."""

    values: NDArray[Any]
    codes: NDArray[np.int64]
    whitened: NDArray[Any]
    joint: NDArray[np.float64]
    unit: NDArray[Any]
    weights: NDArray[Any]
    constant: NDArray[Any]

    def sums(self, rows: slice) -> NDArray[np.float64]:
        """Σ log p(label | x_C, x_d) over some rows, float64 (D,)."""
        classes, width = self.unit.shape
        across = min(width, _TILE_COLUMNS)
        down = max(16, _TILE_ELEMENTS // (classes * across))
        found = np.zeros(width)
        work = np.empty((2, classes * down * across), dtype=self.values.dtype)
        for some in _slices(rows.stop, down, rows.start):
            for columns in _slices(width, across):
                found[columns] += self._tile(some, columns, work)
        return found

    def _tile(self, rows: slice, columns: slice, work: NDArray[Any]) -> NDArray[np.float64]:
        shape = len(self.unit), rows.stop - rows.start, columns.stop - columns.start
        expected, log = (part[: np.prod(shape)].reshape(shape) for part in work)
        np.matmul(self.whitened[:, rows], self.weights[:, :, columns], out=expected)
        np.multiply(self.values[rows, columns], self.unit[:, None, columns], out=log)
        log -= expected
        np.square(log, out=log)
        np.subtract(self.constant[:, None, columns], log, out=log)
        log += self.joint[:, rows, None].astype(log.dtype)
        own = log[self.codes[rows], np.arange(shape[1])]  # (classes, rows, columns) -> (rows, columns)
        peak = log.max(axis=0)
        log -= peak
        np.exp(log, out=log)
        own -= peak
        own -= np.log(log.sum(axis=0))
        total: NDArray[np.float64] = own.sum(axis=0, dtype=np.float64)
        return total


def _slices(stop: int, step: int, start: int = 0) -> Iterator[slice]:
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))
