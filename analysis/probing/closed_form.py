"""Classifiers in closed form, from class sums and the scatter matrix alone: no pass over the rows, any of the features."""

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.probing.linear import LinearClassifier, Standard, standard_of
from neuronlake.analysis.probing.scatter import ClassSums, Scatter, total_variance, within_scatter
from neuronlake.store.errors import InputError


def standard_of_scatter(scatter: Scatter, dtype: np.dtype[np.generic]) -> Standard:
    """Mean and deviation of the features over all rows of the scatter."""
    return standard_of(scatter.centre, scatter.total / scatter.rows, total_variance(scatter), dtype)


def fit_lda(
    scatter: Scatter, sums: ClassSums, standard: Standard, *, shrinkage: float, columns: NDArray[np.int64] | None = None
) -> LinearClassifier:
    """Linear discriminants of classes with a common covariance (Fisher 1936; Hastie et al. 2009, §4.3).

    Features are standardised by their overall deviation. With Σ the pooled within-class covariance (divided by n) of the
    standardised features, shrunk to (1 − λ)·Σ + λ·(tr Σ/D)·I (Friedman 1989; D without constant features), class means μ_k
    and shares π_k, the scores are zᵀΣ⁻¹μ_k − ½·μ_kᵀΣ⁻¹μ_k + log π_k. Constant features get weight zero.

    Parameters
    ----------
    scatter, sums
        Of the same training rows and the same centre.
    shrinkage
        λ, above 0 and at most 1: keeps Σ invertible when there are more features than rows.
    columns
        Features used, None for all.

    Raises
    ------
    InputError
        When λ is too small for that.
    """
    scatter, sums, scale, offset = _used(scatter, sums, standard, columns)
    means = _class_means(scatter, sums) * scale
    covariance = within_scatter(scatter, sums)
    covariance *= scale
    covariance *= scale[:, None]
    covariance /= scatter.rows
    varying = max(1, int(np.count_nonzero(scale)))
    # Without any spread inside the classes any positive value gives the same predictions.
    mean_variance = float(np.trace(covariance)) / varying or 1.0
    covariance *= 1 - shrinkage
    covariance[np.diag_indices_from(covariance)] += shrinkage * mean_variance
    weights = _solve(covariance, means.T, scatter, f"shrinkage={shrinkage}")  # (D, tags)
    with np.errstate(divide="ignore"):  # a tag without rows is never predicted
        priors = np.log(sums.count / scatter.rows)
    bias = priors - 0.5 * np.einsum("td,dt->t", means, weights) - offset @ weights
    return LinearClassifier(weights=weights, bias=bias, columns=columns)


def fit_ridge(
    scatter: Scatter, sums: ClassSums, standard: Standard, *, penalty: float, columns: NDArray[np.int64] | None = None
) -> LinearClassifier:
    """Least squares on one indicator per tag with an ℓ2 penalty (Hoerl & Kennard 1970), of standardised features.

    Minimises Σ_k ‖y_k − Z·w_k − b_k‖²/n + λ·‖w_k‖², y_k the indicator of tag k: scikit-learn's RidgeClassifier with
    ``alpha = λ·n``, whose targets of ±1 double weights and move the bias but predict the same.

    Parameters
    ----------
    scatter, sums
        Of the same training rows and the same centre.
    penalty
        λ, positive.
    columns
        Features used, None for all.

    Raises
    ------
    InputError
        When λ is too small for the system to be solved.
    """
    scatter, sums, scale, offset = _used(scatter, sums, standard, columns)
    mean = scatter.total / scatter.rows
    system = scatter.gram - scatter.rows * np.outer(mean, mean)
    system *= scale
    system *= scale[:, None]
    system /= scatter.rows
    system[np.diag_indices_from(system)] += penalty
    shares = sums.count / scatter.rows
    targets = (_class_means(scatter, sums) * scale * shares[:, None]).T
    weights = _solve(system, targets, scatter, f"penalty={penalty}")
    return LinearClassifier(weights=weights, bias=shares - offset @ weights, columns=columns)


def _used(
    scatter: Scatter, sums: ClassSums, standard: Standard, columns: NDArray[np.int64] | None
) -> tuple[Scatter, ClassSums, NDArray[np.float64], NDArray[np.float64]]:
    """Of the features used: scatter, sums, factor, and the mean of the standardised features.

    That is 0 but for what is lost of a large centre when it is rounded.
    """
    offset = (scatter.total / scatter.rows - (standard.centre - scatter.centre)) * standard.factor
    if columns is None:
        return scatter, sums, standard.factor, offset
    return (
        scatter.subset(columns),
        ClassSums(count=sums.count, total=sums.total[:, columns]),
        standard.factor[columns],
        offset[columns],
    )


def _class_means(scatter: Scatter, sums: ClassSums) -> NDArray[np.float64]:
    """Class means less the overall mean; zero for tags without rows; float64 (tags, D)."""
    means = sums.total / np.maximum(sums.count, 1)[:, None] - scatter.total / scatter.rows
    return np.where(sums.count[:, None] > 0, means, 0.0)


def _solve(system: NDArray[np.float64], right: NDArray[np.float64], scatter: Scatter, setting: str) -> NDArray[np.float64]:
    from scipy.linalg import LinAlgError, cho_factor, cho_solve

    try:
        factor = cho_factor(system, overwrite_a=True, check_finite=False)
    except LinAlgError:
        raise InputError(
            f"the covariance of {len(system)} features from {scatter.rows} tokens cannot be inverted with {setting}: "
            "choose a larger one"
        ) from None
    solution: NDArray[np.float64] = cho_solve(factor, right, check_finite=False)
    return solution
