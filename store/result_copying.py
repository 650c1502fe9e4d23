"""Label sets and kept results copied from lake to lake, each whole or not at all, under records that stay as they are."""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from neuronlake.store.commits import commit_checksum, committed_blocks
from neuronlake.store.errors import DamageError, InputError
from neuronlake.store.files import (
    FileRecord,
    file_checksum,
    read_sealed,
    read_sealed_bytes,
    sizes_below,
    storage_error,
    sync_folder,
    write_file,
)
from neuronlake.store.kept import RECORD, discard, kept_results, staging
from neuronlake.store.label_sets import LABELS
from neuronlake.store.objects import LakePath
from neuronlake.store.transfer import checked_parts, sync_folders, transfer

_NAMED = re.compile(r"(?:.*/)?[^/]*-([0-9a-f]{16})\.parquet")  # a file with its checksum in its name


def copy_results(source: LakePath, target: LakePath, kinds: Iterable[str], done: list[str], left: list[str]) -> None:
    """Copy the label sets and results that fit the target's blocks.

    Parameters
    ----------
    kinds
        Folders of the lake that hold them.
    done, left
        Get a line for each that is there afterwards, and for each that is not.

    Raises
    ------
    InputError
        When the target has other labels under the same name.
    DamageError
        When labels are damaged: nothing can make them again. A damaged result is left.
    StorageError
        When one of the two stores refuses.
    """
    checksums = {block: commit_checksum(target, block) for block in committed_blocks(target)}
    for kind in kinds:
        for name in kept_results(source, kept=kind):
            what = f"{kind}/{name}"
            try:
                data, record = read_sealed_bytes(source / kind / name / RECORD)
                if kind != LABELS and (reason := _other_blocks(record, checksums)):
                    left.append(f"{what}: {reason}")
                    continue
                _copy_result(source, target, kind, name, data, record)
            except FileNotFoundError:  # removed or replaced meanwhile, or none of ours
                continue
            except DamageError as error:
                if not (source / kind / name / RECORD).is_file():
                    continue
                if kind == LABELS:
                    raise
                left.append(f"{what}: {error}")
                continue
            done.append(what)


def _other_blocks(record: Mapping[str, Any], checksums: Mapping[int, str]) -> str | None:
    """Say why a result is not one of the target's blocks, or None."""
    covered = record.get("blocks", record.get("key", {}).get("blocks", {}))
    if not isinstance(covered, Mapping):
        return None
    others = [block for block, checksum in covered.items() if checksums.get(int(block)) != checksum]
    return f"covers {len(others)} blocks that the copy does not have" if others else None


def _copy_result(source: LakePath, target: LakePath, kind: str, name: str, data: bytes, record: Mapping[str, Any]) -> None:
    """Copy one result, unless the same one is there."""
    folder, there = source / kind / name, target / kind / name
    with suppress(FileNotFoundError):
        if (there / RECORD).read_bytes() == data:
            return
        if kind == LABELS:
            raise InputError(f"{target} has other labels under the name {name!r}: remove one of them")
        return  # the target's own, of the same question
    if there.exists():
        discard(target, name, kept=kind)  # without a record it is nothing, and in the way
    files = [*_listed(record), *_unlisted(folder, record)]
    if not isinstance(there, Path):
        for file in files:
            transfer(folder, file, there)
        (there / RECORD).write_bytes(data)  # last: a result is there when its record is
        return
    with staging(target, name, kept=kind) as staged:
        for file in files:
            write_file(staged, file.path, checked_parts(folder, file))
        write_file(staged, RECORD, [data])
        sync_folders(staged, [RECORD, *(file.path for file in files)])
        try:
            staged.rename(there)
        except OSError as error:
            raise storage_error(error, target / kind / name, "write") from error
        sync_folder(there.parent)
        sync_folder(target)


def _listed(record: Mapping[str, Any]) -> list[FileRecord]:
    return [FileRecord(**entry) for entry in record["files"]]


def _unlisted(folder: LakePath, record: Mapping[str, Any]) -> list[FileRecord]:
    """Return what was added to a result later: folders with a record of their own, and files named after their checksum."""
    listed = {entry["path"] for entry in record["files"]} | {RECORD}
    sizes = sizes_below(folder)
    found: dict[str, FileRecord] = {}
    for path in sorted(set(sizes) - listed):
        if path.endswith(f"/{RECORD}"):
            size, checksum = file_checksum(folder / path)
            above = path.removesuffix(RECORD)
            part = read_sealed(folder / path)
            found |= {
                above + file.path: FileRecord(path=above + file.path, bytes=file.bytes, xxh3=file.xxh3)
                for file in _listed(part)
            }
            found[path] = FileRecord(path=path, bytes=size, xxh3=checksum)
        elif match := _NAMED.fullmatch(path):
            found[path] = FileRecord(path=path, bytes=sizes[path], xxh3=match[1])
    return list(found.values())
