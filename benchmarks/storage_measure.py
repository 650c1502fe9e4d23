"""Measures formats of benchmark `storage` in a process of their own: ``python -m benchmarks.storage_measure JOB``.

Every operation is compared with the values that were written before its time counts.
"""

import gc
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.limits import codec_rates, decode_rate, disk_rate
from benchmarks.storage_formats import LAKES, Opener, Reader, Values, scan
from benchmarks.storage_peers import PEERS

TOLERANCE = {"neuronlake int8a": 0.1, "neuronlake int8a, no index": 0.1}
"""‖read − written‖ / ‖written‖ of what an operation returns; 0 for all others."""
SUM_TOLERANCE = 1e-3
"""Of Σ|x|: sums are of float32."""
LONG_S = 2.0
"""When repeats took as long together, there are no more."""


def main(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Measure the formats ``job["names"]`` with the layers saved as ``job["values"]``, one after the other."""
    values = [np.load(path) for path in job["values"]]
    with np.load(job["sums"]) as file:
        sums = file["sums"], file["sizes"]
    found = {}
    for name in job["names"]:
        _warm(name, Path(job["folder"]), values, job["block_rows"])
        found[name] = _measure(name, Path(job["folder"]) / "written", values, sums, job)
    return found


def _measure(name: str, path: Path, values: Values, sums: tuple[Any, Any], job: dict[str, Any]) -> dict[str, Any]:
    found, opened = _written(name, path, values, job["block_rows"])
    found["bytes"] = _size(path)
    reader = opened()
    found |= _fidelity(reader, values)
    if not found["relative_error"] <= TOLERANCE.get(name, 0):
        raise SystemExit(f"its values differ: relative error {found['relative_error']:.3g}")
    found |= _reading(name, reader, values, job["repeats"])
    found |= _scans(name, reader, values, sums, job["repeats"])
    del reader
    found["cold_scan_s"] = _cold(path, opened, values)
    if name in LAKES:
        found["index_bytes"] = _size(path / "index")
        found["limits"] = _limits(path, values, found["bytes"] - found["index_bytes"], job["repeats"])
    _remove(path)
    return found


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


def _remove(path: Path) -> None:
    gc.collect()
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _warm(name: str, folder: Path, values: Values, block_rows: int) -> None:
    """Import and compile whatever is needed, on one block."""
    few = [values[0][:block_rows]]
    _, opened = _written(name, folder / "warm", few, block_rows)
    reader = opened()
    list(scan(reader, (1, *few[0].shape), np.sum))
    reader.columns(0, np.array([1, 2]))
    reader.rows(0, np.array([1, 300]))
    del reader
    _remove(folder / "warm")


def _written(name: str, path: Path, values: Values, block_rows: int) -> tuple[dict[str, Any], Opener]:
    """Write and sync: seconds of both."""
    write = PEERS.get(name)
    if write is None:
        prepare, write = LAKES[name]
        prepare(path, values, block_rows)
    start = time.perf_counter()
    opened = write(path, values)
    if name not in LAKES:  # those are synced before they are committed
        for file in [path, *path.rglob("*")]:
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    return {"write_s": time.perf_counter() - start}, opened


def _fidelity(reader: Reader, values: Values) -> dict[str, Any]:
    """Compare everything; this also fills the page cache."""
    exact, errors = True, []
    for layer, of_layer in enumerate(values):
        apart, true = np.zeros((2, of_layer.shape[1]))
        for first in range(0, len(of_layer), reader.step):
            expected = of_layer[first : first + reader.step]
            found = reader.piece(layer, first, first + len(expected))
            if found.dtype == np.float16 and np.array_equal(found.view(np.uint16), expected.view(np.uint16)):
                continue
            widened = expected.astype(np.float32)
            if np.array_equal(found, widened):
                continue
            exact = False
            difference = found - widened
            apart += np.einsum("ij,ij->j", difference, difference)
            true += np.einsum("ij,ij->j", widened, widened)
        errors.append(apart / np.where(true > 0, true, 1))
    return {"exact": exact, "relative_error": float(np.sqrt(np.mean(np.concatenate(errors))))}


def _check(name: str, what: str, found: NDArray[Any], expected: NDArray[Any]) -> None:
    difference = found.astype(np.float32) - expected.astype(np.float32)
    error = float(np.linalg.norm(difference) / max(np.linalg.norm(expected.astype(np.float32)), 1e-30))
    if not error <= TOLERANCE.get(name, 0):
        raise SystemExit(f"{what}: wrong values, relative error {error:.3g}")


def _timed(repeats: int, work: Callable[[int], Any], already: tuple[float, ...] = ()) -> float:
    """Median seconds of repeats, fewer where one takes long."""
    seconds = list(already)
    while not seconds or (len(seconds) < repeats and sum(seconds) < LONG_S):
        start = time.perf_counter()
        work(len(seconds))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _reading(name: str, reader: Reader, values: Values, repeats: int) -> dict[str, Any]:
    """One column, 64 columns, 512 rows: other ones in every repeat, and one more of each that is compared."""
    rows, neurons = values[0].shape
    rng = np.random.default_rng(0)
    layers = rng.integers(len(values), size=repeats + 1).tolist()
    draws = {
        "column": [rng.choice(neurons, size=1) for _ in layers],
        "columns": [np.sort(rng.choice(neurons, size=64, replace=False)) for _ in layers],
        "rows": [np.sort(rng.choice(rows, size=512, replace=False)) for _ in layers],
    }
    found: dict[str, Any] = {}
    for what, drawn in draws.items():
        read = reader.rows if what == "rows" else reader.columns
        layer, chosen = layers[-1], drawn[-1]
        _check(name, what, read(layer, chosen), values[layer][chosen] if what == "rows" else values[layer][:, chosen])
        found[f"{what}_s"] = _timed(repeats, lambda at, read=read, drawn=drawn: read(layers[at], drawn[at]))  # type: ignore[misc]
    if reader.lake is not None:  # share of a layer's chunks that an operation has to decode
        chunks, width = reader.lake.reader.chunks, reader.lake.chunk_neurons
        found["touched"] = {
            "column": 1 / chunks,
            "columns": float(np.mean([len(np.unique(some // width)) for some in draws["columns"]])) / chunks,
            "rows": float(np.mean([len(np.unique(some // reader.step)) for some in draws["rows"]]))
            / len(reader.lake.blocks),
        }
    return found


def _scans(name: str, reader: Reader, values: Values, sums: tuple[Any, Any], repeats: int) -> dict[str, Any]:
    """Deliver everything once; and with the sum of every neuron, which is compared."""
    shape = (len(values), *values[0].shape)
    found = np.zeros((shape[0], shape[2]))
    start = time.perf_counter()
    for (layer, first), piece in scan(reader, shape, _sum):
        found[layer, first : first + len(piece)] += piece
    seconds = time.perf_counter() - start
    apart = np.abs(found - sums[0]) / np.maximum(sums[1], 1e-30)
    if not apart.max() <= TOLERANCE.get(name, SUM_TOLERANCE):
        raise SystemExit(f"scan: wrong sums, off by {apart.max():.3g} of Σ|x|")
    return {
        "sum_s": _timed(repeats, lambda _: [None for _ in scan(reader, shape, _sum)], (seconds,)),
        "scan_s": _timed(repeats, lambda _: [None for _ in scan(reader, shape, lambda _: None)]),
    }


def _sum(piece: NDArray[Any]) -> NDArray[np.float32]:
    return piece.sum(axis=0, dtype=np.float32)  # type: ignore[no-any-return]


def _cold(path: Path, opened: Opener, values: Values) -> float:
    """Seconds of a scan after everything was dropped from the page cache."""
    gc.collect()  # what is mapped is not dropped
    os.sync()
    for file in [path, *path.rglob("*")]:
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
    start = time.perf_counter()
    reader = opened()
    for _ in scan(reader, (len(values), *values[0].shape), lambda _: None):
        pass
    return time.perf_counter() - start


def _limits(path: Path, values: Values, stored: int, repeats: int) -> dict[str, float]:
    """Gvalues/s of the codec alone, both ways, and of the disk at the size of the stored values."""
    from neuronlake.store import open_lake

    lake = open_lake(path)
    count = sum(layer.size for layer in values)
    starts = range(0, len(values[0]) - lake.block_rows + 1, lake.block_rows)
    floats = [values[0][first : first + lake.block_rows].astype(np.float32) for first in starts[:4]]
    compressor, encoder = codec_rates(floats, lake.encoding, lake.chunk_neurons, repeats)
    return {
        "compressor": compressor,
        "encoder": encoder,
        "decompressor": decode_rate(lake, repeats),
        "disk": disk_rate(path.with_name("disk"), max(stored, 64 << 20)) * count / stored,
    }


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    Path(given["report"]).write_text(json.dumps(main(given)))
