"""Who may write to a lake: extractions side by side, each adding blocks; anything else alone. Readers never lock.

The lock is ``flock`` on a hidden file inside the lake, shared or exclusive, so the kernel releases it whatever becomes of
the process, and no clock plays a part. The file says who holds it, for messages only: one line per holder, and one when it
leaves. (Not for Windows, which has no `fcntl`; nothing else in the store needs it.)

Object stores have no locks, and neither have some file systems: they are written to without one. Commits alone decide then.
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuronlake.store.errors import InputError, StorageError
from neuronlake.store.files import make_folder
from neuronlake.store.objects import LakePath

LOCK_FILE = ".neuronlake.lock"
CLAIMS = ".neuronlake.claims"
"""Folder of what running extractions say they are at, see `neuronlake.store.claims`."""
PLANNING, COMPLETING = "planning", "completing the index"
"""What an extraction has the lake to itself for: others that want to extract wait for it."""
# File systems without flock: some network mounts and FUSE layers.
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_COMMAND_CHARACTERS = 120
_TRIES, _PAUSE_S = 4, 0.01
_WAITING_PAUSE_S = 0.2
_NAMED = 4  # holders that a message names

held_descriptors: set[int] = set()
"""Of every lock and claim of this process."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait for an extraction that plans, or completes the index, before the lake is refused."""

    seconds: float
    say: Callable[[str], None] = lambda message: None
    """Called once, with what is waited for."""


class BusyError(InputError):
    """Somebody else is writing to the lake, in a way that excludes what was asked for."""

    def __init__(self, message: str, *, passing: bool):
        super().__init__(message)
        self.passing = passing
        """Whether it is a step of an extraction that others wait for."""


@contextlib.contextmanager
def writing(
    root: LakePath,
    *,
    shared: bool = False,
    doing: str = "",
    patience: Patience | None = None,
    unless: Callable[[], bool] = lambda: False,
) -> Iterator[bool]:
    """Be the only writer of the lake at `root` for as long as the ``with`` block lasts, or one of several that add blocks.

    The folder is made if it does not exist, and removed again if it is empty at the end. The lock file is gone after the
    block of the last writer; a process that is killed leaves it behind unlocked, and the next writer takes it over. Not
    reentrant: a second exclusive ``with`` in the same process is refused too.

    Parameters
    ----------
    shared
        Only to add blocks, which exclude each other by their commits: others may do the same meanwhile.
    doing
        What the lock is taken for, if it is worth waiting for: `PLANNING` or `COMPLETING`.
    patience
        Wait for holders that do one of these. By default the lake is refused at once.
    unless
        Asked while waiting: when it returns true, the block is entered without a lock.

    Yields
    ------
    bool
        Whether a lock is held: not where there are none.

    Raises
    ------
    BusyError
        When somebody else is writing (the message names host and process).
    InputError
        When `root` is no folder.
    StorageError
        When the folder or the lock file cannot be made.
    """
    if not isinstance(root, Path):
        yield False
        return
    lock = None if unless() else _acquire_patiently(root, shared, doing, patience, unless)
    try:
        yield lock is not None
    finally:
        _release(root, lock)


def writer_of(root: LakePath) -> str | None:
    """Return who is writing to the lake now, for example ``process 4711 on host node3 (neuronlake extract …)``, or None."""
    found = _holders_of(root, shared_too=True)
    return None if found is None else _name(found)


def refuse_second_writer(root: LakePath, *, shared: bool = False) -> None:
    """Raise BusyError when the lake is being written to: worth asking before work that takes long.

    With `shared`, only if adding blocks is excluded, and by something that is not worth waiting for.
    """
    found = _holders_of(root, shared_too=not shared)
    if found is not None and not (shared and _passing(found)):
        raise _busy(root, found, shared=shared)


# ---- taking and giving back -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Lock:
    descriptor: int
    shared: bool
    mark: str
    """Of our line in the file."""


def _acquire_patiently(
    root: Path, shared: bool, doing: str, patience: Patience | None, unless: Callable[[], bool]
) -> _Lock | None:
    began, said = time.monotonic(), False
    while True:
        try:
            return _acquire(root, shared, doing)
        except BusyError as error:
            if unless():
                return None
            if patience is None or not error.passing:
                raise
            waited = time.monotonic() - began
            if waited >= patience.seconds:
                raise BusyError(f"waited {waited:.0f} s: {error}", passing=True) from None
            if not said:
                patience.say(f"waiting: {str(error).partition(': ')[0]}")
                said = True
        time.sleep(_WAITING_PAUSE_S)


def _acquire(root: Path, shared: bool, doing: str) -> _Lock | None:
    """Return the lock, or None where there are no locks."""
    path = root / LOCK_FILE
    while True:
        try:
            make_folder(root)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            raise InputError(f"{root} is a file, not a lake: choose a new or empty folder") from None
        except FileNotFoundError:  # the other writer removed the folder, empty, between the two calls
            continue
        except OSError as error:
            if error.errno == errno.EROFS and root.is_dir():
                return None  # nobody can write here: what needs writing will say so
            raise StorageError(f"could not write to {root}: {error.strerror or error}") from error
        try:
            _lock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        except BlockingIOError:
            holders = _read_holders(descriptor)
            os.close(descriptor)
            raise _busy(root, holders, shared=shared) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno in _UNSUPPORTED:
                path.unlink(missing_ok=True)
                return None
            raise StorageError(f"could not lock {path}: {error.strerror or error}") from error
        if is_at(descriptor, path):
            break
        os.close(descriptor)  # its holder removed the file after we opened it: what we locked has no name any more
    held_descriptors.add(descriptor)
    lock = _Lock(descriptor=descriptor, shared=shared, mark=secrets.token_hex(4))
    with contextlib.suppress(OSError):  # only for the message: a full disk must not keep anyone from locking
        if not shared:  # what killed processes left
            os.ftruncate(descriptor, 0)
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]) if sys.argv else ""
        here = {"host": socket.gethostname(), "pid": os.getpid()}
        _append(descriptor, {**here, "command": command, "doing": doing, "mark": lock.mark})
    return lock


def _lock(descriptor: int, kind: int) -> None:
    # `writer_of` holds the lock for a few microseconds: that is no writer, so ask more than once
    for _ in range(_TRIES - 1):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        time.sleep(_PAUSE_S)
    return fcntl.flock(descriptor, kind | fcntl.LOCK_NB)


def _release(root: Path, lock: _Lock | None) -> None:
    if lock is not None:
        descriptor = lock.descriptor
        if descriptor not in held_descriptors:  # a forked child unwinds: the lock is its parent's
            return
        with contextlib.suppress(OSError):
            if lock.shared:
                _append(descriptor, {"left": lock.mark})
                _lock(descriptor, fcntl.LOCK_EX)  # refused, and given up too, where others are still at it
            # removed while locked, so that nobody's new file can be meant
            if is_at(descriptor, root / LOCK_FILE):
                if (root / CLAIMS).exists():  # of processes that were killed
                    shutil.rmtree(root / CLAIMS, ignore_errors=True)
                (root / LOCK_FILE).unlink()
        held_descriptors.discard(descriptor)
        with contextlib.suppress(OSError):
            os.close(descriptor)
    with contextlib.suppress(OSError):  # it is not empty: the usual case
        root.rmdir()


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still has this name."""
    try:
        named = path.stat()
    except OSError:
        return False
    ours = os.fstat(descriptor)
    return (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino)


# ---- who --------------------------------------------------------------------------------------------------------------


def _holders_of(root: LakePath, *, shared_too: bool) -> list[dict[str, Any]] | None:
    """Return what is known of those who hold the lock, or None if nobody does (or nobody can tell)."""
    if not isinstance(root, Path):
        return None
    path = root / LOCK_FILE
    try:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # not ours to write; where a lock needs that, nobody can tell
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if shared_too:
            _lock(descriptor, fcntl.LOCK_EX)
    except BlockingIOError:
        return _read_holders(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def _append(descriptor: int, line: dict[str, Any]) -> None:
    os.write(descriptor, (json.dumps(line) + "\n").encode())


def _read_holders(descriptor: int) -> list[dict[str, Any]]:
    """Read who entered and did not leave; without those of this host that no longer run."""
    found: dict[str, dict[str, Any]] = {}
    try:
        lines = os.pread(descriptor, 1 << 24, 0).splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            record = json.loads(line)
            if "left" in record:
                found.pop(record["left"], None)
                continue
            holder = {key: str(record[key]) for key in ("host", "command", "doing")}
            found[record["mark"]] = {**holder, "pid": int(record["pid"])}
        except (ValueError, KeyError, TypeError):  # signed only in part, or by something else
            continue
    return [holder for holder in found.values() if holder["host"] != socket.gethostname() or _runs(holder["pid"])]


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _passing(holders: list[dict[str, Any]]) -> bool:
    # one that has not signed yet may be anything: a look later tells
    return all(holder["doing"] in (PLANNING, COMPLETING) for holder in holders)


def _busy(root: LakePath, holders: list[dict[str, Any]], *, shared: bool) -> BusyError:
    why = "that has the lake to itself" if shared else "this needs the lake to itself"
    return BusyError(
        f"{root} is being written by {_name(holders)}: {why}; wait for it to end, or stop it, and run this command again",
        passing=_passing(holders),
    )


def _name(holders: list[dict[str, Any]]) -> str:
    if not holders:
        return "another process"  # locked a moment ago, and not signed yet
    names = [_describe(holder) for holder in holders[:_NAMED]]
    more = f" and {len(holders) - _NAMED} more" if len(holders) > _NAMED else ""
    return ", ".join(names) + more


def _describe(holder: dict[str, Any]) -> str:
    command = holder["command"]
    short = command if len(command) <= _COMMAND_CHARACTERS else f"{command[: _COMMAND_CHARACTERS - 1]}…"
    said = "; ".join(part for part in (short, holder["doing"]) if part)
    printable = "".join(character if character.isprintable() else "?" for character in said)
    return f"process {holder['pid']} on host {holder['host']}" + (f" ({printable})" if printable else "")


def _close_in_child() -> None:
    # A lock lives as long as any copy of its descriptor. A worker forked by a tagger must not keep the lake locked after
    # this process was killed.
    for descriptor in held_descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    held_descriptors.clear()


os.register_at_fork(after_in_child=_close_in_child)
