"""What a format of benchmark `storage` is, and ours; `storage_peers` has the others.

Everybody is handed whole layers, (rows, neurons) float16, in memory. Who can use several threads gets one per core. A
function per format writes to a path and returns what opens it for reading.
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


LAKES = {
    "neuronlake int8a": neuronlake("int8a", index=True),
    "neuronlake int8a, no index": neuronlake("int8a", index=False),
    "neuronlake float16": neuronlake("float16", index=True),
    "neuronlake float16, no index": neuronlake("float16", index=False),
}
