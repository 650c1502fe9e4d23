"""Count, mean, variance and share of active tokens per tag × neuron, as chunk / combine / aggregate functions.

Second moments are centred and merged pairwise: Chan, Golub & LeVeque (1979), "Updating formulae and a pairwise algorithm
for computing sample variances"; Pébay (2008), "Formulas for robust, one-pass parallel computation of covariances and
arbitrary-order statistical moments", Sandia report SAND2008-6212.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis import kernels
from neuronlake.analysis.labels import BlockLabels

_KERNELS = {"float16": kernels.moments_f16, "bfloat16": kernels.moments_bf16, "float32": kernels.moments_f32}
_Triple = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]
_POOR_SHIFT = 1e3  # n·(mean − shift)²/M2, that is 30 deviations, beyond which cancellation costs over 3 of 16 digits


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Sufficient statistics of some tokens, per tag × neuron. A tag without tokens has zeros."""

    count: NDArray[np.int64]
    """Tokens, (tags, 1)."""
    mean: NDArray[np.float64]
    """(tags, neurons)."""
    m2: NDArray[np.float64]
    """Σ(x − mean)², (tags, neurons)."""
    active: NDArray[np.int64]
    """Tokens with x > 0, (tags, neurons)."""


def chunk_moments(codes: NDArray[Any], labels: BlockLabels, *, width: int, encoding: str) -> Moments:
    """Moments of one chunk of stored codes.

    One pass accumulates float64 sums of x − s, with s the first value of that tag and neuron: exact differences of
    float32 values, so an offset of 10⁶ with a deviation of 1 keeps ten digits and a constant neuron has exactly zero
    variance. Where s turns out to lie far from the mean (an outlier came first), the pass is repeated about the mean.

    Parameters
    ----------
    codes : uint16 bit patterns or float32 (rows, c), C order
    labels
        Labels of the rows; rows without one are left out.
    width
        Neurons of the chunk, ``width <= c``.
    encoding
        ``float16``, ``bfloat16`` or ``float32``.
    """
    kernel = _KERNELS[encoding]
    count = labels.count[:, None]
    shift = np.zeros((len(count), width), dtype=np.float64)
    shift[labels.codes[labels.first]] = decode(codes[labels.first, :width], encoding)
    total, square, active = _accumulate(kernel, codes, labels.codes, width, shift)
    offset = total / np.maximum(count, 1)
    m2 = square - total * offset
    # A cancelled m2 may come out as zero or negative: the comparison must hold then too.
    if np.any(count * offset * offset > _POOR_SHIFT * m2):
        shift += offset
        total, square, _ = _accumulate(kernel, codes, labels.codes, width, shift)
        offset = total / np.maximum(count, 1)
        m2 = square - total * offset
    return Moments(count=count, mean=shift + offset, m2=np.maximum(m2, 0.0), active=active.astype(np.int64))


def combine_moments(first: Moments, second: Moments) -> Moments:
    """Moments of two disjoint sets of tokens together."""
    count, mean, m2 = _merge((first.count, first.mean, first.m2), (second.count, second.mean, second.m2))
    return Moments(count=count, mean=mean, m2=m2, active=first.active + second.active)


def variance_of(m2: NDArray[np.float64], count: NDArray[np.int64]) -> NDArray[np.float64]:
    """Unbiased variance, M2 / (n − 1); tags need two tokens."""
    return m2 / (count - 1)


def fraction_active(moments: Moments) -> NDArray[np.float64]:
    """Share of tokens with x > 0, in [0, 1]."""
    return moments.active / moments.count


def rest_moments(
    count: NDArray[np.int64], mean: NDArray[np.float64], m2: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Count, mean and M2 of all *other* tags together, for every tag.

    Merges the tags before and the tags after (prefix and suffix merges): subtracting a tag from the total would cancel.

    Parameters
    ----------
    count : int64 (tags, 1)
    mean, m2 : float64 (tags, neurons)

    Returns
    -------
    count, mean, m2
        Of the rest, shaped as given.
    """
    parts = list(zip(count, mean, m2, strict=True))
    nothing = (np.zeros_like(count[0]), np.zeros_like(mean[0]), np.zeros_like(m2[0]))
    after = [nothing]
    for part in parts[:0:-1]:
        after.append(_merge(part, after[-1]))
    rest = np.empty_like(count), np.empty_like(mean), np.empty_like(m2)
    before = nothing
    for tag, part in enumerate(parts):
        for out, value in zip(rest, _merge(before, after.pop()), strict=True):
            out[tag] = value
        before = _merge(before, part)
    return rest


def decode(codes: NDArray[Any], encoding: str) -> NDArray[np.float32]:
    """Decode a few stored codes (any shape) to float32 with NumPy alone."""
    if encoding == "float16":
        return codes.view(np.float16).astype(np.float32)
    if encoding == "bfloat16":
        return (codes.astype(np.uint32) << 16).view(np.float32)
    return codes.astype(np.float32)


def _merge(first: _Triple, second: _Triple) -> _Triple:
    # Chan et al. 1979, eq. 2.1; Pébay 2008, eq. 2.1.
    (n1, mean1, m2_1), (n2, mean2, m2_2) = first, second
    count = n1 + n2
    share = n2 / np.maximum(count, 1)
    delta = mean2 - mean1
    return count, mean1 + delta * share, m2_1 + m2_2 + delta * delta * (n1 * share)


def _accumulate(
    kernel: Any, codes: NDArray[Any], labels: NDArray[np.int16], width: int, shift: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int32]]:
    total, square = np.zeros_like(shift), np.zeros_like(shift)
    active = np.zeros(shift.shape, dtype=np.int32)  # a block has fewer than 2³¹ rows
    kernel(codes, labels, width, shift, total, square, active)
    return total, square, active
