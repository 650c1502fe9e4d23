"""Exact values for the few neurons that a histogram's bound leaves open, so that a ranking's order is exact."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from neuronlake.analysis.column_pass import column_parts
from neuronlake.analysis.exact import column_auroc, neurons_precision
from neuronlake.analysis.exact_kept import keep_exact, load_exact
from neuronlake.analysis.execute import Progress, run_all
from neuronlake.analysis.labels import BlockLabels, LabelVector, label_blocks, labels_again
from neuronlake.analysis.ranksum import SEGMENT_BYTES
from neuronlake.analysis.source import LakeSource
from neuronlake.store.errors import InputError

_DIMS = ("tag", "layer", "neuron")
APPROXIMATE = {"auroc": ("auroc",), "average_precision": ("average_precision", "average_precision_low")}
"""Rankers that start from approximations, and the variables that have them (each with its ``…_error``)."""
_SPARE = 20  # neurons per tag made exact at least: the next, slightly longer list is there already


def refine(
    source: LakeSource,
    dataset: xr.Dataset,
    method: str,
    *,
    top: int,
    labels: LabelVector | None = None,
    scheduler: Any = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Make every value exact that could be among a tag's `top` best.

    With s the score and e its bound, a neuron whose s + e is below the `top`-th largest s − e of the tag cannot be among
    its best, whatever its exact value is. All others are read from the lake, and the results kept beside the statistics.

    Parameters
    ----------
    source
        The lake that the statistics are of.
    dataset
        Of `compute_statistics`.
    method
        Name of a ranker; one that starts from exact statistics gets the dataset back as it is.
    top
        Neurons per tag whose order must be exact.
    labels
        The labels that the statistics are of, where `token_labels` cannot give them from the dataset's attributes.
    scheduler, progress
        As for `compute_statistics`.

    Returns
    -------
    xarray.Dataset
        A copy with exact values, their ``…_error`` zero. (Of float32 values, AUROC compares the upper 16 bits: its error
        is then what that leaves.)

    Raises
    ------
    InputError
        When the lake is at another site, or blocks were committed, or labels replaced, since the statistics were computed.
    """
    names = [name for name in APPROXIMATE.get(method, ()) if name in dataset]
    if not names:
        return dataset
    check_site(source, dataset)
    if list(dataset.attrs["blocks"]) != [int(block) for block in source.blocks]:
        raise InputError("blocks were committed since these statistics were computed: compute them again")
    arrays = {
        name: dataset[name].transpose(*_DIMS).to_numpy().copy()
        for variable in names
        for name in (variable, f"{variable}_error")
    }
    load_exact(source, dataset, names, arrays)
    open_ = _open(arrays, names, max(top, _SPARE))
    if not _open(arrays, names, top).any():
        open_ = np.zeros_like(open_)
    if open_.any():
        if labels is None:
            labels = labels_again(source, dataset.attrs)
        blocks = label_blocks(labels.with_tags(tuple(str(tag) for tag in dataset["tag"].to_numpy())))
        layers = [int(layer) for layer in dataset["layer"].to_numpy()]
        work, arguments = _work(source, blocks, method, open_, layers)
        touched = np.zeros_like(open_)
        width = source.chunk_neurons
        parts = column_parts(source, [(column["layer"], column["chunk"] * width) for column in arguments])
        for layer, neurons, found in run_all(work, arguments, parts=parts, scheduler=scheduler, progress=progress):
            at = layers.index(layer)
            touched[at, neurons] = True
            for name, values in found.items():
                arrays[name][:, at, neurons] = values
        keep_exact(source, dataset, names, arrays)
    return dataset.assign({name: (_DIMS, values, dataset[name].attrs) for name, values in arrays.items()})


def check_site(source: LakeSource, dataset: xr.Dataset) -> None:
    """Raise InputError unless the lake is at the site that statistics are of."""
    if dataset.attrs["site"] != source.site:
        raise InputError(f"these statistics are of {dataset.attrs['site']}, the lake is at {source.site}: see `Lake.at`")


def _open(arrays: dict[str, NDArray[Any]], names: Sequence[str], top: int) -> NDArray[np.bool_]:
    """Neurons (layers, neurons) that could be among the best of some tag and are not exact."""
    scores = [arrays[name] for name in names]
    errors = [arrays[f"{name}_error"] for name in names]
    if names == ["auroc"]:
        scores = [np.maximum(scores[0], 1 - scores[0])]
    # the score is the larger of two directions: its bounds are the larger of theirs
    low = np.max([s - e for s, e in zip(scores, errors, strict=True)], axis=0)
    high = np.max([s + e for s, e in zip(scores, errors, strict=True)], axis=0)
    unsure = np.max(errors, axis=0) > 0
    flat = low.reshape(len(low), -1)
    place = min(top, flat.shape[1]) - 1
    bar = -np.partition(-flat, place, axis=1)[:, place]
    found: NDArray[np.bool_] = ((high >= bar[:, None, None]) & unsure).any(axis=0)
    return found


def _work(
    source: LakeSource, blocks: Sequence[BlockLabels], method: str, wanted: NDArray[np.bool_], layers: list[int]
) -> tuple[Any, list[dict[str, Any]]]:
    """What to run, once per column for AUROC (which gives all neurons of a column at once), per layer's neurons for AP."""
    columns: list[dict[str, Any]] = [
        {"layer": layer, "chunk": int(chunk)}
        for at, layer in enumerate(layers)
        for chunk in np.unique(np.flatnonzero(wanted[at]) // source.chunk_neurons)
    ]
    if method == "auroc":
        return partial(_auroc, source, blocks), columns
    for column in columns:
        first = column["chunk"] * source.chunk_neurons
        inside = np.flatnonzero(wanted[layers.index(column["layer"]), first : first + source.chunk_neurons])
        column["neurons"] = first + inside
    return partial(_precision, source, blocks), columns


def _auroc(
    source: LakeSource, blocks: Sequence[BlockLabels], *, layer: int, chunk: int
) -> tuple[int, NDArray[np.int64], dict[str, NDArray[np.float64]]]:
    area, error = column_auroc(source, blocks, layer=layer, chunk=chunk, segment_bytes=SEGMENT_BYTES)
    first = chunk * source.chunk_neurons
    return layer, np.arange(first, first + area.shape[1]), {"auroc": area, "auroc_error": error}


def _precision(
    source: LakeSource,
    blocks: Sequence[BlockLabels],
    *,
    layer: int,
    chunk: int,  # noqa: ARG001  (neighbours are read together)
    neurons: NDArray[np.int64],
) -> tuple[int, NDArray[np.int64], dict[str, NDArray[np.float64]]]:
    high, low = neurons_precision(source, blocks, layer=layer, neurons=neurons)
    zero = np.zeros_like(high)
    return (
        layer,
        neurons,
        {
            "average_precision": high,
            "average_precision_error": zero,
            "average_precision_low": low,
            "average_precision_low_error": zero,
        },
    )
