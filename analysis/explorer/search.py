"""Search: a neuron, a word, or an SQL predicate. Reads the plan's tables only, and those of words once."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from neuronlake.analysis.explorer.contexts import Context, Piece, contexts
from neuronlake.analysis.explorer.forms import Forms, read_forms
from neuronlake.analysis.explorer.shelf import Opened
from neuronlake.analysis.neuron import check_neuron, neuron_name, parse_neuron
from neuronlake.analysis.sql import evaluate, read_expression
from neuronlake.store.errors import InputError
from neuronlake.store.lake import Lake
from neuronlake.store.parallel import map_ordered
from neuronlake.store.tables import PADDING, SPECIAL

SHOWN = 50
KINDS = ("neuron", "word", "SQL")
MOST_QUESTION = 2000  # characters
_NAMED = re.compile(r"\s*L\s*(\d{1,9})\s*[.,:\s]?\s*N\s*(\d{1,9})\s*", re.IGNORECASE)
_BARE = re.compile(r"\s*L?(\d{1,9})\.(\d{1,9})\s*", re.IGNORECASE)
_SQL = re.compile(r"[=<>]|\S\s+(not\s+)?(like|ilike|in|is|between|similar|glob)\b|\w\s*\(.*\)", re.IGNORECASE | re.DOTALL)
_LABEL_IS = re.compile(r"""\s*([^\W\d][\w.:]*)\s*=\s*([^\s'"=<>()]+)\s*""")
_WINDOW = re.compile(r"\bover\b", re.IGNORECASE)
_AROUND = 160  # characters of a long sentence on either side of a word
_TAGS = 12  # of a label, that a word is counted by
_GROUP = 64  # blocks whose tokens a predicate is evaluated for at a time: 500,000 tokens of 8,192 rows


def search(opened: Opened, question: str | None, kind: str | None = None) -> dict[str, Any]:
    """Answer a search.

    Parameters
    ----------
    question
        A neuron (``L12.N345``, ``12.345``), a word form, or an SQL predicate over the columns of a token.
    kind
        One of `KINDS` where it is to be taken for that; otherwise a neuron's name is one, a form that occurs is a word, and
        what looks like SQL is SQL.

    Returns
    -------
    dict
        question, kind (None where nothing was asked), kinds, labels (all columns), problem; for a neuron: neuron (its name);
        for a word: count, blocks, tags (of each label: label, tags with count and share, more), hits (`Context`), near
        (other forms and their counts); for SQL: predicate, count, tokens (all), hits, tagged (label shown with the hits).

    Raises
    ------
    InputError
        When there is no such neuron, or SQL is refused; the message says what is valid.
    """
    lake = opened.lake
    answer = unanswered(opened, question, kind)
    if question is None or not question.strip():
        return answer
    if len(question) > MOST_QUESTION:
        raise InputError(f"a search has at most {MOST_QUESTION:,} characters, got {len(question):,}")
    if kind is not None and kind not in KINDS:
        raise InputError(f"unknown kind of search {kind!r}: known are {', '.join(KINDS)}")
    text = question.strip()
    if (name := _neuron(lake, text, kind)) is not None:
        return {**answer, "kind": "neuron", "neuron": name}
    if kind != "SQL":
        forms = forms_of(opened)
        if kind == "word" or forms.count(text) or not _SQL.search(text):
            return {**answer, "kind": "word", **_word(opened, forms, text)}
    return {**answer, "kind": "SQL", **_predicate(opened, text)}


def unanswered(opened: Opened, question: str | None, kind: str | None, problem: str | None = None) -> dict[str, Any]:
    """Return what the page of a search shows that has no answer, or none yet."""
    return {
        "question": question or "",
        "kind": None,
        "kinds": KINDS,
        "asked": kind or "",
        "labels": opened.lake.label_columns,
        "problem": problem,
    }


def forms_of(opened: Opened) -> Forms:
    """Return the lake's word forms, read when first asked for."""
    found: Forms = opened.remember("forms", lambda: read_forms(opened.lake))
    return found


def _neuron(lake: Lake, text: str, kind: str | None) -> str | None:
    """Name of the neuron that is meant; None where none is."""
    if kind not in (None, "neuron"):
        return None
    if (match := _NAMED.fullmatch(text)) is not None:
        layer, neuron = int(match[1]), int(match[2])
    elif (match := _BARE.fullmatch(text)) is not None:
        layer, neuron = int(match[1]), int(match[2])
        if kind is None and text[0] not in "lL" and (layer not in lake.layers or neuron >= lake.neurons):
            return None  # a number such as 3.14
    elif kind == "neuron":
        layer, neuron = parse_neuron(text, lake)
    else:
        return None
    check_neuron(lake, layer, neuron)
    return neuron_name(layer, neuron)


# ---- words ------------------------------------------------------------------------------------------------------------


def _word(opened: Opened, forms: Forms, form: str) -> dict[str, Any]:
    def find() -> dict[str, Any]:
        lake, words = opened.lake, forms.words(form)
        found = {lake.blocks[position]: inside for position, inside in words.items()}
        return {
            "count": forms.count(form),
            "blocks": len(found),
            "tags": _tag_counts(lake, _shown_labels(opened), found),
            "hits": _word_contexts(lake, found),
            "near": forms.cases(form) if found else forms.near(form),
        }

    answer: dict[str, Any] = opened.remember(("word", form), find, small=True)
    return answer


def _shown_labels(opened: Opened, most: int = 3) -> list[str]:
    """Labels that words are counted by: those of which statistics are kept, and the usual ones."""
    columns = opened.lake.label_columns
    wanted = [*opened.labels, "upos", "xpos", "deprel", *opened.lake.plan.label_columns]
    return [label for label in dict.fromkeys(wanted) if label in columns and label != "form"][:most]


def _tag_counts(lake: Lake, labels: Sequence[str], words: dict[int, NDArray[np.int64]]) -> list[dict[str, Any]]:
    """How often the words carry which tag of each label."""
    if not (labels := [label for label in labels if label in _word_columns(lake)]):
        return []

    def count(block: int) -> list[dict[str | None, int]]:
        table = lake.words(labels, blocks=[block]).take(words[block])
        return [
            {entry["values"]: entry["counts"] for entry in pc.value_counts(table.column(label)).to_pylist()}
            for label in labels
        ]

    counts: list[Counter[str | None]] = [Counter() for _ in labels]
    for found in map_ordered(count, list(words)):
        for total, more in zip(counts, found, strict=True):
            total.update(more)
    answers = []
    for label, total in zip(labels, counts, strict=True):
        order = sorted(total.items(), key=lambda entry: (-entry[1], entry[0] or ""))
        tags = [{"tag": tag, "count": number, "share": number / total.total()} for tag, number in order[:_TAGS]]
        answers.append({"label": label, "tags": tags, "more": len(order[_TAGS:])})
    return answers


def _word_columns(lake: Lake) -> set[str]:
    """Labels that words have; others are of rows."""
    return {
        *lake.plan.label_columns,
        *(column for labels in lake.label_sets if labels.of == "words" for column in labels.columns),
    }


def _word_contexts(lake: Lake, words: dict[int, NDArray[np.int64]]) -> list[Context]:
    found: list[Context] = []
    for block in sorted(words):
        inside = words[block][: SHOWN - len(found)]
        table = lake.read_table("words", block, ["word", "sentence", "form", "char_start", "char_end"]).take(inside)
        sentences = lake.read_table("sentences", block, ["sentence", "document", "text"])
        first = sentences.column("sentence")[0].as_py()
        for word in table.to_pylist():
            at = word["sentence"] - first
            text = sentences.column("text")[at].as_py() or word["form"]
            pieces, cut = marked(text, word["char_start"], word["char_end"])
            found.append(
                Context(
                    row=-1,
                    value=float("nan"),
                    token=word["form"],
                    special=False,
                    sentence=word["sentence"],
                    document=sentences.column("document")[at].as_py(),
                    labels={},
                    pieces=pieces,
                    cut=cut,
                )
            )
        if len(found) >= SHOWN:
            break
    return found


def marked(text: str, start: int, end: int) -> tuple[tuple[Piece, ...], tuple[bool, bool]]:
    """Cut a text into what is around some characters and these, marked; and say on which sides it goes on."""
    first, stop = max(0, start - _AROUND), min(len(text), end + _AROUND)
    pieces = (Piece(text=text[first:start]), Piece(text=text[start:end], row=-1, target=True), Piece(text=text[end:stop]))
    return tuple(piece for piece in pieces if piece.text), (first > 0, stop < len(text))


# ---- SQL --------------------------------------------------------------------------------------------------------------


def _predicate(opened: Opened, text: str) -> dict[str, Any]:
    lake = opened.lake
    predicate = as_predicate(lake, text)
    tagged = next(iter(_shown_labels(opened, 1)), None)

    def show() -> dict[str, Any]:
        true = true_of(opened, predicate)
        parts = [block * lake.block_rows + inside.astype(np.int64) for block, inside in true.items()]
        rows = np.concatenate([np.empty(0, dtype=np.int64), *parts])
        shown = rows[:SHOWN]
        values = np.full(len(shown), np.nan, dtype=np.float32)
        return {
            "count": len(rows),
            "hits": contexts(lake, shown, values, {}, () if tagged is None else (tagged,), limit=1.0),
        }

    found: dict[str, Any] = opened.remember(("SQL", predicate), show, small=True)
    return {"predicate": predicate, "tokens": lake.plan.counts["tokens"], "tagged": tagged, **found}


def as_predicate(lake: Lake, text: str) -> str:
    """Return the SQL that is meant: ``upos=NOUN`` stands for ``"upos" = 'NOUN'``."""
    match = _LABEL_IS.fullmatch(text)
    if match is not None and match[1] in lake.label_columns and match[2] not in lake.label_columns:
        return f"\"{match[1]}\" = '{match[2]}'"
    return text


def true_of(opened: Opened, predicate: str) -> dict[int, NDArray[np.int32]]:
    """Return the tokens that a predicate is true of, neither special nor padding: block → rows within it, ascending.

    Raises
    ------
    InputError
        When the predicate is refused.
    """
    lake = opened.lake
    expression = read_expression(predicate, argument="SQL", label_columns=lake.label_columns, predicate=True)
    columns = [name for name in expression.columns if name in lake.label_columns]
    # a window function looks at all tokens, any other expression at one
    size = len(lake.blocks) if _WINDOW.search(predicate) else _GROUP

    def find() -> dict[int, NDArray[np.int32]]:
        found = {}
        for first in range(0, len(lake.blocks), size):
            blocks = lake.blocks[first : first + size]
            parts = map_ordered(lambda block: lake.tokens(labels=columns, blocks=[block]), blocks)
            table = pa.concat_tables(parts).unify_dictionaries()
            rows, answers = evaluate(expression, table)
            true = np.zeros(table.num_rows, dtype=np.bool_)
            true[rows] = pc.fill_null(answers, False).to_numpy()
            true &= (table.column("flags").to_numpy() & (PADDING | SPECIAL)) == 0
            for block, line in zip(blocks, true.reshape(len(blocks), -1), strict=True):
                if line.any():
                    found[block] = np.flatnonzero(line).astype(np.int32)
        return found

    true: dict[int, NDArray[np.int32]] = opened.remember(("true", predicate), find)
    return true
