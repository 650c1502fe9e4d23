"""What a token costs as lakes grow: extraction, statistics, queries and probes at 1, 2, 4 and 8 times the tokens.

The four sizes of a piece of work are measured in turn, round after round, so that a slow moment of the machine hits them
alike; each has a process of its own, which tells its peak memory. A cell is the cost and the cost per token; the exponent is
b of cost = a·tokens^b, by least squares of logarithms over all rounds, with its standard error. Not included: starting
Python, compiling, loading tokenizer and model (a process warms up on a small input first), reading from the disk (files are
in the system's cache). Included: all else, also what a call costs however few tokens there are, which makes exponents
smaller than those of the part that grows. All bytes are those of the system's read and write calls.
"""

import contextlib
import gzip
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import filters
from benchmarks.common import EWT_DEV, ROOT, corpora, ewt_lake, keep, scratch, small_lake
from benchmarks.growth_work import WORKS, Cost, Input, Measure, begin
from benchmarks.tall import shortened, tall_lake

SIZES = (1, 2, 4, 8)
BLOCKS = {"tall": 8, "wide": 4, "blocks": 4}
"""At 1×: of the lakes of 64 neurons, of those of a whole layer, and those written at memory speed."""
COSTS = {"wall_s": "time", "processor_s": "processor time", "activation_bytes": "activation bytes", "all_bytes": "all bytes"}
_PEAK = "peak_bytes"


def run(
    *,
    sizes: tuple[int, ...] = SIZES,
    works: tuple[str, ...] = tuple(WORKS),
    apart: tuple[str, ...] | None = None,
    blocks: dict[str, int] = BLOCKS,
    tokens: int = 1000,
    rounds: int = 5,
    seconds: float = 12.0,
    sentences: int | None = None,
    filtered: tuple[int, ...] = (),
) -> dict[str, Any]:
    """Print the table and draw the growth.

    Parameters
    ----------
    sizes
        Multiples of the tokens.
    works
        What is measured, of `WORKS`.
    apart
        Which of them have a process of their own for each size; None means all. That of the others is this one, whose peak
        memory says nothing.
    blocks
        See `BLOCKS`.
    tokens
        Extracted tokens at 1×, about; a block each time.
    rounds, seconds
        Most rounds of a piece of work, and after how many seconds no further one is begun.
    sentences
        Repeat only so many sentences of EWT dev, in a lake that is removed afterwards.
    filtered
        Ask lakes of so many blocks what the benchmark `filters` asks, too; the record is without it.
    """
    from neuronlake.store import open_lake

    result: dict[str, Any] = {}
    with scratch() as name:
        folder = Path(name)
        _say("lakes")
        source = open_lake(ewt_lake() if sentences is None else small_lake(folder, sentences))
        warm, *inputs = _inputs(folder, source, sizes, works, blocks, tokens)
        for work in works:
            _say(work)
            alone = apart is None or work in apart
            result[work] = _grown(work, inputs, warm, apart=alone, rounds=rounds, seconds=seconds)
        if filtered:
            filters.measure(folder, source, filtered)
    _print(sizes, result)
    _draw(sizes, result)
    keep("growth", {"sizes": list(sizes), "works": result})
    return result


# ---- what is measured on ------------------------------------------------------------------------------------------------


def _inputs(
    folder: Path, source: Any, sizes: Sequence[int], works: Sequence[str], blocks: dict[str, int], tokens: int
) -> list[Input]:
    """What to warm up on, and corpora and lakes of all sizes.

    Lakes hold the same blocks again and again, with noise; corpora the same sentences.
    """
    from neuronlake.store import complete_index, open_lake
    from neuronlake.store.encodings import DEFAULT_ENCODING

    read = {WORKS[work].lake for work in works}
    text = _sentences(source, tokens) if "extraction" in works else []
    inputs: list[Input] = []
    for size in sizes:
        scratch_folder = folder / f"{size}x"
        scratch_folder.mkdir()
        corpus = scratch_folder / "corpus.conllu"
        corpus.write_text("".join(f"# newdoc id = {copy}\n{''.join(text)}" for copy in range(size)), encoding="utf-8")
        inputs.append(
            {
                "scratch": str(scratch_folder),
                "corpus": str(corpus),
                "block_rows": 1 << tokens.bit_length(),  # one block at 1×
                "source": str(source.path),
                "blocks": size * blocks["blocks"],
            }
        )
    for kind, options in {"tall": {}, "wide": {"first": 0, "neurons": source.neurons}}.items():
        if kind not in read:
            continue
        whole = tall_lake(folder / f"{kind}.lake", source, max(sizes) * blocks[kind], encoding=DEFAULT_ENCODING, **options)
        for size, given in zip(sizes, inputs, strict=True):
            root = shortened(folder / f"{kind}-{size}.lake", open_lake(whole), size * blocks[kind])
            complete_index(open_lake(root))
            given[kind] = str(root)
    few = folder / "few.conllu"
    few.write_text("".join(text[:5]), encoding="utf-8")
    return [{**inputs[0], "corpus": str(few)}, *inputs]


def _sentences(source: Any, tokens: int) -> list[str]:
    """The first sentences of EWT dev, of so many tokens together, about, as CoNLL-U."""
    plan = source.read_table("plan", source.blocks[0])
    ordinary = np.flatnonzero(plan.column("flags").to_numpy() == 0)
    last = int(plan.column("sentence").to_numpy()[ordinary[min(tokens, len(ordinary)) - 1]])
    with gzip.open(corpora() / EWT_DEV, "rt", encoding="utf-8") as file:
        every = file.read().split("\n\n")
    chosen = every[: last + 1]
    return ["\n".join(line for line in each.split("\n") if not line.startswith("# newdoc")) + "\n\n" for each in chosen]


# ---- measuring ----------------------------------------------------------------------------------------------------------


def _grown(work: str, inputs: Sequence[Input], warm: Input, *, apart: bool, rounds: int, seconds: float) -> dict[str, Any]:
    """Costs of a piece of work at all sizes, round by round, and their exponents."""
    found: list[list[Cost]] = [[] for _ in inputs]
    with contextlib.ExitStack() as stack:
        asked = _processes(stack, work, inputs, warm) if apart else _here(work, inputs, warm)
        start = time.perf_counter()
        for _ in range(rounds):
            for measure, into in zip(asked, found, strict=True):
                into.append(measure())
            if time.perf_counter() - start > seconds:
                break
    tokens = [int(costs[0]["tokens"]) for costs in found]
    every = {name: [[cost[name] for cost in costs] for costs in found] for name in COSTS}
    result: dict[str, Any] = {"tokens": tokens}
    for name, of_sizes in every.items():
        result[name] = {
            "each": of_sizes,
            "median": [float(np.median(each)) for each in of_sizes],
            "growth": exponent(np.repeat(tokens, len(of_sizes[0])), np.ravel(of_sizes)),
        }
    if apart:  # that of the first round: later ones may find what earlier ones left behind
        peaks = [costs[0][_PEAK] for costs in found]
        slope = float(np.polyfit(tokens, peaks, 1)[0])
        result[_PEAK] = {"median": peaks, "growth": exponent(tokens, peaks), "bytes_per_token": slope}
    return result


def exponent(tokens: Any, costs: Any) -> dict[str, float | None] | None:
    """Fit cost = a·tokens^b by least squares of logarithms; b and its standard error (None with two points).

    None where a cost is zero.
    """
    if np.min(costs) <= 0:
        return None
    x, y = np.log(tokens), np.log(costs)
    x, y = x - x.mean(), y - y.mean()
    slope = float(x @ y / (x @ x))
    error = float(np.sqrt(np.sum((y - slope * x) ** 2) / (len(x) - 2) / (x @ x))) if len(x) > 2 else None
    return {"exponent": slope, "standard_error": error}


def _here(work: str, inputs: Sequence[Input], warm: Input) -> list[Measure]:
    return [begin(work, given, None if place else warm) for place, given in enumerate(inputs)]


def _processes(stack: contextlib.ExitStack, work: str, inputs: Sequence[Input], warm: Input) -> list[Measure]:
    """Start a process for every size; each waits for its turns."""
    processes = []
    for given in inputs:
        command = [sys.executable, "-m", "benchmarks.growth_work", work, json.dumps(given), json.dumps(warm)]
        process = stack.enter_context(
            subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        stack.callback(process.stdin.close)  # type: ignore[union-attr]  # it ends when its input does
        processes.append(process)
    for process in processes:
        _answer(process, work)

    def ask(process: Any) -> Cost:
        process.stdin.write("\n")
        process.stdin.flush()
        cost: Cost = _answer(process, work)
        return cost

    return [partial(ask, process) for process in processes]


def _answer(process: Any, work: str) -> Any:
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{work}: its process ended with status {process.wait()}, see above")
    return json.loads(line)


def _say(what: str) -> None:
    print(f"growth: {what}", file=sys.stderr, flush=True)


# ---- showing ------------------------------------------------------------------------------------------------------------


def _print(sizes: Sequence[int], result: dict[str, Any]) -> None:
    print(f"| work | cost | {' | '.join(f'{size}×' for size in sizes)} | exponent |\n|{'---|' * (len(sizes) + 3)}")
    for work, found in result.items():
        print(f"| **{work}** | tokens | {' | '.join(f'{count:,}' for count in found['tokens'])} | |")
        for name in (*COSTS, _PEAK):
            if name in found:
                costs = found[name]["median"]
                cells = [_cell(name, cost, count) for cost, count in zip(costs, found["tokens"], strict=True)]
                print(f"| | {COSTS.get(name, 'peak memory')} | {' | '.join(cells)} | {_growth(found[name])} |")


def _cell(name: str, cost: float, tokens: int) -> str:
    """A cost, and the cost per token."""
    if name == _PEAK:
        return f"{cost / 1e6:,.0f} MB"
    if name in ("wall_s", "processor_s"):
        total = f"{cost:.2f} s" if cost >= 1 else f"{cost * 1e3:.3g} ms"
        return f"{total}, {cost / tokens * 1e6:,.3g} µs"
    total = f"{cost / 1e6:,.1f} MB" if cost >= 1e6 else f"{cost / 1e3:,.1f} kB"
    return f"{total}, {cost / tokens:,.3g} B" if cost else "0"


def _growth(found: dict[str, Any]) -> str:
    growth = found["growth"]
    if growth is None:
        return "none" if not any(found["median"]) else "–"
    error = "" if growth["standard_error"] is None else f" ± {growth['standard_error']:.2f}"
    more = f"; {found['bytes_per_token']:+,.0f} B per token" if "bytes_per_token" in found else ""
    return f"{growth['exponent']:.2f}{error}{more}"


def _draw(sizes: Sequence[int], result: dict[str, Any]) -> None:
    """Costs as multiples of those at the smallest size."""
    from matplotlib.figure import Figure

    shown = {"wall_s": "time", "activation_bytes": "activation bytes", _PEAK: "peak memory"}
    figure = Figure(figsize=(13, 5), layout="constrained")
    every = figure.subplots(1, len(shown), sharey=True)
    for axes, (cost, title) in zip(every, shown.items(), strict=True):
        axes.plot(sizes, [size / sizes[0] for size in sizes], color="0.7", linestyle="--", label="as the tokens")
        for place, (work, found) in enumerate(result.items()):
            if cost in found and found[cost]["growth"] is not None:
                relative = np.divide(found[cost]["median"], found[cost]["median"][0])
                axes.plot(
                    sizes, relative, marker="os^Dv"[place % 5], markersize=4, color=f"C{place % 10}", label=work,
                    linestyle="-" if place < 10 else ":",
                )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="tokens, smallest = 1", title=title)
        axes.set_xticks(sizes, [f"{size}×" for size in sizes])
        axes.minorticks_off()
    every[0].set_ylabel("cost, smallest = 1")
    every[0].set_yticks(sizes, [f"{size}×" for size in sizes])
    handles = {label: handle for axes in every for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right center")
    path = ROOT / "build" / "benchmark-growth.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"\n{path.relative_to(ROOT)}")
