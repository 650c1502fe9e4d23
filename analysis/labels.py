"""One label per row of the lake."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from neuronlake.analysis.source import LakeSource
from neuronlake.store.errors import InputError
from neuronlake.store.tables import SENTENCE_LABELS

SUBWORD_POLICIES = ("last", "first", "all")
MIN_TOKENS = 2  # a variance needs two
_MAX_TAGS = int(np.iinfo(np.int16).max)


@dataclass(frozen=True, kw_only=True)
class LabelVector:
    """Which tag every committed row has, in block order (row i of the vector is row ``i % block_rows`` of its block)."""

    codes: NDArray[np.int16] = field(repr=False)
    """Index into `tags`, −1 where a row is unlabelled or left out; (rows,)."""
    tags: tuple[str, ...]
    """Sorted."""
    by: str
    """Label column."""
    subword: str
    """Which tokens of a word count: ``last``, ``first`` or ``all``."""
    shift: int
    """The label is that of the word so many words later."""
    dropped: dict[str, int]
    """Tags with too few tokens, with their number of tokens."""
    documents: NDArray[np.int32] = field(repr=False)
    """Document of every row, (rows,); meaningless on padding."""
    sentences: NDArray[np.int64] = field(repr=False)
    """Sentence of every row, (rows,); meaningless on padding."""
    words: NDArray[np.int64] = field(repr=False)
    """Word of every row (the row's own, whatever the shift), −1 where there is no single one; (rows,)."""
    blocks: tuple[int, ...] = field(repr=False)
    """Blocks that the rows belong to."""
    block_rows: int

    @property
    def counts(self) -> NDArray[np.int64]:
        """Tokens per tag, int64 (tags,)."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.tags)).astype(np.int64)

    @property
    def tokens(self) -> int:
        """Labelled rows."""
        return int(np.count_nonzero(self.codes >= 0))

    def block(self, position: int) -> NDArray[np.int16]:
        """Return the codes of the block at that position of `blocks`, int16 (block_rows,)."""
        return self.codes[position * self.block_rows : (position + 1) * self.block_rows]

    def keep(self, rows: NDArray[np.bool_]) -> "LabelVector":
        """Return the vector with the other rows left out; tags stay as they are."""
        return replace(self, codes=np.where(rows, self.codes, np.int16(-1)))

    def without_rare(self, minimum: int) -> "LabelVector":
        """Return the vector without tags of fewer than `minimum` tokens; they are added to `dropped`.

        Raises
        ------
        InputError
            When no tag is left.
        """
        counts = self.counts
        kept = tuple(tag for tag, count in zip(self.tags, counts, strict=True) if count >= minimum)
        if not kept:
            raise InputError(
                f"no value of {self.by!r} has {minimum} or more tokens among the {self.tokens} labelled ones "
                f"(subword={self.subword!r}, shift={self.shift}): choose another label, or more documents"
            )
        rare = {tag: int(count) for tag, count in zip(self.tags, counts, strict=True) if count < minimum}
        return replace(self.with_tags(kept), dropped={**self.dropped, **rare})

    def with_tags(self, tags: tuple[str, ...]) -> "LabelVector":
        """Return the vector with exactly these tags; rows of other tags are left out."""
        place = {tag: position for position, tag in enumerate(tags)}
        recode = np.array([*(place.get(tag, -1) for tag in self.tags), -1], dtype=np.int16)  # the last entry is for −1
        return replace(self, codes=recode[self.codes], tags=tags)


@dataclass(frozen=True, kw_only=True)
class BlockLabels:
    """Labels of one block, prepared once for the many chunks that share them."""

    block: int
    codes: NDArray[np.int16] = field(repr=False)
    """Tag of every row, −1 where it has none; (block_rows,)."""
    rows: NDArray[np.int64] = field(repr=False)
    """Rows within the block that have a tag."""
    tags: NDArray[np.int16] = field(repr=False)
    """Their tags."""
    count: NDArray[np.int64] = field(repr=False)
    """Tokens per tag, (tags,)."""
    first: NDArray[np.int64] = field(repr=False)
    """First row of every tag that occurs, in tag order, (occurring tags,)."""


def label_blocks(labels: LabelVector) -> list[BlockLabels]:
    """Return the blocks that have labelled rows, in order."""
    found = []
    for position, block in enumerate(labels.blocks):
        if np.any(labels.block(position) >= 0):
            found.append(block_labels(labels.block(position), tags=len(labels.tags), block=block))
    return found


def block_labels(codes: NDArray[np.int16], *, tags: int, block: int = 0) -> BlockLabels:
    """Prepare one block's labels: int16 (block_rows,), all below `tags`."""
    rows = np.flatnonzero(codes >= 0)
    return BlockLabels(
        block=block,
        codes=np.ascontiguousarray(codes),
        rows=rows,
        tags=codes[rows],
        count=np.bincount(codes[rows], minlength=tags).astype(np.int64),
        first=rows[np.unique(codes[rows], return_index=True)[1]],
    )


def token_labels(
    source: LakeSource,
    by: str,
    *,
    subword: str = "last",
    shift: int = 0,
    keep_documents: Iterable[int] | None = None,
    min_tokens: int = MIN_TOKENS,
) -> LabelVector:
    """Label every committed row.

    Parameters
    ----------
    source
        The lake.
    by
        Label column, e.g. ``upos``.
    subword
        Which tokens of a word carry its label. A token of several words, or of none, carries no label.
    shift
        Take the label of the word this many words later in the same sentence (earlier, if negative).
    keep_documents : iterable of int, optional
        Leave rows of other documents out.
    min_tokens
        Tags with fewer tokens are dropped.

    Returns
    -------
    LabelVector
        Tags with too few tokens are in its `dropped`.

    Raises
    ------
    InputError
        When the column or the policy is unknown (the known ones are listed), or no tag has enough tokens.
    """
    if by not in source.label_columns:
        raise InputError(f"no label column {by!r}: known are {', '.join(source.label_columns)}")
    if subword not in SUBWORD_POLICIES:
        raise InputError(f"unknown sub-word policy {subword!r}: known are {', '.join(SUBWORD_POLICIES)}")
    table, values_at, values = _label_rows(source, by, shift)
    keep = _numpy(table, "word") >= 0
    if subword == "first":
        keep &= _numpy(table, "subword") == 0
    elif subword == "last":
        keep &= _numpy(table, "is_last_subword").astype(bool)
    documents = _numpy(table, "document").astype(np.int32)
    if keep_documents is not None:
        keep &= np.isin(documents, np.fromiter(keep_documents, dtype=np.int64))
    codes, tags = _compact(np.where(keep, values_at, -1), values, by)
    return LabelVector(
        codes=codes,
        tags=tags,
        by=by,
        subword=subword,
        shift=shift,
        dropped={},
        documents=documents,
        sentences=_numpy(table, "sentence").astype(np.int64),
        words=_numpy(table, "word").astype(np.int64),
        blocks=tuple(source.blocks),
        block_rows=source.block_rows,
    ).without_rare(min_tokens)


def _label_rows(source: LakeSource, by: str, shift: int) -> tuple[Any, NDArray[np.int32], list[str]]:
    """Token table, and for each of its rows the index of its label's value, −1 where there is none."""
    if shift == 0:
        table = source.tokens(labels=[by])
        return table, *_encode(table.column(by))
    of_sentence = by in SENTENCE_LABELS
    table = source.tokens(labels=[by] if of_sentence else [])
    word_table = source.words(["word", "sentence"] if of_sentence else ["word", "sentence", by])
    target = _shifted_words(word_table, _numpy(table, "word"), shift)
    if of_sentence:
        codes, values = _encode(table.column(by))
        return table, np.where(target >= 0, codes, np.int32(-1)), values
    word_codes, values = _encode(word_table.column(by))
    return table, np.append(word_codes, np.int32(-1))[target], values


def _shifted_words(word_table: Any, words: NDArray[np.int64], shift: int) -> NDArray[np.int64]:
    """Line of the word table that holds the word `shift` places on in the same sentence, −1 where there is none."""
    ids, sentences = _numpy(word_table, "word"), _numpy(word_table, "sentence")
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


def _compact(codes: NDArray[Any], values: list[str], by: str) -> tuple[NDArray[np.int16], tuple[str, ...]]:
    """Renumber by the sorted values that occur."""
    used = np.unique(codes[codes >= 0])
    if used.size > _MAX_TAGS:
        raise InputError(f"{by!r} has {used.size} different values, at most {_MAX_TAGS} can be compared")
    tags = sorted(values[code] for code in used)
    place = {tag: position for position, tag in enumerate(tags)}
    recode = np.full(len(values) + 1, -1, dtype=np.int16)  # the last entry is for −1
    for code in used:
        recode[code] = place[values[code]]
    return recode[codes], tuple(tags)


def _numpy(table: Any, name: str) -> NDArray[Any]:
    values: NDArray[Any] = table.column(name).to_numpy()
    return values
