"""Questions about single neurons as lakes grow: time, and bytes read under filters, up to ten million rows."""

import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import ROOT, keep, scratch, small_lake, whole_train_lake
from benchmarks.tall import tall_lake

K = 20
_SELECTED = (1, 10, 50)


def run(
    *, blocks: tuple[int, ...] = (123, 1221), growth: tuple[int, ...] = (30, 60, 120, 240), sentences: int | None = None
) -> dict[str, Any]:
    """Print the tables and draw the growth.

    Parameters
    ----------
    blocks
        Sizes of the lakes that are asked with filters.
    growth
        Sizes of those whose times are compared.
    sentences
        Repeat only so many sentences of EWT dev, not EWT train.
    """
    from neuronlake.store import complete_index, open_lake

    result: dict[str, Any] = {"filters": {}, "growth": {}}
    with scratch() as name:
        folder = Path(name)
        source = open_lake(whole_train_lake() if sentences is None else small_lake(folder, sentences))
        for size in sorted({*blocks, *growth}):
            root = tall_lake(folder / "tall.lake", source, size)
            complete_index(open_lake(root))
            rows = size * source.block_rows
            if size in growth:
                result["growth"][rows] = _times(open_lake(root))
            if size in blocks:
                result["filters"][rows] = _filters(open_lake(root))
            shutil.rmtree(root)
    print("| rows | filter | bytes of the column | chunks | search ms | SQL ms |\n|---|---|---|---|---|---|")
    for rows, found in result["filters"].items():
        for share, line in found.items():
            print(
                f"| {rows:,} | {share} % | {line['bytes']:.1%} | {line['chunks']:.1f} of {line['blocks']} | "
                f"{line['search_s'] * 1e3:.1f} | {line['sql_s'] * 1e3:.0f} |"
            )
    names = list(next(iter(result["growth"].values())))
    print(f"\n| rows | {' | '.join(f'{name}, ms' for name in names)} |\n|{'---|' * (len(names) + 1)}")
    for rows, times in result["growth"].items():
        print(f"| {rows:,} | {' | '.join(f'{times[name] * 1e3:.1f}' for name in names)} |")
    _draw(result["growth"])
    keep("growth", result)
    return result


def _filters(lake: Any) -> dict[str, Any]:
    """Top 20 among tokens that an SQL predicate passes, unrelated to the neurons."""
    from neuronlake.analysis.chosen_tokens import eligible_tokens
    from neuronlake.analysis.extremes import find_extremes

    found = {}
    whole = statistics.mean(
        sum(lake.chunk_bytes(layer=0, block=block, neuron=neuron) for block in lake.blocks) for neuron in (0,)
    )
    for share in _SELECTED:
        start = time.perf_counter()
        eligible = eligible_tokens(lake, f"hash(row) % 100 < {share}", special=False)
        sql = time.perf_counter() - start
        answers, times = [], []
        for neuron in range(lake.neurons):
            start = time.perf_counter()
            answers.append(find_extremes(lake, 0, neuron, K, eligible=eligible))
            times.append(time.perf_counter() - start)
        found[share] = {
            "bytes": statistics.mean(answer.bytes_read for answer in answers) / whole,
            "chunks": statistics.mean(len(answer.blocks_read) for answer in answers),
            "blocks": len(lake.blocks),
            "search_s": statistics.median(times),
            "sql_s": sql,
        }
    return found


def _times(lake: Any) -> dict[str, float]:
    """Medians over neurons, warm."""
    from neuronlake.analysis import tokens_above, top_tokens
    from neuronlake.analysis.extremes import find_extremes

    neurons = range(0, lake.neurons, 2)
    flags = lake.tokens().column("flags").to_numpy()
    half = (flags == 0) & (np.random.default_rng(0).random(len(flags)) < 0.5)
    rows = np.flatnonzero(flags == 0)
    values = {neuron: top_tokens(lake, 0, neuron, 64)[-1]["value"] for neuron in neurons}
    work: dict[str, Callable[[int], Any]] = {
        "top 64 in context": lambda neuron: top_tokens(lake, 0, neuron, 64),
        "top 20 of half of the tokens": lambda neuron: find_extremes(lake, 0, neuron, 20, eligible=half),
        "tokens above the 64th": lambda neuron: tokens_above(lake, 0, neuron, values[neuron]),
        "one column": lambda neuron: lake.read(layer=0, rows=rows, neurons=[neuron]),
    }
    found = {}
    for name, call in work.items():
        times = []
        for neuron in neurons:
            call(neuron)
            start = time.perf_counter()
            call(neuron)
            times.append(time.perf_counter() - start)
        found[name] = statistics.median(times)
    return found


def _draw(growth: dict[int, dict[str, float]]) -> None:
    """Times as multiples of those of the smallest lake."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    sizes = list(growth)
    axes.plot(sizes, [size / sizes[0] for size in sizes], color="0.7", linestyle="--", label="as the lake")
    for name in growth[sizes[0]]:
        axes.plot(sizes, [growth[size][name] / growth[sizes[0]][name] for size in sizes], marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="rows of the lake", ylabel="time, smallest lake = 1")
    axes.legend()
    path = ROOT / "build" / "benchmark-growth.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"\n{path.relative_to(ROOT)}")
