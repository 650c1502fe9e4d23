"""All neurons of one tag: how large the effect is, against how sure it is."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from neuronlake.analysis.figure_style import (
    HIGHER,
    INK,
    LOWER,
    NEUTRAL,
    check_path,
    describe,
    picture,
    plain,
    robust_limit,
    wrap,
)
from neuronlake.analysis.neuron import neuron_name
from neuronlake.analysis.rankers import get_ranker
from neuronlake.analysis.ranking import score
from neuronlake.store.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ALPHA = 0.05  # false discovery rate of the line
_CAP = 300.0  # −log10 of the smallest q that is drawn: doubles end a little below
_TESTED_BY = "welch_t"  # gives q to effect sizes that have no test of their own
_MAX_NAMED = 24  # more names do not fit beside the points
_CENTRE = {"auroc": 0.5}  # the statistic of a neuron that tells nothing, where that is not 0
_NAME_MARGIN = 0.2  # room for names on either side, in widths of the points
_HEIGHTS = (0, 1, 5, 10, 20, 30, 50, 75, 100, 150, 200, 250, 300)  # ticks
_DIMS = ("layer", "neuron")


def volcano(dataset: xr.Dataset, path: str | Path, tag: str, method: str = "cohen_d", *, top: int = 12) -> Path:
    """Draw every neuron's effect size for one tag against −log10 q, with the line of a false discovery rate of 0.05.

    q is that of the method's own test, or of Welch's t where it has none; Benjamini–Hochberg over all neurons × tags of the
    dataset. What is below 1e-300 (0 among it: doubles underflow) is drawn on the top line, which says so.

    Parameters
    ----------
    dataset
        Of `compute_statistics`.
    path
        File to write; PNG, SVG or PDF by its suffix. Points are pixels in SVG and PDF, text and lines are not.
    tag
        Which tag; all others together are the rest.
    method
        Name of the ranker that gives the effect size.
    top
        How many of the strongest neurons are named, at most 24.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    InputError
        When the method, the tag or the suffix is unknown, the folder does not exist, the method is no effect size, or `top`
        is out of range.
    """
    path = check_path(path)
    formula = get_ranker(method).formula
    check_top(top)
    known = [str(name) for name in dataset["tag"].to_numpy()]
    if tag not in known:
        raise InputError(f"unknown tag {tag!r}: known are {', '.join(known)}")
    scores = score(dataset, method)
    tested = scores if "q" in scores else score(dataset, _TESTED_BY)
    q = tested["q"].sel(tag=tag).transpose(*_DIMS).to_numpy().ravel()
    mine = scores.sel(tag=tag)
    strength = mine["score"].transpose(*_DIMS).to_numpy().ravel()
    effect, centre = _effect(mine, method)
    limit = robust_limit(np.abs(effect)) or 1.0
    x, y = np.clip(effect, -limit, limit), -np.log10(np.maximum(q, 10.0**-_CAP))
    found = q <= ALPHA
    notes = []
    if capped := int(np.count_nonzero(y >= _CAP)):
        notes.append(f"Triangles: {_neurons(capped)} with q below 1e-{_CAP:.0f}, drawn on the top line.")
    if beyond := int(np.count_nonzero(np.abs(effect) > limit)):
        notes.append(f"At the edge: {_neurons(beyond)} with a larger effect.")
    count, rest = int(mine["count"]), int(dataset["count"].sum()) - int(mine["count"])
    with picture(
        path,
        width=7.4,
        height=5.0,
        title=f"{plain(tag)} against the rest: {method} of {_neurons(len(q))}",
        subtitle=f"{count:,} tokens against {rest:,} · {describe(dataset.attrs, count + rest)}",
        notes=notes,
    ) as figure:
        axes = figure.add_subplot()
        groups = (
            (~found, NEUTRAL, f"q > {ALPHA}"),
            (found & (effect > 0), HIGHER, "the tag's tokens are higher"),
            (found & (effect <= 0), LOWER, "the tag's tokens are lower"),
        )
        for chosen, colour, name in groups:
            size = 7 if len(q) > 2000 else 24
            _points(axes, x[chosen], y[chosen], colour, size, f"{name}: {np.count_nonzero(chosen):,}")
        axes.axhline(-np.log10(ALPHA), color=INK, linewidth=0.8, linestyle=(0, (5, 3)))
        axes.axvline(0, color="#BBBBBB", linewidth=0.6, zorder=0)
        _limits(axes, x, float(y.max()), centre)
        axes.text(axes.get_xlim()[1], -np.log10(ALPHA), f" q = {ALPHA}", va="center", size=7.5)
        side = f"below {centre:g}" if centre else "negative"
        lines = wrap(f"strength: {formula}", 8, 6.0)
        axes.set_xlabel("\n".join([f"{method}, {side} where the tag's tokens are lower", *lines]), fontsize=8)
        axes.set_ylabel(
            f"−log10 q ({'its own test' if tested is scores else 'Welch t-test'}, Benjamini–Hochberg; square-root scale)"
        )
        strongest = np.argsort(-strength, kind="stable")[:top]
        layers, neurons = (mine[name].to_numpy() for name in _DIMS)
        names = [neuron_name(int(layers[at // len(neurons)]), int(neurons[at % len(neurons)])) for at in strongest]
        _name_points(axes, x[strongest], y[strongest], names)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, handletextpad=0.2, markerscale=2.5)
    return path


def check_top(top: int) -> None:
    """Raise InputError unless so many neurons can be named."""
    if not 0 <= top <= _MAX_NAMED:
        raise InputError(f"a volcano names 0 to {_MAX_NAMED} neurons, got top={top}")


def _effect(mine: xr.Dataset, method: str) -> tuple[NDArray[np.float64], float]:
    """Signed effect of every neuron, 0 where it tells nothing, and what the method's own scale calls that."""
    strength, sign, value = (mine[name].transpose(*_DIMS).to_numpy().ravel() for name in ("score", "sign", method))
    centre = _CENTRE.get(method, 0.0)
    if np.all((value == centre) | ((value > centre) == (sign > 0))):
        return value - centre, centre
    if strength.min() < 0:
        raise InputError(f"a volcano needs an effect size with a direction, which {method} has not: try cohen_d")
    return strength * sign, 0.0


def _points(axes: "Axes", x: NDArray[np.float64], y: NDArray[np.float64], colour: str, size: int, name: str) -> None:
    """Draw points, those on the top line as triangles; the legend has one entry for both."""
    # one image in a vector file: 46,080 marks would take megabytes there, and seconds to show
    inside = y < _CAP
    style: dict[str, Any] = {"color": colour, "linewidths": 0, "rasterized": True}
    axes.scatter(x[inside], y[inside], s=size, alpha=0.4, **style)
    axes.scatter(x[~inside], y[~inside], s=2 * size, marker="^", alpha=0.4, **style)
    axes.scatter([], [], s=7, color=colour, label=name)


def _limits(axes: "Axes", x: NDArray[np.float64], highest: float, centre: float) -> None:
    """Leave a margin on either side for names, and number the axes."""
    left, right = min(0.0, float(x.min())), max(0.0, float(x.max()))
    margin = _NAME_MARGIN * ((right - left) or 1.0)
    axes.set_xlim(left - margin, right + margin)
    ticks = [tick for tick in axes.get_xticks() if left - margin / 2 <= tick <= right + margin / 2]
    axes.set_xticks(ticks, [f"{tick + centre:g}".replace("-", "−") for tick in ticks])
    # a square root, because most neurons are near the line and some are a hundred times higher
    axes.set_yscale("function", functions=(lambda y: np.sqrt(np.maximum(y, 0)), np.square))
    axes.set_ylim(0, max(1.06 * highest, 3.0))
    heights = [tick for tick in _HEIGHTS if tick <= max(highest, 3.0)]
    axes.set_yticks(heights, [f"{tick}+" if tick >= _CAP else str(tick) for tick in heights])


def _name_points(axes: "Axes", x: NDArray[np.float64], y: NDArray[np.float64], names: list[str]) -> None:
    """Name points in two columns beside them, each name at its point's height or as near as the others let it."""
    low, high = (float(np.sqrt(limit)) for limit in axes.get_ylim())
    left, right = axes.get_xlim()
    inset = 0.75 * _NAME_MARGIN / (1 + 2 * _NAME_MARGIN) * (right - left)
    for side, edge, align, anchor in ((x < 0, left + inset, "right", 1), (x >= 0, right - inset, "left", 0)):
        # highest first, and of equal ones the outermost: then their lines do not cross
        order = sorted(np.flatnonzero(side), key=lambda at: (-y[at], -abs(x[at])))
        wanted = [float(np.sqrt(y[at])) for at in order]
        for at, height in zip(order, _spread(wanted, (high - low) / (_MAX_NAMED + 4), low, high), strict=True):
            line = {"arrowstyle": "-", "color": "#777777", "linewidth": 0.5, "shrinkA": 1, "shrinkB": 1}
            axes.annotate(
                names[at],
                (x[at], y[at]),
                (edge, height**2),
                ha=align,
                va="center",
                size=7.5,
                bbox={"facecolor": "white", "linewidth": 0, "alpha": 0.8, "pad": 0.5},
                arrowprops={**line, "relpos": (anchor, 0.5)},
            )


def _spread(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Heights as near to the wanted ones, which descend, as a distance of `gap` between neighbours lets them be."""
    heights: list[float] = []
    for height in wanted:
        ceiling = heights[-1] - gap if heights else high - gap / 2
        heights.append(min(height, ceiling))
    floor = low + gap
    for at in reversed(range(len(heights))):
        heights[at] = max(heights[at], floor)
        floor = heights[at] + gap
    return heights


def _neurons(count: int) -> str:
    return f"{count:,} neuron{'s' if count != 1 else ''}"
