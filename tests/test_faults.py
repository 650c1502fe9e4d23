"""No fault loses or alters a value: refused calls, kills and power cuts at every kind of moment of a real writing run.

The tests take a sample; ``python -m benchmarks faults`` takes all.
"""

import errno
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from faults import (
    ERRORS,
    Action,
    Call,
    Faults,
    Killed,
    Reading,
    at,
    no_new_threads,
    on,
    refuse,
    shorten,
    since,
    stop,
)
from powercut import Cut, Disk, cuts, materialise
from writing_run import Work, assert_same, contents, killing_server, promises

from neuronlake.store import InputError, StorageError, open_lake, verify
from neuronlake.store.direct import DirectFile
from neuronlake.store.files import make_folder, sync_ancestors, write_file

TESTS = str(Path(__file__).parent)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return Work().prepare(tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def log(work: Work, tmp_path_factory: pytest.TempPathFactory) -> list[Call | str]:
    folder = tmp_path_factory.mktemp("log")
    with Faults(folder, keep=True) as faults:
        work.write(folder / "a.lake", faults.mark)
    return faults.log


@pytest.fixture
def area(tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """Makes an empty folder for a lake, again and again."""

    def make() -> Path:
        shutil.rmtree(tmp_path / "area", ignore_errors=True)
        (tmp_path / "area").mkdir()
        return tmp_path / "area"

    return make


def write_with_faults(
    work: Work, folder: Path, decide: Callable[[Call], Action | None]
) -> tuple[Faults, StorageError | None]:
    """Write a lake while `decide` interferes; check what is there, then finish it without faults."""
    promised: set[int] = set()
    refused = None
    with no_new_threads(), Faults(folder, decide, sync=False) as faults:
        try:
            work.write(folder / "a.lake", lambda label: promised.add(int(label.split()[1])) if " " in label else None)
        except StorageError as error:
            refused = error
    work.check(folder / "a.lake", planned=False, promised=promised)
    work.finish(folder / "a.lake")
    return faults, refused


# ---- refused calls ------------------------------------------------------------------------------------------------------


def test_every_kind_of_call_may_be_refused_once(work: Work, log: list[Call | str], area: Callable[[], Path]) -> None:
    """One StorageError of one line; what was committed stays; running again gives the undisturbed lake's bytes."""
    calls = [call for call in log if isinstance(call, Call)]
    for number in range(0, len(calls), 7):
        code = ERRORS[number // 7 % len(ERRORS)]
        faults, refused = write_with_faults(work, area(), at(number, refuse(code)))
        (call,) = faults.acted
        if refused is None:
            # a lock is not data; the folder above the lake may be one that we cannot write to
            assert call.path.endswith((".neuronlake.lock", "a.lake", ".")), f"{call.name} {call.path} failed unnoticed"
        else:
            assert "\n" not in str(refused)


def test_a_disk_that_fails_for_good(work: Work, log: list[Call | str], area: Callable[[], Path]) -> None:
    """From some call on everything is refused, the removal of temporary files too: the next run removes them."""
    for number in range(1, len(log) - 8, 23):  # the last calls only give the lock back
        code = ERRORS[number // 23 % len(ERRORS)]
        _, refused = write_with_faults(work, area(), since(number, refuse(code)))
        assert refused is not None, f"call {number} and all after it failed unnoticed"
        assert "\n" not in str(refused)


@pytest.mark.parametrize("count", [100, 4096, 5000])
def test_short_writes_are_continued(work: Work, area: Callable[[], Path], count: int) -> None:
    faults, refused = write_with_faults(work, area(), on(".tmp", shorten(count)))
    assert refused is None
    assert any(call.name == "write" for call in faults.acted)


def test_a_short_write_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    """Whatever the system says next is what the user is told."""

    def decide(call: Call) -> Action | None:
        if call.name != "write":
            return None
        return shorten(1000) if call.offset == 0 else refuse(errno.EFBIG)

    with Faults(tmp_path, decide), pytest.raises(StorageError, match="File too large"):
        write_file(tmp_path, "file", [bytes(100_000)])
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_takes_nothing_ends(tmp_path: Path) -> None:
    with Faults(tmp_path, on("file", shorten(0))), pytest.raises(StorageError, match="Input/output error"):
        write_file(tmp_path, "file", [b"data"])


def test_direct_writes_refused_at_the_first_write(tmp_path: Path) -> None:
    """Some devices open a file for direct writes and then refuse the write: ordinary writes take over."""
    data = np.random.default_rng(0).bytes(10_000)
    refusals: list[Call] = []

    def decide(call: Call) -> Action | None:
        if call.name == "write" and not refusals:
            refusals.append(call)
            return refuse(errno.EINVAL)
        return None

    with Faults(tmp_path, decide):
        if hasattr(os, "O_DIRECT"):
            write_file(tmp_path, "file", [data])
            assert (tmp_path / "file").read_bytes() == data
        else:
            with pytest.raises(StorageError):
                write_file(tmp_path, "file", [data])
    assert refusals


def test_close_is_never_repeated(tmp_path: Path) -> None:
    """A failed close has closed the file: doing it again would close whatever got its number since."""
    file = DirectFile(tmp_path / "file")
    number = file._descriptor
    os.close(number)
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.close()
    other = os.open(tmp_path, os.O_RDONLY)
    assert other == number
    file.close()
    os.fstat(other)
    os.close(other)


def test_reading_that_fails_is_one_clear_error(work: Work, tmp_path: Path) -> None:
    work.finish(tmp_path / "a.lake")
    lake = open_lake(tmp_path / "a.lake")
    for part, action in (
        ("plan/block-", lake.tokens),
        ("words/block-", lake.words),
        ("commits/block-", lambda: lake.commits),
    ):
        with Reading(lambda path, part=part: part in path, errno.EIO), pytest.raises(StorageError) as caught:  # type: ignore[misc]
            action()
        assert "Input/output error" in str(caught.value)
        assert part in str(caught.value)


def test_signals_do_not_disturb_writing(work: Work, area: Callable[[], Path]) -> None:
    """Real ones, every half a millisecond: system calls are interrupted (EINTR) and go on."""
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 5e-4, 5e-4)
    try:
        root = area() / "a.lake"
        work.write(root)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert_same(contents(root), work.whole)


def test_a_real_limit_on_file_size(tmp_path: Path) -> None:
    """RLIMIT_FSIZE in a process of its own: a write is cut short, the next one gets EFBIG."""
    script = """
import resource, signal, sys
from pathlib import Path
from neuronlake.store import StorageError
from neuronlake.store.files import write_file
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
root = Path(sys.argv[1])
write_file(root, "small", [bytes(40_000)])
try:
    write_file(root, "large", [bytes(30_000), bytes(30_000)])
except StorageError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "File too large" in result.stdout, result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    assert (tmp_path / "small").read_bytes() == bytes(40_000)


def test_a_real_read_only_file_system(work: Work, tmp_path: Path) -> None:
    """An unfinished lake on a file system mounted read-only: a clear error, and reading goes on."""
    with pytest.raises(Killed), Faults(tmp_path, on("c.2.0", stop)):
        work.write(tmp_path / "a.lake")
    script = """
import sys; sys.path.insert(0, sys.argv[1])
import pickle
from pathlib import Path
from neuronlake.store import StorageError, open_lake
work, root = pickle.loads(sys.stdin.buffer.read()), Path(sys.argv[2])
try:
    work.write(root)
except StorageError as error:
    print(error)
assert work.check(root, planned=True, promised={0, 1}) == {0, 1}
"""
    mount = 'mount --bind "$2" "$2" && mount -o remount,bind,ro "$2" && exec "$0" -c "$SCRIPT" "$1" "$2/a.lake"'
    result = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, sys.executable, TESTS, str(tmp_path)],
        input=pickle.dumps(work),
        env={**os.environ, "SCRIPT": script},
        capture_output=True,
        check=False,
    )
    message = result.stderr.decode()
    if "Operation not permitted" in message or "unshare failed" in message:
        pytest.skip("this system does not let an ordinary process mount a folder read-only")
    assert result.returncode == 0, message
    assert "Read-only file system" in result.stdout.decode()
    work.finish(tmp_path / "a.lake")


# ---- kills --------------------------------------------------------------------------------------------------------------


def test_kills_at_calls(work: Work, log: list[Call | str], tmp_path: Path) -> None:
    """Real SIGKILLs before, after and in the middle of a call, in a process of its own."""
    calls = sum(isinstance(call, Call) for call in log)
    kills = 0
    with killing_server(work, tmp_path) as server:
        for index, number in enumerate(range(0, calls - 8, 11)):
            folder = tmp_path / str(number)
            (folder / "area").mkdir(parents=True)
            root = folder / "area" / "a.lake"
            server.start(root=str(root), number=number, when=("before", "after", "within")[index % 3])
            assert server.wait() == -signal.SIGKILL, f"call {number} of {calls}"
            kills += 1
            work.check(root, planned=(folder / "planned").exists(), promised=promises(folder))
            work.finish(root)
    assert kills > 20


# ---- power cuts ---------------------------------------------------------------------------------------------------------


def survive(work: Work, cut: Cut, folder: Path) -> None:
    """Check a state after a power cut, then finish the lake."""
    materialise(cut.state, folder)
    try:
        work.check(folder / "a.lake", planned=bool(cut.promised), promised=set(cut.promised))
        work.finish(folder / "a.lake")
    except AssertionError as error:
        raise AssertionError(f"power cut after call {cut.after}: {error}") from error


def test_power_cuts(work: Work, log: list[Call | str], area: Callable[[], Path]) -> None:
    """States after a cut at any moment, as weak as POSIX allows: a seeded sample of those with every kind of loss."""
    rng = np.random.default_rng(5)
    everything = list(cuts(log, rng, random_states=1, each=True))
    assert len(everything) > 1000
    for index in rng.choice(len(everything), size=80, replace=False):
        survive(work, everything[index], area())


def test_whatever_a_commit_rests_on_is_synced_before_it_returns(
    work: Work, log: list[Call | str], area: Callable[[], Path]
) -> None:
    """The worst state at the very moment at which each commit is reported: nothing unsynced has survived."""
    disk, promised = Disk(), set[int]()
    for entry in log:
        if isinstance(entry, Call):
            disk.apply(entry)
        elif entry.startswith("committed"):
            promised.add(int(entry.split()[1]))
            survive(work, Cut(after=entry_number(log, entry), promised=frozenset(promised), state=disk.worst()), area())
    assert promised == {0, 1, 2}


def entry_number(log: list[Call | str], label: str) -> int:
    return sum(isinstance(entry, Call) for entry in log[: log.index(label)])


def test_a_killed_run_leaves_no_debt_to_the_next(work: Work, area: Callable[[], Path]) -> None:
    """Killed between making and syncing something, resumed, then the power fails: what the second run reported is there."""
    for stopped_at in range(0, 300, 13):
        folder = area()
        first = Faults(folder, since(stopped_at, stop), keep=True)
        with pytest.raises(Killed), first:
            work.write(folder / "a.lake", first.mark)
        with Faults(folder, keep=True) as second:
            work.write(folder / "a.lake", second.mark)
        disk, promised = Disk(), set[int]()
        for entry in [entry for entry in first.log if isinstance(entry, Call)]:
            disk.apply(entry)
        offset = 1 + len(first.log)
        for entry in second.log:
            if isinstance(entry, Call):
                disk.apply(renumbered(entry, offset))
            elif entry.startswith("committed"):
                promised.add(int(entry.split()[1]))
        assert promised == {0, 1, 2}
        survive(work, Cut(after=stopped_at, promised=frozenset(promised), state=disk.worst()), area())


def renumbered(call: Call, offset: int) -> Call:
    """The same call of a later process: its handles are other ones."""
    return Call(**{**call.__dict__, "number": call.number + offset, "handle": call.handle + offset})


def test_folders_are_made_to_last(tmp_path: Path) -> None:
    with Faults(tmp_path, keep=True) as faults:
        make_folder(tmp_path / "a" / "b" / "c")
        make_folder(tmp_path / "a" / "b" / "c")
    disk = Disk()
    for call in faults.log:
        assert isinstance(call, Call)
        disk.apply(call)
    assert disk.worst() == {"a": None, "a/b": None, "a/b/c": None}
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "file")


def test_somebody_elses_folder_above_the_lake_need_not_be_readable(tmp_path: Path) -> None:
    """The lake's own folders must be synced; the one it stands in may belong to somebody else."""
    (tmp_path / "a.lake" / "commits").mkdir(parents=True)
    for code in (errno.EACCES, errno.EROFS):
        with Faults(tmp_path, on(".", refuse(code))) as faults:
            sync_ancestors(tmp_path / "a.lake", ["commits"])
        assert [call.name for call in faults.acted] == ["open"]
        with Faults(tmp_path, on("a.lake", refuse(code))), pytest.raises(StorageError, match="could not sync"):
            sync_ancestors(tmp_path / "a.lake", ["commits"])
    with Faults(tmp_path, on(".", refuse(errno.EIO))), pytest.raises(StorageError):
        sync_ancestors(tmp_path / "a.lake", ["commits"])


# ---- the machinery itself -----------------------------------------------------------------------------------------------


def test_the_disk_model_knows_what_lasts(tmp_path: Path) -> None:
    """By hand: a synced file in an unsynced folder is lost, an unsynced file in a synced folder is empty."""
    with Faults(tmp_path, keep=True) as faults:
        for name in ("synced", "not synced"):
            descriptor = os.open(tmp_path / name, os.O_WRONLY | os.O_CREAT)
            os.write(descriptor, b"data")
            if name == "synced":
                os.fsync(descriptor)
            os.close(descriptor)
        before = len(faults.log)
        folder = os.open(tmp_path, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        (tmp_path / "synced").rename(tmp_path / "renamed")
    disk = Disk()
    for call in faults.log[:before]:
        disk.apply(call)  # type: ignore[arg-type]
    assert disk.worst() == {}
    assert disk.pending == 2
    for call in faults.log[before:]:
        disk.apply(call)  # type: ignore[arg-type]
    assert disk.worst() == {"synced": b"data", "not synced": b""}
    states = list(disk.states(np.random.default_rng(0), random_states=0, each=True))
    assert {"renamed": b"data", "not synced": b"data"} in states
    assert {"not synced": b""} in states  # the new name lost, the old one gone: what only a synced folder excludes
    assert {"renamed": b"data", "synced": b"data", "not synced": b""} in states


def test_a_log_replayed_gives_the_lake(work: Work, log: list[Call | str], area: Callable[[], Path]) -> None:
    """The last state in which everything is kept is the lake that was written."""
    disk = Disk()
    for entry in log:
        if isinstance(entry, Call):
            disk.apply(entry)
    kept = list(disk.states(np.random.default_rng(0), random_states=0, each=False))[1]
    folder = area()
    materialise(kept, folder)
    assert_same(contents(folder / "a.lake"), work.whole)


def test_no_lake_is_no_promise(work: Work, tmp_path: Path) -> None:
    """`Work.check` itself fails when something is gone."""
    with pytest.raises(AssertionError, match="the plan is gone"):
        work.check(tmp_path / "a.lake", planned=True, promised=set())
    work.finish(tmp_path / "a.lake")
    (tmp_path / "a.lake" / "commits" / "block-000001.json").unlink()
    with pytest.raises(AssertionError, match=r"blocks \{1\} are gone"):
        work.check(tmp_path / "a.lake", planned=True, promised={1})
    with pytest.raises(InputError, match="not extracted yet"):
        open_lake(tmp_path / "a.lake").read(layer=0)
    assert verify(tmp_path / "a.lake", full=True).ok
