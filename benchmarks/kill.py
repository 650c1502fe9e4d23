"""Kill an extraction with SIGKILL at random moments, resume, and compare every byte with an uninterrupted run."""

import json
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import keep, scratch

ROUNDS = 100
# A run is forked from a process that has imported and compiled everything: that would be most of a run, and most kills
# would hit it. Forking is safe while that process has a single thread, which the server checks before each fork: our pools
# end with the warming up, and torch, OpenMP and Arrow start their threads when they are first used, which is in the child.
_PREPARATION = """
import os, writing_run
import torch, transformers
import neuronlake.cli.main, neuronlake.extractor, neuronlake.extractor.model, neuronlake.extractor.extract
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from neuronlake.store.encodings import DEFAULT_ENCODING
writing_run.Work(encoding=DEFAULT_ENCODING).prepare_values().warm_up()

def work(request):
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1), os.dup2(null, 2)
    torch.set_num_threads(1)  # a model this small only waits for its other threads
    status = neuronlake.cli.main.main(request["arguments"])
    assert status == 0, status
"""
_UNCOMMITTED = re.compile(r"c\.(\d+)\.0|c\.0\.(\d+)\.0\.0")


def run(rounds: int = ROUNDS, seed: int = 0) -> dict[str, Any]:
    """Kill `rounds` times over several lakes; print in which phase each kill landed and whether the bytes agree."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from forks import ForkServer
    from tiny import conllu, make_model, some_sentences
    from writing_run import assert_same, contents

    rng = random.Random(seed)
    phases: Counter[str] = Counter()
    lakes = unverified = 0
    started = time.monotonic()
    with scratch() as folder:
        base = Path(folder)
        model = make_model(base / "model")
        treebank = base / "t.conllu"
        treebank.write_text(conllu(some_sentences(300)), encoding="utf-8")

        def arguments(root: Path) -> list[str]:
            return [
                *("extract", str(root), "--model", str(model), "--conllu", str(treebank)),
                *("--block-rows", "256", "--batch-tokens", "256"),
            ]

        with ForkServer(_PREPARATION) as server:

            def finish(root: Path) -> float:
                start = time.monotonic()
                server.start(arguments=arguments(root))
                if (status := server.wait()) != 0:
                    raise AssertionError(f"the extraction ended with status {status}")
                return time.monotonic() - start

            finish(base / "warm.lake")
            whole_s = finish(base / "whole.lake")
            expected = contents(base / "whole.lake")
            root = base / "killed-0.lake"
            while phases.total() < rounds:
                child = server.start(arguments=arguments(root))
                when = rng.choice(_AIMS)(root, rng, whole_s)
                if _wait(when, child):
                    os.kill(child, signal.SIGKILL)
                if (status := server.wait()) == -signal.SIGKILL:
                    phases[phase(root)] += 1
                    unverified += _checked(root)
                    continue
                if status != 0:
                    raise AssertionError(f"the extraction ended with status {status}")
                assert_same(contents(root), expected)
                lakes += 1
                root = base / f"killed-{lakes}.lake"
            finish(root)
            assert_same(contents(root), expected)
    result = {
        "kills": phases.total(),
        "phases": dict(phases.most_common()),
        "verified_after_kill": phases.total() - unverified,
        "without_plan_after_kill": unverified,
        "lakes_compared": lakes + 1,
        "differences": 0,
        "seconds": round(time.monotonic() - started, 1),
    }
    print(f"{phases.total()} kills over {lakes + 1} lakes: every finished lake is byte-identical to the uninterrupted one")
    for name, count in phases.most_common():
        print(f"  {count:3d} × {name}")
    keep("kill", result)
    return result


def phase(root: Path) -> str:
    """Tell from the files on the disk what an extraction was doing when it ended."""
    if not (root / "zarr.json").is_file():
        return "before the lake's first file"
    temporaries = [path.relative_to(root).as_posix() for path in root.rglob(".*.tmp")]
    if not (root / "plan" / "plan.json").is_file():
        if any("plan.json" in name for name in temporaries):
            return "writing the plan record"
        return "planning: writing a table or metadata" if temporaries else "planning: between two files"
    if any(name.startswith("commits/") for name in temporaries):
        return "commit: writing the record"
    if temporaries:
        return "block: writing shards"
    committed = {int(path.stem.split("-")[1]) for path in (root / "commits").glob("block-*.json")}
    shards = {path: match for path in root.rglob("c.*") if (match := _UNCOMMITTED.fullmatch(path.name))}
    if any(int(match[1] or match[2]) not in committed for match in shards.values()):
        return "block: shards renamed, not committed"
    plan = json.loads((root / "plan" / "plan.json").read_bytes())
    return "all committed" if len(committed) == plan["blocks"] else "block: forward passes or loading"


def _checked(root: Path) -> bool:
    """Assert that `verify --full` is content with a killed lake; return whether it had no plan to verify yet."""
    from neuronlake.store import InputError, verify

    try:
        report = verify(root, full=True)
    except InputError:
        if (root / "plan" / "plan.json").exists() or (root / "commits").exists():
            raise
        return True
    if not report.ok or report.unknown_files:
        raise AssertionError(f"after a kill: {report.damage + report.unknown_files}")
    return False


# ---- when to kill -------------------------------------------------------------------------------------------------------

_When = Callable[[], bool]


def _wait(when: _When, child: int) -> bool:
    """Wait for the moment; return whether the child is still there."""
    while not when():
        if not _runs(child):
            return False
    return True


def _runs(child: int) -> bool:
    try:
        state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def _any_time(_: Path, rng: random.Random, whole_s: float) -> _When:
    """At any moment of the run."""
    end = time.monotonic() + rng.uniform(0, whole_s)

    def when() -> bool:
        time.sleep(2e-4)
        return time.monotonic() >= end

    return when


def _at_a_file(root: Path, rng: random.Random, _: float) -> _When:
    """A moment after some folder has got a new file: where the writing is, whatever else the run spends its time on."""
    folder = root / rng.choice(("plan", "words", "sentences", "commits", "activations/mlp.post/0", "activations/mlp.post/2"))
    number, delay_s = rng.randint(1, 12), rng.choice((0.0, rng.uniform(0, 1e-3), rng.uniform(0, 8e-3)))
    seen: set[str] = set(_names(folder))
    fresh = 0

    def when() -> bool:
        nonlocal fresh, seen
        names = _names(folder)
        fresh += len(names - seen)
        seen |= names
        if fresh < number:
            return False
        time.sleep(delay_s)
        return True

    return when


def _names(folder: Path) -> set[str]:
    try:
        return {entry.name for entry in folder.iterdir()}
    except FileNotFoundError:
        return set()


_AIMS = (_any_time, _at_a_file, _at_a_file)
