"""Rankers that start from the distribution of values: AUROC, average precision, mutual information, and hits.

Hits are tokens whose activation exceeds the neuron's threshold, the histogram edge nearest to its pooled 95th percentile.
"""

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import special

from neuronlake.analysis.contrast import as_array, counts
from neuronlake.analysis.rankers_scores import scores
from neuronlake.analysis.tails import count_p, g_p

_DIMS = ("tag", "layer", "neuron")


def auroc(dataset: xr.Dataset) -> xr.Dataset:
    """AUROC of tag against rest; the score is max(a, 1 − a), so 0.5 is chance in either direction.

    p is two-sided, from the normal approximation of the Mann–Whitney statistic without correction for ties:
    z = (a − ½)·√(12·P·N/(P + N + 1)). Ties make the true variance smaller, so p errs on the safe side.
    Mann & Whitney (1947), Ann. Math. Stat. 18, 50–60.
    """
    area = as_array(dataset, "auroc")
    count, rest = counts(dataset)
    z = (area - 0.5) * np.sqrt(12 * count * rest / (count + rest + 1))
    return scores(
        dataset, "auroc", area, score=np.maximum(area, 1 - area), direction=area - 0.5, p=2 * special.ndtr(-np.abs(z))
    )


def average_precision(dataset: xr.Dataset) -> xr.Dataset:
    """Average precision of x or of −x as a detector of the tag, whichever is larger; chance is the tag's share of tokens.

    Suau et al. (2020), "Finding experts in transformer models", rank by that of x alone, pooling a sentence's tokens first.
    See `histogram_statistics.average_precision_of_histogram`.
    """
    high, low = as_array(dataset, "average_precision"), as_array(dataset, "average_precision_low")
    return scores(dataset, "average_precision", np.maximum(high, low), direction=high - low)


def iou(dataset: xr.Dataset) -> xr.Dataset:
    """Intersection over union of "hit" and "has the tag": |x > τ ∧ c| / |x > τ ∨ c|. High activations alone count.

    Mu & Andreas (2020), "Compositional explanations of neurons". The sign says whether the tag's tokens are hit more often
    than the others; where they are not, the score is that of chance or below.
    """
    hits, count, hits_rest, rest = _hits(dataset)
    return scores(dataset, "iou", hits / (count + hits_rest), direction=hits / count - hits_rest / rest)


def mutual_information(dataset: xr.Dataset) -> xr.Dataset:
    """Mutual information of having the tag and the activation's histogram bin, in bits, with the p of the G-test.

    G = 2·N·MI·ln 2 over all N tokens: Woolf (1957), Ann. Hum. Genet. 21, 397–409. Most bins of a rare tag expect about one
    token, for which χ² with (occupied bins − 1) degrees of freedom gives too small a p; p is `tails.g_p`. The sign is that
    of AUROC − ½: the dependence itself has none.
    """
    bits = as_array(dataset, "mutual_information")
    count, rest = counts(dataset)
    bins = dataset["bins"].transpose(*_DIMS[1:]).to_numpy().astype(np.float64)
    p = g_p(2 * np.log(2) * (count + rest) * bits, bins, count, rest)
    return scores(dataset, "mutual_information", bits, direction=as_array(dataset, "auroc") - 0.5, p=p)


def chi_squared(dataset: xr.Dataset) -> xr.Dataset:
    """χ² of the table (hit or not) × (tag or rest), with the p of Fisher's exact test; the score is Cramér's V.

    V = √(χ²/tokens): Cramér (1946), Mathematical Methods of Statistics. χ² is without Yates' correction: Pearson (1900),
    Phil. Mag. 50, 157–175. Of a rare tag's tokens few would be hits by chance, and the χ² distribution then gives far too
    small a p; so p is `tails.count_p`. Where no token is a hit, or every one, χ² = 0 and p = 1. ``cramers_v`` is the score.
    """
    hits, count, hits_rest, rest = _hits(dataset)
    squared = _chi_squared(hits, count, hits_rest, rest)
    strength = np.sqrt(squared / (count + rest))
    found = scores(
        dataset,
        "chi_squared",
        squared,
        score=strength,
        direction=hits / count - hits_rest / rest,
        p=count_p(hits, count, hits_rest, rest),
    )
    return found.assign(cramers_v=(_DIMS, strength))


def _chi_squared(
    hits: NDArray[np.float64], count: NDArray[np.float64], hits_rest: NDArray[np.float64], count_rest: NDArray[np.float64]
) -> NDArray[np.float64]:
    """χ² of a 2×2 table without correction; 0 where a margin is empty (all tokens are hits, or none)."""
    misses, misses_rest = count - hits, count_rest - hits_rest
    total, total_misses = hits + hits_rest, misses + misses_rest
    cross = hits * misses_rest - misses * hits_rest
    # quotients one by one: the product of four margins could overflow
    margins = np.where((total > 0) & (total_misses > 0), total * total_misses, 1.0)
    squared: NDArray[np.float64] = cross / margins * (cross / (count * count_rest)) * (count + count_rest)
    return squared


def _hits(
    dataset: xr.Dataset,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Hits and tokens of the tag, hits and tokens of the rest; hits (tags, layers, neurons)."""
    hits = as_array(dataset, "hits").astype(np.float64)
    count, rest = counts(dataset)
    return hits, count, hits.sum(axis=0) - hits, rest
