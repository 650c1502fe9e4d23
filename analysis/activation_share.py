"""The activation-only surrogate of attribution: how often a neuron is among the strongest of a token by what it writes."""

from typing import Any

import numpy as np
import xarray as xr

from neuronlake.analysis.execute import Progress
from neuronlake.analysis.labels import token_labels
from neuronlake.analysis.source import versions
from neuronlake.analysis.weights import weights_of
from neuronlake.store.errors import InputError
from neuronlake.store.lake import Lake
from neuronlake.store.layout import DEFAULT_SITE
from neuronlake.store.weights import NORMS

_DIMS = ("tag", "layer", "neuron")
_PIECE_BYTES = 1 << 28  # 256 MiB of activations at a time


def activation_hits(
    lake: Lake,
    by: str = "upos",
    *,
    share: float = 0.05,
    per_tag: int | None = 200,
    seed: int = 0,
    where: str | None = None,
    subword: str = "last",
    shift: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Count on how many tokens of every tag a neuron is among the strongest by |a|·‖w_out‖, over all layers of the token.

    ‖w_out‖ is the length of what one unit of activation writes to the residual stream. It needs no gradients, and says
    nothing of what the model predicts: a surrogate of ours, not the paper's method.

    Parameters
    ----------
    share
        Of the neurons of all layers; of equal values at the edge all are hits, zeros never.
    per_tag
        Tokens per tag, drawn at random with `seed`, a tag's draw whatever the other tags; None takes all.
    where, subword, shift
        See `token_labels`. With ``shift=1`` the tag is that of the next word, as it is for attributions.
    progress
        Called with (blocks done, blocks in all).

    Returns
    -------
    xarray.Dataset
        ``hits`` uint32 (tag, layer, neuron) and ``samples`` int64 (tag).

    Raises
    ------
    InputError
        When the lake holds no weights of its model, or see `token_labels`.
    """
    if not 0 < share < 1:
        raise InputError(f"share must be between 0 and 1, got {share}")
    if per_tag is not None and per_tag < 1:
        raise InputError(f"per_tag must be at least 1, got {per_tag}")
    lake = lake.at(DEFAULT_SITE)
    weights = weights_of(lake)
    labels = token_labels(lake, by, where=where, subword=subword, shift=shift, min_tokens=1)
    chosen = np.full(labels.codes.shape, -1, dtype=np.int16)
    for place, tag in enumerate(labels.tags):
        rows = np.flatnonzero(labels.codes == place)
        if per_tag is not None and per_tag < len(rows):
            rows = np.random.default_rng([seed, *tag.encode()]).choice(rows, size=per_tag, replace=False)
        chosen[rows] = place
    # (layers, neurons), in the order of the lake
    norms = np.stack([weights.layer(NORMS, place) for place in range(len(lake.layers))]).astype(np.float32)
    hits = np.zeros((len(labels.tags), *norms.shape), dtype=np.uint32)
    strongest = max(1, round(share * norms.size))
    piece = max(1, _PIECE_BYTES // (norms.size * 4))
    for done, block in enumerate(lake.blocks):
        if progress is not None:
            progress(done, len(lake.blocks))
        codes = chosen[done * lake.block_rows : (done + 1) * lake.block_rows]
        every = np.flatnonzero(codes >= 0)
        for first in range(0, len(every), piece):
            rows = every[first : first + piece]
            values = np.empty((len(rows), *norms.shape), dtype=np.float32)
            for place, layer in enumerate(lake.layers):
                read = lake.read_block(layer=layer, block=block, rows=rows)
                np.multiply(np.abs(read), norms[place], out=values[:, place])
            flat = values.reshape(len(rows), -1)
            edge = np.partition(flat, -strongest, axis=1)[:, -strongest, None, None]
            hit = (values >= edge) & (values > 0)
            for tag in np.unique(codes[rows]):
                hits[tag] += hit[codes[rows] == tag].sum(axis=0, dtype=np.uint32)
    if progress is not None:
        progress(len(lake.blocks), len(lake.blocks))
    attributes: dict[str, Any] = {
        "lake": lake.fingerprint, "by": labels.by, "where": where, "subword": subword, "shift": shift, "share": share,
        "per_tag": per_tag, "seed": seed, "strongest": strongest, "versions": versions(),
    }  # fmt: skip
    return xr.Dataset(
        {
            "hits": (_DIMS, hits, {"long_name": "tokens that hit the neuron", "units": "tokens"}),
            "samples": ("tag", np.bincount(chosen[chosen >= 0], minlength=len(labels.tags)).astype(np.int64)),
        },
        coords={"tag": list(labels.tags), "layer": list(lake.layers), "neuron": np.arange(norms.shape[1])},
        attrs=attributes,
    )
