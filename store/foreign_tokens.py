"""A table about the rows of a source, from a file: Parquet, CSV, TSV or JSON lines."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from neuronlake.store.errors import InputError
from neuronlake.store.foreign import unreadable

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl")


def read_token_table(path: Path) -> pa.Table:
    """Read one line per row. CSV and TSV have a header; their values stay text as written, so that ``01`` is not 1.

    A TSV file has no quoting, since ``"`` is a token like others; a CSV file has the usual one. Empty cells are null.

    Raises
    ------
    InputError
        When the file is missing, of another kind, or malformed; a line is named where one is at fault.
    """
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise InputError(f"{path}: unknown kind of token table; expected a file named *{' or *'.join(SUFFIXES)}")
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        if kind == ".parquet":
            table = pq.read_table(path)
        elif kind == ".jsonl":
            table = _read_json_lines(path)
        else:
            table = _read_separated(path, "\t" if kind == ".tsv" else ",")
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise unreadable(path, error, f"a readable {kind} file") from None
    if len(set(table.column_names)) < table.num_columns:
        raise InputError(f"{path}: a column name is given twice; rename one of {', '.join(table.column_names)}")
    return table


def _read_separated(path: Path, delimiter: str) -> pa.Table:
    parsing = csv.ParseOptions(
        delimiter=delimiter,
        quote_char=False if delimiter == "\t" else '"',
        newlines_in_values=delimiter != "\t",
        ignore_empty_lines=False,
    )
    with csv.open_csv(path, parse_options=parsing) as reader:
        names = reader.schema.names
    converting = csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=True,
    )
    return csv.read_csv(path, parse_options=parsing, convert_options=converting)


def _read_json_lines(path: Path) -> pa.Table:
    columns: dict[str, list[Any]] = {}
    rows = 0
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}:{number}: not a JSON object on one line ({error})") from None
            if not isinstance(record, dict):
                raise InputError(f"{path}:{number}: expected a JSON object, got {type(record).__name__}")
            for name in record.keys() - columns.keys():
                columns[name] = [None] * rows
            for name, column in columns.items():
                column.append(record.get(name))
            rows += 1
    try:
        return pa.table({name: pa.array(column) for name, column in columns.items()})
    except (pa.ArrowException, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path}: a column holds values of different kinds ({reason})") from None
