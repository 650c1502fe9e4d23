"""Several extractions of one lake at once, killed at random and started again: plain processes, and a Dask cluster's."""

import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forks import ForkServer

from neuronlake.store import InputError, open_lake, repair, verify
from neuronlake.store.commits import committed_blocks
from neuronlake.store.files import remove_folder, sizes_below
from neuronlake.store.kept import STATISTICS, kept_record, kept_results
from neuronlake.store.objects import LakePath

# Forked from a process that has everything imported and compiled: a run is then a second, not ten.
PREPARATION = """
import ctypes, errno, fcntl, os, sys, time
import dask, torch, transformers, distributed
import neuronlake.cli.main, neuronlake.extractor, neuronlake.extractor.cluster, neuronlake.extractor.model
import writing_run
from distributed.cli import dask_scheduler, dask_worker
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
writing_run.Work(encoding="int8a").prepare_values().warm_up()

def no_locks(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

def work(request):
    log = os.open(request.get("log", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    os.environ.update(request.get("environment", {}))
    torch.set_num_threads(1)  # a model this small only waits for its other threads
    if not request.get("locks", True):
        fcntl.flock = no_locks
    if shift := request.get("clock_s", 0):
        for name, scale in (("time", 1), ("time_ns", 10**9)):
            real = getattr(time, name)
            setattr(time, name, lambda real=real, scale=scale: real() + shift * scale)
    if host := request.get("host"):  # a network namespace
        place = os.open(f"/run/netns/{host}", os.O_RDONLY)
        assert ctypes.CDLL(None, use_errno=True).setns(place, 0) == 0, os.strerror(ctypes.get_errno())
    dask.config.set(request.get("config", {}))
    program, arguments = request.get("program", "neuronlake"), request["arguments"]
    sys.argv = [program, *arguments]
    if program == "neuronlake":
        status = neuronlake.cli.main.main(arguments)
        assert status == request.get("status", 0), status
    else:
        {"scheduler": dask_scheduler, "worker": dask_worker}[program].main(arguments, standalone_mode=False)
"""


@dataclass
class Process:
    """A process of the harness, and how to start it."""

    server: ForkServer
    request: dict[str, Any]
    child: int | None = None

    def start(self, **changed: Any) -> None:
        """Start it (again)."""
        self.request |= changed
        self.child = self.server.start(**self.request)

    def runs(self) -> bool:
        """Whether it has not ended."""
        try:
            return Path(f"/proc/{self.child}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    def kill(self) -> int:
        """End it with SIGKILL, unless it has ended; return its status."""
        assert self.child is not None
        with suppress(ProcessLookupError):
            os.kill(self.child, signal.SIGKILL)
        return self.wait()

    def wait(self) -> int:
        """Wait for it; return its status."""
        child, self.child = self.child, None
        return self.server.wait(child)


class Harness(ExitStack):
    """Runs commands in processes that can be killed; all end with the ``with`` block."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder
        self._server = self.enter_context(ForkServer(PREPARATION))

    def process(self, arguments: Sequence[str], **more: Any) -> Process:
        """Return a process, not started."""
        process = Process(self._server, {"arguments": list(arguments), "log": str(self.folder / "log.txt"), **more})
        self.callback(lambda: process.child is not None and process.kill())
        return process

    def log(self) -> str:
        """What the processes have said."""
        path = self.folder / "log.txt"
        return path.read_text() if path.exists() else ""


def assert_ended_well(process: Process, status: int, allowed: Sequence[int] = (0,)) -> None:
    """Assert that a process ended as it may; show the end of what the processes have said if not."""
    if status not in allowed:
        said = Path(process.request["log"]).read_text()[-4000:]
        raise AssertionError(f"a process ended with status {status}: {process.request['arguments']}\n{said}")


def contents(root: LakePath) -> dict[str, bytes]:
    """Path → bytes of every file, without statistics: their last bits depend on what was added up together."""
    return {path: (root / path).read_bytes() for path in sizes_below(root) if path.partition("/")[0] != STATISTICS}


def assert_same(root: LakePath, expected: dict[str, bytes]) -> None:
    """Assert that a lake is, file for file, the one that a single process makes, and statistics are of all its blocks."""
    found = contents(root)
    odd = sorted(path for path in found.keys() | expected.keys() if found.get(path) != expected.get(path))
    assert not odd, f"{root}: {len(odd)} files differ: {odd[:5]}"
    for name in kept_results(root):
        assert len(kept_record(root, name, full=True)["blocks"]) == open_lake(root).plan.blocks


def assert_whole(root: LakePath) -> None:
    """Assert that every committed byte is right, whatever is being written beside it."""
    try:
        report = verify(root, full=True)
    except InputError:  # killed while planning
        assert not (root / "plan" / "plan.json").exists()
        return
    assert report.ok, report.damage
    assert not report.unknown_files, report.unknown_files


def kill_at_random(
    processes: list[Process],
    make_root: Callable[[int], LakePath],
    arguments: Callable[[LakePath], list[str]],
    expected: dict[str, bytes],
    *,
    rounds: int,
    pause_s: float,
    rng: random.Random,
    workers: Sequence[Process] = (),
) -> Counter[str]:
    """Run extractions of one lake at once, kill one of the processes at a time, start it again; lake after lake.

    Parameters
    ----------
    processes
        Extractions of the same lake.
    expected
        Content of the lake that a single process makes.
    rounds
        Kills.
    pause_s
        Longest pause before the next one.
    workers
        Of a cluster, which run already: killed and started again too.

    Returns
    -------
    Counter
        Kills, lakes compared.
    """
    counts: Counter[str] = Counter()
    while counts["kills"] < rounds:
        root = make_root(counts["lakes"])
        for process in processes:
            process.start(arguments=arguments(root))
        while any(process.runs() for process in processes) and counts["kills"] < rounds:
            time.sleep(rng.uniform(0, pause_s))
            victim = rng.choice([process for process in (*processes, *workers) if process.child is not None])
            if victim in processes and not victim.runs():
                continue
            status = victim.kill()
            assert_ended_well(victim, status, (0, -signal.SIGKILL))
            if status == -signal.SIGKILL:
                counts["kills"] += 1
                counts["of clients" if workers and victim in processes else "of workers"] += 1
                counts["with committed blocks"] += bool(committed_blocks(root))
            assert_whole(root)
            victim.start()
        for process in processes:
            if process.child is not None:
                assert_ended_well(process, process.wait())
        processes[0].start()  # what is left, if all were killed
        assert_ended_well(processes[0], processes[0].wait())
        report = repair(root, full=True)
        assert report.ok
        after = verify(root, full=True)
        assert (after.damage, after.leftovers, after.unknown_files) == ([], [], [])
        assert_same(root, expected)
        counts["lakes"] += 1
        remove_folder(root)
    return counts


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_cluster(harness: Harness, workers: int, **more: Any) -> tuple[str, list[Process]]:
    """Start a scheduler and workers; return its address and the workers."""
    _, address = start_scheduler(harness)
    return address, start_workers(harness, address, workers, **more)


def start_scheduler(harness: Harness) -> tuple[Process, str]:
    """Start a scheduler; return it and its address."""
    address = f"tcp://127.0.0.1:{free_port()}"
    scheduler = harness.process(["--host", address, "--dashboard-address", ":0"], program="scheduler")
    scheduler.start()
    return scheduler, address


def start_workers(harness: Harness, address: str, count: int, **more: Any) -> list[Process]:
    """Start workers of one thread each."""
    workers = [harness.process(worker_arguments(address, harness.folder), program="worker", **more) for _ in range(count)]
    for worker in workers:
        worker.start()
    return workers


def worker_arguments(address: str, folder: Path, *more: str) -> list[str]:
    """Arguments of a ``dask worker``."""
    return [
        address, "--nthreads", "1", "--no-nanny", "--memory-limit", "0", "--no-dashboard",
        "--local-directory", str(folder / "dask"), *more,
    ]  # fmt: skip
