"""Which steps an `int8a` neuron gets in a block: the cheapest that keep two promises about its values.

The promises are a rank correlation (Spearman's ρ) of stored against true values, and a relative error
‖stored − true‖ / ‖true‖. High-resolution theory gives both, and the cost, in closed form. With Δ(x) the step at x and f
the density,

    1 − ρ² = ∫ f³ Δ² dx      (of a sample: Σ(n_k³ − n_k)/(n³ − n), the ties of Kendall & Gibbons 1990, ch. 3)
    L2²    = ∫ f Δ² dx / 12 / E[x²]      (Bennett 1948)
    rate   = h(f) − ∫ f log₂ Δ dx        (Gish & Pierce 1968)

On the quadratic scale Δ² = 4·unit·min(|x|, x₀) for a knee at x₀, so that each promise is an upper bound on the unit, and one
walk over a histogram finds the cheapest knee. Where 127 codes do not reach from the bulk of the values to the largest, as
for the massive activations of first tokens, the segmented scale takes over: Δ = unit·2^e doubles from segment to segment.

Ranks can only be lost among different values. Rows that are equal in the whole chunk, as the first words of sentences are,
and exact zeros were ties before, and count as such.
"""

import math
from functools import cache
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from neuronlake.store.floats import f16bits_to_f32

LARGEST_CODE = 127
LOWEST_KNEE = 3.0
_SHIFT = 9  # float16 magnitudes are counted by exponent and the first bits of the mantissa: about the width of a step
_BINS = 1 + (0x7C00 >> _SHIFT)  # the first bin is for exact zeros
_MINUS = 0x8000 >> _SHIFT  # where the bins of negative values begin
# Between neurons: an odd number of cache lines, since powers of two would have all of them compete for the same ones
_STRIDE = 160
_CODES_STRIDE = 288
_TOGETHER = 64  # neurons whose histograms the nearest cache holds
_EDGES = np.append((np.arange(_BINS - 1, dtype=np.uint16) << _SHIFT).view(np.float16).astype(np.float64), 65536.0)
_CENTRES = np.append(0.0, (_EDGES[:-1] + _EDGES[1:]) / 2)
_WIDTHS = np.append(0.0, np.diff(_EDGES))
_SAMPLE_ROWS = 1024
_TOLERANCE = 1.15  # of the loss promised: a sample knows no better
_SLIGHTLY = 1.4  # of the loss promised, before the segmented scale is taken, which spends all codes
_SEGMENTS = np.array([6, 8, 11, 16, 23, 32, 45, 64, 90, 127], dtype=np.float64)
"""Codes of a segment that are tried on the segmented scale; 127 is a straight line."""


class Sample:
    """What the choice needs to know of a chunk: every n-th of its rows, counted."""

    def __init__(self, tile: NDArray[np.uint16], rows: int):
        step = max(1, rows // _SAMPLE_ROWS)
        neurons = tile.shape[1]
        # side by side, since they are read more than once: a row in eight, left where it is, is a cache miss each
        self.rows = np.empty((-(-rows // step), neurons), dtype=np.uint16)
        self.peaks = np.zeros(neurons, dtype=np.uint16)
        _take(tile, rows, step, self.rows, self.peaks)
        words = self.rows.view(np.uint64) if neurons % 4 == 0 else self.rows
        keys = np.empty(len(self.rows), dtype=np.uint64)
        _hash_rows(words, _factors(words.shape[1]), keys)
        unique = np.empty(len(self.rows), dtype=np.bool_)
        self.equal = _find_equal(keys, unique)
        """Σ(t³ − t) over groups of equal rows: ties of the truth."""
        self.counts = np.zeros((2, neurons, _STRIDE), dtype=np.uint16)
        """Of values per neuron and bin, signs apart: those of unique rows, and those of the others."""
        _count(self.rows, unique, self.counts)

    def choose(self, rho: float, l2: float) -> NDArray[np.float32]:
        """Return unit and knee of every neuron, float32 (neurons, 2)."""
        scales = np.empty((len(self.peaks), 2), dtype=np.float32)
        _choose_all(self.counts, self.peaks, self.equal, _CENTRES, _WIDTHS, rho, l2, scales)
        return scales

    def refine(self, codes: NDArray[np.int8], scales: NDArray[np.float32], rho: float, l2: float) -> None:
        """Give smaller steps to the neurons whose codes lost more rank than promised: `codes` are those of `rows`.

        The histogram is coarse: a density that peaks within a bin is underestimated.
        """
        found = np.zeros((len(scales), _CODES_STRIDE), dtype=np.uint16)
        _count_codes(codes, found)
        _refine_all(found, self.counts, self.peaks, self.equal, _CENTRES, _WIDTHS, rho, l2, scales)


@cache
def _factors(count: int) -> NDArray[np.uint64]:
    """Odd numbers for `_hash_rows`."""
    return np.random.default_rng(0).integers(0, 1 << 63, count, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _take(tile: Any, rows: int, step: int, sample: Any, peaks: Any) -> None:
    """Copy every `step`-th of the first rows, and find the largest magnitude of every neuron's, as a float16 pattern."""
    for i in range(rows):
        row = tile[i]
        for j in range(row.shape[0]):
            peaks[j] = max(peaks[j], numba.uint16(row[j] & numba.uint16(0x7FFF)))
        if i % step == 0:
            sample[i // step] = row


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _hash_rows(words: Any, factors: Any, keys: Any) -> None:
    """Multilinear hashing (Carter & Wegman 1979): sums, which are vectorised, and two steps of mixing."""
    for i in range(words.shape[0]):
        row, key = words[i], numba.uint64(0)
        for j in range(row.shape[0]):
            key += numba.uint64(row[j]) * factors[j]
        key = (key ^ (key >> numba.uint64(32))) * numba.uint64(0x9E3779B97F4A7C15)
        keys[i] = key ^ (key >> numba.uint64(29))


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _find_equal(keys: Any, unique: Any) -> float:
    """Mark the first of every group of equal keys; return Σ(t³ − t) over the groups."""
    mask = 1
    while mask < 2 * keys.shape[0]:
        mask *= 2
    places, counts = np.full(mask, -1, dtype=np.int32), np.zeros(keys.shape[0], dtype=np.int64)
    mask -= 1
    for i in range(keys.shape[0]):
        at = numba.int64(keys[i] & numba.uint64(mask))
        while places[at] >= 0 and keys[places[at]] != keys[i]:
            at = (at + 1) & mask
        unique[i] = places[at] < 0
        if unique[i]:
            places[at] = i
        counts[places[at]] += 1
    equal = 0.0
    for i in range(keys.shape[0]):
        equal += float(counts[i]) ** 3 - float(counts[i])
    return equal


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _count(rows: Any, unique: Any, counts: Any) -> None:
    """Histogram of the values: see `Sample.counts`. Places first, which are vectorised; then nothing but additions."""
    first, again = counts[0].ravel(), counts[1].ravel()
    places = np.empty(_TOGETHER, dtype=np.uint16)
    for begin in range(0, rows.shape[1], _TOGETHER):
        for i in range(rows.shape[0]):
            row = rows[i, begin : begin + _TOGETHER]
            for j in range(row.shape[0]):
                bits = row[j]
                some = numba.uint16(0 if (bits & numba.uint16(0x7FFF)) == 0 else 1)
                places[j] = numba.uint16((bits >> numba.uint16(_SHIFT)) + some)
            chosen, base = first if unique[i] else again, numba.uint64(begin * _STRIDE)
            for j in range(row.shape[0]):  # unsigned: a place that might count from the end takes three times as long
                chosen[base + numba.uint64(places[j])] += numba.uint16(1)
                base += numba.uint64(_STRIDE)


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _count_codes(codes: Any, counts: Any) -> None:
    """Histogram of the codes, as unsigned numbers: counts (neurons, 256 and more)."""
    flat = counts.ravel()
    for begin in range(0, codes.shape[1], _TOGETHER):
        for i in range(codes.shape[0]):
            row, base = codes[i, begin : begin + _TOGETHER], numba.uint64(begin * _CODES_STRIDE)
            for j in range(row.shape[0]):
                flat[base + numba.uint64(numba.uint8(row[j]))] += numba.uint16(1)
                base += numba.uint64(_CODES_STRIDE)


@numba.njit(nogil=True, inline="always")  # type: ignore[untyped-decorator]
def _triples(n: float) -> float:
    return n * (n - 1.0) * (n - 2.0)  # estimates the cube of a Poisson count's mean without bias


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _densities(
    counts: Any, neuron: int, equal: float, centres: Any, widths: Any, rho: float, l2: float, rank: Any, share: Any
) -> tuple[float, float, float]:
    """Fill ∫f³ and the number of values per bin; return how much of Σ rank·Δ² and Σ share·Δ² the promises allow, and n."""
    zeros, n, energy = 0.0, 0.0, 0.0
    for b in range(centres.shape[0]):
        plus, minus = float(counts[0, neuron, b]), float(counts[0, neuron, _MINUS + b])
        share[b] = minus + plus + float(counts[1, neuron, b]) + float(counts[1, neuron, _MINUS + b])
        n += share[b]
        if b == 0:
            zeros = share[0]
            rank[0] = share[0] = 0.0
        else:
            rank[b] = (_triples(minus) + _triples(plus)) / (widths[b] * widths[b])
            energy += share[b] * centres[b] * centres[b]
    return (1.0 - rho * rho) * max(n * n * n - zeros * zeros * zeros - equal, 0.0), 12.0 * l2 * l2 * energy, n - zeros


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _quadratic(
    peak: float, rank: Any, share: Any, rank_budget: float, error_budget: float, values: float, centres: Any
) -> tuple[float, float]:
    """Return the cheapest unit and knee (as a value) that keep both promises.

    If 127 codes do not suffice, those that break them least, or (0, 0) if that is more than slightly.
    """
    rank_above, share_above, last = 0.0, 0.0, 0
    for b in range(1, centres.shape[0]):
        rank_above += rank[b]
        share_above += share[b]
        last = b if share[b] else last
    best, best_unit, best_knee = np.inf, 0.0, 0.0
    least, least_unit, least_knee = _SLIGHTLY, 0.0, 0.0
    rank_below, share_below, log_below = 0.0, 0.0, 0.0
    for b in range(1, last + 1):
        if share[b] == 0.0:
            continue
        rank_below += rank[b] * centres[b]
        share_below += share[b] * centres[b]
        log_below += share[b] * math.log2(centres[b])
        rank_above -= rank[b]
        share_above -= share[b]
        x0 = centres[b] if b < last else peak
        error, loss = share_below + max(share_above, 0.0) * x0, rank_below + max(rank_above, 0.0) * x0
        unit = min(error_budget / (4.0 * error), peak)
        if loss > 0.0:
            unit = min(unit, rank_budget / (4.0 * loss))
        if x0 < LOWEST_KNEE * LOWEST_KNEE * unit:
            continue
        finest = ((peak / math.sqrt(x0) + math.sqrt(x0)) / (2.0 * LARGEST_CODE)) ** 2  # the peak at the last code
        if unit < finest:
            excess = 4.0 * finest * max(loss / max(rank_budget, 1e-300), error / error_budget)
            if excess < least:
                least, least_unit, least_knee = excess, finest, x0
            continue
        rate = -0.5 * math.log2(unit) - 0.5 * (log_below + max(share_above, 0.0) * math.log2(x0)) / values
        if rate < best:
            best, best_unit, best_knee = rate, unit, x0
    return (best_unit, best_knee) if best_unit > 0.0 else (least_unit, least_knee)


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _set_quadratic(scale: Any, peak: float, unit: float, knee_value: float) -> bool:
    """Write unit and knee, the unit adjusted so that the peak itself is a code; False if that takes too many codes."""
    knee = min(float(LARGEST_CODE), max(LOWEST_KNEE, np.rint(math.sqrt(knee_value / unit))))
    ratio = peak / unit
    code = math.ceil((math.sqrt(ratio) if ratio <= knee * knee else 0.5 * (ratio / knee + knee)) - 1e-9)
    if code > LARGEST_CODE:
        return False
    scale[0], scale[1] = peak / (code * code - max(code - knee, 0.0) ** 2), knee
    return True


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _excess(
    segment: float, unit: float, rank: Any, share: Any, rank_budget: float, error_budget: float, centres: Any
) -> float:
    """By how much the worse promise would be broken; `segment` 0 means the quadratic scale without a knee."""
    loss, error = 0.0, 0.0
    for b in range(1, centres.shape[0]):
        if share[b]:
            x = centres[b]
            step = 4.0 * unit * x
            if segment:
                step = (unit * 2.0 ** math.floor(math.log2(x / (unit * segment) + 1.0))) ** 2
            loss += rank[b] * step
            error += share[b] * step
    return max(loss / max(rank_budget, 1e-300), error / max(error_budget, 1e-300))


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _set_best_effort(
    scale: Any, peak: float, rank: Any, share: Any, rank_budget: float, error_budget: float, centres: Any
) -> None:
    """Write the scale that spends all 127 codes best: quadratic, segmented or straight."""
    scale[0], scale[1] = peak / (LARGEST_CODE * LARGEST_CODE), LARGEST_CODE
    best = _excess(0.0, peak / (LARGEST_CODE * LARGEST_CODE), rank, share, rank_budget, error_budget, centres)
    for segment in _SEGMENTS:
        whole = math.floor(LARGEST_CODE / segment)
        unit = peak / ((segment + (LARGEST_CODE - whole * segment)) * 2.0**whole - segment)
        excess = _excess(segment, unit, rank, share, rank_budget, error_budget, centres)
        if excess < best:
            best = excess
            scale[0], scale[1] = unit, -segment


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _choose_all(
    counts: Any, peaks: Any, equal: float, centres: Any, widths: Any, rho: float, l2: float, scales: Any
) -> None:
    rank, share = np.empty(centres.shape[0]), np.empty(centres.shape[0])
    for j in range(scales.shape[0]):
        peak = numba.float64(f16bits_to_f32(peaks[j]))
        if peak == 0.0:
            scales[j, 0], scales[j, 1] = 0.0, LARGEST_CODE
            continue
        allowed, error, values = _densities(counts, j, equal, centres, widths, rho, l2, rank, share)
        unit, knee_value = _quadratic(peak, rank, share, allowed, error, values, centres)
        if unit == 0.0 or not _set_quadratic(scales[j], peak, unit, knee_value):
            _set_best_effort(scales[j], peak, rank, share, allowed, error, centres)


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _refine_all(
    found: Any,
    counts: Any,
    peaks: Any,
    equal: float,
    centres: Any,
    widths: Any,
    rho: float,
    l2: float,
    scales: Any,
) -> None:
    rank, share = np.empty(centres.shape[0]), np.empty(centres.shape[0])
    for j in range(scales.shape[0]):
        unit, knee = numba.float64(scales[j, 0]), numba.float64(scales[j, 1])
        if knee < 0.0 or unit == 0.0:
            continue  # best effort already, or no values
        allowed, error, _ = _densities(counts, j, equal, centres, widths, rho, l2, rank, share)
        zeros, ties = numba.int64(found[j, 0]), numba.int64(0)
        for k in range(256):  # as integers, which are vectorised
            n = numba.int64(found[j, k])
            ties += n * (n - 1) * (n - 2)
        lost = float(ties - zeros * zeros * zeros) - equal
        if allowed <= 0.0 or lost <= _TOLERANCE * allowed:
            continue
        peak = numba.float64(f16bits_to_f32(peaks[j]))
        factor = max(allowed / lost, 0.1)
        if not _set_quadratic(scales[j], peak, unit * factor, unit * knee * knee):
            line = peak / (LARGEST_CODE**2 - (LARGEST_CODE - knee) ** 2)  # all the codes there are, with the same knee
            if line < unit and lost * line / unit <= _SLIGHTLY * allowed:
                scales[j, 0] = line
                continue
            # what the histogram missed, it missed everywhere
            for b in range(centres.shape[0]):
                rank[b] /= factor
            _set_best_effort(scales[j], peak, rank, share, allowed, error, centres)
