"""All neurons of some tokens, as an array (tokens, layers, neurons) in memory or in a file."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from neuronlake.analysis.chosen_rows import ChosenRows
from neuronlake.analysis.outputs import check_new, new_file, npy_file, table_writer
from neuronlake.analysis.source import choose_layers, versions
from neuronlake.store.errors import InputError
from neuronlake.store.lake import Lake
from neuronlake.store.parallel import map_ordered

SUFFIXES = (".npy", ".npz", ".parquet", ".zarr")
MEMORY_BYTES = 4_000_000_000
"""What `token_activations` holds in memory at most, unless told otherwise."""
_PIECE_BYTES = 1 << 22  # 4 MiB


def token_activations(
    lake: Lake,
    tokens: ChosenRows,
    *,
    layers: Sequence[int] | None = None,
    max_bytes: int = MEMORY_BYTES,
) -> NDArray[np.float32]:
    """Read all neurons of some tokens.

    Parameters
    ----------
    tokens
        Of `choose_tokens`; their numbers are ``tokens.rows``.
    layers
        Only these, ascending; all by default.
    max_bytes
        Refuse more.

    Returns
    -------
    float32 (tokens, layers, neurons)
        In the order of ``tokens.rows``.

    Raises
    ------
    InputError
        When a layer is unknown, or the array would be larger than `max_bytes`.
    """
    chosen = choose_layers(lake, layers)
    shape = (tokens.count, len(chosen), lake.neurons)
    check_memory(shape, max_bytes)
    out = np.empty(shape, dtype=np.float32)
    for first, place, values in _pieces(lake, tokens, chosen):
        out[first : first + len(values), place] = values
    return out


def write_token_activations(
    lake: Lake, tokens: ChosenRows, path: Path, *, layers: Sequence[int] | None = None
) -> tuple[int, int, int]:
    """Write all neurons of some tokens to a file, and return the array's shape (tokens, layers, neurons).

    Parameters
    ----------
    path
        By its ending:

        - ``.npy``: the array, float32; the rows of the tokens beside in a file ending in ``.rows.npy``, int64 (tokens,);
        - ``.npz``: ``activations``, ``rows`` and ``layers``; it is made in memory;
        - ``.zarr``: arrays ``activations``, ``row`` and ``layer`` for zarr and xarray;
        - ``.parquet``: one line per layer and token with row, layer and a list of the layer's values.

        All but ``.npz`` are written piece by piece: never more than a few blocks of a layer are in memory.

    Raises
    ------
    InputError
        When a layer is unknown, the file exists or is of another kind, a ``.npz`` would not fit in memory, or the disk has
        no room for a ``.npy``.
    StorageError
        When the file system refuses.
    """
    chosen = choose_layers(lake, layers)
    shape = (tokens.count, len(chosen), lake.neurons)
    check_new(path, SUFFIXES)
    if path.suffix == ".npz":
        check_memory(shape, MEMORY_BYTES, hint=", or write .npy, .zarr or .parquet, which are made piece by piece")
        values = token_activations(lake, tokens, layers=chosen)
        with new_file(path) as beside, beside.open("wb") as file:
            np.savez(file, activations=values, rows=tokens.rows, layers=np.array(chosen))
        return shape
    about = {
        "lake": lake.fingerprint,
        "site": lake.site,
        "layers": list(chosen),
        "where": tokens.where,
        "special": tokens.special,
        "versions": versions(),
    }
    with _SINKS[path.suffix](path, tokens, shape, chosen, about) as put:
        for first, place, values in _pieces(lake, tokens, chosen):
            put(first, place, values)
    return shape


def check_memory(shape: tuple[int, int, int], max_bytes: int, hint: str = "") -> None:
    """Raise InputError when a float32 array of a shape is larger than allowed."""
    if 4 * np.prod(shape) > max_bytes:
        raise InputError(f"{_size(shape)} are more than the {max_bytes / 1e9:.1f} GB meant for memory: {_FEWER}{hint}")


_FEWER = "choose fewer tokens or layers"


def _size(shape: tuple[int, int, int]) -> str:
    tokens, layers, neurons = shape
    return f"{tokens:,} tokens × {layers} layers × {neurons:,} neurons, {4 * tokens * layers * neurons / 1e9:.1f} GB,"


def _piece_tokens(neurons: int) -> int:
    return max(1, _PIECE_BYTES // (4 * neurons))


def _pieces(lake: Lake, tokens: ChosenRows, layers: tuple[int, ...]) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
    """Yield (first token, position of the layer, values (tokens, neurons)), layer by layer, in whole pieces.

    Few of the tokens may be in one block; a file in pieces of a few lines would be slow to write and to read.
    """
    blocks, length = sorted(tokens.blocks), _piece_tokens(lake.neurons)

    def read(where: tuple[int, int]) -> NDArray[np.float32]:
        place, block = where
        return lake.read(layer=layers[place], rows=block * lake.block_rows + tokens.blocks[block])

    wanted = [(place, block) for place in range(len(layers)) for block in blocks]
    waiting, first = np.empty((0, lake.neurons), dtype=np.float32), 0
    for (place, block), values in zip(wanted, map_ordered(read, wanted), strict=True):
        waiting = np.concatenate([waiting, values])
        last = block == blocks[-1]
        whole = len(waiting) if last else len(waiting) // length * length
        for start in range(0, whole, length):
            yield first + start, place, waiting[start : min(start + length, whole)]
        waiting, first = waiting[whole:], 0 if last else first + whole


@contextmanager
def _npy(path: Path, tokens: ChosenRows, shape: tuple[int, int, int], _layers: Any, _about: Any) -> Iterator[Any]:
    with npy_file(path, shape, tokens.rows) as array:

        def put(first: int, place: int, values: NDArray[np.float32]) -> None:
            array[first : first + len(values), place] = values

        yield put


@contextmanager
def _zarr(
    path: Path, tokens: ChosenRows, shape: tuple[int, int, int], layers: tuple[int, ...], about: dict[str, Any]
) -> Iterator[Any]:
    import zarr
    from zarr.codecs import BloscCodec

    with new_file(path) as beside:
        group = zarr.create_group(beside, attributes={"neuronlake": about})
        compressors = BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle")
        for name, values in (("row", tokens.rows), ("layer", np.array(layers, dtype=np.int64))):
            array = group.create_array(name, shape=values.shape, dtype=values.dtype, dimension_names=[name])
            array[:] = values
        array = group.create_array(
            "activations",
            shape=shape,
            chunks=(min(shape[0], _piece_tokens(shape[2])), 1, shape[2]),
            dtype=np.float32,
            dimension_names=["row", "layer", "neuron"],
            compressors=compressors,
        )

        def put(first: int, place: int, values: NDArray[np.float32]) -> None:
            array[first : first + len(values), place] = values

        yield put


@contextmanager
def _parquet(
    path: Path, tokens: ChosenRows, shape: tuple[int, int, int], layers: tuple[int, ...], about: dict[str, Any]
) -> Iterator[Any]:
    schema = pa.schema([("row", pa.int64()), ("layer", pa.int32()), ("activations", pa.list_(pa.float32(), shape[2]))])
    rows = tokens.rows
    with table_writer(path, schema, about) as writer:

        def put(first: int, place: int, values: NDArray[np.float32]) -> None:
            here = rows[first : first + len(values)]
            lists = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), shape[2])
            columns = [pa.array(here), pa.array(np.full(len(here), layers[place], dtype=np.int32)), lists]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))

        yield put


_SINKS = {".npy": _npy, ".zarr": _zarr, ".parquet": _parquet}
