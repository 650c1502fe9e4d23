"""Moments per group × neuron, as chunk / combine / aggregate functions.

Within a chunk the central sums are taken about the mean of some of a group's rows, in a second look at values that are still
in the cache (`group_kernels`): an offset of 10⁶ with a deviation of 1 keeps its digits, and a constant neuron has exactly
zero variance. Parts are merged pairwise: Chan, Golub & LeVeque (1979), "Updating formulae and a pairwise algorithm for
computing sample variances", and for third and fourth moments Pébay (2008), "Formulas for robust, one-pass parallel
computation of covariances and arbitrary-order statistical moments", Sandia report SAND2008-6212.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis import kernels

_Triple = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Sufficient statistics of some tokens. A group without tokens has zeros, its minimum is +∞ and its maximum −∞."""

    count: NDArray[np.int64]
    """Tokens, (groups, 1)."""
    mean: NDArray[np.float64]
    """(groups, neurons)."""
    m2: NDArray[np.float64]
    """Σ(x − mean)², (groups, neurons)."""
    m3: NDArray[np.float64]
    """Σ(x − mean)³, (groups, neurons)."""
    m4: NDArray[np.float64]
    """Σ(x − mean)⁴, (groups, neurons)."""
    absolute: NDArray[np.float64]
    """Mean of |x|, (groups, neurons)."""
    active: NDArray[np.int32]
    """Tokens with x > 0, (groups, neurons); a group has fewer than 2³¹ tokens."""
    minimum: NDArray[np.float32]
    """(groups, neurons)."""
    maximum: NDArray[np.float32]
    """(groups, neurons)."""


DTYPES = {
    **dict.fromkeys(("mean", "m2", "m3", "m4", "absolute"), np.float64),
    "active": np.int32,
    **dict.fromkeys(("minimum", "maximum"), np.float32),
}
"""Types of the fields of `Moments` that are (groups, neurons)."""
FIELDS = tuple(DTYPES)
"""Their names."""
BASIC_FIELDS = ("mean", "m2", "active")
"""What there is of basic statistics, per tag and per fold."""
EMPTY = {"minimum": np.inf, "maximum": -np.inf}
"""What a group without tokens has where it is not zero."""


def no_moments(groups: int, neurons: int) -> Moments:
    """Moments of no tokens."""
    shape = (groups, neurons)
    return Moments(
        count=np.zeros((groups, 1), dtype=np.int64),
        **{name: np.full(shape, EMPTY.get(name, 0), dtype=dtype) for name, dtype in DTYPES.items()},
    )


def combine_moments(first: Moments, second: Moments) -> Moments:
    """Moments of two disjoint sets of tokens together."""
    both = select_groups(first, slice(None), copy=True)
    add_moments(both, second)
    return both


def add_moments(first: Moments, second: Moments) -> None:
    """Add to the first, in place, the moments of other tokens: Pébay 2008, eqs. 2.1, 2.2 and 2.4 (k = 2, 3, 4)."""
    shape = (len(first.count), -1)
    whole = np.maximum(first.count + second.count, 1)
    w1, w2 = first.count / whole, second.count / whole
    first.absolute[...] = first.absolute * w1 + second.absolute * w2
    sums = [np.reshape(getattr(moments, name), shape) for name in ("mean", "m2", "m3", "m4") for moments in (first, second)]
    kernels.merge_moments(first.count.reshape(shape), second.count.reshape(shape), *sums)
    first.count[...] += second.count
    first.active[...] += second.active
    np.minimum(first.minimum, second.minimum, out=first.minimum)
    np.maximum(first.maximum, second.maximum, out=first.maximum)


def select_groups(moments: Moments, groups: NDArray[np.int64] | slice, *, copy: bool = False) -> Moments:
    """Moments of some groups, in that order; with `copy`, in arrays of their own."""
    taken = {name: getattr(moments, name)[groups] for name in ("count", *FIELDS)}
    return Moments(**{name: values.copy() if copy else values for name, values in taken.items()})


def merge_folds(moments: Moments, folds: int) -> Moments:
    """Moments per tag, from groups ordered by tag, then fold."""
    merged = select_groups(moments, slice(0, None, folds), copy=True)
    for fold in range(1, folds):
        add_moments(merged, select_groups(moments, slice(fold, None, folds), copy=True))
    return merged


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


def _merge(first: _Triple, second: _Triple) -> _Triple:
    # Chan et al. 1979, eq. 2.1; Pébay 2008, eq. 2.1.
    (n1, mean1, m2_1), (n2, mean2, m2_2) = first, second
    count = n1 + n2
    share = n2 / np.maximum(count, 1)
    delta = mean2 - mean1
    return count, mean1 + delta * share, m2_1 + m2_2 + delta * delta * (n1 * share)
