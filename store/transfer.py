"""Files from one place to another, each compared with its record on the way: what arrives is what was promised."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import xxhash

from neuronlake.store.errors import DamageError, InputError
from neuronlake.store.files import FileRecord, file_checksum, read_error, sync_folder, write_file
from neuronlake.store.objects import LakePath

PIECE_BYTES = 8 << 20  # 8 MiB: what a thread holds of a file, and what it asks of an object store at once

Advance = Callable[[int], None]
"""Called with the bytes of every file that is done."""


def check_apart(source: LakePath, target: LakePath) -> None:
    """Raise InputError where one place is the other, or inside it."""
    here, there = (path.resolve() if isinstance(path, Path) else path for path in (source, target))
    if here == there:
        raise InputError(f"{source} and {target} are the same lake: choose another place")
    for inner, outer in ((here, there), (there, here)):
        if type(inner) is not type(outer):
            continue
        try:
            inner.relative_to(outer)  # type: ignore[arg-type]
        except ValueError:
            continue
        raise InputError(f"{inner} lies inside {outer}: a lake holds no other; choose another place")


def transfer(source: LakePath, record: FileRecord, target: LakePath, path: str | None = None) -> int:
    """Copy a file, unless the right one is there, and return the bytes that were copied.

    Parameters
    ----------
    source
        The folder that `record` is relative to.
    path
        Of the copy, relative to `target`; by default the same.

    Raises
    ------
    DamageError
        When the source's file is missing or is not what its record promises: nothing is left of the copy.
    StorageError
        When one of the two stores refuses.
    """
    path = path or record.path
    if is_there(target / path, record):
        return 0
    write_file(target, path, checked_parts(source, record))
    return record.bytes


def is_there(path: LakePath, record: FileRecord) -> bool:
    """Whether a file is the one that a record promises, byte for byte."""
    try:
        return path.stat().st_size == record.bytes and file_checksum(path) == (record.bytes, record.xxh3)
    except (FileNotFoundError, NotADirectoryError):
        return False


def checked_parts(root: LakePath, record: FileRecord) -> Iterator[bytes]:
    """Yield a file piece by piece, and raise DamageError at its end if it is not what the record promises."""
    path, size, checksum = root / record.path, 0, xxhash.xxh3_64()
    try:
        for piece in _pieces(path, record.bytes):
            size += len(piece)
            checksum.update(piece)
            yield piece
    except FileNotFoundError:
        raise DamageError(f"{path} is missing; run `neuronlake verify` to list the damage") from None
    except OSError as error:
        raise read_error(error, path) from error
    if (size, checksum.hexdigest()) != (record.bytes, record.xxh3):
        raise DamageError(f"{path} does not match its record; run `neuronlake verify --full` to list the damage")


def sync_folders(root: LakePath, paths: Iterable[str]) -> None:
    """Make files last that were written below `root`."""
    for folder in sorted({str(PurePosixPath(path).parent) for path in paths}):
        sync_folder(root / folder)


@contextmanager
def crew(threads: int) -> Iterator[Callable[[Iterable[Callable[[], tuple[int, int]]], Advance], list[int]]]:
    """Give a function that does jobs several at a time, the first error ending it.

    A job returns the bytes of its file, for the progress, and those that were copied, which come back in order.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="neuronlake-copy")

    def work(jobs: Iterable[Callable[[], tuple[int, int]]], advance: Advance) -> list[int]:
        copied = []
        for future in [pool.submit(job) for job in jobs]:
            size, count = future.result()
            copied.append(count)
            advance(size)
        return copied

    try:
        yield work
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _pieces(path: LakePath, size: int) -> Iterator[bytes]:
    if not isinstance(path, Path):
        for first in range(0, size, PIECE_BYTES):
            yield path.read_range(first, min(PIECE_BYTES, size - first))
        return
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece
