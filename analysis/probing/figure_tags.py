"""Pictures of a probe's tags: which are taken for which, and where in the network each is found."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuronlake.analysis.figure_style import COLOURS, check_path, picture, plain, text_inches
from neuronlake.analysis.probing.figure_table import Row, points_of, select, unique_cells
from neuronlake.store.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

_MAX_TAGS = 120  # more columns than this cannot be told apart
_NUMBERED = 20  # so many tags leave room for a number in every cell
_UNKNOWN = "#E4E4E4"  # a cell without a value
_BAR_INCHES = 0.2
_TICKS = (0, 1, 5, 10, 25, 50, 75, 100)  # per cent


def confusion_figure(
    confusion: ArrayLike,
    tags: Sequence[str],
    path: str | Path,
    *,
    title: str = "True and predicted tags",
    subtitle: str = "",
    notes: Sequence[str] = (),
) -> Path:
    """Draw what share of every tag's test tokens is predicted to be which tag; rows sum to 100 %.

    Up to 20 tags, cells carry the share in per cent. The margins count the tokens of every true and predicted tag.

    Parameters
    ----------
    confusion : integer (tags, tags)
        Counts, (true tag, predicted tag).
    tags
        Names, at most 120.
    path
        File to write; PNG, SVG or PDF by its suffix.
    title, subtitle, notes
        Text above and below.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    InputError
        When counts and names do not match, a count is negative, all are 0, there are too many tags, the suffix is unknown,
        or the folder does not exist.
    """
    path = check_path(path)
    counts = np.asarray(confusion)
    if counts.shape != (len(tags), len(tags)):
        raise InputError(f"confusion has the shape {counts.shape}: expected ({len(tags)}, {len(tags)}) for {len(tags)} tags")
    _check_tags(len(tags))
    if not counts.sum() or counts.min() < 0:
        raise InputError(
            f"nothing to draw: confusion needs counts of at least 0, and some above, got {counts.min()} at least"
        )
    true, predicted = counts.sum(axis=1), counts.sum(axis=0)
    shares = np.full(counts.shape, np.nan)
    np.divide(100 * counts, true[:, None], out=shares, where=true[:, None] > 0)
    rows, columns = (
        [f"{plain(tag)} ({count:,})" for tag, count in zip(tags, margin, strict=True)] for margin in (true, predicted)
    )
    cell = 0.36 if len(tags) <= _NUMBERED else 0.19 if len(tags) <= 60 else 0.15  # inches
    side = max(2.4, cell * len(tags))
    beside = text_inches(rows, 8) + 1.7
    width = max(5.4, side + beside)
    unknown = ["Grey: no test token has the tag."] if not true.all() else []
    with picture(
        path,
        width=width,
        height=side + _steep_inches(columns, width - beside) + 0.55,
        title=title,
        subtitle=subtitle,
        notes=[*notes, *unknown],
    ) as figure:
        from matplotlib.colors import PowerNorm

        axes = figure.add_subplot()
        # a square root, because errors are few: on a linear scale 3 % could not be told from 0
        image = _cells(axes, shares, norm=PowerNorm(0.5, 0, 100), origin="upper")
        _tag_axis(axes, columns, width - beside)
        axes.set_yticks(np.arange(len(tags)), rows)
        axes.set_ylabel("true tag (test tokens)")
        axes.set_xlabel("predicted tag (predictions)")
        if len(tags) <= _NUMBERED:
            for (row, column), share in np.ndenumerate(shares):
                if share > 0:
                    text = "<1" if share < 0.5 else ">99" if 99.5 <= share < 100 else f"{share:.0f}"
                    # colours are light at the top, half of the scale is 25 %
                    axes.text(
                        column, row, text, size=6.5, ha="center", va="center", color="black" if share > 25 else "white"
                    )
        _colour_bar(image, "% of the true tag's tokens (square-root scale)", ticks=_TICKS)
    return path


def tag_f1_heatmap(
    table: "Sequence[Row] | pa.Table",
    path: str | Path,
    *,
    by: str | None = None,
    classifier: str | None = None,
    shift: int | None = None,
) -> Path:
    """Draw the F1 of every tag by the probe of every layer: where in the network is a tag found?

    Parameters
    ----------
    table
        With the columns `figure_table.COLUMNS`; drawn are rows of ``probe`` with the metric ``f1``, a tag and a layer, the
        tags in the order of the rows. Every cell carries its F1 where there are at most 12 layers and 20 tags, otherwise
        every tag's best layer alone does (a dot, where there are more tags).
    path
        File to write; PNG, SVG or PDF by its suffix.
    by, classifier, shift
        Of which rows; None means the only ones there are, and shift 0 of several.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    InputError
        When there are no such rows, several for one cell, or too many tags; when the suffix is unknown, or the folder does
        not exist.
    """
    path = check_path(path)
    chosen = select(table, "layer", "f1", by=by, classifier=classifier, shift=shift, per_tag=True)
    cells = unique_cells(chosen.probes, ("layer", "tag"))
    tags = list(dict.fromkeys(str(row["tag"]) for row in chosen.probes))
    layers = sorted({layer for layer, _ in cells})
    _check_tags(len(tags))
    scores = np.full((len(layers), len(tags)), np.nan)
    for (layer, tag), rows in cells.items():
        scores[layers.index(layer), tags.index(str(tag))] = points_of(rows)[0]
    names = [plain(tag) for tag in tags]
    all_numbers = len(layers) <= 12 and len(tags) <= _NUMBERED
    side = max(4.4, (0.4 if len(tags) <= _NUMBERED else 0.2) * len(tags))
    notes = [] if all_numbers else [f"{'Number: F1 in' if len(tags) <= _NUMBERED else 'Dot:'} the tag's best layer."]
    if np.isnan(scores).any():
        notes.append("Grey: not in the table.")
    with picture(
        path,
        width=max(6.4, side + 1.7),
        height=max(1.6, (0.24 if all_numbers else 0.2) * len(layers)) + _steep_inches(names, side) + 0.5,
        title="F1 of each tag, by probes on each layer",
        subtitle=chosen.subtitle(),
        notes=notes,
    ) as figure:
        axes = figure.add_subplot()
        # layer 0 at the bottom, as models are drawn
        image = _cells(axes, scores, vmin=0, vmax=1, origin="lower")
        _tag_axis(axes, names, side)
        step = -(-len(layers) // 40)
        axes.set_yticks(np.arange(len(layers))[::step], [str(layer) for layer in layers[::step]])
        axes.set_xlabel(plain(chosen.settings["by"], 60))
        axes.set_ylabel("layer")
        best = np.nanargmax(scores, axis=0)
        for (row, column), value in np.ndenumerate(scores):
            top = row == best[column]
            if np.isnan(value) or not (top or all_numbers):
                continue
            colour = "black" if value > 0.5 else "white"
            if len(tags) <= _NUMBERED:
                axes.text(
                    column,
                    row,
                    f"{value:.2f}",
                    size=6.5,
                    ha="center",
                    va="center",
                    color=colour,
                    weight="bold" if top and all_numbers and len(layers) > 1 else "normal",
                )
            else:
                axes.plot(column, row, "o", color=colour, markersize=3)
        _colour_bar(image, "F1 on test documents")
    return path


def _cells(axes: "Axes", values: NDArray[np.float64], **scale: object) -> "AxesImage":
    import matplotlib

    colours = matplotlib.colormaps[COLOURS].with_extremes(bad=_UNKNOWN)
    image = axes.imshow(values, aspect="auto", cmap=colours, interpolation="nearest", **scale)  # type: ignore[arg-type]
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return image


def _colour_bar(image: "AxesImage", label: str, ticks: Sequence[float] | None = None) -> None:
    figure = image.axes.get_figure(root=True)
    assert figure is not None  # it was just drawn on
    # as wide in a large picture as in a small one
    bar = figure.colorbar(image, ax=image.axes, pad=0.02, ticks=ticks, aspect=figure.get_figheight() / _BAR_INCHES)
    bar.outline.set_visible(False)
    bar.set_label(label, fontsize=7.5)


def _steep(names: Sequence[str], side: float) -> int:
    """Degrees by which names below so many inches of columns are turned."""
    if text_inches(names, 8) < side / len(names):
        return 0
    return 60 if len(names) <= _NUMBERED else 90


def _steep_inches(names: Sequence[str], side: float) -> float:
    return float(max(0.15, text_inches(names, 8) * np.sin(np.deg2rad(_steep(names, side)))))


def _tag_axis(axes: "Axes", names: Sequence[str], side: float) -> None:
    steep = _steep(names, side)
    axes.set_xticks(np.arange(len(names)), names, rotation=steep, ha="right" if steep == 60 else "center", va="top")
    if steep == 60:
        for label in axes.get_xticklabels():
            label.set(rotation_mode="anchor", va="center")


def _check_tags(tags: int) -> None:
    if not 0 < tags <= _MAX_TAGS:
        raise InputError(f"{tags} tags: 1 to {_MAX_TAGS} can be drawn, choose some of them")
