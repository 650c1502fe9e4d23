"""Every value of a lake once: decoded tile by tile into reused buffers and handed to a function, on all cores."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from neuronlake.store.errors import InputError
from neuronlake.store.parallel import map_ordered, usable_cpus
from neuronlake.store.reader import Fetched

if TYPE_CHECKING:
    from neuronlake.store.lake import Lake

_Result = TypeVar("_Result")
VALUES = ("float32", "stored", "codes")
_TASKS_PER_THREAD = 4


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One inner chunk of one layer and block, decoded."""

    site: str
    layer: int
    block: int
    first_row: int
    """Global number of the tile's first row."""
    first_neuron: int
    values: NDArray[Any]
    """(rows in use, neurons): float32, or what ``values`` asked for. A view of a buffer that the next tile overwrites: copy
    what you keep."""
    scales: NDArray[np.float32] | None
    """(neurons, 2), unit and knee of the codes, with ``values="codes"`` and a quantised encoding; None otherwise."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Neighbouring chunks of one shard: what one thread does at a time."""

    layer: int
    block: int
    chunks: range


def plan_parts(*, layers: Sequence[int], blocks: Sequence[int], chunks: int, threads: int) -> Iterator[Part]:
    """Divide a scan into parts: whole shards, in the order of the files, or less where that would leave threads idle."""
    shards = len(layers) * len(blocks)
    pieces = min(chunks, max(1, -(-_TASKS_PER_THREAD * threads // shards))) if shards else 1
    size = -(-chunks // pieces)
    for layer in layers:
        for block in blocks:
            for first in range(0, chunks, size):
                yield Part(layer=layer, block=block, chunks=range(first, min(first + size, chunks)))


def scan(
    lake: "Lake",
    kernel: Callable[[Tile], _Result],
    *,
    layers: Sequence[int],
    blocks: Sequence[int],
    values: str,
    threads: int | None,
) -> Iterator[_Result]:
    """Yield ``kernel(tile)`` for every tile, see `Lake.scan`."""
    if values not in VALUES:
        raise InputError(f"values must be one of {', '.join(map(repr, VALUES))}, got {values!r}")
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1, got {threads}")
    rows = {commit.block: commit.rows for commit in lake.commits}
    buffers = threading.local()
    count = usable_cpus() if threads is None else threads
    reader, encoding = lake.reader, lake.reader.encoding

    def work(given: tuple[Part, Fetched | None]) -> list[_Result]:
        part, fetched = given
        if part.chunks.start == 0:
            following = lake.blocks.index(part.block) + count
            if following < len(lake.blocks):
                reader.prefetch(part.layer, lake.blocks[following])
        if not hasattr(buffers, "values"):
            dtype = {"float32": np.float32, "stored": encoding.stored, "codes": encoding.codes}[values]
            buffers.values = np.empty(reader.chunk_shape, dtype=dtype)
        results = []
        with reader.shard(part.layer, part.block, fetched) as shard:
            for chunk in part.chunks:
                first = chunk * lake.chunk_neurons
                scales = None
                if values == "codes":
                    shard.codes(chunk, buffers.values)
                    if encoding.quantised:
                        scales = reader.scales(part.layer, part.block, chunk)[: lake.neurons - first]
                elif values == "stored":
                    shard.patterns(chunk, buffers.values)
                else:
                    shard.unpack(range(chunk, chunk + 1), buffers.values, first_neuron=first)
                tile = Tile(
                    site=lake.site,
                    layer=part.layer,
                    block=part.block,
                    first_row=part.block * lake.block_rows,
                    first_neuron=first,
                    values=buffers.values[: rows[part.block], : lake.neurons - first],
                    scales=scales,
                )
                results.append(kernel(tile))
        return results

    parts = plan_parts(layers=layers, blocks=blocks, chunks=reader.chunks, threads=count)
    size = -(-reader.chunks // max(1, -(-_TASKS_PER_THREAD * count // max(1, len(layers) * len(blocks)))))
    begun = reader.ahead(parts, lambda part: reader.fetch(part.layer, part.block, part.chunks), chunks=size)
    for results in map_ordered(work, begun, threads=threads):
        yield from results
