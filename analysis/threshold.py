"""All tokens on which a neuron is beyond a threshold, exactly, from as few activation chunks as possible.

The index lists the highest and lowest tokens of every block, best first. Where the last one listed is not beyond the
threshold, or all tokens are listed, the list holds every token that is; only the other blocks are read.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.chosen_tokens import Where, eligible_tokens, rows_of_lines, token_documents, within_cap
from neuronlake.analysis.neuron import check_neuron
from neuronlake.analysis.source import LakeSource
from neuronlake.store.errors import InputError
from neuronlake.store.lake import Lake
from neuronlake.store.parallel import map_ordered
from neuronlake.store.tables import PADDING, SPECIAL


@dataclass(frozen=True, kw_only=True)
class TokensBeyond:
    """Tokens of an answer."""

    lines: NDArray[np.int64] = field(repr=False)
    """Lines of the token table, see `describe_lines` for their text."""
    rows: NDArray[np.int64] = field(repr=False)
    """Their global rows."""
    values: NDArray[np.float32] = field(repr=False)
    total: int
    """Tokens beyond the threshold, of which `lines` may hold the first ones only."""
    blocks_read: tuple[int, ...]
    """Blocks of which the neuron's chunk was read."""
    bytes_read: int
    """Bytes of those chunks on disk; 0 for lakes held in memory."""
    blocks: int
    """Committed blocks."""


def tokens_above(
    source: LakeSource,
    layer: int,
    neuron: int,
    above: float | None = None,
    *,
    below: float | None = None,
    where: Where = None,
    per_document: int | None = None,
    limit: int | None = None,
    by_row: bool = False,
    special: bool = False,
) -> TokensBeyond:
    """Find all tokens on which a neuron is above a threshold, below one, or between two.

    Exact, whatever the index covers. Values are compared as they are stored: a float32 value v is above τ when v > τ in
    float64.

    Parameters
    ----------
    source
        The lake.
    layer, neuron
        Which neuron.
    above, below
        At least one; with both, tokens with above < value < below.
    where : str or (by, tag), optional
        As for `top_tokens`.
    per_document
        At most so many tokens of one document, the most extreme ones.
    limit
        Return at most so many; `total` counts all.
    by_row
        In the order of the rows; by default the highest first (the lowest, if only `below` is given), of equal values the
        lower row first.
    special
        Special tokens too.

    Raises
    ------
    InputError
        When the neuron does not exist, a threshold is no number or nothing can be between them, `per_document` or `limit` is
        below 1, or `where` is refused.
    """
    check_neuron(source, layer, neuron)
    span = _Span.checked(above, below)
    for name, number in (("per_document", per_document), ("limit", limit)):
        if number is not None and number < 1:
            raise InputError(f"{name} must be at least 1, got {number}")
    eligible = None if where is None and not special else eligible_tokens(source, where, special=special)
    search = _Search(source, layer, neuron, span, eligible)
    lines, values, blocks_read = search.run(np.flatnonzero(_blocks_with_special(source, eligible if special else None)))
    order = np.lexsort((lines, values if above is None else -values))
    if per_document is not None:
        order = order[within_cap(token_documents(source)[lines[order]], per_document)]
    if by_row:
        order = order[np.argsort(lines[order])]
    lines, values = lines[order], values[order]
    size = 0
    if isinstance(source, Lake):
        size = sum(source.chunk_bytes(layer=layer, block=block, neuron=neuron) for block in blocks_read)
    kept = lines[:limit]
    return TokensBeyond(
        lines=kept,
        rows=rows_of_lines(source, kept),
        values=values[:limit],
        total=len(lines),
        blocks_read=blocks_read,
        bytes_read=size,
        blocks=len(source.blocks),
    )


@dataclass(frozen=True, kw_only=True)
class _Span:
    above: float | None
    below: float | None

    @classmethod
    def checked(cls, above: float | None, below: float | None) -> "_Span":
        if above is None and below is None:
            raise InputError("no threshold given: say above, below or both")
        for name, threshold in (("above", above), ("below", below)):
            if threshold is not None and math.isnan(threshold):
                raise InputError(f"{name} must be a number, got {threshold}")
        if above is not None and below is not None and above >= below:
            raise InputError(f"no value is above {above:g} and below {below:g}")
        return cls(above=above, below=below)

    def holds(self, values: NDArray[np.float32]) -> NDArray[np.bool_]:
        inside = np.ones(values.shape, dtype=np.bool_)
        # as float64: NumPy would round a Python float to float32 first
        if self.above is not None:
            inside &= values > np.float64(self.above)
        if self.below is not None:
            inside &= values < np.float64(self.below)
        return inside


class _Search:
    def __init__(self, source: LakeSource, layer: int, neuron: int, span: _Span, eligible: NDArray[np.bool_] | None):
        self._source, self._layer, self._neuron = source, layer, neuron
        self._span, self._eligible = span, eligible

    def run(self, unlisted: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32], tuple[int, ...]]:
        """Lines and values, in no order, and the blocks read; lists do not answer for the positions `unlisted`."""
        source, rows = self._source, self._source.block_rows
        unanswered = np.ones(len(source.blocks), dtype=np.bool_)
        if self._eligible is not None and len(unanswered):
            unanswered = np.add.reduceat(self._eligible, np.arange(0, len(unanswered) * rows, rows)) > 0
        parts = self._listed(source, unanswered, unlisted) if isinstance(source, Lake) else []
        positions = np.flatnonzero(unanswered).tolist()
        parts += map_ordered(self._read_block, positions)
        lines = np.concatenate([np.empty(0, dtype=np.int64), *(part[0] for part in parts)])
        values = np.concatenate([np.empty(0, dtype=np.float32), *(part[1] for part in parts)])
        return lines, values, tuple(source.blocks[position] for position in positions)

    def _listed(
        self, lake: Lake, unanswered: NDArray[np.bool_], unlisted: NDArray[np.int64]
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Take what the lists answer completely, and strike those blocks off."""
        span, place, parts = self._span, lake.layers.index(self._layer), []
        for bottom, threshold in ((False, span.above), (True, span.below)):
            if threshold is None:
                continue
            found = lake.index().extremes(place, self._neuron, bottom=bottom)
            position = np.searchsorted(lake.blocks, found.blocks)
            used = np.arange(found.rows.shape[1]) < found.used[:, None]
            beyond = found.values < np.float64(threshold) if bottom else found.values > np.float64(threshold)
            complete = ((beyond & used).sum(axis=1) < found.used) | (found.ordinary == found.used)
            complete &= unanswered[position] & ~np.isin(position, unlisted)
            take = used & complete[:, None] & span.holds(found.values)
            lines = (position[:, None] * lake.block_rows + found.rows)[take]
            values = found.values[take]
            if self._eligible is not None:
                keep = self._eligible[lines]
                lines, values = lines[keep], values[keep]
            parts.append((lines, values))
            unanswered[position[complete]] = False
        return parts

    def _read_block(self, position: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        source, block = self._source, self._source.blocks[position]
        first = position * source.block_rows
        column = source.read_block(layer=self._layer, block=block, neurons=[self._neuron])[:, 0]
        inside = self._span.holds(column)
        if self._eligible is not None:
            inside &= self._eligible[first : first + source.block_rows]
        else:
            inside &= source.tokens(blocks=[block]).column("flags").to_numpy() & (SPECIAL | PADDING) == 0
        rows = np.flatnonzero(inside)
        return first + rows, column[rows]


def _blocks_with_special(source: LakeSource, eligible: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """Blocks of which special tokens count: these are in no list. None means that none counts."""
    if eligible is None:
        return np.zeros(len(source.blocks), dtype=np.bool_)
    flags: NDArray[np.uint8] = source.tokens().column("flags").to_numpy()
    counted = ((flags & SPECIAL) != 0) & eligible
    blocks: NDArray[np.bool_] = counted.reshape(len(source.blocks), source.block_rows).max(axis=1, initial=False)
    return blocks
