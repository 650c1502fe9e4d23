"""Exact AUROC of every neuron × tag without sorting, in memory that does not grow with the number of tokens.

A 16-bit encoding has 65,536 values. Counting how many tokens hold each gives every value's midrank, and summing midranks
per tag gives the Mann–Whitney statistic, ties included, in exact integers:

    AUROC = P(x_tag > x_rest) + ½·P(x_tag = x_rest) = (R − P·(P + 1)/2) / (P·N)

with R the sum of the tag's midranks among all labelled tokens, P its number of tokens and N that of the rest
(Mann & Whitney 1947; Hanley & McNeil 1982 for the reading as an area).

float32 values are compared by the upper halves of their patterns (7 bits of mantissa). Two tokens in the same of those
65,536 bins then count as tied, which is off by at most ½ per pair: the error bound returned is ½·(pairs in one bin)/(P·N).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis import kernels
from neuronlake.store.errors import InputError

SEGMENT_BYTES = 64 << 20  # 64 MiB of keys: 524,288 tokens of 64 neurons are ranked in one pass over the lake
_MAX_TOKENS = (1 << 31) - 1  # doubled midranks are kept in uint32


def plan_segments(rows: Sequence[int], *, row_bytes: int, segment_bytes: int) -> list[range]:
    """Group consecutive blocks so that the keys of a group fit in `segment_bytes` (a single block always fits).

    Parameters
    ----------
    rows
        Labelled rows of every block.
    row_bytes
        Bytes of one row's keys.

    Returns
    -------
    list of range
        Positions of blocks. Large segments spare the tables' trips between memory and cache.

    Raises
    ------
    InputError
        When there are more tokens than doubled midranks in 32 bits can number.
    """
    if sum(rows) > _MAX_TOKENS:
        raise InputError(
            f"{sum(rows)} labelled tokens are more than {_MAX_TOKENS} that can be ranked exactly: "
            "choose fewer documents, or leave AUROC out"
        )
    segments, first, held = [], 0, 0
    for position, count in enumerate(rows):
        if held and (held + count) * row_bytes > segment_bytes:
            segments.append(range(first, position))
            first, held = position, 0
        held += count
    if held:
        segments.append(range(first, len(rows)))
    return segments


def order_keys(codes: NDArray[Any], rows: NDArray[np.int64], keys: NDArray[np.uint16], offset: int) -> None:
    """Write ``codes[rows]``, as keys whose unsigned order is the values' order, to ``keys[:, offset:offset + len(rows)]``.

    Parameters
    ----------
    codes : uint16 (float16 or bfloat16 patterns) or float32, (block rows, c), C order
    rows : int64
    keys : uint16 (width, tokens), C order, ``width <= c``
        Neuron-major. −0 and +0 get the same key.
    """
    if codes.dtype == np.float32:
        kernels.order_keys_32(codes.view(np.uint32), rows, keys.shape[0], keys, offset)
    else:
        kernels.order_keys_16(codes, rows, keys.shape[0], keys, offset)


class RankSums:
    """Doubled midrank sums per neuron × tag, gathered over the segments of one column of the lake.

    Either `one` with all tokens, or `count` with every segment, `close`, then `add` with every segment again.
    """

    def __init__(self, *, neurons: int, tags: int, exact: bool):
        self.ranks = np.zeros((neurons, tags), dtype=np.int64)
        """Σ over a tag's tokens of 2 × midrank."""
        self.ties = np.zeros((neurons, tags), dtype=np.int64)
        """Σ over a tag's tokens of the number of tokens in the same bin; only where keys are not exact."""
        self._exact = exact
        self._counts: NDArray[np.uint32] | None = None
        self._midranks: NDArray[np.uint32] | None = None

    def one(self, keys: NDArray[np.uint16], labels: NDArray[np.int16]) -> None:
        """Rank tokens that are all at hand: keys (neurons, tokens), labels (tokens,) all >= 0."""
        kernels.rank_one_segment(keys, labels, not self._exact, self.ranks, self.ties)

    def count(self, keys: NDArray[np.uint16]) -> None:
        """First pass: count a segment's keys. The tables take 256 KiB per neuron."""
        if self._counts is None:
            self._counts = np.zeros((len(self.ranks), kernels.KEYS), dtype=np.uint32)
        kernels.count_segment(keys, self._counts)

    def close(self) -> None:
        """End the first pass: turn counts into midranks."""
        if self._counts is not None:
            self._midranks = self._counts if self._exact else self._counts.copy()
            kernels.midranks_of_tables(self._midranks)

    def add(self, keys: NDArray[np.uint16], labels: NDArray[np.int16]) -> None:
        """Second pass: add a segment's midranks to its tags."""
        kernels.add_segment(keys, labels, self._midranks, self.ranks)
        if not self._exact:
            kernels.add_segment(keys, labels, self._counts, self.ties)


def auroc_of(ranks: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.float64]:
    """AUROC of tag against rest.

    Parameters
    ----------
    ranks : int64 (neurons, tags)
        Doubled midrank sums.
    count : int64 (tags,)
        Tokens per tag; at least two tags have some.

    Returns
    -------
    float64 (tags, neurons), in [0, 1]
    """
    pairs = 2.0 * count * (count.sum() - count)
    # The subtraction is exact in int64 (below 2⁶³ for 2³¹ tokens); only the division rounds.
    area: NDArray[np.float64] = (ranks - count * (count + 1)) / pairs
    return area.T


def auroc_error_of(ties: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.float64]:
    """Upper bound of the AUROC's error from comparing by bins: ½·Σ_b p_b·n_b / (P·N), at most.

    Σ_b p_b·n_b = Σ_b p_b·t_b − Σ_b p_b², where Σ_b p_b·t_b is what `ties` holds; Σ_b p_b² is at least P.
    Float64 (tags, neurons).
    """
    pairs = 2.0 * count * (count.sum() - count)
    bound: NDArray[np.float64] = (ties - count) / pairs
    return bound.T
