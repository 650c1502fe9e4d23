"""Pictures of key neurons: in which layers they lie, and how the sets of several tags overlap."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.figure_style import COLOURS, HIGHER, INK, check_path, picture, plain, text_inches
from neuronlake.store.errors import InputError

_MOST_TAGS = 60
_MOST_NUMBERS = 20  # tags for whose cells numbers can be read
_MOST_SETS = 6  # whose intersections fit side by side


def key_neuron_layers(
    counts: NDArray[np.integer], tags: Sequence[str], layers: Sequence[int], path: str | Path, *, subtitle: str = ""
) -> Path:
    """Draw how many key neurons every tag has in every layer.

    Parameters
    ----------
    counts : integer (tags, layers)
    tags, layers
        Their names.
    path
        File to write; PNG, SVG or PDF by its suffix.
    subtitle
        How they were chosen.

    Raises
    ------
    InputError
        When there is nothing to draw or too much, the suffix is unknown, or the folder does not exist.
    """
    path = check_path(path)
    _check(len(tags))
    names = [plain(tag) for tag in tags]
    width = max(6.4, 1.6 + text_inches(names, 8) + 0.21 * len(layers))
    with picture(
        path, width=width, height=1.4 + 0.22 * len(names), title="Layers of the key neurons of every tag", subtitle=subtitle
    ) as figure:
        axes = figure.add_subplot()
        image = axes.imshow(counts, aspect="auto", cmap=COLOURS, interpolation="nearest", vmin=0, vmax=max(1, counts.max()))
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        step = -(-len(layers) // 30)
        axes.set_xticks(np.arange(len(layers))[::step], [str(layer) for layer in layers[::step]])
        axes.set_yticks(np.arange(len(names)), names)
        axes.set_xlabel("layer")
        bar = figure.colorbar(image, ax=axes, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label("key neurons", fontsize=8)
    return path


def key_neuron_overlap(
    jaccard: Sequence[Sequence[float | None]], tags: Sequence[str], path: str | Path, *, subtitle: str = ""
) -> Path:
    """Draw the Jaccard overlap |A ∩ B| / |A ∪ B| of every two tags' key neurons.

    Parameters
    ----------
    jaccard
        (tags, tags), None for two empty sets. Colours span the pairs of different tags.
    tags, path, subtitle
        As for `key_neuron_layers`.

    Raises
    ------
    InputError
        As for `key_neuron_layers`.
    """
    path = check_path(path)
    _check(len(tags))
    values = np.array([[np.nan if value is None else value for value in line] for line in jaccard], dtype=np.float64)
    off = np.where(np.eye(len(tags), dtype=bool), np.nan, values)
    highest = float(np.nanmax(off)) if np.isfinite(off).any() else 0.0
    names = [plain(tag) for tag in tags]
    cell = 0.38 if len(names) <= _MOST_NUMBERS else 0.24
    side = 1.0 + text_inches(names, 8) + cell * len(names)
    with picture(
        path,
        width=max(5.2, side + 0.8),
        height=max(2.6, side - 0.2),
        title="Overlap of key neurons between tags",
        subtitle=subtitle,
        notes=["Jaccard index: neurons of both tags, as a share of those of either."],
    ) as figure:
        axes = figure.add_subplot()
        image = axes.imshow(off, cmap=COLOURS, interpolation="nearest", vmin=0, vmax=max(highest, 1e-12))
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xticks(np.arange(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(np.arange(len(names)), names)
        if len(names) <= _MOST_NUMBERS:
            for row, column in np.argwhere(np.isfinite(off)):
                value = off[row, column]
                colour = "black" if value > highest / 2 else "white"
                axes.text(column, row, f"{value:.2f}", color=colour, size=6.3, ha="center", va="center")
        bar = figure.colorbar(image, ax=axes, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label("Jaccard index", fontsize=8)
    return path


def intersections(sets: Mapping[str, set[tuple[int, int]]]) -> list[tuple[tuple[str, ...], int]]:
    """Count the members that are in exactly these sets: (names, members), most first; none that are empty."""
    found = []
    for size in range(1, len(sets) + 1):
        for names in combinations(sets, size):
            inside = set.intersection(*(sets[name] for name in names))
            outside = set().union(*(members for name, members in sets.items() if name not in names))
            if exactly := len(inside - outside):
                found.append((names, exactly))
    return sorted(found, key=lambda entry: -entry[1])


def key_neuron_upset(sets: Mapping[str, set[tuple[int, int]]], path: str | Path, *, subtitle: str = "") -> Path:
    """Draw how many neurons are in exactly which of the sets (UpSet, Lex et al. 2014): bars above a matrix of dots.

    Parameters
    ----------
    sets
        Tag → its (layer, neuron) pairs.
    path, subtitle
        As for `key_neuron_layers`.

    Raises
    ------
    InputError
        When there are fewer than two sets or more than six, all are empty, or as for `key_neuron_layers`.
    """
    path = check_path(path)
    bars = intersections(sets) if 2 <= len(sets) <= _MOST_SETS else []
    if not bars:
        raise InputError(f"intersections of {len(sets)} sets cannot be drawn: 2 to {_MOST_SETS} that are not empty can")
    names = list(sets)
    labels = [f"{plain(name)} ({len(sets[name]):,})" for name in names]
    across = np.arange(len(bars))
    with picture(
        path,
        width=max(5.2, 1.0 + text_inches(labels, 8) + 0.32 * len(bars)),
        height=2.4 + 0.22 * len(names),
        title="Key neurons of exactly these tags",
        subtitle=subtitle,
    ) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2.0, 0.22 * len(names)])
        count = [members for _, members in bars]
        above.bar(across, count, width=0.65, color=HIGHER)
        for place, members in enumerate(count):
            above.text(place, members, f"{members:,}", ha="center", va="bottom", size=7)
        above.set_ylabel("neurons")
        above.tick_params(axis="x", length=0, labelbottom=False)
        below.spines[:].set_visible(False)
        below.tick_params(length=0)
        below.set_yticks(np.arange(len(names)), labels)
        below.set_ylim(len(names) - 0.5, -0.5)
        below.set_xticks([])
        for place, (inside, _) in enumerate(bars):
            rows = [names.index(name) for name in inside]
            below.plot(np.full(len(names), place), np.arange(len(names)), "o", color="#DDDDDD", ms=5)
            below.plot([place] * 2, [min(rows), max(rows)], color=INK, lw=1.4)
            below.plot(np.full(len(rows), place), rows, "o", color=INK, ms=5)
    return path


def _check(tags: int) -> None:
    if not 1 <= tags <= _MOST_TAGS:
        raise InputError(f"key neurons of {tags} tags cannot be drawn: those of 1 to {_MOST_TAGS} can")
