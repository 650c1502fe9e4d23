"""Questions on a Dask cluster: the same answers, the same worker for the same part, and workers that die."""

import functools
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from distributed import LocalCluster, get_worker
from lakes import synthetic_lake

from neuronlake.analysis import (
    coactivation,
    compute_statistics,
    firing_neurons,
    permutation_test,
    probe_sweep,
    refine,
    similar_tokens,
)
from neuronlake.analysis.chosen_rows import choose_rows
from neuronlake.analysis.cluster import Cluster
from neuronlake.analysis.column_pass import pieces
from neuronlake.analysis.execute import Parts, run_all
from neuronlake.analysis.placement import place_parts
from neuronlake.analysis.sketch import sketch_neurons
from neuronlake.cli.main import main
from neuronlake.store import DamageError, InputError, open_lake
from neuronlake.store.layout import shard_path


@pytest.fixture(scope="module")
def workers():
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def cluster(workers):
    with Cluster(workers.scheduler_address) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    root = tmp_path_factory.mktemp("lakes") / "a.lake"
    synthetic_lake(root, tokens=600, layers=6, neurons=70, encoding="int8a")
    return root


@pytest.fixture
def lake(original, tmp_path):
    return open_lake(shutil.copytree(original, tmp_path / "a.lake"))


def files(folder: Path) -> dict[str, bytes]:
    """Contents of all files."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found
    return found


def test_answers_and_what_is_kept_are_those_of_threads(lake, cluster, tmp_path):
    other = open_lake(shutil.copytree(lake.path, tmp_path / "b.lake"))
    seen = []
    answers = []
    for each, scheduler in ((lake, None), (other, cluster)):
        statistics = compute_statistics(
            each, scheduler=scheduler, progress=None if scheduler is None else lambda *done: seen.append(done)
        )
        again = compute_statistics(open_lake(each.path), also=["quantiles"], scheduler=scheduler)
        tokens = choose_rows(each, where="upos='NOUN'")
        answers.append(
            {
                "statistics": statistics,
                "requested": again,
                "exact": refine(each, statistics, "auroc", top=2, scheduler=scheduler),
                "permuted": permutation_test(each, statistics, "cohen_d", permutations=5, scheduler=scheduler),
                "correlation": coactivation(each, [(1, 5), (0, 2)], scheduler=scheduler),
                "sketch": sketch_neurons(each, scheduler=scheduler).arrays["codes"].read_part(3),
                "tokens": similar_tokens(each, 30, 2, 5, scheduler=scheduler),
                "firing": firing_neurons(each, tokens, 5, scheduler=scheduler),
                "probes": probe_sweep(each, layers=[0, 1], classifier="lda", scheduler=scheduler).table(),
            }
        )
    for name, expected in answers[0].items():
        found = answers[1][name]
        if hasattr(expected, "identical"):
            assert found.identical(expected), name
        elif isinstance(expected, np.ndarray):
            np.testing.assert_array_equal(found, expected)
        else:
            assert found == expected, name
    assert seen == [(done, len(pieces(lake, lake.layers))) for done in range(1, 19)]
    # the client alone writes, and the bytes of one process
    assert files(lake.path) == files(other.path)


def where(place: int) -> str:
    """Which worker this runs on."""
    time.sleep(0.01 + place * 1e-6)
    return str(get_worker().address)


def test_a_second_question_asks_the_same_worker_for_the_same_block(lake, cluster):
    blocks = [block for _ in range(3) for block in lake.blocks]  # of three layers, say
    arguments = [{"place": place} for place in range(len(blocks))]
    parts = Parts.of_blocks(lake, blocks)
    first, second = (run_all(where, arguments, parts=parts, scheduler=cluster) for _ in range(2))
    owners = place_parts(lake.blocks, cluster.threads())
    expected = [owners[block] for block in blocks]
    assert len(set(expected)) == 2
    # whoever is done first helps the other with its last pieces
    for found in (first, second):
        assert np.mean([one == own for one, own in zip(found, expected, strict=True)]) > 0.7


def test_whoever_is_idle_takes_the_last_pieces(lake, cluster):
    block = lake.blocks[0]
    arguments = [{"place": place} for place in range(40)]
    found = run_all(where, arguments, parts=Parts.of_blocks(lake, [block] * 40), scheduler=cluster.client)
    assert len(set(found)) == 2


def die(root: str, place: int) -> int:
    """Kill the worker that runs this, the first time."""
    if place == 3 and not Path(root, "died").exists():
        Path(root, "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.01)
    return place * place


def square(place: int) -> int:
    """Some work."""
    time.sleep(0.01)
    return place * place


@pytest.mark.parametrize("victims", [1, 2])
def test_a_question_outlives_its_workers(lake, workers, victims):
    expected = compute_statistics(lake, keep=False)
    with Cluster(workers.scheduler_address) as cluster:
        doomed = list(cluster.client.run(os.getpid).values())[:victims]

        def kill(done: int, total: int) -> None:
            if done == 2 < total:
                for each in doomed:
                    os.kill(each, signal.SIGKILL)

        found = compute_statistics(lake, scheduler=cluster, progress=kill)
        assert found.drop_attrs().identical(expected.drop_attrs())
        assert not set(doomed) <= set(cluster.client.run(os.getpid).values())


def test_results_that_are_lost_while_they_are_fetched_are_computed_again(workers, monkeypatch):
    arguments = [{"place": place} for place in range(20)]
    with Cluster(workers.scheduler_address) as cluster:
        fetch, killed = cluster.client.gather, []

        def gather(futures):
            if not killed:
                killed.extend(cluster.client.run(os.getpid).values())
                for each in killed:
                    os.kill(each, signal.SIGKILL)
            return fetch(futures)

        monkeypatch.setattr(cluster.client, "gather", gather)
        assert run_all(square, arguments, scheduler=cluster) == [place**2 for place in range(20)]
        assert len(killed) == 2


def test_a_piece_whose_worker_dies_is_done_again(workers, tmp_path):
    arguments = [{"place": place} for place in range(20)]
    found = run_all(functools.partial(die, str(tmp_path)), arguments, scheduler=workers.scheduler_address)
    assert found == [place**2 for place in range(20)]


def perish(signal_number: int) -> None:
    """Kill the worker that runs this, always."""
    os.kill(os.getpid(), signal_number)


def test_a_piece_that_kills_every_worker_is_given_up(workers):
    workers.scheduler.allowed_failures = 0
    try:
        with pytest.raises(
            InputError, match=r"1 workers died over the same piece of work \(signal_number 9\), at last tcp://"
        ):
            run_all(perish, [{"signal_number": 9}], scheduler=workers.scheduler_address)
    finally:
        workers.scheduler.allowed_failures = 3


def test_damage_arrives_as_such(lake, cluster):
    shard = lake.path / shard_path(lake.site, 2, lake.blocks[1])
    content = bytearray(shard.read_bytes())
    content[5] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(DamageError) as here:
        compute_statistics(lake, keep=False)
    with pytest.raises(DamageError, match=re.escape(str(here.value))):
        compute_statistics(lake, keep=False, scheduler=cluster)


def test_a_worker_that_does_not_see_the_lake_is_named(lake, cluster, monkeypatch):
    monkeypatch.chdir(lake.path.parent)
    here = open_lake("/proc/self/cwd/a.lake")  # another folder for every process
    with pytest.raises(InputError, match=r"worker tcp://127\.0\.0\.1:\d+ does not see the lake as this process.*a\.lake"):
        compute_statistics(here, keep=False, scheduler=cluster)


def test_the_command_shows_the_dashboard_once(lake, workers, capsys):
    arguments = ["rank", str(lake.path), "--scheduler", workers.scheduler_address, "--permutations", "5"]
    assert main(arguments) == 0
    shown, said = capsys.readouterr()
    assert said.count(f"dashboard of the cluster: {workers.dashboard_link}") == 1
    assert main([*arguments[:2], "--permutations", "5"]) == 0
    assert capsys.readouterr()[0] == shown
    assert main([*arguments, "--json"]) == 0
    assert "dashboard" not in "".join(capsys.readouterr())
