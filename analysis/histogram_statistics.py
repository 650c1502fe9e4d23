"""What histograms per tag × neuron say: AUROC, average precision, mutual information, hits, quantiles.

A histogram is uint32 (tags, neurons, bins): bins in ascending order of value, equal values in one bin, and one bin that
holds exact zeros only. What the order inside a bin leaves open is bounded: every approximate statistic comes with an error,
and the exact one lies within it whatever the values are, up to the rounding of float64 (1e-12). Counts are summed in 64-bit
integers and multiplied there too where they fit, else in float64, which does not overflow.

A tag without tokens, or with all of them, tells nothing: see each function for what it gives. Nothing is ever NaN.
"""

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

_njit = numba.njit(nogil=True, cache=True)
_Floats = NDArray[np.float64]
_Counts = NDArray[np.int64]
_EXACT_TOKENS = 1 << 31


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What one look at the histograms of some neurons tells."""

    auroc: _Floats
    """See `auroc_of_histogram`, (tags, neurons)."""
    auroc_error: _Floats
    """(tags, neurons)."""
    hits: _Counts
    """See `hits_of_histogram`, (tags, neurons)."""
    first: _Counts
    """The lowest bin whose tokens are hits, (neurons,)."""
    occupied: _Counts
    """Bins with at least one token of any tag, (neurons,)."""


def summary_of_histogram(histogram: NDArray[Any], *, zero_bin: int, share: float, tokens: int | None = None) -> Summary:
    """Return AUROC and hits together: a neuron's counts are read once, and stay in the first-level cache.

    Parameters
    ----------
    histogram : uint16 or uint32 (tags, neurons, bins)
    zero_bin
        The bin of exact zeros; −1 where there is none.
    share
        Share of all tokens that are hits.
    tokens
        Of the neuron that has most, if that is known.
    """
    tags, neurons, bins = histogram.shape
    if tokens is None:
        tokens = int(np.max(histogram.sum(axis=(0, 2), dtype=np.int64), initial=0))
    # whole numbers are exact and vectorised, as long as the products of two counts fit
    exact = tokens < _EXACT_TOKENS
    area, error = np.empty((2, tags, neurons))
    hits, (first, occupied) = np.empty((tags, neurons), dtype=np.int64), np.empty((2, neurons), dtype=np.int64)
    work = np.empty((2, bins), dtype=np.uint64 if exact else np.float64)
    mask = np.empty(bins, dtype=np.uint32 if exact else np.int64)
    _summarise(histogram, zero_bin, share, work, mask, area, error, hits, first, occupied)
    return Summary(auroc=area, auroc_error=error, hits=hits, first=first, occupied=occupied)


def auroc_of_histogram(histogram: NDArray[np.uint32], *, zero_bin: int) -> tuple[_Floats, _Floats]:
    """AUROC of every tag against all other tags.

    P(x₊ > x₋) + ½·P(x₊ = x₋), with all pairs in one bin counted half: Mann & Whitney (1947), Ann. Math. Stat. 18, 50–60.
    Each such pair may count 0 to 1 instead, so the error is ½·Σ_b p_b·n_b/(P·N), without the zeros, whose ties are real.
    With t = p + n the tokens of all tags and T_b those in lower bins, the pairs that count are Σ_b p_b·(T_b + t_b/2) − P²/2:
    a product of vectors, as the tag's tokens among themselves win half of their pairs.

    Parameters
    ----------
    histogram : uint32 (tags, neurons, bins)
    zero_bin
        The bin of exact zeros; −1 where there is none.

    Returns
    -------
    auroc, error : float64 (tags, neurons)
        0.5 and 0 for a tag without tokens, or with all of them.
    """
    found = summary_of_histogram(histogram, zero_bin=zero_bin, share=0.0)
    return found.auroc, found.auroc_error


def average_precision_of_histogram(
    histogram: NDArray[np.uint32], *, zero_bin: int, low: bool = False
) -> tuple[_Floats, _Floats]:
    """Average precision of every neuron as a detector of every tag.

    Σ_k (R_k − R_{k−1})·P_k over the thresholds k, from the highest value down; equal values share a threshold, as in
    ``sklearn.metrics.average_precision_score``. A positive's precision is (positives up to its threshold) / (tokens up to
    it). With P₀ positives and N₀ negatives above a bin of p and n, that is at most (P₀ + p)/(P₀ + N₀ + p), reached by all
    when the positives are equal and come first; the i-th positive's is at least (P₀ + i)/(P₀ + N₀ + n + i), reached when the
    negatives come first and all values differ. The sum of the latter, p − (N₀ + n)·Σ_i 1/(D + i) with D = P₀ + N₀ + n, is
    bounded by Σ_{i≤p} 1/(D + i) ≤ ln(1 + p/(D + ½)): 1/x is convex, so its value in the middle of an interval is at most
    its mean there. The result is the middle of the two bounds, the error half their distance.

    Parameters
    ----------
    histogram : uint32 (tags, neurons, bins)
    zero_bin
        The bin of exact zeros; −1 where there is none.
    low
        Of −x instead: the tag's tokens are the lowest.

    Returns
    -------
    average_precision, error : float64 (tags, neurons)
        0 and 0 for a tag without tokens; 1 and 0 for one with all of them.
    """
    precision, error = np.empty((2, *histogram.shape[:2]))
    _average_precision(histogram, pooled_histogram(histogram), zero_bin, low, precision, error)
    return precision, error


def mutual_information_of_histogram(histogram: NDArray[np.uint32]) -> _Floats:
    """Mutual information in bits between having a tag (or any other) and the bin of the value.

    Σ_{b,c} p(b,c)·log₂(p(b,c)/(p(b)·p(c))) with c in {tag, rest} and observed shares as probabilities (plug-in estimate;
    biased upwards by about (bins − 1)/(2·tokens·ln 2): Miller 1955). Cover & Thomas (2006), Elements of Information Theory,
    eq. 2.28.

    Parameters
    ----------
    histogram : uint32 (tags, neurons, bins)

    Returns
    -------
    float64 (tags, neurons)
        At least 0; 0 for a tag without tokens, or with all of them.
    """
    bits = np.empty(histogram.shape[:2])
    _mutual_information(histogram, pooled_histogram(histogram), bits)
    return bits


def hits_of_histogram(histogram: NDArray[np.uint32], *, share: float) -> tuple[_Counts, _Counts]:
    """Tokens of every tag above the threshold that the given share of all tokens exceeds.

    The threshold is the edge between two bins above which the number of tokens comes nearest to ``share``; of several such
    edges the lowest. A neuron with most tokens in one bin may have no hits at all. A threshold per neuron by its top share
    of activations is that of Bau et al. (2017), "Network dissection", and Mu & Andreas (2020), "Compositional explanations
    of neurons".

    Parameters
    ----------
    histogram : uint32 (tags, neurons, bins)
    share
        Share of all tokens, such as 0.05.

    Returns
    -------
    hits : int64 (tags, neurons)
        Tokens in the bins ``first …``.
    first : int64 (neurons,)
        The lowest bin that counts, 1 to bins: the threshold is the upper end of the bin before it.
    """
    found = summary_of_histogram(histogram, zero_bin=-1, share=share)
    return found.hits, found.first


def quantiles_of_histogram(
    histogram: NDArray[np.uint32], lower: _Floats, upper: _Floats, q: ArrayLike
) -> tuple[_Floats, _Floats, _Floats]:
    """Quantiles of every tag × neuron, with the interval that the exact one lies in.

    The exact quantile is the smallest value that at least a share q of the tokens does not exceed (``inverted_cdf`` of
    `numpy.quantile`; type 1 of Hyndman & Fan 1996, Am. Stat. 50, 361–365). It lies in a known bin; the estimate spreads the
    bin's tokens evenly over it.

    Parameters
    ----------
    histogram : uint32 (tags, neurons, bins)
    lower, upper : float64, broadcast to (tags, neurons, bins)
        Ends of the bins, finite and included. Ends cut to a tag's minimum and maximum give closer results.
    q
        Shares in [0, 1], a scalar or 1-D.

    Returns
    -------
    estimate, low, high : float64 (tags, neurons), or (shares, tags, neurons)
        For a tag without tokens low and high are the ends of all bins, the estimate is 0 or the end nearest to it.
    """
    shares = np.atleast_1d(np.asarray(q, dtype=np.float64))
    upto = np.cumsum(histogram, axis=2, dtype=np.int64)
    tokens = upto[:, :, -1]
    lower, upper = np.broadcast_to(lower, histogram.shape), np.broadcast_to(upper, histogram.shape)
    found = np.empty((3, len(shares), *tokens.shape))
    for place, share in enumerate(shares):
        # numpy's own arithmetic: the product may round to either side of a whole number
        rank = np.clip(np.ceil(tokens * share - 1), 0, np.maximum(tokens - 1, 0)).astype(np.int64)
        at = np.minimum((upto <= rank[:, :, None]).sum(axis=2), histogram.shape[2] - 1)[:, :, None]
        low, high = (np.take_along_axis(bound, at, 2)[:, :, 0] for bound in (lower, upper))
        here = np.take_along_axis(histogram, at, 2)[:, :, 0].astype(np.int64)
        before = np.take_along_axis(upto, at, 2)[:, :, 0] - here
        inside = (rank - before + 0.5) / np.maximum(here, 1)
        found[:, place] = low * (1 - inside) + high * inside, low, high
    empty = tokens == 0
    ends = np.broadcast_to(lower[:, :, 0], tokens.shape), np.broadcast_to(upper[:, :, -1], tokens.shape)
    for values, neutral in zip(found, (np.clip(0.0, *ends), *ends), strict=True):
        values[:, empty] = neutral[empty]
    estimate, low, high = found if np.ndim(q) else found[:, 0]
    return estimate, low, high


def pooled_histogram(histogram: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Tokens of all tags together, int64 (neurons, bins)."""
    pooled = np.zeros(histogram.shape[1:], dtype=np.int64)
    _add_tags(histogram, pooled)
    return pooled


@_njit  # type: ignore[untyped-decorator]
def _add_tags(histogram: Any, pooled: Any) -> None:
    for j in range(histogram.shape[1]):
        out = pooled[j]
        for tag in range(histogram.shape[0]):
            line = histogram[tag, j]
            for b in range(line.shape[0]):
                out[b] += line[b]


@_njit  # type: ignore[untyped-decorator]
def _summarise(
    histogram: Any,
    zero_bin: int,
    share: float,
    work: Any,
    mask: Any,
    area: Any,
    error: Any,
    hits: Any,
    first: Any,
    occupied: Any,
) -> None:
    """Products of counts are of the type of `work` (2, bins), sums of that of `mask` (bins,), as narrow as they may be."""
    tags, neurons, bins = histogram.shape
    number, narrow = work.dtype.type, mask.dtype.type
    pooled, middle = work[0], work[1]
    for j in range(neurons):
        pooled[:] = 0
        for tag in range(tags):
            line = histogram[tag, j]
            for b in range(bins):
                pooled[b] += line[b]
        tokens, filled = number(0), 0
        for b in range(bins):  # twice: tokens in lower bins and half of those in the bin
            middle[b] = tokens + tokens + pooled[b]
            tokens += pooled[b]
        for b in range(bins):
            filled += pooled[b] > 0
        occupied[j] = filled
        first[j] = top = _top_bin(pooled, share * np.float64(tokens))
        for b in range(bins):  # a loop from the top bin on would not be vectorised
            mask[b] = ~narrow(0) if b >= top else narrow(0)
        for tag in range(tags):
            line = histogram[tag, j]
            positives = twice = ties = number(0)
            for b in range(bins):
                p = number(line[b])
                positives += p
                twice += p * middle[b]
                ties += p * (pooled[b] - p)
            above = narrow(0)
            for b in range(bins):
                above = narrow(above + (narrow(line[b]) & mask[b]))
            if zero_bin >= 0:
                p = number(line[zero_bin])
                ties -= p * (pooled[zero_bin] - p)
            pairs = np.float64(positives) * np.float64(tokens - positives)
            hits[tag, j] = above
            area[tag, j] = 0.5 * np.float64(twice - positives * positives) / pairs if pairs > 0 else 0.5
            error[tag, j] = 0.5 * np.float64(ties) / pairs if pairs > 0 else 0.0


@_njit  # type: ignore[untyped-decorator]
def _top_bin(pooled: Any, wanted: float) -> Any:
    """Return the lowest bin such that the tokens from it on come nearest to those wanted; `bins` if none of them does."""
    above = 0.0
    best, first = wanted, pooled.shape[0]
    for b in range(pooled.shape[0] - 1, 0, -1):
        above += np.float64(pooled[b])
        away = abs(above - wanted)
        if away <= best:
            best, first = away, b
        elif above > wanted:
            break
    return first


@_njit  # type: ignore[untyped-decorator]
def _average_precision(histogram: Any, pooled: Any, zero_bin: int, low: bool, precision: Any, error: Any) -> None:
    tags, neurons, bins = histogram.shape
    for tag in range(tags):
        for j in range(neurons):
            line, everything = histogram[tag, j], pooled[j]
            positives = negatives = least = most = 0.0
            for step in range(bins):
                b = step if low else bins - 1 - step
                p = np.float64(line[b])
                n = np.float64(everything[b]) - p
                before = positives + negatives
                if p > 0:
                    best = p * ((positives + p) / (before + p))
                    if b == zero_bin:  # one threshold
                        best = p * ((positives + p) / (before + p + n))
                        worst = best
                    elif p == 1:
                        worst = (positives + 1) / (before + n + 1)
                    else:
                        worst = p - (negatives + n) * np.log1p(p / (before + n + 0.5))
                    least += min(worst, best)
                    most += best
                positives += p
                negatives += n
            precision[tag, j] = 0.5 * (least + most) / positives if positives > 0 else 0.0
            error[tag, j] = 0.5 * (most - least) / positives if positives > 0 else 0.0


@_njit  # type: ignore[untyped-decorator]
def _mutual_information(histogram: Any, pooled: Any, bits: Any) -> None:
    tags, neurons, bins = histogram.shape
    for j in range(neurons):
        everything = pooled[j]
        tokens = np.float64(everything.sum())
        for tag in range(tags):
            line = histogram[tag, j]
            positives = 0.0
            for b in range(bins):
                positives += np.float64(line[b])
            negatives = tokens - positives
            nats = alone = 0.0
            if positives > 0 and negatives > 0:
                ratio, ratio_rest = tokens / positives, tokens / negatives
                for b in range(bins):
                    p, t = np.float64(line[b]), np.float64(everything[b])
                    if p == 0:
                        alone += t  # all of these have the same logarithm
                    else:
                        nats += p * np.log(p / t * ratio)
                        if t > p:
                            nats += (t - p) * np.log((t - p) / t * ratio_rest)
                nats += alone * np.log(ratio_rest)
            bits[tag, j] = max(nats, 0.0) / (tokens * np.log(2.0)) if tokens > 0 else 0.0
