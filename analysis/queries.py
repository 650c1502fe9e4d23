"""The tokens on which a neuron is strongest, exactly, with their text."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.chosen_tokens import Where, eligible_tokens
from neuronlake.analysis.extremes import Extremes, find_extremes
from neuronlake.analysis.listings import TokenList
from neuronlake.analysis.neuron import check_neuron
from neuronlake.analysis.source import LakeSource
from neuronlake.store.errors import InputError
from neuronlake.store.lake import Lake
from neuronlake.store.tables import SPECIAL

_MARKS = "«", "»"


def top_tokens(
    source: LakeSource,
    layer: int,
    neuron: int,
    k: int = 20,
    *,
    bottom: bool = False,
    where: Where = None,
    per_document: int | None = None,
    labels: Sequence[str] = (),
    special: bool = False,
) -> TokenList:
    """The k tokens with the largest (or smallest) activation of one neuron.

    Exact, whatever the index covers: see `find_extremes`. Equal values are ordered by row.

    Parameters
    ----------
    source
        The lake.
    layer, neuron
        Which neuron.
    k
        Tokens wanted; fewer come back when the lake has fewer.
    bottom
        The smallest values instead.
    where : str or (by, tag), optional
        Only tokens for which an SQL predicate is true, e.g. ``upos='NOUN' AND deprel='root'`` (see `token_labels`); or
        tokens of words with that tag (all tokens of a word).
    per_document
        At most so many tokens of one document, so that no text takes all the places.
    labels
        Label columns to show with every token.
    special
        Special tokens too: on these many neurons are largest by far.

    Returns
    -------
    TokenList
        A list of dictionaries that a notebook shows as a table: rank (from 1), row, value, token, start, context, document,
        sentence, special and, if asked for, labels. `start` is where the token begins in the sentence (and its « in the
        context), in code points; `token` is the text the token covers and `context` its sentence with the token between «
        and »; a special token has none (``""``) and is flagged, its context is the bare sentence.

    Raises
    ------
    InputError
        When the neuron, a label column or the tag does not exist, `k` is below 1, or SQL is refused.
    """
    for label in labels:
        if label not in source.label_columns:
            raise InputError(f"no label column {label!r}: known are {', '.join(source.label_columns)}")
    found = find_top(source, layer, neuron, k, bottom=bottom, where=where, per_document=per_document, special=special)
    return describe_lines(source, found.lines, found.values, labels)


def find_top(
    source: LakeSource,
    layer: int,
    neuron: int,
    k: int,
    *,
    bottom: bool = False,
    where: Where = None,
    per_document: int | None = None,
    special: bool = False,
) -> Extremes:
    """As `top_tokens`, without their text but with what was read to find them."""
    check_neuron(source, layer, neuron)
    for name, number in (("k", k), ("per_document", per_document)):
        if number is not None and number < 1:
            raise InputError(f"{name} must be at least 1, got {number}")
    eligible = None if where is None and not special else eligible_tokens(source, where, special=special)
    return find_extremes(source, layer, neuron, k, bottom=bottom, eligible=eligible, per_document=per_document)


def describe_lines(
    source: LakeSource,
    lines: NDArray[np.int64],
    values: NDArray[np.float32] | NDArray[np.float64],
    labels: Sequence[str] = (),
) -> TokenList:
    """Text and context of some lines of the token table with their values, see `top_tokens`."""
    places: list[dict[str, Any]] = [{}] * len(lines)
    texts: dict[int, str] = {}
    positions, rows = lines // source.block_rows, lines % source.block_rows
    for position in np.unique(positions):
        tokens, sentences = _block_text(source, source.blocks[position], tuple(labels))
        here = np.flatnonzero(positions == position)
        for place, token in zip(here, tokens.take(rows[here]).to_pylist(), strict=True):
            places[place] = token
        numbers = sentences.column("sentence").to_numpy()
        wanted = np.isin(numbers, [places[place]["sentence"] for place in here])
        texts.update(zip(numbers[wanted].tolist(), sentences.column("text").filter(wanted).to_pylist(), strict=True))
    return _describe(texts, places, values, tuple(labels))


def _block_text(source: LakeSource, block: int, labels: tuple[str, ...]) -> tuple[Any, Any]:
    """Tokens and sentences of a block; parsing them takes longer than the rest of a query, so lakes remember some."""

    def read() -> tuple[Any, Any]:
        return source.tokens(labels=list(labels), blocks=[block]).combine_chunks(), source.sentences(blocks=[block])

    return source.texts.get((block, labels), read) if isinstance(source, Lake) else read()


def _describe(
    texts: dict[int, str], tokens: list[dict[str, Any]], values: NDArray[np.floating[Any]], labels: tuple[str, ...]
) -> TokenList:
    described = TokenList()
    for place, (token, value) in enumerate(zip(tokens, values, strict=True)):
        text = texts.get(token["sentence"], "")
        start, end = token["char_start"], token["char_end"]
        special = bool(token["flags"] & SPECIAL)
        entry = {
            "rank": place + 1,
            "row": token["row"],
            "value": float(value),
            "token": "" if special else text[start:end],
            "start": None if special else start,
            "context": text if special else f"{text[:start]}{_MARKS[0]}{text[start:end]}{_MARKS[1]}{text[end:]}",
            "document": token["document"],
            "sentence": token["sentence"],
            "special": special,
        }
        if labels:
            entry["labels"] = {label: token[label] for label in labels}
        described.append(entry)
    return described
