"""A neuron's page, from kept statistics and the index: no activation is read where the index covers the lake."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.chosen_tokens import eligible_tokens, locate_rows
from neuronlake.analysis.densities import Densities, tag_densities
from neuronlake.analysis.explorer.contexts import Context, contexts, sentence_of
from neuronlake.analysis.explorer.shelf import NotKeptError, Opened
from neuronlake.analysis.extremes import Extremes, find_extremes
from neuronlake.analysis.neuron import check_neuron, neuron_name
from neuronlake.analysis.ranking import score
from neuronlake.analysis.weights import vocabulary, weights_of
from neuronlake.store.errors import DamageError, InputError
from neuronlake.store.lake import Lake
from neuronlake.store.layout import DEFAULT_SITE

SHOWN = 12
MOST = 200


def neuron_page(
    opened: Opened, layer: int, neuron: int, by: str | None, *, k: int = SHOWN, tag: str | None = None
) -> dict[str, Any]:
    """Gather the page's data.

    Parameters
    ----------
    k
        Contexts of each end.
    tag
        Only tokens of words with that tag.

    Returns
    -------
    dict
        name, layer, neuron, site, by, labels, profile (see `profile_of`; None, with ``profile_why``, where no statistics are
        kept), densities (see `_curves`; None likewise), top and bottom (`Context`), limit (magnitude
        of the darkest shade), cost (blocks and bytes of activations that were read), indexed (blocks covered by the index),
        vocabulary (None where the lake holds no weights).

    Raises
    ------
    InputError
        When the neuron, the label or the tag does not exist, or `k` is out of range.
    """
    lake = opened.lake
    check_neuron(lake, layer, neuron)
    if not 1 <= k <= MOST:
        raise InputError(f"between 1 and {MOST} contexts can be shown, got {k}")
    why = None
    profile: list[dict[str, Any]] | None = None
    densities: dict[str, Any] | None = None
    try:
        by = opened.label(by)
        profile = profile_of(opened, layer, neuron, by)
        if (found := tag_densities(lake, layer, neuron, by)) is not None:
            densities = _curves(found, [entry["tag"] for entry in profile])
    except NotKeptError as error:
        why = str(error)
    eligible = None if not tag else eligible_tokens(lake, (by or "upos", tag), special=False)
    ends = {bottom: find_extremes(lake, layer, neuron, k, bottom=bottom, eligible=eligible) for bottom in (False, True)}
    known = _known(lake, layer, neuron, list(ends.values()))
    limit = max((abs(float(value)) for end in ends.values() for value in end.values), default=0.0)
    labels = (by,) if by in lake.label_columns else ()

    def shown(end: Extremes) -> list[Context]:
        return contexts(lake, _rows(lake, end.lines), end.values, known, labels, limit=limit)

    return {
        "name": neuron_name(layer, neuron),
        "layer": layer,
        "neuron": neuron,
        "neurons": lake.neurons,
        "layers": lake.layers,
        "site": lake.site,
        "by": by,
        "labels": opened.labels,
        "tag": tag,
        "k": k,
        "profile": profile,
        "profile_why": why,
        "densities": densities,
        "top": shown(ends[False]),
        "bottom": shown(ends[True]),
        "limit": limit,
        "cost": {
            "blocks": len({*ends[False].blocks_read, *ends[True].blocks_read}),
            "bytes": ends[False].bytes_read + ends[True].bytes_read,
        },
        "indexed": len(lake.index().blocks),
        "blocks": len(lake.blocks),
        "vocabulary": _vocabulary(lake, layer, neuron),
    }


def profile_of(opened: Opened, layer: int, neuron: int, by: str) -> list[dict[str, Any]]:
    """Return a neuron's statistics for every tag, the tag that it tells best from the others first.

    Returns
    -------
    list of dict
        tag, count, mean, deviation, fraction_active, auroc, auroc_error, cohen_d, q (of AUROC, among all neurons × tags).
    """
    here = {"layer": layer, "neuron": neuron}
    statistics = opened.statistics(by)
    own = statistics.sel(here)
    effect = score(statistics.sel(layer=[layer], neuron=[neuron]), "cohen_d")["cohen_d"].to_numpy().ravel()
    q = opened.scores(by, "auroc")["q"].sel(here).to_numpy()
    entries = [
        {
            "tag": str(tag),
            "count": int(own["count"][at]),
            "mean": float(own["mean"][at]),
            "deviation": float(np.sqrt(own["variance"][at])),
            "fraction_active": float(own["fraction_active"][at]),
            "auroc": float(own["auroc"][at]),
            "auroc_error": float(own["auroc_error"][at]),
            "cohen_d": float(effect[at]),
            "q": float(q[at]),
        }
        for at, tag in enumerate(statistics["tag"].to_numpy())
    ]
    return sorted(entries, key=lambda entry: (-abs(entry["auroc"] - 0.5), entry["tag"]))


def shaded(opened: Opened, layer: int, neuron: int, rows: list[int], by: str | None, limit: float) -> list[Context]:
    """Return contexts with the activation of every one of their tokens, which are read from the lake.

    Raises
    ------
    InputError
        When the neuron or a row does not exist, or there are too many rows.
    """
    lake = opened.lake
    check_neuron(lake, layer, neuron)
    if len(rows) > 2 * MOST:
        raise InputError(f"at most {2 * MOST} contexts can be shown, got {len(rows)}")
    locate_rows(lake, rows)
    labels = (by,) if by in lake.label_columns else ()
    tokens = sorted({token["row"] for row in rows for token in sentence_of(lake, row, labels)[0]})
    values = lake.read(layer=layer, rows=tokens, neurons=[neuron])[:, 0]
    known = dict(zip(tokens, values.tolist(), strict=True))
    chosen = np.array(rows, dtype=np.int64)
    return contexts(lake, chosen, np.array([known[row] for row in rows], dtype=np.float32), known, labels, limit=limit)


def _known(lake: Lake, layer: int, neuron: int, ends: list[Extremes]) -> dict[int, float]:
    """Activations that the index or a chunk has told: row → value."""
    known: dict[int, float] = {}
    for bottom in (False, True):
        found = lake.index().extremes(lake.layers.index(layer), neuron, bottom=bottom)
        listed = (
            np.arange(found.rows.shape[1]) < found.ordinary[:, None] if found.rows.size else np.empty((0, 0), dtype=bool)
        )
        rows = found.blocks[:, None] * lake.block_rows + found.rows
        known |= dict(zip(rows[listed].tolist(), found.values[listed].tolist(), strict=True))
    for end in ends:
        known |= dict(zip(_rows(lake, end.lines).tolist(), end.values.tolist(), strict=True))
    return known


def _rows(lake: Lake, lines: NDArray[np.int64]) -> NDArray[np.int64]:
    """Global rows of lines of the token table."""
    blocks = np.array(lake.blocks, dtype=np.int64)
    return blocks[lines // lake.block_rows] * lake.block_rows + lines % lake.block_rows


def _curves(found: Densities, order: list[str]) -> dict[str, Any]:
    """Return what is drawn.

    Returns
    -------
    dict
        rows (tag, count, heights, of which each row's largest is 1) in the profile's order; edges of the bins, which are
        drawn equally wide; zero: where it lies among them, as a share of the width, None beyond the ends.
    """
    rows = {
        tag: {"tag": tag, "count": int(count), "heights": (share / share.max()).tolist()}
        for tag, count, share in zip(found.tags, found.count, found.share, strict=True)
    }
    edges, bins = found.edges, len(found.edges) - 1
    zero = float(np.interp(0.0, edges, np.arange(bins + 1))) / bins if edges[0] <= 0 <= edges[-1] else None
    return {"rows": [rows[tag] for tag in order if tag in rows], "edges": edges.tolist(), "zero": zero}


def _vocabulary(lake: Lake, layer: int, neuron: int) -> dict[str, Any] | None:
    if lake.site != DEFAULT_SITE:
        return None
    try:
        weights = weights_of(lake)
    except (InputError, DamageError):
        return None
    return vocabulary(lake, layer, neuron, min(12, weights.listed), weights=weights)
