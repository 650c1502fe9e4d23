"""CoNLL-U treebanks (https://universaldependencies.org/format.html), plain or gzip."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from neuronlake.extractor.corpora.files import SourceFile, check_settings, expand, identify, read_lines
from neuronlake.extractor.corpora.records import Sentence, Word
from neuronlake.extractor.corpora.spans import Span, lay_out, locate
from neuronlake.extractor.corpora.table import RESERVED_LABELS
from neuronlake.store.errors import InputError

SUFFIXES = (".conllu", ".conllu.gz")

_COLUMNS = 10
_ID = re.compile(r"([1-9][0-9]*)(?:-([1-9][0-9]*))?|([0-9]+)\.([1-9][0-9]*)")
_HEAD = re.compile(r"[0-9]+")
_COMMENT = re.compile(r"#[ \t]*((?:newdoc|newpar) id|[^\s=]+)[ \t]*(?:=[ \t]*(.*?)[ \t]*)?")
_COLUMN_LABELS = frozenset({"lemma", "upos", "xpos", "head", "deprel"})


@dataclass(frozen=True, kw_only=True)
class ConlluCorpus:
    """Sentences of CoNLL-U files.

    Labels are ``lemma``, ``upos``, ``xpos``, ``head``, ``deprel`` and one column per feature under its UD name
    (``Number``, ``VerbForm``, ``Number[psor]``). ``_`` means that the value is absent, except that a literal underscore
    keeps it as form and lemma. Empty nodes (``8.1``) are no words. ``# key = value`` comments other than ``text``,
    ``sent_id`` and ``newdoc`` become metadata (``# newpar id`` as ``newpar``).

    The words of a multiword token (``3-4``) split its characters if their forms add up to it (*do* + *n't*); else each
    of them has the whole span (*du* = *de* + *le*).

    A document runs from one ``# newdoc`` to the next. What stands before the first, or a file without any, is one
    document named after the file.
    """

    paths: tuple[Path, ...]
    """Files and folders; of a folder every ``*.conllu`` and ``*.conllu.gz``, at any depth, sorted."""
    limit_sentences: int | None = None
    """Stop after so many sentences of the whole corpus."""

    def __post_init__(self) -> None:
        check_settings(self.paths, self.limit_sentences)

    def sentences(self) -> Iterator[Sentence]:
        """Yield every sentence in file order.

        Raises
        ------
        InputError
            At the first missing, unreadable or malformed file, naming file and line.
        """
        files = expand(self.paths, suffixes=SUFFIXES)
        return islice((sentence for file in files for sentence in _read(file)), self.limit_sentences)

    def identity(self) -> dict[str, Any]:
        """Return what determines the stream."""
        files = expand(self.paths, suffixes=SUFFIXES)
        return {"kind": "conllu", "files": identify(files), "limit_sentences": self.limit_sentences}


@dataclass(slots=True)
class _Surface:
    """One surface token: a word, or a multiword token with its words."""

    form: str
    line: int
    space_after: bool
    last_id: int
    words: list[tuple[str, dict[str, str]]] = field(default_factory=list)


@dataclass(slots=True)
class _Block:
    """What stands between two blank lines."""

    comments: dict[str, str | None]
    tokens: list[_Surface]
    line: int


def _read(file: SourceFile) -> Iterator[Sentence]:
    document = file.stem
    documents = ordinal = 0
    for lines in _blocks(file):
        block = _parse(file, lines)
        if "newdoc" in block.comments:
            documents += 1
            document = block.comments.pop("newdoc") or f"{file.stem}:{documents}"
        if block.tokens:
            ordinal += 1
            yield _sentence(file, block, document=document, default_name=f"{file.stem}:{ordinal}")
        elif block.comments.get("text") or block.comments.get("sent_id"):
            raise InputError(f"{file.name}:{block.line}: a sentence without words; give its words or remove it")


def _blocks(file: SourceFile) -> Iterator[list[tuple[int, str]]]:
    lines: list[tuple[int, str]] = []
    for number, line in read_lines(file):
        # Tabs are not blank: a line of nothing but tabs is a word whose columns are all empty, and refused as such.
        if line.strip(" "):
            lines.append((number, line))
        elif lines:
            yield lines
            lines = []
    if lines:
        yield lines


def _parse(file: SourceFile, lines: Sequence[tuple[int, str]]) -> _Block:
    comments: dict[str, str | None] = {}
    tokens: list[_Surface] = []
    last_id = last_empty = 0
    for number, line in lines:
        if line.startswith("#"):
            if tokens or last_empty:
                raise InputError(f"{file.name}:{number}: a comment inside a sentence; put a blank line before it")
            _add_comment(comments, line)
            continue
        place = f"{file.name}:{number}"
        columns = line.split("\t")
        if len(columns) != _COLUMNS:
            raise InputError(f"{place}: expected {_COLUMNS} tab-separated columns, got {len(columns)}")
        match = _ID.fullmatch(columns[0])
        if match is None:
            raise InputError(f"{place}: bad ID {columns[0]!r}; expected a number (3), a range (3-4) or an empty node (3.1)")
        open_range = tokens[-1] if tokens and tokens[-1].last_id > last_id else None
        if match[3] is not None:
            if int(match[3]) != last_id or int(match[4]) != last_empty + 1:
                raise InputError(f"{place}: ID out of order: expected {last_id}.{last_empty + 1}, got {columns[0]}")
            last_empty += 1
            continue
        first_id = int(match[1])
        if first_id != last_id + 1 or (match[2] is not None and open_range is not None):
            expected = f"word {last_id + 1}" if open_range is not None else f"{last_id + 1}"
            raise InputError(f"{place}: ID out of order or given twice: expected {expected}, got {columns[0]}")
        if not columns[1].strip():
            raise InputError(f"{place}: the form of word {columns[0]} is empty; write _ for a literal underscore")
        space_after = "SpaceAfter=No" not in columns[9].split("|")
        if match[2] is not None:
            if int(match[2]) < first_id:
                raise InputError(f"{place}: bad ID {columns[0]!r}; a range ends at or after its first word")
            tokens.append(_Surface(columns[1], number, space_after, int(match[2])))
            continue
        if open_range is None:
            tokens.append(open_range := _Surface(columns[1], number, space_after, first_id))
        elif first_id == open_range.last_id:
            open_range.space_after &= space_after
        if columns[1] == columns[3] == "_" and open_range.form == "_" and "text" not in comments:
            raise InputError(
                f"{place}: word {columns[0]} has no form (_ in FORM and UPOS); give the form, the UPOS or # text"
            )
        open_range.words.append((columns[1], _labels(columns, place)))
        last_id, last_empty = first_id, 0
    if tokens and tokens[-1].last_id > last_id:
        surface = tokens[-1]
        raise InputError(
            f"{file.name}:{surface.line}: the range of {surface.form!r} ends at word {surface.last_id},"
            f" but the sentence ends at word {last_id}"
        )
    return _Block(comments, tokens, lines[0][0])


def _add_comment(comments: dict[str, str | None], line: str) -> None:
    match = _COMMENT.fullmatch(line)
    if match is None:  # a free remark
        return
    key, value = match[1], match[2]
    if key in ("newdoc", "newdoc id", "newpar", "newpar id"):
        key = key.removesuffix(" id")
        comments[key] = value or comments.get(key)
    elif value is not None:
        known = comments.get(key)
        comments[key] = value if known is None else f"{known}; {value}"


def _labels(columns: Sequence[str], place: str) -> dict[str, str]:
    form, lemma, upos, xpos, feats, head, deprel = columns[1:8]
    labels: dict[str, str] = {}
    # The format cannot tell an unknown lemma from the lemma of "_"; a tagged "_" is punctuation with itself as lemma.
    if lemma not in ("", "_") or (lemma == form == "_" and upos not in ("", "_")):
        labels["lemma"] = lemma
    labels |= {
        name: value
        for name, value in (("upos", upos), ("xpos", xpos), ("head", head), ("deprel", deprel))
        if value not in ("", "_")
    }
    if "head" in labels and not _HEAD.fullmatch(head):
        raise InputError(f"{place}: HEAD must be a word number, 0 or _, got {head!r}")
    if feats not in ("", "_"):
        try:
            labels |= _features(feats)
        except ValueError as error:
            raise InputError(f"{place}: FEATS {feats!r}: {error}") from error
    return labels


@lru_cache(maxsize=4096)  # a treebank has a few hundred distinct values, repeated on every word
def _features(feats: str) -> dict[str, str]:
    features: dict[str, str] = {}
    for pair in feats.split("|"):
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise ValueError(f"expected Name=Value, got {pair!r}")
        if name in features:
            raise ValueError(f"{name} is given twice")
        if name in _COLUMN_LABELS or name in RESERVED_LABELS:
            raise ValueError(f"{name!r} cannot be the name of a feature, neuronlake uses it itself; rename it")
        features[name] = value
    return features


def _sentence(file: SourceFile, block: _Block, *, document: str, default_name: str) -> Sentence:
    name = block.comments.pop("sent_id", None) or default_name
    forms = [token.form for token in block.tokens]
    text = block.comments.pop("text", None)
    if text is None:
        text, spans = lay_out(forms, [token.space_after for token in block.tokens])
    else:
        spans = locate(text, forms, where=lambda index: f"{file.name}:{block.tokens[index].line}: sentence {name}")
    words = [word for token, span in zip(block.tokens, spans, strict=True) for word in _words(token, span)]
    if "newpar" in block.comments:
        block.comments["newpar"] = block.comments["newpar"] or "yes"
    return Sentence(
        text=text,
        words=tuple(words),
        name=name,
        document=document,
        source=file.name,
        place=f"{file.name}:{block.tokens[0].line}",
        metadata={key: value for key, value in block.comments.items() if value},
    )


def _words(token: _Surface, span: Span) -> Iterator[Word]:
    start, end = span
    splits = "".join(form for form, _ in token.words) == token.form
    for form, labels in token.words:
        if splits:
            end = start + len(form)
        yield Word(form=form, start=start, end=end, labels=labels)
        if splits:
            start = end
