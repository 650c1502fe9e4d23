"""Durable files: written under a temporary name, synced, renamed, and their folder synced too."""

import contextlib
import errno
import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c

from neuronlake.store.direct import DirectFile
from neuronlake.store.errors import DamageError, StorageError

_TEMPORARY = ".tmp"


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """What a commit promises of one file."""

    path: str
    """Relative to the lake, with forward slashes."""
    bytes: int
    crc32c: str
    """Eight hexadecimal digits over the whole file."""

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"path": self.path, "bytes": self.bytes, "crc32c": self.crc32c}


class StagedFile:
    """A file written in full under a temporary name; `publish` makes it durable and gives it its own name.

    Staging costs the processor (the parts may be computed on the way), publishing waits for the disk: a caller with
    threads for each keeps both busy.
    """

    def __init__(self, root: Path, path: str, parts: Iterable[bytes]):
        self._target = root / path
        self._temporary = self._target.with_name(_temporary_name(self._target.name))
        size, checksum = 0, 0
        with self._cleaning_up():
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._file = DirectFile(self._temporary)
            for part in parts:
                self._file.write(part)
                size += len(part)
                checksum = google_crc32c.extend(checksum, part)
            self._file.finish()
        self._record = FileRecord(path=path, bytes=size, crc32c=f"{checksum:08x}")

    def publish(self) -> FileRecord:
        """Sync and rename. The caller syncs the folder (`sync_folder`) once all files of a step are there."""
        with self._cleaning_up():
            self._file.sync()
            self._file.close()
            self._temporary.replace(self._target)
        return self._record

    @contextlib.contextmanager
    def _cleaning_up(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(OSError, AttributeError):  # the first error is the one to show
                self._file.close()
            with contextlib.suppress(OSError):
                self._temporary.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise storage_error(error, self._target, "write") from error
            raise


def write_file(root: Path, path: str, parts: Iterable[bytes]) -> FileRecord:
    """Write `parts` to ``root/path`` so that the file is either absent or whole, whatever happens meanwhile.

    The caller syncs the folder (`sync_folder`) once all files of a step are there.

    Raises
    ------
    StorageError
        When the file system refuses; the temporary file is removed.
    """
    return StagedFile(root, path, parts).publish()


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise storage_error(error, folder, "sync") from error


def storage_error(error: OSError, path: Path, verb: str) -> StorageError:
    """Turn an OSError into one line that says what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(_existing_parent(path)).free
            return StorageError(
                f"disk full: could not {verb} {path} ({free / 1e6:.1f} MB free); committed blocks are safe: "
                "free some space and run the same command again"
            )
    reason = error.strerror or str(error)
    return StorageError(f"could not {verb} {path}: {reason}; committed blocks are safe, run the same command again")


def file_checksum(path: Path) -> tuple[int, str]:
    """Return size in bytes and crc32c (eight hexadecimal digits) of a file, read in pieces."""
    size, checksum = 0, 0
    with path.open("rb") as file:
        while piece := file.read(1 << 22):  # 4 MiB
            size += len(piece)
            checksum = google_crc32c.extend(checksum, piece)
    return size, f"{checksum:08x}"


def read_checked(root: Path, record: FileRecord) -> bytes:
    """Return a small file's bytes after comparing them with their record.

    Raises
    ------
    DamageError
        When the file is missing or differs.
    """
    try:
        data = (root / record.path).read_bytes()
    except FileNotFoundError:
        raise DamageError(f"{root / record.path} is missing; run `neuronlake verify` to list the damage") from None
    if len(data) != record.bytes or f"{google_crc32c.value(data):08x}" != record.crc32c:
        raise DamageError(f"{root / record.path} does not match its checksum; run `neuronlake verify --full`")
    return data


def seal(record: dict[str, Any]) -> bytes:
    """Serialise a JSON record with a checksum of itself, so that a flipped bit in it is found."""
    if "crc32c" in record:
        raise ValueError("a record to be sealed has no crc32c yet")
    return _dump({**record, "crc32c": _seal_of(record)})


def unseal(data: bytes, what: str) -> dict[str, Any]:
    """Parse a sealed record.

    Raises
    ------
    DamageError
        When it is not JSON or its checksum does not match.
    """
    try:
        record = json.loads(data)
        seal_found = record.pop("crc32c")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise DamageError(f"{what} is not a readable record; run `neuronlake verify` to list the damage") from None
    # Compared as bytes: a flip in white space or in the key's own name must not pass.
    if seal_found != _seal_of(record) or data != _dump({**record, "crc32c": seal_found}):
        raise DamageError(f"{what} does not match its checksum; run `neuronlake verify` to list the damage")
    return dict(record)


def stale_temporaries(root: Path) -> Iterator[Path]:
    """Yield temporary files left by processes of this host that no longer run."""
    for path in root.rglob(f".*{_TEMPORARY}"):
        host, pid = _owner(path.name)
        if host == _host() and not _running(pid):
            yield path


def _dump(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode()


def _seal_of(record: dict[str, Any]) -> str:
    return f"{google_crc32c.value(_dump(record)):08x}"


def _temporary_name(name: str) -> str:
    return f".{name}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}{_TEMPORARY}"


def _owner(name: str) -> tuple[str, int]:
    parts = name.split(".")
    pid = parts[-3] if len(parts) >= 5 else ""
    return (parts[-4], int(pid)) if pid.isdecimal() else ("", -1)


def _host() -> str:
    return socket.gethostname().replace(".", "-")


def _running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _existing_parent(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
