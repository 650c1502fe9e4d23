"""The plan's record: written when planning is complete, so that a half-written plan is never used."""

import contextlib
import dataclasses
import io
import os
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import neuronlake.store.layout as layout
from neuronlake.store.commits import committed_blocks, read_commit
from neuronlake.store.errors import DamageError, InputError, StorageError
from neuronlake.store.files import (
    FileRecord,
    checksum_found,
    read_sealed,
    seal,
    storage_error,
    sync_ancestors,
    sync_folder,
    write_file,
)
from neuronlake.store.objects import LakePath, ObjectPath
from neuronlake.store.spec import LakeSpec, dump_metadata, metadata_files
from neuronlake.store.tables import PADDING, from_parquet

PLAN_ASIDE = f"{layout.PLAN_RECORD}.aside"
"""Record of a plan that has lost a table: it says what the plan made again must be, and goes when that is there."""
DROPPED = "plan/dropped.json"
"""Second copy of which sites were dropped: without it, a lake that lost its plan record would seem to have lost blocks."""
TABLES = ("plan", "words", "sentences")


@dataclass(frozen=True, kw_only=True)
class PlanRecord:
    """Summary of a finished plan."""

    fingerprint: str
    """Of the lake's spec."""
    blocks: int
    label_columns: tuple[str, ...]
    """Word label columns of the whole corpus, sorted."""
    counts: Mapping[str, int]
    """documents, sentences, words, tokens, special, multi, uncovered, words_unreached, truncated_sequences, …"""
    special_tokens: Mapping[str, str]
    """Token id (as a string, for JSON) → its text."""
    files: Mapping[str, FileRecord] = field(repr=False)
    """Path → size and checksum, of every table and Zarr metadata file."""
    spec: Mapping[str, Any] | None = field(default=None, repr=False)
    """Second copy of the root's attribute, to restore the root from; `publish_plan` fills it in. None in old records."""
    dropped: tuple[str, ...] = ()
    """Sites that were dropped since the plan was made, sorted: nothing of them is there, whatever commit records list."""

    @property
    def unit(self) -> str:
        """What a row is: ``token``, or ``frame`` of a speech encoder's output."""
        return "frame" if self.spec is not None and "frames" in self.spec["plan"] else "token"

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "fingerprint": self.fingerprint,
            "blocks": self.blocks,
            "label_columns": list(self.label_columns),
            "counts": dict(self.counts),
            "special_tokens": dict(self.special_tokens),
            **({"spec": dict(self.spec)} if self.spec is not None else {}),
            **({"dropped": list(self.dropped)} if self.dropped else {}),
            "files": [record.as_dict() for record in self.files.values()],
        }


@contextlib.contextmanager
def plan_beside(root: LakePath) -> Iterator[Path]:
    """Give a folder in the lake to plan in once more: `adopt_plan` then takes the plan over if it is the same one.

    Of a lake in an object store it is a temporary folder of this machine.
    """
    host = socket.gethostname().replace(".", "-")
    try:  # named like a temporary file, so that what a kill leaves behind is recognised
        beside = root if isinstance(root, Path) else None
        scratch = tempfile.TemporaryDirectory(dir=beside, prefix=f".plan-again.{host}.{os.getpid()}.", suffix=".tmp")
    except OSError as error:
        raise storage_error(error, root, "write to") from error
    with scratch as folder:
        yield Path(folder)


def publish_plan(root: LakePath, spec: LakeSpec, record: PlanRecord) -> PlanRecord:
    """Write the arrays' metadata, then the plan record: from here on blocks can be committed.

    `record.files` holds the tables and the root's metadata; the record returned holds the arrays' metadata and the spec
    too.
    """
    files = dict(record.files)
    dropped = record.dropped or read_dropped(root, record.fingerprint)  # of a plan that is made again
    for path, metadata in metadata_files(spec.without(dropped), record.blocks).items():
        files[path] = write_file(root, path, [dump_metadata(metadata)])
        sync_folder((root / path).parent)
    complete = dataclasses.replace(record, files=files, spec=spec.as_dict(), dropped=dropped)
    return publish_plan_record(root, complete)


def publish_plan_record(
    root: LakePath, record: PlanRecord, data: bytes | None = None, *, instead: bool = False
) -> PlanRecord:
    """Publish a plan's record, whose files are all there: from here on blocks can be committed.

    Parameters
    ----------
    data
        The record's bytes, if they are there already.
    instead
        Replace the record that is there.
    """
    for folder in TABLES:
        if (root / folder).is_dir():
            sync_folder(root / folder)
    sync_ancestors(root, sorted({str(PurePosixPath(path).parent) for path in record.files}))
    data = seal(record.as_dict()) if data is None else data
    try:
        write_file(root, layout.PLAN_RECORD, [data], new=not instead)
    except FileExistsError:  # somebody else was faster
        published = read_plan_record(root)
        if published is None or published.files != record.files:
            raise StorageError(
                f"{root / layout.PLAN_RECORD}: another plan was published meanwhile, by other library versions; run "
                f"`neuronlake verify {root} --repair`, then the same command again"
            ) from None
        return published
    try:
        (root / PLAN_ASIDE).unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, root / PLAN_ASIDE, "remove") from error
    sync_folder((root / layout.PLAN_RECORD).parent)
    return record


def read_plan_record(root: LakePath, path: str = layout.PLAN_RECORD) -> PlanRecord | None:
    """Return the plan record, or None when planning has not finished.

    Raises
    ------
    DamageError
        When the record does not match its checksum.
    """
    where = root / path
    try:
        record = read_sealed(where)
    except FileNotFoundError:
        return None
    except StorageError:
        raise
    except OSError as error:
        raise InputError(f"could not read {where}: {error.strerror}") from None
    try:
        return PlanRecord(
            fingerprint=record["fingerprint"],
            blocks=record["blocks"],
            label_columns=tuple(record["label_columns"]),
            counts=record["counts"],
            special_tokens=record["special_tokens"],
            files={entry["path"]: FileRecord(**entry) for entry in record["files"]},
            spec=record.get("spec"),
            dropped=tuple(record.get("dropped", ())),
        )
    except (KeyError, TypeError) as error:
        raise DamageError(f"{where} lacks {error}") from None


def write_dropped(root: LakePath, fingerprint: str, sites: Iterable[str]) -> None:
    """Write the second copy of which sites were dropped, before the plan record says so."""
    write_file(root, DROPPED, [seal({"fingerprint": fingerprint, "dropped": sorted(sites)})])
    sync_folder((root / DROPPED).parent)


def read_dropped(root: LakePath, fingerprint: str) -> tuple[str, ...]:
    """Return the sites that the second copy says were dropped; none where it is missing, damaged or another lake's."""
    try:
        record = read_sealed(root / DROPPED)
    except (FileNotFoundError, DamageError):
        return ()
    return tuple(record["dropped"]) if record.get("fingerprint") == fingerprint else ()


def set_plan_aside(root: LakePath) -> None:
    """Make the lake's plan unfinished, but keep its record to compare the next plan with."""
    record, aside = root / layout.PLAN_RECORD, root / PLAN_ASIDE
    try:
        if isinstance(record, Path) and isinstance(aside, Path):
            record.replace(aside)
        elif isinstance(aside, ObjectPath):
            aside.write_bytes(record.read_bytes())
            record.unlink()
    except OSError as error:
        raise storage_error(error, aside, "write") from error
    sync_folder(aside.parent)


def adopt_plan(root: LakePath, scratch: Path, spec: LakeSpec, record: PlanRecord) -> PlanRecord:
    """Publish a plan made again for a lake that holds committed blocks, if it is the plan that those were extracted with.

    Nothing of the lake is changed before that is certain. Tables whose bytes differ though their content does not (another
    Parquet library) are replaced.

    Parameters
    ----------
    scratch
        Folder on the lake's file system with the new plan's tables.
    record
        As for `publish_plan`, of those tables.

    Raises
    ------
    InputError
        When the new plan is another one, with the first file that differs.
    """
    if (problem := _other_plan(root, scratch, record)) is not None:
        raise InputError(
            f"{root}: {problem}, so the plan made now is not the one that its committed blocks were extracted with; "
            "nothing was changed: use the library versions of that time, or another folder"
        )
    for path in _tables(record):
        target = root / path
        if not _is(target, record.files[path]):
            try:
                if isinstance(target, Path):
                    target.parent.mkdir(exist_ok=True)
                    (scratch / path).replace(target)
                else:
                    target.write_bytes((scratch / path).read_bytes())
            except OSError as error:
                raise storage_error(error, target, "write") from error
    return publish_plan(root, spec, record)


def _other_plan(root: LakePath, scratch: Path, record: PlanRecord) -> str | None:
    """Say what shows that the new plan is another one, or None."""
    try:
        former = read_plan_record(root, PLAN_ASIDE)
    except DamageError:
        former = None  # then what is left of its tables must do
    for block in committed_blocks(root):
        if block >= record.blocks:
            return f"block {block} is committed, but the plan has only {record.blocks} blocks"
        flags = from_parquet((scratch / layout.table_path("plan", block)).read_bytes(), ["flags"]).column("flags")
        used = int(np.count_nonzero(flags.to_numpy() != PADDING))
        if used != (rows := read_commit(root, block).rows):
            return f"{layout.commit_path(block)} has {rows} rows, the plan {used}"
    regenerated, rewritten = "", False
    for path in _tables(record):
        new = record.files[path]
        promised = former.files.get(path) if former is not None else None
        if _is(root / path, new) or promised == new:
            continue
        # a table that does not match its own record is damaged and proves nothing
        intact = promised is None or _is(root / path, promised)
        old = _read_table(root / path) if intact else None
        if old is None:
            regenerated = path if promised is not None else regenerated
        elif old.equals(_read_table(scratch / path)):
            rewritten = True
        else:
            return f"{path} differs"
    # Other bytes than the record promises: credible only where the tables that can be compared have other bytes too.
    return f"{regenerated} differs from its record" if regenerated and not rewritten else None


def _tables(record: PlanRecord) -> list[str]:
    return [layout.table_path(table, block) for block in range(record.blocks) for table in TABLES]


def _is(path: LakePath, record: FileRecord) -> bool:
    try:
        expected = record.bytes, record.xxh3
        return checksum_found(path, expected) == expected
    except StorageError:
        raise
    except OSError:
        return False


def _read_table(path: LakePath) -> pa.Table | None:
    """Read a table whose checksum is not known: None when it is missing or visibly damaged."""
    try:
        return pq.ParquetFile(io.BytesIO(path.read_bytes()), page_checksum_verification=True).read()
    except StorageError:
        raise
    except (OSError, ValueError, pa.ArrowException):
        return None
