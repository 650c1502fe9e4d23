"""Which neurons fire: on one token, and on some tokens more than on the others.

The index lists the neurons of largest magnitude on every token, so that one token needs no activation, and neither does
counting in how many tokens a neuron is among them, or in what share of all tokens. How unusual a mean is needs the mean and
standard deviation over all tokens: of those that belong to a word, which is what kept statistics cover (`compute_statistics`
of one tag for all). They take one pass over the lake, once.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.chosen_rows import ChosenRows
from neuronlake.analysis.chosen_tokens import locate_rows
from neuronlake.analysis.execute import Parts, Progress, run_in_order
from neuronlake.analysis.neuron import neuron_name
from neuronlake.analysis.source import choose_layers
from neuronlake.analysis.statistics import compute_statistics
from neuronlake.store.errors import DamageError, InputError
from neuronlake.store.index import index_block
from neuronlake.store.lake import Lake
from neuronlake.store.parallel import map_ordered
from neuronlake.store.token_kernels import STRONGEST

SCORES = ("difference", "hits")
EVERY_WORD = "'every word'"
"""An SQL label that is the same for all words: its statistics are those of all tokens of words."""
_ROWS = 1024  # tokens whose strongest neurons are looked for at a time: 1,024 × 1,536 neurons of a layer are 6 MB


def strongest_neurons(lake: Lake, row: int, k: int = 20, *, layers: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """The neurons of largest magnitude on one token.

    Exact. From the index alone if it covers the token's block, `layers` is None and `k` is at most 32; otherwise the token's
    activations are read.

    Parameters
    ----------
    row
        Global row of the token; a special token's too.
    k
        Neurons wanted; fewer come back when there are fewer.
    layers
        Of these layers only.

    Returns
    -------
    list of dict
        name, layer, neuron, value: largest magnitude first, of equal ones the lower layer and neuron.

    Raises
    ------
    InputError
        When there is no such row or layer, or `k` is below 1.
    """
    chosen = choose_layers(lake, layers)
    check_k(k)
    ((block, (inside, _)),) = locate_rows(lake, [row]).items()
    listed = lake.index().strongest(block, int(inside[0])) if layers is None and k <= STRONGEST else None
    if listed is not None:
        neurons, values = (array[:k] for array in listed)
        # special tokens have no list, and one of few neurons has an end
        if not np.any(neurons >= len(lake.layers) * lake.neurons):
            return [_named(lake.layers, lake.neurons, int(n), value=float(v)) for n, v in zip(neurons, values, strict=True)]
    flat = np.concatenate([lake.read(layer=layer, rows=[row])[0] for layer in chosen])
    best = np.argsort(-np.abs(flat), kind="stable")[:k]
    return [_named(chosen, lake.neurons, int(place), value=float(flat[place])) for place in best]


def firing_neurons(
    lake: Lake,
    tokens: ChosenRows,
    k: int = 20,
    *,
    score: str = "difference",
    layers: Sequence[int] | None = None,
    keep: bool = True,
    scheduler: Any = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """The neurons that fire on some tokens: more (or less) than on others, or most often among the strongest.

    Parameters
    ----------
    tokens
        Of `choose_tokens`.
    k
        Neurons wanted; fewer come back when there are fewer.
    score
        ``"difference"``: by |d|, d = (mean over the tokens − mean over all) / standard deviation over all, where all are the
        tokens of the lake that belong to one word, the chosen ones among them (no special tokens, white space, or tokens of
        several words). In float64 from the stored values, exact. It compares tokens of one lake, it tests nothing: times √n
        it would be a z if the n tokens were drawn independently, which tokens of a text are not. Neurons that are the same
        on all tokens have no d and are left out.

        ``"hits"``: by share − share_all, the share of the tokens on which a neuron is among the 32 of largest magnitude of
        all layers (of equal magnitudes the lower layer and neuron), less the same share of all tokens but special ones;
        without that, the neurons come first that are large on whatever token. Equal ones are ordered by layer and neuron;
        those with no hit are left out. From the index; blocks that lack one are read, and special tokens.
    layers
        Of these layers only.
    keep
        Keep the statistics of all tokens in the lake and use those that are kept; of ``"difference"``.
    scheduler
        As for `compute_statistics`; of ``"difference"``.
    progress
        Called with (pieces done, pieces in all) while the statistics of all tokens are computed.

    Returns
    -------
    list of dict
        name, layer, neuron, mean over the tokens, and difference, mean_all, deviation_all; or hits, share, share_all.

    Raises
    ------
    InputError
        When the score or a layer is unknown, `k` is below 1, or the lake has no two tokens of words to compare with.
    """
    chosen = choose_layers(lake, layers)
    check_k(k)
    if score not in SCORES:
        raise InputError(f"unknown score {score!r}: known are {', '.join(SCORES)}")
    if score == "hits":
        return _by_hits(lake, tokens, k, chosen)
    statistics = compute_statistics(
        lake, EVERY_WORD, subword="all", basic=True, folds=1, keep=keep, scheduler=scheduler, progress=progress
    ).isel(tag=0).sel(layer=list(chosen))  # fmt: skip
    mean_all = statistics["mean"].to_numpy().ravel()
    deviation = np.sqrt(statistics["variance"].to_numpy()).ravel()
    mean = _means(lake, tokens, chosen, scheduler)
    varies = np.flatnonzero(deviation > 0)
    difference = (mean[varies] - mean_all[varies]) / deviation[varies]
    order = np.argsort(-np.abs(difference), kind="stable")[:k]
    return [
        _named(
            chosen,
            lake.neurons,
            int(place),
            difference=float(d),
            mean=float(mean[place]),
            mean_all=float(mean_all[place]),
            deviation_all=float(deviation[place]),
        )
        for place, d in zip(varies[order], difference[order], strict=True)
    ]


def _by_hits(lake: Lake, tokens: ChosenRows, k: int, layers: tuple[int, ...]) -> list[dict[str, Any]]:
    hits, share_all = (
        counted.reshape(len(lake.layers), lake.neurons)[[lake.layers.index(layer) for layer in layers]].ravel()
        for counted in _hits(lake, tokens)
    )
    share = hits / tokens.count
    order = np.argsort(share_all - share, kind="stable")
    order = order[hits[order] > 0][:k]
    mean: dict[int, float] = {}
    for layer in np.unique(order // lake.neurons):
        places = order[order // lake.neurons == layer]
        values = lake.read(layer=layers[layer], rows=tokens.rows, neurons=places % lake.neurons)
        mean |= zip(places.tolist(), values.mean(axis=0, dtype=np.float64).tolist(), strict=True)
    return [
        _named(
            layers,
            lake.neurons,
            place,
            hits=int(hits[place]),
            share=float(share[place]),
            share_all=float(share_all[place]),
            mean=mean[place],
        )
        for place in order.tolist()
    ]


def _means(lake: Lake, tokens: ChosenRows, layers: tuple[int, ...], scheduler: Any) -> NDArray[np.float64]:
    """Mean of every neuron over some tokens, (layers × neurons,)."""

    def total(layer: int, block: int) -> NDArray[np.float64]:
        rows = block * lake.block_rows + tokens.blocks[block]
        found: NDArray[np.float64] = lake.read(layer=layer, rows=rows).sum(axis=0, dtype=np.float64)
        return found

    wanted = [{"layer": layer, "block": block} for layer in layers for block in sorted(tokens.blocks)]
    parts = Parts.of_blocks(lake, [where["block"] for where in wanted])
    sums = np.zeros((len(layers), lake.neurons))
    for where, found in zip(wanted, run_in_order(total, wanted, parts=parts, scheduler=scheduler), strict=True):
        sums[layers.index(where["layer"])] += found
    return sums.ravel() / tokens.count


def _hits(lake: Lake, tokens: ChosenRows) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """In how many of the tokens, and in what share of all, each neuron is among the strongest, (layers × neurons,) each."""
    total = len(lake.layers) * lake.neurons

    def count(block: int) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        listed = _listed(lake, block)
        rows = tokens.blocks.get(block, np.empty(0, dtype=np.int64))
        special = rows[listed[rows, 0] >= total]  # special tokens are in no list
        unlisted = [
            _strongest_places(lake, special[first : first + _ROWS] + block * lake.block_rows).ravel()
            for first in range(0, len(special), _ROWS)
        ]
        chosen = np.concatenate([listed[rows].ravel(), *unlisted])
        ordinary = int(np.count_nonzero(listed[:, 0] < total))
        return _counts(chosen, total), _counts(listed.ravel(), total), ordinary

    hits, hits_all, tokens_all = np.zeros(total, dtype=np.int64), np.zeros(total, dtype=np.int64), 0
    for here, of_block, ordinary in map_ordered(count, lake.blocks):
        hits += here
        hits_all += of_block
        tokens_all += ordinary
    return hits, hits_all / max(1, tokens_all)


def _counts(neurons: NDArray[Any], total: int) -> NDArray[np.int64]:
    found: NDArray[np.int64] = np.bincount(neurons[neurons < total], minlength=total)
    return found


def _listed(lake: Lake, block: int) -> NDArray[np.uint32]:
    """Neurons of the lists of a block's tokens, (block rows, STRONGEST); made anew where the index lacks them."""
    for segment in lake.index().segments:
        if block in segment.blocks:
            try:
                return segment.arrays["tokens/neurons"].read_part(segment.blocks.index(block))
            except DamageError:
                break
    made: NDArray[np.uint32] = index_block(lake, block)[lake.site].arrays["tokens/neurons"]
    return made


def _strongest_places(lake: Lake, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The STRONGEST neurons of some tokens of one block, counted through all layers, (tokens, STRONGEST) or fewer."""
    size = np.empty((len(rows), 0), dtype=np.float32)
    places = np.empty((len(rows), 0), dtype=np.int64)
    for position, layer in enumerate(lake.layers):
        found = np.abs(lake.read(layer=layer, rows=rows))
        numbers = np.broadcast_to(position * lake.neurons + np.arange(lake.neurons), found.shape)
        size, places = np.concatenate([size, found], axis=1), np.concatenate([places, numbers], axis=1)
        # neurons come in ascending order: a stable sort leaves the lower one first
        best = np.argsort(-size, axis=1, kind="stable")[:, :STRONGEST]
        size, places = np.take_along_axis(size, best, axis=1), np.take_along_axis(places, best, axis=1)
    return places


def _named(layers: Sequence[int], neurons: int, place: int, **scores: Any) -> dict[str, Any]:
    layer, neuron = layers[place // neurons], place % neurons
    return {"name": neuron_name(layer, neuron), "layer": layer, "neuron": neuron, **scores}


def check_k(k: int) -> None:
    """Raise InputError unless at least one neuron is asked for."""
    if k < 1:
        raise InputError(f"the number of neurons must be at least 1, got {k}")
