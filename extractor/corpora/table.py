"""Text tagged beforehand, one record a sentence: JSON lines (plain or gzip) or Parquet."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from neuronlake.extractor.corpora.files import SourceFile, check_settings, expand, identify, read_lines
from neuronlake.extractor.corpora.records import Sentence, Word
from neuronlake.extractor.corpora.spans import lay_out, locate
from neuronlake.store.errors import InputError

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")

RESERVED_LABELS = frozenset(
    {
        "form",
        "word",
        "sentence",
        "document",
        "source",
        "start",
        "end",
        "row",
        "token_id",
        "position",
        "subword",
    }
)
"""Columns of a lake's own tables; a label of that name would hide one."""

_OWN_COLUMNS = frozenset({"words", "text", "spaces", "document", "sentence"})
_BATCH_ROWS = 256  # Parquet rows held in memory at a time


@dataclass(frozen=True, kw_only=True)
class TableCorpus:
    """Sentences tagged beforehand: one JSON object a line, or one Parquet row, for each.

    ``words`` (list of strings) is required. ``text`` gives the sentence (words are looked up in it); without it,
    ``spaces`` (list of booleans: is there a space after the word?) or else a space between words rebuild it.
    ``document`` and ``sentence`` are ids; by default a file is one document. Any other list must be as long as
    ``words`` and is a label column (null and ``""`` mean absent, other scalars become strings); any other scalar is
    metadata of the sentence.
    """

    paths: tuple[Path, ...]
    """Files and folders; of a folder every ``*.jsonl``, ``*.jsonl.gz`` and ``*.parquet``, at any depth, sorted."""
    limit_sentences: int | None = None
    """Stop after so many sentences of the whole corpus."""

    def __post_init__(self) -> None:
        check_settings(self.paths, self.limit_sentences)

    def sentences(self) -> Iterator[Sentence]:
        """Yield every sentence in file order.

        Raises
        ------
        InputError
            At the first missing, unreadable or malformed file, naming file and line (JSON) or row (Parquet).
        """
        files = table_files(self.paths)
        return islice((sentence for file in files for sentence in _read(file)), self.limit_sentences)

    def identity(self) -> dict[str, Any]:
        """Return what determines the stream."""
        return {"kind": "table", "files": identify(table_files(self.paths)), "limit_sentences": self.limit_sentences}


def table_files(paths: Sequence[Path], *, hint: str = "") -> list[SourceFile]:
    """Return the tables that `paths` stand for, see `expand`; InputError, ending in `hint`, for a file of another kind."""
    files = expand(paths, suffixes=SUFFIXES)
    for file in files:
        if not file.name.lower().endswith(SUFFIXES):
            raise InputError(f"{file.path}: unknown kind of table; expected a file named *{' or *'.join(SUFFIXES)}{hint}")
    return files


def read_records(file: SourceFile) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place for error messages, record) of a table; InputError where it cannot be read."""
    return _parquet_records(file) if file.name.lower().endswith(".parquet") else _json_records(file)


def _read(file: SourceFile) -> Iterator[Sentence]:
    for ordinal, (place, record) in enumerate(read_records(file), start=1):
        yield _sentence(file, place, record, ordinal)


def _json_records(file: SourceFile) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in read_lines(file):
        if not line.strip():
            continue
        place = f"{file.name}:{number}"
        try:
            record = json.loads(line, object_pairs_hook=_unique_keys)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place}: not a JSON object on one line ({error})") from error
        if not isinstance(record, dict):
            raise InputError(f"{place}: expected a JSON object, got {type(record).__name__}")
        yield place, record


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        # json keeps the last of equal keys, which would drop a label column unseen.
        raise ValueError("a key is given twice")
    return record


def _parquet_records(file: SourceFile) -> Iterator[tuple[str, dict[str, Any]]]:
    row = 0
    try:
        with pq.ParquetFile(file.path) as parquet:
            names = parquet.schema_arrow.names
            if len(set(names)) < len(names):
                raise InputError(f"{file.name}: a column name is given twice; rename one of {sorted(names)}")
            for batch in parquet.iter_batches(batch_size=_BATCH_ROWS):
                for record in batch.to_pylist():
                    row += 1
                    yield f"{file.name}: row {row}", record
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{file.name}: not a readable Parquet file after row {row} ({reason})") from error


def _sentence(file: SourceFile, place: str, record: Mapping[str, Any], ordinal: int) -> Sentence:
    words = _strings(record.get("words"), place)
    document = identifier(record, "document", place) or file.stem
    name = identifier(record, "sentence", place) or f"{file.stem}:{ordinal}"
    columns, metadata = _split(record, len(words), place)
    text = record.get("text")
    if text is None:
        text, spans = lay_out(words, _spaces(record.get("spaces"), len(words), place))
    elif isinstance(text, str):
        spans = locate(text, words, where=lambda index: f"{place}: sentence {name}, words[{index}]")
    else:
        raise InputError(f"{place}: text must be a string, got {text!r}")
    return Sentence(
        text=text,
        words=tuple(
            Word(
                form=form,
                start=start,
                end=end,
                labels={label: values[index] for label, values in columns.items() if values[index]},
            )
            for index, (form, (start, end)) in enumerate(zip(words, spans, strict=True))
        ),
        name=name,
        document=document,
        source=file.name,
        place=place,
        metadata=metadata,
    )


def _strings(words: Any, place: str) -> list[str]:
    if not isinstance(words, list) or not words:
        raise InputError(f"{place}: words must be a list of at least one string, got {words!r}")
    for index, word in enumerate(words):
        if not isinstance(word, str) or not word.strip():
            raise InputError(f"{place}: words[{index}] must be a string that is not blank, got {word!r}")
    return words


def _spaces(spaces: Any, count: int, place: str) -> Sequence[bool]:
    if spaces is None:
        return [True] * count
    if not isinstance(spaces, list) or len(spaces) != count or not all(isinstance(space, bool) for space in spaces):
        raise InputError(f"{place}: spaces must be a list of {count} booleans, one a word, got {spaces!r}")
    return spaces


def identifier(record: Mapping[str, Any], key: str, place: str) -> str:
    """Return an id as a string, ``""`` where there is none; InputError for a list."""
    value = record.get(key)
    if isinstance(value, list):
        raise InputError(f"{place}: {key!r} is the id of the {key} and cannot be a label column; rename the column")
    return scalar(value, key, place)


def _split(record: Mapping[str, Any], count: int, place: str) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Tell label columns (name -> one string a word, ``""`` where absent) from metadata."""
    columns: dict[str, list[str]] = {}
    metadata: dict[str, str] = {}
    for key, value in record.items():
        if key in _OWN_COLUMNS:
            continue
        if not isinstance(value, list):
            if text := scalar(value, key, place):
                metadata[key] = text
            continue
        if key in RESERVED_LABELS or not key:
            raise InputError(f"{place}: {key!r} cannot be the name of a label, neuronlake uses it itself; rename the column")
        if len(value) != count:
            raise InputError(f"{place}: label column {key!r} has {len(value)} values, expected {count}, one a word")
        columns[key] = [scalar(item, f"{key}[{index}]", place) for index, item in enumerate(value)]
    return columns, metadata


def scalar(value: Any, name: str, place: str) -> str:
    """Return a value as a string, ``""`` for null and NaN; InputError for what is no text, number or boolean."""
    if value is None or (isinstance(value, float) and math.isnan(value)):  # pandas writes a missing value as NaN
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes | list | dict | tuple):
        raise InputError(f"{place}: {name} must be text, a number or null, got {value!r}")
    return str(value)
