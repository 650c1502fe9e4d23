"""Statistics gathered while a lake is extracted, from every chunk as it is stored: ready when the extraction ends."""

import os
from collections.abc import Callable
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.column import Accumulator, Partials
from neuronlake.analysis.column_pass import MAX_HISTOGRAM_TAGS, PIECE_CHUNKS
from neuronlake.analysis.groups import FOLDS, group_blocks
from neuronlake.analysis.histogram import BINS
from neuronlake.analysis.kept_statistics import KeptDamageError, StatisticsKey, block_checksums, find_kept
from neuronlake.analysis.labels import LabelRequest, token_labels
from neuronlake.analysis.statistics import compute_statistics
from neuronlake.store.encodings import get_encoding
from neuronlake.store.errors import InputError
from neuronlake.store.lake import Lake, open_lake
from neuronlake.store.objects import LakePath

_MOMENT_BYTES = 52  # of one neuron and group, see `moments.Moments`
_MEMORY_SHARE = 4  # a quarter of what is free


class StatisticsBuilder:
    """Adds up what an extraction stores at the first site, for one label; a part of the blocks may be there already.

    Parameters
    ----------
    path
        A lake whose plan is published.
    by
        Label, as for `compute_statistics`.
    max_bytes
        Largest memory; by default a quarter of what is free.

    Raises
    ------
    InputError
        When the label is unknown, the plan has no tag with two tokens, or the memory would not do.
    """

    def __init__(self, path: LakePath, by: str, *, max_bytes: int | None = None):
        lake = open_lake(path)
        self._path, self._by, self._site = path, by, lake.site
        planned = Lake(lake.path, lake.spec, lake.plan, tuple(range(lake.plan.blocks)))
        labels = token_labels(planned, by, min_tokens=1)
        labels.without_rare(2)  # an error now, not when the extraction ends
        self.tags = labels.tags
        if len(self.tags) > MAX_HISTOGRAM_TAGS:
            raise InputError(f"{by!r} has {len(self.tags)} values, too many to gather statistics of while extracting")
        self._groups = {group.block: group for group in group_blocks(labels, folds=FOLDS)}
        self._check_memory(lake, max_bytes)
        self._values = get_encoding(lake.encoding).values
        self._width, self._neurons, self._layers = lake.chunk_neurons, lake.neurons, lake.layers
        self._pieces: dict[tuple[int, int], Accumulator] = {}
        self._lock = Lock()
        self.base, self._exponents = _kept_bins(lake, by)
        self._seen: set[int] = set()

    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks added."""
        return tuple(sorted(self._seen))

    def add(self, site: str, layer: int, block: int, chunk: int, codes: NDArray[Any]) -> None:
        """Add a chunk: bit patterns of its stored values. Different columns may be added from different threads."""
        if site != self._site:
            return
        self._seen.add(block)
        piece, column = divmod(chunk, PIECE_CHUNKS)
        with self._lock:
            if (layer, piece) not in self._pieces:
                self._pieces[layer, piece] = self._new_piece(layer, piece)
        if block in self._groups:
            self._pieces[layer, piece].add(column, codes, self._groups[block])

    def partials(self, position: int, neurons: slice) -> Partials:
        """Return what was gathered; `neurons` are those of a piece of the pass."""
        return self._pieces[self._layers[position], neurons.start // (PIECE_CHUNKS * self._width)].partials()

    def finish(self, *, progress: Callable[[int, int], None] | None = None) -> None:
        """Keep the statistics in the lake, now that every block that was added is committed."""
        lake = open_lake(self._path)
        if missing := self._seen - set(lake.blocks):
            raise AssertionError(f"block {min(missing)} was added but not committed")
        compute_statistics(lake, self._by, earlier=self if self._seen else None, progress=progress)

    def _new_piece(self, layer: int, piece: int) -> Accumulator:
        first = piece * PIECE_CHUNKS * self._width
        last = min(first + PIECE_CHUNKS * self._width, self._neurons)
        known = self._exponents
        return Accumulator(
            tags=len(self.tags),
            folds=FOLDS,
            neurons=last - first,
            chunk_neurons=self._width,
            values=self._values,
            histogram=True,
            exponent=None if known is None else known[self._layers.index(layer), first:last],
        )

    def _check_memory(self, lake: Lake, max_bytes: int | None) -> None:
        neuron = len(self.tags) * (FOLDS * _MOMENT_BYTES + BINS * np.dtype(np.uint32).itemsize)
        needed = neuron * lake.neurons * len(lake.layers)
        allowed = free_memory_share() if max_bytes is None else max_bytes
        if needed > allowed:
            raise InputError(
                f"gathering statistics of {self._by!r} while extracting takes {needed / 1e9:.1f} GB, at most "
                f"{allowed / 1e9:.1f} GB may be used"
            )


def _kept_bins(lake: Lake, by: str) -> tuple[str | None, NDArray[np.int16] | None]:
    """Name and scales of the histograms that are kept already: what is added to them must have the same bins."""
    key = StatisticsKey.of(lake, LabelRequest(by=by), folds=FOLDS, basic=False)
    found = find_kept(lake, key, block_checksums(lake))
    if found is None or not found.counted:
        return None, None
    try:
        return found.name, found.read("histogram/exponent")
    except KeptDamageError:  # the blocks that it covers are read again
        return None, None


def free_memory_share() -> int:
    """Bytes that what is gathered on the way of an extraction may take."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _MEMORY_SHARE
