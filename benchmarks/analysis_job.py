"""What the functions that benchmark `analysis` times are given, and what they share."""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CORES = len(os.sched_getaffinity(0))
Found = dict[str, Any]
"""``seconds``, ``layers`` and arrays."""


class Job:
    """What all are given."""

    def __init__(self, given: dict[str, Any]):
        self.given = given
        self.folder = Path(given["folder"])
        self.layers: list[int] = given["layers"]
        with np.load(self.folder / "labels.npz") as file:
            self.codes: NDArray[np.int64] = file["codes"]
            self.train: NDArray[np.bool_] = file["train"]
            self.nouns: NDArray[np.bool_] = file["nouns"]
        self.tags = len(given["tags"])

    def labelled(self, layer: int) -> NDArray[np.float16]:
        """(tokens with a tag, neurons), a memory map."""
        return np.load(self.folder / f"labelled-{layer}.npy", mmap_mode="r")  # type: ignore[no-any-return]

    def tokens(self, layer: int) -> NDArray[np.float16]:
        """(all tokens, neurons), a memory map."""
        return np.load(self.folder / f"tokens-{layer}.npy", mmap_mode="r")  # type: ignore[no-any-return]

    def lake(self) -> Any:
        """Return the lake, whose statistics are not kept."""
        from neuronlake.store import open_lake

        return open_lake(self.given["lake"])


def timed(work: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """Return median seconds, and the last result."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), found


def _highest(column: NDArray[Any], k: int) -> NDArray[np.float32]:
    part = np.partition(column, len(column) - k)[len(column) - k :]
    return np.sort(part)[::-1].astype(np.float32)


def scan_top(job: Job, column: Callable[[int, int], NDArray[Any]], eligible: NDArray[np.bool_] | None) -> Found:
    def ask(layer: int, neuron: int) -> NDArray[np.float32]:
        values = column(layer, neuron)
        return _highest(values if eligible is None else values[eligible], job.given["k"])

    asked = job.given["neurons"]
    for layer, neuron in asked:
        ask(layer, neuron)
    seconds, values = [], []
    for layer, neuron in asked:
        start = time.perf_counter()
        values.append(ask(layer, neuron))
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "layers": 1, "values": np.stack(values)}
