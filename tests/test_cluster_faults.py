"""Clusters that are unfit or go away: one clear line within seconds."""

import time

import dask_processes
import pytest

from neuronlake.analysis import cluster as cluster_module
from neuronlake.analysis import cluster_run
from neuronlake.analysis.cluster import Cluster
from neuronlake.analysis.execute import run_all
from neuronlake.cli.main import main
from neuronlake.store import InputError


def installed(folder, name, metadata):
    """Make a folder in which a package seems to be installed."""
    info = folder / f"{name}-0.0.9.dist-info"
    info.mkdir(parents=True)
    if metadata:
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.0.9\n")
    return folder


def nap(place):
    time.sleep(0.05)
    return place


def until_there(address, count=1):
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(count, timeout=60)


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    """A scheduler that cannot import neuronlake: it need not."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['neuronlake'] = None\n")
    with dask_processes.scheduler(path=folder) as (address, _):
        yield address


def test_nobody_there(tmp_path, capsys):
    began = time.monotonic()
    assert main(["rank", str(tmp_path), "--scheduler", "tcp://127.0.0.1:1"]) == 2
    assert capsys.readouterr()[1].startswith("neuronlake: no Dask scheduler answers at tcp://127.0.0.1:1: ")
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("package", "metadata", "message"),
    [
        (
            "neuronlake",
            True,
            r"worker tcp://[\d.:]+ has neuronlake 0\.0\.9, this process \S+: install the same versions",
        ),
        ("duckdb", False, r"worker tcp://127\.0\.0\.1:\d+ lacks duckdb, here \S+: install the same packages everywhere"),
    ],
)
def test_a_worker_with_another_environment_is_named(scheduler, tmp_path, package, metadata, message):
    with dask_processes.worker(scheduler, path=installed(tmp_path, package, metadata)):
        until_there(scheduler)
        with pytest.raises(InputError, match=message):
            Cluster(scheduler)


def test_no_worker_and_then_none_any_more(scheduler, monkeypatch):
    said = []
    monkeypatch.setattr(cluster_module, "_WORKERS_SECONDS", 1)
    monkeypatch.setattr(cluster_run, "_DESERTED_SECONDS", 1)
    with pytest.raises(
        InputError, match=f"no worker has connected to the Dask scheduler at {scheduler} for 1 s: start some"
    ):
        Cluster(scheduler, say=said.append)
    assert said == [f"waiting for a worker to connect to {scheduler}…"]
    with dask_processes.worker(scheduler) as worker:
        until_there(scheduler)

        def kill(done, total):
            if done == 3 < total:
                worker.kill()

        with pytest.raises(InputError, match=r"no worker is connected to tcp://.* any more, with 1?\d of 20 pieces left"):
            run_all(nap, [{"place": place} for place in range(20)], scheduler=scheduler, progress=kill)


def test_a_scheduler_that_goes_away():
    with dask_processes.scheduler() as (address, process), dask_processes.worker(address):
        until_there(address)
        began = []

        def kill(done, total):
            if done == 3 < total:
                began.append(time.monotonic())
                process.kill()

        with pytest.raises(InputError, match=f"the Dask scheduler at {address} is gone"):
            run_all(nap, [{"place": place} for place in range(60)], scheduler=address, progress=kill)
        assert time.monotonic() - began[0] < 20
