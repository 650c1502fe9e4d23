"""Extraction by the workers of a Dask cluster: real scheduler and worker processes, lost, unfit and killed ones."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from many_writers import (
    Harness,
    Process,
    assert_ended_well,
    assert_same,
    assert_whole,
    contents,
    free_port,
    kill_at_random,
    start_cluster,
    start_scheduler,
    start_workers,
    worker_arguments,
)
from object_server import settings
from tiny import conllu, make_model, some_sentences

from neuronlake.cli.main import main
from neuronlake.extractor import ExtractSettings
from neuronlake.extractor.cluster import ClusterSettings, connect
from neuronlake.extractor.cluster_worker import PACKAGES, unlike
from neuronlake.store import InputError, open_lake, verify
from neuronlake.store.files import sizes_below
from neuronlake.store.kept import kept_results
from neuronlake.store.lock import writing
from neuronlake.store.objects import lake_path

pytest.importorskip("distributed")
# what its threads and sockets leave to the collector is not ours
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    with Harness(tmp_path_factory.mktemp("harness")) as harness:
        yield harness


@pytest.fixture(scope="module")
def inputs(harness: Harness) -> list[str]:
    make_model(harness.folder / "model")
    (harness.folder / "t.conllu").write_text(conllu(some_sentences(300)), encoding="utf-8")
    return [
        *("--model", str(harness.folder / "model"), "--conllu", str(harness.folder / "t.conllu")),
        *("--block-rows", "256", "--batch-tokens", "256", "--stats", "none"),
    ]


@pytest.fixture(scope="module")
def client(harness: Harness, inputs: list[str]) -> Process:
    return harness.process(["extract", str(harness.folder / "whole.lake"), *inputs])


@pytest.fixture(scope="module")
def expected(harness: Harness, client: Process) -> dict[str, bytes]:
    client.start()
    assert client.wait() == 0, harness.log()
    return contents(harness.folder / "whole.lake")


@pytest.fixture(scope="module")
def cluster(harness: Harness) -> tuple[str, list[Process]]:
    """A scheduler and its two workers."""
    return start_cluster(harness, 2)


def test_killed_at_random_it_makes_the_lake_of_one_process(
    harness: Harness, inputs: list[str], client: Process, expected: dict[str, bytes], cluster: tuple[str, list[Process]]
) -> None:
    """Workers and client; the long form is `python -m benchmarks writers`."""
    address, workers = cluster
    counts = kill_at_random(
        [client],
        lambda number: harness.folder / f"killed-{number}.lake",
        lambda root: ["extract", str(root), *inputs, "--scheduler", address],
        expected,
        rounds=4,
        pause_s=2.0,
        rng=random.Random(2),
        workers=workers,
    )
    assert counts["kills"] == 4


def test_beside_plain_processes_and_after_ctrl_c_it_goes_on(
    harness: Harness, inputs: list[str], client: Process, expected: dict[str, bytes], cluster: tuple[str, list[Process]]
) -> None:
    address, _ = cluster
    root = harness.folder / "both.lake"
    client.start(arguments=["extract", str(root), *inputs, "--scheduler", address], status=130)
    deadline = time.monotonic() + 60
    while not list((root / "activations").rglob("c.*")) and time.monotonic() < deadline:
        time.sleep(0.002)
    assert client.child is not None
    os.kill(client.child, signal.SIGINT)
    interrupted = client.wait() == 0  # else it was done by then
    assert interrupted == ("run the same command again to go on" in harness.log()), harness.log()
    assert_whole(root)
    client.start(arguments=["extract", str(root), *inputs, "--scheduler", address], status=0)
    assert client.wait() == 0, harness.log()
    assert_same(root, expected)


def test_a_lake_in_an_object_store_is_extracted_and_asked(
    harness: Harness, inputs: list[str], expected: dict[str, bytes], bucket: str, object_store: str
) -> None:
    environment = settings(object_store)
    address, workers = start_cluster(harness, 2, environment=environment)
    root, local = lake_path(f"s3://{bucket}/a.lake"), harness.folder / "whole.lake"
    client, there = harness.process([], environment=environment), ["--scheduler", address]
    for arguments in (
        ["extract", str(root), *inputs, *there],
        ["stats", str(root), "--by", "upos", *there],
        ["stats", str(local), "--by", "upos"],
    ):
        client.start(arguments=arguments)
        assert_ended_well(client, client.wait())
    for worker in workers:
        worker.kill()
    assert_same(root, expected)
    assert kept_results(root)
    assert {path: (root / path).read_bytes() for path in sizes_below(root)} == {
        path: (local / path).read_bytes() for path in sizes_below(local)
    }


# ---- what is refused ----------------------------------------------------------------------------------------------------

DASK_WORKER = "import sys; {body}; from distributed.cli.dask_worker import main; main(sys.argv[1:])"


@contextmanager
def odd_worker(
    harness: Harness, address: str, body: str = "pass", *, hidden: Path | None = None, more: tuple[str, ...] = ()
) -> Iterator[str]:
    """A worker alone at the scheduler, in an environment of its own; gives its address.

    Parameters
    ----------
    body
        Python source that runs first.
    hidden
        A folder that is empty where the worker runs: a mount of its own.
    """
    from distributed import Client

    command = [sys.executable, "-c", DASK_WORKER.format(body=body), *worker_arguments(address, harness.folder, *more)]
    if hidden is not None:
        command = ["unshare", "-r", "-m", "sh", "-c", f'mount -t tmpfs none {hidden} && exec "$@"', "sh", *command]
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process,
        Client(address, set_as_default=False) as client,
    ):
        try:
            client.wait_for_workers(1, timeout=60)
            yield next(iter(client.scheduler_info(n_workers=-1)["workers"]))
        finally:
            process.kill()
            deadline = time.monotonic() + 30
            while client.scheduler_info(n_workers=-1)["workers"] and time.monotonic() < deadline:
                time.sleep(0.05)


@pytest.fixture(scope="module")
def lone_scheduler(cluster: tuple[str, list[Process]]) -> str:
    """The scheduler without the workers."""
    address, workers = cluster
    for worker in workers:
        if worker.child is not None:
            worker.kill()
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        deadline = time.monotonic() + 30
        while client.scheduler_info(n_workers=-1)["workers"] and time.monotonic() < deadline:
            time.sleep(0.05)
    return address


def refused(capsys: pytest.CaptureFixture[str], command: list[str], *, within_s: float = 60) -> str:
    """Run a command that is to be refused; return its last line. The time is that of imports on a busy machine."""
    capsys.readouterr()
    began = time.monotonic()
    assert main(command) == 2
    assert time.monotonic() - began < within_s
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("sys.modules['neuronlake'] = None", "lacks neuronlake: pip install 'neuronlake[extract,cluster]' there"),
        (
            "import importlib.metadata as m; real = m.version; "
            "m.version = lambda name: '0.9' if name == 'torch' else real(name)",
            "has torch 0.9, here ",
        ),
    ],
)
def test_a_worker_with_other_packages_is_named(
    harness: Harness, inputs: list[str], lone_scheduler: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    body: str, message: str,
) -> None:  # fmt: skip
    command = ["extract", str(tmp_path / "a.lake"), *inputs, "--scheduler", lone_scheduler]
    with odd_worker(harness, lone_scheduler, body) as worker:
        assert f"neuronlake: worker {worker} {message}" in refused(capsys, command)
    assert not (tmp_path / "a.lake").exists()


def test_a_worker_that_is_lost_while_it_is_asked_is_not_missed(
    harness: Harness, inputs: list[str], lone_scheduler: str, tmp_path: Path, expected: dict[str, bytes], client: Process
) -> None:
    from distributed import Client

    body = "import os, neuronlake.extractor.cluster_worker as worker; worker.examine = lambda *_: os._exit(1)"
    with odd_worker(harness, lone_scheduler, body), Client(lone_scheduler, set_as_default=False) as look:
        (good,) = start_workers(harness, lone_scheduler, 1)
        look.wait_for_workers(2, timeout=60)
        client.start(arguments=["extract", str(tmp_path / "a.lake"), *inputs, "--scheduler", lone_scheduler], status=0)
        assert client.wait() == 0, harness.log()
        assert len(look.scheduler_info(n_workers=-1)["workers"]) == 1
        good.kill()
    assert_same(tmp_path / "a.lake", expected)


def can_mount() -> bool:
    return subprocess.run(["unshare", "-r", "-m", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(shutil.which("unshare") is None or not can_mount(), reason="no mounts of one's own here")
def test_a_worker_without_the_model_or_the_lake_is_named(
    harness: Harness, inputs: list[str], lone_scheduler: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["extract", str(tmp_path / "a.lake"), *inputs, "--scheduler", lone_scheduler]
    with odd_worker(harness, lone_scheduler, hidden=harness.folder / "model") as worker:
        line = refused(capsys, command)
        assert f"worker {worker} cannot extract: {harness.folder / 'model'} is not a model" in line
        assert not (tmp_path / "a.lake").exists()
    with odd_worker(harness, lone_scheduler, hidden=tmp_path) as worker:
        line = refused(capsys, command)
        assert f"worker {worker} sees no lake at {tmp_path / 'a.lake'}: it must be on a file system" in line
    assert open_lake(tmp_path / "a.lake").blocks == ()  # planned; the same command goes on


def test_resources_are_asked_of_those_who_declare_them(
    harness: Harness, inputs: list[str], lone_scheduler: str, tmp_path: Path, expected: dict[str, bytes],
    capsys: pytest.CaptureFixture[str], client: Process,
) -> None:  # fmt: skip
    root = tmp_path / "a.lake"
    command = ["extract", str(root), *inputs, "--scheduler", lone_scheduler]
    assert f"no worker has connected to {lone_scheduler} for 10 s: start some with `dask worker" in refused(capsys, command)
    with odd_worker(harness, lone_scheduler, more=("--resources", "GPU=1")):
        line = refused(capsys, [*command, "--worker-resources", "GPU=2"])
        assert "no worker declares GPU=2: they declare GPU=1; start workers with `dask worker … --resources GPU=2`" in line
        client.start(arguments=command, status=0)
        assert client.wait() == 0, harness.log()
    assert_same(root, expected)


def test_a_lake_that_somebody_has_alone_is_refused(
    harness: Harness, inputs: list[str], lone_scheduler: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with odd_worker(harness, lone_scheduler), writing(tmp_path / "a.lake"):
        command = ["extract", str(tmp_path / "a.lake"), *inputs, "--scheduler", lone_scheduler]
        assert "that has the lake to itself" in refused(capsys, command)


def test_a_scheduler_that_does_not_answer_is_one_line(
    inputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["extract", str(tmp_path / "a.lake"), *inputs, "--scheduler"]
    address = f"tcp://127.0.0.1:{free_port()}"
    assert f"no Dask scheduler answers at {address} within 5 s" in refused(capsys, [*command, address], within_s=30)
    assert "is no address of a scheduler" in refused(capsys, [*command, "localhost"])
    with (
        pytest.raises(InputError, match="no Dask scheduler answers"),
        connect(ClusterSettings(address="ftp://nowhere:1", model="m"), ExtractSettings()),
    ):
        raise AssertionError("connected")
    assert not (tmp_path / "a.lake").exists()


def test_versions_are_compared_by_name() -> None:
    ours = tuple((name, "1.0") for name in PACKAGES)
    assert unlike(ours, ours) is None
    lacking = tuple((name, None if name in ("torch", "numpy") else "1.0") for name in PACKAGES)
    assert unlike(lacking, ours) == "lacks torch, numpy: pip install 'neuronlake[extract,cluster]' there"
    assert unlike(ours, lacking) is None  # what is not here is not compared
    older = tuple((name, "0.9" if name == "numpy" else "1.0") for name in PACKAGES)
    assert unlike(older, ours) == "has numpy 0.9, here 1.0: install the same versions everywhere"


def test_a_finished_lake_needs_no_worker_task(
    harness: Harness, inputs: list[str], lone_scheduler: str, expected: dict[str, bytes], client: Process
) -> None:
    root = harness.folder / "whole.lake"
    with odd_worker(harness, lone_scheduler):
        client.start(arguments=["extract", str(root), *inputs, "--scheduler", lone_scheduler], status=0)
        assert client.wait() == 0, harness.log()
    assert_same(root, expected)
    assert verify(root, full=True).ok


def test_a_scheduler_that_is_lost_ends_the_run_and_it_goes_on_later(
    harness: Harness, inputs: list[str], expected: dict[str, bytes], client: Process
) -> None:
    """Its own cluster: the others need theirs."""
    root = harness.folder / "lost.lake"
    scheduler, address = start_scheduler(harness)
    start_workers(harness, address, 1)
    client.start(arguments=["extract", str(root), *inputs, "--scheduler", address], status=2)
    deadline = time.monotonic() + 120
    while not list((root / "activations").rglob("c.*")) and time.monotonic() < deadline:
        time.sleep(0.002)
    scheduler.kill()
    began = time.monotonic()
    assert client.wait() == 0, harness.log()
    assert time.monotonic() - began < 60
    assert f"neuronlake: the scheduler at {address} " in harness.log()
    assert_whole(root)
    client.start(arguments=["extract", str(root), *inputs], status=0)  # without any cluster
    assert client.wait() == 0, harness.log()
    assert_same(root, expected)
