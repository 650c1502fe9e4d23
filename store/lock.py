"""One writer per lake. Readers never lock: they see committed blocks only.

The lock is ``flock`` on a hidden file inside the lake, so the kernel releases it whatever becomes of the process. (Not for
Windows, which has no `fcntl`; nothing else in the store needs it.)
"""

import contextlib
import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from neuronlake.store.errors import InputError, StorageError
from neuronlake.store.files import make_folder
from neuronlake.store.objects import LakePath, ObjectPath

LOCK_FILE = ".neuronlake.lock"
# File systems without flock: some network mounts and FUSE layers.
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_COMMAND_CHARACTERS = 120
_TRIES, _PAUSE_S = 4, 0.01

_held: set[int] = set()


@contextlib.contextmanager
def writing(root: LakePath) -> Iterator[None]:
    """Be the only writer of the lake at `root` for as long as the ``with`` block lasts.

    The folder is made if it does not exist, and removed again if it is empty at the end. The lock file is gone after the
    block; a process that is killed leaves it behind unlocked, and the next writer takes it over. Not reentrant: a second
    ``with`` in the same process is refused too. File systems without locks are written to without one.

    Raises
    ------
    InputError
        At once, when somebody else is writing (the message names host and process), or `root` is no folder.
    StorageError
        When the folder or the lock file cannot be made.
    """
    if isinstance(root, ObjectPath):  # no locks there: commits are conditional, and what is written twice has the same bytes
        yield
        return
    descriptor = _acquire(root)
    try:
        yield
    finally:
        _release(root, descriptor)


def writer_of(root: LakePath) -> str | None:
    """Return who is writing to the lake now, for example ``process 4711 on host node3 (neuronlake extract …)``, or None."""
    if isinstance(root, ObjectPath):
        return None
    try:
        descriptor = os.open(root / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def refuse_second_writer(root: LakePath) -> None:
    """Raise InputError when the lake is being written to: worth asking before work that takes long."""
    if (holder := writer_of(root)) is not None:
        raise _busy(root, holder)


def _acquire(root: Path) -> int | None:
    """Return the locked descriptor, or None where there are no locks."""
    path = root / LOCK_FILE
    while True:
        try:
            make_folder(root)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            raise InputError(f"{root} is a file, not a lake: choose a new or empty folder") from None
        except FileNotFoundError:  # the other writer removed the folder, empty, between the two calls
            continue
        except OSError as error:
            if error.errno == errno.EROFS and root.is_dir():
                return None  # nobody can write here: what needs writing will say so
            raise StorageError(f"could not write to {root}: {error.strerror or error}") from error
        try:
            _lock(descriptor)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise _busy(root, holder) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno in _UNSUPPORTED:
                path.unlink(missing_ok=True)
                return None
            raise StorageError(f"could not lock {path}: {error.strerror or error}") from error
        if _is_at(descriptor, path):
            break
        os.close(descriptor)  # its holder removed the file after we opened it: what we locked has no name any more
    _held.add(descriptor)
    with contextlib.suppress(OSError):  # only for the message: a full disk must not keep anyone from locking
        os.ftruncate(descriptor, 0)
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]) if sys.argv else ""
        os.write(descriptor, json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "command": command}).encode())
    return descriptor


def _lock(descriptor: int) -> None:
    # `writer_of` holds the lock for a few microseconds: that is no writer, so ask more than once
    for _ in range(_TRIES - 1):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(_PAUSE_S)
    return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _release(root: Path, descriptor: int | None) -> None:
    if descriptor is not None:
        if descriptor not in _held:  # a forked child unwinds: the lock is its parent's
            return
        with contextlib.suppress(OSError):  # removed while still locked, so that nobody's new file can be meant
            if _is_at(descriptor, root / LOCK_FILE):
                (root / LOCK_FILE).unlink()
        _held.discard(descriptor)
        with contextlib.suppress(OSError):
            os.close(descriptor)
    with contextlib.suppress(OSError):  # it is not empty: the usual case
        root.rmdir()


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        named = path.stat()
    except OSError:
        return False
    ours = os.fstat(descriptor)
    return (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino)


def _busy(root: LakePath, holder: str) -> InputError:
    return InputError(
        f"{root} is being written by {holder}: a lake takes one writer at a time; "
        "wait for it to end, or stop it, and run this command again"
    )


def _holder(descriptor: int) -> str:
    try:
        record = json.loads(os.pread(descriptor, 1 << 16, 0))
        host, pid, command = str(record["host"]), int(record["pid"]), str(record["command"])
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"  # locked a moment ago, and not signed yet
    short = command if len(command) <= _COMMAND_CHARACTERS else f"{command[: _COMMAND_CHARACTERS - 1]}…"
    printable = "".join(character if character.isprintable() else "?" for character in short)
    return f"process {pid} on host {host}" + (f" ({printable})" if printable else "")


def _close_in_child() -> None:
    # A lock lives as long as any copy of its descriptor. A worker forked by a tagger must not keep the lake locked after
    # this process was killed.
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
