"""Scores and ranking lists, whatever the ranker."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from neuronlake.analysis.contrast import with_rest
from neuronlake.analysis.listings import Ranking
from neuronlake.analysis.neuron import neuron_name
from neuronlake.analysis.rankers import get_ranker
from neuronlake.store.errors import InputError

_DIMS = ("tag", "layer", "neuron")


def score(dataset: xr.Dataset, method: str) -> xr.Dataset:
    """Score every neuron for every tag.

    Parameters
    ----------
    dataset
        Of `compute_statistics`.
    method
        Name of a ranker.

    Returns
    -------
    xarray.Dataset
        The ranker's variables (see `rankers`), ``mean``, ``mean_rest`` and ``count``.

    Raises
    ------
    InputError
        When the method is unknown, or there are fewer than two tags.
    """
    ranker = get_ranker(method)
    complete = with_rest(dataset)
    scores = ranker.function(complete)
    return scores.assign({name: complete[name] for name in ("mean", "mean_rest", "count")}).assign_attrs(
        {**dataset.attrs, "method": method}
    )


def rank(
    dataset: xr.Dataset,
    method: str = "auroc",
    *,
    top: int = 10,
    tags: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
) -> Ranking:
    """The strongest neurons of every tag, strongest first; equal ones by layer, then neuron.

    Parameters
    ----------
    dataset
        Of `compute_statistics`.
    method
        Name of a ranker.
    top
        Neurons per tag.
    tags
        Only these tags (still compared with all others).
    layers
        Only neurons of these layers; q is still of all.

    Returns
    -------
    Ranking
        A list of dictionaries that a notebook shows as a table: tag, layer, neuron, name, rank (from 1), score, sign, the
        statistic under the method's name, p and q where defined, mean, mean_rest, count. All values are finite and
        JSON-compatible.

    Raises
    ------
    InputError
        When the method, a tag or a layer is unknown (the known ones are listed), or `top` is below 1.
    """
    return rank_scores(score(dataset, method), top=top, tags=tags, layers=layers)


def rank_scores(
    scores: xr.Dataset, *, top: int = 10, tags: Sequence[str] | None = None, layers: Sequence[int] | None = None
) -> Ranking:
    """As `rank`, from what `score` gave."""
    if top < 1:
        raise InputError(f"top must be at least 1, got {top}")
    method, known = str(scores.attrs["method"]), [str(tag) for tag in scores["tag"].to_numpy()]
    for tag in tags or ():
        if tag not in known:
            raise InputError(f"unknown tag {tag!r}: known are {', '.join(known)}")
    if layers is not None:
        for layer in layers:
            if layer not in scores["layer"].to_numpy():
                raise InputError(f"unknown layer {layer}: known are {', '.join(map(str, scores['layer'].to_numpy()))}")
        scores = scores.sel(layer=sorted(set(layers)))
    fields = [name for name in (method, "p", "q", "mean", "mean_rest") if name in scores]
    table = {name: scores[name].transpose(*_DIMS).to_numpy() for name in ("score", "sign", *fields)}
    layer_numbers, neurons = scores["layer"].to_numpy(), scores["neuron"].to_numpy()
    entries = Ranking()
    for tag in known if tags is None else tags:
        position = known.index(tag)
        # A stable sort of the flat (layer, neuron) order breaks ties as promised; most neurons need no sorting.
        flat_scores = table["score"][position].ravel()
        bar = np.partition(flat_scores, -top)[-top] if top < flat_scores.size else -np.inf
        candidates = np.flatnonzero(flat_scores >= bar)
        best = candidates[np.argsort(-flat_scores[candidates], kind="stable")][:top]
        for place, flat in enumerate(best):
            at = (position, *np.unravel_index(flat, table["score"].shape[1:]))
            layer, neuron = int(layer_numbers[at[1]]), int(neurons[at[2]])
            entries.append(
                {
                    "tag": tag,
                    "layer": layer,
                    "neuron": neuron,
                    "name": neuron_name(layer, neuron),
                    "rank": place + 1,
                    "score": float(table["score"][at]),
                    "sign": int(table["sign"][at]),
                    **{name: float(table[name][at]) for name in fields},
                    "count": int(scores["count"].to_numpy()[position]),
                }
            )
    return entries
