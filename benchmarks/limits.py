"""What a machine and the codecs allow, measured beside what is compared with it: copying, the disk, encoder and decoder."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def best(repeats: int, work: Callable[[], Any]) -> float:
    """Seconds of the fastest of some repeats."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def copy_rate(values: list[NDArray[Any]]) -> float:
    """GB/s of copying arrays on all cores into memory that is there already."""
    targets = [np.zeros_like(layer) for layer in values[:4]]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        seconds = best(3, lambda: list(pool.map(np.copyto, targets, values[: len(targets)])))
    return sum(target.nbytes for target in targets) / seconds / 1e9


def disk_rate(path: Path, size: int) -> float:
    """GB/s of writing that many bytes past the page cache and syncing them, as the store does, in two files at once."""
    from neuronlake.store.direct import DirectFile

    piece = np.random.default_rng(0).bytes(1 << 20)

    def write(number: int) -> None:
        file = DirectFile(path.with_name(f"{path.name}-{number}"))
        for _ in range(size // 2 >> 20):
            file.write(piece)
        file.finish()
        file.sync()
        file.close()

    start = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, range(2)))
    seconds = time.perf_counter() - start
    for number in range(2):
        path.with_name(f"{path.name}-{number}").unlink()
    return (size // 2 >> 20 << 21) / seconds / 1e9


def codec_rates(values: list[NDArray[np.float32]], encoding: str, width: int, repeats: int) -> tuple[float, float]:
    """Gvalues/s on all cores, in memory: the compressor alone on chunks ready for it, and the whole encoding of a tile.

    Parameters
    ----------
    values
        (rows, neurons) of each layer.
    width
        Neurons of a chunk.
    """
    from neuronlake.store import BlockBuffer, LakeSpec
    from neuronlake.store.encodings import get_encoding
    from neuronlake.store.quantise import quantise

    chosen = get_encoding(encoding)
    rows, neurons = values[0].shape
    spec = LakeSpec(
        model={}, capture={}, plan={}, sites=("s",), layers=tuple(range(len(values))), neurons=neurons, block_rows=rows,
        chunk_neurons=width, encoding=encoding,
    )  # fmt: skip
    buffer = BlockBuffer(spec)
    buffer.reset(rows)
    for layer, layer_values in enumerate(values):
        buffer.put("s", layer, layer_values, np.arange(rows), np.arange(rows))
    tiles = [tile for layer in range(len(values)) for tile in buffer.tiles("s", layer)]

    def encode(tile: NDArray[Any]) -> None:
        codes = tile
        if chosen.quantised:
            codes = np.empty(tile.shape, dtype=chosen.codes)
            quantise(tile, rows, codes)
        chosen.compress(codes)

    codes = []
    for tile in tiles:
        codes.append(tile)
        if chosen.quantised:
            codes[-1] = np.empty(tile.shape, dtype=chosen.codes)
            quantise(tile, rows, codes[-1])
    count = len(tiles) * tiles[0].size
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compressor = best(repeats, lambda: list(pool.map(lambda chunk: len(chosen.compress(chunk)), codes)))
        encoder = best(repeats, lambda: list(pool.map(encode, tiles)))
    return count / compressor / 1e9, count / encoder / 1e9


def decode_rate(lake: Any, repeats: int) -> float:
    """Gvalues/s of decompressing every chunk of a lake from memory into reused buffers, on all cores: numcodecs alone."""
    from numcodecs import blosc, zstd

    from neuronlake.store.encodings import get_encoding
    from neuronlake.store.layout import shard_path
    from neuronlake.store.shard import index_bytes, parse_index

    encoding = get_encoding(lake.encoding)
    chunks = lake.reader.chunks
    shards = []
    for layer in lake.layers:
        for block in lake.blocks:
            data = (lake.path / shard_path(lake.sites[0], layer, block)).read_bytes()
            index = parse_index(data[-index_bytes(chunks) :], chunks=chunks, shard_bytes=len(data), what="shard")
            shards.append([data[int(offset) : int(offset) + int(length) - 4] for offset, length in index])
    decompress = zstd.decompress if encoding.quantised else blosc.decompress
    shape = (lake.block_rows, lake.chunk_neurons)

    def decode(shard: list[bytes]) -> None:
        out = np.empty(shape, dtype=encoding.codes)
        for chunk in shard:
            decompress(chunk, out)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        seconds = best(repeats, lambda: list(pool.map(decode, shards)))
    return len(shards) * lake.block_rows * lake.neurons / seconds / 1e9
