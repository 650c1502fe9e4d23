"""The plan's tables as Parquet: what every row is (`plan`), the words with their labels, the sentences with their text."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

# Bits of the `flags` column. A row with any of them has no single word (word = −1).
SPECIAL = 1
"""Special token (beginning of sequence, …)."""
PADDING = 2
"""Unused row at the end of a block; token_id = −1."""
MULTI = 4
"""The token covers characters of more than one word."""
UNCOVERED = 8
"""The token covers no word's character (white space, or text that the corpus does not count as a word); of speech, no word
is being said at the frame's centre."""

PLAN_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("document", pa.int32()),
        ("sentence", pa.int64()),
        ("position", pa.int32()),  # within the forward pass's sequence
        ("token_id", pa.int32()),
        ("word", pa.int64()),
        ("subword", pa.int16()),
        ("is_last_subword", pa.bool_()),
        ("char_start", pa.int32()),  # in the sentence's text; −1 for special and padding rows
        ("char_end", pa.int32()),
        ("flags", pa.uint8()),
    ]
)
WORD_COLUMNS = [
    ("word", pa.int64()),
    ("sentence", pa.int64()),
    ("index", pa.int32()),  # within the sentence, from 0
    ("form", pa.string()),
    ("char_start", pa.int32()),
    ("char_end", pa.int32()),
]
SENTENCE_SCHEMA = pa.schema(
    [
        ("sentence", pa.int64()),
        ("document", pa.int32()),
        ("document_name", pa.string()),
        ("name", pa.string()),
        ("source", pa.string()),
        ("text", pa.string()),
        ("metadata", pa.string()),  # JSON object
    ]
)
LABEL_TYPE = pa.dictionary(pa.int32(), pa.string())
SENTENCE_LABELS = ("source", "document_name")
RESERVED = frozenset(PLAN_SCHEMA.names) | {name for name, _ in WORD_COLUMNS} | set(SENTENCE_SCHEMA.names)


def word_schema(labels: list[str]) -> pa.Schema:
    """Return the schema of a words table with those label columns."""
    return pa.schema([*WORD_COLUMNS, *((label, LABEL_TYPE) for label in labels)])


def to_parquet(table: pa.Table) -> bytes:
    """Serialise a table; the same table and pyarrow version always give the same bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", compression_level=3, write_page_checksum=True)
    return sink.getvalue()


def from_parquet(data: bytes, columns: list[str] | None = None) -> pa.Table:
    """Parse what `to_parquet` wrote; `columns` that the file lacks are left out."""
    source = pq.ParquetFile(io.BytesIO(data))
    if columns is not None:
        columns = [column for column in columns if column in source.schema_arrow.names]
    return source.read(columns=columns, use_threads=False)  # a small table: threads cost more than they save


def column_or_null(table: pa.Table, name: str, kind: Any) -> pa.ChunkedArray:
    """Return a column, or nulls where this block's file does not have it (no word of the block has that label)."""
    if name in table.column_names:
        return table.column(name)
    return pa.chunked_array([pa.nulls(table.num_rows, kind)])
