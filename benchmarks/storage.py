"""Every format with every operation: write, scan, columns, rows, bytes, fidelity; beside copying, the disk and the codecs.

Real SmolLM2 activations, float16: whole blocks of layers of the EWT dev lake, on top of each other, so that a layer is
tall. Each format runs in a process of its own, on all cores where it can (`storage_formats` and `storage_peers` say how and
why), writes from memory and syncs; reads are of a warm page cache but for the column that says cold; what an operation
returns is compared with what was written before its time counts. A format that cannot be imported or fails is in the table
with its error.
"""

import json
import os
import random
import shutil
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import storage_measure
from benchmarks.common import ewt_lake, keep, scratch, small_lake
from benchmarks.limits import copy_rate
from benchmarks.peers import NotRunError, _call
from benchmarks.storage_formats import LAKES
from benchmarks.storage_peers import PEERS

LAYERS = 10
"""A lake is encoded by layers, on all cores, and a block's commit and index cost the same for few layers as for all."""
BLOCKS = 4
"""Of a layer: 32,768 rows."""
REPEATS = 3
VERSIONS = ("zarr", "numcodecs", "tensorstore", "blosc2", "h5py", "safetensors", "numpy")


def run(
    *,
    layers: int = LAYERS,
    blocks: int = BLOCKS,
    repeats: int = REPEATS,
    formats: Sequence[str] | None = None,
    sentences: int | None = None,
    block_rows: int | None = None,
    apart: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Print the table; interrupted, that of the formats measured so far.

    Parameters
    ----------
    layers, blocks
        Shape of what is written.
    formats
        Their names; all by default.
    sentences
        Values of only so many sentences of EWT dev, in a lake that is removed afterwards.
    block_rows
        Rows of a block; by default the lake's. If it has fewer rows, blocks mix the layers that they are taken from.
    apart
        Each format in a process of its own, or all in this one.
    """
    chosen = [name for name in (*LAKES, *PEERS) if formats is None or name in formats]
    lakes = [name for name in chosen if name in LAKES]
    jobs = [*([lakes] if lakes else []), *([name] for name in chosen if name in PEERS)]  # ours share what they compile
    random.Random(seed).shuffle(jobs)  # the machine's speed drifts
    found: dict[str, dict[str, Any]] = {}
    with scratch() as name:
        folder = Path(name)
        values, block_rows = _real_values(folder, layers, blocks, sentences, block_rows)
        job = {**_saved(values, folder), "folder": str(folder), "report": str(folder / "report.json")}
        job |= {"repeats": repeats, "block_rows": block_rows}
        copying = copy_rate(values)
        shape = (layers, *values[0].shape)
        del values
        try:
            for names in jobs:
                start, asked = time.perf_counter(), {**job, "names": names}
                found |= _measured(asked, folder) if apart else storage_measure.main(asked)
                ended = {found[each].get("not_run", "done") for each in names}
                seconds = time.perf_counter() - start
                print(f"{'; '.join(names)}: {'; '.join(ended)}, {seconds:.1f} s", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            print(table(_summary(found, chosen, shape, copying)))
            raise
    result = _summary(found, chosen, shape, copying)
    print(table(result))
    keep("storage", result)
    return result


def _summary(
    found: dict[str, dict[str, Any]], chosen: list[str], shape: tuple[int, int, int], copying: float
) -> dict[str, Any]:
    return {
        "layers": shape[0],
        "rows": shape[1],
        "neurons": shape[2],
        "order": list(found),
        "copying_GB_per_s": copying,
        "versions": {name: _version(name) for name in VERSIONS},
        "formats": {
            name: _row(
                found.get(name, {"not_run": "interrupted" if name in chosen else "left out of this form"}), shape, copying
            )
            for name in (*LAKES, *PEERS)
        },
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _real_values(
    folder: Path, layers: int, blocks: int, sentences: int | None, block_rows: int | None
) -> tuple[list[NDArray[np.float16]], int]:
    """Return (rows, neurons) of each layer, and the rows of a block."""
    from neuronlake.store import open_lake

    lake = open_lake(ewt_lake() if sentences is None else small_lake(folder, sentences))
    used = np.concatenate([block * lake.block_rows + np.arange(commit.rows) for block, commit in enumerate(lake.commits)])
    height = block_rows or lake.block_rows
    used = used[: len(used) // height * height or None]  # whole blocks of a layer of the model, if it has one
    taken = -(-blocks * height // len(used))  # layers of the model on top of each other
    step = max(1, len(lake.layers) // (layers * taken))
    values = []
    for layer in range(layers):
        pieces = [
            lake.read(layer=lake.layers[(layer * taken + part) * step % len(lake.layers)], rows=used).astype(np.float16)
            for part in range(taken)
        ]
        values.append(np.concatenate(pieces)[: blocks * height])
    return values, height


def _saved(values: list[NDArray[np.float16]], folder: Path) -> dict[str, Any]:
    """Write the layers for the processes, with the sum of every neuron and of its magnitudes."""
    paths, sums, sizes = [], [], []
    for layer, of_layer in enumerate(values):
        paths.append(str(folder / f"layer-{layer}.npy"))
        np.save(paths[-1], of_layer)
        pieces = [of_layer[first : first + 8192].astype(np.float32) for first in range(0, len(of_layer), 8192)]
        sums.append(sum(piece.sum(axis=0, dtype=np.float64) for piece in pieces))
        sizes.append(sum(np.abs(piece).sum(axis=0, dtype=np.float64) for piece in pieces))
    np.savez(folder / "sums.npz", sums=sums, sizes=sizes)
    return {"values": paths, "sums": str(folder / "sums.npz")}


def _measured(job: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    path, report = folder / "job.json", Path(job["report"])
    path.write_text(json.dumps(job))
    report.unlink(missing_ok=True)
    try:
        _call([sys.executable, "-m", "benchmarks.storage_measure", str(path)], dict(os.environ))
        return json.loads(report.read_text())  # type: ignore[no-any-return]
    except NotRunError as error:
        return {name: {"not_run": str(error)} for name in job["names"]}
    finally:
        for left in (folder / "written", folder / "warm"):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def _row(found: dict[str, Any], shape: tuple[int, int, int], copying: float) -> dict[str, Any]:
    """Rates and sizes of a format; of a lake also its share of what limits each operation."""
    if "not_run" in found:
        return found
    count = shape[0] * shape[1] * shape[2]
    row = {
        "write": count / found["write_s"] / 1e9,
        "scan": count / found["scan_s"] / 1e9,
        "sum": count / found["sum_s"] / 1e9,
        "cold_scan": count / found["cold_scan_s"] / 1e9,
        "column_ms": found["column_s"] * 1e3,
        "columns_ms": found["columns_s"] * 1e3,
        "rows_ms": found["rows_s"] * 1e3,
        "bytes_per_value": (found["bytes"] - found.get("index_bytes", 0)) / count,
        "index_bytes_per_value": found.get("index_bytes", 0) / count,
        "relative_error": found["relative_error"],
        "exact": found["exact"],
    }
    if "limits" in found:
        limits = found["limits"]
        layer_s = shape[1] * shape[2] / limits["decompressor"] / 1e9
        row["limits"] = limits
        row["of_limit"] = {
            "write": row["write"] / min(limits["encoder"], limits["disk"], copying / 2),
            "scan": row["scan"] / min(limits["decompressor"], copying / 4),
            "column": layer_s * found["touched"]["column"] / found["column_s"],
            "columns": layer_s * found["touched"]["columns"] / found["columns_s"],
            "rows": layer_s * found["touched"]["rows"] / found["rows_s"],
        }
    return row


def table(result: dict[str, Any]) -> str:
    """Return the Markdown tables."""
    lines = [
        f"{result['layers']} layers × {result['rows']:,} rows × {result['neurons']:,} neurons; copying memory "
        f"{result['copying_GB_per_s']:.1f} GB/s",
        "",
        "| format | write Gvalues/s | scan | scan with sums | cold scan | one column ms | 64 columns | 512 rows "
        "| bytes per value | error |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in result["formats"].items():
        if "not_run" in row:
            lines.append(f"| {name} | not run: {row['not_run']} | | | | | | | | |")
            continue
        index = f" + {row['index_bytes_per_value']:.2f}" if row["index_bytes_per_value"] else ""
        error = "exact" if row["exact"] else f"{row['relative_error']:.3f}"
        lines.append(
            f"| {name} | {row['write']:.3f} | {row['scan']:.2f} | {row['sum']:.2f} | {row['cold_scan']:.2f} | "
            f"{row['column_ms']:.1f} | {row['columns_ms']:.0f} | {row['rows_ms']:.0f} | "
            f"{row['bytes_per_value']:.2f}{index} | {error} |"
        )
    lines += [
        "",
        "| share of the limit | write | scan | one column | 64 columns | 512 rows | encoder Gvalues/s | compressor | disk "
        "| decompressor |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in result["formats"].items():
        if "of_limit" in row:
            shares = " | ".join(f"{row['of_limit'][what]:.2f}" for what in ("write", "scan", "column", "columns", "rows"))
            limits = " | ".join(f"{row['limits'][what]:.2f}" for what in ("encoder", "compressor", "disk", "decompressor"))
            lines.append(f"| {name} | {shares} | {limits} |")
    return "\n".join(lines)
