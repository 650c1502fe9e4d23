"""Faults of the file system, made to order.

`Faults` stands between the store and the operating system: it sees every call that changes files under one folder, can
refuse it, cut it short or end the process there, and keeps a log (which `powercut` replays).
"""

import errno
import io
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

CHANGING = (
    "open",
    "write",
    "pwrite",
    "fsync",
    "ftruncate",
    "close",
    "mkdir",
    "rmdir",
    "rename",
    "replace",
    "unlink",
    "remove",
)
ERRORS = (errno.EIO, errno.ENOSPC, errno.EROFS, errno.EDQUOT)
_BY_DESCRIPTOR = ("write", "pwrite", "fsync", "ftruncate", "close")


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call on a file or folder under the watched one."""

    number: int
    """Counted from 0."""
    name: str
    path: str
    """Relative to the watched folder; "." is that folder itself."""
    target: str = ""
    """New name, of renames."""
    handle: int = -1
    """Of calls on open files: the number of the `open` call."""
    flags: int = 0
    """Of `open`."""
    offset: int = 0
    """Of writes."""
    data: bytes = b""
    """What a write was given, if the log keeps it."""
    size: int = 0
    """Of `ftruncate`."""
    failed: bool = False
    """The call raised: nothing happened."""


Perform = Callable[[], Any]
Action = Callable[[Call, Perform, tuple[Any, ...]], Any]
"""What to do instead of a call: gets the call, a function that makes it, and its arguments."""


class Faults:
    """Watch every changing call under `folder` while the ``with`` block lasts, in all threads, one call at a time.

    Parameters
    ----------
    decide
        Asked before each call; returns what to do instead, or None.
    keep
        Log the calls, and the mark that `mark` sets, in `log`.
    sync
        False: `fsync` does nothing (for many runs whose durability does not matter).
    """

    def __init__(
        self,
        folder: Path,
        decide: Callable[[Call], Action | None] = lambda call: None,
        *,
        keep: bool = False,
        sync: bool = True,
    ):
        self._folder = str(folder.absolute())
        self._decide, self._keep, self._sync = decide, keep, sync
        self._open: dict[int, tuple[int, str]] = {}
        self._lock = threading.RLock()
        self._real: dict[str, Any] = {}
        self.log: list[Call | str] = []
        self.count = 0
        self.acted: list[Call] = []
        """Calls that `decide` had an answer for."""

    def __enter__(self) -> Self:
        for name in CHANGING:
            self._real[name] = getattr(os, name)
            setattr(os, name, self._wrap(name))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for name, real in self._real.items():
            setattr(os, name, real)
        if kind is Killed:
            for descriptor in self._open:  # as the end of the process would, so that its lock is free
                os.close(descriptor)

    def mark(self, label: str) -> None:
        """Note in the log that the run has got this far."""
        with self._lock:
            self.log.append(label)

    def _wrap(self, name: str) -> Callable[..., Any]:
        real = self._real[name]

        def wrapper(*arguments: Any, **options: Any) -> Any:
            with self._lock:  # a descriptor that another thread closes just now may be somebody else's already
                path = self._path(name, arguments, options)
                if path is not None:
                    return self._call(name, path, arguments, options)
            return real(*arguments, **options)

        return wrapper

    def _path(self, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> str | None:
        """Return the path that a call is about, relative to the watched folder, or None when it is none of ours."""
        first = arguments[0]
        if name in _BY_DESCRIPTOR:
            return self._open[first][1] if first in self._open else None
        if isinstance(first, int):
            return None
        path, base = os.fsdecode(first), options.get("dir_fd")
        if base is not None:
            if base not in self._open:
                return None
            path = str(Path(self._folder) / self._open[base][1] / path)
        return self._relative(path)

    def _relative(self, path: str) -> str | None:
        path = os.path.normpath(Path(path).absolute())
        inside = path == self._folder or path.startswith(self._folder + os.sep)
        return os.path.relpath(path, self._folder) if inside else None

    def _call(self, name: str, path: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        call = self._describe(name, path, arguments)
        self.count += 1

        def perform() -> Any:
            if name == "fsync" and not self._sync:
                return None
            result = self._real[name](*arguments, **options)
            if name == "open":
                self._open[result] = (call.number, path)
            elif name == "close":
                del self._open[arguments[0]]
            return result

        action = self._decide(call)
        at = len(self.log)
        if self._keep:
            self.log.append(call)
        if action is not None:
            self.acted.append(call)
        try:
            return perform() if action is None else action(call, perform, arguments)
        except BaseException:
            if self._keep:
                self.log[at] = Call(**{**call.__dict__, "failed": True})
            raise

    def _describe(self, name: str, path: str, arguments: tuple[Any, ...]) -> Call:
        name = {"replace": "rename", "remove": "unlink"}.get(name, name)
        details: dict[str, Any] = {}
        if name == "rename":
            target = self._relative(os.fsdecode(arguments[1]))
            assert target is not None, "renamed out of the watched folder"
            details["target"] = target
        elif name == "open":
            details["flags"] = arguments[1]
        elif name in _BY_DESCRIPTOR:
            details["handle"] = self._open[arguments[0]][0]
        if name in ("write", "pwrite"):
            details["offset"] = os.lseek(arguments[0], 0, os.SEEK_CUR) if name == "write" else arguments[2]
            details["data"] = bytes(arguments[1]) if self._keep else b""
        if name == "ftruncate":
            details["size"] = arguments[1]
        return Call(number=self.count, name=name, path=path, **details)


# ---- actions ----------------------------------------------------------------------------------------------------------


def refuse(code: int) -> Action:
    """Raise an OSError instead of making the call. (A `close` that fails has closed the file nevertheless, as on Linux.)"""

    def action(call: Call, perform: Perform, _: tuple[Any, ...]) -> Any:
        if call.name == "close":
            perform()
        raise OSError(code, os.strerror(code), call.path)

    return action


def shorten(count: int) -> Action:
    """Write at most `count` bytes and say so."""

    def action(call: Call, perform: Perform, arguments: tuple[Any, ...]) -> Any:
        return perform() if call.name != "write" else _write_part(arguments, min(count, len(arguments[1])))

    return action


def die(when: str) -> Action:
    """End the process as a power cut would, ``before`` or ``after`` the call, or ``within`` a write: half of it done."""

    def action(call: Call, perform: Perform, arguments: tuple[Any, ...]) -> Any:
        if when == "after":
            with suppress(OSError):
                perform()
        elif when == "within" and call.name == "write":
            _write_part(arguments, len(arguments[1]) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    return action


class Killed(BaseException):
    """Stands for SIGKILL inside one process: from some call on, nothing reaches the disk."""


def at(number: int, action: Action) -> Callable[[Call], Action | None]:
    """Decide: that call alone."""
    return lambda call: action if call.number == number else None


def since(number: int, action: Action) -> Callable[[Call], Action | None]:
    """Decide: that call and all after it."""
    return lambda call: action if call.number >= number else None


def on(part: str, action: Action) -> Callable[[Call], Action | None]:
    """Decide: all calls on paths that contain `part` (``"."`` alone is the watched folder itself)."""
    return lambda call: action if (call.path == part if part == "." else part in call.path) else None


def stop(*_: Any) -> Any:
    """Action: as if the process were gone."""
    raise Killed


def _write_part(arguments: tuple[Any, ...], count: int) -> int:
    # Through the page cache, at the file's position: a part of a direct write would have to be aligned.
    descriptor, data = arguments
    position = os.lseek(descriptor, 0, os.SEEK_CUR)
    with Path(f"/proc/self/fd/{descriptor}").open("r+b") as file:
        file.seek(position)
        file.write(bytes(data[:count]))
    os.lseek(descriptor, position + count, os.SEEK_SET)
    return count


class Reading:
    """While the ``with`` block lasts, opening a file through pathlib to read it fails where `chosen` says so."""

    def __init__(self, chosen: Callable[[str], bool], code: int):
        self._chosen, self._code = chosen, code

    def __enter__(self) -> Self:
        self._real = real = io.open

        def opened(file: Any, *arguments: Any, **options: Any) -> Any:
            if isinstance(file, str | os.PathLike) and self._chosen(os.fspath(file)):
                raise OSError(self._code, os.strerror(self._code), os.fspath(file))
            return real(file, *arguments, **options)

        io.open = opened  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        io.open = self._real


def flip(path: Path, bit: int) -> bytes:
    """Flip one bit of a file in place and return what was there before."""
    before = path.read_bytes()
    data = bytearray(before)
    data[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(data)
    return before


@contextmanager
def no_new_threads() -> Iterator[None]:
    """Assert that the block leaves no thread of the store behind."""
    before = set(threading.enumerate())
    yield
    left = [thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("neuronlake")]
    assert not left, f"threads left behind: {left}"
