"""Choose the key neurons of every tag by a ranker of the lake's statistics, over all layers or in each."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.execute import Progress
from neuronlake.analysis.labels import token_labels
from neuronlake.analysis.neuron_sets import NeuronSet, sets_of_ranking
from neuronlake.analysis.rankers import get_ranker
from neuronlake.analysis.ranking import rank
from neuronlake.analysis.refinement import refine
from neuronlake.analysis.statistics import compute_statistics
from neuronlake.store.errors import InputError
from neuronlake.store.lake import Lake


def choose_sets(
    lake: Lake,
    by: str,
    *,
    method: str = "auroc",
    k: int = 100,
    per_layer: bool = False,
    shift: int = 1,
    tags: Sequence[str] | None = None,
    documents: NDArray[np.integer] | None = None,
    scheduler: Any = None,
    progress: Progress | None = None,
) -> list[NeuronSet]:
    """Rank all neurons for every tag and return the best, best first.

    Parameters
    ----------
    k
        Neurons of each tag; with `per_layer`, in each layer.
    per_layer
        Then a set lists the best of every layer, then the second best of every layer, and so on. Their order rests on the
        statistics as they are (from histograms, of AUROC and average precision).
    shift
        Rank by the label of the word so many words later: 1 is the word that the neurons' token helps to predict.
    tags
        Only these (still compared with all others).
    documents
        Choose on these documents only; None means all. Otherwise the statistics are not kept.

    Raises
    ------
    InputError
        When a setting is unknown, or there are not so many neurons.
    """
    most = lake.neurons if per_layer else lake.neurons * len(lake.layers)
    if not 0 < k <= most:
        where = "a layer" if per_layer else f"{len(lake.layers)} layers"
        raise InputError(f"-k {k:,}: {where} of this model has {most:,} neurons, choose 1 to {most:,}")
    also = get_ranker(method).also
    statistics = compute_statistics(
        lake, by, shift=shift, documents=documents, also=also, keep=documents is None, scheduler=scheduler, progress=progress
    )
    if per_layer:
        entries = [
            entry
            for place in range(len(lake.layers))
            for entry in rank(statistics.isel(layer=[place]), method, top=k, tags=tags)
        ]
        return sets_of_ranking(sorted(entries, key=lambda entry: (entry["rank"], entry["layer"])))
    labels = None if documents is None else token_labels(lake, by, shift=shift, keep_documents=documents.tolist())
    refined = refine(lake, statistics, method, top=k, labels=labels, scheduler=scheduler, progress=progress)
    return sets_of_ranking(rank(refined, method, top=k, tags=tags))
