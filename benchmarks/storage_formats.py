"""The formats of benchmark `storage`: how each writes, scans, and reads columns and rows. ``run`` measures one of them.

Everybody is handed whole layers, (rows, neurons) float16, in memory. Settings are those that were the fastest of what each
library documents (docs/performance.md, "Storage"); who can use several threads gets one per core. A function per format
writes to a path and returns what opens it for reading.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

CORES = len(os.sched_getaffinity(0))
PIECE_ROWS = 8192
"""Of formats without chunks."""
SENTENCE_ROWS = 25
_Found = TypeVar("_Found")
Values = list[NDArray[np.float16]]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """An open file or folder."""

    piece: Callable[[int, int, int], NDArray[Any]]
    """(layer, first row, row after the last) -> their values, in memory."""
    columns: Callable[[int, NDArray[np.int64]], NDArray[Any]]
    """(layer, neurons) -> (rows, neurons)."""
    rows: Callable[[int, NDArray[np.int64]], NDArray[Any]]
    """(layer, rows) -> (rows, neurons)."""
    step: int = PIECE_ROWS
    """Rows of the pieces of a scan: whole chunks, so that none is decoded twice."""
    threads: int = 1
    """That read pieces at the same time, beside those that the library has itself."""
    lake: Any = None
    """It scans by itself."""


Opener = Callable[[], Reader]
Format = Callable[[Path, Values], Opener]


def scan(
    reader: Reader, shape: tuple[int, int, int], work: Callable[[NDArray[Any]], _Found]
) -> Iterator[tuple[Any, _Found]]:
    """Yield ((layer, first neuron), what `work` makes of a piece) of all pieces of (layers, rows, neurons)."""
    if reader.lake is not None:
        yield from reader.lake.scan(lambda tile: ((tile.layer, tile.first_neuron), work(tile.values)))
        return
    layers, rows, _ = shape
    pieces = [
        (layer, first, min(first + reader.step, rows)) for layer in range(layers) for first in range(0, rows, reader.step)
    ]

    def read(piece: tuple[int, int, int]) -> tuple[Any, _Found]:
        return (piece[0], 0), work(reader.piece(*piece))

    if reader.threads == 1:
        yield from map(read, pieces)
        return
    with ThreadPoolExecutor(reader.threads) as pool:
        yield from pool.map(read, pieces)


def each_layer(work: Callable[[int], Any], layers: int) -> None:
    """Write every layer, on all cores."""
    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(work, range(layers)))


# ---- neuronlake ---------------------------------------------------------------------------------------------------------


def neuronlake(encoding: str, *, index: bool) -> tuple[Callable[[Path, Values, int], None], Format]:
    """Return what plans a lake, which is not timed: an extraction does it before the model runs; and what writes it."""

    def prepare(path: Path, values: Values, block_rows: int) -> None:
        import neuronlake.store.layout as layout
        from neuronlake.store import LakeSpec, create_lake
        from neuronlake.store.compose import write_tables
        from neuronlake.store.compose_plan import ComposedPlan
        from neuronlake.store.compose_tokens import token_columns
        from neuronlake.store.plan_record import publish_plan

        rows, neurons = values[0].shape
        spec = LakeSpec(
            model={"name": "benchmark", "sha256": "0", "architecture": "none"},
            capture={"dtype": "float16"},
            plan={"corpus": {"kind": "benchmark"}, "context": "none"},
            sites=(layout.DEFAULT_SITE,),
            layers=tuple(range(len(values))),
            neurons=neurons,
            block_rows=block_rows,
            chunk_neurons=layout.default_chunk_neurons(rows=block_rows, neurons=neurons, itemsize=2),
            encoding=encoding,
        )
        record = create_lake(path, spec)
        plan = ComposedPlan(token_columns({}, rows), block_rows=block_rows, name="benchmark")
        publish_plan(path, spec, write_tables(path, spec, plan, record))

    def write(path: Path, values: Values) -> Opener:
        from neuronlake.store import BlockWriter, open_lake
        from neuronlake.store.create import read_spec

        spec = read_spec(path)
        with BlockWriter(path, spec, index=index) as writer, ThreadPoolExecutor(CORES) as pool:
            for block, first in enumerate(range(0, len(values[0]), spec.block_rows)):
                rows = np.arange(min(spec.block_rows, len(values[0]) - first))
                buffer = writer.buffer(len(rows))

                def put(layer: int, buffer: Any = buffer, first: int = first, rows: Any = rows) -> None:
                    patterns = values[layer][first : first + len(rows)].view(np.uint16)
                    buffer.put(spec.sites[0], layer, patterns, rows, rows)

                list(pool.map(put, spec.layers))
                writer.submit(block, len(rows), buffer, {})

        def opened() -> Reader:
            lake = open_lake(path)
            every = slice(0, len(values[0]))
            return Reader(
                piece=lambda layer, first, last: lake.read(layer=layer, rows=slice(first, last)),
                columns=lambda layer, neurons: lake.read(layer=layer, rows=every, neurons=neurons),
                rows=lambda layer, rows: lake.read(layer=layer, rows=rows),
                step=spec.block_rows,
                lake=lake,
            )

        return opened

    return prepare, write


# ---- Zarr ---------------------------------------------------------------------------------------------------------------


def zarr_python(path: Path, values: Values) -> Opener:
    """An array per layer with zarr-python's own chunks and codec; pieces in threads, since its event loop alone uses few."""
    import zarr

    group = zarr.create_group(path)
    each_layer(lambda layer: group.create_array(str(layer), data=values[layer]), len(values))

    def opened() -> Reader:
        arrays = [zarr.open_group(path, mode="r")[str(layer)] for layer in range(len(values))]
        return Reader(
            piece=lambda layer, first, last: arrays[layer][first:last],
            columns=lambda layer, neurons: arrays[layer].oindex[:, neurons],
            rows=lambda layer, rows: arrays[layer].oindex[rows, :],
            step=_whole_chunks(arrays[0].chunks[0]),
            threads=CORES,
        )

    return opened


def _whole_chunks(chunk_rows: int) -> int:
    return max(1, PIECE_ROWS // chunk_rows) * chunk_rows


def tensorstore(metadata: Callable[[int], dict[str, Any]]) -> Format:
    """An array per layer by tensorstore's zarr3 driver, which writes and reads on all cores."""

    def write(path: Path, values: Values) -> Opener:
        import tensorstore as ts

        rows, neurons = values[0].shape
        step = PIECE_ROWS
        futures = []
        for layer, of_layer in enumerate(values):
            array = ts.open(
                {
                    "driver": "zarr3",
                    "kvstore": {"driver": "file", "path": str(path / str(layer))},
                    "metadata": metadata(neurons),
                },
                create=True,
                dtype=ts.float16,
                shape=of_layer.shape,
            ).result()
            step = _whole_chunks(array.chunk_layout.write_chunk.shape[0])
            for first in range(0, rows, step):
                last = min(first + step, rows)
                futures.append(array[first:last].write(of_layer[first:last]))
        for future in futures:
            future.result()

        def opened() -> Reader:
            arrays = [
                ts.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / str(layer))}}).result()
                for layer in range(len(values))
            ]
            buffer = np.empty((step, neurons), dtype=np.float16)

            def piece(layer: int, first: int, last: int) -> NDArray[Any]:
                # into memory that is there already: twice as fast
                ts.array(buffer[: last - first]).write(arrays[layer][first:last]).result()
                return buffer[: last - first]

            return Reader(
                piece=piece,
                columns=lambda layer, chosen: arrays[layer][:, chosen].read().result(),
                rows=lambda layer, chosen: arrays[layer][chosen].read().result(),
                step=step,
            )

        return opened

    return write


def tuned(neurons: int) -> dict[str, Any]:
    """Metadata of an array with the chunks and the codec that neuronlake's float16 has."""
    blosc = {"cname": "lz4", "clevel": 5, "shuffle": "bitshuffle", "typesize": 2}
    inner = {
        "chunk_shape": [8192, 64],
        "codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "blosc", "configuration": blosc},
        ],
    }
    return {
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [8192, -(-neurons // 64) * 64]}},
        "codecs": [{"name": "sharding_indexed", "configuration": inner}],
    }


# ---- Blosc2 -------------------------------------------------------------------------------------------------------------


def blosc2(*, floats: bool) -> Format:
    """An array per layer with its own chunks and threads, opened as a memory map, which its documentation advises.

    By default zstd 5 after shuffling bytes; `floats` adds bytedelta, its authors' filter for measured floats.
    """

    def write(path: Path, values: Values) -> Opener:
        import blosc2

        options: dict[str, Any] = {}
        if floats:
            options["cparams"] = {
                "codec": blosc2.Codec.ZSTD,
                "clevel": 5,
                "filters": [blosc2.Filter.SHUFFLE, blosc2.Filter.BYTEDELTA],
                "filters_meta": [0, 2],
            }
        path.mkdir()
        for layer, of_layer in enumerate(values):
            blosc2.asarray(of_layer, urlpath=str(path / f"{layer}.b2nd"), mode="w", **options)

        def opened() -> Reader:
            arrays = [blosc2.open(str(path / f"{layer}.b2nd"), mode="r", mmap_mode="r") for layer in range(len(values))]
            step, every = arrays[0].chunks[0], len(values[0])

            def columns(layer: int, neurons: NDArray[np.int64]) -> NDArray[Any]:
                if len(neurons) == 1:
                    return arrays[layer][:, neurons[0] : neurons[0] + 1]
                # chunks hold all neurons: half the time of its fancy indexing
                pieces = [arrays[layer][first : first + step][:, neurons] for first in range(0, every, step)]
                return np.concatenate(pieces)

            return Reader(
                piece=lambda layer, first, last: arrays[layer][first:last],
                columns=columns,
                rows=lambda layer, rows: arrays[layer][rows],
                step=step,
            )

        return opened

    return write


# ---- HDF5 ---------------------------------------------------------------------------------------------------------------


def h5py_sentences(path: Path, values: Values) -> Opener:
    """As NeuroX's writer does: a float32 data set (layers, words, neurons) per sentence, here of 25 words."""
    import h5py

    every = len(values[0])
    with h5py.File(path, "w") as file:
        for number, first in enumerate(range(0, every, SENTENCE_ROWS)):
            sentence = np.stack([layer[first : first + SENTENCE_ROWS] for layer in values])
            file.create_dataset(str(number), sentence.shape, dtype="float32", data=sentence)

    def opened() -> Reader:
        file = h5py.File(path)

        def piece(layer: int, first: int, last: int) -> NDArray[Any]:
            numbers = range(first // SENTENCE_ROWS, -(-last // SENTENCE_ROWS))
            return np.concatenate([file[str(number)][layer] for number in numbers])

        def columns(layer: int, neurons: NDArray[np.int64]) -> NDArray[Any]:
            numbers = range(-(-every // SENTENCE_ROWS))
            if len(neurons) == 1:
                return np.concatenate([file[str(number)][layer, :, neurons[0]] for number in numbers])[:, None]
            return np.concatenate([file[str(number)][layer][:, neurons] for number in numbers])

        return Reader(
            piece=piece,
            columns=columns,
            rows=lambda layer, rows: np.stack([file[str(r // SENTENCE_ROWS)][layer, r % SENTENCE_ROWS] for r in rows]),
            step=PIECE_ROWS // SENTENCE_ROWS * SENTENCE_ROWS,
        )

    return opened


def h5py_layers(path: Path, values: Values) -> Opener:
    """A float16 data set per layer, contiguous: h5py's default. Its lock lets one thread in."""
    import h5py

    every, neurons = values[0].shape
    with h5py.File(path, "w") as file:
        for layer, of_layer in enumerate(values):
            file.create_dataset(str(layer), data=of_layer)

    def opened() -> Reader:
        file = h5py.File(path)
        data = [file[str(layer)] for layer in range(len(values))]
        buffer = np.empty((PIECE_ROWS, neurons), dtype=np.float16)

        def piece(layer: int, first: int, last: int) -> NDArray[Any]:
            data[layer].read_direct(buffer, np.s_[first:last], np.s_[: last - first])
            return buffer[: last - first]

        def columns(layer: int, chosen: NDArray[np.int64]) -> NDArray[Any]:
            if len(chosen) == 1:
                return data[layer][:, chosen[0]][:, None]
            # a twentieth of the time of its fancy indexing
            steps = range(0, every, PIECE_ROWS)
            return np.concatenate([piece(layer, first, min(first + PIECE_ROWS, every))[:, chosen] for first in steps])

        return Reader(piece=piece, columns=columns, rows=lambda layer, rows: data[layer][rows])

    return opened


# ---- plain files --------------------------------------------------------------------------------------------------------


def npy(path: Path, values: Values) -> Opener:
    """A file per layer, written by np.save and read as a memory map."""
    path.mkdir()
    each_layer(lambda layer: np.save(path / f"{layer}.npy", values[layer]), len(values))

    def opened() -> Reader:
        arrays = [np.load(path / f"{layer}.npy", mmap_mode="r") for layer in range(len(values))]
        return Reader(
            piece=lambda layer, first, last: np.array(arrays[layer][first:last]),
            columns=lambda layer, neurons: np.asarray(arrays[layer][:, neurons]),
            rows=lambda layer, rows: np.asarray(arrays[layer][rows]),
            threads=CORES,
        )

    return opened


def safetensors(path: Path, values: Values) -> Opener:
    """A file per block of 8,192 rows and layer, read by slices."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    path.mkdir()
    every = len(values[0])
    starts = range(0, every, PIECE_ROWS)

    def save(layer: int) -> None:
        for first in starts:
            save_file({"values": values[layer][first : first + PIECE_ROWS]}, path / f"{layer}-{first}.safetensors")

    each_layer(save, len(values))

    def opened() -> Reader:
        files = [
            [safe_open(path / f"{layer}-{first}.safetensors", "np") for first in starts] for layer in range(len(values))
        ]

        def columns(layer: int, neurons: NDArray[np.int64]) -> NDArray[Any]:
            slices = [file.get_slice("values") for file in files[layer]]
            each = [np.concatenate([part[:, neuron : neuron + 1] for part in slices]) for neuron in neurons.tolist()]
            return np.concatenate(each, axis=1)

        def rows(layer: int, chosen: NDArray[np.int64]) -> NDArray[Any]:
            slices = [file.get_slice("values") for file in files[layer]]
            found = [slices[row // PIECE_ROWS][row % PIECE_ROWS : row % PIECE_ROWS + 1] for row in chosen.tolist()]
            return np.concatenate(found)

        return Reader(
            piece=lambda layer, first, last: files[layer][first // PIECE_ROWS].get_tensor("values"),
            columns=columns,
            rows=rows,
            threads=CORES,
        )

    return opened


PEERS: dict[str, Format] = {
    "zarr-python, its defaults": zarr_python,
    "tensorstore zarr3, its defaults": tensorstore(lambda _: {}),
    "tensorstore zarr3, our chunks and codec": tensorstore(tuned),
    "blosc2, its defaults": blosc2(floats=False),
    "blosc2, bytedelta": blosc2(floats=True),
    "h5py, a data set per sentence (NeuroX)": h5py_sentences,
    "h5py, a data set per layer": h5py_layers,
    "npy, memory map": npy,
    "safetensors": safetensors,
}
LAKES = {
    "neuronlake int8a": neuronlake("int8a", index=True),
    "neuronlake int8a, no index": neuronlake("int8a", index=False),
    "neuronlake float16": neuronlake("float16", index=True),
    "neuronlake float16, no index": neuronlake("float16", index=False),
}
