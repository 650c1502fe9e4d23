"""A Dask cluster on this machine: two workers against one, overhead per piece, the scheduler's time and memory."""

import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, keep, scratch, small_lake, whole_train_lake

_TICKS = os.sysconf("SC_CLK_TCK")


def run(
    *,
    lake: Path | None = None,
    sentences: int | None = None,
    layers: int | None = None,
    repeats: int = 5,
    pieces: int = 10_000,
) -> dict[str, Any]:
    """Print everything for EWT train (SmolLM2, the default encoding).

    All processes share the cores, and so does whatever else runs: wall times mean something on an idle machine only. The
    processor times beside them tell what two idle cores would do at best.

    Parameters
    ----------
    lake
        Another lake; it is only read.
    sentences
        Only so many sentences of EWT dev, in a lake that is removed afterwards.
    layers
        Only the first so many layers.
    pieces
        Pieces that do nothing.
    """
    with scratch() as name:
        if lake is None:
            lake = whole_train_lake() if sentences is None else small_lake(Path(name), sentences)
        result = {"load_before": os.getloadavg()[0], **_speed(lake, layers, repeats), **_overhead(pieces, min(repeats, 3))}
    keep("scaling", result)
    return result


def _speed(root: Path, layers: int | None, repeats: int) -> dict[str, Any]:
    """Statistics by one worker of one thread and by two, in turns."""
    from neuronlake.analysis import compute_statistics
    from neuronlake.analysis.cluster import Cluster
    from neuronlake.store import open_lake

    lake = open_lake(root)

    def ask(scheduler: Any = None) -> Any:
        return compute_statistics(lake, "upos", layers=lake.layers[:layers], keep=False, scheduler=scheduler)

    found: dict[str, Any] = {}
    with _cluster(1) as one, _cluster(2) as two:
        ours = Cluster(one.address), Cluster(two.address)
        try:
            rows: list[list[dict[str, float]]] = [[], []]
            answers = [None, None]
            for repeat in range(repeats + 1):
                for place, (processes, cluster) in enumerate(zip((one, two), ours, strict=True)):
                    before, start = processes.seconds(), time.perf_counter()
                    answers[place] = ask(cluster)
                    wall = time.perf_counter() - start
                    spent = {name: after - before[name] for name, after in processes.seconds().items()}
                    if repeat:  # the first compiles
                        rows[place].append({"wall": wall, **spent})
            expected = ask()
            found["identical_to_threads"] = all(
                answer is not None and answer.drop_attrs().identical(expected.drop_attrs()) for answer in answers
            )
        finally:
            for cluster in ours:
                cluster.close()
    for count, runs in zip(("one", "two"), rows, strict=True):
        found[count] = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    speed_up = statistics.median(a["wall"] / b["wall"] for a, b in zip(*rows, strict=True))
    alone, both = found["one"], found["two"]
    work = sum(seconds for name, seconds in both.items() if name.startswith("worker"))
    others = both["scheduler"] + both["client"]
    found |= {
        "speed_up": speed_up,
        # one worker has a core to itself while client and scheduler use the other; two share both cores with them
        "speed_up_by_processor_time": alone["worker 0"] / max(both["worker 0"], both["worker 1"], (work + others) / 2),
        "share_of_client_and_scheduler": others / work,
        "tokens": lake.plan.counts["tokens"],
    }
    print("| statistics of 17 tags | wall, s | workers, s | scheduler, s | client, s |\n|---|---|---|---|---|")
    for count in ("one", "two"):
        row = found[count]
        by = " + ".join(f"{seconds:.1f}" for name, seconds in row.items() if name.startswith("worker"))
        print(f"| {count} | {row['wall']:.1f} | {by} | {row['scheduler']:.2f} | {row['client']:.2f} |")
    print(
        f"two workers: {speed_up:.2f}× one by wall time, {found['speed_up_by_processor_time']:.2f}× by processor time; "
        f"identical to threads: {found['identical_to_threads']}"
    )
    return {"statistics": found}


def _overhead(pieces: int, repeats: int) -> dict[str, Any]:
    """Pieces that do nothing, ours and as plain Dask tasks, in turns: what a block costs beside its work."""
    from neuronlake.analysis.cluster import Cluster
    from neuronlake.analysis.execute import Parts, run_each

    arguments = [{"a": block, "b": 0} for block in range(pieces)]
    parts = Parts(source=None, own=range(pieces), whole=range(pieces))

    def ours(cluster: Cluster) -> int:
        return sum(1 for _ in run_each(max_of, arguments, parts=parts, scheduler=cluster))

    def plain(cluster: Cluster) -> int:
        return len(cluster.client.gather(cluster.client.map(abs, range(pieces), pure=False)))

    kinds: dict[str, Callable[[Cluster], int]] = {"plain": plain, "ours": ours}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
    with _cluster(2) as processes, Cluster(processes.address) as cluster:
        for repeat in range(repeats + 1):
            for name, work in kinds.items():
                time.sleep(0.5)  # what the one before left is forgotten
                memory = processes.memory_of_scheduler(forget_peak=True)
                before, start = processes.seconds(), time.perf_counter()
                assert work(cluster) == pieces
                wall, after = time.perf_counter() - start, processes.seconds()
                if repeat:
                    rows[name].append(
                        {
                            "wall_ms": wall / pieces * 1e3,
                            **{f"{who}_ms": (after[who] - before[who]) / pieces * 1e3 for who in ("scheduler", "client")},
                            "scheduler_growth_mb": (processes.memory_of_scheduler() - memory) / 1e6,
                        }
                    )
    found = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in rows.items() if runs
    }
    beyond = statistics.median(
        a["scheduler_ms"] - b["scheduler_ms"] for a, b in zip(rows["ours"], rows["plain"], strict=True)
    )
    print(
        f"| {pieces:,} pieces that do nothing | wall, ms each | scheduler | client | scheduler grows by |"
        "\n|---|---|---|---|---|"
    )
    for name, row in found.items():
        print(
            f"| {name} | {row['wall_ms']:.2f} | {row['scheduler_ms']:.2f} | {row['client_ms']:.2f} | "
            f"{row['scheduler_growth_mb']:.0f} MB |"
        )
    print(f"scheduler's time per piece beyond plain Dask's: {beyond:+.3f} ms")
    return {"nothing": {**found, "pieces": pieces, "scheduler_ms_beyond_plain": beyond}}


def max_of(a: int, b: int) -> int:
    """Do nothing that takes time."""
    return max(a, b)


class _Processes:
    """A scheduler and workers of one thread each, in processes of their own."""

    def __init__(self, address: str, scheduler: int, workers: list[int]):
        self.address = address
        self._scheduler, self._workers = scheduler, workers

    def seconds(self) -> dict[str, float]:
        """Processor time so far, of each, and of this process."""
        found = {"client": time.process_time(), "scheduler": _processor_seconds(self._scheduler)}
        return found | {f"worker {place}": _processor_seconds(pid) for place, pid in enumerate(self._workers)}

    def memory_of_scheduler(self, *, forget_peak: bool = False) -> int:
        """Peak resident memory, in bytes; with `forget_peak` what is resident now, from where a peak is counted anew."""
        process = Path(f"/proc/{self._scheduler}")
        if forget_peak:
            (process / "clear_refs").write_text("5")
        line = next(line for line in (process / "status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024


@contextmanager
def _cluster(workers: int) -> Iterator[_Processes]:
    from distributed import Client

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    running: list[subprocess.Popen[bytes]] = []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

    def start(kind: str, *arguments: str) -> None:
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--host", "127.0.0.1", "--no-dashboard", *arguments]
        running.append(
            subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )

    try:
        start("scheduler", "--port", str(port))
        for _ in range(workers):
            start("worker", address, "--nthreads", "1", "--no-nanny")
        client: Any = Client
        with client(address, timeout=60, set_as_default=False) as connection:
            connection.wait_for_workers(workers, timeout=60)
        yield _Processes(address, running[0].pid, [each.pid for each in running[1:]])
    finally:
        for each in running:
            each.kill()  # a worker that is asked to end waits for its scheduler
        for each in running:
            each.wait()


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS  # user and system
