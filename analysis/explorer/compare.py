"""Comparisons of every neuron's scores: two tags of a lake, or one tag in two lakes of models of the same shape."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from neuronlake.analysis.explorer.scatter import scatter
from neuronlake.analysis.explorer.shelf import METHODS, Opened
from neuronlake.analysis.neuron import neuron_name
from neuronlake.analysis.rankers import RANKERS
from neuronlake.store.errors import InputError

SHOWN = 15


def compare_tags(opened: Opened, by: str | None, method: str, tag: str | None, against: str | None) -> dict[str, Any]:
    """Compare two tags.

    Parameters
    ----------
    tag, against
        The tags; None are the two with most tokens.

    Returns
    -------
    dict
        by, method, tags (all), tag, against, counts (tokens of both), scatter (see `scatter`: x is `tag`), rho (Spearman's),
        sides: title and neurons (name, x, y, difference), those higher for `tag` and those higher for `against`; and what
        `_common` has.

    Raises
    ------
    InputError
        When a tag or the ranking is unknown, both tags are the same one, or statistics are not kept.
    """
    by = opened.label(by)
    scores = opened.scores(by, method)
    tags = [str(name) for name in scores["tag"].to_numpy()]
    count = scores["count"].to_numpy()
    frequent = [tags[place] for place in np.argsort(-count, kind="stable")]
    tag = tag or next(name for name in frequent if name != against)
    against = against or next(name for name in frequent if name != tag)
    for name in (tag, against):
        _check_tag(name, tags, by, opened.name)
    if tag == against:
        raise InputError(f"both tags are {tag!r}: choose two different ones")
    x, y = _values(scores, method, tag), _values(scores, method, against)
    here = {
        "tags": tags,
        "against": against,
        "other": None,
        "counts": tuple(int(count[tags.index(name)]) for name in (tag, against)),
        "axes": (tag, against),
    }
    difference = x - y
    sides = [(f"Higher for {tag}", -difference), (f"Higher for {against}", difference)]
    return {**_common(opened, by, method, tag), **here, **_found(opened, x, y, sides)}


def compare_lakes(opened: Opened, other: Opened, by: str | None, method: str, tag: str | None) -> dict[str, Any]:
    """Compare a tag in two lakes, neuron by neuron.

    Returns
    -------
    dict
        As `compare_tags`; other: name of the other lake, differs: what their models, corpora and encodings differ in; sides
        are the neurons that are higher here, those that are higher there, and those that agree best: strong in both, in the
        same direction, by the lower of both scores.

    Raises
    ------
    InputError
        When the lakes' shapes differ, the tag is missing in one, or statistics are not kept in both.
    """
    if opened.name == other.name:
        raise InputError(f"both lakes are {opened.name!r}: choose another one, or compare two tags")
    shapes = [(each.lake.site, each.lake.layers, each.lake.neurons) for each in (opened, other)]
    if shapes[0] != shapes[1]:
        said = [f"{each.name} has {_shape(each)}" for each in (opened, other)]
        raise InputError(f"{' and '.join(said)}: neurons can be compared only where models have the same shape")
    by = opened.label(by)
    scores = [each.scores(by, method) for each in (opened, other)]
    tags = [[str(name) for name in each["tag"].to_numpy()] for each in scores]
    shared = [name for name in tags[0] if name in tags[1]]
    if not shared:
        raise InputError(f"the lakes share no tag of {by!r}: {opened.name} has {', '.join(tags[0])}")
    count = scores[0]["count"].to_numpy()
    tag = tag or max(shared, key=lambda name: int(count[tags[0].index(name)]))
    for each, known in zip((opened, other), tags, strict=True):
        _check_tag(tag, known, by, each.name)
    x, y = (_values(each, method, tag) for each in scores)
    strength = [_values(each, "score", tag) for each in scores]
    sign = [_values(each, "sign", tag) for each in scores]
    agreement = np.where(sign[0] == sign[1], np.minimum(*strength), -np.inf)
    difference = x - y
    sides = [
        (f"Higher in {opened.name}", -difference),
        (f"Higher in {other.name}", difference),
        ("Agree best: strong in both", -agreement),
    ]
    here = {
        "tags": shared,
        "against": None,
        "other": other.name,
        "counts": tuple(int(each["count"].sel(tag=tag)) for each in scores),
        "axes": (opened.name, other.name),
        "differs": _differences(opened, other),
    }
    return {**_common(opened, by, method, tag), **here, **_found(opened, x, y, sides)}


def _common(opened: Opened, by: str, method: str, tag: str) -> dict[str, Any]:
    """What both comparisons say of themselves."""
    return {
        "by": by,
        "tag": tag,
        "method": method,
        "methods": METHODS,
        "labels": opened.labels,
        "formula": RANKERS[method].formula,
        "description": RANKERS[method].description,
        "differs": (),
    }


def _found(
    opened: Opened, x: NDArray[np.float64], y: NDArray[np.float64], sides: Sequence[tuple[str, NDArray[np.float64]]]
) -> dict[str, Any]:
    """What both comparisons show: `sides` are titles and what is smallest first."""
    lake = opened.lake
    usable = np.isfinite(x) & np.isfinite(y)

    def entry(place: int) -> dict[str, Any]:
        layer, neuron = lake.layers[place // lake.neurons], place % lake.neurons
        here, there = float(x[place]), float(y[place])
        return {"name": neuron_name(layer, neuron), "place": place, "x": here, "y": there, "difference": here - there}

    shown: list[dict[str, Any]] = []
    for title, order in sides:
        best = np.argsort(np.where(usable, order, np.inf), kind="stable")[:SHOWN]
        kept = [int(place) for place in best if usable[place] and np.isfinite(order[place])]
        shown.append({"title": title, "neurons": [entry(place) for place in kept]})
    points = np.flatnonzero(usable)
    named = {each["name"]: int(np.searchsorted(points, each["place"])) for side in shown for each in side["neurons"]}
    return {
        "neurons": int(usable.sum()),
        "rho": spearman(x[usable], y[usable]),
        "scatter": scatter(x[usable], y[usable], named),
        "sides": shown,
    }


def spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Spearman's ρ: Pearson's r of the ranks, ties sharing their mean; NaN where one is the same throughout."""
    from scipy.stats import rankdata

    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (x, y)]
    scale = float(np.sqrt((ranks[0] @ ranks[0]) * (ranks[1] @ ranks[1])))
    return float(ranks[0] @ ranks[1]) / scale if scale > 0 else float("nan")


def _values(scores: xr.Dataset, name: str, tag: str) -> NDArray[np.float64]:
    """(layers × neurons,)."""
    found: NDArray[np.float64] = scores[name].sel(tag=tag).transpose("layer", "neuron").to_numpy().ravel().astype(np.float64)
    return found


def _check_tag(tag: str, known: Sequence[str], by: str, lake: str) -> None:
    if tag not in known:
        raise InputError(f"no tag {tag!r} of {by!r} in {lake}: it has {', '.join(known)}")


def _shape(opened: Opened) -> str:
    lake = opened.lake
    return (
        f"{len(lake.layers)} layers × {lake.neurons:,} neurons at {lake.site} (layers {lake.layers[0]} to {lake.layers[-1]})"
    )


def _differences(opened: Opened, other: Opened) -> list[str]:
    """What is not the same in both lakes, in words."""
    models = [each.lake.spec.model for each in (opened, other)]
    found = []
    if models[0].get("sha256") != models[1].get("sha256"):
        names = [str(model["name"]) for model in models]
        found.append(f"models: {names[0]} and {names[1]}" if names[0] != names[1] else f"weights of {names[0]}")
    if opened.lake.spec.plan != other.lake.spec.plan:
        found.append("corpus or its cutting into tokens")
    if opened.lake.encoding != other.lake.encoding:
        found.append(f"encodings: {opened.lake.encoding} and {other.lake.encoding}")
    return found
