"""p-values that hold for any distribution of activations: how far may a random choice of tokens be from all of them?

Where a tag says nothing about a neuron, its P tokens are a random choice among all labelled ones, without replacement: a
finite population whose moments and extremes are known, not estimated. t and F tests take its mean for normal, χ² its counts;
both are wrong for a few dozen tokens of a heavy-tailed neuron, just where p must be small to survive a correction over a
million tests. What is used instead errs on the safe side: a Chernoff bound for means, hypergeometric sums for counts, and
for G a law with the largest mean and variance that sparse cells can have.
"""

import math
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import special

from neuronlake.analysis.contrast import as_array, counts

_njit = numba.njit(nogil=True, cache=True)
_Floats = NDArray[np.float64]
_RESOLUTION = float(np.finfo(np.float32).eps)
_DIMS = ("tag", "layer", "neuron")
_STEPS = 20
_LARGEST = 500.0  # exp of it is finite


@dataclass(frozen=True, kw_only=True)
class Population:
    """All labelled tokens together. Means float64 (tags, layers, neurons), the others (layers, neurons)."""

    count: _Floats
    """Tokens of every tag, (tags, 1, 1)."""
    count_rest: _Floats
    """Of all others, (tags, 1, 1)."""
    deviation: _Floats
    """Mean of the tag less the mean of all, in standard deviations of all (divided by tokens, not tokens − 1)."""
    third: tuple[_Floats, _Floats]
    """Upper bounds of the mean of z³ and of (−z)³, z = (x − mean)/deviation."""
    fourth: _Floats
    """Upper bound of the mean of z⁴."""
    reach: tuple[_Floats, _Floats]
    """Upper bounds of z and of −z."""


def population(dataset: xr.Dataset) -> Population:
    """Moments of all labelled tokens, from those of the tags.

    Statistics without third and fourth moments (basic ones, and those of some folds) leave only z ≤ √(T − 1) for T tokens,
    whose squares sum to T: then p is safe but weak.
    """
    count, rest = counts(dataset)
    tokens = count[0] + rest[0]
    mean = as_array(dataset, "mean")
    variance = as_array(dataset, "variance") * (count - 1) / count
    centre = (mean * count).sum(axis=0) / tokens
    delta = mean - centre
    second = ((variance + delta**2) * count).sum(axis=0) / tokens
    # a constant neuron's second moment is rounding; float32 cannot show a deviation below its resolution
    scale = np.sqrt(np.maximum(second, (_RESOLUTION * np.abs(mean).max(axis=0)) ** 2))
    scale = np.where(scale > 0, scale, 1.0)
    most = np.broadcast_to(np.sqrt(tokens - 1), scale.shape)
    if not {"third_moment", "fourth_moment"} <= set(dataset):
        return Population(
            count=count, count_rest=rest, deviation=delta / scale, third=(most, most), fourth=most**2, reach=(most, most)
        )
    third, fourth = as_array(dataset, "third_moment"), as_array(dataset, "fourth_moment")
    cubes = ((third + delta * (3 * variance + delta**2)) * count).sum(axis=0) / tokens / scale**3
    powers = ((fourth + delta * (4 * third + delta * (6 * variance + delta**2))) * count).sum(axis=0) / tokens / scale**4
    return _bounded(dataset, centre, delta, scale, (cubes, -cubes), powers)


def absolute_population(dataset: xr.Dataset) -> Population:
    """Likewise for magnitudes |x|, the third of whose moments is bounded from both sides.

    By Cauchy and Schwarz (E x²)²/E|x| ≤ E|x|³ ≤ √(E x² · E x⁴).
    """
    count, rest = counts(dataset)
    tokens = count[0] + rest[0]
    mean, absolute = as_array(dataset, "mean"), as_array(dataset, "mean_absolute")
    squares = as_array(dataset, "variance") * (count - 1) / count + mean**2
    centre, square = ((each * count).sum(axis=0) / tokens for each in (absolute, squares))
    delta = absolute - centre
    resolution = (_RESOLUTION * absolute.max(axis=0)) ** 2
    scale = np.sqrt(np.maximum(square - centre**2, resolution))
    scale = np.where(scale > 0, scale, 1.0)
    most = np.broadcast_to(np.sqrt(tokens - 1), scale.shape)
    below = np.minimum(centre / scale, most)
    if not {"third_moment", "fourth_moment"} <= set(dataset):
        return Population(
            count=count, count_rest=rest, deviation=delta / scale, third=(most, below), fourth=most**2, reach=(most, below)
        )
    variance, third = as_array(dataset, "variance") * (count - 1) / count, as_array(dataset, "third_moment")
    own = as_array(dataset, "fourth_moment") + mean * (4 * third + mean * (6 * variance + mean**2))
    power = (own * count).sum(axis=0) / tokens
    least, largest = square**2 / np.where(centre > 0, centre, 1.0), np.sqrt(square * power)
    lower, upper = (each - 3 * centre * square + 2 * centre**3 for each in (least, largest))
    # rounding of cancelling terms must not make a bound too small
    slack = 1e-12 * (power + centre**4)
    fourth = (np.maximum(power - 4 * centre * least + 6 * centre**2 * square - 3 * centre**4, 0.0) + slack) / scale**4
    return _bounded(dataset, centre, delta, scale, (upper / scale**3, -lower / scale**3), fourth, magnitudes=True)


def _bounded(
    dataset: xr.Dataset,
    centre: _Floats,
    delta: _Floats,
    scale: _Floats,
    third: tuple[_Floats, _Floats],
    fourth: _Floats,
    *,
    magnitudes: bool = False,
) -> Population:
    """Bound the largest z by the fourth moment of so many tokens, and by the extremes where they are known."""
    count, rest = counts(dataset)
    most = (fourth * (count[0] + rest[0])) ** 0.25
    lowest, highest = np.array(0.0 if magnitudes else -np.inf), np.array(np.inf)
    if {"minimum", "maximum"} <= set(dataset):
        least, largest = as_array(dataset, "minimum").min(axis=0), as_array(dataset, "maximum").max(axis=0)
        lowest, highest = (lowest, np.maximum(np.abs(least), np.abs(largest))) if magnitudes else (least, largest)
    above, below = np.minimum(most, (highest - centre) / scale), np.minimum(most, (centre - lowest) / scale)
    return Population(
        count=count, count_rest=rest, deviation=delta / scale, third=third, fourth=fourth, reach=(above, below)
    )


def mean_p(found: Population) -> _Floats:
    """Two-sided p of a mean, at least what the permutation distribution gives whatever the values are.

    Chernoff (1952), Ann. Math. Stat. 23, 493–507: P(mean of P tokens ≥ d) ≤ (E e^{λz}·e^{−λd})^P for every λ > 0, for a
    choice without replacement too: Hoeffding (1963), J. Am. Stat. Assoc. 58, 13–30, theorem 4. With m₃ and m₄ the means of
    z³ and z⁴ (those of z and z² are 0 and 1), and z ≤ b,

        E e^{λz} ≤ 1 + λ²/2 + m₃·λ³/6 + m₄·(e^{λb} − 1 − λb − (λb)²/2 − (λb)³/6)/b⁴,

    as (e^y − 1 − y − y²/2 − y³/6)/y⁴ grows with y: Bennett's argument (1962, J. Am. Stat. Assoc. 57, 33–45) two moments on.
    λ is near the best; p is twice the bound of the side that is seen. Of tag and rest, the smaller one is looked at.

    Returns
    -------
    float64 (tags, layers, neurons), in (0, 1] up to underflow
    """
    shape = found.deviation.shape
    p = np.empty(shape)
    sides = [np.ascontiguousarray(np.broadcast_to(part, shape[1:]).ravel()) for part in (*found.third, *found.reach)]
    fourth = np.ascontiguousarray(np.broadcast_to(found.fourth, shape[1:]).ravel())
    for tag in range(shape[0]):
        tokens, rest = float(found.count[tag, 0, 0]), float(found.count_rest[tag, 0, 0])
        chosen, factor = (tokens, 1.0) if tokens <= rest else (rest, -tokens / rest)
        deviation = np.ascontiguousarray(found.deviation[tag].ravel() * factor)
        p[tag] = _mean_p(chosen, deviation, *sides, fourth).reshape(shape[1:])
    return p


def count_p(hits: _Floats, count: _Floats, hits_rest: _Floats, count_rest: _Floats) -> _Floats:
    """Two-sided p of a 2×2 table: twice the smaller tail of the hypergeometric distribution, at most 1.

    Fisher (1935), J. R. Stat. Soc. 98, 39–82; exact for any number of tokens, and conservative where that is small, as
    counts leave gaps. Where no token is a hit, or every one, p = 1.

    Returns
    -------
    float64, the shape that the arguments broadcast to
    """
    parts = np.broadcast_arrays(hits, count, hits_rest, count_rest)
    flat = [np.ascontiguousarray(part.ravel(), dtype=np.float64) for part in parts]
    return np.asarray(_count_p(*flat).reshape(parts[0].shape))


def g_p(g: _Floats, bins: _Floats, count: _Floats, count_rest: _Floats) -> _Floats:
    """p of the G-test of a 2 × bins table, whatever the numbers of tokens that its cells expect.

    χ² with bins − 1 degrees of freedom is the law of G where all cells expect many tokens. Of t tokens in a bin a random
    share π is the tag's, and what the bin adds to G then has mean 1 and variance 2; with t·π near 1 or 4 it has up to 1.16
    and 2.41 for rare tags, 1.39 and 2.91 for π = ½: the largest over all t are below 1.17 + π/2 and 2.42 + 1.1·π. So G is
    compared with the gamma distribution of that mean (less 1, for the margin) and variance, whose third cumulant is no
    smaller either. That is an approximation, made on the safe side: bins that expect a hundredth of a token add less.

    Parameters
    ----------
    g, bins, count, count_rest
        Broadcast to one shape; `bins` are occupied ones.
    """
    share = np.minimum(count, count_rest) / (count + count_rest)
    mean, variance = g_mean_bound(share) * bins - 1, g_variance_bound(share) * bins
    p: _Floats = special.gammaincc(mean**2 / variance, g * mean / variance)
    return p


def g_mean_bound(share: _Floats) -> _Floats:
    """Largest mean of what a bin adds to G, `share` of whose tokens are the tag's by chance, up to ½."""
    return 1.17 + 0.5 * share


def g_variance_bound(share: _Floats) -> _Floats:
    """Likewise its variance."""
    return 2.42 + 1.1 * share


@_njit  # type: ignore[untyped-decorator]
def _mean_p(
    tokens: float, deviation: Any, third_up: Any, third_down: Any, reach_up: Any, reach_down: Any, fourth: Any
) -> Any:
    p = np.ones(deviation.shape[0])
    for j in range(deviation.shape[0]):
        if deviation[j] > 0:
            p[j] = min(1.0, 2 * math.exp(tokens * _exponent(deviation[j], third_up[j], fourth[j], reach_up[j])))
        elif deviation[j] < 0:
            p[j] = min(1.0, 2 * math.exp(tokens * _exponent(-deviation[j], third_down[j], fourth[j], reach_down[j])))
    return p


@_njit  # type: ignore[untyped-decorator]
def _exponent(d: float, third: float, fourth: float, reach: float) -> float:
    """Logarithm of the bound for one token: the smallest of ln E e^{λz} − λd that a few steps of Newton's method meet."""
    b = max(reach, d)  # rounding may leave the largest value below the mean of equal ones
    best = 0.0
    rate = min(d, math.log1p(d * b) / b)
    for _ in range(_STEPS):
        rate = min(rate, _LARGEST / b)
        y = rate * b
        if y < 1:
            fourth_rest, power, k = 0.0, y**4 / 24, 5
            while power > 1e-17 * fourth_rest:
                fourth_rest += power
                power *= y / k
                k += 1
            third_rest = fourth_rest + y**3 / 6
        else:
            third_rest = math.exp(y) - 1 - y - y * y / 2
            fourth_rest = third_rest - y**3 / 6
        above = rate**2 / 2 + third * rate**3 / 6 + fourth * (fourth_rest / b**4)
        if above <= -1:  # no population has such moments
            break
        value = math.log1p(above) - rate * d
        best = min(best, value)
        slope = (rate + third * rate**2 / 2 + fourth * (third_rest / b**3)) / (1 + above)
        bend = (1 + third * rate + fourth * ((third_rest + y * y / 2) / b**2)) / (1 + above) - slope * slope
        step = (d - slope) / bend if bend > 0 else (rate if slope < d else -rate)
        step = min(max(step, -0.75 * rate), 3 * rate)
        rate += step
        if abs(step) < 1e-4 * rate:
            break
    return best


@_njit  # type: ignore[untyped-decorator]
def _count_p(hits: Any, count: Any, hits_rest: Any, count_rest: Any) -> Any:
    p = np.ones(hits.shape[0])
    for j in range(hits.shape[0]):
        k, chosen, rest = hits[j], count[j], count_rest[j]
        all_hits = k + hits_rest[j]
        misses = chosen + rest - all_hits
        if all_hits == 0 or misses == 0:
            continue
        logarithm = _choose(all_hits, k) + _choose(misses, chosen - k) - _choose(chosen + rest, chosen)
        tail = term = 1.0  # in units of the probability of what is seen
        upwards = k * (chosen + rest) >= chosen * all_hits
        while term > 1e-17 * tail:
            if upwards:
                term *= (all_hits - k) * (chosen - k) / ((k + 1) * (misses - chosen + k + 1))
                k += 1
            else:
                term *= k * (misses - chosen + k) / ((all_hits - k + 1) * (chosen - k + 1))
                k -= 1
            tail += term
        p[j] = min(1.0, 2 * tail * math.exp(logarithm))
    return p


@_njit  # type: ignore[untyped-decorator]
def _choose(n: float, k: float) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
