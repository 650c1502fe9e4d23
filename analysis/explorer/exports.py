"""What can be taken away from the pages: tables as CSV, pictures as PNG, SVG or PDF."""

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from neuronlake.analysis.explorer.contexts import sentence_of
from neuronlake.analysis.explorer.neuron import neuron_page, profile_of
from neuronlake.analysis.explorer.shelf import Opened
from neuronlake.analysis.figure_style import figure_bytes
from neuronlake.analysis.neuron import neuron_name
from neuronlake.analysis.ranking import rank_scores
from neuronlake.store.errors import InputError

PICTURES = ("heatmap", "bars", "volcano", "histogram")
TYPES = {"png": "image/png", "svg": "image/svg+xml", "pdf": "application/pdf"}
BARS = 20
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")
"""Text that begins so is run as a formula by spreadsheets; an apostrophe in front makes it text."""


def as_csv(names: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """Return a table as CSV (RFC 4180): numbers with all their digits, NaN and None empty, text no spreadsheet runs."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(map(_cell, names))
    writer.writerows(map(_cell, line) for line in lines)
    return out.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULAS) else value
    return None if value is None or (isinstance(value, float) and math.isnan(value)) else value


def heatmap_csv(opened: Opened, by: str | None, method: str) -> str:
    """Return the best neuron of every layer and tag."""
    scores = opened.scores(opened.label(by), method)
    values, count = scores["score"].to_numpy(), scores["count"].to_numpy()
    best = values.argmax(axis=2)  # (tags, layers)
    lines = [
        (
            layer,
            str(tag),
            int(count[at]),
            neuron_name(layer, int(best[at, place])),
            float(values[at, place, best[at, place]]),
        )
        for place, layer in enumerate(scores["layer"].to_numpy().tolist())
        for at, tag in enumerate(scores["tag"].to_numpy())
    ]
    return as_csv(["layer", "tag", "tokens", "neuron", method], lines)


def ranking_csv(
    opened: Opened, by: str | None, tag: str, method: str, *, top: int | None = None, layer: int | None = None
) -> str:
    """Return the ranking of a tag; of all neurons, where `top` is None."""
    scores = opened.scores(opened.label(by), method)
    most = scores.sizes["layer"] * scores.sizes["neuron"]
    entries = rank_scores(
        scores, top=most if top is None else min(top, most), tags=[tag], layers=None if layer is None else [layer]
    )
    names = ["rank", "name", "layer", "neuron", "score", "sign", method, "mean", "mean_rest", "p", "q"]
    names = [name for name in names if name in entries[0]]
    return as_csv(names, [[entry[name] for name in names] for entry in entries])


def profile_csv(opened: Opened, layer: int, neuron: int, by: str | None) -> str:
    """Return a neuron's statistics for every tag."""
    entries = profile_of(opened, layer, neuron, opened.label(by))
    return as_csv(list(entries[0]), [list(entry.values()) for entry in entries])


def contexts_csv(opened: Opened, layer: int, neuron: int, by: str | None, *, k: int, tag: str | None) -> str:
    """Return a neuron's highest and lowest tokens with their sentences."""
    view = neuron_page(opened, layer, neuron, by, k=k, tag=tag)
    found = [(end, rank, context) for end in ("top", "bottom") for rank, context in enumerate(view[end], 1)]
    labels = list(found[0][2].labels) if found else []
    lines = [
        (
            end,
            rank,
            context.row,
            context.value,
            context.token,
            *context.labels.values(),
            context.document,
            context.sentence,
            sentence_of(opened.lake, context.row, tuple(labels))[1],
        )
        for end, rank, context in found
    ]
    return as_csv(["end", "rank", "row", "activation", "token", *labels, "document", "sentence", "text"], lines)


def figure(
    opened: Opened,
    kind: str,
    file_type: str,
    *,
    by: str | None,
    method: str | None = None,
    tag: str | None = None,
    top: int | None = None,
    neuron: tuple[int, int] | None = None,
) -> bytes:
    """Draw a picture.

    Parameters
    ----------
    kind
        One of `PICTURES`: ``heatmap`` (layers × tags), ``bars`` (the best neurons of a tag, or the best one of every tag),
        ``volcano`` (of a tag), ``histogram`` (of a neuron, whose activations are read).
    file_type
        One of `TYPES`.

    Raises
    ------
    InputError
        When something that the picture is of is missing or unknown; the message says what.
    """
    from neuronlake.analysis.figure_histogram import neuron_histogram
    from neuronlake.analysis.figure_volcano import volcano
    from neuronlake.analysis.figures import layer_tag_heatmap, tag_bars

    by = opened.label(by)
    draw: Callable[[Path], object]
    if kind == "histogram":
        if neuron is None:
            raise InputError("a histogram is of one neuron: add for example neuron=L12.N345")
        draw = partial(neuron_histogram, opened.lake, *neuron, by=by)
    elif kind == "volcano":
        if tag is None:
            raise InputError("a volcano plot is of one tag: add for example tag=NOUN")
        draw = partial(volcano, opened.statistics(by), tag=tag, method=method or "cohen_d")
    elif kind == "bars":
        tags, number = (None, top or 1) if tag is None else ([tag], top or BARS)
        draw = partial(tag_bars, opened.statistics(by), method or "auroc", tags=tags, top=number)
    elif kind == "heatmap":
        draw = partial(layer_tag_heatmap, opened.statistics(by), method or "auroc")
    else:
        raise InputError(f"unknown kind of picture {kind!r}: known are {', '.join(PICTURES)}")
    return figure_bytes(draw, file_type)
