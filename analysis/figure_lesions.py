"""Pictures of lesions: tag × lesion, own effect beside its controls, and dose–response."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.figure_style import (
    COLOURS,
    HIGHER,
    INK,
    LOWER,
    NEUTRAL,
    check_path,
    legend_columns,
    picture,
    plain,
    text_inches,
)
from neuronlake.analysis.lesion_effects import BEYOND, SCARCE, Effect
from neuronlake.store.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_NUMBERS = 20  # tags for whose cells numbers can be read
_MOST_TAGS = 60
_PANEL = (2.3, 1.75)  # inches of one tag's dose–response
_RANDOM = "#009E73"
_ACROSS = 4


def lesion_matrix(effects: Sequence[Effect], path: str | Path, *, subtitle: str = "") -> Path:
    """Draw Δ log-loss of every lesion (rows) on every tag's targets (columns).

    The own tag's cell has a frame, and a star where it exceeds 95 % of the random sets. The last row is the mean of all
    random sets. Colours span the tags that are not scarce.

    Parameters
    ----------
    effects
        Of one dose.
    path
        File to write; PNG, SVG or PDF by its suffix.
    subtitle
        What was lesioned, and on which text it was measured.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    InputError
        When there is nothing to draw or too much, the suffix is unknown, or the folder does not exist.
    """
    path = check_path(path)
    tags, rows, values = _matrix(effects)
    if not effects or len(tags) > _MOST_TAGS or len(effects) > _MOST_TAGS:
        raise InputError(f"{len(effects)} lesions × {len(tags)} tags cannot be drawn: 1 to {_MOST_TAGS} of each can")
    count = [effects[0].by_target[tag]["targets"] for tag in tags]
    targets = [f"{plain(tag)} ({number:,})" for tag, number in zip(tags, count, strict=True)]
    numbers = len(targets) <= _MOST_NUMBERS
    scarce = [number < SCARCE for number in count]
    random = any(effect.random for effect in effects)
    cell = 0.46 if numbers else 0.24
    left = text_inches(rows, 8) + 0.5
    width = max(6.4, left + 1.4 + cell * len(targets))
    height = max(2.4, text_inches(targets, 8) + 0.9 + 0.26 * len(rows))
    with picture(
        path,
        width=width,
        height=height,
        title="What lesions of key neurons do to the prediction of the next word",
        subtitle=subtitle,
        notes=[
            "Δ log-loss in nats per word: positive is worse prediction. In brackets: words predicted. Frames: the lesioned "
            "neurons' own tag" + ("; ★: more than 95 % of the layer-matched random sets do to it." if random else "."),
        ],
    ) as figure:
        axes = figure.add_subplot()
        shown = values if all(scarce) else values[:, ~np.array(scarce)]
        low, high = min(0.0, float(shown.min())), max(float(shown.max()), 1e-12)
        image = axes.imshow(values, aspect="auto", cmap=COLOURS, interpolation="nearest", vmin=low, vmax=high)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xticks(np.arange(len(targets)), targets, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(np.arange(len(rows)), rows)
        axes.set_xlabel("tag of the word to predict")
        axes.set_ylabel("lesion: key neurons of")
        if len(rows) > len(effects):
            axes.axhline(len(effects) - 0.5, color="white", lw=2)
        starred = {place for place, effect in enumerate(effects) if (effect.exceeded or 0) >= BEYOND}
        for row, line in enumerate(values):
            own = tags.index(effects[row].tag) if row < len(effects) else -1
            for column, value in enumerate(line):
                star = "★" if column == own and row in starred else ""
                colour = "black" if value > (low + high) / 2 else "white"
                if numbers:
                    text = f"{round(value, 2) + 0.0:.2f}".replace("-", "−")
                    axes.text(column, row, text, color=colour, size=6.3, ha="center", va="center")
                if star:
                    axes.text(column + 0.44, row - 0.42, star, color=colour, size=7, ha="right", va="top")
            if own >= 0:
                axes.plot(
                    own + np.array([-0.48, 0.48, 0.48, -0.48, -0.48]),
                    row + np.array([-0.47, -0.47, 0.47, 0.47, -0.47]),
                    color=LOWER,
                    lw=1.6,
                )
        ends = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
        bar = figure.colorbar(image, ax=axes, pad=0.02, extend=ends[bool(values.min() < low), bool(values.max() > high)])
        bar.outline.set_visible(False)
        bar.set_label("Δ log-loss (nats)", fontsize=8)
    return path


def own_effects(effects: Sequence[Effect], path: str | Path, *, subtitle: str = "") -> Path:
    """Draw the effect on the own tag, with its interval, beside random sets, other tags' targets and other key neurons.

    Parameters
    ----------
    effects, path, subtitle
        As for `lesion_matrix`.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    InputError
        As for `lesion_matrix`.
    """
    path = check_path(path)
    if not 0 < len(effects) <= _MOST_TAGS:
        raise InputError(f"{len(effects)} lesions cannot be drawn: 1 to {_MOST_TAGS} can")
    ordered = sorted(effects, key=lambda effect: -effect.own.value)
    labels = [f"{plain(effect.tag)} ({effect.targets:,})" for effect in ordered]
    with picture(
        path,
        width=7.4,
        height=1.3 + 0.27 * len(ordered),
        title="Lesions of key neurons on their own tag, and what they are held against",
        subtitle=subtitle,
        notes=["In brackets: words of the tag that were predicted. Bars: 95 % intervals by document bootstrap."],
    ) as figure:
        axes = figure.add_subplot()
        place = np.arange(len(ordered))
        axes.axvline(0, color="#BBBBBB", lw=0.8, zorder=0)
        value = np.array([effect.own.value for effect in ordered])
        for row, effect in enumerate(ordered):
            axes.plot(effect.random, np.full(len(effect.random), row), "|", color=_RANDOM, ms=8, mew=0.9, zorder=1)
            if effect.own.low is not None and effect.own.high is not None:
                axes.plot([effect.own.low, effect.own.high], [row, row], color=HIGHER, lw=1.6, zorder=2)
        axes.plot(value, place, "o", color=HIGHER, ms=5.5, label="own tag's key neurons", zorder=3)
        if any(effect.random for effect in ordered):
            axes.plot([], [], "|", color=_RANDOM, ms=8, label="layer-matched random sets")
        keys = [(effect.other_keys_mean, row) for row, effect in enumerate(ordered) if effect.other_keys_mean is not None]
        if keys:
            axes.plot(*zip(*keys, strict=True), "D", color=LOWER, ms=4, mfc="white", label="other tags' key neurons, mean")
        axes.plot(
            [effect.others.value for effect in ordered],
            place,
            "x",
            color=INK,
            ms=4.5,
            label="same lesion, other tags' words",
        )
        axes.set_yticks(place, labels)
        axes.set_ylim(len(ordered) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="#EEEEEE", lw=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel("Δ log-loss (nats per word)")
        shown = [str(label) for label in axes.get_legend_handles_labels()[1]]
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=legend_columns(shown, 7.4 - text_inches(labels, 8)))
    return path


def dose_response(effects: Sequence[Effect], path: str | Path, *, subtitle: str = "") -> Path:
    """Draw the effect over the number of lesioned neurons, one panel per tag, beside random sets and other tags' words.

    Parameters
    ----------
    effects
        Of several doses.
    path, subtitle
        As for `lesion_matrix`.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    InputError
        When no tag has two doses, or as for `lesion_matrix`.
    """
    path = check_path(path)
    tags = list(dict.fromkeys(effect.tag for effect in effects))
    of = {tag: sorted((each for each in effects if each.tag == tag), key=lambda each: each.neurons) for tag in tags}
    tags = [tag for tag in tags if len({each.neurons for each in of[tag]}) > 1]
    if not 0 < len(tags) <= _MOST_TAGS:
        raise InputError(f"{len(tags)} tags with several doses cannot be drawn: 1 to {_MOST_TAGS} can")
    across = min(_ACROSS, len(tags))
    down = -(-len(tags) // across)
    with picture(
        path,
        width=max(5.6, 0.5 + _PANEL[0] * across),
        height=0.7 + _PANEL[1] * down,
        title="Effect of lesions by the number of neurons",
        subtitle=subtitle,
        notes=["Δ log-loss in nats per word. Bars: 95 % intervals by document bootstrap; band: all random sets."],
    ) as figure:
        # the legend has a line of its own, across all panels
        places = figure.add_gridspec(down + 1, across, height_ratios=[0.14, *[1] * down])
        grid = np.array([[figure.add_subplot(places[row + 1, column]) for column in range(across)] for row in range(down)])
        for axes, tag in zip(grid.ravel(), tags, strict=False):
            _dose_panel(axes, of[tag])
            axes.set_title(f"{plain(tag)} ({of[tag][0].targets:,})", fontsize=8.5)
        for axes in grid.ravel()[len(tags) :]:
            axes.set_visible(False)
        for column in range(across):
            lowest = grid[(len(tags) - 1 - column) // across, column]
            lowest.set_xlabel("neurons", fontsize=8)
            lowest.tick_params(labelbottom=True)
        figure.supylabel("Δ log-loss (nats)", fontsize=8.5)
        shown = [str(label) for label in grid[0, 0].get_legend_handles_labels()[1]]
        columns = legend_columns(shown, _PANEL[0] * across)
        above = figure.add_subplot(places[0, :])
        above.set_axis_off()
        above.legend(*grid[0, 0].get_legend_handles_labels(), loc="center left", ncols=columns)
    return path


def _dose_panel(axes: "Axes", effects: Sequence[Effect]) -> None:
    x = np.array([effect.neurons for effect in effects])
    axes.axhline(0, color="#BBBBBB", lw=0.8)
    with_random = [effect for effect in effects if effect.random]
    if with_random:
        axes.fill_between(
            [effect.neurons for effect in with_random],
            [min(effect.random) for effect in with_random],
            [max(effect.random) for effect in with_random],
            color=_RANDOM,
            alpha=0.18,
            lw=0,
        )
        axes.plot(
            [effect.neurons for effect in with_random],
            [float(np.mean(effect.random)) for effect in with_random],
            color=_RANDOM,
            ls=(0, (5, 1.5, 1, 1.5)),
            marker="^",
            ms=3,
            lw=1.1,
            label="random sets",
        )
    axes.plot(
        x, [effect.others.value for effect in effects], color=NEUTRAL, ls=(0, (2, 1.2)), marker="x", ms=4, lw=1.1,
        label="other tags' words",
    )  # fmt: skip
    value = np.array([effect.own.value for effect in effects])
    for effect in effects:
        if effect.own.low is not None and effect.own.high is not None:
            axes.plot([effect.neurons] * 2, [effect.own.low, effect.own.high], color=HIGHER, lw=1.1)
    axes.plot(x, value, color=HIGHER, marker="o", ms=3.5, lw=1.7, label="own tag's words")
    axes.set_xscale("log")
    axes.set_xticks(x, [f"{each:,}" for each in x], minor=False)
    axes.set_xticks([], minor=True)
    axes.tick_params(labelsize=7)


def _matrix(effects: Sequence[Effect]) -> tuple[list[str], list[str], NDArray[np.float64]]:
    """Tags of the targets, names of rows, and Δ (rows, targets); the last row is that of random sets, if there are any."""
    tags = list(effects[0].by_target) if effects else []
    own = [effect.tag for effect in effects]
    tags = [tag for tag in own if tag in tags] + [tag for tag in tags if tag not in own]
    rows = [plain(effect.tag) for effect in effects]
    values = [[effect.by_target[tag]["value"] for tag in tags] for effect in effects]
    if effects and all(effect.random for effect in effects):
        rows.append("random, mean")
        values.append([float(np.mean([effect.by_target[tag]["random_mean"] for effect in effects])) for tag in tags])
    return tags, rows, np.array(values, dtype=np.float64).reshape(len(rows), len(tags))
