"""What lesioned neurons are set to: nothing, their mean over the lake's ordinary tokens, or one given value."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from neuronlake.store.errors import InputError
from neuronlake.store.lake import Lake
from neuronlake.store.scan import Tile
from neuronlake.store.tables import PADDING, SPECIAL

KINDS = ("zero", "mean", "clamp")


def lesion_values(lake: Lake, kind: str, value: float | None, layers: Iterable[int]) -> dict[int, NDArray[np.float32]]:
    """Return what each neuron of each layer would be set to: layer → float32 (neurons,).

    Parameters
    ----------
    kind
        ``zero``, ``mean`` or ``clamp``.
    value
        For ``clamp``.

    Raises
    ------
    InputError
        When the kind is unknown, or a value is missing, not finite or without effect.
    """
    if kind not in KINDS:
        raise InputError(f"unknown kind of lesion {kind!r}: known are {', '.join(KINDS)}")
    if kind == "clamp" and (value is None or not np.isfinite(value)):
        raise InputError("a clamp needs the finite value to set neurons to: --value 0.5")
    if kind != "clamp" and value is not None:
        raise InputError(f"--value is for --do clamp, it means nothing to {kind}")
    chosen = sorted(set(layers))
    if kind == "mean":
        return mean_activations(lake, chosen)
    return {layer: np.full(lake.neurons, value or 0.0, dtype=np.float32) for layer in chosen}


def mean_activations(lake: Lake, layers: Iterable[int]) -> dict[int, NDArray[np.float32]]:
    """Mean of every neuron over all tokens that are neither special nor padding: from the lake's index, or by one scan.

    Returns
    -------
    layer → float32 (neurons,); summed in float64.
    """
    chosen = list(layers)
    sums = {layer: np.zeros(lake.neurons) for layer in chosen}
    covered = {block for segment in lake.index().segments for block in segment.blocks}
    if covered >= set(lake.blocks):
        rows = sum(int(segment.ordinary.sum()) for segment in lake.index().segments)
        for layer in chosen:
            for segment in lake.index().segments:
                # (neurons, blocks) -> (neurons,)
                sums[layer] += segment.arrays["sum"].read_part(lake.layers.index(layer)).sum(axis=-1)
    else:
        ordinary = (lake.tokens().column("flags").to_numpy() & (PADDING | SPECIAL)) == 0
        place = {block: number * lake.block_rows for number, block in enumerate(lake.blocks)}
        rows = int(np.count_nonzero(ordinary))

        def add(tile: Tile) -> tuple[int, int, NDArray[np.float64]]:
            first = place[tile.block]
            used = ordinary[first : first + len(tile.values)]
            return tile.layer, tile.first_neuron, tile.values[used].sum(axis=0, dtype=np.float64)

        for layer, first, total in lake.scan(add, layers=chosen):
            sums[layer][first : first + len(total)] += total
    return {layer: (total / max(rows, 1)).astype(np.float32) for layer, total in sums.items()}
