"""The tokens on which a neuron is strongest, exactly, with their text."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.execute import run_all
from neuronlake.analysis.labels import token_labels
from neuronlake.analysis.neuron import check_neuron
from neuronlake.analysis.source import DEFAULT_SITE, LakeSource
from neuronlake.store.errors import InputError
from neuronlake.store.tables import PADDING, SPECIAL

_MARKS = "«", "»"


def top_tokens(
    source: LakeSource,
    layer: int,
    neuron: int,
    k: int = 20,
    *,
    bottom: bool = False,
    where: tuple[str, str] | None = None,
    labels: Sequence[str] = (),
    words_only: bool = False,
    site: str = DEFAULT_SITE,
    scheduler: Any = None,
) -> list[dict[str, Any]]:
    """The k tokens with the largest (or smallest) activation of one neuron.

    Exact: every committed block is read. Equal values are ordered by row.

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
    where : (by, tag), optional
        Only tokens of words with that tag (all tokens of a word).
    labels
        Label columns to show with every token.
    words_only
        Leave out special tokens, on which many neurons are largest by far.
    site
        Site of the activations.
    scheduler
        A Dask scheduler; None means threads.

    Returns
    -------
    list of dict
        rank (from 1), row, value, token, context, document, sentence, special and, if asked for, labels. `token` is the
        text the token covers and `context` its sentence with the token between « and »; a special token has none
        (``""``) and is flagged, its context is the bare sentence.

    Raises
    ------
    InputError
        When the neuron, a label column or the tag does not exist, or `k` is below 1.
    """
    check_neuron(source, layer, neuron)
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    for label in labels:
        if label not in source.label_columns:
            raise InputError(f"no label column {label!r}: known are {', '.join(source.label_columns)}")
    table = source.tokens(labels=list(labels))
    flags = table.column("flags").to_numpy()
    eligible = (flags & (PADDING | SPECIAL if words_only else PADDING)) == 0
    if where is not None:
        eligible &= _tagged(source, *where)
    found = run_all(
        partial(_best_of_block, source, eligible, layer=layer, neuron=neuron, k=k, bottom=bottom, site=site),
        [{"position": position} for position in range(len(source.blocks))],
        scheduler=scheduler,
    )
    if not found:
        return []
    lines, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
    best = best_rows(values, k, bottom=bottom)
    return _describe(source, table.take(lines[best]).to_pylist(), values[best], tuple(labels))


def best_rows(values: NDArray[np.float32], k: int, *, bottom: bool) -> NDArray[np.int64]:
    """Positions of the k largest (or smallest) values, best first, equal ones by position; int64 (min(k, n),)."""
    badness = values if bottom else -values
    if k < badness.size:
        # Everything up to the k-th value, ties included: argpartition alone would pick among equals at random.
        candidates = np.flatnonzero(badness <= np.partition(badness, k - 1)[k - 1])
    else:
        candidates = np.arange(badness.size)
    return candidates[np.argsort(badness[candidates], kind="stable")][:k]


def _best_of_block(
    source: LakeSource,
    eligible: NDArray[np.bool_],
    *,
    position: int,
    layer: int,
    neuron: int,
    k: int,
    bottom: bool,
    site: str,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Lines of the token table and values of one block's best."""
    first = position * source.block_rows
    inside = np.flatnonzero(eligible[first : first + source.block_rows])
    if not inside.size:
        return inside, np.empty(0, dtype=np.float32)
    column = source.read_block(layer=layer, block=source.blocks[position], neurons=[neuron], site=site)[:, 0]
    values = column[inside]
    best = best_rows(values, k, bottom=bottom)
    return first + inside[best], values[best]


def _tagged(source: LakeSource, by: str, tag: str) -> NDArray[np.bool_]:
    labels = token_labels(source, by, subword="all", min_tokens=1)
    if tag not in labels.tags:
        known = ", ".join(labels.tags[:40]) + (", …" if len(labels.tags) > 40 else "")
        raise InputError(f"no tag {tag!r} of {by!r}: known are {known}")
    tagged: NDArray[np.bool_] = labels.codes == labels.tags.index(tag)
    return tagged


def _describe(
    source: LakeSource, tokens: list[dict[str, Any]], values: NDArray[np.float32], labels: tuple[str, ...]
) -> list[dict[str, Any]]:
    import pyarrow.compute as pc

    sentences = source.sentences()
    wanted = pc.is_in(sentences.column("sentence"), value_set=_array({token["sentence"] for token in tokens}))
    texts = {line["sentence"]: line["text"] for line in sentences.filter(wanted).to_pylist()}
    described = []
    for place, (token, value) in enumerate(zip(tokens, values, strict=True)):
        text = texts.get(token["sentence"], "")
        start, end = token["char_start"], token["char_end"]
        special = bool(token["flags"] & SPECIAL)
        entry = {
            "rank": place + 1,
            "row": token["row"],
            "value": float(value),
            "token": "" if special else text[start:end],
            "context": text if special else f"{text[:start]}{_MARKS[0]}{text[start:end]}{_MARKS[1]}{text[end:]}",
            "document": token["document"],
            "sentence": token["sentence"],
            "special": special,
        }
        if labels:
            entry["labels"] = {label: token[label] for label in labels}
        described.append(entry)
    return described


def _array(numbers: set[int]) -> Any:
    import pyarrow as pa

    return pa.array(sorted(numbers), pa.int64())
