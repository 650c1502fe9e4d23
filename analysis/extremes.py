"""The highest tokens of a neuron, exactly, from as few activation chunks as possible.

The index lists the highest tokens of every block. What a block does not list is not above its last entry, and not before it
among equal values: a bound. A block is read only while its bound comes before the last token of the answer, the block with
the highest bound first, since what it holds may close the others. This is the threshold algorithm of Fagin, Lotem and Naor
("Optimal aggregation algorithms for middleware", 2003) with one list per block. Lists per tag, where a label has them, bound
in the same way what a filter passes: all its tokens of a block have tags, and what their lists lack comes after their ends.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.chosen_tokens import token_documents, within_cap
from neuronlake.analysis.source import LakeSource
from neuronlake.store.errors import DamageError
from neuronlake.store.lake import Lake
from neuronlake.store.parallel import map_ordered, usable_cpus
from neuronlake.store.tables import PADDING, SPECIAL
from neuronlake.store.tag_lists import TagLists


@dataclass(frozen=True, kw_only=True)
class Extremes:
    """The tokens of an answer."""

    lines: NDArray[np.int64] = field(repr=False)
    """Lines of the token table, best first; of equal values the lower one first."""
    values: NDArray[np.float32] = field(repr=False)
    blocks_read: tuple[int, ...]
    """Blocks of which the neuron's chunk was read."""
    bytes_read: int
    """Bytes of those chunks on disk; 0 for lakes held in memory."""
    blocks: int
    """Committed blocks."""


def find_extremes(
    source: LakeSource,
    layer: int,
    neuron: int,
    k: int,
    *,
    bottom: bool = False,
    eligible: NDArray[np.bool_] | None = None,
    per_document: int | None = None,
) -> Extremes:
    """Find the k highest (or lowest) tokens of a neuron.

    Parameters
    ----------
    eligible : bool (lines of the token table,), optional
        Tokens that count; None means all but special ones and padding.
    per_document
        At most so many tokens of one document.
    """
    search = _Search(source, layer, neuron, bottom=bottom, eligible=eligible)
    documents = None if per_document is None else token_documents(source)
    while True:
        chosen = search.best(k, documents, per_document)
        if not search.open_further(chosen, full=len(chosen) == k):
            return search.result(chosen)


class _Search:
    """What is known of a neuron's tokens so far. Values are negated for the lowest: best is always highest."""

    def __init__(self, source: LakeSource, layer: int, neuron: int, *, bottom: bool, eligible: NDArray[np.bool_] | None):
        self._source, self._layer, self._neuron = source, layer, neuron
        self._sign = np.float32(-1 if bottom else 1)
        self._eligible = eligible
        self._rows = source.block_rows
        count = len(source.blocks)
        self._bound = np.full(count, np.inf, dtype=np.float32)
        """Nothing unknown of a block is above it …"""
        self._bound_line = np.full(count, -1, dtype=np.int64)
        """… or, where it is as high, in this line or before."""
        self._read: list[int] = []
        self._lines, self._values = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
        if isinstance(source, Lake):
            self._take_lists(source, bottom=bottom)
        if eligible is not None:
            keep = eligible[self._lines]
            self._lines, self._values = self._lines[keep], self._values[keep]
            if isinstance(source, Lake):
                for lists in source.index().tag_lists:
                    self._take_tag_lists(source, lists, eligible, bottom=bottom)
            self._close_what_is_known(eligible)

    def best(self, k: int, documents: NDArray[np.int64] | None, cap: int | None) -> NDArray[np.int64]:
        """Places of the k best known tokens, best first, at most `cap` of a document."""
        order = np.lexsort((self._lines, -self._values))
        if documents is not None and cap is not None:
            order = order[within_cap(documents[self._lines[order]], cap)]
        return order[:k]

    def open_further(self, chosen: NDArray[np.int64], *, full: bool) -> bool:
        """Read the most promising blocks that may hold something better than the last chosen; False if there are none."""
        if full:
            value, line = self._values[chosen[-1]], self._lines[chosen[-1]]
            before = (self._bound > value) | ((self._bound == value) & (self._bound_line < line))
        else:
            before = self._bound > -np.inf
        candidates = np.flatnonzero(before)
        if not candidates.size:
            return False
        # A full answer is likely to close some of the others; an unfilled one needs them all.
        count = usable_cpus() if full else candidates.size
        promising = candidates[np.lexsort((candidates, -self._bound[candidates]))][:count]
        parts = list(map_ordered(self._read_block, [int(position) for position in promising]))
        known = np.isin(self._lines // self._rows, promising)
        self._lines = np.concatenate([self._lines[~known], *(lines for lines, _ in parts)])
        self._values = np.concatenate([self._values[~known], *(values for _, values in parts)])
        self._bound[promising] = -np.inf
        self._read += [self._source.blocks[position] for position in promising]
        return True

    def result(self, chosen: NDArray[np.int64]) -> Extremes:
        """Return the answer."""
        source = self._source
        size = 0
        if isinstance(source, Lake):
            size = sum(source.chunk_bytes(layer=self._layer, block=b, neuron=self._neuron) for b in self._read)
        return Extremes(
            lines=self._lines[chosen],
            values=self._values[chosen] * self._sign,
            blocks_read=tuple(sorted(self._read)),
            bytes_read=size,
            blocks=len(source.blocks),
        )

    def _take_lists(self, lake: Lake, *, bottom: bool) -> None:
        found = lake.index().extremes(lake.layers.index(self._layer), self._neuron, bottom=bottom)
        position = np.searchsorted(lake.blocks, found.blocks)
        lines = position[:, None] * self._rows + found.rows
        values = found.values * self._sign
        used = np.arange(found.rows.shape[1]) < found.used[:, None]
        last = np.maximum(found.used - 1, 0)[:, None]
        more = found.ordinary > found.used
        self._bound[position] = np.where(more, np.take_along_axis(values, last, 1)[:, 0], -np.inf)
        self._bound_line[position] = np.take_along_axis(lines, last, 1)[:, 0]
        self._lines, self._values = lines[used], values[used]

    def _take_tag_lists(self, lake: Lake, lists: TagLists, eligible: NDArray[np.bool_], *, bottom: bool) -> None:
        """Add what the lists of a label know of the tokens that count, and lower the bounds of the blocks they cover."""
        try:
            tags = lists.row_tags(lake.blocks, self._rows)
            rows, values = lists.extremes(lake.layers.index(self._layer), self._neuron, bottom=bottom)
        except DamageError:  # then nothing is known
            return
        count, size = len(self._bound), rows.shape[1]
        lines = _lines_of(rows, lake)
        # which tags are among the tokens of a block that count; the last place is for tokens without a tag
        inside = np.flatnonzero(eligible)
        place = inside // self._rows * (len(lists.tags) + 1) + tags[inside].astype(np.int64) % (len(lists.tags) + 1)
        present = np.bincount(place, minlength=count * (len(lists.tags) + 1)).reshape(count, -1) > 0
        used = np.arange(size) < np.minimum(lists.count, size)[:, None]
        known, known_values = lines[used], values[used] * self._sign
        keep = eligible[known]
        self._lines, first = np.unique(np.concatenate([self._lines, known[keep]]), return_index=True)
        self._values = np.concatenate([self._values, known_values[keep]])[first]
        # a tag's bound is the end of its list; a block's the highest of its tags
        bound = np.where(lists.count > size, values[:, -1] * self._sign, -np.inf).astype(np.float32)
        highest = np.lexsort((lines[:, -1], -bound))
        chosen = highest[np.argmax(present[:, highest], axis=1)]
        tagged = present[:, :-1].any(axis=1) & ~present[:, -1]
        lower = tagged & (
            (bound[chosen] < self._bound) | ((bound[chosen] == self._bound) & (lines[chosen, -1] > self._bound_line))
        )
        self._bound[lower], self._bound_line[lower] = bound[chosen][lower], lines[chosen, -1][lower]

    def _close_what_is_known(self, eligible: NDArray[np.bool_]) -> None:
        """Close the blocks of which everything that counts is known."""
        count = len(self._bound)
        known = np.bincount(self._lines // self._rows, minlength=count)
        wanted = np.add.reduceat(eligible, np.arange(0, count * self._rows, self._rows)) if count else known
        self._bound[known == wanted] = -np.inf
        # special tokens are in no list: where some count, the lists bound nothing
        special = _flagged(self._source, SPECIAL) if self._has_special() else None
        if special is not None:
            lines = np.flatnonzero(special & eligible)
            self._bound[np.unique(lines // self._rows)] = np.inf

    def _has_special(self) -> bool:
        return not isinstance(self._source, Lake) or self._source.plan.counts.get("special", 1) > 0

    def _read_block(self, position: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        source, block = self._source, self._source.blocks[position]
        first = position * self._rows
        if self._eligible is not None:
            inside = np.flatnonzero(self._eligible[first : first + self._rows])
        else:
            inside = np.flatnonzero(_flags_of_block(source, block) & (SPECIAL | PADDING) == 0)
        column = source.read_block(layer=self._layer, block=block, neurons=[self._neuron])[:, 0]
        return first + inside, column[inside] * self._sign


def _lines_of(rows: NDArray[np.int64], lake: Lake) -> NDArray[np.int64]:
    """Lines of the token table that committed rows of the lake are."""
    position = np.searchsorted(lake.blocks, rows // lake.block_rows)
    lines: NDArray[np.int64] = position * lake.block_rows + rows % lake.block_rows
    return lines


def _flagged(source: LakeSource, flag: int) -> NDArray[np.bool_]:
    flags: NDArray[np.uint8] = source.tokens().column("flags").to_numpy()
    found: NDArray[np.bool_] = (flags & flag) != 0
    return found


def _flags_of_block(source: LakeSource, block: int) -> NDArray[np.uint8]:
    flags: NDArray[np.uint8] = source.tokens(blocks=[block]).column("flags").to_numpy()
    return flags
