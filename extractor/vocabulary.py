"""How the vectors that neurons write read in the vocabulary: cosines with the unembedding of every token, in pieces.

Nothing as large as neurons × vocabulary is ever held: a product of some neurons with some tokens is folded at once into
moments and lists of the highest and lowest, by a compiled loop.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from neuronlake.extractor.checkpoint import Checkpoint, check_finite
from neuronlake.store.parallel import map_ordered
from neuronlake.store.weights import ENDS, LISTED, MOMENTS, NORMS, neuron_arrays

_NEURONS, _TOKENS = 512, 2048  # of one product: 4 MiB, that the loop finds in the cache
_LANES = 32
# Sums in another order are as good; infinities and comparisons must stay what they are.
_njit = numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})


@dataclass(frozen=True, kw_only=True)
class Unembedding:
    """The vectors that logits are products with, centred: γ ⊙ W_U[t] minus their mean over the vocabulary.

    γ is the final norm's gain. A constant added to all logits of a position changes no probability, so only differences
    between tokens mean anything; without centring, the direction that all tokens share would decide the cosines
    (TransformerLens' ``fold_ln`` and ``center_unembed``, which Gurnee et al. 2024 load their models with).
    """

    rows: Any = field(repr=False)
    """W_U, (ids, width), sliced into float32."""
    ids: NDArray[np.int64] = field(repr=False)
    """Ids that have a token, ascending; a padded vocabulary has more."""
    gain: NDArray[np.float32] = field(repr=False)
    """γ, (width,)."""
    mean: NDArray[np.float64] = field(repr=False)
    """Mean of γ ⊙ W_U over the tokens, (width,)."""
    inverse: NDArray[np.float32] = field(repr=False)
    """1 / ‖γ ⊙ W_U[t] − mean‖ of every token, 0 where that norm is 0; (tokens,)."""

    @classmethod
    def of(cls, rows: Any, ids: NDArray[np.int64], gain: NDArray[np.float32]) -> "Unembedding":
        """Read it through twice: for the mean, and for the norms."""
        starts = range(0, len(ids), _TOKENS)
        sums = [_take(rows, ids[start : start + _TOKENS]).sum(axis=0, dtype=np.float64) for start in starts]
        mean = np.sum(sums, axis=0) / len(ids) * gain
        norms = [
            np.linalg.norm(_take(rows, ids[start : start + _TOKENS]) * gain.astype(np.float64) - mean, axis=1)
            for start in starts
        ]
        norm = np.concatenate(norms)
        check_finite(norm, "the unembedding")
        inverse = np.divide(1, norm, out=np.zeros_like(norm), where=norm > 0)
        return cls(rows=rows, ids=ids, gain=gain, mean=mean, inverse=inverse.astype(np.float32))


def read_vocabulary(
    checkpoint: Checkpoint,
    layers: tuple[int, ...],
    ids: NDArray[np.int64],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, NDArray[Any]]:
    """Read every neuron's output vector in the vocabulary.

    The cosine of neuron j with token t is w_j·u_t / (‖w_j‖·‖u_t‖), u of `Unembedding`; 0 where either is zero. Over the
    tokens, their mean, variance (population), skewness and kurtosis (mean fourth power of the standardised cosine: 3 for a
    normal distribution; both 0 where the variance is) are those of Gurnee et al. (2024), "Universal neurons in GPT2 language
    models": high kurtosis marks neurons that promote few tokens (positive skewness) or suppress them (negative).

    Parameters
    ----------
    ids
        Ids that have a token, ascending.
    progress
        Called with (pieces done, pieces in all).

    Returns
    -------
    dict of arrays (layers, neurons, …)
        See `neuronlake.store.weights.neuron_arrays`. Products are in float32, sums over the vocabulary in float64; of equal
        cosines the lower id comes first.
    """
    unembedding = Unembedding.of(checkpoint.unembedding, ids, checkpoint.final_gain)
    listed = min(LISTED, len(ids))
    found = {
        name: np.empty((len(layers), checkpoint.neurons, *entry), dtype=dtype)
        for name, (dtype, entry) in neuron_arrays(listed).items()
    }
    pieces = [
        (place, slice(first, min(first + _NEURONS, checkpoint.neurons)))
        for place in range(len(layers))
        for first in range(0, checkpoint.neurons, _NEURONS)
    ]

    def work(piece: tuple[int, slice]) -> None:
        place, neurons = piece
        values = _read_piece(unembedding, checkpoint.output_vectors(layers[place], neurons), listed)
        for name, array in values.items():
            found[name][place, neurons] = array

    # one product per thread, each on one core: that shares out the loop too
    with threadpool_limits(1, user_api="blas"):
        for done, _ in enumerate(map_ordered(work, pieces), 1):
            progress(done, len(pieces))
    return found


def _read_piece(unembedding: Unembedding, vectors: NDArray[np.float32], listed: int) -> dict[str, NDArray[Any]]:
    """Read some neurons' vectors, float32 (neurons, width)."""
    count = len(vectors)
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    unit = np.divide(vectors, norms[:, None], out=np.zeros(vectors.shape), where=norms[:, None] > 0)
    offset = (unit @ unembedding.mean).astype(np.float32)
    unit = (unit * unembedding.gain).astype(np.float32)  # (neurons, width), times W_U[t] it is w·(γ ⊙ W_U[t]) / ‖w‖
    sums = np.zeros((count, len(MOMENTS)))
    lists = {end: (np.full((count, listed), -np.inf, np.float32), np.zeros((count, listed), np.uint32)) for end in ENDS}
    space = np.empty((count, _TOKENS), dtype=np.float32)
    for start in range(0, len(unembedding.ids), _TOKENS):
        ids = unembedding.ids[start : start + _TOKENS]
        product = space[:, : len(ids)] if len(ids) == _TOKENS else np.empty((count, len(ids)), dtype=np.float32)
        np.matmul(unit, _take(unembedding.rows, ids).T, out=product)
        inverse = unembedding.inverse[start : start + _TOKENS]
        _fold(product, offset, inverse, ids.astype(np.uint32), sums, *lists["top"], *lists["bottom"])
    lists["bottom"] = -lists["bottom"][0], lists["bottom"][1]
    return {
        NORMS: norms.astype(np.float32),
        **{f"vocabulary/{end}_cosines": cosines for end, (cosines, _) in lists.items()},
        **{f"vocabulary/{end}_ids": numbers for end, (_, numbers) in lists.items()},
        **{f"vocabulary/{name}": values for name, values in zip(MOMENTS, _moments(sums, len(unembedding.ids)), strict=True)},
    }


def _take(rows: Any, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Rows of some ids, float32; without a copy where they are neighbours and float32 already."""
    if ids[-1] - ids[0] + 1 == len(ids):
        return np.asarray(rows[ids[0] : ids[-1] + 1])
    return np.asarray(rows[ids])


def _moments(sums: NDArray[np.float64], count: int) -> NDArray[np.float32]:
    """Mean, variance, skewness and kurtosis from the sums of powers 1 to 4: float32 (4, neurons).

    The cosines are centred up to the tokens' norms, so their mean is small beside their spread and little cancels.
    """
    first, second, third, fourth = sums.T / count
    variance = np.maximum(second - first**2, 0)
    spread = variance > 1e-14  # of cosines that float32 cannot tell from equal ones
    safe = np.where(spread, variance, 1.0)
    skewness = (third - 3 * first * second + 2 * first**3) / safe**1.5
    kurtosis = (fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4) / safe**2
    zero = np.zeros_like(first)
    found = np.stack(
        [first, np.where(spread, variance, 0), np.where(spread, skewness, zero), np.where(spread, kurtosis, zero)]
    )
    return found.astype(np.float32)


@_njit  # type: ignore[untyped-decorator]
def _insert(values: Any, numbers: Any, value: Any, number: Any) -> None:
    place = values.shape[0] - 1
    while place > 0 and values[place - 1] < value:
        values[place] = values[place - 1]
        numbers[place] = numbers[place - 1]
        place -= 1
    values[place] = value
    numbers[place] = number


@_njit  # type: ignore[untyped-decorator]
def _fold(
    product: Any, offset: Any, inverse: Any, ids: Any, sums: Any, top: Any, top_ids: Any, bottom: Any, bottom_ids: Any
) -> None:
    """Turn products (neurons, tokens) into cosines, in place, and add them to sums and lists (the lowest negated)."""
    neurons, tokens = product.shape
    last = top.shape[1] - 1
    for j in range(neurons):
        line, shift = product[j], offset[j]
        one = two = three = four = 0.0
        for t in range(tokens):
            line[t] = (line[t] - shift) * inverse[t]
            x = np.float64(line[t])
            square = x * x
            one += x
            two += square
            three += square * x
            four += square * square
        sums[j, 0] += one
        sums[j, 1] += two
        sums[j, 2] += three
        sums[j, 3] += four
        for start in range(0, tokens, _LANES):
            stop = min(start + _LANES, tokens)
            high, low = top[j, last], -bottom[j, last]
            beyond = 0
            for t in range(start, stop):
                beyond += (line[t] > high) | (line[t] < low)
            if beyond:
                for t in range(start, stop):
                    if line[t] > top[j, last]:
                        _insert(top[j], top_ids[j], line[t], ids[t])
                    if -line[t] > bottom[j, last]:
                        _insert(bottom[j], bottom_ids[j], -line[t], ids[t])
