"""Permutation nulls: how large are a ranker's scores when tags say nothing about tokens?"""

from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from neuronlake.analysis.execute import Progress
from neuronlake.analysis.labels import LabelVector, labels_again
from neuronlake.analysis.rankers import get_ranker
from neuronlake.analysis.ranking import score
from neuronlake.analysis.refinement import check_site
from neuronlake.analysis.significance import benjamini_hochberg
from neuronlake.analysis.source import LakeSource
from neuronlake.analysis.statistics import statistics_of_labels
from neuronlake.store.errors import InputError

_BASIC = {"count", "mean", "variance", "fraction_active"}
_TOGETHER = 4  # permutations per pass over the lake: their results are held at once
_DIMS = ("tag", "layer", "neuron")


def permutation_test(
    source: LakeSource,
    dataset: xr.Dataset,
    method: str,
    *,
    permutations: int = 99,
    seed: int = 0,
    scheduler: Any = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Scores of a ranker with p-values from permuted labels, for any ranker of the statistics.

    Tags are permuted among the labelled tokens of each document, so that what documents differ in explains nothing. Where
    every document has one tag (a language, a genre), whole documents exchange their tags instead.

    With N permutations, p = (1 + #{null score ≥ score}) / (1 + N) for a tag × neuron alone (Phipson & Smyth 2010, Stat.
    Appl. Genet. Mol. Biol. 9, 39: never zero), and p_family compares the score with the largest null score of all the tag's
    neurons (Westfall & Young 1993, Resampling-based multiple testing): it holds for all of them together, and is the one to
    use with few permutations, whose p cannot survive a correction over thousands of neurons.

    Parameters
    ----------
    source
        The lake.
    dataset
        Of `compute_statistics`, all layers or some.
    method
        Name of a ranker. One that starts from histograms is compared as it is in `dataset`, before `refine`.
    permutations
        N. Every four take one pass over the activations.
    seed
        Of the permutations.

    Returns
    -------
    xarray.Dataset
        Of `score`, with ``p``, ``q`` (Benjamini–Hochberg over all) and ``p_family`` (tag, layer, neuron) from permutations.

    Raises
    ------
    InputError
        When there are no permutations, the method is unknown, or `dataset` is of another site, of other blocks, of labels
        that were replaced, or of some folds.
    """
    if permutations < 1:
        raise InputError(f"permutations must be at least 1, got {permutations}")
    ranker = get_ranker(method)
    check_site(source, dataset)
    if list(dataset.attrs["blocks"]) != [int(block) for block in source.blocks] or dataset.attrs["only_folds"] is not None:
        raise InputError("permutations are of all committed blocks and folds: compute the statistics of these again")
    observed = score(dataset, method)
    asked = dataset.attrs
    labels = labels_again(source, asked).with_tags(tuple(str(tag) for tag in dataset["tag"].to_numpy()))
    shuffled = _Shuffle(labels, seed)
    true = observed["score"].transpose(*_DIMS).to_numpy()
    slack = 1e-9 * np.abs(true)  # equal tables of counts give equal scores but for rounding
    alone, family = np.zeros(true.shape, dtype=np.int64), np.zeros(true.shape, dtype=np.int64)
    for first in range(0, permutations, _TOGETHER):
        batch = [shuffled.next() for _ in range(min(_TOGETHER, permutations - first))]
        found = statistics_of_labels(
            source,
            batch,
            layers=[int(layer) for layer in dataset["layer"].to_numpy()],
            basic=set(ranker.needs) <= _BASIC,
            also=ranker.also,
            scheduler=scheduler,
        )
        for statistics in found:
            null = score(statistics, method)["score"].transpose(*_DIMS).to_numpy()
            alone += null >= true - slack
            family += null.max(axis=(1, 2), keepdims=True) >= true - slack
        if progress is not None:
            progress(first + len(batch), permutations)
    p = (1 + alone) / (1 + permutations)
    return observed.assign(
        p=(_DIMS, p, {"long_name": f"p by {permutations} permutations", "units": "1"}),
        q=(_DIMS, benjamini_hochberg(p), {"long_name": "Benjamini–Hochberg over all", "units": "1"}),
        p_family=(
            _DIMS,
            (1 + family) / (1 + permutations),
            {"long_name": f"p by {permutations} permutations, for all neurons of the tag together", "units": "1"},
        ),
    ).assign_attrs(permutations=permutations, seed=seed, permuted=shuffled.unit)


class _Shuffle:
    """Permutes labels, time after time."""

    def __init__(self, labels: LabelVector, seed: int):
        self._labels = labels
        self._random = np.random.default_rng(seed)
        self._rows = np.flatnonzero(labels.codes >= 0)
        _, self._document = np.unique(labels.documents[self._rows], return_inverse=True)
        pairs = len(np.unique(self._document * np.int64(len(labels.tags)) + labels.codes[self._rows]))
        documents = int(self._document.max()) + 1
        self.unit = "documents" if pairs == documents > 1 else "tokens of a document"

    def next(self) -> LabelVector:
        """Return the labels in another order."""
        codes = np.full_like(self._labels.codes, -1)
        codes[self._rows] = self._documents() if self.unit == "documents" else self._tokens()
        return replace(self._labels, codes=codes)

    def _documents(self) -> NDArray[np.int16]:
        first = np.unique(self._document, return_index=True)[1]
        return self._random.permutation(self._labels.codes[self._rows][first])[self._document]

    def _tokens(self) -> NDArray[np.int16]:
        order = np.argsort(self._document, kind="stable")  # tokens by document
        other = np.lexsort((self._random.random(len(order)), self._document))  # likewise, in random order within each
        found = np.empty(len(order), dtype=np.int16)
        found[order] = self._labels.codes[self._rows][other]
        return found
