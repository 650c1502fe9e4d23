"""The index of one block, made from its chunks: the extreme tokens of every neuron, the strongest neurons of every token."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.store.encodings import get_encoding
from neuronlake.store.index_kernels import (
    NOBODY,
    ExtremesWork,
    extremes,
    key_values,
    merge_strongest,
    pattern_values,
    strongest,
    sums,
)
from neuronlake.store.spec import LakeSpec
from neuronlake.store.tables import PADDING, SPECIAL

EXTREMES = 32
"""Highest and lowest tokens that are listed per neuron and block."""
STRONGEST = 32
"""Neurons that are listed per token."""


@dataclass(frozen=True, kw_only=True)
class BlockIndex:
    """Index of one block at one site. Rows are counted within the block; special tokens and padding are in no list."""

    ordinary: int
    """Rows that count."""
    arrays: Mapping[str, NDArray[Any]] = field(repr=False)
    """``top/rows`` and ``top/values`` (layers, neurons, EXTREMES), best first, of equal values the lower row first, of which
    the first ``min(EXTREMES, ordinary)`` are in use and the others zero; ``bottom/…`` likewise; ``sum`` float64 (layers,
    neurons); ``tokens/neurons`` uint32 and ``tokens/values`` (block rows, STRONGEST), largest magnitude first, of equal ones
    the lower neuron first: neurons are counted through all layers, and NOBODY ends a list."""


class BlockIndexer:
    """Collects the index of one block while its chunks pass by, in any order and from several threads.

    Parameters
    ----------
    spec
        The lake's settings.
    flags : uint8 (block rows,)
        Column of the block's plan: which rows are special or padding.
    """

    def __init__(self, spec: LakeSpec, flags: NDArray[np.uint8]):
        self._spec = spec
        self._values = get_encoding(spec.encoding).values
        self._bits = np.dtype(np.uint32 if self._values == "float32" else np.uint16)
        self._rows = row_dtype(spec.block_rows)
        self._used = np.flatnonzero((flags & (SPECIAL | PADDING)) == 0).astype(np.int64)
        self._place = {layer: place for place, layer in enumerate(spec.layers)}
        shapes = {site: (len(spec.layers), 2, spec.width(site), EXTREMES) for site in spec.sites}
        self._keys = {site: np.zeros(shape, dtype=np.int32) for site, shape in shapes.items()}
        self._lists = {site: np.zeros(shape, dtype=self._rows) for site, shape in shapes.items()}
        self._sums = {site: np.zeros(shape[::2], dtype=np.float64) for site, shape in shapes.items()}
        self._tokens: list[dict[str, tuple[NDArray[Any], NDArray[np.uint32]]]] = []
        self._local = threading.local()
        self._lock = threading.Lock()

    def add(self, site: str, layer: int, chunk: int, codes: NDArray[Any]) -> None:
        """Add a chunk: bit patterns of its stored values, uint16 or float32 (block rows, chunk neurons), C order."""
        neurons = self._spec.width(site)
        width = min(codes.shape[1], neurons - chunk * codes.shape[1])
        first, place = chunk * codes.shape[1], self._place[layer]
        work, keys, rows, tokens = self._scratch(codes)
        extremes(codes, self._used, width, work, keys[:, :width], rows[:, :width])
        here = slice(first, first + width)
        self._keys[site][place, :, here] = keys[:, :width]
        self._lists[site][place, :, here] = rows[:, :width]
        self._sums[site][place, here] = sums(codes, self._used, width, self._values)
        strongest(codes, self._used, width, place * neurons + first, *tokens[site])

    def finish(self) -> dict[str, BlockIndex]:
        """Return the index of every site, now that all chunks were added."""
        filled = min(EXTREMES, len(self._used))
        found = {}
        for site in self._spec.sites:
            arrays: dict[str, NDArray[Any]] = {"sum": self._sums[site]}
            for side, name in enumerate(("top", "bottom")):
                keys, rows = self._keys[site][:, side], self._lists[site][:, side]
                keys[..., filled:], rows[..., filled:] = 0, 0
                arrays[f"{name}/rows"] = rows
                arrays[f"{name}/values"] = key_values(-keys if side else keys, self._values)
            values, neurons = self._empty_tokens()
            for tokens in self._tokens:
                merge_strongest(values, neurons, *tokens[site])
            arrays["tokens/neurons"], arrays["tokens/values"] = neurons, pattern_values(values, self._values)
            found[site] = BlockIndex(ordinary=len(self._used), arrays=arrays)
        return found

    def _scratch(self, codes: NDArray[Any]) -> Any:
        """Lists of this thread: chunks of different layers meet in the same tokens."""
        if not hasattr(self._local, "work"):
            width = codes.shape[1]
            tokens = {site: self._empty_tokens() for site in self._spec.sites}
            with self._lock:
                self._tokens.append(tokens)
            self._local.work = (
                ExtremesWork(self._bits, width=width, size=EXTREMES, row=self._rows, rows=codes.shape[0]),
                np.empty((2, width, EXTREMES), dtype=np.int32),
                np.empty((2, width, EXTREMES), dtype=self._rows),
                tokens,
            )
        return self._local.work

    def _empty_tokens(self) -> tuple[NDArray[Any], NDArray[np.uint32]]:
        shape = (self._spec.block_rows, STRONGEST)
        return np.zeros(shape, dtype=self._bits), np.full(shape, NOBODY, dtype=np.uint32)


def row_dtype(rows: int) -> np.dtype[Any]:
    """Smallest type for row numbers below `rows`."""
    return np.dtype(np.uint16 if rows <= 1 << 16 else np.uint32)
