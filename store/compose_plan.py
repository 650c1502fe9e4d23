"""Which row of a source goes where: sentences, windows, blocks, and the tables that say so. Pure, no I/O."""

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

import neuronlake.store.tables as tables
from neuronlake.store.compose_tokens import TokenColumns
from neuronlake.store.errors import InputError

# Without sentences a recording is cut here: long enough to read a context in, short enough that a held-out fifth of the
# pieces is many pieces.
WINDOW_ROWS = 512


class ComposedPlan:
    """Sequences of whole words, packed into blocks in the source's order.

    Parameters
    ----------
    columns
        What is known about the rows.
    block_rows
        Rows of a block.
    name
        Of the source: document name where there is no document column, and `source` of every sentence.
    """

    def __init__(self, columns: TokenColumns, *, block_rows: int, name: str):
        self._columns = columns
        self._block_rows = block_rows
        self._name = name
        limit = block_rows if columns.sentence is not None else min(block_rows, WINDOW_ROWS)
        self._starts = _cut(columns, limit, block_rows)  # (sequences + 1,), the last one is the number of rows
        self._first_sequence = _pack(self._starts, block_rows)  # (blocks + 1,)

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self._first_sequence) - 1

    @property
    def label_columns(self) -> tuple[str, ...]:
        """Names of the labels, sorted."""
        return tuple(self._columns.labels)

    @property
    def counts(self) -> dict[str, int]:
        """Summary for the plan record, with the counts that extraction knows too."""
        columns = self._columns
        special = 0 if columns.wordless is None else int(columns.wordless.sum())
        return {
            "documents": len(columns.document_starts),
            "sentences": len(self._starts) - 1,
            "words": columns.rows if columns.word_starts is None else len(columns.word_starts),
            "tokens": columns.rows - special,
            "special": special,
            "multi": 0,
            "uncovered": 0,
            "words_unreached": 0,
            "words_only_multi": 0,
            "truncated_sequences": 0,
            "padding": self.blocks * self._block_rows - columns.rows,
        }

    @property
    def special_tokens(self) -> dict[str, str]:
        """Token id → form of the special tokens, as far as both are known."""
        columns = self._columns
        if columns.wordless is None or columns.token_id is None or columns.form is None:
            return {}
        rows = np.flatnonzero(columns.wordless)
        ids, first = np.unique(columns.token_id[rows], return_index=True)
        return {str(token): columns.form.text(int(rows[row])) for token, row in zip(ids, first, strict=True)}

    def bounds(self, block: int) -> tuple[int, int]:
        """First row of the source in a block, and the one after its last."""
        first, last = self._first_sequence[block : block + 2]
        return int(self._starts[first]), int(self._starts[last])

    def describe(self, row: int) -> str:
        """Name a row of the source for an error message."""
        sequence = int(np.searchsorted(self._starts, row, side="right")) - 1
        return f"token {self._form(row)!r}, sentence {self._names(sequence, sequence + 1)[0][0]!r}"

    def tables(self, block: int) -> dict[str, pa.Table]:
        """Return the tables `plan`, `sentences` and `words` of a block."""
        first, last = self.bounds(block)
        sequences = slice(int(self._first_sequence[block]), int(self._first_sequence[block + 1]))
        starts = self._starts[sequences]  # (sequences,)
        lengths = np.append(starts[1:], last) - starts
        sequence = np.repeat(np.arange(len(starts)), lengths)  # (rows,)
        word_rows, first_word = self._word_rows(first, last)  # (words,)
        word_sequence = sequence[word_rows - first]
        forms = self._forms(word_rows)
        # (words,) offsets in the sentence's text, where words stand apart by one blank
        width = pc.utf8_length(forms).to_numpy(zero_copy_only=False).astype(np.int64) + 1
        ends = np.cumsum(width) - 1
        opens = np.flatnonzero(np.diff(word_sequence, prepend=-1))
        ends -= np.repeat(ends[opens] - width[opens] + 1, np.diff(np.append(opens, len(word_rows))))
        begins = ends - width + 1
        word_index = np.arange(len(word_rows)) - np.repeat(opens, np.diff(np.append(opens, len(word_rows))))

        columns = self._columns
        rows = np.arange(first, last)
        # (rows,) place of the row's word among the block's words, −1 for special tokens
        place = np.searchsorted(word_rows, rows, side="right") - 1
        wordless = np.zeros(len(rows), np.bool_) if columns.wordless is None else columns.wordless[first:last]
        place = np.where(wordless, -1, place)
        lookup = np.maximum(place, 0)
        none = np.full(len(rows), -1)
        has_words = len(word_rows) > 0
        document = np.searchsorted(columns.document_starts, starts, side="right") - 1
        values: dict[str, NDArray[Any]] = {
            "document": document[sequence],
            "sentence": sequences.start + sequence,
            "position": rows - starts[sequence],
            "token_id": np.zeros(len(rows)) if columns.token_id is None else columns.token_id[first:last],
            "word": np.where(wordless, -1, first_word + place),
            "subword": np.where(wordless, -1, rows - word_rows[lookup]) if has_words else none,
            "is_last_subword": ~wordless & (np.append(place[1:], -2) != place),
            "char_start": np.where(wordless, -1, begins[lookup]) if has_words else none,
            "char_end": np.where(wordless, -1, ends[lookup]) if has_words else none,
            "flags": np.where(wordless, tables.SPECIAL, 0),
        }
        names = self._names(sequences.start, sequences.stop)
        texts = self._texts(forms, opens, word_sequence, len(starts))
        return {
            "plan": self._plan_table(block, values),
            "sentences": self._sentence_table(sequences.start, document, names, texts),
            "words": self._word_table(
                first_word, word_rows, sequences.start + word_sequence, word_index, forms, begins, ends
            ),
        }

    def _word_rows(self, first: int, last: int) -> tuple[NDArray[np.int64], int]:
        """First row of every word in [first, last), and the number of the first of them."""
        starts = self._columns.word_starts
        if starts is None:
            return np.arange(first, last), first
        lower, upper = np.searchsorted(starts, [first, last])
        return starts[lower:upper], int(lower)

    def _form(self, row: int) -> str:
        return str(self._forms(np.array([row]))[0])

    def _forms(self, rows: NDArray[np.int64]) -> pa.Array:
        columns = self._columns
        if columns.form is not None:
            return pc.fill_null(columns.form.strings(rows), "")
        numbers = rows if columns.token_id is None else columns.token_id[rows]
        return pa.array(numbers).cast(pa.string())

    def _texts(self, forms: pa.Array, opens: NDArray[Any], word_sequence: NDArray[Any], count: int) -> list[str]:
        texts, words = [""] * count, forms.to_pylist()
        for first, last in pairwise([*opens.tolist(), len(words)]):
            texts[int(word_sequence[first])] = " ".join(words[first:last])
        return texts

    def _names(self, first: int, last: int) -> list[tuple[str, dict[str, Any]]]:
        """Name and metadata of sequences [first, last)."""
        columns = self._columns
        names = []
        for start, end in pairwise(self._starts[first : last + 1].tolist()):
            sentence = int(np.searchsorted(columns.sentence_starts, start, side="right")) - 1
            whole = np.append(columns.sentence_starts[sentence : sentence + 2], columns.rows)[:2].tolist()
            name = self._document_name(start) if columns.sentence is None else columns.sentence.text(start)
            if [start, end] != whole:
                name += f" [{start - whole[0]}:{end - whole[0]}]"
            names.append((name, {"first_row": start}))
        return names

    def _document_name(self, row: int) -> str:
        return self._name if self._columns.document is None else self._columns.document.text(row)

    def _plan_table(self, block: int, values: dict[str, NDArray[Any]]) -> pa.Table:
        fill = {"flags": tables.PADDING, "is_last_subword": False}
        first = block * self._block_rows
        arrays = [pa.array(np.arange(first, first + self._block_rows))]
        for column in tables.PLAN_SCHEMA:
            if column.name != "row":
                used = values[column.name]
                padding = np.full(self._block_rows - len(used), fill.get(column.name, -1))
                arrays.append(pa.array(np.concatenate([used, padding]).astype(column.type.to_pandas_dtype())))
        return pa.Table.from_arrays(arrays, schema=tables.PLAN_SCHEMA)

    def _sentence_table(
        self, first: int, document: NDArray[np.int64], names: list[tuple[str, dict[str, Any]]], texts: list[str]
    ) -> pa.Table:
        count = len(names)
        starts = self._starts[first : first + count].tolist()
        columns = [
            pa.array(np.arange(first, first + count)),
            pa.array(document.astype(np.int32)),
            pa.array([self._document_name(start) for start in starts], pa.string()),
            pa.array([name for name, _ in names], pa.string()),
            pa.array([self._name] * count, pa.string()),
            pa.array(texts, pa.string()),
            pa.array([json.dumps(metadata) for _, metadata in names], pa.string()),
        ]
        return pa.Table.from_arrays(columns, schema=tables.SENTENCE_SCHEMA)

    def _word_table(
        self,
        first_word: int,
        rows: NDArray[np.int64],
        sentence: NDArray[np.int64],
        index: NDArray[np.int64],
        forms: pa.Array,
        begins: NDArray[np.int64],
        ends: NDArray[np.int64],
    ) -> pa.Table:
        present = [name for name, column in self._columns.labels.items() if (column.codes[rows] >= 0).any()]
        columns = [
            pa.array(np.arange(first_word, first_word + len(rows))),
            pa.array(sentence),
            pa.array(index.astype(np.int32)),
            forms,
            pa.array(begins.astype(np.int32)),
            pa.array(ends.astype(np.int32)),
            *(self._columns.labels[name].strings(rows).dictionary_encode() for name in present),
        ]
        return pa.Table.from_arrays(columns, schema=tables.word_schema(present))


def _cut(columns: TokenColumns, limit: int, block_rows: int) -> NDArray[np.int64]:
    """First row of every sequence, and the number of rows: sentences, or windows of whole words where they are too long."""
    bounds = np.append(columns.sentence_starts, columns.rows)
    if (np.diff(bounds) <= limit).all():
        return bounds
    breaks: NDArray[np.int64] | None = None  # rows where a window may start, when not everywhere
    if columns.word_starts is not None and columns.wordless is not None:
        breaks = np.union1d(columns.word_starts, np.flatnonzero(columns.wordless))
    starts: list[int] = []
    for start, end in pairwise(bounds.tolist()):
        while end - start > limit:
            starts.append(start)
            cut = start + limit
            if breaks is not None:
                cut = int(breaks[np.searchsorted(breaks, cut, side="right") - 1])
                if cut <= start:  # a word longer than the window is a window of its own, if a block can hold it
                    cut = int(np.append(breaks, end)[np.searchsorted(breaks, start, side="right")])
                    if cut - start > block_rows:
                        raise InputError(
                            f"the word of rows {start} to {cut - 1} does not fit in a block of {block_rows} rows: "
                            "raise block_rows, or check the column `word`"
                        )
                if cut == end:
                    break
            start = cut
        starts.append(start)
    return np.array([*starts, columns.rows], dtype=np.int64)


def _pack(starts: NDArray[np.int64], block_rows: int) -> NDArray[np.int64]:
    """First sequence of every block, and the number of sequences: in order, and none in two blocks."""
    first, opened = [0], 0
    for sequence, (start, end) in enumerate(pairwise(starts.tolist())):
        if end - opened > block_rows:
            first.append(sequence)
            opened = start
    return np.array([*first, len(starts) - 1], dtype=np.int64)
