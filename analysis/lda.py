"""Linear discriminant analysis in closed form, and predictions block by block."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.execute import run_all
from neuronlake.analysis.features import FeatureSet, read_features
from neuronlake.analysis.labels import BlockLabels, LabelVector, label_blocks
from neuronlake.analysis.scatter import Scatter, total_variance, within_covariance
from neuronlake.analysis.source import LakeSource
from neuronlake.store.errors import InputError

_TILE_ROWS = 2048  # rows converted to float64 at once
_CONSTANT = 1e-9  # relative deviation below which a feature counts as constant; float32 resolves 1e-7


@dataclass(frozen=True, kw_only=True)
class LinearClassifier:
    """Predicts the tag with the largest ``(x − centre)·weights + bias``."""

    centre: NDArray[np.float64] = field(repr=False)
    """(D,)."""
    weights: NDArray[np.float64] = field(repr=False)
    """(D, tags)."""
    bias: NDArray[np.float64] = field(repr=False)
    """(tags,)."""

    def predict(self, values: NDArray[Any]) -> NDArray[np.int16]:
        """Index of the predicted tag, int16 (n,), of values (n, D)."""
        predicted = np.empty(len(values), dtype=np.int16)
        for first in range(0, len(values), _TILE_ROWS):
            # Centred before the product: large means would cost its digits.
            scores = (values[first : first + _TILE_ROWS] - self.centre) @ self.weights + self.bias
            predicted[first : first + _TILE_ROWS] = np.argmax(scores, axis=1)
        return predicted


def fit_lda(scatter: Scatter, *, shrinkage: float) -> LinearClassifier:
    """Linear discriminants of classes with a common covariance (Fisher 1936; Hastie et al. 2009, §4.3).

    Features are standardised by their overall deviation. With Σ the pooled within-class covariance (divided by n) of the
    standardised features, shrunk to (1 − λ)·Σ + λ·(tr Σ/D)·I (Friedman 1989), class means μ_k and shares π_k, the scores
    are xᵀΣ⁻¹μ_k − ½·μ_kᵀΣ⁻¹μ_k + log π_k. Constant features get weight zero.

    Parameters
    ----------
    scatter
        Of the training tokens; every tag has some.
    shrinkage
        λ, above 0 and at most 1: keeps Σ invertible when there are more features than tokens.

    Raises
    ------
    InputError
        When λ is too small for that.
    """
    from scipy.linalg import LinAlgError, cho_factor, cho_solve

    tokens = scatter.count.sum()
    overall = scatter.total.sum(axis=0) / tokens
    deviation = np.sqrt(total_variance(scatter))
    # A constant feature may show the rounding of its mean as spread. An infinite scale takes it out of everything below.
    scale = np.where(deviation > _CONSTANT * np.abs(scatter.centre + overall), deviation, np.inf)
    covariance = within_covariance(scatter)
    covariance /= scale
    covariance /= scale[:, None]
    # Without any spread inside the classes any positive value gives the same predictions.
    mean_variance = float(np.trace(covariance)) / len(scale) or 1.0
    covariance *= 1 - shrinkage
    covariance[np.diag_indices_from(covariance)] += shrinkage * mean_variance
    means = (scatter.total / scatter.count[:, None] - overall) / scale  # (tags, D)
    try:
        factor = cho_factor(covariance, overwrite_a=True, check_finite=False)
    except LinAlgError:
        raise InputError(
            f"the covariance of {len(scale)} features from {tokens} tokens cannot be inverted with "
            f"shrinkage={shrinkage}: choose a larger one"
        ) from None
    weights = cho_solve(factor, means.T, check_finite=False)  # (D, tags)
    bias = np.log(scatter.count / tokens) - 0.5 * np.einsum("td,dt->t", means, weights)
    return LinearClassifier(centre=scatter.centre + overall, weights=weights / scale[:, None], bias=bias)


def predict_rows(
    source: LakeSource,
    labels: LabelVector,
    features: FeatureSet,
    classifier: LinearClassifier,
    *,
    site: str,
    scheduler: Any,
) -> NDArray[np.int16]:
    """Predict the tag of every labelled row, one block at a time; int16 (labelled rows,), in row order."""
    work = partial(_predict_block, source, features, classifier, site=site)
    parts = run_all(work, [{"block": block} for block in label_blocks(labels)], scheduler=scheduler, blas=True)
    return np.concatenate(parts)


def _predict_block(
    source: LakeSource, features: FeatureSet, classifier: LinearClassifier, *, block: BlockLabels, site: str
) -> NDArray[np.int16]:
    values = read_features(source, features, block=block.block, rows=block.rows, site=site)
    return classifier.predict(values)
