"""What `growth` measures: each piece of work in a process of its own, asked line by line, or in the caller's.

``python -m benchmarks.growth_work WORK INPUT WARM`` warms up on the second input, then measures the work on the first
whenever a line comes in, and answers with a line of JSON: its costs, and the peak memory of the process so far.
"""

import contextlib
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import smollm2
from benchmarks.statistics import bytes_read, linked

Input = dict[str, Any]
"""As of JSON: paths and numbers."""
Cost = dict[str, float]
"""``tokens``, ``wall_s``, ``processor_s``, ``activation_bytes`` and ``all_bytes`` of all reads and writes."""
Measure = Callable[[], Cost]

_NEURONS = 32  # asked about, of a tall lake's
_SIMILAR = 16  # tokens
_CHUNK_LAYERS = 4  # written at memory speed


def peak_bytes() -> int:
    """Peak resident memory of this process so far."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024


@dataclass
class Meter:
    """Counts what passes in the ``with`` blocks of `running`."""

    wall_s: float = 0.0
    processor_s: float = 0.0
    all_bytes: float = 0.0
    activation_bytes: float = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        with bytes_read() as count:
            wall, processor, through = time.perf_counter(), time.process_time(), _through()
            yield
            self.wall_s += time.perf_counter() - wall
            self.processor_s += time.process_time() - processor
            self.all_bytes += _through() - through
        self.activation_bytes += count["bytes"]


def _through() -> int:
    """Bytes that this process has read and written through system calls, from the page cache too."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["rchar"]) + int(lines["wchar"])


def _shard_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in (root / "activations").rglob("c.*"))


def _once(call: Callable[[], Any]) -> Cost:
    meter = Meter()
    with meter.running():
        call()
    return dict(vars(meter))


# ---- writing ------------------------------------------------------------------------------------------------------------


def extraction(given: Input) -> Measure:
    """From sentences to a committed, indexed lake: all but loading the tokenizer and the model."""
    from neuronlake.extractor import ConlluCorpus, ExtractSettings, Observer, extract, resolve_model

    root, source = Path(given["scratch"]) / "extracted.lake", resolve_model(smollm2())
    corpus, settings = ConlluCorpus(paths=(Path(given["corpus"]),)), ExtractSettings(block_rows=given["block_rows"])

    def measure() -> Cost:
        meter, running = Meter(), contextlib.ExitStack()

        def say(message: str) -> None:
            running.close()
            if message.startswith("planning"):
                running.enter_context(meter.running())

        def start(_total: int, _done: int) -> None:
            running.enter_context(meter.running())

        with running:
            report = extract(root, corpus, source, settings, Observer(say=say, start=start))
        cost = dict(vars(meter))
        cost["tokens"] = report.counts["tokens"]
        cost["activation_bytes"] += _shard_bytes(root)
        shutil.rmtree(root)
        return cost

    return measure


def writing(given: Input) -> Measure:
    """Blocks from memory into a committed, indexed lake, without the model: planned beforehand."""
    from benchmarks.tall import tall_plan
    from neuronlake.store import BlockWriter, complete_index, open_lake
    from neuronlake.store.encodings import DEFAULT_ENCODING

    source, folder = open_lake(given["source"]), Path(given["scratch"])
    layers = source.layers[:_CHUNK_LAYERS]
    values = [source.read_block(layer=layer, block=source.blocks[0]) for layer in layers]
    most = source.commits[source.blocks[0]].rows
    rows = [min(most, source.commits[block].rows) for block in source.blocks]
    planned, root, blocks = folder / "planned", folder / "written.lake", given["blocks"]
    spec = tall_plan(planned, source, blocks, neurons=source.neurons, layers=len(layers), encoding=DEFAULT_ENCODING)

    def write() -> None:
        with BlockWriter(root, spec) as writer:
            for block in range(blocks):
                used = rows[block % len(rows)]
                every = np.arange(used)
                buffer = writer.buffer(used)
                for layer, of_layer in enumerate(values):
                    buffer.put(spec.sites[0], layer, of_layer[:used], every, every)
                writer.submit(block, used, buffer, {})
        complete_index(open_lake(root))

    def measure() -> Cost:
        shutil.copytree(planned, root)
        cost = _once(write)
        cost["tokens"] = sum(rows[block % len(rows)] for block in range(blocks))
        cost["activation_bytes"] += _shard_bytes(root)
        shutil.rmtree(root)
        return cost

    return measure


# ---- reading ------------------------------------------------------------------------------------------------------------


def statistics_of_tags(given: Input) -> Measure:
    """Every statistic of a layer's neurons and all parts of speech."""
    from neuronlake.analysis import compute_statistics

    return _reading(given, lambda lake: compute_statistics(lake, "upos", keep=False))


def probe_of_layer(given: Input, classifier: str) -> Measure:
    """A sweep over the one layer there is, with nothing kept and without controls."""
    from neuronlake.analysis import probe_sweep

    settings: dict[str, Any] = {"classifier": classifier, "keep": False, "control_draws": 0, "random_draws": 0}
    return _reading(given, lambda lake: probe_sweep(lake, layers=[0], **settings))


def index_of_vectors(given: Input) -> Measure:
    """Make the index that finds tokens by example."""
    from neuronlake.analysis.token_vectors import vector_index

    made = _reading(given, lambda lake: vector_index(lake, 0))

    def measure() -> Cost:
        for kept in (Path(given["wide"]) / "index").glob("vectors-*"):
            shutil.rmtree(kept)
        return made()

    return measure


def _reading(given: Input, work: Callable[[Any], Any]) -> Measure:
    """Work on the lake of a whole layer, opened anew each time."""
    from neuronlake.store import open_lake

    tokens = open_lake(given["wide"]).plan.counts["tokens"]
    return lambda: {**_once(lambda: work(open_lake(given["wide"]))), "tokens": tokens}


def tokens_by_example(given: Input) -> Measure:
    """Ten tokens whose activations in the layer are like a given token's, with the index made before."""
    from neuronlake.analysis import similar_tokens
    from neuronlake.store import open_lake

    lake = open_lake(given["wide"])
    ordinary = np.flatnonzero(_ordinary(lake))
    asked = [int(row) for row in np.random.default_rng(0).choice(ordinary, _SIMILAR, replace=False)]
    return _questions(lake, lambda row: similar_tokens(lake, row, 0), asked)


def neuron_question(given: Input, question: str) -> Measure:
    """A question about single neurons."""
    from neuronlake.analysis import tokens_above, top_tokens
    from neuronlake.analysis.extremes import find_extremes
    from neuronlake.store import open_lake

    lake = open_lake(given["tall"])
    neurons = list(np.linspace(0, lake.neurons, _NEURONS, endpoint=False).astype(int).tolist())
    if question == "top":
        return _questions(lake, lambda neuron: top_tokens(lake, 0, neuron, 64), neurons)
    if question == "half":
        half = _ordinary(lake)
        half &= np.random.default_rng(0).integers(0, 2, len(half), dtype=np.bool_)
        return _questions(lake, lambda neuron: find_extremes(lake, 0, neuron, 20, eligible=half), neurons)
    if question == "above":
        least = {neuron: float(find_extremes(lake, 0, neuron, 64).values[-1]) for neuron in neurons}
        return _questions(lake, lambda neuron: tokens_above(lake, 0, neuron, least[neuron]), neurons)
    rows = np.flatnonzero(_ordinary(lake))
    return _questions(lake, lambda neuron: lake.read(layer=0, rows=rows, neurons=[neuron]), neurons)


def _ordinary(lake: Any) -> Any:
    """Which rows are neither special nor padding, block by block: the whole token table would be in the peak memory."""
    return np.concatenate([lake.tokens(blocks=[block]).column("flags").to_numpy() == 0 for block in lake.blocks])


def _questions(lake: Any, ask: Callable[[int], Any], about: list[int]) -> Measure:
    """Cost of one question: the median of the seconds, the means of the rest. All were asked before."""
    for one in about:
        ask(one)

    def measure() -> Cost:
        each = [_once(lambda one=one: ask(one)) for one in about]  # type: ignore[misc]
        cost = {name: statistics.mean(one[name] for one in each) for name in each[0]}
        cost["wall_s"] = statistics.median(one["wall_s"] for one in each)
        return {**cost, "tokens": lake.plan.counts["tokens"]}

    return measure


@dataclass(frozen=True, kw_only=True)
class Work:
    """A piece of work and what it reads."""

    begin: Callable[[Input], Measure]
    lake: str | None
    """``tall`` (few neurons), ``wide`` (a layer), or none."""


WORKS = {
    "extraction": Work(begin=extraction, lake=None),
    "writing at memory speed": Work(begin=writing, lake=None),
    "statistics": Work(begin=statistics_of_tags, lake="wide"),
    "top 64 tokens in context": Work(begin=lambda given: neuron_question(given, "top"), lake="tall"),
    "top 20 of half of the tokens": Work(begin=lambda given: neuron_question(given, "half"), lake="tall"),
    "tokens above the 64th": Work(begin=lambda given: neuron_question(given, "above"), lake="tall"),
    "one column": Work(begin=lambda given: neuron_question(given, "column"), lake="tall"),
    "index for tokens by example": Work(begin=index_of_vectors, lake="wide"),
    "tokens by example": Work(begin=tokens_by_example, lake="wide"),
    "LDA probe": Work(begin=lambda given: probe_of_layer(given, "lda"), lake="wide"),
    "logistic probe": Work(begin=lambda given: probe_of_layer(given, "logistic"), lake="wide"),
}
"""In this order: tokens by example come after their index is made."""


def begin(work: str, given: Input, warm: Input | None) -> Measure:
    """Prepare to measure a piece of work, after doing it once on the input `warm`, of which nothing is changed."""
    if warm is not None:
        with tempfile.TemporaryDirectory(dir=given["scratch"]) as own:
            lakes = {"wide": str(linked(Path(warm["wide"]), Path(own)))} if "wide" in warm else {}
            WORKS[work].begin({**warm, **lakes, "scratch": own})()
    return WORKS[work].begin(given)


def main(work: str, given: str, warm: str) -> None:
    """Answer until the input ends."""
    measure = begin(work, json.loads(given), json.loads(warm))
    print(json.dumps("ready"), flush=True)
    for _ in sys.stdin:
        cost = measure()
        print(json.dumps({**cost, "peak_bytes": peak_bytes()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
