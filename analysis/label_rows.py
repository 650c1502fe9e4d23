"""Labels row by row: of columns, joined columns and SQL expressions, of the token itself or of a word further on."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from neuronlake.analysis.source import LakeSource
from neuronlake.analysis.sql import Expression, evaluate
from neuronlake.store.errors import InputError
from neuronlake.store.lake import Lake
from neuronlake.store.tables import SENTENCE_LABELS

JOIN = "×"
"""Between the values of joined labels, and between their columns."""


def column_rows(source: LakeSource, table: Any, column: str, shift: int) -> tuple[NDArray[np.int32], list[str]]:
    """For each row of the token table the index of its label's value, −1 where there is none."""
    if shift == 0:
        return _encode(table.column(column))
    if of_rows(source, column):
        codes, values = _encode(table.column(column))
        return _of_last_subword(source, table, codes, shift), values
    of_sentence = column in SENTENCE_LABELS
    word_table = source.words(["word", "sentence"] if of_sentence else ["word", "sentence", column])
    target = _shifted_words(word_table, numpy_column(table, "word"), shift)
    if of_sentence:
        codes, values = _encode(table.column(column))
        return np.where(target >= 0, codes, np.int32(-1)), values
    word_codes, values = _encode(word_table.column(column))
    return np.append(word_codes, np.int32(-1))[target], values


def sql_rows(source: LakeSource, table: Any, label: Expression, shift: int) -> tuple[NDArray[np.int32], list[str]]:
    """As `column_rows`, of an expression."""
    rows, answers = evaluate(label, table)
    answer_codes, values = _encode(answers)
    codes = np.full(table.num_rows, -1, dtype=np.int32)
    codes[rows] = answer_codes
    return codes if shift == 0 else _of_last_subword(source, table, codes, shift), values


def of_rows(source: LakeSource, column: str) -> bool:
    """Whether a label column says something of single tokens, not of words."""
    return isinstance(source, Lake) and any(labels.of == "rows" and column in labels.columns for labels in source.label_sets)


def join_rows(parts: Sequence[tuple[NDArray[np.int32], list[str]]], by: str) -> tuple[NDArray[np.int32], list[str]]:
    """Join several labels of the rows to one; a row that lacks one has none."""
    codes, values = parts[0]
    for more, more_values in parts[1:]:
        pairs = np.where((codes >= 0) & (more >= 0), codes.astype(np.int64) * len(more_values) + more, -1)
        used, place = np.unique(np.append(pairs, -1), return_inverse=True)  # used[0] is −1
        codes = place[:-1].astype(np.int32) - np.int32(1)
        values = [f"{values[pair // len(more_values)]}{JOIN}{more_values[pair % len(more_values)]}" for pair in used[1:]]
        if len(set(values)) < len(values):
            raise InputError(f"values of {by!r} that hold a {JOIN} cannot be told apart when joined")
    return codes, values


def _of_last_subword(source: LakeSource, table: Any, codes: NDArray[np.int32], shift: int) -> NDArray[np.int32]:
    """For each row the code of the last sub-word of the word `shift` places on, −1 where there is none."""
    words, word_table = numpy_column(table, "word"), source.words(["word", "sentence"])
    own, target = (_shifted_words(word_table, words, places) for places in (0, shift))
    last = np.full(word_table.num_rows + 1, -1, dtype=np.int64)  # the last entry is for −1
    with_word = np.flatnonzero(own >= 0)
    last[own[with_word]] = with_word  # of a word's rows the last is assigned last
    return np.append(codes, np.int32(-1))[last[target]]


def _shifted_words(word_table: Any, words: NDArray[np.int64], shift: int) -> NDArray[np.int64]:
    """Line of the word table that holds the word `shift` places on in the same sentence, −1 where there is none."""
    ids, sentences = numpy_column(word_table, "word"), numpy_column(word_table, "sentence")
    if not ids.size:
        return np.full(len(words), -1, dtype=np.int64)
    order = np.argsort(ids, kind="stable")

    def lines(wanted: NDArray[np.int64]) -> NDArray[np.int64]:
        found = order[np.minimum(np.searchsorted(ids, wanted, sorter=order), ids.size - 1)]
        return np.where(ids[found] == wanted, found, -1)

    # Words are numbered without gaps, in text order.
    here, there = lines(words), lines(words + shift)
    valid = (words >= 0) & (here >= 0) & (there >= 0) & (sentences[here] == sentences[there])
    return np.where(valid, there, -1)


def _encode(column: Any) -> tuple[NDArray[np.int32], list[str]]:
    """Values of a string or dictionary column, and every line's index among them (−1 for null)."""
    encoded = pc.dictionary_encode(column.cast(pa.string())).combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):  # a column without any chunk
        return np.empty(0, dtype=np.int32), []
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    return codes, encoded.dictionary.to_pylist()


def numpy_column(table: Any, name: str) -> NDArray[Any]:
    """Return a column without nulls as an array, (rows,)."""
    values: NDArray[Any] = table.column(name).to_numpy()
    return values
