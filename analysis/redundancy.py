"""Neurons that say the same: clusters of neurons whose activations correlate."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from neuronlake.analysis.neuron import neuron_name
from neuronlake.analysis.neuron_neighbours import exact_correlations
from neuronlake.analysis.sketch import PLACES, Sketch, sketch_neurons
from neuronlake.store.errors import InputError
from neuronlake.store.lake import Lake
from neuronlake.store.parallel import map_ordered

THRESHOLD = 0.9
_LEAST = 0.3  # below it noise passes too: candidates would be a good part of all pairs
_FOLD = 4
_MARGIN = 5  # standard errors of a sketch's estimate
_Progress = Callable[[int, int], None]


def redundancy_clusters(
    lake: Lake,
    threshold: float = THRESHOLD,
    *,
    scheduler: Any = None,
    progress: _Progress = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Group neurons of all layers whose |Pearson's r| over the ordinary tokens reaches a threshold.

    Distance is 1 − |r|, linkage average (as Dalvi et al. 2020, "Analyzing redundancy in pretrained transformer models"): two
    clusters are merged while the mean |r| between them reaches the threshold, the closest first. Which neurons can meet at
    all is found from sketches, with a margin of five standard errors; every r that counts is exact.

    Parameters
    ----------
    threshold
        From 0.3 to 1.
    scheduler
        As for `compute_statistics`: where the sketches are made.
    progress
        Called with (pairs of layers compared, all of them).

    Returns
    -------
    list of dict
        The largest cluster first: neurons (names, that with the largest mean |r| to the others first), layers,
        least and mean (|r| over all pairs of the cluster).

    Raises
    ------
    InputError
        When the threshold is out of range.
    """
    if not _LEAST <= threshold <= 1:
        raise InputError(f"threshold must be from {_LEAST} to 1, got {threshold}")
    sketch = sketch_neurons(lake, scheduler=scheduler)
    error = (1 - threshold**2) / np.sqrt(PLACES / _FOLD)
    pairs = np.concatenate(list(_candidates(lake, sketch, threshold - _MARGIN * error - 1e-3, progress)))
    clusters = []
    for some in _components(pairs, len(lake.layers) * lake.neurons):
        strength = np.abs(exact_correlations(lake, sketch, some, some))
        tree = linkage(squareform(1 - strength, checks=False), "average")
        label = fcluster(tree, 1 - threshold, "distance")
        for number in np.flatnonzero(np.bincount(label) > 1):
            places = np.flatnonzero(label == number)
            inside = strength[np.ix_(places, places)]
            pairwise = inside[np.triu_indices(len(places), 1)]
            names = [
                neuron_name(lake.layers[some[place] // lake.neurons], int(some[place] % lake.neurons)) for place in places
            ]
            order = np.argsort(-inside.sum(axis=1).round(9), kind="stable")  # a pair ties but for rounding
            clusters.append(
                {
                    "neurons": [names[place] for place in order],
                    "layers": sorted({lake.layers[some[place] // lake.neurons] for place in places}),
                    "least": float(pairwise.min()),
                    "mean": float(pairwise.mean()),
                }
            )
    return sorted(clusters, key=lambda cluster: (-len(cluster["neurons"]), -cluster["mean"], cluster["neurons"]))


def _candidates(lake: Lake, sketch: Sketch, least: float, progress: _Progress) -> Iterator[NDArray[np.int64]]:
    """Pairs of neurons, counted through all layers, whose estimated |r| reaches `least`; (pairs, 2)."""
    vectors = list(map_ordered(lambda place: sketch.unit_vectors(place, fold=_FOLD), range(len(lake.layers))))
    both = [(one, other) for one in range(len(vectors)) for other in range(one, len(vectors))]

    def compare(places: tuple[int, int]) -> NDArray[np.int64]:
        one, other = places
        high = np.abs(vectors[one] @ vectors[other].T) >= least
        found = np.argwhere(np.triu(high, 1) if one == other else high)
        shifted: NDArray[np.int64] = found + np.array([one, other]) * lake.neurons
        return shifted

    with threadpool_limits(1, user_api="blas"):  # one pair of layers per core
        for done, found in enumerate(map_ordered(compare, both)):
            progress(done + 1, len(both))
            yield found


def _components(pairs: NDArray[np.int64], count: int) -> list[NDArray[np.int64]]:
    """Sets of two nodes or more that the pairs connect, each ascending."""
    graph = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, label = connected_components(graph, directed=False)
    sizes = np.bincount(label, minlength=1)
    inside = np.flatnonzero(sizes[label] > 1)
    order = inside[np.argsort(label[inside], kind="stable")]
    found: list[NDArray[np.int64]] = np.split(order, np.flatnonzero(np.diff(label[order])) + 1) if len(order) else []
    return found
