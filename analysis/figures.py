"""Pictures of statistics, drawn without a display."""

from pathlib import Path

import numpy as np
import xarray as xr

from neuronlake.analysis.rankers import get_ranker
from neuronlake.analysis.ranking import score
from neuronlake.store.errors import InputError

_SUFFIXES = (".png", ".svg", ".pdf")
_MAX_TAGS = 60  # more columns than this cannot be told apart


def layer_tag_heatmap(dataset: xr.Dataset, method: str, path: str | Path) -> Path:
    """Draw the best score of every layer × tag: where in the network is a tag told apart by a single neuron?

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
        When the method or the suffix is unknown, or there are more tags than can be drawn.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    if path.suffix.lower() not in _SUFFIXES:
        raise InputError(f"cannot draw to {path.name!r}: known suffixes are {', '.join(_SUFFIXES)}")
    scores = score(dataset, method)
    if scores.sizes["tag"] > _MAX_TAGS:
        raise InputError(f"{scores.sizes['tag']} tags are more than the {_MAX_TAGS} a heatmap can show")
    best = scores["score"].max("neuron").transpose("layer", "tag").to_numpy()  # (layers, tags)
    layers, tags = (scores[name].to_numpy() for name in ("layer", "tag"))
    size = (max(6.0, 2.4 + 0.5 * len(tags)), max(3.6, 2.4 + 0.24 * len(layers)))  # inches
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # cividis reads the same with every kind of colour vision; layer 0 at the bottom, as models are drawn.
    image = axes.imshow(best, aspect="auto", origin="lower", cmap="cividis", interpolation="nearest")
    axes.set_xticks(
        np.arange(len(tags)),
        [f"{tag} ({count:,})" for tag, count in zip(tags, scores["count"].to_numpy(), strict=True)],
        rotation=60,
        ha="right",
        rotation_mode="anchor",
    )
    step = -(-len(layers) // 40)
    axes.set_yticks(np.arange(len(layers))[::step], [str(layer) for layer in layers[::step]])
    by = dataset.attrs.get("by", "tag")
    axes.set_xlabel(f"{by} (labelled tokens)")
    axes.set_ylabel("layer")
    axes.set_title(f"Best single neuron of each layer: {method}")
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label(f"best score: {get_ranker(method).formula}", fontsize="small")
    # No date and no random identifiers: the same statistics give the same file.
    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower())
    with rc_context({"svg.hashsalt": "neuronlake"}):
        figure.savefig(path, metadata=metadata)
    return path
