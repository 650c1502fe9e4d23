"""Extractions beside each other, anything else alone; whatever becomes of it, the next can start; readers never notice."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from lakes import synthetic_lake
from tiny import conllu, make_model, some_sentences

from neuronlake.cli.main import main
from neuronlake.store import InputError, StorageError, open_lake, verify
from neuronlake.store.lock import LOCK_FILE, writer_of, writing

HOLD = """
import sys, time
from pathlib import Path
from neuronlake.store.lock import writing
with writing(Path(sys.argv[1])):
    print("locked", flush=True)
    {body}
"""


def hold(root: Path, body: str = "time.sleep(60)") -> subprocess.Popen[str]:
    """Start a process that has the lock when this returns."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(body=body), str(root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def end(process: subprocess.Popen[str], how: int = signal.SIGKILL) -> None:
    process.send_signal(how)
    process.communicate()


def test_a_second_writer_is_told_who_is_first_and_a_killed_one_leaves_the_lake_free(tmp_path: Path) -> None:
    root = tmp_path / "a.lake"
    synthetic_lake(root)
    first = hold(root)
    began = time.monotonic()
    message = rf"a\.lake is being written by process {first.pid} on host .*: this needs the lake to itself; wait for it"
    with pytest.raises(InputError, match=message), writing(root):
        raise AssertionError("two writers")
    assert time.monotonic() - began < 1
    assert f"process {first.pid} on host" in str(writer_of(root))
    assert verify(root).ok
    end(first)
    assert (root / LOCK_FILE).exists()
    assert writer_of(root) is None
    report = verify(root, full=True)
    assert report.ok
    assert (report.unknown_files, report.leftovers, report.writer) == ([], [], None)
    with writing(root):
        assert json.loads((root / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert not (root / LOCK_FILE).exists()


def test_the_lock_goes_with_an_exception_and_so_does_an_empty_folder(tmp_path: Path) -> None:
    root = tmp_path / "a.lake"
    with pytest.raises(KeyboardInterrupt), writing(root):
        raise KeyboardInterrupt
    assert not root.exists()
    root.mkdir()
    (root / "thesis.txt").write_text("kept")
    with writing(root):
        pass
    assert [path.name for path in root.iterdir()] == ["thesis.txt"]


def test_many_writers_are_never_two(tmp_path: Path) -> None:
    """Threads that lock, count and unlock at full speed: files come and go under them, and no two are ever inside."""
    root = tmp_path / "a.lake"
    inside, most, turns, refused = 0, 0, 0, 0
    counting = threading.Lock()

    def work() -> None:
        nonlocal inside, most, turns, refused
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            try:
                with writing(root):
                    with counting:
                        inside, turns = inside + 1, turns + 1
                        most = max(most, inside)
                    time.sleep(0.1 if turns % 10 == 0 else 0.0005)
                    with counting:
                        inside -= 1
            except InputError:
                with counting:
                    refused += 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert turns > 20
    assert refused > 0
    assert not root.exists()


def test_a_forked_worker_does_not_keep_the_lock_of_a_killed_process(tmp_path: Path) -> None:
    body = "import os\n    if os.fork() == 0:\n        time.sleep(8)\n        os._exit(0)\n    print('forked', flush=True)\n"
    process = hold(tmp_path, body + "    time.sleep(60)")
    assert process.stdout is not None
    assert process.stdout.readline() == "forked\n"
    process.kill()
    process.wait()  # not communicate: the child holds the pipe open
    with writing(tmp_path):
        pass
    process.stdout.close()
    assert process.stderr is not None
    process.stderr.close()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_file_systems_without_locks_are_written_to_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    root = tmp_path / "a.lake"
    with writing(root):
        assert list(root.iterdir()) == []
        (root / "file").write_text("written")
    assert (root / "file").exists()


def test_what_cannot_be_locked_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file is a file, not a lake"), writing(tmp_path / "file"):
        pass

    def refuse(*_arguments: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StorageError, match=r"could not write to .*: Permission denied"), writing(tmp_path):
        pass


def test_a_reader_during_an_extraction_sees_whole_blocks_and_what_needs_the_lake_alone_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(tmp_path / "model")
    treebank = tmp_path / "big.conllu"
    treebank.write_text(conllu(some_sentences(600)), encoding="utf-8")
    root = tmp_path / "a.lake"
    command = ["extract", str(root), "--model", str(model), "--conllu", str(treebank), "--block-rows", "256"]
    seen: dict[int, np.ndarray] = {}
    counts, refused = [], False
    with subprocess.Popen(
        [sys.executable, "-m", "neuronlake.cli.main", *command, "--batch-tokens", "32"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        while running.poll() is None:
            if not list((root / "commits").glob("*.json")):
                time.sleep(0.01)
                continue
            time.sleep(0.02)
            lake = open_lake(root)
            counts.append(len(lake.blocks))
            seen[lake.blocks[-1]] = lake.read_block(layer=2, block=lake.blocks[-1])
            report = verify(root)
            assert report.ok
            assert not report.unknown_files
            assert not report.leftovers
            if not refused and running.poll() is None and writer_of(root) is not None:
                capsys.readouterr()
                code = main(["index", str(root)])
                err = capsys.readouterr().err
                # it may have ended just now: then this run found nothing to do
                refused = code == 2 and f"is being written by process {running.pid} on host" in err and err.count("\n") == 1
        assert running.wait() == 0, running.stderr
    assert refused
    assert len(set(counts)) > 1, "the reader never saw the lake grow"
    lake = open_lake(root)
    assert lake.complete
    for block, values in seen.items():
        np.testing.assert_array_equal(lake.read_block(layer=2, block=block), values)
    assert not (root / LOCK_FILE).exists()
