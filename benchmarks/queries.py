"""Questions about single neurons through the index: time, chunks and bytes read, size, cost of building it."""

import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import ROOT, keep, scratch, small_lake, whole_train_lake

K = 64
_SHARES = (0.01, 0.1, 0.5)
_FILTERED_K = 20
_COLD = """
import sys, time
import duckdb, numba, pyarrow.compute
import neuronlake.analysis.queries
from neuronlake.analysis import top_tokens
from neuronlake.store import open_lake
start = time.perf_counter()
top_tokens(open_lake(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
print(time.perf_counter() - start)
"""


def run(*, sentences: int | None = None, neurons: int = 100) -> dict[str, Any]:
    """Print the figures of the EWT train lake (SmolLM2, the default encoding).

    Parameters
    ----------
    sentences
        Only so many sentences of EWT dev, in a lake that is removed afterwards.
    neurons
        Neurons asked about, drawn at random.
    """
    from neuronlake.store import complete_index, open_lake

    with scratch() as name:
        root = whole_train_lake() if sentences is None else small_lake(Path(name), sentences)
        complete_index(open_lake(root))
        lake = open_lake(root)
        rng = random.Random(0)
        asked = [(rng.choice(lake.layers), rng.randrange(lake.neurons)) for _ in range(neurons)]
        result = {
            "tokens": sum(commit.rows for commit in lake.commits),
            "blocks": len(lake.blocks),
            "neurons": neurons,
            **_top(lake, asked),
            **_filtered(lake, asked),
            **_column(lake, asked),
            **_index(lake),
        }
        print("| | |\n|---|---|")
        for what, text in _lines(result):
            print(f"| {what} | {text} |")
    keep("queries", result)
    return result


def _top(lake: Any, asked: list[tuple[int, int]]) -> dict[str, Any]:
    from neuronlake.analysis import top_tokens
    from neuronlake.analysis.queries import find_top

    for layer, neuron in asked:  # compiles, opens and remembers
        top_tokens(lake, layer, neuron, K)
    warm = [_seconds(lambda at=at: top_tokens(lake, *at, K)) for at in asked]  # type: ignore[misc]
    chunks = [len(find_top(lake, *at, K).blocks_read) for at in asked]
    cold = []
    for layer, neuron in asked[:5]:
        command = [sys.executable, "-c", _COLD, str(lake.path), str(layer), str(neuron), str(K)]
        cold.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout))
    return {
        "warm_s": statistics.median(warm),
        "warm_largest_s": max(warm),
        "cold_s": statistics.median(cold),
        "top_chunks": float(np.mean(chunks)),
        "top_chunks_largest": max(chunks),
    }


def _filtered(lake: Any, asked: list[tuple[int, int]]) -> dict[str, Any]:
    """Share of the neurons' bytes that is read under filters that pass tokens at random."""
    from neuronlake.analysis.extremes import find_extremes
    from neuronlake.analysis.source import DEFAULT_SITE

    ordinary = lake.tokens().column("flags").to_numpy() == 0
    found = {}
    for share in _SHARES:
        eligible = ordinary & (np.random.default_rng(0).random(len(ordinary)) < share)
        read = whole = 0
        for layer, neuron in asked:
            read += find_extremes(lake, layer, neuron, _FILTERED_K, eligible=eligible, site=DEFAULT_SITE).bytes_read
            whole += sum(lake.chunk_bytes(layer=layer, block=block, neuron=neuron) for block in lake.blocks)
        found[str(share)] = read / whole
    return {"bytes_read_by_selectivity": found}


def _column(lake: Any, asked: list[tuple[int, int]]) -> dict[str, Any]:
    """One neuron of all tokens, and the scan of its layer, in turn."""
    rows = np.concatenate([np.arange(lake.block_rows) + block * lake.block_rows for block in lake.blocks])
    columns, scans = [], []
    for layer, neuron in asked[:10]:
        columns.append(_seconds(lambda layer=layer, neuron=neuron: lake.read(layer=layer, rows=rows, neurons=[neuron])))  # type: ignore[misc]
        scans.append(_seconds(lambda layer=layer: list(lake.scan(lambda tile: None, layers=[layer]))))  # type: ignore[misc]
    return {"column_s": statistics.median(columns), "column_share": statistics.median(np.divide(columns, scans).tolist())}


def _index(lake: Any) -> dict[str, Any]:
    """Bytes of the index, and the time to make that of a block beside decoding the block."""
    from neuronlake.store.index import index_block
    from neuronlake.store.kept import INDEX

    values = sum(commit.rows for commit in lake.commits) * len(lake.layers) * lake.neurons
    stored = sum(path.stat().st_size for path in (lake.path / INDEX).glob("blocks-*/**/*") if path.is_file())
    index_block(lake, lake.blocks[0])
    blocks = lake.blocks[:3]
    made = [_seconds(lambda block=block: index_block(lake, block)) for block in blocks]  # type: ignore[misc]
    scanned = [_seconds(lambda block=block: list(lake.scan(lambda tile: None, blocks=[block]))) for block in blocks]  # type: ignore[misc]
    return {
        "index_bytes": stored,
        "index_share_of_float16": stored / (2 * values),
        "index_block_s": statistics.median(made),
        "scan_block_s": statistics.median(scanned),
    }


def _lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    shares = ", ".join(f"{float(share):.0%}: {read:.1%}" for share, read in result["bytes_read_by_selectivity"].items())
    return [
        (f"top {K} with contexts, warm", f"{result['warm_s'] * 1e3:.1f} ms (largest {result['warm_largest_s'] * 1e3:.1f})"),
        (f"top {K} with contexts, cold without imports", f"{result['cold_s'] * 1e3:.0f} ms"),
        ("chunks read", f"{result['top_chunks']:.2f} (largest {result['top_chunks_largest']}) of {result['blocks']}"),
        (f"bytes of the column read, k = {_FILTERED_K}, by selectivity", shares),
        ("one column against its layer", f"{result['column_share']:.3f} ({result['column_s'] * 1e3:.0f} ms)"),
        ("index", f"{result['index_bytes'] / 1e6:.0f} MB, {result['index_share_of_float16']:.2%} of float16"),
        ("indexing a block", f"{result['index_block_s']:.2f} s, decoding it {result['scan_block_s']:.2f} s"),
    ]


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
