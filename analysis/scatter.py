"""Class means and scatter matrix of a feature set, gathered out of core: all that linear discriminants need."""

from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.execute import run_all
from neuronlake.analysis.features import FeatureSet, read_features
from neuronlake.analysis.labels import BlockLabels, LabelVector, label_blocks
from neuronlake.analysis.source import LakeSource
from neuronlake.store.errors import InputError

_TILE_ROWS = 2048  # rows converted to float64 at once: 25 MB at 1,536 features
_MAX_GROUPS = 8  # a constant, not the number of cores, so that the order of summation does not depend on the machine


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """Sums over labelled tokens, about a fixed `centre` so that large means do not cancel. Merge by adding."""

    centre: NDArray[np.float64]
    """(D,)."""
    count: NDArray[np.int64]
    """Tokens per tag, (tags,)."""
    total: NDArray[np.float64]
    """Σ(x − centre) per tag, (tags, D)."""
    gram: NDArray[np.float64]
    """Σ(x − centre)(x − centre)ᵀ over all tags, (D, D)."""


def empty_scatter(*, tags: int, centre: NDArray[np.float64]) -> Scatter:
    """Scatter of no tokens about `centre`."""
    size = len(centre)
    return Scatter(
        centre=centre, count=np.zeros(tags, dtype=np.int64), total=np.zeros((tags, size)), gram=np.zeros((size, size))
    )


def add_tokens(scatter: Scatter, values: NDArray[np.float32], labels: NDArray[np.int16]) -> None:
    """Add tokens in place: values float32 (n, D), labels int16 (n,) all >= 0. Products and sums are float64."""
    product = np.empty_like(scatter.gram)
    for first in range(0, len(values), _TILE_ROWS):
        tile = values[first : first + _TILE_ROWS] - scatter.centre  # float64 (rows, D)
        np.matmul(tile.T, tile, out=product)  # NumPy calls syrk: half the work of a general product
        scatter.gram[:] += product
        scatter.total[:] += _indicator(labels[first : first + _TILE_ROWS], len(scatter.count)).T @ tile
    scatter.count[:] += np.bincount(labels, minlength=len(scatter.count))


def combine_scatter(first: Scatter, second: Scatter) -> Scatter:
    """Scatter of two disjoint sets of tokens about the same centre. Adds into `first`, which must not be used again."""
    first.count[:] += second.count
    first.total[:] += second.total
    first.gram[:] += second.gram
    return first


def within_covariance(scatter: Scatter) -> NDArray[np.float64]:
    """Pooled within-class covariance, Σ_tags Σ(x − μ_tag)(x − μ_tag)ᵀ / n; float64 (D, D)."""
    means = scatter.total / scatter.count[:, None]
    within: NDArray[np.float64] = scatter.gram - (scatter.total.T @ means)
    within /= scatter.count.sum()
    return within


def total_variance(scatter: Scatter) -> NDArray[np.float64]:
    """Variance of every feature over all tokens, divided by n; float64 (D,)."""
    n = scatter.count.sum()
    mean = scatter.total.sum(axis=0) / n
    variance: NDArray[np.float64] = np.diagonal(scatter.gram) / n - mean * mean
    return np.maximum(variance, 0.0)


def gather_scatter(
    source: LakeSource,
    labels: LabelVector,
    features: FeatureSet,
    *,
    site: str,
    scheduler: Any,
    max_bytes: int,
) -> Scatter:
    """Scatter of all labelled tokens of the lake.

    Blocks are dealt to at most eight groups, each of which adds up its blocks in order: the number of D × D matrices
    alive does not depend on the number of blocks, and the result not on the number of threads.

    Raises
    ------
    InputError
        When the matrices would need more than `max_bytes`.
    """
    blocks = label_blocks(labels)
    matrix_bytes = features.size**2 * 8
    # Beside a group's sum there is the product being added to it; solving needs two more at the end.
    groups = min(_MAX_GROUPS, len(blocks), max_bytes // matrix_bytes // 2)
    if max_bytes < 3 * matrix_bytes:
        raise InputError(
            f"the covariance of {features.size} features needs {3 * matrix_bytes / 2**30:.1f} GiB, at most "
            f"{max_bytes / 2**30:.1f} GiB may be used: probe fewer layers, or the top_k neurons per tag"
        )
    centre = _centre(source, features, blocks[0], site)
    work = partial(_group_scatter, source, features, tags=len(labels.tags), centre=centre, site=site)
    parts = run_all(
        work,
        [{"blocks": blocks[group[0] : group[-1] + 1]} for group in np.array_split(np.arange(len(blocks)), groups)],
        scheduler=scheduler,
        blas=True,
    )
    return reduce(combine_scatter, parts)


def _group_scatter(
    source: LakeSource,
    features: FeatureSet,
    *,
    blocks: list[BlockLabels],
    tags: int,
    centre: NDArray[np.float64],
    site: str,
) -> Scatter:
    gathered = empty_scatter(tags=tags, centre=centre)
    for block in blocks:
        values = read_features(source, features, block=block.block, rows=block.rows, site=site)
        add_tokens(gathered, values, block.tags)
    return gathered


def _centre(source: LakeSource, features: FeatureSet, block: BlockLabels, site: str) -> NDArray[np.float64]:
    """Mean of one block: near enough to the overall mean for the sums about it not to cancel."""
    values = read_features(source, features, block=block.block, rows=block.rows, site=site)
    centre: NDArray[np.float64] = values.mean(axis=0, dtype=np.float64)
    return centre


def _indicator(labels: NDArray[np.int16], tags: int) -> NDArray[np.float64]:
    indicator = np.zeros((len(labels), tags))
    indicator[np.arange(len(labels)), labels] = 1
    return indicator
