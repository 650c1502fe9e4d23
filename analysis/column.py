"""Statistics of one column of the lake: one inner chunk's neurons of one layer, over all blocks.

A column is the unit of parallel work. Every block's chunk is decoded once for the moments and, while it is at hand, for
its keys; only a column with more tokens than a segment is decoded twice. Memory is that of one segment and the count
tables of c neurons, however many blocks there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.labels import BlockLabels
from neuronlake.analysis.moments import Moments, chunk_moments, combine_moments
from neuronlake.analysis.ranksum import RankSums, auroc_error_of, auroc_of, order_keys, plan_segments
from neuronlake.analysis.source import LakeSource
from neuronlake.store.encodings import get_encoding

_KEY_BYTES = 2


@dataclass(frozen=True, kw_only=True)
class Column:
    """Statistics of the neurons ``first_neuron …`` of one layer."""

    layer: int
    first_neuron: int
    moments: Moments
    auroc: NDArray[np.float64] | None
    """(tags, neurons)."""
    auroc_error: NDArray[np.float64] | None
    """Upper bound of the AUROC's error, (tags, neurons); None where AUROC is exact."""


def column_statistics(
    source: LakeSource,
    labels: Sequence[BlockLabels],
    *,
    layer: int,
    chunk: int,
    site: str,
    auroc: bool,
    segment_bytes: int,
) -> Column:
    """Moments and, if asked for, AUROC of one column.

    Parameters
    ----------
    source
        The lake.
    labels
        Its blocks with labelled rows, at least one; for AUROC at least two tags occur.
    layer, chunk, site
        Which column.
    segment_bytes
        Bytes of keys held at once.
    """
    reader = _ColumnReader(source, layer=layer, chunk=chunk, site=site)
    if not auroc:
        for block in labels:
            reader.read(block)
            reader.add_moments(block)
        return reader.column(None)
    segments = plan_segments(
        [len(block.rows) for block in labels], row_bytes=reader.width * _KEY_BYTES, segment_bytes=segment_bytes
    )
    groups = [labels[segment.start : segment.stop] for segment in segments]
    sums = RankSums(neurons=reader.width, tags=len(labels[0].count), exact=reader.exact)
    if len(groups) == 1:
        sums.one(*reader.keys(groups[0], with_moments=True))
        return reader.column(sums)
    for group in groups:
        sums.count(reader.keys(group, with_moments=True)[0])
    sums.close()
    for group in groups:
        sums.add(*reader.keys(group, with_moments=False))
    return reader.column(sums)


class _ColumnReader:
    """Decodes a column's chunks into one reused buffer and gathers what is computed from them."""

    def __init__(self, source: LakeSource, *, layer: int, chunk: int, site: str):
        encoding = get_encoding(source.encoding)
        self._source = source
        self._layer, self._chunk, self._site = layer, chunk, site
        self._first = chunk * source.chunk_neurons
        self.width = min(source.chunk_neurons, source.neurons - self._first)
        self._values = encoding.values
        self.exact = encoding.itemsize == _KEY_BYTES
        # Always the full chunk: its C order lets the kernels' inner loops vectorise, also at the layer's edge.
        self._codes: NDArray[Any] = np.empty((source.block_rows, source.chunk_neurons), dtype=encoding.stored)
        self._keys = np.empty(0, dtype=np.uint16)
        self._moments: Moments | None = None

    def read(self, block: BlockLabels) -> None:
        """Decode the chunk of one block."""
        self._source.read_codes(layer=self._layer, block=block.block, chunk=self._chunk, out=self._codes, site=self._site)

    def add_moments(self, block: BlockLabels) -> None:
        """Add the moments of the chunk just decoded."""
        found = chunk_moments(self._codes, block, width=self.width, encoding=self._values)
        self._moments = found if self._moments is None else combine_moments(self._moments, found)

    def keys(self, blocks: Sequence[BlockLabels], *, with_moments: bool) -> tuple[NDArray[np.uint16], NDArray[np.int16]]:
        """Decode a segment: keys uint16 (width, tokens) in a reused buffer, and their tags int16 (tokens,)."""
        tokens = sum(len(block.rows) for block in blocks)
        if self._keys.size < tokens * self.width:
            self._keys = np.empty(tokens * self.width, dtype=np.uint16)
        keys = self._keys[: tokens * self.width].reshape(self.width, tokens)
        offset = 0
        for block in blocks:
            self.read(block)
            if with_moments:
                self.add_moments(block)
            order_keys(self._codes, block.rows, keys, offset)
            offset += len(block.rows)
        return keys, np.concatenate([block.tags for block in blocks])

    def column(self, sums: RankSums | None) -> Column:
        """Return what was gathered."""
        if self._moments is None:
            raise AssertionError("a column is read only where rows are labelled")
        count = self._moments.count[:, 0]
        return Column(
            layer=self._layer,
            first_neuron=self._first,
            moments=self._moments,
            auroc=None if sums is None else auroc_of(sums.ranks, count),
            auroc_error=None if sums is None or self.exact else auroc_error_of(sums.ties, count),
        )
