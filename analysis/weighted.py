"""The tokens on which a weighted sum of neurons is highest, exactly, from as few activation chunks as possible.

What the index does not list of a neuron in a block is not above the last value listed (not below, for a negative weight): so
every token of a block has a bound, the weighted sum of the values that are listed for it and of the last ones where it is in
no list. Blocks are read in the order of their highest bound until none can hold a token of the answer, as for one neuron
(`extremes`). Bounds are added up in the order of the sum itself; float64 rounding is monotone, so they hold to the last bit.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.chosen_tokens import Where, eligible_tokens, token_documents, within_cap
from neuronlake.analysis.listings import TokenList
from neuronlake.analysis.neuron import check_neuron, neuron_name, parse_neuron
from neuronlake.analysis.queries import describe_lines
from neuronlake.analysis.source import LakeSource
from neuronlake.store.errors import InputError
from neuronlake.store.lake import Lake
from neuronlake.store.parallel import map_ordered, usable_cpus
from neuronlake.store.tables import PADDING, SPECIAL

_LARGEST = 1e100  # a sum of so weighted float32 values stays finite


@dataclass(frozen=True, kw_only=True)
class WeightedExtremes:
    """The tokens of an answer."""

    lines: NDArray[np.int64] = field(repr=False)
    """Lines of the token table, best first; of equal sums the lower one first."""
    values: NDArray[np.float64] = field(repr=False)
    """Their weighted sums."""
    blocks_read: tuple[int, ...]
    """Blocks of which the neurons' chunks were read."""
    chunks_read: int
    """Chunks of one layer and block; neurons that share one count once."""
    bytes_read: int
    """Bytes of those chunks on disk; 0 for lakes held in memory."""
    blocks: int
    """Committed blocks."""


def parse_weights(names: Sequence[str], source: LakeSource | None = None) -> dict[tuple[int, int], float]:
    """Return the weights of neurons written ``L12.N345*0.7``, or ``L12.N345`` for a weight of 1, in their order.

    Raises
    ------
    InputError
        When one has another form or is named twice, or the lake has no such neuron.
    """
    weights: dict[tuple[int, int], float] = {}
    for text in names:
        name, star, factor = text.partition("*")
        neuron = parse_neuron(name, source)
        try:
            weight = float(factor) if star else 1.0
        except ValueError:
            raise InputError(f"{text!r} is no weighted neuron: write it as L12.N345*0.7") from None
        if neuron in weights:
            raise InputError(f"{neuron_name(*neuron)} is given twice: add its weights up")
        weights[neuron] = weight
    return weights


def top_tokens_weighted(
    source: LakeSource,
    weights: Mapping[tuple[int, int], float],
    k: int = 20,
    *,
    bottom: bool = False,
    where: Where = None,
    per_document: int | None = None,
    labels: Sequence[str] = (),
    special: bool = False,
) -> TokenList:
    """The k tokens with the largest (or smallest) weighted sum of some neurons.

    The sum Σ w·x is of the stored float32 values, in float64, added in the order of `weights`. Exact, whatever the index
    covers; equal sums are ordered by row.

    Parameters
    ----------
    source
        The lake.
    weights
        (layer, neuron) → weight.
    k, bottom, where, per_document, labels, special
        As for `top_tokens`.

    Returns
    -------
    list of dict
        As `top_tokens`; `value` is the sum.

    Raises
    ------
    InputError
        When a neuron, a label column or the tag does not exist, a weight is not finite or none differs from zero, `k` is
        below 1, or SQL is refused.
    """
    for label in labels:
        if label not in source.label_columns:
            raise InputError(f"no label column {label!r}: known are {', '.join(source.label_columns)}")
    found = find_weighted(source, weights, k, bottom=bottom, where=where, per_document=per_document, special=special)
    return describe_lines(source, found.lines, found.values, labels)


def find_weighted(
    source: LakeSource,
    weights: Mapping[tuple[int, int], float],
    k: int,
    *,
    bottom: bool = False,
    where: Where = None,
    per_document: int | None = None,
    special: bool = False,
) -> WeightedExtremes:
    """As `top_tokens_weighted`, without their text but with what was read to find them."""
    _check_weights(source, weights)
    for name, number in (("k", k), ("per_document", per_document)):
        if number is not None and number < 1:
            raise InputError(f"{name} must be at least 1, got {number}")
    eligible = None if where is None and not special else eligible_tokens(source, where, special=special)
    documents = None if per_document is None else token_documents(source)
    search = _Search(source, weights, k, bottom=bottom, eligible=eligible, cap=(documents, per_document or 0))
    if special and eligible is not None:
        flags: NDArray[np.uint8] = source.tokens().column("flags").to_numpy()
        search.bound_nothing(np.flatnonzero((flags & SPECIAL != 0) & eligible) // source.block_rows)
    while search.read_further():
        pass
    return search.result()


class _Search:
    """What is known so far. Sums are negated for the lowest: best is always highest."""

    def __init__(
        self,
        source: LakeSource,
        weights: Mapping[tuple[int, int], float],
        k: int,
        *,
        bottom: bool,
        eligible: NDArray[np.bool_] | None,
        cap: tuple[NDArray[np.int64] | None, int],
    ):
        self._source, self._k, self._eligible, self._cap = source, k, eligible, cap
        self._sign = -1.0 if bottom else 1.0
        self._weights = [(neuron, self._sign * float(weight)) for neuron, weight in weights.items() if weight != 0]
        self._rows = source.block_rows
        self._lines, self._sums = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float64)
        self._read: list[int] = []
        self._bound = np.full(len(source.blocks), np.inf)
        """No unread token of a block is above it."""
        if isinstance(source, Lake):
            self._bound_by_lists(source)
        if eligible is not None:
            self._bound[~eligible.reshape(-1, self._rows).any(axis=1)] = -np.inf

    def bound_nothing(self, positions: NDArray[np.int64]) -> None:
        """Tokens that are in no list count in these blocks."""
        self._bound[positions] = np.inf

    def read_further(self) -> bool:
        """Read the most promising blocks that may hold a token of the answer; False if there are none."""
        if len(self._lines) == self._k:
            last, line = self._sums[-1], self._lines[-1]
            first = np.arange(len(self._bound)) * self._rows
            before = (self._bound > last) | ((self._bound == last) & (first < line))
        else:
            before = self._bound > -np.inf
        candidates = np.flatnonzero(before)
        if not candidates.size:
            return False
        promising = candidates[np.lexsort((candidates, -self._bound[candidates]))][: usable_cpus()]
        parts = list(map_ordered(self._read_block, promising.tolist()))
        self._keep_best(
            np.concatenate([self._lines, *(lines for lines, _ in parts)]),
            np.concatenate([self._sums, *(sums for _, sums in parts)]),
        )
        self._bound[promising] = -np.inf
        self._read += [self._source.blocks[position] for position in promising]
        return True

    def result(self) -> WeightedExtremes:
        """Return the answer."""
        source, width, size = self._source, self._source.chunk_neurons, 0
        chunks = {(layer, neuron // width) for (layer, neuron), _ in self._weights}
        if isinstance(source, Lake):
            size = sum(
                source.chunk_bytes(layer=layer, block=block, neuron=chunk * width)
                for block in self._read
                for layer, chunk in chunks
            )
        return WeightedExtremes(
            lines=self._lines,
            values=self._sums * self._sign,
            blocks_read=tuple(sorted(self._read)),
            chunks_read=len(chunks) * len(self._read),
            bytes_read=size,
            blocks=len(source.blocks),
        )

    def _keep_best(self, lines: NDArray[np.int64], sums: NDArray[np.float64]) -> None:
        """Of what is known, what may be of the answer: the best of every document, then the best of all."""
        order = np.lexsort((lines, -sums))
        documents, limit = self._cap
        if documents is not None:
            order = order[within_cap(documents[lines[order]], limit)]
        order = order[: self._k]
        self._lines, self._sums = lines[order], sums[order]

    def _bound_by_lists(self, lake: Lake) -> None:
        index = lake.index()
        lists = [
            index.extremes(lake.layers.index(layer), neuron, bottom=weight < 0) for (layer, neuron), weight in self._weights
        ]
        # a damaged list is left out: its block is then bounded by nothing
        places = [{int(block): place for place, block in enumerate(found.blocks)} for found in lists]
        for position, block in enumerate(lake.blocks):
            if all(block in place for place in places):
                at = [place[block] for place in places]
                ordinary = int(lists[0].ordinary[at[0]])
                rows = np.stack([found.rows[i] for found, i in zip(lists, at, strict=True)])
                values = np.stack([found.values[i] for found, i in zip(lists, at, strict=True)]).astype(np.float64)
                self._bound[position] = self._block_bound(position, ordinary, rows, values)

    def _block_bound(self, position: int, ordinary: int, rows: NDArray[np.int64], values: NDArray[np.float64]) -> float:
        """Bound of a block from its lists, (neurons, entries) each."""
        used = min(ordinary, rows.shape[1])
        if not used:
            return -math.inf
        listed, place = np.unique(rows[:, :used], return_inverse=True)
        table = np.repeat(values[:, used - 1, None], len(listed), axis=1)  # (neurons, listed rows)
        np.put_along_axis(table, place.reshape(rows.shape[0], used), values[:, :used], axis=1)
        bounds, rest = np.zeros(len(listed)), 0.0
        for (_, weight), line in zip(self._weights, table, strict=True):
            bounds += weight * line
        for (_, weight), last in zip(self._weights, values[:, used - 1], strict=True):
            rest += weight * float(last)
        others = ordinary - len(listed)
        if self._eligible is not None:
            here = self._eligible[position * self._rows : (position + 1) * self._rows]
            bounds = bounds[here[listed]]
            others = int(here.sum()) - len(bounds)
        return max(float(bounds.max(initial=-math.inf)), rest if others else -math.inf)

    def _read_block(self, position: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        source, block = self._source, self._source.blocks[position]
        first = position * self._rows
        if self._eligible is not None:
            inside = np.flatnonzero(self._eligible[first : first + self._rows])
        else:
            flags = source.tokens(blocks=[block]).column("flags").to_numpy()
            inside = np.flatnonzero(flags & (SPECIAL | PADDING) == 0)
        columns: dict[tuple[int, int], NDArray[np.float32]] = {}
        for layer in dict.fromkeys(layer for (layer, _), _ in self._weights):
            neurons = [neuron for (other, neuron), _ in self._weights if other == layer]
            values = source.read_block(layer=layer, block=block, neurons=neurons)[inside]
            columns |= {(layer, neuron): values[:, place] for place, neuron in enumerate(neurons)}
        sums = np.zeros(len(inside))
        for neuron, weight in self._weights:
            sums += weight * columns[neuron].astype(np.float64)
        return first + inside, sums


def _check_weights(source: LakeSource, weights: Mapping[tuple[int, int], float]) -> None:
    for (layer, neuron), weight in weights.items():
        check_neuron(source, layer, neuron)
        if not abs(weight) <= _LARGEST:
            raise InputError(f"the weight of {neuron_name(layer, neuron)} must be a finite number, got {weight}")
    if not any(weights.values()):
        raise InputError("no neuron has a weight other than zero")
