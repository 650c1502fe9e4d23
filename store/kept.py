"""Results kept inside a lake: computed from its blocks, never needed to read it, published whole or not at all.

A result is a folder ``statistics/NAME``, ``index/NAME``, ``weights/NAME``, ``covariances/NAME`` or ``attribution/NAME`` with
a sealed record that lists its files. It is written in a staging folder and renamed. Statistics and covariances are not
synced: they can be computed again, and what a power cut leaves of them does not fit their record.

In an object store nothing can be renamed: a result is staged in a temporary folder of this machine, its files are put, and
its record last. There a result is what has a record; without one, objects are of an upload that goes on or was interrupted.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neuronlake.store.errors import DamageError, StorageError
from neuronlake.store.files import (
    FileRecord,
    checksum_found,
    file_checksum,
    read_error,
    read_sealed,
    remove_folder,
    seal,
    sizes_below,
    storage_error,
    sync_folder,
    temporary_name,
    write_plain,
)
from neuronlake.store.objects import LakePath, ObjectPath
from neuronlake.store.parallel import map_waiting

STATISTICS = "statistics"
INDEX = "index"
WEIGHTS = "weights"
COVARIANCES = "covariances"
ATTRIBUTION = "attribution"
KEPT = (STATISTICS, INDEX, WEIGHTS, COVARIANCES, ATTRIBUTION)
"""Folders of a lake that hold results."""
MADE_BY = {
    STATISTICS: "the same question computes it",
    INDEX: "`neuronlake index`, or the same question, makes it",
    WEIGHTS: "`neuronlake weights` makes it",
    COVARIANCES: "the same probe gathers it",
    ATTRIBUTION: "`neuronlake attribute` makes it",
}
"""What to do where a result is gone."""
RECORD = "record.json"
_away: dict[Path, ObjectPath] = {}  # staging folder on this machine → where in an object store its result goes


@contextlib.contextmanager
def staging(root: LakePath, name: str, *, kept: str = STATISTICS) -> Iterator[Path]:
    """Give a folder to write a result in; what is not published when the block ends is removed.

    Raises
    ------
    StorageError
        When the file system refuses.
    """
    if isinstance(root, ObjectPath):
        with _staging_here(root / kept) as here:
            yield here
        return
    folder = root / kept / temporary_name(name)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise storage_error(error, folder, "make") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _staging_here(target: ObjectPath) -> Iterator[Path]:
    try:
        scratch = tempfile.TemporaryDirectory(prefix="neuronlake-")
    except OSError as error:
        raise storage_error(error, Path(tempfile.gettempdir()), "write to") from error
    with scratch as made:
        folder = Path(made)
        _away[folder] = target
        try:
            yield folder
        finally:
            del _away[folder]


def publish(folder: Path, name: str, record: dict[str, Any], *, sync: bool = False) -> LakePath:
    """Seal a staged result with its record and give it its name; one of that name that is there already stays.

    Parameters
    ----------
    folder
        From `staging`.
    record
        What the result is of; its files are added.
    sync
        Make it last; its files and their folders are synced already.

    Returns
    -------
    LakePath
        The result's folder.

    Raises
    ------
    StorageError
        When the file system refuses.
    """
    if folder in _away:
        return _upload(folder, _away[folder] / name, record)
    target = folder.with_name(name)
    try:
        write_record(folder, record, sync=sync)
        if not target.exists():
            folder.rename(target)
    except OSError as error:
        if target.exists():  # somebody else was faster
            return target
        raise storage_error(error, target, "write") from error
    if sync:
        sync_folder(target.parent)
        sync_folder(target.parent.parent)
    return target


def publish_part(folder: Path, target: LakePath, record: dict[str, Any]) -> None:
    """Seal what was staged and make it a folder of a result that is there already, instead of one of that name.

    Raises
    ------
    OSError
        When the file system or the store refuses.
    """
    if isinstance(target, ObjectPath):
        _remove_objects(target)
        _upload(folder, target, record)
        return
    write_record(folder, record)
    shutil.rmtree(target, ignore_errors=True)  # a damaged one
    folder.rename(target)


def _upload(folder: Path, target: ObjectPath, record: dict[str, Any]) -> ObjectPath:
    """Put a staged result, its record last; one that is there already stays."""
    if (target / RECORD).is_file():
        return target
    try:
        write_record(folder, record)
        for _ in map_waiting(
            lambda path: (target / path).write_bytes((folder / path).read_bytes()),
            [path for path in sizes_below(folder) if path != RECORD],
        ):
            pass
        (target / RECORD).write_bytes((folder / RECORD).read_bytes())
    except OSError as error:
        raise storage_error(error, target, "write") from error
    return target


def write_record(folder: Path, record: dict[str, Any], *, sync: bool = False) -> None:
    """Seal a folder's content with a record; its files are added.

    Raises
    ------
    OSError
        When the file system refuses.
    """
    files = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size, checksum = file_checksum(path)
        files.append(FileRecord(path=path.relative_to(folder).as_posix(), bytes=size, xxh3=checksum).as_dict())
    write_plain(folder / RECORD, [seal({**record, "files": files})], sync=sync)
    if sync:
        sync_folder(folder)


def kept_results(root: LakePath, *, kept: str = STATISTICS) -> list[str]:
    """Names of the results that a lake keeps, sorted; in an object store, of those that have a record.

    Raises
    ------
    StorageError
        When the folder cannot be listed.
    """
    if isinstance(root, ObjectPath):
        below = [path.split("/") for path in sizes_below(root / kept)]
        return sorted(names[0] for names in below if len(names) == 2 and names[1] == RECORD)
    try:
        return sorted(entry.name for entry in os.scandir(root / kept) if entry.is_dir() and not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise read_error(error, root / kept) from error


def kept_record(root: LakePath, name: str, *, kept: str = STATISTICS, full: bool = False) -> dict[str, Any]:
    """Read a result's record and compare its files with it: their sizes, or with `full` every byte.

    Metadata is compared always: a flipped bit in it gives other values, or those of chunks that are not there.

    Raises
    ------
    DamageError
        When the record or a file is missing or differs.
    """
    folder = root / kept / name
    path = folder / RECORD
    try:
        record = read_sealed(path)
    except StorageError:  # that nobody can read it now does not mean that it is damaged
        raise
    except OSError as error:
        raise DamageError(f"{path}: {error.strerror or error}") from None
    sizes = sizes_below(folder) if isinstance(folder, ObjectPath) else {}

    def check(entry: dict[str, Any]) -> None:
        file = folder / entry["path"]
        whole = full or file.name == "zarr.json"
        try:
            known = sizes.get(entry["path"])
            expected = entry["bytes"], entry["xxh3"]
            found = checksum_found(file, expected) if whole else (known or file.stat().st_size, entry["xxh3"])
        except StorageError:
            raise
        except OSError as error:
            raise DamageError(f"{file}: {error.strerror or error}") from None
        if found != expected:
            raise DamageError(f"{file} does not match its record")

    for _ in map_waiting(check, record["files"]) if isinstance(folder, ObjectPath) else map(check, record["files"]):
        pass
    return record


def discard(root: LakePath, name: str, *, kept: str = STATISTICS, sync: bool = False) -> None:
    """Remove a result: at once for readers, then from the disk. With `sync`, a power cut brings back all of it or nothing.

    Raises
    ------
    StorageError
        When the file system refuses.
    """
    folder = root / kept / name
    if isinstance(folder, ObjectPath):
        return _remove_objects(folder)
    aside = folder.with_name(temporary_name(name))
    try:
        folder.rename(aside)
        if sync:
            sync_folder(folder.parent)
        shutil.rmtree(aside)
    except FileNotFoundError:  # somebody else did
        return None
    except OSError as error:
        raise storage_error(error, folder, "remove") from error
    return None


def _remove_objects(folder: ObjectPath) -> None:
    """Remove the record, then the rest: from then on there is no result."""
    (folder / RECORD).unlink()
    remove_folder(folder)
