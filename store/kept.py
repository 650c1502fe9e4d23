"""Results kept inside a lake: computed from its blocks, never needed to read it, published whole or not at all.

A result is a folder ``statistics/NAME``, ``index/NAME``, ``weights/NAME``, ``covariances/NAME`` or ``attribution/NAME`` with
a sealed record that lists its files. It is written in a staging folder and renamed. Statistics and covariances are not
synced: they can be computed again, and what a power cut leaves of them does not fit their record.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neuronlake.store.errors import DamageError
from neuronlake.store.files import (
    FileRecord,
    file_checksum,
    read_error,
    seal,
    storage_error,
    sync_folder,
    temporary_name,
    unseal,
    write_plain,
)

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


@contextlib.contextmanager
def staging(root: Path, name: str, *, kept: str = STATISTICS) -> Iterator[Path]:
    """Give a folder to write a result in; what is not published when the block ends is removed.

    Raises
    ------
    StorageError
        When the file system refuses.
    """
    folder = root / kept / temporary_name(name)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise storage_error(error, folder, "make") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, name: str, record: dict[str, Any], *, sync: bool = False) -> Path:
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
    Path
        The result's folder.

    Raises
    ------
    StorageError
        When the file system refuses.
    """
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


def kept_results(root: Path, *, kept: str = STATISTICS) -> list[str]:
    """Names of the results that a lake keeps, sorted.

    Raises
    ------
    StorageError
        When the folder cannot be listed.
    """
    try:
        return sorted(entry.name for entry in os.scandir(root / kept) if entry.is_dir() and not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise read_error(error, root / kept) from error


def kept_record(root: Path, name: str, *, kept: str = STATISTICS, full: bool = False) -> dict[str, Any]:
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
        record = unseal(path.read_bytes(), str(path))
    except OSError as error:
        raise DamageError(f"{path}: {error.strerror or error}") from None
    for entry in record["files"]:
        file = folder / entry["path"]
        whole = full or file.name == "zarr.json"
        try:
            size, checksum = file_checksum(file) if whole else (file.stat().st_size, entry["xxh3"])
        except OSError as error:
            raise DamageError(f"{file}: {error.strerror or error}") from None
        if (size, checksum) != (entry["bytes"], entry["xxh3"]):
            raise DamageError(f"{file} does not match its record")
    return record


def discard(root: Path, name: str, *, kept: str = STATISTICS, sync: bool = False) -> None:
    """Remove a result: at once for readers, then from the disk. With `sync`, a power cut brings back all of it or nothing.

    Raises
    ------
    StorageError
        When the file system refuses.
    """
    folder = root / kept / name
    aside = folder.with_name(temporary_name(name))
    try:
        folder.rename(aside)
        if sync:
            sync_folder(folder.parent)
        shutil.rmtree(aside)
    except FileNotFoundError:  # somebody else did
        return
    except OSError as error:
        raise storage_error(error, folder, "remove") from error
