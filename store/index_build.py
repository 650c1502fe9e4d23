"""The index of one block, made from its chunks: the extreme tokens of every neuron, the strongest neurons of every token."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.store.encodings import get_encoding
from neuronlake.store.index_codes import CodesWork, extreme_codes
from neuronlake.store.index_kernels import ExtremesWork, extremes, key_values, pattern_values, sums
from neuronlake.store.quantise import expand
from neuronlake.store.spec import LakeSpec
from neuronlake.store.tables import PADDING, SPECIAL
from neuronlake.store.token_kernels import StrongestNeurons

EXTREMES = 32
"""Highest and lowest tokens that are listed per neuron and block."""


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
        self._tokens: list[dict[str, StrongestNeurons]] = []
        self._local = threading.local()
        self._lock = threading.Lock()

    def add(self, site: str, layer: int, chunk: int, codes: NDArray[Any], scales: NDArray[np.float32] | None = None) -> None:
        """Add a chunk.

        Parameters
        ----------
        codes : (block rows, chunk neurons), C order
            What is stored: uint16 or float32, bit patterns of the values, or quantised codes.
        scales
            Of quantised codes.
        """
        neurons = self._spec.width(site)
        width = min(codes.shape[1], neurons - chunk * codes.shape[1])
        first, place = chunk * codes.shape[1], self._place[layer]
        mine = self._scratch(codes)
        tokens, number = mine.tokens[site], place * neurons + first
        keys, rows = mine.keys[:, :width], mine.rows[:, :width]
        here = slice(first, first + width)
        total = self._sums[site][place, here]
        by_codes = scales is not None and extreme_codes(codes, scales, self._used, width, mine.by_codes, keys, rows, total)
        if by_codes:
            tokens.add_codes(codes, mine.by_codes.patterns, self._used, width, number)
        else:
            values = codes
            if scales is not None:
                values = np.empty(codes.shape, dtype=self._bits)
                expand(codes, scales, values)
            extremes(values, self._used, width, mine.by_values, keys, rows)
            total[:] = sums(values, self._used, width, self._values)
            tokens.add(values, self._used, width, number)
        self._keys[site][place, :, here] = keys
        self._lists[site][place, :, here] = rows

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
            strongest, *others = [tokens[site] for tokens in self._tokens]
            for other in others:
                strongest.merge(other)
            neurons, values = strongest.lists(self._bits)
            arrays["tokens/neurons"], arrays["tokens/values"] = neurons, pattern_values(values, self._values)
            found[site] = BlockIndex(ordinary=len(self._used), arrays=arrays)
        return found

    def _scratch(self, codes: NDArray[Any]) -> "_Scratch":
        """Lists of this thread: chunks of different layers meet in the same tokens."""
        if not hasattr(self._local, "mine"):
            rows, width = codes.shape
            tokens = {site: StrongestNeurons(rows) for site in self._spec.sites}
            with self._lock:
                self._tokens.append(tokens)
            self._local.mine = _Scratch(
                by_values=ExtremesWork(self._bits, width=width, size=EXTREMES, row=self._rows, rows=rows),
                by_codes=CodesWork(rows, width),
                keys=np.empty((2, width, EXTREMES), dtype=np.int32),
                rows=np.empty((2, width, EXTREMES), dtype=self._rows),
                tokens=tokens,
            )
        return self._local.mine  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class _Scratch:
    """Memory of one thread."""

    by_values: ExtremesWork
    by_codes: CodesWork
    keys: NDArray[np.int32]
    rows: NDArray[Any]
    tokens: dict[str, StrongestNeurons]


def row_dtype(rows: int) -> np.dtype[Any]:
    """Smallest type for row numbers below `rows`."""
    return np.dtype(np.uint16 if rows <= 1 << 16 else np.uint32)
