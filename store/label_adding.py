"""Adding a label set to a lake: names that are new there, one table per planned block, all of it or nothing."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import neuronlake.store.layout as layout
import neuronlake.store.tables as tables
from neuronlake.store.create import remove_temporary
from neuronlake.store.errors import InputError
from neuronlake.store.files import stale_temporaries, storage_error, write_plain
from neuronlake.store.kept import publish, staging
from neuronlake.store.label_sets import (
    LABELS,
    UNITS,
    LabelSet,
    content_digest,
    label_file,
    label_set_names,
    read_label_sets,
)
from neuronlake.store.lake import Lake, open_lake
from neuronlake.store.lock import writing
from neuronlake.store.objects import LakePath

Progress = Callable[[int, int], None]
"""Called with (words or rows done, all)."""

_NAME = re.compile(r"[^\W_][\w.+-]{0,99}")
_SHOWN = 6


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """Under which names labels are added.

    Raises
    ------
    InputError
        When the set's name is none for a folder.
    """

    name: str | None = None
    """Of the set; by default its source's."""
    prefix: str = ""
    """Put before the name of every column."""
    columns: tuple[str, ...] | None = None
    """Only these columns of the source, without the prefix; None means all."""

    def __post_init__(self) -> None:
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise InputError(
                f"{self.name!r} cannot be the name of a label set: expected letters, digits and any of . _ + - after the "
                "first character, 100 at most"
            )

    def choose(self, given: Iterable[str]) -> list[str]:
        """Return the source's columns that are wanted, in its order."""
        return [name for name in given if self.columns is None or name in self.columns]


@contextmanager
def labelling(root: LakePath) -> Iterator[Lake]:
    """Be the lake's only writer and give the lake; what a killed run left of a label set is removed."""
    open_lake(root)  # its errors first: taking the lock makes the folder
    with writing(root):
        for temporary in stale_temporaries(root / LABELS):
            remove_temporary(temporary)
        yield open_lake(root)


def set_name(lake: Lake, settings: LabelSettings, source: str) -> str:
    """Return the name of a new label set: as the settings say, else made from that of its source.

    Raises
    ------
    InputError
        When the lake has a label set of that name.
    """
    name = settings.name or re.sub(r"^[\W_]+|[^\w.+-]+", "-", source).strip("-")[:100] or LABELS
    for other in label_set_names(lake.path):
        if other.casefold() == name.casefold():
            raise InputError(
                f"{lake.path} has a label set {other!r} already: give this one another name with --name, or remove that one "
                f"with `neuronlake label {lake.path} --remove {other}`"
            )
    return name


def add_label_set(
    lake: Lake,
    name: str,
    blocks: Iterable[Mapping[str, pa.Array]],
    *,
    settings: LabelSettings,
    source: Mapping[str, Any],
    of: str = "words",
    progress: Progress | None = None,
) -> LabelSet:
    """Write a label set, all of it or nothing. The caller holds the lake's lock (`labelling`).

    Parameters
    ----------
    name
        From `set_name`.
    blocks
        For every block of the plan, in order: the source's columns that occur there, strings, one line per word, or per row
        of the block. What this raises ends the writing, and nothing is added.
    source
        What the labels were made from, JSON-compatible.
    of
        ``words`` or ``rows``.

    Raises
    ------
    InputError
        When a column's name is taken or cannot be one, or a wanted column is not there.
    StorageError
        When the file system refuses.
    """
    unit, names, labelled, told, done = UNITS[of], ColumnNames(lake, settings), Counter[str](), [], 0
    total = lake.plan.counts["words"] if of == "words" else lake.plan.counts["tokens"] + lake.plan.counts["special"]
    with _staged(lake.path, name) as folder:
        for block, given in zip(range(lake.plan.blocks), blocks, strict=True):
            path = layout.table_path(unit.table, block)
            lines = lake.read_table(unit.table, block, [*unit.content, *(["flags"] if of == "rows" else [])])
            table = lines.select([unit.key])
            for column, label in names.take(given).items():
                if len(given[column]) != lines.num_rows:
                    raise ValueError(f"{len(given[column])} values of {column!r} for {lines.num_rows} {of}")
                count = lines.num_rows - given[column].null_count
                labelled[label] += count
                if count:
                    values = given[column].dictionary_encode()
                    table = table.append_column(label, values.cast(tables.LABEL_TYPE))
            _write(folder / label_file(block), tables.to_parquet(table))
            told.append({"path": path, "xxh3": lake.plan.files[path].xxh3, "content": content_digest(lines, unit)})
            done += lines.num_rows if of == "words" else _tokens(lines)
            if progress is not None:
                progress(done, total)
        names.check_all_found()
        record = {
            "lake": lake.fingerprint,
            "of": of,
            "source": dict(source),
            "prefix": settings.prefix,
            "columns": sorted(labelled),
            "labelled": dict(sorted(labelled.items())),
            "lines": total,
            "tables": told,
        }
        publish(folder, name, record, sync=True)
    return next(labels for labels in read_label_sets(lake.path, lake.plan) if labels.name == name)


class ColumnNames:
    """Names of the columns to be added, checked when they are first met."""

    def __init__(self, lake: Lake, settings: LabelSettings):
        self._lake, self._settings = lake, settings
        self._taken = {name.casefold(): name for name in (*tables.RESERVED, *lake.label_columns)}
        self._found: dict[str, str] = {}
        self._offered: dict[str, None] = {}

    def take(self, given: Iterable[str]) -> dict[str, str]:
        """Return the wanted ones of a source's columns with their names in the lake.

        Raises
        ------
        InputError
            When one is there already, whatever its case, or cannot be a name.
        """
        given = list(given)
        self._offered |= dict.fromkeys(given)
        wanted = self._settings.choose(given)
        self._check_new([name for name in wanted if name not in self._found])
        return {name: self._found[name] for name in wanted}

    def check_all_found(self) -> None:
        """Raise InputError when a column that was asked for did not come, or none did."""
        self.check_offered(self._offered)
        if not self._found:
            raise InputError("there is no label in the source: nothing was added")

    def check_offered(self, offered: Iterable[str]) -> None:
        """Raise InputError when a column that was asked for is not offered."""
        offered = list(offered)
        if missing := [name for name in self._settings.columns or () if name not in offered]:
            raise InputError(
                f"no column {', '.join(map(repr, missing))} in the source: it has {', '.join(offered) or 'none'}; "
                "nothing was added"
            )

    def _check_new(self, given: Sequence[str]) -> None:
        clashes = []
        for name in given:
            label = self._settings.prefix + name
            if not name or label != label.strip() or not label.isprintable():
                raise InputError(f"{label!r} cannot be the name of a label column: expected printable characters")
            other = self._taken.get(label.casefold())
            if other is not None:
                clashes.append(repr(other) if other == label else f"{other!r} (for {label!r})")
                continue
            self._taken[label.casefold()] = label
            self._found[name] = label
        if clashes:
            shown = ", ".join(clashes[:_SHOWN]) + (f" and {len(clashes) - _SHOWN} more" if len(clashes) > _SHOWN else "")
            raise InputError(
                f"{self._lake.path} has {shown} already: add --prefix P to name the new ones P…, or pick others with "
                "--columns; nothing was added"
            )


@contextmanager
def _staged(root: LakePath, name: str) -> Iterator[Path]:
    try:
        with staging(root, name, kept=LABELS) as folder:
            yield folder
    finally:
        above = root / LABELS
        if isinstance(above, Path):
            with suppress(OSError):  # nothing was added, and there is nothing else in it
                above.rmdir()


def _write(path: Path, data: bytes) -> None:
    try:
        write_plain(path, [data], sync=True)
    except OSError as error:
        raise storage_error(error, path, "write") from error


def _tokens(rows: pa.Table) -> int:
    """Rows that are no padding."""
    return int(np.count_nonzero(rows.column("flags").to_numpy() != tables.PADDING))
