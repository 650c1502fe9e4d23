"""Commit records: a block exists when its record does."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import neuronlake.store.layout as layout
from neuronlake.store.errors import DamageError
from neuronlake.store.files import FileRecord, seal, sync_folder, unseal, write_file

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


def write_commit(root: Path, commit: Commit) -> None:
    """Publish a block whose files are already in place and synced."""
    path = layout.commit_path(commit.block)
    record = {
        "block": commit.block,
        "rows": commit.rows,
        "provenance": dict(commit.provenance),
        "files": [record.as_dict() for record in commit.files],
    }
    write_file(root, path, [seal(record)])
    sync_folder((root / path).parent)


def committed_blocks(root: Path) -> tuple[int, ...]:
    """List the committed blocks, ascending, from one look at the folder."""
    folder = root / "commits"
    if not folder.is_dir():
        return ()
    names = (_COMMIT_NAME.fullmatch(path.name) for path in folder.iterdir())
    return tuple(sorted(int(match[1]) for match in names if match))


def read_commit(root: Path, block: int) -> Commit:
    """Read one record.

    Raises
    ------
    DamageError
        When it is missing or does not match its own checksum.
    """
    path = root / layout.commit_path(block)
    try:
        record = unseal(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise DamageError(f"{path} is missing") from None
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
