"""What closed-form classifiers need of a matrix: class sums and the scatter matrix, gathered out of core."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.probing.kernels import add_class_sums, add_moments
from neuronlake.analysis.probing.matrix import Matrix, stream

# Below, rows·D² products are made in float64 however the values come: it takes less than a second. Above, float32 values
# multiply in float32, tile by tile, and add up in float64: half the time, entries good to 4e-7 of √(x²·y²).
_EXACT_PRODUCTS = 1 << 35


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """Sums over rows about a fixed `centre`, so that large means do not cancel."""

    centre: NDArray[np.float64]
    """(D,)."""
    rows: int
    total: NDArray[np.float64]
    """Σ(x − centre), (D,)."""
    gram: NDArray[np.float64]
    """Σ(x − centre)(x − centre)ᵀ, (D, D)."""

    def plus(self, other: "Scatter", sign: int = 1) -> "Scatter":
        """Return the scatter with other rows about the same centre added, or taken out of it (sign −1)."""
        return Scatter(
            centre=self.centre,
            rows=self.rows + sign * other.rows,
            total=self.total + sign * other.total,
            gram=self.gram + sign * other.gram,
        )

    def subset(self, columns: NDArray[np.int64] | None) -> "Scatter":
        """Return the scatter of some of the features."""
        if columns is None:
            return self
        return Scatter(
            centre=self.centre[columns],
            rows=self.rows,
            total=self.total[columns],
            gram=self.gram[np.ix_(columns, columns)],
        )


@dataclass(frozen=True, kw_only=True)
class ClassSums:
    """Rows and sums of every tag of one labelling."""

    count: NDArray[np.int64]
    """(tags,)."""
    total: NDArray[np.float64]
    """Σ(x − centre), (tags, D)."""

    def plus(self, other: "ClassSums") -> "ClassSums":
        """Return the sums with those of other rows about the same centre added."""
        return ClassSums(count=self.count + other.count, total=self.total + other.total)


def centre_of(matrix: Matrix) -> NDArray[np.float64]:
    """Mean of the first tile: near enough to the overall mean for sums about it not to cancel; float64 (D,)."""
    _, values = next(iter(stream(matrix, [0])))
    centre: NDArray[np.float64] = values.mean(axis=0, dtype=np.float64)
    # As the values are rounded, so that float32 values minus the centre are what they are about it.
    return centre.astype(matrix.dtype).astype(np.float64)


def gather_scatter(matrix: Matrix, centre: NDArray[np.float64]) -> Scatter:
    """Gather the scatter of all rows of the matrix about `centre` (D,)."""
    rows, size = matrix.shape
    gram, total = np.zeros((size, size)), np.zeros(size)
    if not rows:
        return Scatter(centre=centre, rows=0, total=total, gram=gram)
    dtype = np.float64 if rows * size * size <= _EXACT_PRODUCTS else matrix.dtype
    product = np.empty((size, size), dtype=dtype)
    for _, values in stream(matrix.scaled(centre, np.ones(size))):
        exact = values.astype(dtype, copy=False)
        np.matmul(exact.T, exact, out=product)  # NumPy calls syrk: half the work of a general product
        gram += product
        total += values.sum(axis=0, dtype=np.float64)
    return Scatter(centre=centre, rows=rows, total=total, gram=gram)


def gather_sums(
    matrix: Matrix,
    centre: NDArray[np.float64],
    labellings: Sequence[NDArray[np.int16]],
    tags: int,
    *,
    squares: NDArray[np.float64] | None = None,
) -> list[ClassSums]:
    """Gather the class sums of several labellings (each int16 (rows,), 0 … tags − 1) in one pass, about `centre` (D,).

    Σ(x − centre)² is added to `squares` (D,), if given.
    """
    size = matrix.shape[1]
    totals = [np.zeros((tags, size)) for _ in labellings]
    unmoved, ignored = np.zeros(size), np.zeros(size)
    for tile, values in stream(matrix.scaled(centre, np.ones(size))):
        for labelling, total in zip(labellings, totals, strict=True):
            add_class_sums(values, labelling[tile], total)
        if squares is not None:
            add_moments(values, unmoved, ignored, squares)
    return [
        ClassSums(count=np.bincount(labelling, minlength=tags).astype(np.int64), total=total)
        for labelling, total in zip(labellings, totals, strict=True)
    ]


def total_variance(scatter: Scatter) -> NDArray[np.float64]:
    """Variance of every feature over all rows, divided by n; float64 (D,)."""
    mean = scatter.total / scatter.rows
    variance: NDArray[np.float64] = np.diagonal(scatter.gram) / scatter.rows - mean * mean
    return np.maximum(variance, 0.0)


def within_scatter(scatter: Scatter, sums: ClassSums) -> NDArray[Any]:
    """Scatter about the class means, Σ_tags Σ(x − μ_tag)(x − μ_tag)ᵀ; float64 (D, D)."""
    used = sums.count > 0
    means = sums.total[used] / sums.count[used, None]
    within: NDArray[np.float64] = scatter.gram - sums.total[used].T @ means
    return within
