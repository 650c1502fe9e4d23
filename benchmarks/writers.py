"""Several processes write one lake: killed at random, cut off from their cluster; and what a block costs beyond its work."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.common import keep, scratch

ROUNDS = 30
BLOCKS = 150  # about, of the lake whose blocks are timed
_SUBNET = "10.231"
# A connection that is cut says nothing: these decide after how long a worker is given up (30 s and 5 minutes by default;
# distributed refuses less than 11 s).
_CUT_OFF = {"distributed.comm.timeouts.tcp": "15s", "distributed.scheduler.worker-ttl": "15s"}


def run(
    rounds: int = ROUNDS, writers: tuple[int, ...] = (2, 4), blocks: int = BLOCKS, *, hosts: bool = True
) -> dict[str, Any]:
    """The overhead of a block, `rounds` kills with each number of writers, plain and of a cluster, then two hosts."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from many_writers import Harness
    from tiny import conllu, make_model, some_sentences

    started = time.monotonic()
    result: dict[str, Any] = {}

    def found(name: str, what: dict[str, Any]) -> None:
        result[name] = what
        print(f"{name}: {what}", flush=True)
        keep("writers", {**result, "seconds": round(time.monotonic() - started, 1)})

    with scratch() as folder:
        found("overhead of a block", _overhead(Path(folder), blocks))
    with scratch() as folder, Harness(Path(folder)) as harness:
        base = Path(folder)
        make_model(base / "model")
        (base / "t.conllu").write_text(conllu(some_sentences(300)), encoding="utf-8")
        inputs = [
            *("--model", str(base / "model"), "--conllu", str(base / "t.conllu")),
            *("--block-rows", "256", "--batch-tokens", "256"),
        ]
        for number in writers:
            found(f"{number} processes", _kill_plain(harness, inputs, number, rounds))
        for number in writers:
            found(f"{number} workers of a cluster", _kill_cluster(harness, inputs, number, rounds))
        if hosts:
            found("two hosts, one of them cut off", two_hosts(harness, inputs))
    return result


# ---- killed at random ---------------------------------------------------------------------------------------------------


def _kill_plain(harness: Any, inputs: list[str], number: int, rounds: int) -> dict[str, Any]:
    from many_writers import kill_at_random

    processes = [harness.process([]) for _ in range(number)]
    expected, whole_s = _whole(harness, processes[0], inputs)
    counts = kill_at_random(
        processes,
        lambda lake: harness.folder / f"plain-{number}-{lake}.lake",
        lambda root: ["extract", str(root), *inputs],
        expected,
        rounds=rounds,
        pause_s=whole_s,
        rng=random.Random(number),
    )
    return {**counts, "differences": 0, "whole_s": round(whole_s, 2)}


def _kill_cluster(harness: Any, inputs: list[str], number: int, rounds: int) -> dict[str, Any]:
    from many_writers import kill_at_random, start_cluster

    client = harness.process([])
    expected, whole_s = _whole(harness, client, [*inputs, "--stats", "none"])
    address, workers = start_cluster(harness, number)
    counts = kill_at_random(
        [client],
        lambda lake: harness.folder / f"cluster-{number}-{lake}.lake",
        lambda root: ["extract", str(root), *inputs, "--stats", "none", "--scheduler", address],
        expected,
        rounds=rounds,
        pause_s=2 * whole_s,
        rng=random.Random(number),
        workers=workers,
    )
    for worker in workers:
        worker.kill()
    return {**counts, "differences": 0, "whole_s": round(whole_s, 2)}


def _whole(harness: Any, process: Any, inputs: list[str]) -> tuple[dict[str, bytes], float]:
    """Content of the lake that one process makes, and how long it takes."""
    import shutil

    from many_writers import contents

    root = harness.folder / "whole.lake"
    for _ in range(2):  # the first one is slower
        shutil.rmtree(root, ignore_errors=True)
        began = time.monotonic()
        process.start(arguments=["extract", str(root), *inputs])
        if process.wait() != 0:
            raise AssertionError(harness.log())
        seconds = time.monotonic() - began
    return contents(root), seconds


# ---- two hosts ----------------------------------------------------------------------------------------------------------


def two_hosts(harness: Any, inputs: list[str]) -> dict[str, Any]:
    """Workers behind addresses of their own; the link of one is taken down while it has blocks."""
    from many_writers import assert_same, free_port, worker_arguments

    if not can_make_hosts():
        return {"skipped": "network namespaces are not permitted here"}
    from distributed import Client

    inputs = [*inputs, "--stats", "none"]
    client = harness.process([])
    expected, whole_s = _whole(harness, client, inputs)
    root = harness.folder / "hosts.lake"
    port = free_port()
    with _host(1) as (first, first_gateway), _host(2) as (second, second_gateway):
        scheduler = harness.process(
            ["--host", f"tcp://0.0.0.0:{port}", "--dashboard-address", ":0"], program="scheduler", config=_CUT_OFF
        )
        scheduler.start()
        workers = []
        for host, gateway in ((first, first_gateway), (second, second_gateway)):
            worker = harness.process(
                worker_arguments(f"tcp://{gateway}:{port}", harness.folder, "--name", host),
                program="worker", host=host, config=_CUT_OFF,
            )  # fmt: skip
            worker.start()
            workers.append(worker)
        with Client(f"tcp://{first_gateway}:{port}", set_as_default=False, timeout=30) as look:
            look.wait_for_workers(2, timeout=60)
            addresses = {worker["name"]: address for address, worker in look.scheduler_info(n_workers=-1)["workers"].items()}
            client.start(arguments=["extract", str(root), *inputs, "--scheduler", f"tcp://{first_gateway}:{port}"])
            had: tuple[Any, ...] = ()
            while not (had and any((root / "commits").glob("*.json"))):
                if not client.runs():
                    raise AssertionError("the extraction ended before the link could be taken down")
                time.sleep(0.001)
                had = tuple(look.processing()[addresses[second]])
            _ip("-n", second, "link", "set", "eth0", "down")
            cut = time.monotonic()
            committed = len(list((root / "commits").glob("*.json")))
            status = client.wait()
            seconds = time.monotonic() - cut
            left = list(look.scheduler_info(n_workers=-1)["workers"])
        if status != 0:
            raise AssertionError(harness.log())
        for process in (*workers, scheduler):
            process.kill()
    assert_same(root, expected)
    return {
        "addresses": sorted(addresses.values()),
        "blocks": len(list((root / "commits").glob("*.json"))),
        "committed_when_cut": committed,
        "blocks_of_the_lost_worker": len(had),
        "workers_left": len(left),
        "seconds_from_cut_to_end": round(seconds, 1),
        "whole_s_of_one_process": round(whole_s, 2),
        "differences": 0,
    }


def can_make_hosts() -> bool:
    """Whether this process may make network namespaces."""
    name = f"nlprobe{os.getpid()}"
    try:
        made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
    if made:
        _ip("netns", "del", name)
    return made


@contextmanager
def _host(number: int) -> Iterator[tuple[str, str]]:
    """A network namespace with an address of its own; gives its name and this host's address on the link to it."""
    name, outside = f"nlhost{number}-{os.getpid()}", f"nl{number}-{os.getpid()}"
    _ip("netns", "add", name)
    try:
        _ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("addr", "add", f"{_SUBNET}.{number}.1/24", "dev", outside)
        _ip("link", "set", outside, "up")
        _ip("-n", name, "addr", "add", f"{_SUBNET}.{number}.2/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        _ip("-n", name, "link", "set", "lo", "up")
        yield name, f"{_SUBNET}.{number}.1"
    finally:
        _ip("netns", "del", name)  # and its link


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


# ---- overhead -----------------------------------------------------------------------------------------------------------


def _overhead(base: Path, blocks: int) -> dict[str, Any]:
    """What a block costs beyond its work: the lock and the claim, then the cluster. Medians, one after the other."""
    from distributed import Client, LocalCluster
    from tiny import conllu, make_model, some_sentences

    from neuronlake.extractor import ConlluCorpus, ExtractSettings, Observer, extract, resolve_model
    from neuronlake.extractor.cluster import ClusterSettings, connect
    from neuronlake.extractor.cluster_worker import Job, extract_on_worker, installed
    from neuronlake.store import open_lake

    make_model(base / "model")
    corpus = ConlluCorpus(paths=(base / "t.conllu",))
    (base / "t.conllu").write_text(conllu(some_sentences(blocks * 4)), encoding="utf-8")
    source = resolve_model(str(base / "model"))
    settings = ExtractSettings(block_rows=64, batch_tokens=64, device="cpu")
    times: list[float] = []
    observer = Observer(advance=lambda tokens, _: times.append(time.perf_counter()) if tokens else None)
    lakes = {name: base / f"{name}.lake" for name in ("direct", "task", "cluster")}
    for root in lakes.values():
        extract(root, corpus, source, ExtractSettings(**{**vars(settings), "blocks": (0, 1)}))
    plan = open_lake(lakes["direct"]).plan
    result: dict[str, Any] = {"blocks": plan.blocks}

    def job(root: Path) -> Job:
        return Job(
            lake=root, fingerprint=plan.fingerprint, model=str(base / "model"), gguf=None, sha256=source.sha256,
            settings=settings, audio=None, versions=installed(),
        )  # fmt: skip

    from neuronlake.extractor import cluster_worker

    extract_on_worker(job(lakes["direct"]), 1, force=True)  # loads the model
    with cluster_worker._warm(job(lakes["direct"])) as warm:
        result["work_ms"] = _median_ms(lambda block: warm.extract(block), range(2, plan.blocks))
    extract_on_worker(job(lakes["task"]), 1, force=True)
    result["with_lock_and_claim_ms"] = _median_ms(
        lambda block: extract_on_worker(job(lakes["task"]), block, force=False), range(2, plan.blocks)
    )
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=None
    ) as cluster:
        with Client(cluster, set_as_default=False) as client:
            result["dask_alone_ms"] = _dask_alone_ms(client, plan.blocks)
        with connect(
            ClusterSettings(address=cluster.scheduler_address, model=str(base / "model")), settings, observer
        ) as extraction:
            extraction.extract(lakes["cluster"], corpus, source)
    gaps = sorted((after - before) * 1e3 for before, after in pairwise(times[1:]))
    result["on_a_cluster_ms"] = round(gaps[len(gaps) // 2], 2)
    result["lock_and_claim_ms"] = round(result["with_lock_and_claim_ms"] - result["work_ms"], 2)
    result["cluster_ms"] = round(result["on_a_cluster_ms"] - result["with_lock_and_claim_ms"], 2)
    return result


def _median_ms(work: Any, blocks: range) -> float:
    times = []
    for block in blocks:
        began = time.perf_counter()
        work(block)
        times.append((time.perf_counter() - began) * 1e3)
    return round(sorted(times)[len(times) // 2], 2)


def _dask_alone_ms(client: Any, tasks: int) -> float:
    """Milliseconds per task that does nothing, two submitted at once as blocks are."""
    from queue import SimpleQueue

    finished: SimpleQueue[Any] = SimpleQueue()

    def submit(number: int) -> None:
        client.submit(int, key=f"nothing-{number}", pure=False).add_done_callback(finished.put)

    submit(-1)
    submit(-2)
    began = time.perf_counter()
    for number in range(tasks):
        finished.get()
        submit(number)
    return round((time.perf_counter() - began) / tasks * 1e3, 2)
