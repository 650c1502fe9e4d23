"""A first look at training rows: exact moments, and the covariance of a sample of them as a measure of distance."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.probing.kernels import add_moments
from neuronlake.analysis.probing.linear import Standard, standard_of
from neuronlake.analysis.probing.matrix import Matrix, stream
from neuronlake.analysis.probing.scatter import centre_of

_SAMPLE = 16_384  # rows whose covariance is taken, or 4 per feature if that is more
DENSE = 4096  # features whose covariance is kept whole; of more, each layer's own
_POWER_STEPS = 12


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Of the training rows."""

    standard: Standard
    parts: tuple[slice, ...]
    """Features whose covariances with each other are known."""
    correlations: tuple[NDArray[np.float64], ...] = field(repr=False)
    """Of every part, (size, size); of the sampled rows."""
    spread: float
    """Largest ratio of the variance in any direction to what the parts alone make of it: 1 where there is one part."""


def survey(matrix: Matrix, *, seed: int) -> Survey:
    """Pass over the rows once (and over one tile again, if there are several parts)."""
    rows, size = matrix.shape
    centre = centre_of(matrix)
    parts = (slice(0, size),) if size <= DENSE else tuple(matrix.parts)
    share = min(1.0, max(_SAMPLE, 4 * max(part.stop - part.start for part in parts)) / rows)
    generator = np.random.default_rng(seed)
    total, squares = np.zeros(size), np.zeros(size)
    sampled, sample_total = 0, np.zeros(size)
    grams = [np.zeros((part.stop - part.start,) * 2) for part in parts]
    for _, values in stream(matrix.scaled(centre, np.ones(size))):
        add_moments(values, np.zeros(size), total, squares)
        few = values if share == 1 else values[generator.random(len(values)) < share]
        sampled += len(few)
        sample_total += few.sum(axis=0, dtype=np.float64)
        for part, gram in zip(parts, grams, strict=True):
            gram += few[:, part].T @ few[:, part]
    mean = total / rows
    standard = standard_of(centre, mean, squares / rows - mean * mean, matrix.dtype)
    sample_mean = sample_total / max(1, sampled)
    correlations = []
    for part, gram in zip(parts, grams, strict=True):
        own, factor = sample_mean[part], standard.factor[part]
        gram /= max(1, sampled)
        gram -= np.outer(own, own)
        gram *= factor
        gram *= factor[:, None]
        correlations.append(gram)
    spread = 1.0 if len(parts) == 1 else _spread(matrix, standard, parts, correlations, generator)
    return Survey(standard=standard, parts=parts, correlations=tuple(correlations), spread=spread)


def _spread(
    matrix: Matrix,
    standard: Standard,
    parts: tuple[slice, ...],
    correlations: list[NDArray[np.float64]],
    generator: np.random.Generator,
) -> float:
    """Largest eigenvalue of B⁻¹C by power iteration: C the covariance of one tile, B that of its parts alone."""
    from scipy.linalg import cho_factor, cho_solve

    factors: list[Any] = []
    for correlation in correlations:
        damped = correlation.copy()
        damped[np.diag_indices_from(damped)] += 0.01
        factors.append(cho_factor(damped, overwrite_a=True))
    middle = len(matrix.tiles) // 2
    _, values = next(iter(stream(matrix.scaled(standard.centre, standard.factor), [middle])))
    direction = generator.standard_normal(matrix.shape[1])
    largest = 1.0
    for _ in range(_POWER_STEPS):
        image = (values.T @ (values @ direction.astype(values.dtype))).astype(np.float64) / len(values)
        direction = np.concatenate([cho_solve(factor, image[part]) for factor, part in zip(factors, parts, strict=True)])
        largest = float(np.linalg.norm(direction))
        direction /= largest
    return max(1.0, largest)
