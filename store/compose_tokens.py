"""A table about the rows of a source, one line per row, brought into one form: codes, boundaries, labels."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

import neuronlake.store.tables as tables
from neuronlake.store.errors import InputError

OWN_COLUMNS = ("form", "token_id", "document", "sentence", "word")
"""Columns with a meaning of their own; every other one is a label."""

_MAX_SUBWORDS = 1 << 15  # the plan's column `subword` is int16


@dataclass(frozen=True, kw_only=True)
class Coded:
    """A column of few different strings."""

    codes: NDArray[np.int32]
    """Index into `values` of every row; −1 where the row has none."""
    values: pa.Array = field(repr=False)
    """Different strings."""

    def text(self, row: int) -> str:
        """Return a row's string, empty where it has none."""
        code = int(self.codes[row])
        return "" if code < 0 else str(self.values[code])

    def strings(self, rows: NDArray[np.int64] | slice) -> pa.Array:
        """Return the strings of some rows, null where there is none."""
        codes = self.codes[rows]
        return self.values.take(pa.array(codes, mask=codes < 0))


@dataclass(frozen=True, kw_only=True)
class TokenColumns:
    """What is known about the rows. Starts are ascending row numbers, the first is 0."""

    rows: int
    form: Coded | None
    token_id: NDArray[np.int32] | None
    document: Coded | None
    document_starts: NDArray[np.int64]
    sentence: Coded | None
    sentence_starts: NDArray[np.int64]
    """The documents' starts when there is no sentence column."""
    word_starts: NDArray[np.int64] | None
    """First row of every word; None when every row is a word."""
    wordless: NDArray[np.bool_] | None
    """Rows of special tokens; None together with `word_starts`."""
    labels: Mapping[str, Coded]

    def sha256(self) -> str | None:
        """SHA-256 over all columns, None without any."""
        named: dict[str, Coded | NDArray[np.int32] | None] = {
            "form": self.form,
            "token_id": self.token_id,
            "document": self.document,
            "sentence": self.sentence,
            **{f"label {name}": column for name, column in self.labels.items()},
        }
        arrays: dict[str, Any] = {"word_starts": self.word_starts, "wordless": self.wordless}
        for name, column in named.items():
            if isinstance(column, Coded):
                arrays[f"{name} codes"] = column.codes
                arrays[f"{name} values"] = "\0".join(column.values.to_pylist()).encode()
            else:
                arrays[name] = column
        if all(array is None for array in arrays.values()):
            return None
        digest = hashlib.sha256()
        for name in sorted(arrays):
            if arrays[name] is not None:
                digest.update(f"{name}\n".encode())
                digest.update(arrays[name])
        return digest.hexdigest()


def token_columns(given: Any, rows: int) -> TokenColumns:
    """Read a pyarrow Table, pandas DataFrame or mapping of columns about `rows` rows; None means that nothing is known.

    Raises
    ------
    InputError
        When the lines are not as many as the rows, a name is reserved, a value cannot be text, or rows that belong
        together are apart.
    """
    columns = _columns(given, rows)
    coded = {name: encode_column(name, column) for name, column in columns.items() if name != "token_id"}
    own = {name: coded.pop(name, None) for name in OWN_COLUMNS if name != "token_id"}
    token_id = _token_ids(columns["token_id"]) if "token_id" in columns else None
    document, sentence = own["document"], own["sentence"]
    no_starts = np.zeros(1, dtype=np.int64)
    document_starts = no_starts if document is None else _starts("document", document, no_starts)
    sentence_starts = document_starts if sentence is None else _starts("sentence", sentence, document_starts)
    word_starts = wordless = None
    if (word := own["word"]) is not None:
        wordless = word.codes < 0
        starts = _starts("word", word, sentence_starts, may_lack=True)
        word_starts = starts[~wordless[starts]]
        longest = int(np.diff(np.append(starts, rows)).max())
        if longest > _MAX_SUBWORDS:
            raise InputError(f"a word has {longest} rows, more than {_MAX_SUBWORDS}: check the column `word`")
        for name, column in [("form", own["form"]), *coded.items()]:
            if column is not None:
                _check_words(name, column, starts, wordless)
    return TokenColumns(
        rows=rows,
        form=own["form"],
        token_id=token_id,
        document=document,
        document_starts=document_starts,
        sentence=sentence,
        sentence_starts=sentence_starts,
        word_starts=word_starts,
        wordless=wordless,
        labels=dict(sorted(coded.items())),
    )


def _columns(given: Any, rows: int) -> dict[str, pa.ChunkedArray]:
    """Take the table apart, and check names and lengths."""
    if given is None:
        return {}
    columns: dict[Any, Any]
    if isinstance(given, pa.Table):
        names = given.column_names
        if len(set(names)) < len(names):
            raise InputError(f"a column of the tokens is given twice; rename one of {', '.join(sorted(names))}")
        columns = {name: given.column(name) for name in names}
    elif isinstance(given, Mapping):
        columns = dict(given)
    elif hasattr(given, "columns") and hasattr(given, "iloc"):  # pandas, which is not ours to import
        if len(set(given.columns)) < len(given.columns):
            raise InputError("a column of the tokens is given twice; rename one")
        columns = {name: given[name] for name in given.columns}
    else:
        raise InputError(f"tokens are a table or a mapping of columns, got {type(given).__name__}")
    result = {}
    for name, column in columns.items():
        if not isinstance(name, str) or not name:
            raise InputError(f"columns of the tokens have names, got {name!r}")
        if name in tables.RESERVED and name not in OWN_COLUMNS:
            raise InputError(f"{name!r} cannot be the name of a label, neuronlake uses it itself; rename the column")
        if len(column) != rows:
            raise InputError(f"the tokens' column {name!r} has {len(column)} lines, the activations have {rows} rows")
        if not isinstance(column, pa.ChunkedArray):
            try:
                column = pa.chunked_array([pa.array(column, from_pandas=True)])
            except (pa.ArrowException, TypeError, ValueError) as error:
                reason = str(error).partition("\n")[0]
                raise InputError(f"the tokens' column {name!r} cannot be a table's column: {reason}") from None
        result[name] = column
    return result


def encode_column(name: str, column: pa.ChunkedArray) -> Coded:
    """Turn a column of text, numbers, booleans or dates into text; null, NaN and empty text are no value.

    Raises
    ------
    InputError
        When it holds something else.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = kind.value_type
    if pa.types.is_floating(kind):
        # pandas writes a missing value as NaN; Arrow has no text for float16
        column = column.cast(pa.float64()) if pa.types.is_float16(kind) else column
        column = pc.if_else(pc.is_nan(column), None, column)
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise InputError(f"column {name!r} holds {kind}, expected text, numbers, booleans or dates")
    try:
        text = column.cast(pa.string())
    except pa.ArrowException as error:
        raise InputError(f"column {name!r} holds {kind}, which cannot be text: {error}") from None
    encoded = text.dictionary_encode().combine_chunks()
    codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int32)
    empty = pc.index(encoded.dictionary, "").as_py()
    if empty >= 0:
        codes[codes == empty] = -1
    return Coded(codes=codes, values=encoded.dictionary)


def _token_ids(column: pa.ChunkedArray) -> NDArray[np.int32]:
    try:
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        ids = column.cast(pa.int32())
    except pa.ArrowException as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"the tokens' column 'token_id' must hold whole numbers below 2^31: {reason}") from None
    values: NDArray[np.int32] = pc.fill_null(ids, -1).to_numpy().astype(np.int32)
    if (values < 0).any():
        row = int(np.argmax(values < 0))
        raise InputError(
            f"token_id of row {row} is {ids[row].as_py()}: every row needs one of 0 or more, or drop the column"
        )
    return values


def _starts(name: str, column: Coded, outer: NDArray[np.int64], *, may_lack: bool = False) -> NDArray[np.int64]:
    """First rows of the runs of equal codes, which also end where an outer unit does.

    Rows without a code are runs of one, where they are allowed at all.
    """
    codes = column.codes
    if not may_lack and (codes < 0).any():
        raise InputError(f"row {int(np.argmax(codes < 0))} has no {name}: fill the column, or drop it")
    change = np.ones(len(codes), dtype=np.bool_)
    change[1:] = (codes[1:] != codes[:-1]) | (codes[1:] < 0)
    change[outer] = True
    starts = np.flatnonzero(change)
    named = starts[codes[starts] >= 0]
    unit = np.searchsorted(outer, named, side="right").astype(np.int64) * len(column.values) + codes[named]
    if len(np.unique(unit)) < len(unit):
        _, first = np.unique(unit, return_index=True)
        again = int(named[np.setdiff1d(np.arange(len(unit)), first)[0]])
        within = {"sentence": " of its document", "word": " of its sentence"}.get(name, "")
        hint = "; `word` holds a word's number, its text goes into `form`" if name == "word" else ""
        raise InputError(
            f"{name} {column.text(again)!r}{within} comes back in row {again} after other rows: "
            f"rows of a {name} must follow each other{hint}"
        )
    return starts


def _check_words(name: str, column: Coded, starts: NDArray[np.int64], wordless: NDArray[np.bool_]) -> None:
    """Refuse what a word cannot hold: two values in one column, or a label without a word."""
    inside = np.ones(len(column.codes), dtype=np.bool_)
    inside[starts] = False
    inside[1:] &= column.codes[1:] != column.codes[:-1]
    if inside.any():
        row = int(np.argmax(inside))
        raise InputError(
            f"rows {row - 1} and {row} are one word with two values of {name!r}, {column.text(row - 1)!r} and "
            f"{column.text(row)!r}: a word's columns agree in all its rows"
        )
    stray = wordless & (column.codes >= 0)
    if name != "form" and stray.any():
        row = int(np.argmax(stray))
        raise InputError(f"row {row} has {name} {column.text(row)!r} but no word to carry it: give it a word, or empty it")
