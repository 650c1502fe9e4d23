"""Pictures of probes beside their controls: by layer, by number of neurons, by shift, and their selectivity.

All take a tidy table (a list of dicts or a `pyarrow.Table`) with the columns `figure_table.COLUMNS`, one row per score.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.figure_style import HIGHER, INK, LOWER, check_path, picture, plain
from neuronlake.analysis.probing.bootstrap import METRICS
from neuronlake.analysis.probing.figure_table import Row, Selection, Series, select
from neuronlake.analysis.probing.figure_tags import confusion_figure, tag_f1_heatmap
from neuronlake.store.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.axes import Axes

__all__ = [
    "accuracy_by_features",
    "accuracy_by_layer",
    "accuracy_by_shift",
    "confusion_figure",
    "selectivity_figure",
    "tag_f1_heatmap",
]

_WIDTH, _HEIGHT = 7.4, 3.9  # inches
_MOST_TICKS, _MOST_POWERS = 30, 13  # so many numbers fit below


@dataclass(frozen=True, kw_only=True)
class _Look:
    """Colour, marker and dashes: each alone tells the lines apart."""

    label: str
    colour: str
    marker: str = ""
    dashes: Any = "-"
    width: float = 1.4


_LOOKS = {
    "probe": _Look(label="probe", colour=HIGHER, marker="o", width=1.9),
    "control_task": _Look(label="control task: a random tag per word", colour=LOWER, marker="s", dashes=(0, (6, 2))),
    "random_neurons": _Look(label="random neurons", colour="#009E73", marker="^", dashes=(0, (5, 1.5, 1, 1.5))),
    "shuffled_labels": _Look(label="shuffled labels", colour="#CC79A7", marker="D", dashes=(0, (2, 1.2))),
    "most_frequent_tag_per_word": _Look(label="most frequent tag per word", colour=INK, dashes=(0, (9, 3)), width=1.0),
    "majority": _Look(label="majority tag", colour="#666666", dashes=(0, (1, 1.6)), width=1.2),
    "selectivity": _Look(label="selectivity", colour=INK, marker="v"),
}
_CURVES = ("probe", "control_task", "random_neurons", "shuffled_labels")
_BASELINES = ("most_frequent_tag_per_word", "majority")
_NAMES = {"accuracy": "accuracy", "macro_f1": "macro-F1"}


def accuracy_by_layer(
    table: "Sequence[Row] | pa.Table",
    path: str | Path,
    *,
    metric: str = "accuracy",
    by: str | None = None,
    classifier: str | None = None,
    shift: int | None = None,
) -> Path:
    """Draw how well each layer predicts a label, beside the control task and the baselines.

    Parameters
    ----------
    table
        Rows of single layers (a number in `layer`) are drawn: what is ``probe``, and where they exist ``control_task``,
        ``random_neurons``, ``shuffled_labels``, ``most_frequent_tag_per_word`` and ``majority``. Bands are from `low` to
        `high`; rows with a `draw` are dots, and the line is their mean where no row without a draw gives it.
    path
        File to write; PNG, SVG or PDF by its suffix.
    metric
        ``accuracy`` or ``macro_f1``.
    by, classifier, shift
        Of which rows; None means the only ones there are, and shift 0 of several.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    InputError
        When there are no such rows, or several for one point; when the metric or the suffix is unknown, or the folder does
        not exist.
    """
    path = check_path(path)
    chosen = select(table, "layer", _known(metric), by=by, classifier=classifier, shift=shift)
    return _curves(chosen, path, metric, title=f"{_title(metric)} of probes on each layer", label="layer")


def accuracy_by_features(
    table: "Sequence[Row] | pa.Table",
    path: str | Path,
    *,
    metric: str = "accuracy",
    by: str | None = None,
    classifier: str | None = None,
    shift: int | None = None,
    layers: str | None = None,
) -> Path:
    """Draw how well few and many neurons predict a label, beside as many random ones.

    Parameters
    ----------
    table, path, metric, by, classifier, shift
        As for `accuracy_by_layer`; drawn are rows of the same layers along their number of neurons, `features`.
    layers
        The layers that neurons were chosen from; None means the only ones with several numbers of neurons.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    InputError
        As for `accuracy_by_layer`.
    """
    path = check_path(path)
    chosen = select(table, "features", _known(metric), by=by, classifier=classifier, shift=shift, layers=layers)
    if min(row["features"] for row in chosen.rows) < 1:
        raise InputError("features must be at least 1 to be drawn on a logarithmic axis, got 0 or less")
    title = f"{_title(metric)} of probes by number of neurons, from {_of_layers(chosen)}"
    return _curves(chosen, path, metric, title=title, label="number of neurons")


def accuracy_by_shift(
    table: "Sequence[Row] | pa.Table",
    path: str | Path,
    *,
    metric: str = "accuracy",
    by: str | None = None,
    classifier: str | None = None,
    layers: str | None = None,
) -> Path:
    """Draw how well a token's neurons predict the labels of earlier and later words.

    Parameters
    ----------
    table, path, metric, by, classifier
        As for `accuracy_by_layer`; drawn are rows of the same layers along their `shift`.
    layers
        The layers of the probes; None means the only ones with several shifts.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    InputError
        As for `accuracy_by_layer`.
    """
    path = check_path(path)
    chosen = select(table, "shift", _known(metric), by=by, classifier=classifier, layers=layers)
    title = f"{_title(metric)} of probes of earlier and later words, {_of_layers(chosen)}"
    return _curves(chosen, path, metric, title=title, label="label of the word so many words later (0: the token's own)")


def selectivity_figure(
    table: "Sequence[Row] | pa.Table",
    path: str | Path,
    *,
    metric: str = "accuracy",
    by: str | None = None,
    classifier: str | None = None,
    shift: int | None = None,
) -> Path:
    """Draw each layer's score on the task and on the control task, the gap between them, and that gap alone below.

    Selectivity = task − control (Hewitt & Liang 2019, arXiv 1909.03368): high where a probe finds the label in the neurons
    rather than learning the words by heart.

    Parameters
    ----------
    table, path, metric, by, classifier, shift
        As for `accuracy_by_layer`; needed are rows of ``probe`` and ``control_task`` for the same layers. Rows of
        ``selectivity`` give the intervals of the difference; without them it is drawn without intervals.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    InputError
        As for `accuracy_by_layer`, and when no layer has both scores.
    """
    path = check_path(path)
    chosen = select(table, "layer", _known(metric), by=by, classifier=classifier, shift=shift)
    task, control = chosen.series("probe"), chosen.series("control_task")
    if task is None or control is None or not np.intersect1d(task.x, control.x).size:
        raise InputError(
            "nothing to draw: selectivity needs rows with what='probe' and with what='control_task' for the same layers"
        )
    both, mine, theirs = np.intersect1d(task.x, control.x, return_indices=True)
    gap = chosen.series("selectivity") or _difference(both, task.value[mine] - control.value[theirs])
    title = f"Selectivity of probes on each layer, by {_NAMES[metric]}"
    notes = _notes(chosen, [task, control, gap])
    with picture(path, width=_WIDTH, height=5.2, title=title, subtitle=chosen.subtitle(), notes=notes) as figure:
        above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [2.2, 1]})
        above.fill_between(
            both, task.value[mine], control.value[theirs], color="#999999", alpha=0.28, lw=0, label="the gap: selectivity"
        )
        for what, series in (("probe", task), ("control_task", control)):
            _draw(above, what, series)
        gap_handle, *handles = above.get_legend_handles_labels()[0]
        above.legend(handles=[*handles, gap_handle], loc="lower left", bbox_to_anchor=(0, 1), ncols=3, handlelength=3.2)
        _score_axis(above, float(min(task.value.min(), control.value.min())), _NAMES[metric])
        below.axhline(0, color="#BBBBBB", linewidth=0.8, zorder=0)
        _draw(below, "selectivity", gap)
        below.margins(y=0.22)
        below.set_ylabel(f"selectivity\n({_NAMES[metric]})")
        _place_axis(below, "layer", np.union1d(task.x, control.x), "layer")
        _name_best(below, gap, "layer")
    return path


def _curves(chosen: Selection, path: Path, metric: str, *, title: str, label: str) -> Path:
    """Draw everything there is along one axis."""
    found = {what: series for what in _CURVES if (series := chosen.series(what)) is not None}
    flat = {what: place for what in _BASELINES if (place := chosen.baseline(what)) is not None}
    x = np.unique(np.concatenate([series.x for series in found.values()]))
    with picture(
        path,
        width=_WIDTH,
        height=_HEIGHT,
        title=title,
        subtitle=chosen.subtitle(),
        notes=_notes(chosen, list(found.values())),
    ) as figure:
        axes = figure.add_subplot()
        for what in found:
            _draw(axes, what, found[what])
        for what, (places, heights) in flat.items():
            _draw_baseline(axes, what, places, heights)
        heights = np.concatenate([s.value for s in found.values()] + [h for _, h in flat.values()])
        _score_axis(axes, float(heights.min()), f"{_NAMES[metric]} on test documents")
        _place_axis(axes, chosen.x, x, label)
        _name_best(axes, found["probe"], chosen.x)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, handlelength=3.2)
    return path


def _draw(axes: "Axes", what: str, series: Series) -> None:
    """Draw a line with its interval and its single draws; in SVG, the line's group is named `what`."""
    look = _LOOKS[what]
    known = ~np.isnan(series.low)
    if known.any():
        axes.fill_between(series.x, series.low, series.high, where=known, color=look.colour, alpha=0.18, lw=0)
        # a band has no width at a point without neighbours
        axes.vlines(series.x[known], series.low[known], series.high[known], color=look.colour, lw=0.7, alpha=0.7)
    axes.plot(series.draw_x, series.draw_value, look.marker, color=look.colour, markersize=2.5, alpha=0.45, mew=0)
    draws = series.most_draws
    axes.plot(
        series.x,
        series.value,
        color=look.colour,
        marker=look.marker,
        linestyle=look.dashes,
        linewidth=look.width,
        markersize=4,
        markeredgecolor="white",
        markeredgewidth=0.4,
        gid=what,
        zorder=3.0 if what == "probe" else 2.5,  # nothing hides the probe
        label=f"{look.label} (mean of {draws} draws)" if draws > 1 else look.label,
    )


def _draw_baseline(axes: "Axes", what: str, places: NDArray[np.float64], heights: NDArray[np.float64]) -> None:
    look = _LOOKS[what]
    style: dict[str, Any] = {"color": look.colour, "linestyle": look.dashes, "linewidth": look.width, "gid": what}
    if np.isnan(places[0]):
        axes.axhline(heights[0], label=f"{look.label}: {heights[0]:.3f}", zorder=1.5, **style)
    else:
        axes.plot(places, heights, label=look.label, zorder=1.5, **style)


def _score_axis(axes: "Axes", lowest: float, label: str) -> None:
    """Scale from 0 where something is near it, to 1, with room for the best point's name."""
    bottom = 0.0 if lowest < 0.5 else np.floor(10 * lowest - 0.5) / 10
    axes.set_ylim(bottom, 1 + 0.07 * (1 - bottom))
    axes.set_yticks([tick for tick in np.linspace(0, 1, 11 if bottom else 6) if tick >= bottom - 1e-9])
    axes.yaxis.set_major_formatter("{x:.1f}")
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_ylabel(label)


def _place_axis(axes: "Axes", x: str, places: NDArray[np.float64], label: str) -> None:
    axes.set_xlabel(label)
    if x == "features":
        axes.set_xscale("log", base=2)
        low, high = np.log2(places[0]) - 0.4, np.log2(places[-1]) + 0.4
        axes.set_xlim(2**low, 2**high)
        powers = np.arange(np.ceil(low), high)
        ticks = 2 ** powers[:: -(-len(powers) // _MOST_POWERS)] if powers.size else places
        axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
        axes.minorticks_off()
        return
    shown = places[:: -(-len(places) // _MOST_TICKS)]
    signed = x == "shift"
    axes.set_xticks(shown, [f"{place:+.0f}".replace("-", "−") if signed and place else f"{place:.0f}" for place in shown])
    room = 0.03 * max(places[-1] - places[0], 4)
    axes.set_xlim(places[0] - room, places[-1] + room)


def _name_best(axes: "Axes", series: Series, x: str) -> None:
    """Write the highest value above its point, inside the axes."""
    at = int(np.argmax(series.value))
    place = {"layer": "layer ", "features": "", "shift": "shift "}[x]
    unit = " neurons" if x == "features" else ""
    left, right = axes.get_xlim()
    where = series.x[at]
    share = (np.log(where / left) / np.log(right / left)) if x == "features" else (where - left) / (right - left)
    axes.annotate(
        f"{series.value[at]:.3f} ({place}{where:,.0f}{unit})".replace("-", "−"),
        (where, np.nanmax([series.value[at], series.high[at]])),
        (0, 3),
        textcoords="offset points",
        ha="left" if share < 0.12 else "right" if share > 0.88 else "center",
        va="bottom",
        size=7.5,
        bbox={"facecolor": "white", "linewidth": 0, "alpha": 0.75, "pad": 0.6},
    )


def _notes(chosen: Selection, drawn: Sequence[Series]) -> list[str]:
    """Say what bands and dots are."""
    notes = []
    if any(np.isfinite(series.low).any() for series in drawn):
        notes.append("Bands: 95 % intervals, by drawing the test documents again with replacement.")
    elif all(row["test_documents"] == 1 for row in chosen.probes):
        notes.append("No intervals: all test tokens are of one document.")
    if any(series.most_draws > 1 for series in drawn):
        notes.append("Small marks: single draws.")
    return notes


def _difference(x: NDArray[np.float64], value: NDArray[np.float64]) -> Series:
    none, unknown = np.empty(0), np.full(len(x), np.nan)
    return Series(x=x, value=value, low=unknown, high=unknown, draw_x=none, draw_value=none)


def _known(metric: str) -> str:
    if metric not in METRICS:
        raise InputError(f"unknown metric {metric!r}: known are {', '.join(METRICS)}")
    return metric


def _title(metric: str) -> str:
    return {"accuracy": "Accuracy", "macro_f1": "Macro-F1"}[metric]


def _of_layers(chosen: Selection) -> str:
    layers = plain(chosen.settings["layers"], 40)
    return f"layer {layers}" if layers.isdigit() else f"layers {layers}"
