"""Feature textualization from the store alone: a neuron as a vector in the space of input embeddings, named by its words."""

from typing import Any

import numpy as np

from neuronlake.analysis.queries import find_top
from neuronlake.analysis.weights import weights_of
from neuronlake.store.errors import InputError
from neuronlake.store.lake import Lake
from neuronlake.store.weights import Weights

ACTIVATIONS = 100
"""Tokens that the vector is made of, unless chosen."""


def textualize(
    lake: Lake,
    layer: int,
    neuron: int,
    k: int = 10,
    *,
    activations: int = ACTIVATIONS,
    bottom: bool = False,
    weights: Weights | None = None,
) -> list[dict[str, Any]]:
    """Tokens whose input embeddings lie nearest to the sum of those that activate a neuron, weighted by how much.

    v = Σ_t |a_t|·E[token_t] over the tokens of the neuron's highest positive (or lowest negative) activations a_t; the
    answer is the tokens of largest cosine between v and E[token]. After Baeumel et al. (2023), "Investigating the encoding
    of words in BERT's neurons using feature textualization" (arXiv 2311.08240), who find a vector in the space of word
    embeddings by gradients; this form needs none.

    Parameters
    ----------
    lake
        With weights and embeddings, see `neuronlake weights`.
    layer, neuron
        Which neuron.
    k
        Tokens wanted.
    activations
        How many of the highest activations count, special tokens apart.
    bottom
        The lowest activations instead.
    weights
        Of `weights_of`, where they are open already.

    Returns
    -------
    list of dict
        token, id, cosine; nearest first. Empty where no activation has that sign.

    Raises
    ------
    InputError
        When the neuron does not exist, the lake holds no weights, or these have no embeddings (of models whose embeddings
        exceed 1 GiB).
    DamageError
        When the stored weights are damaged.
    """
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    found = find_top(lake, layer, neuron, activations, bottom=bottom)
    weights = weights or weights_of(lake)
    if not weights.embedded:
        raise InputError(f"{lake.path} has its model's weights without the input embeddings, which take more than 1 GiB")
    ids = np.array(sorted(weights.tokens), dtype=np.int64)
    table = weights.embeddings[ids]
    used = found.values < 0 if bottom else found.values > 0
    if not used.any():
        return []
    activating = lake.tokens().column("token_id").to_numpy()[found.lines[used]]
    place = np.searchsorted(ids, activating)
    vector = np.abs(found.values[used]).astype(np.float64) @ table[place]
    norms = np.sqrt(np.einsum("tw,tw->t", table, table)) * np.linalg.norm(vector)
    cosines = np.divide(table @ vector.astype(np.float32), norms, out=np.zeros(len(ids)), where=norms > 0)
    nearest = np.argsort(-cosines, kind="stable")[:k]
    return [{"token": weights.tokens[int(ids[at])], "id": int(ids[at]), "cosine": float(cosines[at])} for at in nearest]
