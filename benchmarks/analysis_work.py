"""Times functions of benchmark `analysis` in a process of their own: ``python -m benchmarks.analysis_work JOB``.

A function returns seconds, how many layers they were for, and its answer for the layers that all have. Imports and
compilation do not count.
"""

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import analysis_others, analysis_ours
from benchmarks.analysis_job import Found, Job


def function(name: str) -> Callable[[Job], Found]:
    """Return what is timed for a row."""
    found: Callable[[Job], Found] = getattr(analysis_ours if name.startswith("lake_") else analysis_others, name)
    return found


def peak_bytes() -> int:
    """Peak of resident memory since `forget_peak`, mapped files included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * 1024


def forget_peak() -> None:
    """Begin a new peak, where the system lets a process do so."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def main(given: dict[str, Any]) -> None:
    """Run the named functions; save what each found."""
    job = Job(given)
    for name in given["names"]:
        forget_peak()
        found = function(name)(job)
        np.savez(job.folder / f"found-{name}.npz", peak=peak_bytes(), **found)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
