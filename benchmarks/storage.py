"""Writing and reading against the limits of the same machine in the same run, and against zarr-python, tensorstore, h5py.

Real SmolLM2 activations, float32 in memory, in blocks of 8,192 rows. Every rate is in Gvalues/s; reads are from a warm page
cache but for the line that says cold. Whoever writes ends with everything synced to the disk.
"""

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import SHARE, ewt_train_lake, keep, scratch

BLOCK_ROWS = 8192
LAYERS = 10
BLOCKS = 10
TALL_BLOCKS = 123
"""Of one layer: 1,007,616 rows."""
NEUROX_SENTENCE = 25
REPEATS = 3


def run(
    *,
    layers: int = LAYERS,
    blocks: int = BLOCKS,
    tall_blocks: int = TALL_BLOCKS,
    block_rows: int = BLOCK_ROWS,
    repeats: int = REPEATS,
    encodings: tuple[str, ...] = ("int8a", "float16"),
    share: float = SHARE,
) -> dict[str, Any]:
    """Print the table."""
    values = _real_values(layers, block_rows, share)
    result: dict[str, Any] = {}
    with scratch() as folder:
        for encoding in encodings:
            work = Path(folder) / encoding
            work.mkdir()
            result[encoding] = {
                "ingest": _ingest(work, values, blocks, encoding, repeats),
                "read": _read(work, values[0], tall_blocks, encoding, repeats),
            }
            shutil.rmtree(work)
    for encoding, parts in result.items():
        print(f"\n**{encoding}**\n\n| what | measured |\n|---|---|")
        for part in parts.values():
            for name, value in part.items():
                print(f"| {name.replace('_', ' ')} | {value:.3f} |")
    keep("storage", result)
    return result


def _real_values(layers: int, rows: int, share: float) -> list[NDArray[np.float32]]:
    from neuronlake.store import open_lake

    lake = open_lake(ewt_train_lake(share))
    return [lake.read(layer=layer % 30, rows=slice(0, rows)) for layer in range(0, 3 * layers, 3)]


def _best(repeats: int, work: Callable[[], Any]) -> float:
    """Seconds of the fastest of some repeats."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


# ---- writing ----------------------------------------------------------------------------------------------------------


def _new_lake(root: Path, *, layers: int, blocks: int, rows: int, neurons: int, encoding: str) -> Any:
    """An empty lake of that shape, planned: its blocks can be committed."""
    import neuronlake.store.layout as layout
    from neuronlake.store import LakeSpec, create_lake
    from neuronlake.store.plan_record import PlanRecord, publish_plan

    spec = LakeSpec(
        model={"name": "benchmark", "sha256": "0", "architecture": "none"},
        capture={"dtype": "float32"},
        plan={"corpus": {"kind": "benchmark"}, "context": "none"},
        sites=(layout.DEFAULT_SITE,),
        layers=tuple(range(layers)),
        neurons=neurons,
        block_rows=rows,
        chunk_neurons=layout.default_chunk_neurons(rows=rows, neurons=neurons, itemsize=2),
        encoding=encoding,
    )
    record = create_lake(root, spec)
    plan = PlanRecord(
        fingerprint=spec.fingerprint,
        blocks=blocks,
        label_columns=(),
        counts={},
        special_tokens={},
        files={record.path: record},
    )
    publish_plan(root, spec, plan)
    return spec


def _write(root: Path, spec: Any, values: list[NDArray[np.float32]], blocks: int) -> None:
    from neuronlake.store import BlockWriter

    rows = np.arange(len(values[0]))
    with BlockWriter(root, spec) as writer, ThreadPoolExecutor(os.cpu_count()) as pool:
        for block in range(blocks):
            buffer = writer.buffer(len(rows))

            def put(layer: int, buffer: Any = buffer) -> None:
                buffer.put(spec.sites[0], layer, values[layer], rows, rows)

            list(pool.map(put, spec.layers))
            writer.submit(block, len(rows), buffer, {})


def _ingest(folder: Path, values: list[NDArray[np.float32]], blocks: int, encoding: str, repeats: int) -> dict[str, float]:
    from neuronlake.store import open_lake

    count = len(values) * blocks * values[0].size
    shape = {"layers": len(values), "blocks": blocks, "rows": len(values[0]), "neurons": values[0].shape[1]}
    roots = [folder / f"ingest-{number}.lake" for number in range(repeats)]
    specs = iter([_new_lake(root, encoding=encoding, **shape) for root in roots])
    remaining = iter(roots)
    ours = count / _best(repeats, lambda: _write(next(remaining), next(specs), values, blocks)) / 1e9
    lake = open_lake(roots[-1])
    stored = sum(record.bytes for commit in lake.commits for record in commit.files)
    compressor, encoder = _codec_rates(values, encoding, lake.chunk_neurons, repeats)
    disk = _disk_rate(folder / "disk", stored) * count / stored
    limit = min(compressor, disk)
    zarr_rate = _zarr_ingest(folder / "zarr", values, repeats)
    h5_rate = _h5_ingest(folder / "h5.hdf5", values, blocks)
    return {
        "bytes_per_value": stored / count,
        "ingest": ours,
        "compressor_alone": compressor,
        "quantiser_and_compressor": encoder,
        "disk": disk,
        "ingest_of_compressor_and_disk_limit": ours / limit,
        "ingest_of_encoder_and_disk_limit": ours / min(encoder, disk),
        "zarr_defaults": zarr_rate,
        "ingest_over_zarr_defaults": ours / zarr_rate,
        "h5py_as_NeuroX_writes": h5_rate,
        "ingest_over_h5py": ours / h5_rate,
    }


def _codec_rates(values: list[NDArray[np.float32]], encoding: str, width: int, repeats: int) -> tuple[float, float]:
    """Rates on all cores, in memory: the compressor alone on chunks ready for it, and the whole encoding of a tile."""
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
        compressor = _best(repeats, lambda: list(pool.map(lambda chunk: len(chosen.compress(chunk)), codes)))
        encoder = _best(repeats, lambda: list(pool.map(encode, tiles)))
    return count / compressor / 1e9, count / encoder / 1e9


def _disk_rate(path: Path, size: int) -> float:
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
    return (size // 2 >> 20 << 21) / (time.perf_counter() - start) / 1e9


def _zarr_ingest(path: Path, values: list[NDArray[np.float32]], repeats: int) -> float:
    import zarr

    def write() -> None:
        shutil.rmtree(path, ignore_errors=True)
        group = zarr.create_group(path)
        for layer, layer_values in enumerate(values[:2]):
            group.create_array(str(layer), data=layer_values)
        os.sync()

    return 2 * values[0].size / _best(repeats, write) / 1e9


def _h5_ingest(path: Path, values: list[NDArray[np.float32]], blocks: int) -> float:
    """One float32 data set (layers, words, neurons) a sentence, uncompressed."""
    import h5py

    rows = len(values[0])
    start = time.perf_counter()
    with h5py.File(path, "w") as file:
        number = 0
        for _ in range(blocks):
            for first in range(0, rows, NEUROX_SENTENCE):
                sentence = np.stack([layer[first : first + NEUROX_SENTENCE] for layer in values])
                file.create_dataset(str(number), data=sentence, dtype="float32")
                number += 1
        file.flush()
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    return blocks * len(values) * values[0].size / (time.perf_counter() - start) / 1e9


# ---- reading ----------------------------------------------------------------------------------------------------------


def _read(folder: Path, values: NDArray[np.float32], blocks: int, encoding: str, repeats: int) -> dict[str, float]:
    import tensorstore
    import zarr

    from neuronlake.store import open_lake
    from neuronlake.store.layout import array_path

    root = folder / "tall.lake"
    rows, neurons = values.shape
    spec = _new_lake(root, layers=1, blocks=blocks, rows=rows, neurons=neurons, encoding=encoding)
    _write(root, spec, [values], blocks)
    lake = open_lake(root)
    count = blocks * values.size
    path = root / array_path(spec.sites[0], 0)
    rng = np.random.default_rng(0)
    some_rows = np.sort(rng.choice(blocks * rows, size=512, replace=False))
    some_neurons = np.sort(rng.choice(neurons, size=64, replace=False))
    decode = _decode_seconds(lake, repeats)
    scan = _best(repeats, lambda: sum(1 for _ in lake.scan(lambda tile: None)))
    scan_codes = _best(repeats, lambda: sum(1 for _ in lake.scan(lambda tile: None, values="codes")))
    scan_sum = _best(repeats, lambda: sum(lake.scan(lambda tile: float(tile.values.sum()))))
    column = _best(repeats, lambda: lake.read(layer=0, neurons=[neurons // 2]))
    columns = _best(1, lambda: lake.read(layer=0, neurons=some_neurons))
    gathered = _best(repeats, lambda: lake.read(layer=0, rows=some_rows))
    touched = len(np.unique(some_rows // rows)) / blocks
    array = zarr.open_array(path, mode="r")
    part = min(blocks, 16)  # zarr's result is float32 of everything at once: a part of the rows will do
    zarr_scan = _best(1, lambda: array[: part * rows]) * blocks / part
    store = tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}).result()
    tensorstore_scan = _best(1, lambda: store[: part * rows].read().result()) * blocks / part
    tensorstore_column = _best(1, lambda: store[:, neurons // 2].read().result())
    zarr_column = _best(1, lambda: array[:, neurons // 2])
    cold = _cold(lake)
    stored = sum(record.bytes for commit in lake.commits for record in commit.files)
    return {
        "rows": float(blocks * rows),
        "decode_only": count / decode / 1e9,
        "scan_of_codes": count / scan_codes / 1e9,
        "scan_of_codes_over_decode_only": decode / scan_codes,
        "scan_of_float32": count / scan / 1e9,
        "scan_of_float32_over_decode_only": decode / scan,
        "scan_of_float32_summing_every_value": count / scan_sum / 1e9,
        "cold_scan": count / cold / 1e9,
        "cold_scan_GB_per_s": stored / cold / 1e9,
        "zarr_whole_array": count / zarr_scan / 1e9,
        "scan_over_zarr": zarr_scan / scan,
        "tensorstore_whole_array": count / tensorstore_scan / 1e9,
        "scan_over_tensorstore": tensorstore_scan / scan,
        "one_column_ms": column * 1e3,
        "scan_over_one_column": scan / column,
        "zarr_column_over_ours": zarr_column / column,
        "tensorstore_column_over_ours": tensorstore_column / column,
        "64_random_columns_of_scan": columns / scan,
        "512_random_rows_ms": gathered * 1e3,
        "512_random_rows_over_decoding_their_chunks": gathered / (decode * touched),
    }


def _decode_seconds(lake: Any, repeats: int) -> float:
    """Decompress every chunk of the lake from memory into reused buffers, on all cores: numcodecs and nothing else."""
    from numcodecs import blosc, zstd

    from neuronlake.store.encodings import get_encoding
    from neuronlake.store.layout import shard_path
    from neuronlake.store.shard import index_bytes, parse_index

    encoding = get_encoding(lake.encoding)
    chunks = lake.reader.chunks
    shards = []
    for block in lake.blocks:
        data = (lake.path / shard_path(lake.sites[0], 0, block)).read_bytes()
        index = parse_index(data[-index_bytes(chunks) :], chunks=chunks, shard_bytes=len(data), what="shard")
        shards.append([data[int(offset) : int(offset) + int(length) - 4] for offset, length in index])
    decompress = zstd.decompress if encoding.quantised else blosc.decompress
    shape = (lake.block_rows, lake.chunk_neurons)

    def decode(shard: list[bytes]) -> None:
        out = np.empty(shape, dtype=encoding.codes)
        for chunk in shard:
            decompress(chunk, out)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return _best(repeats, lambda: list(pool.map(decode, shards)))


def _cold(lake: Any) -> float:
    """Seconds of a scan after the lake's files were dropped from the page cache."""
    os.sync()
    for path in lake.path.rglob("c.*"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    start = time.perf_counter()
    for _ in lake.scan(lambda tile: None):
        pass
    return time.perf_counter() - start
