"""The token and word tables of a lake, joined with labels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import neuronlake.store.tables as tables
from neuronlake.store.errors import InputError

if TYPE_CHECKING:
    from neuronlake.store.label_sets import LabelSet
    from neuronlake.store.lake import Lake


def token_table(lake: "Lake", labels: tuple[str, ...], blocks: Sequence[int]) -> pa.Table:
    """Token table of `blocks` with label columns, see `Lake.tokens`."""
    added = _added(lake, labels)
    parts = [_block_tokens(lake, labels, added, block) for block in blocks]
    if not parts:
        schema = pa.schema([*tables.PLAN_SCHEMA, *((label, tables.LABEL_TYPE) for label in labels)])
        return schema.empty_table()
    return pa.concat_tables(parts).unify_dictionaries()


def word_table(lake: "Lake", columns: tuple[str, ...] | None, blocks: Sequence[int]) -> pa.Table:
    """Word table of `blocks` with all (`columns` None) or some columns, see `Lake.words`."""
    planned = tables.word_schema(list(lake.plan.label_columns))
    added: dict[str, LabelSet] = {}
    if columns is None or not set(columns) <= set(planned.names):
        added = {column: labels for labels in lake.label_sets if labels.of == "words" for column in labels.columns}
    schema = pa.schema([*planned, *((column, tables.LABEL_TYPE) for column in added)])
    if columns is not None:
        for column in columns:
            if column not in schema.names:
                raise InputError(f"no word column {column!r} in {lake.path}: it has {', '.join(schema.names)}")
        schema = pa.schema([schema.field(column) for column in columns])
        added = {column: labels for column, labels in added.items() if column in columns}
    parts = []
    for block in blocks:
        table = lake.read_table("words", block, [name for name in schema.names if name not in added])
        # at least one real column, so that a selection of labels that a block lacks keeps its length
        length = table.num_rows if table.num_columns else lake.read_table("words", block, ["word"]).num_rows
        found = _read_added(added, block)
        arrays = [
            found[field.name]
            if field.name in found
            else table.column(field.name)
            if field.name in table.column_names
            else pa.chunked_array([pa.nulls(length, field.type)])
            for field in schema
        ]
        parts.append(pa.Table.from_arrays(arrays, schema=schema))
    return pa.concat_tables(parts).unify_dictionaries() if parts else schema.empty_table()


def _added(lake: "Lake", labels: Sequence[str]) -> "dict[str, LabelSet]":
    """Find the label sets that hold those of the labels which were added later, or raise InputError for an unknown one."""
    found = {}
    for label in labels:
        if label in lake.plan.label_columns or label == "form" or label in tables.SENTENCE_LABELS:
            continue  # also where an added set is damaged
        if label not in lake.label_columns:
            raise InputError(f"no label column {label!r} in {lake.path}: it has {', '.join(lake.label_columns)}")
        found[label] = next(labels for labels in lake.label_sets if label in labels.columns)
    return found


def _read_added(added: "dict[str, LabelSet]", block: int) -> dict[str, pa.ChunkedArray]:
    """Columns of a block that were added later; every set is read once."""
    columns: dict[str, pa.ChunkedArray] = {}
    for name in {labels.name for labels in added.values()}:
        mine = [column for column, labels in added.items() if labels.name == name]
        table = added[mine[0]].read(block, mine)
        columns |= {column: table.column(column) for column in mine}
    return columns


def _block_tokens(lake: "Lake", labels: tuple[str, ...], added: "dict[str, LabelSet]", block: int) -> pa.Table:
    rows = lake.read_table("plan", block)
    if not labels:
        return rows
    words = lake.read_table("words", block, ["word", "sentence", *(label for label in labels if label not in added)])
    later = _read_added(added, block)
    word = rows.column("word").to_numpy()
    first = words.column("word")[0].as_py() if words.num_rows else 0
    # Words of a block are numbered without gaps, so the join is an indexed take; −1 becomes null.
    word_index = pa.array(word - first, mask=word < 0)
    for label in labels:
        if label in added and added[label].of == "rows":
            column = later[label]
        elif label in tables.SENTENCE_LABELS:
            sentences = lake.read_table("sentences", block, ["sentence", label])
            sentence = rows.column("sentence").to_numpy()
            first_sentence = sentences.column("sentence")[0].as_py()
            index = pa.array(np.maximum(sentence - first_sentence, 0), mask=sentence < 0)
            column = pc.dictionary_encode(sentences.column(label).take(index))
        else:
            column = later[label] if label in later else tables.column_or_null(words, label, tables.LABEL_TYPE)
            column = column.take(word_index)
            if label == "form":
                column = pc.dictionary_encode(column)
        rows = rows.append_column(label, column.cast(tables.LABEL_TYPE))
    return rows
