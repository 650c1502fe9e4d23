"""Labels added to a finished plan: new columns for its words or rows, beside its tables, which stay as they are.

A label set is a folder ``labels/NAME`` with one Parquet table per planned block and a sealed record. It covers the whole
plan, so it does not matter which blocks are extracted, and it is written in a staging folder, synced and renamed.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import xxhash

import neuronlake.store.layout as layout
from neuronlake.store.errors import DamageError, InputError
from neuronlake.store.files import FileRecord, read_checked, read_error, read_sealed_bytes
from neuronlake.store.kept import RECORD, discard, kept_record, kept_results
from neuronlake.store.lock import writing
from neuronlake.store.objects import LakePath
from neuronlake.store.plan_record import PlanRecord
from neuronlake.store.tables import LABEL_TYPE, column_or_null, from_parquet

LABELS = "labels"
"""Folder of a lake that holds label sets."""
_TABLE = re.compile(r"block-\d{6,}\.parquet")


class Unit(NamedTuple):
    """What a label set gives labels to."""

    key: str
    """Column that numbers it."""
    table: str
    """Table of the plan with one line for each."""
    content: tuple[str, ...]
    """Columns of that table which say that two plans have the same."""


UNITS = {
    "words": Unit("word", "words", ("word", "sentence", "index", "form")),
    "rows": Unit("row", "plan", ("row", "sentence", "position", "token_id", "word")),
}


@dataclass(frozen=True, kw_only=True)
class LabelSet:
    """One label set of a lake."""

    root: LakePath
    """The lake."""
    name: str
    identity: str
    """XXH3-64 of the record, which holds the checksums of the tables: other labels, another identity."""
    record: Mapping[str, Any] = field(repr=False)

    @property
    def folder(self) -> LakePath:
        """Where it lies."""
        return self.root / LABELS / self.name

    @property
    def of(self) -> str:
        """``words``, or ``rows`` for labels of single tokens."""
        return str(self.record["of"])

    @property
    def columns(self) -> tuple[str, ...]:
        """Its label columns, sorted."""
        return tuple(self.record["columns"])

    @property
    def source(self) -> dict[str, Any]:
        """What the labels were made from."""
        return dict(self.record["source"])

    @property
    def lines(self) -> int:
        """Words, or tokens, of the plan."""
        return int(self.record["lines"])

    @property
    def labelled(self) -> dict[str, int]:
        """Words, or tokens, that have a value, by column."""
        return dict(self.record["labelled"])

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "name": self.name,
            "of": self.of,
            "columns": list(self.columns),
            "lines": self.lines,
            "labelled": self.labelled,
            "source": self.source,
            "identity": self.identity,
            "bytes": sum(entry["bytes"] for entry in self.record["files"]),
        }

    def table(self, block: int) -> pa.Table:
        """Return the whole table of a planned block, with the column that numbers its lines and the labels that occur in it.

        Raises
        ------
        DamageError
            When the table is missing or damaged.
        """
        entry = next(entry for entry in self.record["files"] if entry["path"] == label_file(block))
        return from_parquet(read_checked(self.folder, FileRecord(**entry)))

    def read(self, block: int, columns: Sequence[str]) -> pa.Table:
        """Return some of the columns for a planned block: one line per word, or per row with padding.

        Raises
        ------
        DamageError
            When the table is missing or damaged.
        InputError
            When the set was removed or replaced since the lake was opened.
        """
        unit = UNITS[self.of]
        entry = next(entry for entry in self.record["files"] if entry["path"] == label_file(block))
        try:
            table = from_parquet(read_checked(self.folder, FileRecord(**entry)), [unit.key, *columns])
        except DamageError:
            if _identity(self.folder) != self.identity:
                raise InputError(
                    f"the labels {self.name!r} of {self.root} were removed or replaced since the lake was opened: "
                    "open it again"
                ) from None
            raise
        return pa.table({column: column_or_null(table, column, LABEL_TYPE) for column in columns})


def label_file(block: int) -> str:
    """Name of a block's table in a label set."""
    return f"block-{block:06d}.parquet"


def label_set_names(root: LakePath) -> list[str]:
    """Names of the label sets of a lake, damaged ones included, sorted; folders of somebody else's are none.

    Raises
    ------
    StorageError
        When the folder cannot be listed.
    """
    return [name for name in kept_results(root, kept=LABELS) if is_label_set(root / LABELS / name)]


def is_label_set(folder: LakePath) -> bool:
    """Whether a folder below `LABELS` is ours: it has a record or a table, whatever state they are in."""
    with suppress(NotADirectoryError, FileNotFoundError, PermissionError):
        return any(entry.name == RECORD or _TABLE.fullmatch(entry.name) for entry in folder.iterdir())
    return True  # it is judged when it is read


def read_label_sets(root: LakePath, plan: PlanRecord) -> tuple[LabelSet, ...]:
    """Read the records of all label sets of a lake, sorted by name.

    Raises
    ------
    DamageError
        When a record is damaged, or of another plan. The set can be removed, or dropped by a repair.
    """
    found: list[LabelSet] = []
    for name in label_set_names(root):
        path = root / LABELS / name / RECORD
        try:
            data, record = read_sealed_bytes(path)
            check_plan(root, plan, record, str(path))
        except DamageError as error:
            raise DamageError(f"{error}; {_advice(root, name)}") from None
        except FileNotFoundError:
            if not path.parent.exists():  # removed meanwhile
                continue
            raise DamageError(f"{path} is missing; {_advice(root, name)}") from None
        except OSError as error:
            raise read_error(error, path) from error
        found.append(LabelSet(root=root, name=name, identity=xxhash.xxh3_64_hexdigest(data), record=record))
    return tuple(found)


def examine_label_set(root: LakePath, name: str, plan: PlanRecord | None, *, full: bool) -> dict[str, Any]:
    """Check a label set's record, the sizes of its tables and, with `full`, every byte; return the record.

    Raises
    ------
    DamageError
        When something is missing or differs, or, if a plan is given, the set is of another one.
    """
    record = kept_record(root, name, kept=LABELS, full=full)
    if plan is not None:
        check_plan(root, plan, record, str(root / LABELS / name / RECORD))
    return record


def check_plan(root: LakePath, plan: PlanRecord, record: Mapping[str, Any], what: str) -> None:
    """Raise DamageError unless a label set's record is of this plan: its lake, its blocks, its words or rows."""
    try:
        unit = UNITS[record["of"]]
        lake, told, files = record["lake"], record["tables"], {entry["path"] for entry in record["files"]}
        paths = [entry["path"] for entry in told]
    except (KeyError, TypeError) as error:
        raise DamageError(f"{what} lacks {error}") from None
    if lake != plan.fingerprint:
        raise DamageError(f"{what} is of another lake ({lake[:16]}, this one is {plan.fingerprint[:16]})")
    expected = [layout.table_path(unit.table, block) for block in range(plan.blocks)]
    if paths != expected or files != {label_file(block) for block in range(plan.blocks)}:
        raise DamageError(f"{what} is of another plan: it has {len(paths)} blocks, this one {plan.blocks}")
    for entry in told:
        promised = plan.files[entry["path"]]
        if entry["xxh3"] == promised.xxh3:
            continue
        # Other bytes may hold the same words: a plan made again by another Parquet library.
        if entry["content"] != content_digest(from_parquet(read_checked(root, promised), [*unit.content]), unit):
            raise DamageError(f"{what} is of another plan: {entry['path']} differs")


def content_digest(table: pa.Table, unit: Unit) -> str:
    """XXH3-64 over the unit's columns one after the other: integers little-endian, strings as UTF-8 ended by a zero byte."""
    digest = xxhash.xxh3_64()
    for name in unit.content:
        column = table.column(name)
        if pa.types.is_string(column.type):
            digest.update("".join(f"{text}\0" for text in column.to_pylist()).encode())
        else:
            digest.update(column.to_numpy().tobytes())
    return digest.hexdigest()


def remove_label_set(root: LakePath, name: str) -> str | None:
    """Remove a label set, a damaged one too, and return its identity; None if its record cannot be read.

    Raises
    ------
    InputError
        When there is none of that name, or somebody is writing to the lake.
    StorageError
        When the file system refuses.
    """
    if name not in (known := label_set_names(root)):
        there = f"it has {', '.join(known)}" if known else "it has none"
        raise InputError(f"no label set {name!r} in {root}: {there}")
    with writing(root):
        identity = _identity(root / LABELS / name)
        discard_label_set(root, name)
    return identity


def discard_label_set(root: LakePath, name: str) -> None:
    """Remove a label set; the caller holds the lake's lock."""
    discard(root, name, kept=LABELS, sync=True)
    folder = root / LABELS
    if isinstance(folder, Path):
        with suppress(OSError):  # the last one is gone
            folder.rmdir()


def _identity(folder: LakePath) -> str | None:
    with suppress(OSError):
        return xxhash.xxh3_64_hexdigest((folder / RECORD).read_bytes())
    return None


def _advice(root: LakePath, name: str) -> str:
    return f"`neuronlake label {root} --remove {name}` removes these labels, `neuronlake verify {root} --repair` too"
