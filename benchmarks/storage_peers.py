"""Other libraries' formats of benchmark `storage`, with the settings that were the fastest of what each documents."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.storage_formats import CORES, PIECE_ROWS, Format, Opener, Reader, Values, each_layer

SENTENCE_ROWS = 25

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
