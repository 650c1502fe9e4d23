"""Tokens in their sentences, shaded by a neuron's activation as far as it is known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.explorer.shades import signed
from neuronlake.store.lake import Lake
from neuronlake.store.parallel import map_ordered
from neuronlake.store.tables import PADDING, SPECIAL

_AHEAD = 64  # blocks whose tables are read at once: half of what a lake remembers
_AROUND = 160  # characters of a long sentence on either side of the token


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A token's text, or what stands between tokens."""

    text: str
    row: int | None = None
    """Of the token."""
    value: float | None = None
    """Its activation, where it is known."""
    shade: str = ""
    target: bool = False
    """Whether this is the token that the context is of."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """A token in its sentence."""

    row: int
    value: float
    token: str
    special: bool
    sentence: int
    document: int
    labels: Mapping[str, str | None]
    pieces: tuple[Piece, ...]
    cut: tuple[bool, bool]
    """Whether the sentence goes on before and after what is shown."""


def contexts(
    lake: Lake,
    rows: NDArray[np.int64],
    values: NDArray[np.float32],
    known: Mapping[int, float],
    labels: Sequence[str] = (),
    *,
    limit: float,
) -> list[Context]:
    """Show some tokens in their sentences.

    Parameters
    ----------
    rows, values
        Of the tokens shown.
    known
        Row → activation, of these and of others.
    labels
        Label columns shown with each token.
    limit
        Magnitude of the darkest shade.
    """
    for _ in map_ordered(lambda block: _tables(lake, block, labels), np.unique(rows // lake.block_rows)[:_AHEAD].tolist()):
        pass
    found = []
    for row, value in zip(rows.tolist(), values.tolist(), strict=True):
        tokens, text = sentence_of(lake, row, labels)
        own = next(token for token in tokens if token["row"] == row)
        pieces = split(text, tokens, known, target=row, limit=limit)
        shown, cut = _around(pieces)
        found.append(
            Context(
                row=row,
                value=value,
                token="" if own["flags"] & SPECIAL else text[own["char_start"] : own["char_end"]],
                special=bool(own["flags"] & SPECIAL),
                sentence=own["sentence"],
                document=own["document"],
                labels={label: own[label] for label in labels},
                pieces=shown,
                cut=cut,
            )
        )
    return found


def sentence_of(lake: Lake, row: int, labels: Sequence[str] = ()) -> tuple[list[dict[str, Any]], str]:
    """Return the tokens of the sentence in which a row is, in order, as dicts of the token table; and its text."""
    block = row // lake.block_rows
    sentence = int(_tables(lake, block, labels)[0].column("sentence")[row - block * lake.block_rows].as_py())
    tokens, record = sentence_in(lake, block, sentence, labels)
    return tokens, str(record["text"])


def sentence_in(
    lake: Lake, block: int, sentence: int, labels: Sequence[str] = ()
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the tokens of a sentence of a block, in order, as dicts of the token table; and its line of the sentences'."""
    tokens, sentences = _tables(lake, block, labels)
    inside = np.flatnonzero(tokens.column("sentence").to_numpy() == sentence)
    found = [token for token in tokens.take(inside).to_pylist() if not token["flags"] & PADDING]
    at = int(np.searchsorted(sentences.column("sentence").to_numpy(), sentence))
    record: dict[str, Any] = sentences.slice(at, 1).to_pylist()[0]
    return found, record


def _tables(lake: Lake, block: int, labels: Sequence[str]) -> tuple[Any, Any]:
    """Tokens and sentences of a block, of which the lake remembers some."""

    def read() -> tuple[Any, Any]:
        return lake.tokens(labels=list(labels), blocks=[block]).combine_chunks(), lake.sentences(blocks=[block])

    found: tuple[Any, Any] = lake.texts.get(("sentences", block, tuple(labels)), read)
    return found


def split(
    text: str, tokens: Sequence[Mapping[str, Any]], known: Mapping[int, float], *, target: int | None = None, limit: float
) -> list[Piece]:
    """Cut a sentence into its tokens and what stands between them; put together again they are the text.

    Several tokens may share characters (the bytes of one letter): the first one shows them, with the target's value or else
    that of the largest magnitude.
    """
    pieces: list[Piece] = []
    position = 0
    for token in tokens:
        start, end = token["char_start"], token["char_end"]
        if token["flags"] & SPECIAL or start < 0:
            continue
        value, is_target = known.get(token["row"]), token["row"] == target
        if end <= position and pieces:  # its characters are shown already
            last = pieces[-1]
            larger = value is not None and (last.value is None or abs(value) > abs(last.value))
            if not last.target and (is_target or larger):
                pieces[-1] = Piece(
                    text=last.text, row=token["row"], value=value, shade=signed(value, limit), target=is_target
                )
            continue
        start = max(start, position)
        while start + 1 < end and text[start].isspace():  # a space before a word is not shaded
            start += 1
        if start > position:
            pieces.append(Piece(text=text[position:start]))
        pieces.append(
            Piece(
                text=text[start:end], row=token["row"], value=value, shade=signed(value, limit), target=is_target
            )
        )  # fmt: skip
        position = end
    if position < len(text):
        pieces.append(Piece(text=text[position:]))
    return pieces


def _around(pieces: Sequence[Piece]) -> tuple[tuple[Piece, ...], tuple[bool, bool]]:
    """Leave out what is far from the target."""
    centre = next((at for at, piece in enumerate(pieces) if piece.target), 0)
    first, room = centre, _AROUND
    while first > 0 and room > 0:
        first -= 1
        room -= len(pieces[first].text)
    stop, room = centre + 1, _AROUND
    while stop < len(pieces) and room > 0:
        room -= len(pieces[stop].text)
        stop += 1
    return tuple(pieces[first:stop]), (first > 0, stop < len(pieces))
