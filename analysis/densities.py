"""How a neuron's values are distributed in every tag, from the kept histograms: no activation is read."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.groups import FOLDS
from neuronlake.analysis.histogram import Binning
from neuronlake.analysis.kept_statistics import StatisticsKey, block_checksums, find_kept
from neuronlake.analysis.labels import LabelRequest
from neuronlake.analysis.neuron import check_neuron
from neuronlake.store.lake import Lake


@dataclass(frozen=True, kw_only=True)
class Densities:
    """Shares of every tag's tokens in bins that are narrow around zero and wide in the tails, see `histogram`."""

    tags: tuple[str, ...]
    count: NDArray[np.int64]
    """Tokens, (tags,)."""
    edges: NDArray[np.float64] = field(repr=False)
    """Ends of the bins, ascending, (bins + 1,); the outermost are the neuron's extremes."""
    share: NDArray[np.float64] = field(repr=False)
    """(tags, bins); each row sums to 1."""


def tag_densities(lake: Lake, layer: int, neuron: int, by: str, *, bins: int = 64) -> Densities | None:
    """Read a neuron's histograms of a label's tags, from the lake's kept statistics.

    Parameters
    ----------
    bins
        At most so many; neighbouring ones of the 255 that are kept are put together. A bin of exact zeros stays with its
        neighbours.

    Returns
    -------
    Densities or None
        None where no statistics of all committed blocks are kept.

    Raises
    ------
    InputError
        When the neuron or the label does not exist.
    KeptDamageError
        When the kept result is damaged.
    """
    check_neuron(lake, layer, neuron)
    key = StatisticsKey.of(lake, LabelRequest(by=by), folds=FOLDS, basic=False)
    kept = find_kept(lake, key, block_checksums(lake), tidy=False)
    if kept is None or kept.blocks != tuple(lake.blocks):
        return None
    here = lake.layers.index(layer), neuron
    counts = kept.read("histogram/counts", (slice(None), *here)).astype(np.int64)  # (tags, 256)
    exponent = np.atleast_1d(kept.read("histogram/exponent", here)).astype(np.int16)
    lower, upper = (ends[0] for ends in Binning.of_exponents(exponent).edges())
    used = np.flatnonzero(counts.any(axis=0))
    first, stop = int(used[0]), int(used[-1]) + 1
    width = -(-(stop - first) // bins)
    starts = np.arange(first, stop, width)
    lowest = float(kept.read("pooled/minimum", (slice(None), *here)).min())
    highest = float(kept.read("pooled/maximum", (slice(None), *here)).max())
    edges = np.array([lowest, *(min(max(lower[start], lowest), highest) for start in starts[1:]), highest])
    assert upper[stop - 1] >= highest
    tokens = counts.sum(axis=1)
    enough = tokens > 1  # as statistics have it
    grouped = np.add.reduceat(counts[:, :stop], starts, axis=1)[enough]
    return Densities(
        tags=tuple(tag for tag, shown in zip(kept.tags, enough, strict=True) if shown),
        count=tokens[enough],
        edges=edges,
        share=grouped / tokens[enough, None],
    )
