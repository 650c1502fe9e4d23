"""Neurons like a given one: by what they fire on, by their tags, or by what they write."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from neuronlake.analysis.neuron import check_neuron, neuron_name
from neuronlake.analysis.sketch import Sketch, ordinary_rows, sketch_neurons
from neuronlake.analysis.statistics import compute_statistics
from neuronlake.analysis.weights import output_vectors
from neuronlake.store.errors import InputError
from neuronlake.store.lake import Lake
from neuronlake.store.parallel import map_ordered

SIGNATURES = {"activation": "correlation", "profile": "distance", "weights": "cosine"}
"""Signature → what neurons are compared by."""
_CANDIDATES_EACH, _CANDIDATES_MORE = 10, 50
_Progress = Callable[[int, int], None]


def neighbours(
    lake: Lake,
    layer: int,
    neuron: int,
    k: int = 10,
    *,
    by: str = "activation",
    label: str = "upos",
    statistics: xr.Dataset | None = None,
    candidates: int | None = None,
    scheduler: Any = None,
    progress: _Progress = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Find the neurons most like one neuron, of all layers.

    Parameters
    ----------
    lake
        The lake.
    layer, neuron
        Which neuron.
    k
        Neurons wanted; fewer come back when there are fewer.
    by
        - ``activation``: |Pearson's r| over all ordinary tokens. Candidates come from `sketch_neurons` (made by one scan
          when first asked for, and kept); the r of each is then exact. That a neighbour is missed altogether has a small
          chance, which falls with `candidates`; `coactivation` scans everything instead.
        - ``profile``: root mean square difference of 2·AUROC − 1 over the tags of `label`, from kept statistics (computed
          when first asked for), exact search.
        - ``weights``: |cosine| of the output vectors, exact search; needs `neuronlake weights`.
    label
        Label of the profile, as for `token_labels`.
    statistics
        Of `compute_statistics` for that label, if they are at hand.
    candidates
        Neurons whose correlation is computed; by default 10 per neighbour wanted and 50 more.
    scheduler
        As for `compute_statistics`: where the scan runs.
    progress
        Called with (layers sketched, layers in all).

    Returns
    -------
    list of dict
        rank (from 1), layer, neuron, name, and correlation, distance or cosine; the most alike first, of equals the lower
        layer, then neuron.

    Raises
    ------
    InputError
        When the neuron does not exist or never varies, `k` or `candidates` is below 1, the signature is unknown, or the lake
        lacks what it needs.
    """
    check_neuron(lake, layer, neuron)
    if by not in SIGNATURES:
        raise InputError(f"unknown signature {by!r}: known are {', '.join(SIGNATURES)}")
    for name, number in (("k", k), ("candidates", candidates)):
        if number is not None and number < 1:
            raise InputError(f"{name} must be at least 1, got {number}")
    own = lake.layers.index(layer) * lake.neurons + neuron
    if by == "activation":
        sketch = sketch_neurons(lake, scheduler=scheduler, progress=progress)
        few = _alike(lake, sketch, own, candidates or _CANDIDATES_EACH * k + _CANDIDATES_MORE)
        similarity = exact_correlations(lake, sketch, [own], few)[0]
        order = np.lexsort((few, -np.abs(similarity)))
    elif by == "profile":
        dataset = compute_statistics(lake, label, scheduler=scheduler) if statistics is None else statistics
        few, similarity = _nearest_profiles(dataset, own, k, label)
        order = np.lexsort((few, similarity))
    else:
        few, similarity = _nearest_vectors(lake, own, k)
        order = np.lexsort((few, -np.abs(similarity)))
    found: list[dict[str, Any]] = []
    for place in order[:k]:
        position, index = divmod(int(few[place]), lake.neurons)
        at = lake.layers[position]
        entry = {"rank": len(found) + 1, "layer": at, "neuron": index, "name": neuron_name(at, index)}
        found.append({**entry, SIGNATURES[by]: float(similarity[place])})
    return found


def exact_correlations(
    lake: Lake,
    sketch: Sketch,
    first: Sequence[int] | NDArray[np.int64],
    second: Sequence[int] | NDArray[np.int64],
) -> NDArray[np.float64]:
    """Pearson's r of two sets of neurons over the ordinary tokens of the sketch's blocks, in float64.

    Parameters
    ----------
    first, second
        Neurons, counted through all stored layers.

    Returns
    -------
    float64 (first, second)
        0 with a neuron that never varies.
    """
    neurons = np.unique(np.concatenate([np.asarray(first, dtype=np.int64), np.asarray(second, dtype=np.int64)]))
    layers, columns = np.divmod(neurons, lake.neurons)
    moments = np.empty((len(neurons), 2))
    for place in np.unique(layers):
        moments[layers == place] = sketch.arrays["moments"].read_part(int(place))[columns[layers == place], :2]
    scale = np.divide(1, np.sqrt(moments[:, 1]), out=np.zeros(len(neurons)), where=moments[:, 1] > 0)
    here, there = np.searchsorted(neurons, first), np.searchsorted(neurons, second)

    def products(block: int) -> NDArray[np.float64]:
        rows = block * lake.block_rows + ordinary_rows(lake, block)
        values = np.empty((len(rows), len(neurons)))
        for place in np.unique(layers):
            mine = layers == place
            values[:, mine] = lake.read(layer=lake.layers[place], rows=rows, neurons=columns[mine])
        values -= moments[:, 0]
        values *= scale
        found: NDArray[np.float64] = values[:, here].T @ values[:, there]
        return found

    total = np.zeros((len(here), len(there)))
    with threadpool_limits(1, user_api="blas"):  # one block per core
        for part in map_ordered(products, sketch.blocks, ahead=1):
            total += part
    return total


def _alike(lake: Lake, sketch: Sketch, own: int, count: int) -> NDArray[np.int64]:
    """Neurons whose sketches are most like one neuron's, itself apart, in any order."""
    position, index = divmod(own, lake.neurons)
    query = sketch.unit_vectors(position)[index]
    if not query.any():
        raise InputError(
            f"{neuron_name(lake.layers[position], index)} has the same value on all tokens: it correlates with nothing"
        )
    parts = map_ordered(lambda place: np.abs(sketch.unit_vectors(place) @ query), range(len(lake.layers)))
    strength = np.concatenate(list(parts))
    strength[own] = -1
    few: NDArray[np.int64] = np.argpartition(-strength, min(count, len(strength) - 1))[:count].astype(np.int64)
    others: NDArray[np.int64] = few[few != own]  # it is among them where all are asked for
    return others


def _nearest_profiles(dataset: xr.Dataset, own: int, k: int, label: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    import faiss

    if "auroc" not in dataset:
        raise InputError(f"{label!r} has one tag only: a profile needs two")
    area = dataset["auroc"].transpose("layer", "neuron", "tag").to_numpy()
    profiles = np.ascontiguousarray(2 * area.reshape(-1, area.shape[-1]) - 1, dtype=np.float32)
    count = min(k + 1, len(profiles))
    squares, found = faiss.knn(profiles[own : own + 1], profiles, count, metric=faiss.METRIC_L2)
    return _without(own, found[0], np.sqrt(squares[0].astype(np.float64) / profiles.shape[1]))


def _nearest_vectors(lake: Lake, own: int, k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    import faiss

    vectors = output_vectors(lake)
    vectors = vectors.reshape(-1, vectors.shape[-1])
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    np.divide(vectors, length, out=vectors, where=length > 0)
    queries = np.stack([vectors[own], -vectors[own]])
    if not queries.any():
        raise InputError(f"{neuron_name(*divmod(own, lake.neurons))} writes nothing: its output vector is zero")
    count = min(k + 1, len(vectors))
    cosines, found = faiss.knn(queries, vectors, count, metric=faiss.METRIC_INNER_PRODUCT)
    cosines[1] *= -1
    both, first = np.unique(found.ravel(), return_index=True)
    return _without(own, both, cosines.ravel()[first].astype(np.float64))


def _without(
    own: int, found: NDArray[np.int64], similarity: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    others = found != own
    return found[others], similarity[others]
