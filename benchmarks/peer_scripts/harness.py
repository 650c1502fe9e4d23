"""What every script of this folder shares: the batches, the clock, the report. Needs NumPy and torch only.

A script runs in the environment of the tool that it measures and gets one argument, a JSON file that `benchmarks.peers`
wrote. It loads the model, runs a few batches that do not count, then `Job.timed` what it is about: from the first forward
pass to everything closed and synced to the disk. Then it reads a few sequences back from its own output for the comparison
with the reference, and reports.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

WARM_BATCHES = 3


@dataclass(frozen=True)
class Batch:
    """One forward pass."""

    members: list[int]
    """Sequences."""
    ids: Any
    """int64 (sequences, longest), padded on the right: the models are causal, so that padding changes nothing."""
    real: Any
    """(tokens,) positions in the flattened batch that are no padding, sequence by sequence."""


@dataclass
class Job:
    """What to run, and what is known of the run so far."""

    model: str
    """Folder with SmolLM2 as safetensors, float32."""
    tokens: str
    """File with the sequences and batches."""
    out: Path
    """Empty folder for what is written."""
    report: Path
    """File for the figures."""
    options: dict[str, Any]
    found: dict[str, Any] = field(default_factory=dict)
    check: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with np.load(self.tokens) as file:
            self.ids = file["ids"]
            self.starts = file["starts"]
            members = np.split(file["members"], file["batch_starts"][1:-1])
            self.checked = [int(sequence) for sequence in file["checked"]]
        every = int(self.options.get("every", 1))
        self.batches = [self.batch(batch.tolist()) for batch in members[::every]]

    def sequence(self, number: int) -> Any:
        """Token ids of one sequence."""
        return self.ids[self.starts[number] : self.starts[number + 1]]

    def batch(self, members: Sequence[int]) -> Batch:
        """Lay sequences out as a batch."""
        sequences = [self.sequence(member) for member in members]
        longest = max(map(len, sequences))
        ids = np.zeros((len(members), longest), dtype=np.int64)
        for line, sequence in enumerate(sequences):
            ids[line, : len(sequence)] = sequence
        real = np.concatenate([line * longest + np.arange(len(sequence)) for line, sequence in enumerate(sequences)])
        return Batch(members=list(members), ids=ids, real=real)

    @property
    def count(self) -> int:
        """Tokens of all batches."""
        return sum(len(batch.real) for batch in self.batches)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Measure the block, and the sync of all files that it wrote."""
        start = time.perf_counter()
        yield
        written = time.perf_counter()
        for path in self.out.rglob("*"):
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
        end = time.perf_counter()
        self.found.update(seconds=end - start, sync_seconds=end - written, peak_bytes=_peak_bytes())

    def read_back(self, ids: Any, values: Any, positions: Any = None) -> None:
        """Hand over what was stored of a sequence: values (layers, positions, width), of some or all positions."""
        number = len([name for name in self.check if name.startswith("ids")])
        self.check[f"ids{number}"] = np.asarray(ids)
        self.check[f"values{number}"] = np.asarray(values, dtype=np.float32)
        self.check[f"positions{number}"] = np.arange(len(ids)) if positions is None else np.asarray(positions)

    def finish(self, packages: Sequence[str], **found: Any) -> None:
        """Write the report."""
        import torch

        self.found.update(found)
        self.found.setdefault("tokens", self.count)
        self.found.setdefault("bytes", sum(path.stat().st_size for path in self.out.rglob("*") if path.is_file()))
        self.found["peak_bytes"] += int(found.get("child_bytes", 0))
        self.found["threads"] = torch.get_num_threads()
        self.found["versions"] = {name: version(name) for name in ("torch", "transformers", "numpy", *packages)}
        if self.check:
            np.savez(self.report.with_suffix(".npz"), **self.check)
        self.report.write_text(json.dumps(self.found))


class ForwardTime:
    """Seconds inside a module's forward: that of the whole model, with all that runs in its hooks."""

    def __init__(self, module: Any):
        self.seconds = 0.0
        self._start = 0.0
        module.register_forward_pre_hook(self._enter)
        module.register_forward_hook(self._leave)

    def _enter(self, *_: Any) -> None:
        self._start = time.perf_counter()

    def _leave(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._start


class SavedBatches:
    """One ``.npy`` a batch, float16 (layers, tokens, width), padding left out: what users of hook libraries do."""

    def __init__(self, job: Job):
        self._job = job

    def save(self, number: int, batch: Batch, layers: Sequence[Any]) -> None:
        """Write the tensors of a batch, each (sequences, longest, width)."""
        import torch

        real = torch.from_numpy(batch.real)
        values = torch.empty((len(layers), len(real), layers[0].shape[-1]), dtype=torch.float16)
        for target, layer in zip(values, layers, strict=True):
            target.copy_(layer.reshape(-1, layer.shape[-1])[real])
        np.save(self._job.out / f"{number:05d}.npy", values.numpy())

    def read_back(self) -> None:
        """Hand over the sequences to compare."""
        for number, batch in enumerate(self._job.batches):
            first = 0
            for member in batch.members:
                ids = self._job.sequence(member)
                if member in self._job.checked:
                    values = np.load(self._job.out / f"{number:05d}.npy", mmap_mode="r")
                    self._job.read_back(ids, values[:, first : first + len(ids)])
                first += len(ids)


def open_job() -> Job:
    """Read the argument."""
    given = json.loads(Path(sys.argv[1]).read_text())
    return Job(
        model=given["model"],
        tokens=given["tokens"],
        out=Path(given["out"]),
        report=Path(given["report"]),
        options=given["options"],
    )


def _peak_bytes() -> int:
    # not getrusage's ru_maxrss: that of a child begins with what its parent had
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
