"""A sentence's page: its tokens, their labels, and chosen neurons on every one of them."""

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.explorer.contexts import Piece, sentence_in, split
from neuronlake.analysis.explorer.shades import signed
from neuronlake.analysis.explorer.shelf import NotKeptError, Opened
from neuronlake.analysis.neuron import neuron_name, parse_neuron
from neuronlake.store.errors import InputError
from neuronlake.store.lake import Lake
from neuronlake.store.tables import SPECIAL

SHOWN = 200  # tokens
CHOSEN = 8  # neurons, where none are asked for
MOST = 24
MOST_LABELS = 12


def sentence_page(
    opened: Opened,
    sentence: int | None,
    neurons: Sequence[str] = (),
    labels: Sequence[str] = (),
    *,
    first: int = 0,
) -> dict[str, Any]:
    """Gather the page's data. Reads the activations of these tokens, and of these neurons' chunks, alone.

    Parameters
    ----------
    sentence
        Its number; None is the first one that is committed.
    neurons
        Names; without any, `CHOSEN` that stand out on the tokens shown, see `_strongest`.
    labels
        Columns beside ``upos``, or beside the first label column.
    first
        Of a long sentence, `SHOWN` tokens from here on.

    Returns
    -------
    dict
        sentence, previous and next (None at the ends), document, about (name → text, of the corpus), unit, labels, known
        (label columns), neurons (name, layer, neuron, limit: magnitude of the darkest shade), chosen (how, where
        the index did; else empty),
        indexed (whether the index covers the sentence), tokens (see `_token`), first, total, pieces (the text, shaded by the
        first neuron).

    Raises
    ------
    InputError
        When the sentence, a neuron or a label does not exist, or too many are asked for.
    """
    lake = opened.lake
    if len(neurons) > MOST or len(labels) > MOST_LABELS:
        raise InputError(f"at most {MOST} neurons and {MOST_LABELS} labels can be shown, got {len(neurons)}, {len(labels)}")
    for label in labels:
        if label not in lake.label_columns:
            raise InputError(f"no label column {label!r} in this lake: it has {', '.join(lake.label_columns)}")
    columns = list(dict.fromkeys(labels or _usual(opened)))
    asked = list(dict.fromkeys(parse_neuron(name, lake) for name in neurons))
    spans = Spans(opened)
    number = spans.first if sentence is None else sentence
    block = spans.block_of(number)
    every, record = sentence_in(lake, block, number, tuple(dict.fromkeys([*columns, "form"])))
    first = min(max(0, first), max(0, len(every) - 1)) // SHOWN * SHOWN
    shown = every[first : first + SHOWN]
    rows = [token["row"] for token in shown]
    indexed = block in lake.index().blocks
    chosen, how = asked, ""
    if indexed and not asked:
        chosen, how = _strongest(opened, rows)
    values = _read(lake, rows, chosen)
    limits = np.abs(values).max(axis=0) if len(rows) else np.zeros(len(chosen))
    known = dict(zip(rows, values[:, 0].tolist(), strict=True)) if chosen else {}
    text = record["text"] or ""
    return {
        "sentence": number,
        "previous": spans.beside(number, -1),
        "next": spans.beside(number, 1),
        "document": record["document"],
        "about": _about(record),
        "unit": lake.plan.unit,
        "labels": columns,
        "known": lake.label_columns,
        "neurons": [
            {"name": neuron_name(layer, neuron), "layer": layer, "neuron": neuron, "limit": float(limit)}
            for (layer, neuron), limit in zip(chosen, limits.tolist(), strict=True)
        ],
        "chosen": how,
        "indexed": indexed,
        "tokens": [
            _token(lake, token, text, columns, line, limits.tolist(), shown[at - 1] if at else None)
            for at, (token, line) in enumerate(zip(shown, values.tolist(), strict=True))
        ],
        "first": first,
        "total": len(every),
        "shown": SHOWN,
        "pieces": _pieces(text, shown, known, float(limits[0]) if chosen else 0.0),
    }


class Spans:
    """Which sentences lie in which block. A sentence lies in one, their numbers ascend: a search reads few tables."""

    def __init__(self, opened: Opened):
        self._opened = opened
        self._blocks = opened.lake.blocks

    @property
    def first(self) -> int:
        """The first sentence that is committed."""
        return self._ends(0)[0]

    def block_of(self, sentence: int) -> int:
        """Return the block of a sentence.

        Raises
        ------
        InputError
            When no committed block holds it.
        """
        low, high = 0, len(self._blocks) - 1
        while low <= high:
            middle = (low + high) // 2
            start, end = self._ends(middle)
            if start <= sentence <= end:
                return self._blocks[middle]
            low, high = (middle + 1, high) if sentence > end else (low, middle - 1)
        start, end = self._ends(0)[0], self._ends(len(self._blocks) - 1)[1]
        holes = "" if self._opened.lake.complete else "; not all blocks of the lake are extracted"
        raise InputError(f"no sentence {sentence} in this lake: it has sentences {start} to {end}{holes}")

    def beside(self, sentence: int, step: int) -> int | None:
        """Return the committed sentence before (`step` −1) or after (1) a sentence; None where there is none."""
        place = self._blocks.index(self.block_of(sentence))
        start, end = self._ends(place)
        if start <= sentence + step <= end:
            return sentence + step
        if not 0 <= place + step < len(self._blocks):
            return None
        return self._ends(place + step)[0 if step > 0 else 1]

    def _ends(self, place: int) -> tuple[int, int]:
        def read() -> tuple[int, int]:
            column = self._opened.lake.read_table("sentences", self._blocks[place], ["sentence"]).column("sentence")
            return column[0].as_py(), column[-1].as_py()

        ends: tuple[int, int] = self._opened.lake.texts.get(("ends", self._blocks[place]), read)
        return ends


def _usual(opened: Opened) -> list[str]:
    columns = opened.lake.label_columns
    if "upos" in columns:
        return ["upos"]
    return [*(label for label in (*opened.labels, *opened.lake.plan.label_columns) if label in columns)][:1]


def _strongest(opened: Opened, rows: Sequence[int]) -> tuple[list[tuple[int, int]], str]:
    """The neurons that stand out on any of the tokens, among the 32 of largest magnitude of each that the index lists.

    By distance from the neuron's mean in standard deviations where statistics are kept, since a few neurons are large in
    every sentence; else by magnitude.
    """
    lake = opened.lake
    listed = [lake.index().strongest(row // lake.block_rows, row % lake.block_rows) for row in rows]
    neurons = np.concatenate([np.empty(0, dtype=np.int64), *(found[0].astype(np.int64) for found in listed if found)])
    values = np.concatenate([np.empty(0), *(found[1].astype(np.float64) for found in listed if found)])
    used = neurons < len(lake.layers) * lake.neurons  # special tokens have no list, and one of few neurons has an end
    neurons, values = neurons[used], values[used]
    how, size = "of largest magnitude", np.abs(values)
    with suppress(NotKeptError):
        mean, deviation = _usual_values(opened)
        apart = np.abs(values - mean[neurons])
        size = np.divide(apart, deviation[neurons], out=np.zeros_like(apart), where=deviation[neurons] > 0)
        how = "farthest from their mean, in standard deviations,"
    best: dict[int, None] = {}
    for place in np.lexsort((neurons, -size)):
        best.setdefault(int(neurons[place]))
        if len(best) == CHOSEN:
            break
    return [(lake.layers[place // lake.neurons], place % lake.neurons) for place in sorted(best)], how


def _usual_values(opened: Opened) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of every neuron over the words' last tokens, (layers × neurons,) each."""
    by = opened.label(None)

    def pool() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        statistics = opened.statistics(by).transpose("tag", "layer", "neuron", ...)
        mean, variance = (statistics[name].to_numpy().reshape(statistics.sizes["tag"], -1) for name in ("mean", "variance"))
        share = statistics["count"].to_numpy() / statistics["count"].to_numpy().sum()
        pooled = share @ mean
        return pooled, np.sqrt(share @ (variance + (mean - pooled) ** 2))

    found: tuple[NDArray[np.float64], NDArray[np.float64]] = opened.remember(("usual", by), pool, small=True)
    return found


def _read(lake: Lake, rows: Sequence[int], neurons: Sequence[tuple[int, int]]) -> NDArray[np.float32]:
    """float32 (rows, neurons)."""
    values = np.zeros((len(rows), len(neurons)), dtype=np.float32)
    for layer in {layer for layer, _ in neurons} if rows else ():
        places = [place for place, (other, _) in enumerate(neurons) if other == layer]
        values[:, places] = lake.read(layer=layer, rows=list(rows), neurons=[neurons[place][1] for place in places])
    return values


def _token(
    lake: Lake,
    token: dict[str, Any],
    text: str,
    labels: Sequence[str],
    values: Sequence[float],
    limits: Sequence[float],
    before: dict[str, Any] | None,
) -> dict[str, Any]:
    """One line of the table: row, position, text, special, word (at its first token), time (of a frame, seconds), labels,
    cells (value, shade)."""
    special = bool(token["flags"] & SPECIAL)
    opens = token["word"] >= 0 and (before is None or before["word"] != token["word"])
    start, end = token["char_start"], token["char_end"]
    return {
        "row": token["row"],
        "position": token["position"],
        "text": "" if special or start < 0 else text[start:end],
        "special": special,
        "word": token["form"] if opens else None,
        "inside": token["word"] >= 0 and not opens,
        "time": _time(lake, token["position"]),
        "labels": [token[label] for label in labels],
        "cells": [{"value": value, "shade": signed(value, limit)} for value, limit in zip(values, limits, strict=True)],
    }


def _time(lake: Lake, position: int) -> float | None:
    """Centre of a frame from the beginning of the utterance, in seconds."""
    if lake.plan.unit != "frame":
        return None
    grid = lake.spec.plan["frames"]
    return (position * float(grid["hop"]) + float(grid["first_centre"])) / float(grid["sampling_rate"])


def _pieces(text: str, tokens: Sequence[dict[str, Any]], known: dict[int, float], limit: float) -> list[Piece]:
    """The text of the tokens shown; what lies beyond them is left out."""
    spans = [token for token in tokens if not token["flags"] & SPECIAL and token["char_start"] >= 0]
    if not spans:
        return []
    start, end = min(token["char_start"] for token in spans), max(token["char_end"] for token in spans)
    moved = [{**token, "char_start": token["char_start"] - start, "char_end": token["char_end"] - start} for token in spans]
    return split(text[start:end], moved, known, limit=limit)


def _about(record: dict[str, Any]) -> dict[str, str]:
    """What the corpus says of the sentence."""
    found = {name.replace("_name", ""): str(record[name]) for name in ("document_name", "name", "source") if record[name]}
    try:
        metadata = json.loads(record["metadata"] or "{}")
    except ValueError:
        metadata = {}
    more = metadata.items() if isinstance(metadata, dict) else ()
    return {**found, **{str(name): str(value) for name, value in more if name != "text"}}
