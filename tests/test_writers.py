"""Several processes extract one lake at once, with nothing between them but its commits."""

import fcntl
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from lakes import make_spec, plan_lake, random_sentences, synthetic_lake, write_blocks
from many_writers import Harness, Process, assert_same, assert_whole, contents, kill_at_random
from tiny import conllu, make_model, some_sentences

import neuronlake.store.layout as layout
from neuronlake.cli.main import main
from neuronlake.extractor import ExtractSettings
from neuronlake.store import BlockWriter, InputError, StorageError, complete_index, open_lake, repair, verify
from neuronlake.store.claims import Claims
from neuronlake.store.commits import commit_checksum, read_commit
from neuronlake.store.index import segments
from neuronlake.store.kept import INDEX, STATISTICS, discard, kept_results
from neuronlake.store.lock import (
    CLAIMS,
    COMPLETING,
    LOCK_FILE,
    PLANNING,
    BusyError,
    Patience,
    refuse_second_writer,
    writer_of,
    writing,
)

HOLD = """
import sys, time
from pathlib import Path
from neuronlake.store.claims import Claims
from neuronlake.store.lock import writing
with writing(Path(sys.argv[1]), shared=True) as locks, Claims(Path(sys.argv[1]), locks=locks) as claims:
    assert claims.take(3)
    print("locked", flush=True)
    time.sleep(60)
"""


def hold(root: Path) -> subprocess.Popen[str]:
    """Start a process that holds the lake to add blocks, and is at block 3, when this returns."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


# ---- lock and claims ----------------------------------------------------------------------------------------------------


def test_several_add_blocks_and_whoever_needs_the_lake_alone_is_told_of_all(tmp_path: Path) -> None:
    root = tmp_path / "a.lake"
    with writing(root, shared=True) as locks:
        assert locks
        other = hold(root)
        both = (
            rf"is being written by process {os.getpid()} on host .*, process {other.pid} on host .*needs the lake to itself"
        )
        with pytest.raises(BusyError, match=both), writing(root):
            raise AssertionError("not alone")
        assert str(writer_of(root)).count("process ") == 2
        refuse_second_writer(root, shared=True)
        with pytest.raises(BusyError):
            refuse_second_writer(root)
        end(other)  # killed: it did not say that it left
        assert str(writer_of(root)).count("process ") == 1
        with writing(root, shared=True):
            assert str(writer_of(root)).count("process ") == 2
        assert str(writer_of(root)).count("process ") == 1
        assert (root / CLAIMS / "000003").exists()
    assert not root.exists()  # the last one has removed lock, what the killed one claimed, and the empty folder
    with writing(root):
        with pytest.raises(BusyError, match="that has the lake to itself; wait for it"), writing(root, shared=True):
            raise AssertionError("beside one that is alone")
        with pytest.raises(BusyError):
            refuse_second_writer(root, shared=True)


def test_a_step_that_passes_is_waited_for(tmp_path: Path) -> None:
    root = tmp_path / "a.lake"
    said: list[str] = []
    inside, leave = threading.Event(), threading.Event()

    def plan(doing: str) -> None:
        with writing(root, doing=doing):
            inside.set()
            leave.wait(30)

    for doing in (PLANNING, COMPLETING):
        said.clear()
        inside.clear()
        leave.clear()
        thread = threading.Thread(target=plan, args=(doing,))
        thread.start()
        assert inside.wait(10)
        refuse_second_writer(root, shared=True)  # worth waiting for
        with (
            pytest.raises(BusyError, match=rf"waited \d s: .*{doing}"),
            writing(root, shared=True, patience=Patience(seconds=0.3)),
        ):
            raise AssertionError("not waited")
        threading.Timer(0.5, leave.set).start()
        with writing(root, shared=True, patience=Patience(seconds=30, say=said.append)):
            assert leave.is_set()
        thread.join()
        assert len(said) == 1
        assert f"process {os.getpid()}" in said[0]
        assert doing in said[0]


def test_many_share_and_one_is_alone_at_full_speed(tmp_path: Path) -> None:
    """Threads that take the lock both ways: never one alone beside another, and never two alone."""
    root = tmp_path / "a.lake"
    alone = shared = most = turns = 0
    counting = threading.Lock()

    def work(number: int) -> None:
        nonlocal alone, shared, most, turns
        rng = random.Random(number)
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            sharing = rng.random() < 0.7
            try:
                with writing(root, shared=sharing):
                    with counting:
                        alone, shared, turns = alone + (not sharing), shared + sharing, turns + 1
                        most = max(most, shared)
                        assert alone == 0 or (alone == 1 and shared == 0)
                    time.sleep(rng.uniform(0, 0.01))
                    with counting:
                        alone, shared = alone - (not sharing), shared - sharing
            except BusyError:
                pass

    failures: list[object] = []
    before = threading.excepthook
    threading.excepthook = failures.append
    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        threading.excepthook = before
    assert not failures
    assert most > 1
    assert turns > 20
    assert writer_of(root) is None
    with writing(root):  # whatever was left goes with the next one
        pass
    assert not root.exists()


def test_a_claim_is_of_one_and_ends_with_its_process(tmp_path: Path) -> None:
    with Claims(tmp_path, locks=True) as mine, Claims(tmp_path, locks=True) as others:
        assert mine.take(0)
        assert not others.take(0)
        assert list(others.left(range(3))) == [1, 2]
        mine.release()
        assert others.take(0)
        process = hold(tmp_path)
        assert list(mine.left(range(5))) == [4]
        end(process)
        assert list(mine.left([3])) == [3]
    assert not (tmp_path / CLAIMS).exists()


def test_what_was_committed_meanwhile_is_left_out_and_what_others_gave_up_is_taken(tmp_path: Path) -> None:
    (tmp_path / "commits").mkdir()
    with Claims(tmp_path, locks=True) as mine, Claims(tmp_path, locks=True) as others:
        assert others.take(1)
        assert others.take(2)
        found = mine.left(range(6))
        assert next(found) == 0
        (tmp_path / layout.commit_path(3)).touch()
        assert next(found) == 4
        (tmp_path / layout.commit_path(2)).touch()
        others.release()
        assert list(found) == [5, 1]


def test_without_locks_blocks_come_in_an_order_of_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    root = tmp_path / "a.lake"
    with writing(root, shared=True) as locks:
        assert not locks
        orders = []
        for _ in range(2):
            with Claims(root, locks=locks) as claims:
                assert claims.take(7)
                orders.append(list(claims.left(range(100))))
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(100))
    assert len({tuple(orders[0]), tuple(orders[1]), tuple(range(100))}) == 3
    assert not root.exists()


# ---- the same block twice -------------------------------------------------------------------------------------------------


@pytest.fixture
def twice(tmp_path: Path) -> Iterator[tuple[Path, Callable[[float], BlockWriter]]]:
    """A planned lake, and what submits its block 0 with values of a given size through a writer of its own."""
    root = tmp_path / "a.lake"
    spec = make_spec(layers=2, neurons=10, block_rows=16, chunk_neurons=4, encoding="float16")
    plan_lake(root, spec, random_sentences(np.random.default_rng(3), 12, tags=("ADJ", "NOUN")))
    writers = []

    def submit(scale: float) -> BlockWriter:
        writer = BlockWriter(root, spec, threads=1, overlap_encoding=False)
        writers.append(writer)
        rows = np.arange(12)
        buffer = writer.buffer(12)
        for layer in spec.layers:
            values = np.random.default_rng(layer).standard_normal((12, 10)).astype(np.float32)
            buffer.put(layout.DEFAULT_SITE, layer, values * np.float32(scale), rows, rows)
        writer.submit(0, 12, buffer, {"backend": f"scale {scale}"})
        return writer

    yield root, submit
    for writer in writers:
        writer.__exit__(StorageError, None, None)


def test_two_commits_of_the_same_bytes_are_one(twice: tuple[Path, Callable[[float], BlockWriter]]) -> None:
    root, submit = twice
    submit(1).flush()
    before = contents(root)
    second = submit(1)
    second.flush()
    assert contents(root) == before
    assert not second.overtaken


def test_of_two_commits_with_other_bytes_the_one_on_the_disk_counts(
    twice: tuple[Path, Callable[[float], BlockWriter]],
) -> None:
    root, submit = twice
    submit(1).flush()
    record, shards = read_commit(root, 0), contents(root)
    submit(2).flush()  # its files have replaced those of the first: its record must, too
    assert read_commit(root, 0).provenance["backend"] == "scale 2"
    assert verify(root, full=True).ok
    # the first one's files are in place again before the second one comes to its commit
    from neuronlake.store.commits import write_commit

    theirs = read_commit(root, 0)
    assert not write_commit(root, record)
    assert read_commit(root, 0) == theirs
    assert verify(root, full=True).ok
    # files of both are mixed: nothing is committed
    path = record.files[0].path
    (root / path).write_bytes(shards[path])
    with pytest.raises(StorageError, match=r"block 0 .*two processes at once.*mixed.*run the same command again"):
        write_commit(root, record)
    assert open_lake(root).blocks == ()
    assert verify(root, full=True).ok
    submit(1).flush()
    assert contents(root)[path] == shards[path]
    assert verify(root, full=True).ok


def test_the_index_of_blocks_that_others_commit_meanwhile_stays(tmp_path: Path) -> None:
    """Completing looks at the lake as it was opened: what others add is neither merged nor removed."""
    root = tmp_path / "a.lake"
    spec = make_spec(layers=2, neurons=10, block_rows=16, chunk_neurons=4, encoding="float16")
    plan, rows = plan_lake(root, spec, random_sentences(np.random.default_rng(3), 60, tags=("ADJ", "NOUN")))
    values = np.random.default_rng(0).standard_normal((2, len(rows), 10)).astype(np.float32)
    write_blocks(root, spec, plan, rows, values, blocks=[0, 1])
    early = open_lake(root)
    write_blocks(root, spec, plan, rows, values, blocks=[2])
    (new,) = segments(root, spec.sites[0], {2: commit_checksum(root, 2)})
    complete_index(early)
    assert {path.name for path in (root / "index").iterdir()} >= {new.name}
    complete_index(open_lake(root))
    (whole,) = (root / "index").iterdir()
    assert len(segments(root, spec.sites[0], {block: commit_checksum(root, block) for block in range(3)})[0].blocks) == 3
    assert whole.name.startswith("blocks-mlp.post-000000-000002-")


# ---- whole extractions ----------------------------------------------------------------------------------------------------


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
        *("--block-rows", "256", "--batch-tokens", "256"),
    ]


@pytest.fixture(scope="module")
def pair(harness: Harness, inputs: list[str]) -> list[Process]:
    return [harness.process(["extract", str(harness.folder / "whole.lake"), *inputs]) for _ in range(2)]


@pytest.fixture(scope="module")
def expected(harness: Harness, pair: list) -> dict[str, bytes]:
    pair[0].start()
    assert pair[0].wait() == 0, harness.log()
    return contents(harness.folder / "whole.lake")


def test_two_killed_at_random_make_the_lake_of_one(
    harness: Harness, inputs: list[str], pair: list[Process], expected: dict[str, bytes]
) -> None:
    """The long form is `python -m benchmarks writers`."""
    counts = kill_at_random(
        pair,
        lambda number: harness.folder / f"killed-{number}.lake",
        lambda root: ["extract", str(root), *inputs],
        expected,
        rounds=6,
        pause_s=1.0,
        rng=random.Random(1),
    )
    assert counts["kills"] == 6


def test_a_run_killed_before_it_kept_what_it_gathered_is_made_up_for(
    harness: Harness, inputs: list[str], pair: list[Process], expected: dict[str, bytes]
) -> None:
    root = harness.folder / "ungathered.lake"
    for _ in range(2):
        pair[0].start(arguments=["extract", str(root), *inputs])
        assert pair[0].wait() == 0, harness.log()
        assert_same(root, expected)
        assert len(kept_results(root)) == 1
        for kept in (STATISTICS, INDEX):
            for name in kept_results(root, kept=kept):
                if kept == STATISTICS or name.startswith("tags-"):
                    discard(root, name, kept=kept)
    pair[0].start(arguments=["extract", str(root), *inputs, "--stats", "none"])
    assert pair[0].wait() == 0, harness.log()
    assert not kept_results(root)


def test_neither_clocks_nor_missing_locks_matter(
    harness: Harness, inputs: list[str], pair: list[Process], expected: dict[str, bytes]
) -> None:
    """Two that know nothing of each other, a year apart, on files whose times mean nothing."""
    root = harness.folder / "clocks.lake"
    year = 365 * 86400
    for process, shift in zip(pair, (-year, year), strict=True):
        process.start(arguments=["extract", str(root), *inputs, "--blocks", "0:2"], clock_s=shift, locks=False)
    assert [process.wait() for process in pair] == [0, 0], harness.log()
    for number, path in enumerate(sorted(root.rglob("*"))):
        os.utime(path, (number * 1e6, number * 1e6))
    for process in pair:
        process.start(arguments=["extract", str(root), *inputs])
    assert [process.wait() for process in pair] == [0, 0], harness.log()
    for process in pair:
        process.request |= {"clock_s": 0, "locks": True}
    assert repair(root, full=True).ok
    assert_same(root, expected)


def test_two_that_begin_a_lake_with_other_settings_make_one_plan(
    harness: Harness, inputs: list[str], pair: list[Process]
) -> None:
    root = harness.folder / "begun.lake"
    pair[0].start(arguments=["extract", str(root), *inputs])
    pair[1].start(arguments=["extract", str(root), *inputs, "--context", "document", "--on-long", "split"], status=2)
    statuses = [process.wait() for process in pair]
    pair[1].request["status"] = 0
    log = harness.log()
    if statuses != [0, 0]:  # the second was first
        assert statuses == [1, 1], log
    assert "exists with a different plan" in log
    assert_whole(root)
    assert open_lake(root).complete


def test_shards_divide_the_blocks(
    harness: Harness, inputs: list[str], pair: list[Process], expected: dict[str, bytes]
) -> None:
    root = harness.folder / "shards.lake"
    pair[0].start(arguments=["extract", str(root), *inputs, "--shard", "1/3"])
    assert pair[0].wait() == 0, harness.log()
    blocks = open_lake(root).plan.blocks
    assert open_lake(root).blocks == tuple(range(1, blocks, 3))
    assert not (root / STATISTICS).exists()  # the one that completes the lake keeps them
    for process, shard in zip(pair, ("0/3", "2/3"), strict=True):
        process.start(arguments=["extract", str(root), *inputs, "--shard", shard])
    assert [process.wait() for process in pair] == [0, 0], harness.log()
    pair[0].start(arguments=["extract", str(root), *inputs, "--shard", "90/100"])  # an array larger than the plan
    assert pair[0].wait() == 0, harness.log()
    assert_same(root, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "3/3"], "expected K/N with K from 0 to N-1, for example 0/16 to 15/16"),
        (["--shard", "3"], "expected K/N"),
        (["--shard=-1/3"], "expected K/N"),
        (["--shard", "0/3", "--blocks", "0:2"], "not allowed with argument"),
        (["--shard", "0/3", "--scheduler", "tcp://127.0.0.1:1"], "leave it out, the workers share the blocks"),
        (["--worker-resources", "GPU=1"], "name its --scheduler, too"),
        (["--worker-resources", "GPU"], "expected NAME=N, for example GPU=1"),
        (["--wait", "soon"], "expected seconds"),
    ],
)
def test_wrong_use_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    command = ["extract", str(tmp_path / "a.lake"), "--model", "m", "--conllu", "t.conllu", *options]
    try:
        code = main(command)
    except SystemExit as error:
        code = int(str(error.code))
    err = capsys.readouterr().err
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "a.lake").exists()


def test_settings_refuse_what_the_command_refuses() -> None:
    with pytest.raises(InputError, match="counted from 0, got 3/3"):
        ExtractSettings(shard=(3, 3))
    with pytest.raises(InputError, match="both choose blocks"):
        ExtractSettings(shard=(0, 3), blocks=(0, 1))
    with pytest.raises(InputError, match="wait_s must be at least 0"):
        ExtractSettings(wait_s=-1)


def test_verify_beside_writers_takes_nothing_for_a_leftover(tmp_path: Path) -> None:
    root = tmp_path / "a.lake"
    synthetic_lake(root)
    process = hold(root)
    report = verify(root, full=True)
    assert f"process {process.pid}" in str(report.writer)
    assert (report.ok, report.leftovers, report.unknown_files) == (True, [], [])
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (root / LOCK_FILE).exists()
    report = verify(root, full=True)
    assert (report.writer, report.leftovers, report.unknown_files) == (None, [], [])
    assert repair(root).ok
    assert not (root / CLAIMS).exists()
    assert not (root / LOCK_FILE).exists()


def test_a_repair_that_has_the_lake_alone_removes_what_other_hosts_left(tmp_path: Path) -> None:
    root = tmp_path / "a.lake"
    synthetic_lake(root)
    before = contents(root)
    left = root / "activations" / "mlp.post" / "0" / ".c.0.0.node7.4711.0a1b2c3d.tmp"
    left.write_bytes(b"half a shard")
    (root / "thesis.txt").write_text("kept")
    report = verify(root)
    assert (report.leftovers, sorted(report.unknown_files)) == ([], [left.relative_to(root).as_posix(), "thesis.txt"])
    assert repair(root).ok
    assert contents(root) == {**before, "thesis.txt": b"kept"}
