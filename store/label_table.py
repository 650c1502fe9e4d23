"""Labels from a table that somebody made: by word number, by row number, or one line per word in order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from neuronlake.store.compose_tokens import Coded, encode_column
from neuronlake.store.errors import InputError
from neuronlake.store.foreign import file_sha256
from neuronlake.store.foreign_tokens import read_token_table
from neuronlake.store.label_adding import (
    ColumnNames,
    LabelSettings,
    Progress,
    add_label_set,
    labelling,
    set_name,
)
from neuronlake.store.label_sets import UNITS, LabelSet
from neuronlake.store.lake import Lake
from neuronlake.store.objects import LakeName, lake_path
from neuronlake.store.tables import PADDING

_FORM = "form"


def label_from_table(
    root: LakeName,
    table: str | Path | pa.Table,
    settings: LabelSettings | None = None,
    *,
    progress: Progress | None = None,
) -> LabelSet:
    """Add the columns of a table to a lake as labels of its words or rows.

    A column ``word`` numbers the lake's words and ``row`` its rows, as `Lake.words` and `Lake.tokens` do: in any order,
    and those that are not listed get no label. Without either, the table has one line per word of the plan, in order, and
    ``form``. Forms are compared with the lake's wherever they are given for words. Every other column becomes a label:
    text, numbers and booleans as text; null, NaN and empty text are no label.

    Parameters
    ----------
    root
        The lake. Its blocks need not be extracted.
    table
        A file ``*.parquet``, ``*.csv``, ``*.tsv`` or ``*.jsonl``, or an Arrow table (``pyarrow.Table.from_pandas(frame)``).
    settings
        Names.
    progress
        Called with words or rows done, and all.

    Raises
    ------
    InputError
        When the table cannot be read; a number does not exist or occurs twice; a form is another one; a column's name is
        taken. Nothing is added then.
    StorageError
        When the file system refuses.
    """
    root, settings = lake_path(root), settings or LabelSettings()
    path = None if isinstance(table, pa.Table) else Path(table)
    with labelling(root) as lake:
        name = set_name(lake, settings, "table" if path is None else path.stem)
        lines = _Lines(lake, str(path or "the table"), table if path is None else read_token_table(path), settings)
        files = [] if path is None else [{"name": path.name, "sha256": file_sha256(path)}]
        return add_label_set(
            lake,
            name,
            lines.blocks(),
            settings=settings,
            source={"kind": "table", "files": files},
            of=lines.of,
            progress=progress,
        )


@dataclass(kw_only=True)
class _Scattered:
    """A table's columns by word or row number."""

    line: NDArray[np.int64] = field(repr=False)
    """Line of the table, −1 where there is none."""
    columns: dict[str, Coded]

    def strings(self, column: str, first: int, last: int) -> pa.Array:
        line, coded = self.line[first:last], self.columns[column]
        codes = np.where(line >= 0, coded.codes[line], -1)
        return coded.values.take(pa.array(codes, mask=codes < 0))


class _Lines:
    """The table's lines, brought to the lake's words or rows."""

    def __init__(self, lake: Lake, path: str, table: pa.Table, settings: LabelSettings):
        self._lake, self._path = lake, path
        names = table.column_names
        if {"word", "row"} <= set(names):
            raise InputError(f"{path} has a column word and a column row: drop the one that the labels are not given by")
        self.of = "rows" if "row" in names else "words"
        self._key = UNITS[self.of].key if UNITS[self.of].key in names else None
        if self._key is None and _FORM not in names:
            raise InputError(
                f"{path} has neither word nor row nor form among its columns ({', '.join(names)}): number the lake's words "
                "in a column word, or its rows in row, or give one line per word in order with its form"
            )
        if table.num_rows == 0:
            raise InputError(f"{path} has no lines: there is nothing to label with")
        own = {self._key, _FORM} if self.of == "words" else {self._key}
        offered = [name for name in names if name not in own]
        checked = ColumnNames(lake, settings)
        checked.check_offered(offered)
        self._given = list(checked.take(offered))
        if not self._given:
            raise InputError(f"{path} has no column for a label ({', '.join(names)})")
        self._forms = self.of == "words" and _FORM in names
        wanted = [*self._given, *([_FORM] if self._forms else [])]
        coded = {column: encode_column(column, table.column(column)) for column in wanted}
        self._table_lines = table.num_rows
        self._lines = _Scattered(line=self._places(table), columns=coded)

    def blocks(self) -> Iterator[dict[str, pa.Array]]:
        """Columns of block after block, checked on the way."""
        first = 0
        for block in range(self._lake.plan.blocks):
            if self.of == "words":
                planned = self._lake.read_table("words", block, ["word", _FORM])
                last = first + planned.num_rows
                if self._forms:
                    self._check_forms(planned.column(_FORM), first)
            else:
                last = first + self._lake.block_rows
                self._check_rows(self._lake.read_table("plan", block, ["flags"]).column("flags").to_numpy(), first)
            yield {column: self._lines.strings(column, first, last) for column in self._given}
            first = last
        if self._key is None and self._table_lines > first:
            raise InputError(
                f"{self._path} has {self._table_lines} records, {self._lake.path} {first} words: expected one record per "
                "word; nothing was added"
            )

    def _places(self, table: pa.Table) -> NDArray[np.int64]:
        """Line of the table for every word or row of the lake."""
        lake = self._lake
        count = lake.plan.counts["words"] if self.of == "words" else lake.plan.blocks * lake.block_rows
        if self._key is None:
            return np.where(np.arange(count) < table.num_rows, np.arange(count), -1)
        numbers = _whole_numbers(table.column(self._key), self._key, self._path)
        outside = np.flatnonzero((numbers < 0) | (numbers >= count))
        if len(outside):
            raise InputError(
                f"{self._path}: record {outside[0] + 1} is of {self._key} {numbers[outside[0]]}, {lake.path} has "
                f"{self._key}s 0 to {count - 1}; nothing was added"
            )
        lines = np.full(count, -1, dtype=np.int64)
        lines[numbers[::-1]] = np.arange(len(numbers))[::-1]  # the first of several is assigned last
        again = np.flatnonzero(lines[numbers] != np.arange(len(numbers)))
        if len(again):
            number = numbers[again[0]]
            raise InputError(
                f"{self._path}: {self._key} {number} occurs twice, in records {lines[number] + 1} and {again[0] + 1}; "
                "nothing was added"
            )
        return lines

    def _check_forms(self, planned: pa.ChunkedArray, first: int) -> None:
        theirs = self._lines.strings(_FORM, first, first + len(planned))
        listed = self._lines.line[first : first + len(planned)] >= 0
        differ = pc.not_equal(pc.fill_null(planned.combine_chunks(), ""), pc.fill_null(theirs, "")).to_numpy(
            zero_copy_only=False
        )
        if self._key is not None:
            differ &= listed
        if not differ.any():
            return
        place = int(np.argmax(differ))
        word = first + place
        expected = f"expected {planned[place].as_py()!r} as in {self._lake.path}"
        if not listed[place]:
            raise InputError(
                f"{self._path} ends after {self._table_lines} records at word {word}: {expected}, one record per word; "
                "nothing was added"
            )
        got = theirs[place].as_py()
        raise InputError(
            f"{self._path}: record {self._lines.line[word] + 1} has another form of word {word}: {expected}, "
            f"got {'none' if got is None else repr(got)}; nothing was added"
        )

    def _check_rows(self, flags: NDArray[np.uint8], first: int) -> None:
        line = self._lines.line[first : first + len(flags)]
        padding = np.flatnonzero((flags == PADDING) & (line >= 0))
        if len(padding):
            raise InputError(
                f"{self._path}: record {line[padding[0]] + 1} is of row {first + padding[0]}, which is padding in "
                f"{self._lake.path}: it has no token; nothing was added"
            )


def _whole_numbers(column: pa.ChunkedArray, name: str, path: str) -> NDArray[np.int64]:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    try:
        numbers = column.cast(pa.int64())
    except pa.ArrowException:
        line, value = _first_wrong(column.to_pylist())
        raise InputError(
            f"{path}: record {line + 1} has {name} {value!r}, expected a whole number; nothing was added"
        ) from None
    if numbers.null_count:
        line = pc.index(pc.is_null(numbers), True).as_py()
        raise InputError(f"{path}: record {line + 1} has no {name}, expected a whole number; nothing was added")
    values: NDArray[np.int64] = numbers.to_numpy()
    return values


def _first_wrong(values: Sequence[object]) -> tuple[int, object]:
    for line, value in enumerate(values):
        try:
            pa.scalar(value).cast(pa.int64())
        except pa.ArrowException:
            return line, value
    return 0, values[0]
