"""Key neurons: of every tag the neurons that a method puts first, per layer or overall, and how these sets relate.

Attributions, the activation-only surrogate and every ranker of the registry go through the same selection, so that methods
can be compared. The paper (arXiv 2511.06519) takes the neurons that are most often among the strongest by attribution and
filters them by χ²; that it takes 100 per layer is our reading of a secondary source.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from neuronlake.analysis.attribution import read_attribution
from neuronlake.analysis.neuron import neuron_name
from neuronlake.analysis.rankers import RANKERS, get_ranker
from neuronlake.analysis.ranking import score
from neuronlake.store.errors import InputError
from neuronlake.store.lake import Lake

ATTRIBUTION, SURROGATE = "attribution", "activation_share"
PER = ("layer", "overall")
_DIMS = ("tag", "layer", "neuron")


def hit_scores(dataset: xr.Dataset) -> xr.Dataset:
    """Scores of neurons from hit counts: how often a prediction (or token) of the tag has the neuron among its strongest.

    Parameters
    ----------
    dataset
        ``hits`` (tag, layer, neuron) and ``samples`` (tag), of `read_attribution` or `activation_hits`.

    Returns
    -------
    xarray.Dataset
        ``score``: hits / samples; ``sign`` +1 where above the share of the other tags; ``cramers_v``, ``p`` and ``q``
        of the table (hit or not) × (tag or rest), see the ranker chi_squared.

    Raises
    ------
    InputError
        When there are fewer than two tags with samples.
    """
    present = dataset.isel(tag=np.flatnonzero(dataset["samples"].to_numpy() > 0))
    table = xr.Dataset({"hits": present["hits"], "count": present["samples"]}, attrs=dataset.attrs)
    found = RANKERS["chi_squared"].function(table)
    share = present["hits"] / present["samples"]
    return (
        found[["sign", "cramers_v", "p", "q"]]
        .assign(score=share.transpose(*_DIMS), count=present["samples"])
        .assign_attrs(dataset.attrs)
    )


def ranker_scores(statistics: xr.Dataset, method: str) -> xr.Dataset:
    """Scores of neurons by a ranker of the registry, in the same form; `statistics` are of `compute_statistics`."""
    found = score(statistics, method)
    names = ("score", "sign", "cramers_v", "p", "q", "count")
    return found[[name for name in names if name in found]].assign_attrs({**statistics.attrs, "method": method})


def choose_key_neurons(
    scores: xr.Dataset, *, k: int = 100, per: str = "layer", fdr: float | None = 0.05, higher: bool = True
) -> xr.Dataset:
    """Choose the key neurons of every tag.

    Parameters
    ----------
    scores
        Of `hit_scores` or `ranker_scores`.
    k
        Neurons per tag and layer, or per tag; fewer where fewer are left. Of equal scores the lower layer and neuron.
    per
        ``"layer"`` or ``"overall"``.
    fdr
        Leave out neurons whose q (Benjamini–Hochberg over all neurons × tags) is above that, where the method has a test.
    higher
        Only neurons that are higher (or hit more often) for the tag than for the rest.

    Returns
    -------
    xarray.Dataset
        That of `scores` with ``selected`` bool (tag, layer, neuron), ``rank`` int32 (from 1 within layer or tag, 0 where not
        selected), ``by_layer`` (tag, layer): how many, and ``jaccard`` (tag, other), NaN for two empty sets.

    Raises
    ------
    InputError
        When k is below 1 or above what there is, or `per` is unknown.
    """
    if per not in PER:
        raise InputError(f"unknown choice of per {per!r}: known are {', '.join(PER)}")
    width = scores.sizes["neuron"] * (scores.sizes["layer"] if per == "overall" else 1)
    if not 1 <= k <= width:
        what = "a layer has" if per == "layer" else "all layers have"
        raise InputError(f"k must be from 1 to the {width:,} neurons that {what}, got {k}")
    if fdr is not None and not 0 < fdr <= 1:
        raise InputError(f"fdr must be above 0 and at most 1, got {fdr}")
    values = scores["score"].transpose(*_DIMS).to_numpy().astype(np.float64)
    allowed = np.isfinite(values) & (values > 0)
    if higher and "sign" in scores:
        allowed &= scores["sign"].transpose(*_DIMS).to_numpy() > 0
    if fdr is not None and "q" in scores:
        allowed &= scores["q"].transpose(*_DIMS).to_numpy() <= fdr
    shape = values.shape
    flat = np.where(allowed, values, -np.inf).reshape(-1, width)  # one line per tag and layer, or per tag
    order = np.argsort(-flat, axis=1, kind="stable")[:, :k]
    rank = np.zeros(flat.shape, dtype=np.int32)
    np.put_along_axis(rank, order, np.arange(1, k + 1, dtype=np.int32)[None], axis=1)
    rank[flat == -np.inf] = 0
    selected = (rank > 0).reshape(shape)
    return (
        scores.assign(
            selected=(_DIMS, selected),
            rank=(_DIMS, rank.reshape(shape)),
            by_layer=(("tag", "layer"), selected.sum(axis=2)),
            jaccard=(("tag", "other"), jaccard(selected.reshape(shape[0], -1))),
        )
        .assign_coords(other=scores["tag"].to_numpy())
        .assign_attrs({**scores.attrs, "k": k, "per": per, "fdr": fdr})
    )


def key_list(chosen: xr.Dataset, *, tags: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The key neurons as a list: tag by tag, strongest first, equal ones by layer, then neuron.

    Raises
    ------
    InputError
        When a tag is unknown.
    """
    known = [str(tag) for tag in chosen["tag"].to_numpy()]
    for tag in tags or ():
        if tag not in known:
            raise InputError(f"unknown tag {tag!r}: known are {', '.join(known)}")
    fields = [name for name in ("score", "cramers_v", "p", "q", "attribution") if name in chosen]
    table = {name: chosen[name].transpose(*_DIMS).to_numpy() for name in (*fields, "selected")}
    layers = chosen["layer"].to_numpy()
    entries = []
    for tag in known if tags is None else tags:
        place = known.index(tag)
        where = np.argwhere(table["selected"][place])
        for layer, neuron in where[np.argsort(-table["score"][place][tuple(where.T)], kind="stable")]:
            at = (place, layer, neuron)
            entries.append(
                {
                    "tag": tag,
                    "layer": int(layers[layer]),
                    "neuron": int(neuron),
                    "name": neuron_name(int(layers[layer]), int(neuron)),
                    **{name: float(table[name][at]) for name in fields},
                }
            )
    return entries


def jaccard(sets: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Overlap of sets, |A ∩ B| / |A ∪ B|: bool (sets, members) -> float64 (sets, sets), NaN for two empty sets."""
    members = sets.astype(np.float64)
    both = members @ members.T
    size = members.sum(axis=1)
    either = size[:, None] + size - both
    overlap = np.full(both.shape, np.nan)
    np.divide(both, either, out=overlap, where=either > 0)
    return overlap


def scores_of(
    lake: Lake, by: str = "upos", method: str = ATTRIBUTION, *, statistics: xr.Dataset | None = None, **settings: Any
) -> xr.Dataset:
    """Scores of a method, whichever it is.

    Parameters
    ----------
    method
        ``"attribution"``: as kept in the lake; ``"activation_share"``: see `activation_hits`; or a ranker of the registry.
    statistics
        Of `compute_statistics`, for a ranker; computed if not given.
    settings
        Of `read_attribution`, of `activation_hits`, or of `compute_statistics`.

    Raises
    ------
    InputError
        When the method is unknown, or what it reads is not there.
    """
    from neuronlake.analysis.activation_share import activation_hits
    from neuronlake.analysis.statistics import compute_statistics

    if method == ATTRIBUTION:
        dataset = read_attribution(lake, by, **settings)
        return hit_scores(dataset).assign(attribution=dataset["attribution"]).assign_attrs(**dataset.attrs, kind=method)
    if method == SURROGATE:
        return hit_scores(activation_hits(lake, by, **settings)).assign_attrs(kind=method)
    check_method(method)
    if statistics is None:
        statistics = compute_statistics(lake, by, also=get_ranker(method).also, **settings)
    return ranker_scores(statistics, method).assign_attrs(kind=method)


def check_method(method: str) -> None:
    """Raise InputError where there is no such method."""
    if method in (ATTRIBUTION, SURROGATE):
        return
    try:
        get_ranker(method)
    except InputError as error:
        if method in RANKERS:
            raise
        raise InputError(f"{error}; and {ATTRIBUTION}, {SURROGATE}") from None
