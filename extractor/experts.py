"""Mixtures of experts: the neurons of every expert, and how much each expert counted, out of one forward pass.

transformers keeps the weights of all experts of a layer in one module and lets its forward be replaced by a registered
function (`ExpertsInterface`). Ours computes the same output from the same weights and hands over what it passes on the way.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from neuronlake.store.errors import InputError

if TYPE_CHECKING:
    import torch

IMPLEMENTATION = "neuronlake"
EXPERT_SITES = ("mlp.post", "mlp.gate", "mlp.gate_sign", "mlp.up", "mlp.routing")
_GATED = ("mlp.gate", "mlp.gate_sign", "mlp.up")
_TAP = "neuronlake_tap"

Receive = Callable[[str, int, "torch.Tensor"], None]


def check_experts(modules: Sequence[Any]) -> None:
    """Refuse experts whose forward cannot be replaced."""
    for module in modules:
        if not all(hasattr(module, name) for name in ("has_gate", "has_bias", "is_transposed", "down_proj", "num_experts")):
            raise InputError(
                f"{type(module).__name__}: its experts are not built on transformers' ExpertsInterface, so that their "
                "neurons cannot be told apart"
            )


def use_our_forward(model: Any, modules: Sequence[Any]) -> None:
    """Make a loaded model compute its experts with `experts_forward`."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, experts_forward)
    model.set_experts_implementation(IMPLEMENTATION)
    for module in modules:
        if module.config._experts_implementation != IMPLEMENTATION:
            raise InputError(f"{type(module).__name__}: transformers does not let its forward be replaced")


def expert_widths(module: Any) -> Mapping[str, int]:
    """Columns of each site that experts have."""
    from transformers.integrations.moe import _default_apply_gate

    neurons = module.down_proj.shape[1 if module.is_transposed else 2] * module.num_experts
    # Other gates clamp or scale their two halves: what would be act(gate) there is not defined.
    plain = module.has_gate and module.is_concatenated and type(module)._apply_gate is _default_apply_gate
    return {
        site: module.num_experts if site == "mlp.routing" else int(neurons)
        for site in EXPERT_SITES
        if plain or site not in _GATED
    }


class Tap:
    """What a module of experts hands over while it computes."""

    def __init__(self, module: Any, sites: Sequence[str], layer: int, receive: Receive):
        self.sites, self.layer, self.receive = tuple(sites), layer, receive
        self._module = module
        setattr(module, _TAP, self)

    def remove(self) -> None:
        """Hand over nothing any more."""
        delattr(self._module, _TAP)


def experts_forward(
    module: Any, hidden_states: "torch.Tensor", top_k_index: "torch.Tensor", top_k_weights: "torch.Tensor"
) -> "torch.Tensor":
    """Compute a layer of experts, expert by expert, each on the tokens routed to it.

    Parameters
    ----------
    module
        Holds the weights: ``gate_up_proj`` (experts, 2 · neurons, hidden), ``down_proj`` (experts, hidden, neurons).
    hidden_states : (tokens, hidden)
    top_k_index, top_k_weights : (tokens, k)
        The experts that a token goes to, and the weights of their outputs.

    Returns
    -------
    (tokens, hidden), the weighted sum of the experts' outputs.
    """
    import torch

    tap: Tap | None = getattr(module, _TAP, None)
    tokens, experts = len(hidden_states), module.num_experts
    neurons = module.down_proj.shape[1 if module.is_transposed else 2]
    taken = {
        site: hidden_states.new_zeros(tokens, experts, neurons)
        for site in (tap.sites if tap else ())
        if site != "mlp.routing"
    }
    total = torch.zeros_like(hidden_states, dtype=torch.promote_types(hidden_states.dtype, top_k_weights.dtype))
    pairs = top_k_index.flatten()
    order = torch.argsort(pairs, stable=True)
    start = 0
    for expert, count in enumerate(torch.bincount(pairs, minlength=experts).tolist()):
        if count == 0:
            continue
        chosen = order[start : start + count]
        start += count
        rows = chosen // top_k_index.shape[1]
        first = _linear(module, "gate_up_proj" if module.has_gate else "up_proj", expert, hidden_states[rows])
        values = module._apply_gate(first) if module.has_gate else module.act_fn(first)
        for site, tensor in taken.items():
            tensor[rows, expert] = values if site == "mlp.post" else _part(module, site, first)
        result = _linear(module, "down_proj", expert, values)
        if module.has_post_expert_norm:
            result = module.post_expert_norm(result)
        total.index_add_(0, rows, (result * top_k_weights.flatten()[chosen, None]).to(total.dtype))
    if tap:
        for site, tensor in taken.items():
            tap.receive(site, tap.layer, tensor.flatten(1))  # (tokens, experts, neurons) -> (tokens, experts · neurons)
        if "mlp.routing" in tap.sites:
            weights = top_k_weights.new_zeros(tokens, experts).scatter_(1, top_k_index, top_k_weights)
            tap.receive("mlp.routing", tap.layer, weights)
    return total.to(hidden_states.dtype)


def _part(module: Any, site: str, first: "torch.Tensor") -> "torch.Tensor":
    gate, up = first.chunk(2, dim=-1)
    if site == "mlp.up":
        return up
    return (gate > 0).to(gate.dtype) if site == "mlp.gate_sign" else module.act_fn(gate)


def _linear(module: Any, name: str, expert: int, inputs: "torch.Tensor") -> "torch.Tensor":
    import torch

    weight = getattr(module, name)[expert]
    bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
    return torch.nn.functional.linear(inputs, weight.T if module.is_transposed else weight, bias)
