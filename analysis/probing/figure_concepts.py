"""Picture of concepts: how well every tag is told from all other words in every layer, by a direction and by a region."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neuronlake.analysis.figure_style import COLOURS, check_path, picture, plain, text_inches
from neuronlake.store.errors import InputError

_WIDEST = 30  # layers whose numbers fit below the axis


def concepts_by_layer(records: Sequence[Mapping[str, Any]], path: str | Path, *, subtitle: str = "") -> Path:
    """Draw balanced accuracy by layer and tag: of CAV, a direction; and what CAR, a region, adds.

    Parameters
    ----------
    records
        Each with concept, layer, classifier (``cav`` or ``car``) and balanced_accuracy. A tag that was not tried in a layer
        leaves its cell empty.
    path
        File to write; PNG, SVG or PDF by its suffix.
    subtitle
        On which neurons.

    Raises
    ------
    InputError
        When there are no records, the suffix is unknown, or the folder does not exist.
    """
    path = check_path(path)
    if not records:
        raise InputError("no concept to draw")
    tags = list(dict.fromkeys(each["concept"] for each in records))
    layers = sorted({each["layer"] for each in records})
    found = {kind: np.full((len(tags), len(layers)), np.nan) for kind in ("cav", "car")}
    for each in records:
        found[each["classifier"]][tags.index(each["concept"]), layers.index(each["layer"])] = each["balanced_accuracy"]
    gain = found["car"] - found["cav"]
    most = max(0.01, float(np.nanmax(np.abs(gain)))) if np.isfinite(gain).any() else 0.01
    names = [plain(tag) for tag in tags]
    width = max(6.4, 1.6 + text_inches(names, 8) + 0.21 * len(layers))
    with picture(
        path,
        width=width,
        height=2 * (0.9 + 0.2 * len(names)),
        title="Concepts: a direction or a region?",
        subtitle=subtitle,
        notes=["Balanced accuracy, 0.5 by chance, of a tag against all other words. Hatched: no key neuron in the layer."],
    ) as figure:
        direction, region = figure.subplots(2, 1, sharex=True)
        for axes, values, limits, colours, label in (
            (direction, found["cav"], (0.5, 1.0), COLOURS, "CAV (direction)"),
            (region, gain, (-most, most), "RdBu", "CAR − CAV"),
        ):
            image = axes.imshow(values, aspect="auto", cmap=colours, interpolation="nearest", vmin=limits[0], vmax=limits[1])
            axes.patch.set(hatch="////", edgecolor="#999999")  # shows where there is no value: white is a difference of 0
            axes.spines[:].set_visible(False)
            axes.tick_params(length=0)
            axes.set_yticks(np.arange(len(names)), names)
            below = bool(np.nanmin(values, initial=np.inf) < limits[0])
            bar = figure.colorbar(image, ax=axes, pad=0.02, extend="min" if below else "neither")
            bar.outline.set_visible(False)
            bar.set_label(label, fontsize=8)
        step = -(-len(layers) // _WIDEST)
        region.set_xticks(np.arange(len(layers))[::step], [str(layer) for layer in layers[::step]])
        region.set_xlabel("layer")
    return path
