"""Attributions of a prediction to neurons, of a batch of positions at once: integrated gradients, gradient × activation."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from neuronlake.extractor.attributing import AttributionModel, Clean
from neuronlake.store.errors import InputError

if TYPE_CHECKING:
    import torch

METHODS = ("ig", "gradient")
RULES = ("gauss", "riemann")
_FOUR = 4  # pieces that an interval is cut in
_CUTS = 5  # how often at most: pieces of 1/1024
_BUDGET = 4  # pieces that are cut, of a layer and a sequence, on average over the batch: those that miss most
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

    ``gauss``: Gauss–Legendre, exact for polynomials of degree 2·steps − 1. ``riemann``: α = k/steps, k = 1 … steps, the sum
    of Dai et al. 2022, Knowledge neurons in pretrained transformers.

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
    tolerance: float | None = None,
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
    tolerance
        Where a sum misses its layer's effect by more than that share of the batch's mean |effect| in the layer, the way is
        cut in four, and so are pieces where the same holds again: those that miss most first, up to four cuts per sequence
        and layer on average. None leaves it at the rule.
    quantity
        f: the ``log_probability`` of the token that follows, or its ``probability``.
    """
    import torch

    real = real.to(model.device)
    path = _Path(model=model, real=real, quantity=quantity, rule=quadrature(rule, steps))
    with torch.no_grad():
        log_probability = model.log_probability(clean, layer=model.layers)
    here = _quantity(log_probability, quantity)
    values = np.empty((int(real.sum()), model.layers, model.neurons), dtype=np.float32)
    effect = np.empty((len(values), model.layers))
    for layer, neurons in enumerate(clean.neurons):
        ablated = path.at(clean, layer, torch.zeros(len(neurons), device=model.device))
        effects = (here - ablated) * real
        bar = None if tolerance is None else tolerance * float(effects.abs().sum() / real.sum())
        values[:, layer] = _real(neurons * path.integral(clean, layer, ablated, here, bar), real)
        effect[:, layer] = _real(effects, real)
    return Attributions(values=values, log_probability=_real(log_probability, real).astype(np.float64), effect=effect)


@dataclass(frozen=True, kw_only=True)
class _Path:
    """The straight way from a layer's neurons at zero to what they are."""

    model: AttributionModel
    real: "torch.Tensor"
    quantity: str
    rule: tuple[Sequence[float], Sequence[float]]

    def at(self, clean: Clean, layer: int, scale: "torch.Tensor") -> "torch.Tensor":
        """f with the layer's neurons scaled, of every sequence by its own number; (sequences, chosen)."""
        import torch

        with torch.no_grad():
            scaled = clean.neurons[layer] * scale[:, None, None].to(clean.neurons[layer].dtype)
            return _quantity(self.model.log_probability(clean, layer=layer, neurons=scaled), self.quantity)

    def integral(
        self, clean: Clean, layer: int, low: "torch.Tensor", high: "torch.Tensor", bar: float | None
    ) -> "torch.Tensor":
        """∫₀¹ of the gradient, float32 (sequences, chosen, neurons); `low` and `high` are f at its ends."""
        import torch

        edge = torch.zeros(len(low), device=low.device)
        rows = torch.arange(len(low), device=low.device)
        found = self._piece(clean, layer, edge, edge + 1)
        if bar is None:
            return found
        missing = self._missing(clean, layer, found, high - low, self.real)
        pieces = _Pieces(rows=rows, start=edge, low=low, high=high, found=found, missing=missing)
        total, budget = found.clone(), _BUDGET * len(low)
        for cut in range(1, _CUTS + 1):
            pieces = pieces.take(torch.nonzero(pieces.missing > bar)[:, 0])
            pieces = pieces.take(pieces.missing.argsort(descending=True, stable=True)[:budget])
            if not len(pieces.rows):
                break
            budget -= len(pieces.rows)
            total.index_add_(0, pieces.rows, -pieces.found)
            pieces = self._cut(clean, layer, pieces, _FOUR**-cut)
            total.index_add_(0, pieces.rows, pieces.found)
        return total

    def _cut(self, clean: Clean, layer: int, pieces: "_Pieces", width: float) -> "_Pieces":
        """Cut each piece in four of that width."""
        import torch

        size, parts = max(1, len(clean.ids) // _FOUR), []
        for first in range(0, len(pieces.rows), size):
            few = pieces.take(torch.arange(first, min(first + size, len(pieces.rows)), device=pieces.rows.device))
            some = clean.select(few.rows, layer)
            ends = [few.low, *(self.at(some, layer, few.start + cut * width) for cut in range(1, _FOUR)), few.high]
            low, high = torch.cat(ends[:-1]), torch.cat(ends[1:])
            start, rows = torch.cat([few.start + cut * width for cut in range(_FOUR)]), few.rows.repeat(_FOUR)
            some = clean.select(rows, layer)
            found = self._piece(some, layer, start, start + width)
            missing = self._missing(some, layer, found, high - low, self.real[rows])
            parts.append(_Pieces(rows=rows, start=start, low=low, high=high, found=found, missing=missing))
        return _Pieces(**{each.name: torch.cat([getattr(part, each.name) for part in parts]) for each in fields(_Pieces)})

    def _piece(self, clean: Clean, layer: int, start: "torch.Tensor", end: "torch.Tensor") -> "torch.Tensor":
        """Quadrature from start to end, of every sequence its own."""
        import torch

        neurons = clean.neurons[layer]
        total = torch.zeros_like(neurons, dtype=torch.float32)
        for node, weight in zip(*self.rule, strict=True):
            scale = (start + node * (end - start))[:, None, None]
            scaled = (neurons * scale.to(neurons.dtype)).requires_grad_()
            reached = _quantity(self.model.log_probability(clean, layer=layer, neurons=scaled), self.quantity)
            (gradient,) = torch.autograd.grad(reached.sum(), scaled)
            total += (weight * (end - start))[:, None, None] * gradient
        return total

    def _missing(
        self, clean: Clean, layer: int, integral: "torch.Tensor", effect: "torch.Tensor", real: "torch.Tensor"
    ) -> "torch.Tensor":
        """What the sum misses of the effect, the most of a sequence's real positions; (sequences,)."""
        apart = ((clean.neurons[layer] * integral).sum(-1) - effect).abs() * real
        found: torch.Tensor = apart.amax(dim=1)
        return found


@dataclass(frozen=True, kw_only=True)
class _Pieces:
    """Intervals of α, each of one sequence."""

    rows: "torch.Tensor"
    """Their sequences, (pieces,)."""
    start: "torch.Tensor"
    low: "torch.Tensor"
    """f at the start, (pieces, chosen)."""
    high: "torch.Tensor"
    """f at the end."""
    found: "torch.Tensor"
    """Integral of the gradient over the interval, (pieces, chosen, neurons)."""
    missing: "torch.Tensor"
    """What its sum misses of high − low, (pieces,)."""

    def take(self, which: "torch.Tensor") -> "_Pieces":
        """Some of them, in that order."""
        return _Pieces(**{each.name: getattr(self, each.name)[which] for each in fields(self)})


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


def gradient_in_one_pass(
    model: AttributionModel,
    ids: "torch.Tensor",
    positions: "torch.Tensor",
    following: "torch.Tensor",
    real: "torch.Tensor",
    *,
    quantity: str = "log_probability",
) -> Attributions:
    """The same from one pass over whole sequences: less work where most positions are asked for."""
    import torch

    traced: list[torch.Tensor] = []
    log_probability = model.trace(ids, positions, following, traced)
    gradients = torch.autograd.grad((_quantity(log_probability, quantity) * real.to(model.device)).sum(), traced)
    lines, columns = torch.nonzero(real, as_tuple=True)
    columns = positions[lines, columns]
    values = np.empty((len(lines), model.layers, model.neurons), dtype=np.float32)
    for layer, (neurons, gradient) in enumerate(zip(traced, gradients, strict=True)):
        neurons, gradient = (each.detach().view(*ids.shape, -1)[lines, columns] for each in (neurons, gradient))
        values[:, layer] = (neurons * gradient).float().cpu().numpy()
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
