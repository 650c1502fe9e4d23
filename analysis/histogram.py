"""Histograms per tag × neuron on fixed signed-log edges, from one pass over the values.

The bin of a value x depends on log₂(1 + |x|/s) with s a power of two near a sixth of the neuron's median magnitude: linear
around zero, logarithmic in the tails, sixteen bins from one doubling of |x| + s to the next. The logarithm costs nothing:
the upper bits of the float |x| + s are its piecewise linear form. Bins 1–127 hold negative values from the largest magnitude
down, bin 128 exact zeros, bins 129–255 positive values; |x| beyond 235·s falls in the outermost bins, whose ends are the
neuron's extremes. Equal values share a bin, and bins are in order of value: what is computed from them has an error that
can be stated (see `histogram_statistics`).
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis import kernels
from neuronlake.analysis.groups import BlockGroups
from neuronlake.analysis.kernels import BIN_SHIFT, BINS, ZERO_BIN
from neuronlake.analysis.moments import as_float32, typed_patterns

_MAGNITUDES = 127  # bins of one sign
_SHARE = 6  # of the median magnitude: measured on real activations, the AUROC's bound is smallest from 6 to 12
_EXPONENTS = -100, 100  # keeps every edge a normal float32


@dataclass(frozen=True, kw_only=True)
class Binning:
    """The edges of some neurons, from their scales alone."""

    scale: NDArray[np.float32] = field(repr=False)
    """s, powers of two, (neurons,)."""

    @property
    def exponent(self) -> NDArray[np.int16]:
        """log₂ s, (neurons,): what is kept."""
        return (np.frexp(self.scale)[1] - 1).astype(np.int16)

    @classmethod
    def of_exponents(cls, exponent: NDArray[np.int16]) -> "Binning":
        """Return the binning whose scales are 2**exponent."""
        return cls(scale=np.ldexp(np.float32(1), exponent.astype(np.int32)))

    @classmethod
    def of_sample(cls, codes: NDArray[Any], groups: BlockGroups, *, width: int, values: str) -> "Binning":
        """Choose the scales by a sample of a chunk's labelled rows; 1 is assumed for a neuron that is zero in all of them.

        The median is taken; the mean would follow a single massive activation.

        Parameters
        ----------
        codes : uint16 bit patterns or float32 (rows, c), C order
        """
        sample = codes[groups.sample, :width]
        magnitude = np.sort(np.abs(as_float32(sample, values)), axis=0)
        zeros = np.count_nonzero(magnitude == 0, axis=0)
        middle = np.minimum((zeros + len(magnitude)) // 2, len(magnitude) - 1)  # the median of those that are not zero
        median = magnitude[middle, np.arange(width)].astype(np.float64)
        exponent = np.frexp(np.where(median > 0, median / _SHARE, 1.0))[1] - 1
        return cls.of_exponents(np.clip(exponent, *_EXPONENTS).astype(np.int16))

    def add(
        self,
        codes: NDArray[Any],
        groups: BlockGroups,
        histogram: NDArray[np.uint32],
        *,
        width: int,
        values: str,
        first: int = 0,
    ) -> None:
        """Count the labelled rows of one chunk.

        Parameters
        ----------
        codes : uint16 bit patterns or float32 (rows, c), C order
        groups
            The rows that count.
        histogram : uint32 (tags, neurons, 256)
            Added to, from the neuron `first` on.
        """
        origin = self.scale.view(np.uint32)
        ceiling = (origin + np.uint32((_MAGNITUDES << BIN_SHIFT) - 1)).view(np.float32)
        patterns = typed_patterns(codes, values)
        rows, start = groups.rows, groups.tag_start
        kernels.add_to_histogram(patterns, rows, start, width, first, self.scale, origin, ceiling, histogram)

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
        slack = np.finfo(np.float32).eps * offset
        return np.maximum(bounds - slack, 0), np.where(level == _MAGNITUDES, np.finfo(np.float32).max, bounds + slack)


def empty_histogram(tags: int, neurons: int) -> NDArray[np.uint32]:
    """Histogram of no tokens."""
    return np.zeros((tags, neurons, BINS), dtype=np.uint32)


__all__ = ["BINS", "ZERO_BIN", "Binning", "empty_histogram"]
