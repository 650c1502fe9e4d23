"""Statistics against reading and decoding alone; bytes, memory, phases on EWT train. Other tools: benchmark `analysis`."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import (
    ROOT,
    ewt_lake,
    keep,
    peak_memory_bytes,
    scratch,
    small_lake,
    whole_train_lake,
)

_COLD = """
import json, sys, time
import dask.array, duckdb, numba, numpy, pandas, pyarrow.parquet, xarray, zarr
import neuronlake.analysis.refinement, neuronlake.analysis.ranking, neuronlake.analysis.statistics
from neuronlake.analysis import compute_statistics, rank, refine
from neuronlake.store import open_lake
from benchmarks.statistics import bytes_read
with bytes_read() as count:
    start = time.perf_counter()
    lake = open_lake(sys.argv[1])
    found = refine(lake, compute_statistics(lake, "upos"), "auroc", top=10)
    best = rank(found, "auroc", top=10)
    print(json.dumps({"seconds": time.perf_counter() - start, "activation_bytes": count["bytes"]}))
"""
_MEMORY = """
import sys
from neuronlake.analysis import compute_statistics
from neuronlake.store import open_lake
compute_statistics(open_lake(sys.argv[1]), sys.argv[2], keep=False, layers=range(int(sys.argv[3])))
"""
_BOTH = ("average_precision", "mutual_information")
_Timings = dict[str, list[float]]


def run(*, sentences: int | None = None, layers: int | None = None, repeats: int = 5) -> dict[str, Any]:
    """Print everything for the EWT dev lake (SmolLM2, the default encoding), and the phases for EWT train.

    Parameters
    ----------
    sentences
        Only so many sentences of EWT dev, in a lake that is removed afterwards; and no EWT train, whose lake is extracted
        on the first run (7 GB and some ten minutes).
    layers
        Only the first so many layers.
    """
    from neuronlake.store import open_lake

    with scratch() as name:
        folder = Path(name)
        root = ewt_lake("int8a") if sentences is None else small_lake(folder, sentences)
        lake = open_lake(root)
        chosen = list(lake.layers[:layers])
        result = {
            "tokens": lake.plan.counts["tokens"],
            "layers": len(chosen),
            "neurons": lake.neurons,
            **_memory(root, len(chosen)),  # first: a process starts with its parent's peak
            **_against_scan(lake, chosen, repeats),
            **_one_pass(lake, chosen),
            **_kept(linked(root, folder / "kept")),
        }
        if sentences is None:
            result["ewt_train"] = _phases(linked(whole_train_lake(), folder / "train"))
    keep("statistics", result)
    return result


def _against_scan(lake: Any, layers: list[int], repeats: int) -> dict[str, Any]:
    from neuronlake.analysis import compute_statistics

    def scan(values: str) -> None:
        for _ in lake.scan(lambda _: None, layers=layers, values=values):
            pass

    def ask(**options: Any) -> Any:
        return compute_statistics(lake, "upos", layers=layers, keep=False, **options)

    work = {
        "scan, float32": lambda: scan("float32"),
        "scan, codes": lambda: scan("codes"),
        "basic": lambda: ask(basic=True),
        "basic, no folds": lambda: ask(basic=True, folds=1),
        "all": ask,
        "all, no folds": lambda: ask(folds=1),
        "all and on request": lambda: ask(also=_BOTH),
    }
    values = len(layers) * lake.neurons * lake.block_rows * len(lake.blocks)
    timings = _timed(work, repeats)
    print("| work | Gvalues/s | share of the float32 scan | share of the code scan |\n|---|---|---|---|")
    found = {}
    for name, seconds in timings.items():
        row = {
            "gvalues_per_second": values / min(seconds) / 1e9,
            "of_float32": _ratio(timings["scan, float32"], seconds),
            "of_codes": _ratio(timings["scan, codes"], seconds),
        }
        found[name] = row
        print(f"| {name} | {row['gvalues_per_second']:.2f} | {row['of_float32']:.2f} | {row['of_codes']:.2f} |")
    return {"throughput": found}


def _one_pass(lake: Any, layers: list[int]) -> dict[str, Any]:
    from neuronlake.analysis import compute_statistics
    from neuronlake.store import layout, open_lake

    stored = sum(
        (lake.path / layout.shard_path("mlp.post", layer, block)).stat().st_size for layer in layers for block in lake.blocks
    )
    with bytes_read() as count:
        compute_statistics(open_lake(lake.path), "upos", layers=layers, keep=False)
    print(f"\nbytes read / bytes stored: {count['bytes']:,} / {stored:,} = {count['bytes'] / stored:.3f}")
    return {"bytes_read": count["bytes"], "bytes_stored": stored}


def _memory(root: Path, layers: int) -> dict[str, Any]:
    """Peak memory by the number of tags: what a neuron × tag costs. (By the number of tokens: benchmark `memory`.)"""
    from neuronlake.store import open_lake

    lake = open_lake(root)
    peak = {}
    for by in ("upos", "deprel"):
        tags = len(np.unique([value for value in lake.words([by]).column(by).to_pylist() if value is not None]))
        peak[tags] = peak_memory_bytes(_MEMORY, str(root), by, str(layers))
    few, many = sorted(peak)
    each = (peak[many] - peak[few]) / (many - few) / (layers * lake.neurons)
    print(f"peak memory: {', '.join(f'{size / 1e6:.0f} MB with {tags} tags' for tags, size in peak.items())}")
    print(f"that is {each:.0f} bytes per neuron × tag\n")
    return {"peak_bytes_by_tags": peak, "bytes_per_neuron_tag": each}


def _kept(root: Path) -> dict[str, Any]:
    """Keep all statistics of a lake; then the second question, in a new process."""
    from neuronlake.analysis import compute_statistics, refine
    from neuronlake.store import open_lake

    lake = open_lake(root)
    start = time.perf_counter()
    found = compute_statistics(lake, "upos", also=_BOTH)
    first = time.perf_counter() - start
    start = time.perf_counter()
    exact = refine(lake, found, "auroc", top=10)
    refining = time.perf_counter() - start
    cold = subprocess.run([sys.executable, "-c", _COLD, str(root)], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    second = json.loads(cold.stdout)
    size = sum(path.stat().st_size for path in (root / "statistics").rglob("*") if path.is_file())
    bound = found["auroc_error"].to_numpy()
    now_exact = exact["auroc_error"].to_numpy() == 0
    true = np.abs(found["auroc"] - exact["auroc"]).to_numpy()[now_exact]
    if np.any(true > bound[now_exact] + 1e-12):
        raise AssertionError("an AUROC lies outside its bound")
    print(
        f"pass and keeping {first:.2f} s, exact AUROC of the short list {refining:.2f} s, kept {size / 1e6:.0f} MB; second "
        f"question, new process: {second['seconds']:.2f} s, {second['activation_bytes']} activation bytes"
    )
    print(
        f"bound of AUROC: median {np.median(bound):.4f}, largest {bound.max():.3f}; true error of the "
        f"{now_exact.mean():.0%} that were made exact: median {np.median(true):.5f}, largest {true.max():.4f}"
    )
    return {
        "pass_and_keep_seconds": first,
        "refine_seconds": refining,
        "kept_bytes": size,
        "second_question": second,
        "auroc_bound": {"median": float(np.median(bound)), "largest": float(bound.max())},
        "auroc_true_error": {
            "share": float(now_exact.mean()),
            "median": float(np.median(true)),
            "largest": float(true.max()),
        },
    }


def _phases(root: Path) -> dict[str, Any]:
    """Minutes from labels to a ranking on the EWT train lake, nothing kept beforehand."""
    from neuronlake.analysis import compute_statistics, rank, refine, token_labels
    from neuronlake.store import open_lake

    lake = open_lake(root)
    minutes: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        found = work()
        minutes[name] = (time.perf_counter() - start) / 60
        return found

    timed("labels", lambda: token_labels(lake, "upos"))
    timed("scan, float32", lambda: [None for _ in lake.scan(lambda _: None)])
    timed("pass, basic", lambda: compute_statistics(lake, "upos", basic=True, keep=False))
    found = timed("pass, everything, kept", lambda: compute_statistics(lake, "upos"))
    timed("average precision and information", lambda: compute_statistics(lake, "upos", also=_BOTH))
    exact = timed("exact AUROC of the short list", lambda: refine(lake, found, "auroc", top=10))
    timed("rank", lambda: rank(exact, "auroc", top=10))
    timed("second question", lambda: refine(lake, compute_statistics(lake, "upos"), "auroc", top=10))
    counts = {"tokens": lake.plan.counts["tokens"], "words": lake.plan.counts["words"]}
    print("\n| EWT train | minutes |\n|---|---|")
    for name, value in minutes.items():
        print(f"| {name} | {value:.3f} |")
    return {**counts, "minutes": minutes}


def linked(root: Path, folder: Path, *, without: tuple[str, ...] = ("statistics",)) -> Path:
    """A lake with the same files, but for what is kept in some folders."""
    target = folder / root.name
    for path in root.rglob("*"):
        relative = path.relative_to(root)
        if relative.parts[0] in without:
            continue
        if path.is_dir():
            (target / relative).mkdir(parents=True, exist_ok=True)
        else:
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            (target / relative).symlink_to(path.resolve())
    return target


def _timed(work: dict[str, Callable[[], Any]], repeats: int) -> _Timings:
    """Time all of them in turn, several times, so that a slow moment of the machine hits them alike."""
    for function in work.values():  # compiles and fills the system's cache
        function()
    found: _Timings = {name: [] for name in work}
    for _ in range(repeats):
        for name, function in work.items():
            start = time.perf_counter()
            function()
            found[name].append(time.perf_counter() - start)
    return found


def _ratio(numerator: list[float], denominator: list[float]) -> float:
    """Median of the ratios within one round."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


@contextmanager
def bytes_read() -> Iterator[dict[str, int]]:
    """Count the bytes that are read from shards."""
    from neuronlake.store.reader import ShardReader

    count, original = {"bytes": 0}, ShardReader._read

    def counted(self: Any, file: int, offset: int, length: int, path: str) -> Any:
        if "/activations/" in path:
            count["bytes"] += length
        return original(self, file, offset, length, path)

    ShardReader._read = counted  # type: ignore[method-assign]
    try:
        yield count
    finally:
        ShardReader._read = original  # type: ignore[method-assign]
