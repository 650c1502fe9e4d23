"""Commit records: a block exists when its record does."""

import contextlib
import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

import neuronlake.store.layout as layout
from neuronlake.store.errors import DamageError, StorageError
from neuronlake.store.files import (
    FileRecord,
    checksum_found,
    file_checksum,
    make_folder,
    read_error,
    read_sealed,
    read_sealed_bytes,
    seal,
    storage_error,
    sync_ancestors,
    sync_folder,
    write_file,
)
from neuronlake.store.objects import LakePath, ObjectPath
from neuronlake.store.parallel import map_waiting

_COMMITS = "commits"
_COMMIT_NAME = re.compile(r"block-(\d{6,})\.json")


@dataclass(frozen=True, kw_only=True)
class Commit:
    """What a committed block consists of, and what computed it."""

    block: int
    rows: int
    """Rows in use; the rest of the block is padding."""
    provenance: Mapping[str, Any]
    """Backend, device, thread count, batch size, library versions: what may move the last bits. No times, so that the
    same work gives the same bytes."""
    files: tuple[FileRecord, ...]

    def without(self, dropped: Collection[str]) -> "Commit":
        """Return it without the files of sites that were dropped since the block was committed."""
        if not dropped:
            return self
        return dataclasses.replace(self, files=tuple(file for file in self.files if not of_sites(file.path, dropped)))


def of_sites(path: str, sites: Collection[str]) -> bool:
    """Whether a file of a lake holds activations or scales of one of the sites."""
    folder, _, below = path.partition("/")
    return folder in ("activations", "scales") and below.partition("/")[0] in sites


def write_commit(root: LakePath, commit: Commit) -> bool:
    """Publish a block whose files, and the folders that hold them, are already in place and synced.

    When this returns, the block survives a power cut, the plan it belongs to included. A record that another process has
    written meanwhile stays if its files are the ones on the disk.

    Returns
    -------
    bool
        Whether these are the files that the record promises: not if another process committed the block with other bytes
        (another processor, other versions).

    Raises
    ------
    StorageError
        When the file system refuses; when files of two processes with different bytes are mixed, and nothing is committed.
    """
    return publish_commit(root, commit, commit_bytes(commit))


def commit_bytes(commit: Commit) -> bytes:
    """Return a commit's record."""
    return seal(
        {
            "block": commit.block,
            "rows": commit.rows,
            "provenance": dict(commit.provenance),
            "files": [record.as_dict() for record in commit.files],
        }
    )


def publish_commit(root: LakePath, commit: Commit, data: bytes) -> bool:
    """As `write_commit`, of a commit whose record is there already: `data`."""
    if is_committed(root, commit.block) and not _overtakes(root, commit):
        return read_commit(root, commit.block).files == commit.files
    path = layout.commit_path(commit.block)
    folder = root / _COMMITS
    try:
        make_folder(folder)
    except OSError as error:
        raise storage_error(error, folder, "make") from error
    # What the record rests on must last before the record is seen: the folders on the way to the block's files, and the
    # plan's, whose writer may have been killed between renaming its record and syncing.
    resting = {str(PurePosixPath(file.path).parent) for file in commit.files}
    sync_folder((root / layout.PLAN_RECORD).parent)
    sync_ancestors(root, sorted({*resting, _COMMITS}))
    try:
        write_file(root, path, [data], new=True)
    except FileExistsError:  # somebody else was faster, just now
        if not _overtakes(root, commit):
            return read_commit(root, commit.block).files == commit.files
        write_file(root, path, [data])
    sync_folder(folder)
    if isinstance(root, ObjectPath) and not root.is_conditional():
        # Another's files may have replaced some of ours since. Whoever looks last sees what stays: both have put all files
        # before either put a record.
        if _overtakes(root, commit, look=True):
            write_file(root, path, [data])
            return True
        return read_commit(root, commit.block).files == commit.files
    return True


def _overtakes(root: LakePath, commit: Commit, *, look: bool = False) -> bool:
    """Whether a block that another process has committed meanwhile is to have this record instead.

    Both have put all their files in place by now, each file at once. Mostly they are the same; if not, or with `look`, they
    are compared with the records.
    """
    other: Commit | None = None
    try:
        other = read_commit(root, commit.block)
    except DamageError:
        if not look:
            return True
    if other is not None and other.files == commit.files and not look:
        return False

    def whole(files: tuple[FileRecord, ...]) -> bool:
        with contextlib.suppress(FileNotFoundError):
            expected = {file.path: (file.bytes, file.xxh3) for file in files}
            return all(checksum_found(root / path, what) == what for path, what in expected.items())
        return False

    if other is not None and whole(other.files):
        return False
    if whole(commit.files):
        return True
    record = root / layout.commit_path(commit.block)
    record.unlink(missing_ok=True)
    sync_folder(record.parent)
    raise mixed(root, commit.block)


def mixed(root: LakePath, block: int) -> StorageError:
    """Return what to raise of a block whose record is withdrawn, by this process or another one."""
    return StorageError(
        f"block {block} of {root} was extracted by two processes at once, on other processors or with other library "
        "versions, and their files are mixed: it is not committed; run the same command again"
    )


def settle_commits(root: LakePath) -> None:
    """Make the commit records that are there last.

    A process that was killed, or refused by the file system, between renaming a record and syncing its folder leaves a
    record that everybody sees and a power cut may take back. Called before a run counts on the blocks committed so far.

    Raises
    ------
    StorageError
        When the file system refuses.
    """
    if isinstance(root, ObjectPath):
        return
    if (root / _COMMITS).is_dir():
        sync_folder(root / _COMMITS)
        sync_folder((root / layout.PLAN_RECORD).parent)
        sync_ancestors(root, [_COMMITS])


def commit_checksum(root: LakePath, block: int) -> str:
    """Checksum of a committed block's record, which holds those of its files: what a result of the block is tied to."""
    path = root / layout.commit_path(block)
    if isinstance(path, Path):
        return file_checksum(path)[1]
    with contextlib.suppress(DamageError):
        return xxhash.xxh3_64_hexdigest(read_sealed_bytes(path)[0])
    return file_checksum(path)[1]  # it is damaged there, not on its way


def commit_checksums(root: LakePath, blocks: Iterable[int]) -> dict[int, str]:
    """Block → `commit_checksum`; several are asked of an object store at once."""
    blocks = list(blocks)
    if isinstance(root, ObjectPath):
        return dict(zip(blocks, map_waiting(lambda block: commit_checksum(root, block), blocks), strict=True))
    return {block: commit_checksum(root, block) for block in blocks}


def read_commits(root: LakePath, blocks: Iterable[int]) -> tuple[Commit, ...]:
    """Read several records, likewise; errors as of `read_commit`."""
    if isinstance(root, ObjectPath):
        return tuple(map_waiting(lambda block: read_commit(root, block), blocks))
    return tuple(read_commit(root, block) for block in blocks)


def is_committed(root: LakePath, block: int) -> bool:
    """Whether a block is committed now."""
    return (root / layout.commit_path(block)).exists()


def committed_blocks(root: LakePath) -> tuple[int, ...]:
    """List the committed blocks, ascending, from one look at the folder.

    Raises
    ------
    StorageError
        When the folder cannot be listed.
    """
    folder = root / _COMMITS
    try:
        listing = [path.name for path in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        raise read_error(error, folder) from error
    names = (_COMMIT_NAME.fullmatch(name) for name in listing)
    return tuple(sorted(int(match[1]) for match in names if match))


def read_commit(root: LakePath, block: int) -> Commit:
    """Read one record.

    Raises
    ------
    DamageError
        When it is missing or does not match its own checksum.
    StorageError
        When the file system refuses.
    """
    path = root / layout.commit_path(block)
    try:
        record = read_sealed(path)
    except FileNotFoundError:
        raise DamageError(f"{path} is missing") from None
    except OSError as error:
        raise read_error(error, path) from error
    try:
        commit = Commit(
            block=record["block"],
            rows=record["rows"],
            provenance=record["provenance"],
            files=tuple(FileRecord(**entry) for entry in record["files"]),
        )
    except (KeyError, TypeError) as error:
        raise DamageError(f"{path} lacks {error}") from None
    if commit.block != block:
        raise DamageError(f"{path} is the record of block {commit.block}")
    return commit
