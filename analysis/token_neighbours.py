"""Tokens whose activations are like a given token's."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from neuronlake.analysis.chosen_tokens import locate_rows
from neuronlake.analysis.execute import scan_all
from neuronlake.analysis.listings import TokenList
from neuronlake.analysis.queries import describe_lines
from neuronlake.analysis.sketch import ordinary_rows
from neuronlake.analysis.source import choose_layers
from neuronlake.analysis.token_vectors import Standard, VectorIndex, standard_of, vector_index
from neuronlake.store.errors import InputError
from neuronlake.store.lake import Lake
from neuronlake.store.scan import Tile
from neuronlake.store.tables import SPECIAL

INDEXED = 20_000
"""With fewer tokens in a layer everything is compared: an index would save nothing."""
CANDIDATES_EACH = 10
"""Tokens whose cosine is computed for every one that is wanted."""
_Progress = Callable[[int, int], None]


def similar_tokens(
    lake: Lake,
    row: int,
    layer: int,
    k: int = 10,
    *,
    exact: bool = False,
    labels: Sequence[str] = (),
    scheduler: Any = None,
    progress: _Progress = lambda done, total: None,
) -> TokenList:
    """Find the tokens whose activation vectors in a layer are most like one token's.

    The cosine of vectors whose entries are standardised over all ordinary tokens: else a few neurons with large values would
    decide alone. Candidates come from an index of the layer (`vector_index`), made when first asked for and kept in the
    lake; their cosines are then computed from the activations.

    Parameters
    ----------
    lake
        The lake.
    row
        Row of the token.
    layer
        Which layer.
    k
        Tokens wanted, besides the token itself.
    exact
        Compare with every token instead: a scan of the layer.
    labels
        Label columns to show.
    scheduler
        As for `compute_statistics`: where the layer is read.
    progress
        Called with (blocks indexed, blocks to index) when an index is made.

    Returns
    -------
    list of dict
        As of `top_tokens`, with ``similarity`` (the cosine) for ``value``; of equals the lower row first.

    Raises
    ------
    InputError
        When the row or layer does not exist, the row is special or padding, or `k` is below 1.
    """
    choose_layers(lake, [layer])
    (flags,) = (flags for _, flags in locate_rows(lake, [row]).values())
    if flags[0] & SPECIAL:
        raise InputError(f"row {row} is a special token: give the row of a token of the text (`top --json` shows rows)")
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    tokens = lake.plan.counts.get("tokens", 0)
    if exact or tokens < INDEXED:
        standard = standard_of(lake, layer, scheduler=scheduler)
        query = standard.unit(lake.read(layer=layer, rows=[row]))
        rows, cosines = nearest_of_all(lake, layer, standard, query[0], k + 1, scheduler=scheduler)
    else:
        index = vector_index(lake, layer, scheduler=scheduler, progress=progress)
        query = index.standard.unit(lake.read(layer=layer, rows=[row]))
        rows, cosines = nearest(lake, layer, index, query, CANDIDATES_EACH * k)
    if not query.any():
        raise InputError(f"row {row} of layer {layer} holds nothing but means: no token is like it")
    keep = rows != row
    order = np.lexsort((rows[keep], -cosines[keep]))[:k]
    rows, cosines = rows[keep][order], cosines[keep][order]
    lines = np.searchsorted(lake.blocks, rows // lake.block_rows) * lake.block_rows + rows % lake.block_rows
    found = describe_lines(lake, lines, cosines, labels)
    for entry in found:
        entry["similarity"] = entry.pop("value")
    return found


def nearest(
    lake: Lake, layer: int, index: VectorIndex, query: NDArray[np.float32], candidates: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Candidates of the index for one unit vector (1, neurons), and their cosines with it from the activations."""
    rows = index.search(query, candidates + 1)[0]
    rows = np.sort(rows[rows >= 0])
    unit = index.standard.unit(lake.read(layer=layer, rows=rows))
    return rows, unit @ query[0]


def nearest_of_all(
    lake: Lake, layer: int, standard: Standard, query: NDArray[np.float32], k: int, *, scheduler: Any = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k rows of largest cosine, and the cosines, of all ordinary tokens."""

    ordinary = {block: ordinary_rows(lake, block) for block in lake.blocks}

    def products(tile: Tile) -> tuple[int, NDArray[np.float32], NDArray[np.float32]]:
        here = slice(tile.first_neuron, tile.first_neuron + tile.values.shape[1])
        values = tile.values - standard.mean[here]  # what the kernel gets belongs to the scan
        values *= standard.inverse[here]
        return tile.block, values @ query[here], np.einsum("ij,ij->i", values, values)

    sums = {block: np.zeros((2, lake.block_rows)) for block in lake.blocks}
    with threadpool_limits(1, user_api="blas"):  # the scan keeps all cores busy
        for block, *parts in scan_all(lake, products, layers=[layer], blocks=lake.blocks, scheduler=scheduler):
            for total, part in zip(sums[block], parts, strict=True):
                total[: len(part)] += part
    rows = np.concatenate([block * lake.block_rows + inside for block, inside in ordinary.items()])
    dot, square = np.concatenate([sums[block][:, inside] for block, inside in ordinary.items()], axis=1)
    cosines = np.divide(dot, np.sqrt(square), out=np.zeros_like(dot), where=square > 0)
    few = np.argpartition(-cosines, min(k, len(cosines) - 1))[:k]
    few = np.flatnonzero(cosines >= cosines[few].min())  # ties too
    few = few[np.lexsort((rows[few], -cosines[few]))][:k]
    return rows[few], cosines[few].astype(np.float32)
