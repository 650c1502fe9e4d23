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
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from neuronlake.store.floats import f16bits_to_f32

LARGEST_CODE = 127
LOWEST_KNEE = 3.0
_SHIFT = 9  # float16 magnitudes are counted by exponent and the first bits of the mantissa: about the width of a step
_BINS = 1 + (0x7C00 >> _SHIFT)  # the first bin is for exact zeros
_EDGES = np.append((np.arange(_BINS - 1, dtype=np.uint16) << _SHIFT).view(np.float16).astype(np.float64), 65536.0)
_CENTRES = np.append(0.0, (_EDGES[:-1] + _EDGES[1:]) / 2)
_WIDTHS = np.append(0.0, np.diff(_EDGES))
_SAMPLE_ROWS = 2048
_TOLERANCE = 1.15  # of the loss promised: a sample knows no better
_SLIGHTLY = 1.4  # of the loss promised, before the segmented scale is taken, which spends all codes
_SEGMENTS = np.array([6, 8, 11, 16, 23, 32, 45, 64, 90, 127], dtype=np.float64)
"""Codes of a segment that are tried on the segmented scale; 127 is a straight line."""


class Sample:
    """What the choice needs to know of a chunk: every n-th of its rows, counted."""

    def __init__(self, tile: NDArray[np.uint16], rows: int):
        step = max(1, rows // _SAMPLE_ROWS)
        self.rows = np.arange(0, rows, step)
        words = tile.view(np.uint64) if tile.shape[1] % 4 == 0 else tile
        keys = np.empty(len(self.rows), dtype=np.uint64)
        _hash_rows(words, self.rows, keys)
        _, first, copies = np.unique(keys, return_index=True, return_counts=True)
        unique = np.zeros(len(self.rows), dtype=np.bool_)
        unique[first] = True
        self.equal = float((copies.astype(np.float64) ** 3 - copies).sum())
        """Σ(t³ − t) over groups of equal rows: ties of the truth."""
        shape = (tile.shape[1], 2, _BINS)
        self.counts, self.repeats = np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.int32)
        _count(tile, self.rows[unique], self.counts)
        _count(tile, self.rows[~unique], self.repeats)
        self.peaks = np.zeros(tile.shape[1], dtype=np.uint16)
        _peaks(tile, rows, self.peaks)

    def choose(self, rho: float, l2: float) -> NDArray[np.float32]:
        """Return unit and knee of every neuron, float32 (neurons, 2)."""
        scales = np.empty((len(self.peaks), 2), dtype=np.float32)
        _choose_all(self.counts, self.repeats, self.peaks, self.equal, _CENTRES, _WIDTHS, rho, l2, scales)
        return scales

    def refine(self, codes: NDArray[np.int8], scales: NDArray[np.float32], rho: float, l2: float) -> bool:
        """Give smaller steps to the neurons whose codes lost more rank than promised; return whether there were any.

        The histogram is coarse: a density that peaks within a bin is underestimated.
        """
        found = np.zeros((len(scales), 256), dtype=np.int32)
        _count_codes(codes, self.rows, found)
        return bool(
            _refine_all(found, self.counts, self.repeats, self.peaks, self.equal, _CENTRES, _WIDTHS, rho, l2, scales)
        )


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _hash_rows(words: Any, rows: Any, keys: Any) -> None:
    for i in range(rows.shape[0]):
        key = numba.uint64(0xCBF29CE484222325)
        row = words[rows[i]]
        for j in range(row.shape[0]):
            key = (key ^ numba.uint64(row[j])) * numba.uint64(0x9E3779B97F4A7C15)
            key ^= key >> numba.uint64(29)
        keys[i] = key


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _peaks(tile: Any, rows: int, peaks: Any) -> None:
    """Largest magnitude of every neuron's first `rows` values, as a float16 pattern."""
    for i in range(rows):
        row = tile[i]
        for j in range(row.shape[0]):
            peaks[j] = max(peaks[j], numba.uint16(row[j] & numba.uint16(0x7FFF)))


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _count(tile: Any, rows: Any, counts: Any) -> None:
    """Histogram of the chosen rows' values: counts (neurons, 2 signs, bins)."""
    flat = counts.ravel()
    neuron = counts.shape[1] * counts.shape[2]
    for i in rows:
        row = tile[i]
        for j in range(row.shape[0]):
            bits = numba.int64(row[j])
            magnitude = bits & 0x7FFF
            flat[j * neuron + (bits >> 15) * _BINS + (1 + (magnitude >> _SHIFT) if magnitude else 0)] += 1


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _count_codes(codes: Any, rows: Any, counts: Any) -> None:
    """Histogram of the chosen rows' codes: counts (neurons, 256)."""
    flat = counts.ravel()
    for i in rows:
        row = codes[i]
        for j in range(row.shape[0]):
            flat[j * 256 + numba.int64(row[j]) + 128] += 1


@numba.njit(nogil=True, inline="always")  # type: ignore[untyped-decorator]
def _triples(n: float) -> float:
    return n * (n - 1.0) * (n - 2.0)  # estimates the cube of a Poisson count's mean without bias


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _densities(
    counts: Any, repeats: Any, equal: float, centres: Any, widths: Any, rho: float, l2: float, rank: Any, share: Any
) -> tuple[float, float, float]:
    """Fill ∫f³ and the number of values per bin; return how much of Σ rank·Δ² and Σ share·Δ² the promises allow, and n."""
    zeros, n, energy = 0.0, 0.0, 0.0
    for b in range(centres.shape[0]):
        minus, plus = float(counts[0, b]), float(counts[1, b])
        share[b] = minus + plus + repeats[0, b] + repeats[1, b]
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
    counts: Any, repeats: Any, peaks: Any, equal: float, centres: Any, widths: Any, rho: float, l2: float, scales: Any
) -> None:
    rank, share = np.empty(centres.shape[0]), np.empty(centres.shape[0])
    for j in range(scales.shape[0]):
        peak = numba.float64(f16bits_to_f32(peaks[j]))
        if peak == 0.0:
            scales[j, 0], scales[j, 1] = 0.0, LARGEST_CODE
            continue
        allowed, error, values = _densities(counts[j], repeats[j], equal, centres, widths, rho, l2, rank, share)
        unit, knee_value = _quadratic(peak, rank, share, allowed, error, values, centres)
        if unit == 0.0 or not _set_quadratic(scales[j], peak, unit, knee_value):
            _set_best_effort(scales[j], peak, rank, share, allowed, error, centres)


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _refine_all(
    found: Any,
    counts: Any,
    repeats: Any,
    peaks: Any,
    equal: float,
    centres: Any,
    widths: Any,
    rho: float,
    l2: float,
    scales: Any,
) -> int:
    changed = 0
    rank, share = np.empty(centres.shape[0]), np.empty(centres.shape[0])
    for j in range(scales.shape[0]):
        unit, knee = numba.float64(scales[j, 0]), numba.float64(scales[j, 1])
        if knee < 0.0 or unit == 0.0:
            continue  # best effort already, or no values
        allowed, error, _ = _densities(counts[j], repeats[j], equal, centres, widths, rho, l2, rank, share)
        zeros = float(found[j, 128])
        lost = -zeros * zeros * zeros - equal
        for k in range(256):
            lost += _triples(float(found[j, k]))
        if allowed <= 0.0 or lost <= _TOLERANCE * allowed:
            continue
        peak = numba.float64(f16bits_to_f32(peaks[j]))
        factor = max(allowed / lost, 0.1)
        if not _set_quadratic(scales[j], peak, unit * factor, unit * knee * knee):
            line = peak / (LARGEST_CODE**2 - (LARGEST_CODE - knee) ** 2)  # all the codes there are, with the same knee
            if line < unit and lost * line / unit <= _SLIGHTLY * allowed:
                scales[j, 0] = line
                changed += 1
                continue
            # what the histogram missed, it missed everywhere
            for b in range(centres.shape[0]):
                rank[b] /= factor
            _set_best_effort(scales[j], peak, rank, share, allowed, error, centres)
        changed += 1
    return changed
