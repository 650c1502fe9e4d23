"""Lakes in an object store on loopback: obstore beside s3fs, requests per question, a scan beside a folder's, faults."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.common import ROOT, keep, scratch

sys.path.insert(0, str(ROOT / "tests"))  # the server and the proxy that fails

_MIB = 1 << 20


def run(*, objects: int = 32, small: int = 200, repeats: int = 3, rounds: int = 30, seeds: int = 10) -> dict[str, Any]:
    """Measure, and print one table each.

    Parameters
    ----------
    objects, small
        Objects of 1 MiB, and of 1 KiB, that both clients write, read and list.
    repeats
        Of each, in turns; medians are shown.
    rounds
        Writers killed at a random request.
    seeds
        Runs through a proxy that makes a fifth of the requests fail.
    """
    from object_server import empty_bucket, make_bucket, object_server, settings

    result: dict[str, Any] = {}
    with object_server() as endpoint, _environment(settings(endpoint)), scratch() as folder:
        bucket = make_bucket(endpoint)
        result["clients"] = _clients(endpoint, bucket, objects, small, repeats)
        result["questions"], result["scan"] = _lake(Path(folder), f"s3://{bucket}/q.lake", repeats)
        empty_bucket(endpoint, bucket)
        result["kills"] = _kills(Path(folder), endpoint, rounds)
        result["faults"] = _faults(Path(folder), endpoint, seeds)
    keep("objects", result)
    return result


def _clients(endpoint: str, bucket: str, objects: int, small: int, repeats: int) -> dict[str, dict[str, float]]:
    """Time the same work by both clients: 16 requests at once, as the reader makes them."""
    import s3fs

    import neuronlake.store.object_client as client

    files = s3fs.S3FileSystem(endpoint_url=endpoint, key=os.environ["AWS_ACCESS_KEY_ID"], secret="testing")
    chunk, note = os.urandom(_MIB), os.urandom(1024)
    pool = ThreadPoolExecutor(16)

    def where(name: str) -> client.Where:
        return client.Where("s3", bucket, name)

    def each(work: Callable[[str], Any], count: int, kind: str) -> None:
        list(pool.map(lambda number: work(f"c/{kind}-{number:04d}"), range(count)))

    cases: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        f"PUT {objects} × 1 MiB": (
            lambda: each(lambda name: client.write(where(name), chunk), objects, "large"),
            lambda: each(lambda name: files.pipe_file(f"{bucket}/{name}", chunk), objects, "large"),
        ),
        f"PUT {small} × 1 KiB": (
            lambda: each(lambda name: client.write(where(name), note), small, "small"),
            lambda: each(lambda name: files.pipe_file(f"{bucket}/{name}", note), small, "small"),
        ),
        f"GET {objects} ranges of 1 MiB": (
            lambda: each(lambda name: client.read_range(where(name), 0, _MIB), objects, "large"),
            lambda: each(lambda name: files.cat_file(f"{bucket}/{name}", start=0, end=_MIB), objects, "large"),
        ),
        f"GET {small} × 1 KiB": (
            lambda: each(lambda name: client.read(where(name)), small, "small"),
            lambda: each(lambda name: files.cat_file(f"{bucket}/{name}"), small, "small"),
        ),
        f"GET {small} × 1 KiB, one after the other": (
            lambda: [client.read(where(f"c/small-{number:04d}")) for number in range(small)],
            lambda: [files.cat_file(f"{bucket}/c/small-{number:04d}") for number in range(small)],
        ),
        "list all": (
            lambda: client.list_below(where("c")),
            lambda: files.find(f"{bucket}/c", refresh=True),
        ),
    }
    result = {}
    for name, works in cases.items():
        wall: list[list[float]] = [[], []]
        processor: list[list[float]] = [[], []]
        for _ in range(repeats):
            for place, work in enumerate(works):
                begun, used = time.perf_counter(), time.process_time()
                work()
                wall[place].append(time.perf_counter() - begun)
                processor[place].append(time.process_time() - used)
        result[name] = {
            f"{who}_{what}": median(values[place])
            for place, who in enumerate(("obstore", "s3fs"))
            for what, values in (("s", wall), ("cpu_s", processor))
        }
    print("| work | obstore s | s3fs s | obstore CPU s | s3fs CPU s |\n|---|---|---|---|---|")
    for name, row in result.items():
        print(
            "| "
            + " | ".join([name, *(f"{row[key]:.3f}" for key in ("obstore_s", "s3fs_s", "obstore_cpu_s", "s3fs_cpu_s"))])
            + " |"
        )
    return result


def _lake(folder: Path, url: str, repeats: int) -> tuple[dict[str, Any], dict[str, float]]:
    """Count requests and bytes of questions, each to a lake opened anew, and time a scan beside a folder's."""
    import neuronlake.store.object_client as client
    from neuronlake.analysis import compute_statistics, top_tokens
    from neuronlake.store import Lake, open_lake, write_lake

    rng = np.random.default_rng(0)
    values = rng.standard_normal((2, 4 * 4096, 512)).astype(np.float32)
    forms = [f"w{number}" for number in rng.integers(0, 500, values.shape[1])]
    tags = [("NOUN", "VERB", "ADJ")[number] for number in rng.integers(0, 3, values.shape[1])]
    columns = {"form": forms, "upos": tags, "sentence": (np.arange(values.shape[1]) // 16).tolist()}
    for root in (str(folder / "q.lake"), url):
        write_lake(root, values, tokens=columns, name="random", encoding="int8a", block_rows=4096)
    local = open_lake(folder / "q.lake")
    stored = sum(file.bytes for commit in local.commits for file in commit.files)

    def scan(lake: Lake) -> None:
        for _ in lake.scan(lambda tile: tile.first_row):
            pass

    questions: dict[str, Callable[[Lake], Any]] = {
        "open": lambda lake: lake.commits,
        "top 10 tokens": lambda lake: top_tokens(lake, layer=1, neuron=5, k=10),
        "one column": lambda lake: lake.read(layer=1, neurons=5),
        "statistics, computed and kept": lambda lake: compute_statistics(lake, "upos"),
        "statistics, kept": lambda lake: compute_statistics(lake, "upos"),
        "scan of everything": scan,
    }
    counts: dict[str, Any] = {}
    for name, ask in questions.items():
        before, begun = replace(client.TRAFFIC), time.perf_counter()
        ask(open_lake(url))
        asked = client.TRAFFIC.since(before)
        counts[name] = {
            "requests": asked.requests,
            "read_bytes": asked.bytes_read,
            "written_bytes": asked.bytes_written,
            "s": time.perf_counter() - begun,
        }
    print(f"\nlake of {stored / 1e6:.1f} MB in {len(local.blocks)} blocks of {len(local.layers)} layers")
    print("| question | requests | MB read | MB written |\n|---|---|---|---|")
    for name, row in counts.items():
        print(f"| {name} | {row['requests']} | {row['read_bytes'] / 1e6:.2f} | {row['written_bytes'] / 1e6:.2f} |")
    times: dict[str, list[float]] = {"folder": [], "store": []}
    for _ in range(repeats):
        for name, lake in (("folder", local), ("store", open_lake(url))):
            begun = time.perf_counter()
            scan(lake)
            times[name].append(time.perf_counter() - begun)
    decoded = values.size * 4
    scans = {f"{name}_GB_per_s": decoded / median(seconds) / 1e9 for name, seconds in times.items()}
    scans["ratio"] = median(times["store"]) / median(times["folder"])
    print(f"\nscan: {scans['folder_GB_per_s']:.2f} GB/s decoded from a folder, {scans['store_GB_per_s']:.2f} from the store")
    return counts, scans


def _kills(folder: Path, endpoint: str, rounds: int) -> dict[str, int]:
    """Kill writers at a random request, finish what they began, and compare with a lake that nobody disturbed."""
    from object_server import FaultProxy, empty_bucket, make_bucket, settings

    from neuronlake.store import verify
    from neuronlake.store.objects import lake_path
    from neuronlake.store.repair import repair

    np.save(folder / "x.npy", np.random.default_rng(3).standard_normal((600, 40)).astype(np.float32))

    def write(root: str) -> "subprocess.Popen[bytes]":
        command = ["-m", "neuronlake.cli.main", "import", root, str(folder / "x.npy"), "--block-rows", "256"]
        return subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)

    assert write(str(folder / "x.lake")).wait() == 0
    whole = _contents(folder / "x.lake")
    chance, killed = random.Random(0), 0
    for _ in range(rounds):
        bucket, moment, count = make_bucket(endpoint), chance.randrange(1, 110), 0
        processes: list[subprocess.Popen[bytes]] = []

        def seen(_method: str, _path: str, moment: int = moment, processes: Any = processes) -> None:
            nonlocal count
            count += 1
            if count == moment:
                processes[0].send_signal(signal.SIGKILL)

        root = f"s3://{bucket}/x.lake"
        with FaultProxy(endpoint, seen=seen) as proxy, _environment(settings(proxy.endpoint)):
            processes.append(write(root))
            killed += processes[0].wait() == -signal.SIGKILL
        assert write(root).wait() == 0
        repair(root)  # what an interrupted upload of the index left
        report = verify(root, full=True)
        assert report.ok
        assert not report.leftovers
        assert _contents(lake_path(root)) == whole
        empty_bucket(endpoint, bucket)
    print(f"\n{rounds} writers, {killed} killed at a random request: every finished lake is byte-identical")
    return {"rounds": rounds, "killed": killed}


def _faults(folder: Path, endpoint: str, seeds: int) -> dict[str, Any]:
    """Write and read through a proxy that makes requests fail, and compare with a folder."""
    from lakes import synthetic_lake
    from object_server import KINDS, FaultProxy, empty_bucket, make_bucket, settings

    import neuronlake.store.object_client as client
    from neuronlake.store import open_lake, verify
    from neuronlake.store.objects import lake_path

    shape: dict[str, Any] = {"encoding": "int8a", "tokens": 300, "neurons": 40, "layers": 3}
    synthetic_lake(folder / "f.lake", **shape)
    local, whole = open_lake(folder / "f.lake"), _contents(folder / "f.lake")
    total = {"requests": 0, "retries": 0, **dict.fromkeys(KINDS, 0)}
    for seed in range(seeds):
        bucket, before = make_bucket(endpoint), replace(client.TRAFFIC)
        root = lake_path(f"s3://{bucket}/f.lake")
        rates = {kind: 0.005 if kind == "stall" else 0.03 for kind in KINDS}
        with (
            FaultProxy(endpoint, seed=seed, rates=rates) as proxy,
            _environment({**settings(proxy.endpoint), "AWS_TIMEOUT": "1s"}),
        ):
            synthetic_lake(root, **shape)  # type: ignore[arg-type]
            remote = open_lake(root)
            for layer in local.layers:
                assert np.array_equal(local.read(layer=layer), remote.read(layer=layer))
            assert verify(root, full=True).ok
        assert _contents(root) == whole
        asked = client.TRAFFIC.since(before)
        total["requests"] += proxy.counts["requests"]
        total["retries"] += asked.retries
        for kind in KINDS:
            total[kind] += proxy.counts[kind]
        empty_bucket(endpoint, bucket)
    told = ", ".join(f"{total[kind]} × {kind}" for kind in KINDS)
    print(f"\n{seeds} lakes through a failing proxy: {total['requests']} requests, {total['retries']} of them again; {told}")
    print("no wrong value, no lost commit, every lake byte-identical")
    return {"seeds": seeds, **total}


def _contents(root: Any) -> dict[str, bytes]:
    from neuronlake.store.files import sizes_below

    return {path: (root / path).read_bytes() for path in sizes_below(root)}


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
