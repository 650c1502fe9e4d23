"""Pictures of scores and counts, drawn without a display: layers × tags, best neurons per tag, classes per layer."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from neuronlake.analysis.figure_style import (
    CLASS_COLOURS,
    CLASS_HATCHES,
    COLOURS,
    HIGHER,
    INK,
    LOWER,
    check_path,
    describe,
    legend_columns,
    picture,
    plain,
    robust_limit,
    text_inches,
    wrap,
)
from neuronlake.analysis.rankers import get_ranker
from neuronlake.analysis.ranking import rank, score
from neuronlake.store.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_TAGS = 120  # more columns than this cannot be told apart
_DIMS = ("tag", "layer", "neuron")
_MAX_BARS = 240  # as long as a picture may get
_CHANCE = {"auroc": 0.5}  # score of a neuron that tells nothing, where that is not 0


def layer_tag_heatmap(dataset: xr.Dataset, method: str, path: str | Path) -> Path:
    """Draw the best score of every layer × tag: where in the network is a tag told apart by a single neuron?

    Every tag's best layer carries its score (a dot, where there are too many tags for numbers).

    Parameters
    ----------
    dataset
        Of `compute_statistics`.
    method
        Name of a ranker.
    path
        File to write; PNG, SVG or PDF by its suffix.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    InputError
        When the method or the suffix is unknown, the folder does not exist, or there are more tags than can be drawn.
    """
    path = check_path(path)
    formula = get_ranker(method).formula
    if dataset.sizes["tag"] > _MAX_TAGS:
        raise InputError(
            f"{dataset.sizes['tag']} tags are more than the {_MAX_TAGS} a heat map can show: draw bars of some of them"
        )
    scores = score(dataset, method)
    best = scores["score"].max("neuron").transpose("layer", "tag").to_numpy()  # (layers, tags)
    layers = scores["layer"].to_numpy()
    tags = _with_counts(scores)
    wide = len(tags) <= 20
    width = max(6.4, 1.9 + (0.5 if wide else 0.24) * len(tags))  # inches
    level = text_inches(tags, 8) < (width - 1.9) / len(tags)
    steep = 0 if level else 60 if wide else 90  # degrees
    labels = text_inches(tags, 8) * np.sin(np.deg2rad(steep))
    flat = len(layers) < 12  # a colour bar beside so low a map would have no room for its label
    height = float(labels + max(0.7, 0.2 * len(layers)) + (1.4 if flat else 0.6))
    with picture(
        path,
        width=width,
        height=height,
        title=f"Best single neuron of each layer and tag, by {method}",
        subtitle=describe(dataset.attrs, int(dataset["count"].sum())),
        notes=[
            "Number: the score in the tag's best layer." if wide else "Dot: the tag's best layer.",
            *_notes(method, _largest_error(scores["score"], _error(dataset, method))),
        ],
    ) as figure:
        axes = figure.add_subplot()
        limit = robust_limit(best)
        low = float(best.min())
        # layer 0 at the bottom, as models are drawn
        image = axes.imshow(
            best,
            aspect="auto",
            origin="lower",
            cmap=COLOURS,
            interpolation="nearest",
            vmin=low,
            vmax=max(limit, low + 1e-12),
        )
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xticks(np.arange(len(tags)), tags, rotation=steep, ha="right" if steep == 60 else "center", va="top")
        if steep == 60:
            for label in axes.get_xticklabels():
                label.set(rotation_mode="anchor", va="center")
        step = -(-len(layers) // 40)
        axes.set_yticks(np.arange(len(layers))[::step], [str(layer) for layer in layers[::step]])
        axes.set_xlabel(f"{plain(dataset.attrs.get('by', 'tag'), 60)} (labelled tokens)")
        axes.set_ylabel("layer")
        _mark_best(axes, best, (low + limit) / 2, numbers=wide)
        bar = figure.colorbar(
            image,
            ax=axes,
            pad=0.02,
            location="top" if flat else "right",
            extend="max" if limit < best.max() else "neither",
        )
        bar.outline.set_visible(False)
        room = width - 1 if flat else height - float(labels)
        bar.set_label("\n".join([f"{method} of the best neuron", *wrap(formula, 7.5, room)]), fontsize=7.5)
    return path


def tag_bars(dataset: xr.Dataset, method: str, path: str | Path, *, tags: Sequence[str] | None = None, top: int = 1) -> Path:
    """Draw the best neurons of every tag as bars, with name, direction and score.

    A hatched bar with ▼ is a neuron on which the tag's tokens are the lower ones. Bars start at chance where it is one
    number for all tags (AUROC 0.5); for average precision a mark shows each tag's chance, its share of the tokens.

    Parameters
    ----------
    dataset
        Of `compute_statistics`.
    method
        Name of a ranker.
    path
        File to write; PNG, SVG or PDF by its suffix.
    tags
        Only these, in this order (still compared with all others); None means all, the best told apart first.
    top
        Neurons per tag.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    InputError
        When the method, a tag or the suffix is unknown, the folder does not exist, or the bars are too many.
    """
    path = check_path(path)
    formula = get_ranker(method).formula
    groups = dataset.sizes["tag"] if tags is None else len(tags)
    if not 0 < groups * top <= _MAX_BARS:
        raise InputError(
            f"{groups} tags × {top} neurons are {groups * top} bars, at most {_MAX_BARS} fit: choose fewer of them"
        )
    entries = rank(dataset, method, top=top, tags=tags)
    if tags is None:
        first = {entry["tag"]: entry["score"] for entry in reversed(entries)}
        entries.sort(key=lambda entry: -first[entry["tag"]])  # stable: a tag's neurons stay together and in order
    values = np.array([entry["score"] for entry in entries])
    errors = _error(dataset, method)
    error = 0.0 if errors is None else max(float(errors.sel({dim: entry[dim] for dim in _DIMS})) for entry in entries)
    per_tag = len(entries) // groups
    place = np.arange(len(entries)) + np.arange(len(entries)) // per_tag * (0.7 if per_tag > 1 else 0.0)
    labels = [f"{plain(entry['tag'])} ({entry['count']:,})" for entry in entries[::per_tag]]
    width = max(7.4, 5.2 + text_inches(labels, 8))
    with picture(
        path,
        width=width,
        height=1.1 + max(1.2, 0.19 * (place[-1] + 1)),  # no lower than the axis' own label
        title=f"Best neuron{'s' if per_tag > 1 else ''} of each tag, by {method}",
        subtitle=describe(dataset.attrs, int(dataset["count"].sum())),
        notes=_notes(method, error),
    ) as figure:
        axes = figure.add_subplot()
        _draw_bars(axes, entries, place, values, _CHANCE.get(method, 0.0))
        middle = place.reshape(groups, per_tag).mean(axis=1)
        axes.set_yticks(middle, labels)
        axes.tick_params(axis="y", length=0)
        pad = 0.7 + max(0.0, 2 - place[-1] / 2)  # few bars are not blown up
        axes.set_ylim(place[-1] + pad, -pad)
        axes.set_ylabel(f"{plain(dataset.attrs.get('by', 'tag'), 40)} (labelled tokens)")
        axes.set_xlabel("\n".join([method, *wrap(formula, 8, 5.0)]), fontsize=8)
        handles = _direction_handles()
        if method == "average_precision":
            chance = np.array([entry["count"] for entry in entries]) / float(dataset["count"].sum())
            handles.append(
                axes.plot(chance, place, "|", color=INK, markersize=9, label="chance: the tag's share of tokens")[0]
            )
        columns = legend_columns([str(handle.get_label()) for handle in handles], width - text_inches(labels, 8))
        axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns)
    return path


def layer_class_counts(counts: xr.DataArray, path: str | Path, *, title: str = "Neurons of each class per layer") -> Path:
    """Draw how many neurons of each layer belong to each class, stacked.

    Parameters
    ----------
    counts : integer (layer, class)
        Neurons. `by`, `subword`, `shift` and `rows` among its attributes are told in the subtitle.
    path
        File to write; PNG, SVG or PDF by its suffix.
    title
        What the classes are of.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    InputError
        When the dimensions are others, a count is negative, there are more classes than can be told apart, the suffix is
        unknown, or the folder does not exist.
    """
    path = check_path(path)
    if set(counts.dims) != {"layer", "class"} or not counts.size:
        raise InputError(f"counts have the dimensions {', '.join(map(str, counts.dims))}: expected layer, class")
    values = counts.transpose("layer", "class").to_numpy()
    names = [plain(name) for name in counts["class"].to_numpy()]
    if len(names) > len(CLASS_COLOURS):
        raise InputError(f"{len(names)} classes are more than the {len(CLASS_COLOURS)} that can be told apart: merge some")
    if values.min() < 0:
        raise InputError(f"counts must not be negative, got {values.min()}")
    layers = counts["layer"].to_numpy()
    total = max(1, int(values.sum()))
    subtitle = describe(counts.attrs, int(counts.attrs["rows"])) if "rows" in counts.attrs else ""
    width = max(6.4, 1.2 + 0.24 * len(layers))
    with picture(path, width=width, height=4.2, title=title, subtitle=subtitle) as figure:
        axes = figure.add_subplot()
        below = np.zeros(len(layers))
        for place, name in enumerate(names):
            share = values[:, place].sum() / total
            axes.bar(
                np.arange(len(layers)),
                values[:, place],
                bottom=below,
                width=0.8,
                color=CLASS_COLOURS[place],
                hatch=CLASS_HATCHES[place],
                edgecolor="white",
                linewidth=0.4,
                label=f"{name}: {values[:, place].sum():,} ({share:.1%})",
            )
            below += values[:, place]
        step = -(-len(layers) // 40)
        axes.set_xticks(np.arange(len(layers))[::step], [str(layer) for layer in layers[::step]])
        axes.set_xlim(-0.8, max(len(layers), 4) - 0.2)
        axes.tick_params(axis="x", length=0)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel("layer")
        axes.set_ylabel("neurons")
        columns = legend_columns(axes.get_legend_handles_labels()[1], width - 0.5)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns)
    return path


def _mark_best(axes: "Axes", best: NDArray[np.float64], middle: float, *, numbers: bool) -> None:
    """Mark every tag's best layer with its score, or with a dot."""
    for column, row in enumerate(best.argmax(axis=0)):
        value = best[row, column]
        colour = "black" if value > middle else "white"  # the colours are light at the top
        if numbers:
            text = f"{value:.3f}" if abs(value) <= 1 else f"{value:.2f}" if abs(value) < 10 else f"{value:.3g}"
            axes.text(column, row, text, color=colour, size=6.5, ha="center", va="center")
        else:
            axes.plot(column, row, "o", color=colour, markersize=3)


def _draw_bars(
    axes: "Axes", entries: Sequence[dict[str, Any]], place: NDArray[np.float64], values: NDArray[np.float64], start: float
) -> None:
    lower = np.array([entry["sign"] < 0 for entry in entries])
    low, high = min(start, float(values.min())), max(start, robust_limit(values))
    ends = np.minimum(values, high)
    for chosen, colour, hatch in ((~lower, HIGHER, ""), (lower, LOWER, "////")):
        axes.barh(
            place[chosen], ends[chosen] - start, left=start, height=0.78, color=colour, hatch=hatch, edgecolor="white", lw=0
        )
    span = (high - low) or 1.0
    for y, value, entry in zip(place, values, entries, strict=True):
        arrow = "▼" if entry["sign"] < 0 else "▲"
        digits = 0 if value >= 1000 else 3 if high <= 1 else 2
        cut = " (bar cut)" if value > high else ""
        x = max(min(value, high), start) + 0.01 * span
        axes.text(x, y, f"{arrow} {entry['name']}  {value:,.{digits}f}{cut}", size=7, va="center_baseline")
    axes.set_xlim(low, high + 0.3 * span)
    ticks = axes.get_xticks()
    axes.set_xticks([tick for tick in ticks if low <= tick < high + 0.9 * (ticks[1] - ticks[0])])


def _direction_handles() -> list[Any]:
    from matplotlib.patches import Patch

    return [
        Patch(facecolor=HIGHER, label="▲ the tag's tokens are higher"),
        Patch(facecolor=LOWER, hatch="////", edgecolor="white", lw=0, label="▼ the tag's tokens are lower"),
    ]


def _with_counts(dataset: xr.Dataset) -> list[str]:
    return [
        f"{plain(tag)} ({count:,})"
        for tag, count in zip(dataset["tag"].to_numpy(), dataset["count"].to_numpy(), strict=True)
    ]


def _error(dataset: xr.Dataset, method: str) -> xr.DataArray | None:
    """Bound of every score's error, (tag, layer, neuron); None where scores are exact anyway."""
    # of two directions, the score is the larger: it is no further off than the worse of them
    found = [dataset[name] for name in (f"{method}_error", f"{method}_low_error") if name in dataset]
    if len(found) < 2:
        return found[0] if found else None
    return found[0].where(found[0] >= found[1], found[1])


def _largest_error(scores: xr.DataArray, error: xr.DataArray | None) -> float:
    """How far the best score of any layer × tag may be off: its true value is between the best bounds of its neurons."""
    if error is None:
        return 0.0
    best = scores.max("neuron")
    return float(max(((scores + error).max("neuron") - best).max(), (best - (scores - error).max("neuron")).max()))


def _notes(method: str, error: float) -> list[str]:
    """Say how far approximate scores may be off."""
    return [f"{method} comes from histograms: no score shown is off by more than {error:.2g}."] if error > 0 else []
