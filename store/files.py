"""Durable files: written under a temporary name, synced, renamed, and their folder synced too; objects are put at once."""

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
import xxhash

from neuronlake.store.direct import DirectFile
from neuronlake.store.errors import DamageError, StorageError
from neuronlake.store.objects import LakePath, ObjectPath, read_until_right

_TEMPORARY = ".tmp"
_ours: set[str] = set()  # names of the temporary files that this process is writing now
# What file systems answer that cannot sync a folder: their renames last as soon as they are made, or never.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP)


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """What a commit promises of one file."""

    path: str
    """Relative to the lake, with forward slashes."""
    bytes: int
    xxh3: str
    """XXH3-64 of the whole file, sixteen hexadecimal digits. Not its crc32c: the chunks of a shard end in their own, and the
    CRC of a message that ends in its CRC is the same for every message, so that shards could be exchanged unseen."""

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"path": self.path, "bytes": self.bytes, "xxh3": self.xxh3}


class StagedFile:
    """A file written in full under a temporary name; `publish` makes it durable and gives it its own name.

    Staging costs the processor (the parts may be computed on the way), publishing waits for the disk: a caller with
    threads for each keeps both busy.
    """

    def __init__(self, root: Path, path: str, parts: Iterable[bytes]):
        self._target = root / path
        self._temporary = self._target.with_name(temporary_name(self._target.name))
        size, checksum = 0, xxhash.xxh3_64()
        with self._cleaning_up():
            make_folder(self._target.parent)
            self._file = DirectFile(self._temporary)
            for part in parts:
                self._file.write(part)
                size += len(part)
                checksum.update(part)
            self._file.finish()
        self._record = FileRecord(path=path, bytes=size, xxh3=checksum.hexdigest())

    def publish(self) -> FileRecord:
        """Sync and rename. The caller syncs the folder (`sync_folder`) once all files of a step are there."""
        with self._cleaning_up():
            self._file.sync()
            self._file.close()
            self._temporary.replace(self._target)
        _ours.discard(self._temporary.name)
        return self._record

    @contextlib.contextmanager
    def _cleaning_up(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            try:
                with contextlib.suppress(OSError, AttributeError):  # the first error is the one to show
                    self._file.close()
                with contextlib.suppress(OSError):
                    self._temporary.unlink(missing_ok=True)
            finally:
                _ours.discard(self._temporary.name)  # if it could not be removed, the next run does it
            if isinstance(error, OSError) and not isinstance(error, StorageError):
                raise storage_error(error, self._target, "write") from error
            raise


class StagedObject:
    """As `StagedFile`, of an object: its parts wait in memory, and `publish` puts them by one request."""

    def __init__(self, root: ObjectPath, path: str, parts: Iterable[bytes], *, new: bool = False):
        self._target, self._new = root / path, new
        self._data = b"".join(parts)
        self._record = FileRecord(path=path, bytes=len(self._data), xxh3=xxhash.xxh3_64_hexdigest(self._data))

    def publish(self) -> FileRecord:
        """Put the object; FileExistsError if it is to be new, and there is one with other bytes."""
        self._target.write_bytes(self._data, new=self._new)
        self._data = b""
        return self._record


def stage(root: LakePath, path: str, parts: Iterable[bytes], *, new: bool = False) -> StagedFile | StagedObject:
    """Stage a file or an object.

    Parameters
    ----------
    new
        An object with other bytes must not be replaced. (The lock keeps others from a folder's files.)
    """
    return StagedFile(root, path, parts) if isinstance(root, Path) else StagedObject(root, path, parts, new=new)


def write_file(root: LakePath, path: str, parts: Iterable[bytes], *, new: bool = False) -> FileRecord:
    """Write `parts` to ``root/path`` so that the file is either absent or whole, whatever happens meanwhile.

    The caller syncs the folder (`sync_folder`) once all files of a step are there.

    Raises
    ------
    FileExistsError
        With `new`, when there is an object with other bytes.
    StorageError
        When the file system or the store refuses; the temporary file is removed.
    """
    return stage(root, path, parts, new=new).publish()


def write_plain(path: Path, parts: Iterable[bytes], *, sync: bool = False) -> None:
    """Write a file where nobody looks yet, in a result's staging folder: it is not renamed, and synced only if asked for.

    Raises
    ------
    OSError
        When the file system refuses.
    """
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        for part in parts:
            view = memoryview(part)
            while view:
                view = view[os.write(file, view) :]
        if sync:
            os.fsync(file)
    finally:
        os.close(file)


def make_folder(folder: LakePath) -> None:
    """Make a folder, and those above it that are missing, so that it survives a power cut. Object stores have none.

    A folder that exists already is taken to be safe: `sync_ancestors` makes sure of those that a killed process made.

    Raises
    ------
    OSError
        When the file system refuses, or a file stands in the way.
    """
    if isinstance(folder, ObjectPath):
        return
    try:
        folder.mkdir()
    except FileExistsError:
        if folder.is_dir():
            return
        raise
    except FileNotFoundError:
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)  # another thread may be faster
    sync_folder(folder.parent)


def sync_folder(folder: LakePath) -> None:
    """Make the entries of `folder` survive a power cut: renamed files, new folders. Their content is synced apart.

    What an object store has confirmed lasts already.
    """
    if isinstance(folder, ObjectPath):
        return
    try:
        _sync_folder(folder)
    except OSError as error:
        raise storage_error(error, folder, "sync") from error


def sync_ancestors(root: LakePath, folders: Iterable[str]) -> None:
    """Sync every folder above `folders` (relative to the lake), up to the one that holds the lake.

    A file is found after a power cut only if the folder entries on the way to it were synced too, and whoever made one of
    these folders may have been killed before it came to that.
    """
    if isinstance(root, ObjectPath):
        return
    above = {ancestor for folder in folders for ancestor in (root / folder).parents if ancestor.is_relative_to(root)}
    for ancestor in sorted(above):
        sync_folder(ancestor)
    holder = root.absolute().parent
    try:
        _sync_folder(holder)
    except OSError as error:
        # Somebody else's folder: one that we may not read, or on a read-only file system, is none that we made a lake in.
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise storage_error(error, holder, "sync") from error


def storage_error(error: OSError, path: LakePath, verb: str) -> StorageError:
    """Turn an OSError into one line that says what to do; one that is a StorageError already says it."""
    if isinstance(error, StorageError):
        return error
    if isinstance(path, Path) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(_existing_parent(path)).free
            return StorageError(
                f"disk full: could not {verb} {path} ({free / 1e6:.1f} MB free); committed blocks are safe: "
                "free some space and run the same command again"
            )
    reason = error.strerror or str(error)
    return StorageError(f"could not {verb} {path}: {reason}; committed blocks are safe, run the same command again")


def read_error(error: OSError, path: LakePath) -> StorageError:
    """Turn an OSError of reading into one line; one that is a StorageError already is one."""
    if isinstance(error, StorageError):
        return error
    return StorageError(f"could not read {path}: {error.strerror or error}; nothing was changed")


def file_checksum(path: LakePath) -> tuple[int, str]:
    """Return size in bytes and XXH3-64 (sixteen hexadecimal digits) of a file, read in pieces."""
    size, checksum = 0, xxhash.xxh3_64()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):  # 4 MiB
            size += len(piece)
            checksum.update(piece)
    return size, checksum.hexdigest()


def checksum_found(path: LakePath, expected: tuple[int, str]) -> tuple[int, str]:
    """As `file_checksum`; an object that is not as expected is read again, see `read_until_right`."""
    if not isinstance(path, ObjectPath):
        return file_checksum(path)
    found = expected

    def read() -> None:
        nonlocal found
        found = file_checksum(path)
        if found != expected:
            raise DamageError(str(path))

    with contextlib.suppress(DamageError):
        read_until_right(read)
    return found


def read_checked(root: LakePath, record: FileRecord) -> bytes:
    """Return a small file's bytes after comparing them with their record; an object that differs is read again.

    Raises
    ------
    DamageError
        When the file is missing or differs.
    StorageError
        When the file system refuses.
    """

    def read() -> bytes:
        try:
            data = (root / record.path).read_bytes()
        except FileNotFoundError:
            raise DamageError(f"{root / record.path} is missing; run `neuronlake verify` to list the damage") from None
        except OSError as error:
            raise read_error(error, root / record.path) from error
        if len(data) != record.bytes or xxhash.xxh3_64_hexdigest(data) != record.xxh3:
            raise DamageError(f"{root / record.path} does not match its checksum; run `neuronlake verify --full`")
        return data

    return read() if isinstance(root, Path) else read_until_right(read)


def sizes_below(folder: LakePath) -> dict[str, int]:
    """Path below the folder → size in bytes, of every file; from one listing of an object store."""
    if isinstance(folder, ObjectPath):
        return {path.relative_to(folder).as_posix(): size for path, size in folder.sizes().items()}
    found = {}
    for path in files_below(folder):
        with contextlib.suppress(FileNotFoundError):  # replaced meanwhile
            found[path.relative_to(folder).as_posix()] = path.stat().st_size
    return found


def remove_folder(folder: LakePath) -> None:
    """Remove a folder with everything in it, as far as that can be done now."""
    if isinstance(folder, Path):
        return shutil.rmtree(folder, ignore_errors=True)
    for path in folder.sizes():
        path.unlink()
    return None


def seal(record: dict[str, Any]) -> bytes:
    """Serialise a JSON record with a checksum of itself, so that a flipped bit in it is found."""
    if "crc32c" in record:
        raise ValueError("a record to be sealed has no crc32c yet")
    return _dump({**record, "crc32c": _seal_of(record)})


def read_sealed(path: LakePath) -> dict[str, Any]:
    """Read a record that `seal` made; an object that does not fit its checksum is read again.

    Raises
    ------
    DamageError
        When it is not as it was sealed.
    OSError
        As reading does.
    """

    return read_sealed_bytes(path)[1]


def read_sealed_bytes(path: LakePath) -> tuple[bytes, dict[str, Any]]:
    """As `read_sealed`, with the bytes."""

    def read() -> tuple[bytes, dict[str, Any]]:
        data = path.read_bytes()
        return data, unseal(data, str(path))

    return read() if isinstance(path, Path) else read_until_right(read)


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


def temporary_name(name: str) -> str:
    """Hidden name that tells host and process: what a dead process left can be removed, what this one writes is not."""
    temporary = f".{name}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}{_TEMPORARY}"
    _ours.add(temporary)
    return temporary


def everything_below(root: Path) -> Iterator[Path]:
    """Yield all files and folders; what disappears meanwhile is left out, where `Path.rglob` would fail."""
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            yield Path(folder, name)


def files_below(root: Path) -> Iterator[Path]:
    """Yield all files, told from folders by the listing: of one that disappears meanwhile, nothing is left to ask."""
    for folder, _, files in os.walk(root):
        for name in files:
            yield Path(folder, name)


def stale_temporaries(root: LakePath) -> Iterator[Path]:
    """Yield temporary files left by processes of this host that no longer run, or by this one when it failed before.

    Object stores have none: nothing is written there under another name.
    """
    if isinstance(root, ObjectPath):
        return
    for path in everything_below(root):
        if not (path.name.startswith(".") and path.name.endswith(_TEMPORARY)):
            continue
        host, pid = _owner(path.name)
        if host == _host() and (path.name not in _ours if pid == os.getpid() else not _running(pid)):
            yield path


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def _dump(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode()


def _seal_of(record: dict[str, Any]) -> str:
    return f"{google_crc32c.value(_dump(record)):08x}"


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
