"""What a neuron writes: its output vector and how that reads in the vocabulary, from what `neuronlake weights` stored."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.neuron import check_neuron
from neuronlake.analysis.source import choose_layers
from neuronlake.store.errors import InputError
from neuronlake.store.lake import Lake
from neuronlake.store.layout import DEFAULT_SITE
from neuronlake.store.parallel import map_ordered
from neuronlake.store.weights import ENDS, MOMENTS, VECTORS, Weights, open_weights

MARKED_KURTOSIS = 10.0
"""Above it a neuron is about few tokens: the bound of Gurnee et al. (2024), "Universal neurons in GPT2 language models"."""


def output_vectors(lake: Lake, layer: int | None = None) -> NDArray[np.float32]:
    """What one unit of each neuron's activation adds to the residual stream: the columns of the down projection.

    In models with a norm after the MLP (Gemma 2 and 3, OLMo 2), times that norm's gain; what is added is this divided by the
    root mean square of the layer's whole output.

    Parameters
    ----------
    lake
        With weights, see `neuronlake weights`.
    layer
        One layer; None means all that are stored.

    Returns
    -------
    float32 (neurons, width), or (layers, neurons, width); rounded to float16 when they were stored

    Raises
    ------
    InputError
        When the lake holds no weights, or not that layer, or is at another site than the MLPs' neurons.
    DamageError
        When the stored weights are damaged.
    """
    _check_site(lake)
    layers = choose_layers(lake, None if layer is None else [layer])
    weights = weights_of(lake)
    places = [lake.layers.index(each) for each in layers]
    if layer is not None:
        return weights.layer(VECTORS, places[0]).astype(np.float32)
    found = np.empty((len(places), lake.neurons, int(weights.record["width"])), dtype=np.float32)

    def read(at: int) -> None:
        found[at] = weights.layer(VECTORS, places[at])

    for _ in map_ordered(read, range(len(places))):
        pass
    return found


def vocabulary(lake: Lake, layer: int, neuron: int, k: int = 20, *, weights: Weights | None = None) -> dict[str, Any]:
    """Read a neuron's output vector in the vocabulary: the tokens whose logits it raises and lowers most.

    The cosine of w (`output_vectors`) with γ ⊙ W_U[token] minus the mean of γ ⊙ W_U over the vocabulary, γ the final norm's
    gain: a constant added to all logits changes no probability. The moments over the vocabulary are those of Gurnee et al.
    (2024), "Universal neurons in GPT2 language models": a kurtosis above 10 marks neurons that promote few tokens when the
    activation is positive (``prediction``, positive skewness) or suppress them (``suppression``, negative). In gated MLPs
    activations have both signs, and a negative one exchanges the two.

    Parameters
    ----------
    lake
        With weights, see `neuronlake weights`.
    layer, neuron
        Which neuron.
    k
        Tokens of either end, 20 at most.
    weights
        Of `weights_of`, where they are open already.

    Returns
    -------
    dict
        top and bottom (each a list of token, id, cosine, the strongest first), mean, variance, skewness, kurtosis (3 for a
        normal distribution; both None where all cosines are equal), role (``prediction``, ``suppression`` or None),
        tokens (in the vocabulary).

    Raises
    ------
    InputError
        When the neuron does not exist, the lake holds no weights or is at another site than the MLPs' neurons, or `k` is
        out of range.
    DamageError
        When the stored weights are damaged.
    """
    _check_site(lake)
    check_neuron(lake, layer, neuron)
    weights, place = weights or weights_of(lake), lake.layers.index(layer)
    if not 1 <= k <= weights.listed:
        raise InputError(f"k must be from 1 to {weights.listed}, the tokens stored of every neuron, got {k}")
    found: dict[str, Any] = {}
    for end in ENDS:
        names = (f"vocabulary/{end}_{kind}" for kind in ("ids", "cosines"))
        ids, cosines = (weights.neuron(name, place, neuron)[:k].tolist() for name in names)
        found[end] = [
            {"token": weights.tokens[number], "id": number, "cosine": cosine}
            for number, cosine in zip(ids, cosines, strict=True)
        ]
    moments = {name: float(weights.neuron(f"vocabulary/{name}", place, neuron)) for name in MOMENTS}
    if moments["variance"] == 0:
        return {**found, **moments, "skewness": None, "kurtosis": None, "role": None, "tokens": len(weights.tokens)}
    role = "prediction" if moments["skewness"] > 0 else "suppression"
    marked = moments["kurtosis"] > MARKED_KURTOSIS
    return {**found, **moments, "role": role if marked else None, "tokens": len(weights.tokens)}


def weights_of(lake: Lake) -> Weights:
    """Return the weights of the lake's model; raises as `vocabulary` does where there are none."""
    return open_weights(lake.path, lake.spec.model.get("sha256"))


def _check_site(lake: Lake) -> None:
    if lake.site != DEFAULT_SITE:
        raise InputError(f"output vectors are of the neurons at {DEFAULT_SITE}: the units at {lake.site} have none")
