"""Statistics of every neuron per tag, out of core."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from neuronlake.analysis.column import Column, column_statistics
from neuronlake.analysis.execute import Progress, run_all
from neuronlake.analysis.labels import LabelVector, label_blocks, token_labels
from neuronlake.analysis.moments import fraction_active, variance_of
from neuronlake.analysis.ranksum import SEGMENT_BYTES
from neuronlake.analysis.source import DEFAULT_SITE, LakeSource, choose_layers, versions
from neuronlake.store.errors import InputError

MAX_BYTES = 16 << 30  # 16 GiB of results: 150 tags of an 8B-parameter model
_VARIABLES = {
    "mean": ("mean activation", "activation"),
    "variance": ("unbiased variance of the activation (ddof = 1)", "activation²"),
    "fraction_active": ("share of tokens with an activation above zero", "1"),
    "auroc": ("area under the ROC curve, tag against all other labelled tokens", "1"),
    "auroc_error": ("upper bound of the error of auroc", "1"),
}


def compute_statistics(
    source: LakeSource,
    by: str = "upos",
    *,
    subword: str = "last",
    shift: int = 0,
    documents: Iterable[int] | None = None,
    layers: Sequence[int] | None = None,
    auroc: bool = True,
    site: str = DEFAULT_SITE,
    scheduler: Any = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Statistics of every neuron for every tag of a label, from the stored values.

    Parameters
    ----------
    source
        The lake.
    by
        Label column.
    subword
        Tokens of a word that count: ``last``, ``first`` or ``all``.
    shift
        Use the label of the word so many words later in the sentence.
    documents
        Only tokens of these documents.
    layers
        Only these layers; None means all that are stored.
    auroc
        Also compute AUROC; its cost is about that of everything else.
    site
        Site of the activations.
    scheduler
        A Dask scheduler; None means threads, one per core.
    progress
        Called with (columns done, columns in all).

    Returns
    -------
    xarray.Dataset
        Dimensions (tag, layer, neuron). ``count`` (tag) int64; ``mean``, ``variance`` (ddof = 1), ``fraction_active`` and,
        if asked for, ``auroc`` float64 (tag, layer, neuron): moments in float64, AUROC in exact integers. In a float32
        lake values are compared by their upper 16 bits for AUROC, and ``auroc_error`` bounds the difference. Attributes
        say what was computed, of which lake, and which tags were dropped; they are JSON-compatible.

    Raises
    ------
    InputError
        When the label, a policy or a layer is unknown; when no tag has two tokens, or AUROC is asked for with a single
        tag; when the result would not fit in memory.
    """
    labels = token_labels(source, by, subword=subword, shift=shift, keep_documents=documents)
    return statistics_of_labels(
        source,
        labels,
        layers=layers,
        auroc=auroc,
        site=site,
        scheduler=scheduler,
        progress=progress,
        segment_bytes=SEGMENT_BYTES,
    )


def statistics_of_labels(
    source: LakeSource,
    labels: LabelVector,
    *,
    layers: Sequence[int] | None,
    auroc: bool,
    site: str,
    scheduler: Any,
    progress: Progress | None,
    segment_bytes: int,
) -> xr.Dataset:
    """Return what `compute_statistics` does, for rows that are labelled already. Every tag needs two tokens."""
    chosen = choose_layers(source, layers)
    if auroc and len(labels.tags) < 2:
        raise InputError(
            f"AUROC compares tags, but only {labels.tags[0]!r} of {labels.by!r} has two tokens or more: "
            "choose another label, or leave AUROC out"
        )
    names = [name for name in _VARIABLES if auroc or not name.startswith("auroc")]
    _check_size(len(labels.tags), len(chosen), source.neurons, len(names))
    work = partial(column_statistics, source, label_blocks(labels), site=site, auroc=auroc, segment_bytes=segment_bytes)
    chunks = -(-source.neurons // source.chunk_neurons)
    columns = run_all(
        work,
        [{"layer": layer, "chunk": chunk} for layer in chosen for chunk in range(chunks)],
        scheduler=scheduler,
        progress=progress,
    )
    return _dataset(source, labels, chosen, columns, site)


def _check_size(tags: int, layers: int, neurons: int, variables: int) -> None:
    needed = tags * layers * neurons * variables * 8
    if needed > MAX_BYTES:
        raise InputError(
            f"statistics of {tags} tags × {layers} layers × {neurons} neurons take {needed / 2**30:.0f} GiB, at most "
            f"{MAX_BYTES / 2**30:.0f} GiB are held: choose a label with fewer values, or fewer layers"
        )


def _dataset(
    source: LakeSource, labels: LabelVector, layers: tuple[int, ...], columns: list[Column], site: str
) -> xr.Dataset:
    shape = (len(labels.tags), len(layers), source.neurons)
    data: dict[str, Any] = {}
    place = {layer: position for position, layer in enumerate(layers)}
    while columns:  # freed one by one: results are held once, not twice
        column = columns.pop()
        found = {
            "mean": column.moments.mean,
            "variance": variance_of(column.moments.m2, column.moments.count),
            "fraction_active": fraction_active(column.moments),
            "auroc": column.auroc,
            "auroc_error": column.auroc_error,
        }
        for name, values in found.items():
            if values is not None:
                target = data.setdefault(name, np.empty(shape))
                last = column.first_neuron + values.shape[1]
                target[:, place[column.layer], column.first_neuron : last] = values
    dataset = xr.Dataset(
        {"count": ("tag", labels.counts, {"long_name": "labelled tokens", "units": "tokens"})},
        coords={
            "tag": np.asarray(labels.tags, dtype=str),
            "layer": np.asarray(layers, dtype=np.int64),
            "neuron": np.arange(source.neurons, dtype=np.int64),
        },
        attrs={
            "lake": source.fingerprint,
            "site": site,
            "encoding": source.encoding,
            "by": labels.by,
            "subword": labels.subword,
            "shift": labels.shift,
            "dropped": dict(labels.dropped),
            "rows": labels.tokens,
            "documents": int(np.unique(labels.documents[labels.codes >= 0]).size),
            "blocks": [int(block) for block in labels.blocks],
            "versions": versions(),
        },
    )
    for name, (long_name, units) in _VARIABLES.items():
        if name in data:
            dataset[name] = (("tag", "layer", "neuron"), data[name], {"long_name": long_name, "units": units})
    return dataset
