"""One label per row of the lake."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from neuronlake.analysis.label_rows import JOIN, column_rows, join_rows, numpy_column, of_rows, sql_rows
from neuronlake.analysis.source import LakeSource
from neuronlake.analysis.sql import Expression, evaluate, read_expression, unknown_column
from neuronlake.store.errors import InputError
from neuronlake.store.lake import Lake
from neuronlake.store.tables import SENTENCE_LABELS

SUBWORD_POLICIES = ("last", "first", "all")
MIN_TOKENS = 2  # a variance needs two
_KEPT = {"document": np.int32, "sentence": np.int64, "word": np.int64}
_MAX_TAGS = int(np.iinfo(np.int16).max)
_NAME = re.compile(r"[^\W\d]\w*(?:[.:]\w+)*")
_PART = re.compile(_NAME.pattern + r"(?:\[\w+\])?")  # Number[psor] is a name among others; alone, form[1] is SQL


@dataclass(frozen=True, kw_only=True)
class LabelRequest:
    """Which tokens carry which label: what a kept result is keyed by.

    Raises
    ------
    InputError
        When the sub-word policy is unknown.
    """

    by: str
    """Label column, several joined by ``×``, or an SQL expression; ``upos * Number`` becomes ``upos×Number``."""
    where: str | None = None
    """SQL predicate that the tokens fulfil; None means all."""
    subword: str = "last"
    """Which tokens of a word count: ``last``, ``first`` or ``all``."""
    shift: int = 0
    """The label is that of the word so many words later."""

    def __post_init__(self) -> None:
        if self.subword not in SUBWORD_POLICIES:
            raise InputError(f"unknown sub-word policy {self.subword!r}: known are {', '.join(SUBWORD_POLICIES)}")
        if names := _names(self.by):
            object.__setattr__(self, "by", JOIN.join(names))

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class LabelVector:
    """Which tag every committed row has, in block order (row i of the vector is row ``i % block_rows`` of its block)."""

    codes: NDArray[np.int16] = field(repr=False)
    """Index into `tags`, −1 where a row is unlabelled or left out; (rows,)."""
    tags: tuple[str, ...]
    """Sorted."""
    by: str
    """Label column, several joined by ``×``, or an SQL expression."""
    where: str | None
    """SQL predicate that the tokens fulfil."""
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
    added: dict[str, str] = field(default_factory=dict)
    """Of the columns that it is made of, those that were added to the lake later, with their label sets' identities."""

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
        if self.shift and not self.tokens and np.any(self.words >= 0):
            where = "later" if self.shift > 0 else "earlier"
            raise InputError(
                f"no word has one labelled {self.by!r} {abs(self.shift)} words {where} in its sentence ({_settings(self)}): "
                "choose a smaller shift"
            )
        if not kept:
            raise InputError(
                f"no value of {self.by!r} has {minimum} or more tokens among the {self.tokens} labelled ones "
                f"({_settings(self)}): choose another label, or more documents"
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
    where: str | None = None,
    subword: str = "last",
    shift: int = 0,
    keep_documents: Iterable[int] | None = None,
    min_tokens: int = MIN_TOKENS,
) -> LabelVector:
    """Label every committed row.

    SQL is DuckDB's (https://duckdb.org/docs/sql/introduction): one expression per token over the columns of the token table
    (row, document, sentence, position, token_id, word, subword, is_last_subword, char_start, char_end, flags) and the label
    columns, which are text. It sees one line per committed row that is not padding, and nothing else: no file, no other
    table. Names that are no plain identifiers stand in double quotes, text in single ones; the case of a name matters only
    where two columns differ by nothing else. Window functions see all lines; give them an ORDER BY where the order matters.

    Parameters
    ----------
    source
        The lake.
    by
        What the label of a token is:

        - a label column, e.g. ``upos``;
        - several joined by ``×`` or ``*``, e.g. ``upos×Number``: tags such as ``NOUN×Sing``; where one is absent, there is
          no label;
        - an SQL expression, e.g. ``split_part(source, '_', 1)``: its value as text; NULL is no label. With a `shift`, it
          is evaluated on the row of the target word's last sub-word, whichever token asks.

        A name alone is always a column, never SQL.
    where
        SQL predicate over the token itself, whatever the shift, e.g. ``upos='VERB' AND deprel='root'``. Rows for which it is
        not true carry no label.
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
        When a column or the policy is unknown (the known ones are listed); when SQL is refused (the place is shown); when
        `where` is true of no token, or no tag has enough of them.
    """
    request = LabelRequest(by=by, where=where, subword=subword, shift=shift)
    columns, label, predicate = _read(source, by, where)
    wanted = _token_columns(source, columns, shift, [label, predicate])
    chosen = None if keep_documents is None else np.fromiter(keep_documents, dtype=np.int64)
    # a column's value is the same whatever the other rows are: block by block the token table of a tall lake, 150 bytes a
    # row with what is made of it, need not be in memory
    alone = len(columns) == 1 and predicate is None and not shift and len(source.blocks) > 0
    found: list[tuple[NDArray[np.int32], list[str]]] = []
    rows: list[dict[str, NDArray[Any]]] = []
    for blocks in [[block] for block in source.blocks] if alone else [None]:
        table = source.tokens(labels=wanted, blocks=blocks)
        if label is None:
            numbers, values = join_rows([column_rows(source, table, column, shift) for column in columns], by)
        else:
            numbers, values = sql_rows(source, table, label, shift)
        # copies: what Arrow lends would keep the table
        own = {name: np.array(numpy_column(table, name), dtype=kind) for name, kind in _KEPT.items()}
        keep = _counted(table, subword)
        if chosen is not None:
            keep &= np.isin(own["document"], chosen)
        if predicate is not None:
            keep = _filtered(table, keep, predicate, request)
        found.append((np.where(keep, numbers, np.int32(-1)), values))
        rows.append(own)
        del table
    codes, tags = _compact(*_merged(found), by)
    whole = {name: np.concatenate([part.pop(name) for part in rows]) for name in _KEPT}
    return LabelVector(
        codes=codes,
        tags=tags,
        by=JOIN.join(columns) if columns else by,
        where=where,
        subword=subword,
        shift=shift,
        dropped={},
        documents=whole["document"],
        sentences=whole["sentence"],
        words=whole["word"],
        blocks=tuple(source.blocks),
        block_rows=source.block_rows,
        added=_identities(source, columns, label, predicate),
    ).without_rare(min_tokens)


def counted_rows(source: LakeSource, subword: str) -> NDArray[np.bool_]:
    """Committed rows that stand for a word under a sub-word policy, whatever their labels; bool (rows,)."""
    return _counted(source.tokens(), subword)


def check_label(source: LakeSource, by: str) -> None:
    """Raise InputError unless `by` names label columns of the lake or is SQL over them, see `token_labels`."""
    _read(source, by, None)


def labels_key(source: LakeSource, request: LabelRequest) -> dict[str, Any]:
    """Return what a kept result is keyed by: the request and, as ``added``, the label columns that were added later.

    Each of these with the identity of its label set: a set may be removed and another one added with the same columns, and
    what is kept of the first is not of the second.
    """
    if not (isinstance(source, Lake) and source.label_sets):
        return request.as_dict()
    added = _identities(source, *_read(source, request.by, request.where))
    return {**request.as_dict(), **({"added": added} if added else {})}


def labels_again(source: LakeSource, asked: Mapping[str, Any]) -> LabelVector:
    """Label every committed row as statistics were labelled: `asked` are their attributes.

    Raises
    ------
    InputError
        When they rest on a label set that has been removed or replaced since.
    """
    labels = token_labels(
        source, asked["by"], where=asked["where"], subword=asked["subword"], shift=asked["shift"], min_tokens=1
    )
    if labels.added != (known := asked.get("added", {})):
        column = next(column for column in {**known, **labels.added} if known.get(column) != labels.added.get(column))
        raise InputError(f"the labels {column!r} were replaced since these statistics were computed: compute them again")
    return labels


def _identities(source: LakeSource, columns: Sequence[str], *expressions: Expression | None) -> dict[str, str]:
    used = {*columns, *(column for expression in expressions if expression is not None for column in expression.columns)}
    sets = source.label_sets if isinstance(source, Lake) else ()
    return {column: labels.identity for labels in sets for column in labels.columns if column in used}


def _read(source: LakeSource, by: str, where: str | None) -> tuple[tuple[str, ...], Expression | None, Expression | None]:
    """Columns that the label is made of, or its expression, and the predicate."""
    known = source.label_columns
    columns = _columns(source, by)
    label = None if columns else read_expression(by, argument="by", label_columns=known)
    predicate = None
    if where is not None:
        predicate = read_expression(where, argument="where", label_columns=known, predicate=True)
    return columns, label, predicate


def _names(by: str) -> tuple[str, ...]:
    """Column names that `by` is made of, none where it is an SQL expression."""
    parts = _split(by)
    pattern = _NAME if len(parts) == 1 else _PART
    return parts if all(pattern.fullmatch(part) for part in parts) else ()


def _split(by: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in re.split("[×*]", by))


def _columns(source: LakeSource, by: str) -> tuple[str, ...]:
    """Label columns that `by` names, none where it is an SQL expression."""
    known = source.label_columns
    parts = _split(by)
    if all(part in known for part in parts):
        return parts
    if by in known:  # a column that has × in its name
        return (by,)
    for name in _names(by):
        if name not in known:
            raise InputError(unknown_column(name, known, what="label column"))
    return ()


def _token_columns(
    source: LakeSource, columns: Sequence[str], shift: int, expressions: Sequence[Expression | None]
) -> list[str]:
    """Label columns that are needed in the token table; those of shifted words come from the word table."""
    wanted = [column for column in columns if not shift or column in SENTENCE_LABELS or of_rows(source, column)]
    for expression in expressions:
        if expression is not None:
            wanted += [column for column in expression.columns if column in source.label_columns]
    return list(dict.fromkeys(wanted))


def _counted(table: Any, subword: str) -> NDArray[np.bool_]:
    """Rows that carry the label of their word, (rows,)."""
    keep: NDArray[np.bool_] = numpy_column(table, "word") >= 0
    if subword == "first":
        keep &= numpy_column(table, "subword") == 0
    elif subword == "last":
        keep &= numpy_column(table, "is_last_subword").astype(bool)
    return keep


def _filtered(table: Any, keep: NDArray[np.bool_], predicate: Expression, request: LabelRequest) -> NDArray[np.bool_]:
    """Those of the rows for which the predicate is true."""
    rows, answers = evaluate(predicate, table)
    kept = np.zeros_like(keep)
    kept[rows] = pc.fill_null(answers, False).to_numpy()
    kept &= keep
    if keep.any() and not kept.any():
        raise InputError(
            f"where={request.where!r} is true of none of the {np.count_nonzero(keep)} tokens ({_settings(request)})"
        )
    return kept


def _settings(chosen: LabelRequest | LabelVector) -> str:
    where = "" if chosen.where is None else f", where={chosen.where!r}"
    return f"subword={chosen.subword!r}, shift={chosen.shift}{where}"


def _merged(parts: Sequence[tuple[NDArray[np.int32], list[str]]]) -> tuple[NDArray[np.int32], list[str]]:
    """Put rows together that were numbered by values of their own: codes (rows,), −1 stays, and the values of all."""
    if len(parts) == 1:
        return parts[0]
    place: dict[str, int] = {}
    codes = []
    for of_part, values in parts:
        again = np.array([*(place.setdefault(value, len(place)) for value in values), -1], dtype=np.int32)
        codes.append(again[of_part])  # the last entry is for −1
    return np.concatenate(codes), list(place)


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
