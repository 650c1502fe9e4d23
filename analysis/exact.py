"""Exact AUROC of every neuron of a column, for the few columns where a histogram's bound is not enough.

Every block's chunk is decoded once and its values kept as sortable keys; only a column with more tokens than a segment is
decoded twice. Memory is that of one segment and the count tables of c neurons, however many blocks there are.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.labels import BlockLabels
from neuronlake.analysis.ranksum import RankSums, auroc_error_of, auroc_of, order_keys, plan_segments
from neuronlake.analysis.source import LakeSource
from neuronlake.store.encodings import get_encoding

_KEY_BYTES = 2


def column_auroc(
    source: LakeSource, labels: Sequence[BlockLabels], *, layer: int, chunk: int, segment_bytes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUROC of tag against rest for one column.

    Parameters
    ----------
    source
        The lake.
    labels
        Its blocks with labelled rows; at least two tags occur.
    layer, chunk
        Which column.
    segment_bytes
        Bytes of keys held at once.

    Returns
    -------
    auroc, error : float64 (tags, neurons)
        The error is 0 but for float32 values, which are compared by their upper 16 bits.
    """
    column = _Column(source, layer=layer, chunk=chunk)
    segments = plan_segments(
        [len(block.rows) for block in labels], row_bytes=column.width * _KEY_BYTES, segment_bytes=segment_bytes
    )
    groups = [labels[segment.start : segment.stop] for segment in segments]
    count = np.sum([block.count for block in labels], axis=0)
    sums = RankSums(neurons=column.width, tags=len(count), exact=column.exact)
    if len(groups) == 1:
        sums.one(*column.keys(groups[0]))
    else:
        for group in groups:
            sums.count(column.keys(group)[0])
        sums.close()
        for group in groups:
            sums.add(*column.keys(group))
    area = auroc_of(sums.ranks, count)
    return area, np.zeros_like(area) if column.exact else auroc_error_of(sums.ties, count)


class _Column:
    """Decodes a column's chunks into one reused buffer, and that into keys."""

    def __init__(self, source: LakeSource, *, layer: int, chunk: int):
        encoding = get_encoding(source.encoding)
        self._source, self._layer, self._chunk = source, layer, chunk
        self.width = min(source.chunk_neurons, source.neurons - chunk * source.chunk_neurons)
        self.exact = encoding.itemsize == _KEY_BYTES
        # Always the full chunk: its C order lets the kernels' inner loops vectorise, also at the layer's edge.
        self._codes: NDArray[Any] = np.empty((source.block_rows, source.chunk_neurons), dtype=encoding.stored)
        self._keys = np.empty(0, dtype=np.uint16)

    def keys(self, blocks: Sequence[BlockLabels]) -> tuple[NDArray[np.uint16], NDArray[np.int16]]:
        """Decode a segment: keys uint16 (width, tokens) in a reused buffer, and their tags int16 (tokens,)."""
        tokens = sum(len(block.rows) for block in blocks)
        if self._keys.size < tokens * self.width:
            self._keys = np.empty(tokens * self.width, dtype=np.uint16)
        keys = self._keys[: tokens * self.width].reshape(self.width, tokens)
        offset = 0
        for block in blocks:
            self._source.read_codes(layer=self._layer, block=block.block, chunk=self._chunk, out=self._codes)
            order_keys(self._codes, block.rows, keys, offset)
            offset += len(block.rows)
        return keys, np.concatenate([block.tags for block in blocks])


def neurons_precision(
    source: LakeSource, labels: Sequence[BlockLabels], *, layer: int, neurons: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Average precision of some neurons as detectors of every tag, exactly.

    AP = Σ_k (R_k − R_{k−1})·P_k over the distinct values in descending order, tokens of equal value taken together, as
    ``sklearn.metrics.average_precision_score``; "experts" of Suau et al. (2020) are neurons ranked by it.

    Returns
    -------
    high, low : float64 (tags, neurons)
        Of x, and of −x.
    """
    values = np.concatenate(
        [source.read_block(layer=layer, block=block.block, neurons=neurons)[block.rows] for block in labels]
    )
    tags = np.concatenate([block.tags for block in labels])
    count = np.sum([block.count for block in labels], axis=0)
    high, low = np.empty((2, len(count), len(neurons)))
    for column in range(len(neurons)):
        order = np.argsort(values[:, column])
        for out, line in ((low, order), (high, order[::-1])):
            sorted_values = values[line, column]
            ends = np.append(np.flatnonzero(sorted_values[1:] != sorted_values[:-1]), len(line) - 1)
            found = np.bincount(
                np.searchsorted(ends, np.arange(len(line))) * len(count) + tags[line],
                minlength=len(ends) * len(count),
            ).reshape(len(ends), len(count))
            precision = np.cumsum(found, axis=0) / (ends + 1)[:, None]
            out[:, column] = (found * precision).sum(axis=0) / count
    return high, low
