"""Activations at memory speed, as a fast GPU would hand them over, into a committed, indexed lake; and into other formats.

Real SmolLM2 activations as float16 patterns in memory (for the wider shape, those of several layers side by side) are
written as blocks of real plans, again and again. Everybody stores the same float16 values and ends with everything synced;
what is read back is compared. The limits are of the same run: copying memory, the encoder alone on all cores, the disk.
"""

import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import EWT_DEV, corpora, ewt_lake, keep, scratch, smollm2
from benchmarks.limits import codec_rates, disk_rate

SHAPES = {"SmolLM2-135M": (30, 1536), "Llama-3-8B": (32, 14336)}
TOKENS_PER_S = 20_000
"""Of a GPU that runs Llama-3-8B in vLLM: what is to be kept up with."""
_Pattern = NDArray[np.uint16]
_Write = Callable[[Path, Callable[[], None]], Callable[[int, int], NDArray[Any]]]
"""Writes into a path and returns what reads a block's layer; what precedes a call of the second argument is not timed."""


def run(
    *,
    shapes: dict[str, tuple[int, int]] = SHAPES,
    blocks: int = 3,
    block_rows: int | None = None,
    sentences: int | None = None,
) -> dict[str, Any]:
    """Print a table for each shape, and the cores that keep up with `TOKENS_PER_S`.

    Parameters
    ----------
    shapes
        Name → layers, neurons per layer.
    blocks, block_rows
        Written blocks, and their rows; by default as many rows as such a lake would have.
    sentences
        Only so many sentences of EWT dev, for the plan and the values.
    """
    result: dict[str, Any] = {}
    with scratch() as folder:
        _shape(Path(folder), 2, 700, 1, 512, sentences)  # compiles
    for name, (layers, neurons) in shapes.items():
        with scratch() as folder:
            result[name] = _shape(Path(folder), layers, neurons, blocks, block_rows, sentences)
        _print(name, result[name])
    keep("replay", result)
    return result


def _shape(
    folder: Path, layers: int, neurons: int, blocks: int, block_rows: int | None, sentences: int | None
) -> dict[str, Any]:
    import neuronlake.store.layout as layout

    rows = block_rows or layout.default_block_rows(layers=layers, neurons=neurons, itemsize=2)
    values = _values(folder, layers, neurons, rows, sentences)
    count = blocks * sum(layer.size for layer in values)
    found: dict[str, Any] = {"layers": layers, "neurons": neurons, "rows": rows, "blocks": blocks, "values": count}
    found["copying memory"] = _copying(values)
    writers: dict[str, _Write] = {}
    for encoding in ("int8a", "float16"):
        for index in (True, False):
            title = f"neuronlake, {encoding}" + ("" if index else ", no index")
            writers[title] = _lake_writer(folder, layers, neurons, rows, blocks, values, encoding, index, sentences)
    writers |= {
        "np.save": lambda path, _: _numpy(path, values, blocks),
        "h5py, a data set per layer": lambda path, _: _h5py(path, values, blocks),
        "zarr-python, its defaults": lambda path, _: _zarr(path, values, blocks),
        "Arrow IPC, its defaults (LZ4)": lambda path, _: _arrow(path, values, blocks),
    }
    found["written"] = {name: _measure(folder / "written", write, values, blocks, count) for name, write in writers.items()}
    stored = found["written"]["neuronlake, int8a, no index"]["bytes_per_value"]
    floats = [layer.view(np.float16).astype(np.float32) for layer in values[: min(len(values), 4)]]
    chunk = layout.default_chunk_neurons(rows=rows, neurons=neurons, itemsize=2)
    compressor, encoder = codec_rates(floats, "int8a", chunk, 2)
    disk = disk_rate(folder / "disk", max(int(stored * count), 64 << 20)) / stored
    found["limits"] = {"compressor alone": compressor, "encoder alone": encoder, "disk, at int8a's size": disk}
    limit = min(encoder, disk)
    for name in ("neuronlake, int8a", "neuronlake, int8a, no index"):
        found["written"][name]["of_limit"] = found["written"][name]["Gvalues_per_s"] / limit
    per_core = found["written"]["neuronlake, int8a"]["Gvalues_per_core_s"] * 1e9
    found["cores_for_20000_tokens_per_s"] = TOKENS_PER_S * layers * neurons / per_core
    return found


def _values(folder: Path, layers: int, neurons: int, rows: int, sentences: int | None) -> list[_Pattern]:
    """Real activations, (rows, neurons) float16 patterns per layer; columns of several layers side by side where needed."""
    from neuronlake.store import open_lake

    if sentences is None:
        lake = open_lake(ewt_lake())
    else:
        from benchmarks.common import small_lake

        lake = open_lake(small_lake(folder, sentences))
    ordinary = np.arange(lake.plan.blocks * lake.block_rows)[: max(1, sum(commit.rows for commit in lake.commits))]
    chosen = np.resize(ordinary, rows)
    every = [lake.read(layer=layer, rows=chosen).astype(np.float16).view(np.uint16) for layer in lake.layers]
    wide = -(-neurons // lake.neurons)
    return [
        np.ascontiguousarray(
            np.concatenate([every[(layer + more) % len(every)] for more in range(wide)], axis=1)[:, :neurons]
        )
        for layer in range(layers)
    ]


def _copying(values: list[_Pattern]) -> float:
    """Gvalues/s of copying them on all cores."""
    targets = [np.zeros_like(layer) for layer in values[:4]]

    def copy(place: int) -> None:
        np.copyto(targets[place % len(targets)], values[place])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(copy, range(len(targets))))
        start = time.perf_counter()
        list(pool.map(copy, range(len(values))))
    return sum(layer.size for layer in values) / (time.perf_counter() - start) / 1e9


def _measure(
    path: Path,
    write: _Write,
    values: list[_Pattern],
    blocks: int,
    count: int,
) -> dict[str, float]:
    """Write, sync and read a layer of the last block back."""
    clock = [0.0, 0.0]

    def begin() -> None:
        clock[:] = time.perf_counter(), time.process_time()

    begin()
    read = write(path, begin)
    wall, processor = time.perf_counter() - clock[0], time.process_time() - clock[1]
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
    expected = values[-1].view(np.float16).astype(np.float32)
    found = np.asarray(read(blocks - 1, len(values) - 1), dtype=np.float32)
    error = float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    return {
        "Gvalues_per_s": count / wall / 1e9,
        "Gvalues_per_core_s": count / processor / 1e9,
        "bytes_per_value": size / count,
        "relative_error": error,
    }


def _lake_writer(
    folder: Path,
    layers: int,
    neurons: int,
    rows: int,
    blocks: int,
    values: list[_Pattern],
    encoding: str,
    index: bool,
    sentences: int | None,
) -> _Write:
    """Return what writes a lake of that shape, planned beforehand with real tables."""
    from neuronlake.store import BlockWriter, complete_index, open_lake

    root = folder / f"{encoding}-{index}.lake"
    spec = _planned(root, layers, neurons, rows, blocks, encoding, sentences)
    every = np.arange(rows)

    def write(path: Path, begin: Callable[[], None]) -> Callable[[int, int], NDArray[Any]]:
        root.rename(path)
        with BlockWriter(path, spec, index=index) as writer, ThreadPoolExecutor(os.cpu_count()) as pool:
            # a long run fills the same two buffers again and again: that their memory is new counts once, here not at all
            buffers = [writer.buffer(rows), writer.buffer(rows)]
            for buffer in buffers:
                for layer in spec.layers:
                    buffer.tiles(spec.sites[0], layer)[:] = 1
                writer._free.put(buffer)
            begin()
            for block in range(blocks):
                buffer = writer.buffer(rows)

                def put(layer: int, buffer: Any = buffer) -> None:
                    buffer.put(spec.sites[0], layer, values[layer], every, every)

                list(pool.map(put, spec.layers))
                writer.submit(block, rows, buffer, {})
        lake = open_lake(path)
        if index:
            complete_index(lake)
            assert len(lake.index().blocks) == blocks
        return lambda block, layer: lake.read_block(layer=layer, block=block)

    return write


def _planned(root: Path, layers: int, neurons: int, rows: int, blocks: int, encoding: str, sentences: int | None) -> Any:
    """Plan a lake of real text, of another shape than the model that the text is planned with; every row is in use."""
    import pyarrow as pa

    import neuronlake.store.layout as layout
    from neuronlake.extractor import ConlluCorpus, ExtractSettings, Observer, resolve_model
    from neuronlake.extractor.planning import joined, prepare
    from neuronlake.store import create_lake
    from neuronlake.store.files import write_file
    from neuronlake.store.lock import Patience
    from neuronlake.store.plan_record import publish_plan
    from neuronlake.store.tables import PADDING, PLAN_SCHEMA, from_parquet, to_parquet

    corpus = ConlluCorpus(paths=(corpora() / EWT_DEV,), limit_sentences=sentences)
    prepared = prepare(corpus, resolve_model(smollm2()), ExtractSettings(block_rows=rows, encoding=encoding))
    other = root.with_name(f"{root.name}-planned")
    with joined(other, prepared, Patience(seconds=0), Observer()) as planned:
        plan = planned.plan
    spec = dataclasses.replace(
        prepared.spec,
        layers=tuple(range(layers)),
        neurons=neurons,
        widths={},
        chunk_neurons=layout.default_chunk_neurons(rows=rows, neurons=neurons, itemsize=2),
    )
    files = [create_lake(root, spec)]
    for block in range(blocks):
        for table in ("plan", "words", "sentences"):
            data = (other / layout.table_path(table, block % plan.blocks)).read_bytes()
            if table == "plan":  # rows that would be padding are taken for tokens between words
                found = from_parquet(data)
                flags = np.where(found.column("flags").to_numpy() == PADDING, 8, found.column("flags").to_numpy())
                found = found.set_column(PLAN_SCHEMA.names.index("flags"), "flags", pa.array(flags.astype(np.uint8)))
                data = to_parquet(found)
            files.append(write_file(root, layout.table_path(table, block), [data]))
    shutil.rmtree(other)
    record = dataclasses.replace(
        plan, fingerprint=spec.fingerprint, blocks=blocks, files={each.path: each for each in files}
    )
    publish_plan(root, spec, record)
    return spec


# ---- what people use ----------------------------------------------------------------------------------------------------


@contextmanager
def _synced(path: Path) -> Iterator[None]:
    yield
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def _numpy(path: Path, values: list[_Pattern], blocks: int) -> Callable[[int, int], NDArray[Any]]:
    """A file per block and layer."""
    path.mkdir()
    with _synced(path):
        for block in range(blocks):
            for layer, of_layer in enumerate(values):
                np.save(path / f"{block}-{layer}.npy", of_layer.view(np.float16))
    return lambda block, layer: np.load(path / f"{block}-{layer}.npy")


def _h5py(path: Path, values: list[_Pattern], blocks: int) -> Callable[[int, int], NDArray[Any]]:
    """A data set per layer that grows block by block, in h5py's default chunks of it, uncompressed."""
    import h5py

    rows = len(values[0])
    with _synced(path), h5py.File(path, "w") as file:
        for layer, of_layer in enumerate(values):
            file.create_dataset(
                str(layer), shape=(0, of_layer.shape[1]), maxshape=(None, of_layer.shape[1]), dtype=np.float16, chunks=True
            )
        for block in range(blocks):
            for layer, of_layer in enumerate(values):
                data = file[str(layer)]
                data.resize(rows * (block + 1), axis=0)
                data[rows * block :] = of_layer.view(np.float16)

    def read(block: int, layer: int) -> NDArray[Any]:
        with h5py.File(path) as file:
            return np.asarray(file[str(layer)][rows * block : rows * (block + 1)])

    return read


def _zarr(path: Path, values: list[_Pattern], blocks: int) -> Callable[[int, int], NDArray[Any]]:
    """An array per layer with zarr's own chunks and codecs."""
    import zarr

    rows = len(values[0])
    with _synced(path):
        group = zarr.create_group(path)
        for layer, of_layer in enumerate(values):
            array = group.create_array(str(layer), shape=(rows * blocks, of_layer.shape[1]), dtype=np.float16)
            for block in range(blocks):
                array[rows * block : rows * (block + 1)] = of_layer.view(np.float16)
    return lambda block, layer: np.asarray(zarr.open_group(path, mode="r")[str(layer)][rows * block : rows * (block + 1)])


def _arrow(path: Path, values: list[_Pattern], blocks: int) -> Callable[[int, int], NDArray[Any]]:
    """A Feather file per block: a column per layer, of lists as long as the layer."""
    import pyarrow as pa
    import pyarrow.feather as feather

    path.mkdir()
    with _synced(path):
        for block in range(blocks):
            columns = {
                str(layer): pa.FixedSizeListArray.from_arrays(pa.array(of_layer.view(np.float16).ravel()), of_layer.shape[1])
                for layer, of_layer in enumerate(values)
            }
            feather.write_feather(pa.table(columns), path / f"{block}.feather")

    def read(block: int, layer: int) -> NDArray[Any]:
        table = feather.read_table(path / f"{block}.feather", columns=[str(layer)])
        return table.column(0).combine_chunks().flatten().to_numpy().reshape(len(table), -1)

    return read


def _print(name: str, found: dict[str, Any]) -> None:
    print(
        f"\n**{name}**: {found['layers']} layers × {found['neurons']:,} neurons, {found['blocks']} blocks of "
        f"{found['rows']:,} rows; copying memory {found['copying memory']:.2f} Gvalues/s"
    )
    print("limits: " + ", ".join(f"{limit} {rate:.3f}" for limit, rate in found["limits"].items()) + " Gvalues/s\n")
    print("| written by | Gvalues/s | per core | bytes per value | relative error |\n|---|---|---|---|---|")
    for title, each in found["written"].items():
        share = f" ({each['of_limit']:.2f} of the limit)" if "of_limit" in each else ""
        print(
            f"| {title} | {each['Gvalues_per_s']:.3f}{share} | {each['Gvalues_per_core_s']:.3f} | "
            f"{each['bytes_per_value']:.3f} | {each['relative_error']:.4f} |"
        )
    print(f"\ncores that keep up with {TOKENS_PER_S:,} tokens/s: {found['cores_for_20000_tokens_per_s']:.0f}")
