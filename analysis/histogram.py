"""Histograms per tag × neuron on fixed signed-log edges, from one pass over the values.

The bin of a value x depends on log₂(1 + |x|/s) with s a power of two near a sixth of the neuron's median magnitude: linear
around zero, logarithmic in the tails, sixteen bins from one doubling of |x| + s to the next. The logarithm costs nothing:
the upper bits of the float |x| + s are its piecewise linear form. Bins 1–127 hold negative values from the largest magnitude
down, bin 128 exact zeros, bins 129–255 positive values; |x| beyond 235·s falls in the outermost bins, whose ends are the
neuron's extremes. Equal values share a bin, and bins are in order of value: what is computed from them has an error that
can be stated (see `histogram_statistics`).
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.group_kernels import BIN_SHIFT, BINS, ZERO_BIN

_MAGNITUDES = 127  # bins of one sign
_Lanes = tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]]
_ROUNDING, _LARGEST = np.finfo(np.float32).eps, np.finfo(np.float32).max


@dataclass(frozen=True, kw_only=True)
class Binning:
    """The edges of some neurons, from their scales alone."""

    scale: NDArray[np.float32] = field(repr=False)
    """s, powers of two, (neurons,)."""
    _lanes: dict[int, _Lanes] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def exponent(self) -> NDArray[np.int16]:
        """log₂ s, (neurons,): what is kept."""
        return (np.frexp(self.scale)[1] - 1).astype(np.int16)

    @classmethod
    def of_exponents(cls, exponent: NDArray[np.int16]) -> "Binning":
        """Return the binning whose scales are 2**exponent."""
        return cls(scale=np.ldexp(np.float32(1), exponent.astype(np.int32)))

    def lanes(self, width: int) -> _Lanes:
        """Return what the kernels need of as many neurons, or more: scale, its bits, and the largest |x| + s of any bin."""
        if width in self._lanes:
            return self._lanes[width]
        scale = np.ones(width, dtype=np.float32)
        scale[: len(self.scale)] = self.scale
        origin = scale.view(np.int32)
        found = scale, origin, (origin + np.int32((_MAGNITUDES << BIN_SHIFT) - 1)).view(np.float32)
        self._lanes[width] = found
        return found

    def upper_edge(self, bins: NDArray[np.int64]) -> NDArray[np.float64]:
        """Upper end of one bin of every neuron, float64 (neurons,); see `edges`."""
        level = np.where(bins > ZERO_BIN, bins - ZERO_BIN, ZERO_BIN - 1 - np.maximum(bins, 1))
        low, high = self._magnitudes(level[:, None])
        return np.where(bins > ZERO_BIN, high[:, 0], np.where(bins < ZERO_BIN, -low[:, 0], 0.0))

    def edges(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower and upper end of every bin, float64 (neurons, 256): each value lies within its bin's ends, included.

        The outermost bins reach to ∓ the largest float32. Bin 0 is never used; its ends are those of bin 1.
        """
        low, high = self._magnitudes(np.arange(_MAGNITUDES + 1)[None])
        low, high, zero = low[:, :-1], high[:, 1:], np.zeros((len(self.scale), 1))
        lower = np.concatenate([-high[:, ::-1], zero, low], axis=1)
        upper = np.concatenate([-low[:, ::-1], zero, high], axis=1)
        return np.concatenate([lower[:, :1], lower], axis=1), np.concatenate([upper[:, :1], upper], axis=1)

    def _magnitudes(self, level: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where the bins of one sign meet, as the end of the farther bin and of the nearer: (neurons, levels) each."""
        bits = self.scale.view(np.uint32)[:, None] + (level.astype(np.uint32) << np.uint32(BIN_SHIFT))
        offset = bits.view(np.float32).astype(np.float64)
        bounds = offset - self.scale[:, None]
        # |x| + s was rounded to float32, so a value may lie that much beyond its bin's end
        slack = _ROUNDING * offset
        return np.maximum(bounds - slack, 0), np.where(level == _MAGNITUDES, _LARGEST, bounds + slack)


__all__ = ["BINS", "ZERO_BIN", "Binning"]
