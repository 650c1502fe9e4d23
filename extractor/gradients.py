"""Attributions of a prediction to neurons, of a batch of positions at once: integrated gradients, gradient × activation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from neuronlake.extractor.attributing import AttributionModel, Clean
from neuronlake.store.errors import InputError

if TYPE_CHECKING:
    import torch

METHODS = ("ig", "gradient")
RULES = ("gauss", "riemann")
QUANTITIES = ("log_probability", "probability")


@dataclass(frozen=True, kw_only=True)
class Attributions:
    """What a batch of positions gave. Arrays are in the order of the chosen positions that are real."""

    values: NDArray[np.float32]
    """(positions, layers, neurons)."""
    log_probability: NDArray[np.float64]
    """Of the tokens that follow, (positions,)."""
    effect: NDArray[np.float64]
    """f(a) − f(with the layer's neurons at zero), (positions, layers); of gradients NaN."""


def quadrature(rule: str, steps: int) -> tuple[Sequence[float], Sequence[float]]:
    """Nodes α in (0, 1] and weights of a rule for ∫₀¹.

    ``gauss``: Gauss–Legendre, exact for polynomials of degree 2·steps − 1. ``riemann``: α = k/steps, k = 1 … steps, the sum of
    Dai et al. 2022, Knowledge neurons in pretrained transformers.

    Raises
    ------
    InputError
        When the rule is unknown or there are no steps.
    """
    if rule not in RULES:
        raise InputError(f"unknown rule {rule!r}: known are {', '.join(RULES)}")
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}")
    if rule == "riemann":
        return [step / steps for step in range(1, steps + 1)], [1 / steps] * steps
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()


def integrated_gradients(
    model: AttributionModel,
    clean: Clean,
    real: "torch.Tensor",
    *,
    rule: str,
    steps: int,
    quantity: str = "log_probability",
) -> Attributions:
    """Integrated gradients (Sundararajan et al. 2017) of every layer's neurons, layer by layer as in Dai et al. 2022.

        IG_i(l) = a_i · ∫₀¹ ∂f(α·a(l)) / ∂a_i dα,        Σ_i IG_i(l) = f(a) − f(layer l's neurons at zero)

    with a(l) the neurons of layer l at the position, those of later layers responding and all of earlier layers clean. The
    baseline is zero.

    Parameters
    ----------
    clean
        Of the batch.
    real : bool (sequences, chosen)
        Which chosen positions are real; the others are padding.
    rule, steps
        See `quadrature`.
    quantity
        f: the ``log_probability`` of the token that follows, or its ``probability``.
    """
    import torch

    nodes, weights = quadrature(rule, steps)
    with torch.no_grad():
        log_probability = model.log_probability(clean, layer=model.layers)
        here = _quantity(log_probability, quantity)
    values = np.empty((int(real.sum()), model.layers, model.neurons), dtype=np.float32)
    effect = np.empty((len(values), model.layers))
    for layer, neurons in enumerate(clean.neurons):
        total = torch.zeros_like(neurons, dtype=torch.float32)
        for node, weight in zip(nodes, weights, strict=True):
            scaled = (neurons * node).requires_grad_()
            reached = _quantity(model.log_probability(clean, layer=layer, neurons=scaled), quantity)
            (gradient,) = torch.autograd.grad(reached.sum(), scaled)
            total += weight * gradient
        values[:, layer] = _real(neurons * total, real)
        with torch.no_grad():
            ablated = model.log_probability(clean, layer=layer, neurons=torch.zeros_like(neurons))
        effect[:, layer] = _real(here - _quantity(ablated, quantity), real)
    return Attributions(values=values, log_probability=_real(log_probability, real).astype(np.float64), effect=effect)


def gradient_times_activation(
    model: AttributionModel, clean: Clean, real: "torch.Tensor", *, quantity: str = "log_probability"
) -> Attributions:
    """a_i · ∂f/∂a_i of the neurons of all layers from one backward pass, later layers responding; see above."""
    import torch

    traced: list[torch.Tensor] = []
    log_probability = model.log_probability(clean, layer=0, traced=traced)
    gradients = torch.autograd.grad(_quantity(log_probability, quantity).sum(), traced)
    values = np.empty((int(real.sum()), model.layers, model.neurons), dtype=np.float32)
    for layer, (neurons, gradient) in enumerate(zip(traced, gradients, strict=True)):
        values[:, layer] = _real((neurons * gradient).view_as(clean.neurons[layer]), real)
    return Attributions(
        values=values,
        log_probability=_real(log_probability, real).astype(np.float64),
        effect=np.full((len(values), model.layers), np.nan),
    )


def _quantity(log_probability: "torch.Tensor", quantity: str) -> "torch.Tensor":
    return log_probability.exp() if quantity == "probability" else log_probability


def _real(values: "torch.Tensor", real: "torch.Tensor") -> NDArray[np.float32]:
    """(sequences, chosen, …) -> (real positions, …)."""
    found: NDArray[np.float32] = values.detach()[real.to(values.device)].float().cpu().numpy()
    return found
