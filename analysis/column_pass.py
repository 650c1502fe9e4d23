"""The pass over a lake that statistics come from: independent pieces, each some columns of one layer, in parallel."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import local
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.column import Accumulator, Partials, combine_partials, retag, there
from neuronlake.analysis.derived import derived_statistics, requested_statistics
from neuronlake.analysis.exact import column_auroc
from neuronlake.analysis.execute import Parts
from neuronlake.analysis.groups import BlockGroups
from neuronlake.analysis.histogram import BINS, Binning
from neuronlake.analysis.labels import BlockLabels
from neuronlake.analysis.ranksum import SEGMENT_BYTES
from neuronlake.analysis.source import LakeSource
from neuronlake.store.arrays import create_array, encoded_chunk, write_chunk
from neuronlake.store.encodings import get_encoding

_local = local()
_OPEN_FILES = 32  # per thread
_COUNTS = "histogram/counts"
PIECE_CHUNKS = 8  # 512 neurons of SmolLM2: three pieces a layer, whose histograms take 9 MB for 17 tags
MAX_HISTOGRAM_TAGS = 256
"""With more tags, AUROC is computed exactly by a second pass instead of from histograms of 1 KiB per tag × neuron."""


class Earlier(Protocol):
    """Partials of blocks that need not be read: kept in the lake, or gathered while extracting."""

    @property
    def tags(self) -> tuple[str, ...]:
        """Tags that they are of."""

    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks that they cover."""

    def partials(self, position: int, neurons: slice) -> Partials:
        """Of some neurons of the layer at that position among the lake's."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What is to be computed, for every piece."""

    source: LakeSource
    tags: tuple[str, ...]
    """All tags that occur."""
    kept: NDArray[np.int64] = field(repr=False)
    """Places of the tags that have enough tokens; only these are compared with each other."""
    folds: int
    groups: Sequence[BlockGroups] = field(repr=False)
    """Blocks to read."""
    basic: bool
    """Only count, mean, variance and share active."""
    also: tuple[str, ...]
    """Groups of `derived.ON_REQUEST` to compute too."""
    earlier: Sequence[Earlier]
    """Of disjoint blocks, none of them in `groups`."""
    labels: Sequence[BlockLabels] = field(repr=False)
    """All labelled blocks, with the kept tags alone: for exact AUROC where there are too many tags for histograms."""
    folder: Path | None
    """Where the counts of the histograms are written, None to forget them."""

    @property
    def counted(self) -> bool:
        """Whether values are counted by bin."""
        return not self.basic and len(self.tags) <= MAX_HISTOGRAM_TAGS


@dataclass(frozen=True, kw_only=True)
class Column:
    """Statistics of the neurons ``first …`` of one layer."""

    layer: int
    first: int
    partials: Partials
    """Without the histogram."""
    derived: dict[str, NDArray[Any]]
    """Of the kept tags, (tags, neurons) or (neurons,)."""
    counts: bytes | None = None
    """Encoded chunk of the counts, where the piece was computed for another process to write."""


def pieces(source: LakeSource, layers: Sequence[int]) -> list[dict[str, int]]:
    """Arguments of `piece_statistics` that cover the layers."""
    width = PIECE_CHUNKS * source.chunk_neurons
    return [
        {"layer": layer, "first": first, "stop": min(first + width, source.neurons)}
        for layer in layers
        for first in range(0, source.neurons, width)
    ]


def column_parts(source: LakeSource, columns: Sequence[tuple[int, int]]) -> Parts:
    """Parts of pieces that read columns, (layer, first neuron): those of one piece of a pass belong to one part.

    A part is of all blocks, not of some. What a pass makes of a block is larger than the block (histograms of 17 tags take
    17 KiB per neuron, 8,192 values 8 KiB): combining blocks on other workers would move more than reading them again.
    """
    return Parts.of_columns(source, columns, PIECE_CHUNKS * source.chunk_neurons)


def create_counts(job: Pass, layers: int) -> None:
    """Make the array that `piece_statistics` writes counts to."""
    if job.folder is not None and job.counted:
        shape = (len(job.tags), layers, job.source.neurons, BINS)
        create_array(job.folder, _COUNTS, shape, "uint32", _count_chunks(job))


def write_counts(job: Pass, layer: int, first: int, counts: bytes | None) -> None:
    """Write to that array what another process encoded, of the neurons ``first …`` of a layer."""
    if job.folder is not None:
        place = 0, job.source.layers.index(layer), first // _count_chunks(job)[2], 0
        write_chunk(job.folder, _COUNTS, place, counts)


def _count_chunks(job: Pass) -> tuple[int, ...]:
    return len(job.tags), 1, min(PIECE_CHUNKS * job.source.chunk_neurons, job.source.neurons), BINS


def piece_statistics(
    jobs: Sequence[Pass], *, layer: int, first: int, stop: int, take: Callable[[list[Column]], None] | None = None
) -> list[Column] | None:
    """Read the columns of one piece, block after block, and add them up, for one label set or several.

    The jobs have the same source; every chunk is read once for all of them.

    Parameters
    ----------
    take
        Given what else is returned. It copies: the thread's next piece is gathered in the same memory. Without, counts that
        are to be written are returned, too: the lake is written to by one process.
    """
    source = jobs[0].source
    encoding = get_encoding(source.encoding)
    width = source.chunk_neurons
    chunks = range(first // width, -(-stop // width))
    codes = _memory(-1).setdefault("codes", np.empty(0, dtype=encoding.codes))
    if codes.shape != (source.block_rows, width) or codes.dtype != encoding.codes:
        codes = _memory(-1)["codes"] = np.empty((source.block_rows, width), dtype=encoding.codes)
    accumulators = [
        Accumulator(
            tags=len(job.tags),
            folds=job.folds,
            neurons=stop - first,
            chunk_neurons=width,
            values=encoding.values,
            histogram=job.counted,
            basic=job.basic,
            earlier=_earlier(job, source.layers.index(layer), slice(first, stop)),
            memory=None if take is None else _memory(place),
        )
        for place, job in enumerate(jobs)
    ]
    wanted: dict[int, list[tuple[Accumulator, BlockGroups]]] = {}
    for job, accumulator in zip(jobs, accumulators, strict=True):
        for groups in job.groups:
            wanted.setdefault(groups.block, []).append((accumulator, groups))
    blocks = sorted(wanted)
    derived: list[list[dict[str, NDArray[Any]]]] = [[] for _ in jobs]
    for batch in [blocks[i : i + _OPEN_FILES] for i in range(0, len(blocks), _OPEN_FILES)] or [[]]:
        with ExitStack() as stack:
            shards = []
            for block in batch:
                rows = 1 + max(groups.last_row for _, groups in wanted[block])
                found = source.read_chunks(layer=layer, block=block, chunks=chunks, rows=rows, out=codes)
                shards.append((block, stack.enter_context(closing(found))))
            # A column's histograms stay in the cache while its blocks pass.
            for column, chunk in enumerate(chunks):
                for block, shard in shards:
                    next(shard)
                    scales = source.chunk_scales(layer=layer, block=block, chunk=chunk)
                    for accumulator, groups in wanted[block]:
                        accumulator.add(column, codes, groups, scales=scales, more=True)
                for job, accumulator, parts in zip(jobs, accumulators, derived, strict=True):
                    if batch == blocks[-len(batch) :]:
                        parts.append(_derived(job, accumulator, layer, column, chunk))
                        accumulator.close(column, forget=not _whole_histograms(job))
                    else:
                        accumulator.close(column)
    columns = [
        _column(job, accumulator, layer, first, parts, here=take is not None)
        for job, accumulator, parts in zip(jobs, accumulators, derived, strict=True)
    ]
    if take is None:
        return columns
    take(columns)
    return None


def _earlier(job: Pass, position: int, neurons: slice) -> Partials | None:
    """What the blocks give that need not be read."""
    found = None
    for part in job.earlier:
        places = {tag: place for place, tag in enumerate(part.tags)}
        here = np.array([places.get(tag, -1) for tag in job.tags])
        known = retag(part.partials(position, neurons), here, job.folds)
        found = known if found is None else combine_partials(found, known)
    return found


def _memory(place: int) -> dict[str, NDArray[Any]]:
    """Memory that this thread's pieces use one after the other, of one job; −1 for what all jobs share."""
    known: dict[int, dict[str, NDArray[Any]]] = _local.__dict__.setdefault("memory", {})
    return known.setdefault(place, {})


def _whole_histograms(job: Pass) -> bool:
    """Whether a piece's histograms are wanted once its columns are done."""
    return job.counted and (job.folder is not None or bool(job.also))


def _column(
    job: Pass, found: Accumulator, layer: int, first: int, derived: list[dict[str, NDArray[Any]]], *, here: bool
) -> Column:
    partials = found.partials(histogram=_whole_histograms(job))
    counts = None
    if job.folder is not None and partials.histogram is not None:
        import zarr

        position, last = job.source.layers.index(layer), first + partials.histogram.shape[1]
        if here:
            zarr.open_array(job.folder / _COUNTS, mode="r+")[:, position, first:last] = partials.histogram
        else:
            counts = encoded_chunk(partials.histogram[:, None], _count_chunks(job))
    whole = {name: np.concatenate([part[name] for part in derived], axis=-1) for name in derived[0]}
    if "hit_bin" in whole:
        binning = Binning.of_exponents(there(partials.exponent))
        whole["hit_threshold"] = binning.upper_edge(whole.pop("hit_bin"))
        if job.also:
            ends = partials.pooled.minimum[job.kept], partials.pooled.maximum[job.kept]
            whole |= requested_statistics(there(partials.histogram)[job.kept], binning, *ends, job.also)
    return Column(layer=layer, first=first, partials=replace(partials, histogram=None), derived=whole, counts=counts)


def _derived(job: Pass, found: Accumulator, layer: int, column: int, chunk: int) -> dict[str, NDArray[Any]]:
    """Of one column, whose histograms are still in the cache."""
    if job.basic or len(job.kept) < 2:
        return {}
    if job.counted:
        counts = found.counts(column)
        return derived_statistics(counts if len(job.kept) == len(job.tags) else counts[job.kept])
    area, error = column_auroc(job.source, job.labels, layer=layer, chunk=chunk, segment_bytes=SEGMENT_BYTES)
    return {"auroc": area, "auroc_error": error}
