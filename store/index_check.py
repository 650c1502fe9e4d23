"""Compare the index with the activations that it was made from: what `verify --full` does besides checksums."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.store.errors import DamageError
from neuronlake.store.index import LakeIndex, Segment, index_block
from neuronlake.store.lake import Lake
from neuronlake.store.parallel import map_ordered
from neuronlake.store.tag_lists import LayerLists, TagLists


def index_problems(lake: Lake) -> Iterator[tuple[str, str]]:
    """Yield name and problem of every segment, or lists per tag, that are not those of the lake's activations.

    All activations are read for each kind of the two; those that are damaged raise DamageError.
    """
    indexes = {site: lake.at(site).index() for site in lake.sites}
    yield from _blocks(lake, indexes)
    for index in indexes.values():
        for lists in index.tag_lists:
            if (problem := _tags(lake, lists)) is not None:
                yield lists.name, problem


def _blocks(lake: Lake, indexes: dict[str, LakeIndex]) -> Iterator[tuple[str, str]]:
    wrong: set[str] = set()
    for block in sorted({block for index in indexes.values() for block in index.blocks}):
        made = index_block(lake, block)
        for site, index in indexes.items():
            for segment in index.segments:
                if segment.name in wrong or block not in segment.blocks:
                    continue
                try:
                    differs = next(_differences(segment, block, made[site].arrays, made[site].ordinary), None)
                except DamageError:  # found by its checksum
                    continue
                if differs is not None:
                    wrong.add(segment.name)
                    yield segment.name, f"{differs} of block {block} is not that of the activations"


def _differences(segment: Segment, block: int, made: Mapping[str, NDArray[Any]], ordinary: int) -> Iterator[str]:
    at = segment.blocks.index(block)
    if segment.ordinary[at] != ordinary:
        yield "the number of ordinary rows"
    for name, values in made.items():
        array = segment.arrays[name]
        if name.startswith("tokens/"):
            if not np.array_equal(array.read_part(at), values):
                yield name
        elif any(not np.array_equal(array.read_part(place)[:, at], values[place]) for place in range(len(values))):
            yield name


def _tags(lake: Lake, lists: TagLists) -> str | None:
    """What is wrong with the lists of a label, given which row has which tag."""
    try:
        tags = lists.row_tags(lists.blocks, lake.block_rows).reshape(-1, lake.block_rows)
    except DamageError:
        return None
    grouped: dict[int, tuple[NDArray[np.int32], NDArray[np.int64]]] = {}
    for block, codes in zip(lists.blocks, tags, strict=True):
        order = np.flatnonzero(codes >= 0)
        order = order[np.argsort(codes[order], kind="stable")]
        starts = np.searchsorted(codes[order], np.arange(len(lists.tags) + 1))
        grouped[block] = order.astype(np.int32), starts.astype(np.int64)
    lake = lake.at(str(lists.record["site"]))
    values = lake.reader.encoding.values

    def differs(place: int) -> bool:
        layer = lake.layers[place]
        made = LayerLists(tags=len(lists.tags), neurons=lake.neurons, chunk_neurons=lake.chunk_neurons, values=values)
        codes = np.empty(lake.reader.chunk_shape, dtype=lake.reader.encoding.stored)
        for block, (order, starts) in grouped.items():
            chunks = range(lake.reader.chunks)
            for chunk, _ in enumerate(lake.read_chunks(layer=layer, block=block, chunks=chunks, out=codes)):
                made.add(block, chunk, codes, order, starts)
        rows, found, count = made.finish()
        try:
            kept = [lists.arrays[name].read_part(place) for name in ("rows", "values")]
        except DamageError:
            return False
        return not all(map(np.array_equal, (rows, found, count), (*kept, lists.count)))

    for place, wrong in enumerate(map_ordered(differs, range(len(lake.layers)), ahead=1)):
        if wrong:
            return f"the lists of layer {lake.layers[place]} are not those of the activations"
    return None
