"""Sites: the places of a transformer layer whose activations a lake holds, and how to read them off a forward pass."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from neuronlake.extractor.experts import EXPERT_SITES, Tap, check_experts, expert_widths
from neuronlake.extractor.families import Neurons, width_in, width_out
from neuronlake.store.errors import InputError
from neuronlake.store.layout import DEFAULT_SITE

if TYPE_CHECKING:
    import torch

SITES: Mapping[str, str] = {
    "mlp.post": "neurons: input of the MLP's output projection; act(gate)·up of a gated MLP, act(up) of one without gate",
    "mlp.gate": "act(gate) of a gated MLP",
    "mlp.gate_sign": "1 where the gate before its activation is above 0, else 0",
    "mlp.up": "output of the up projection, before anything is done to it",
    "mlp.out": "output of the MLP's output projection (of experts: of the whole block), before any norm or scaling",
    "mlp.routing": "weight of each expert's output, 0 for experts that the token was not routed to",
    "mlp.shared": "neurons of the expert that sees every token",
    "attn.head_out": "input of the attention's output projection: heads × head dimensions",
    "resid.post": "residual stream after the layer: its output",
}
"""Name → what it holds."""

Receive = Callable[[str, int, "torch.Tensor"], None]


def site_widths(neurons: Neurons) -> dict[str, int]:
    """Return the columns of every site that a model has, in its first layer. No weights are needed."""
    if neurons.moe:
        check_experts(neurons.output)
    return _layer_widths(neurons, 0)


def choose_sites(neurons: Neurons, sites: Sequence[str] | None) -> dict[str, int]:
    """Return the columns of the sites asked for; by default of the neurons, and of the routing to experts if there are any.

    Raises
    ------
    InputError
        When the model does not have one of them, layers differ in its width, or none was asked for.
    """
    widths = site_widths(neurons)
    if sites is None:
        sites = [site for site in (DEFAULT_SITE, "mlp.routing") if site in widths]
    if not sites or len(set(sites)) != len(sites):
        raise InputError(f"name at least one site, and each once, got {list(sites)}: known are {', '.join(widths)}")
    for site in sites:
        if site not in SITES:
            raise InputError(f"unknown site {site!r}: known are {', '.join(SITES)}")
        if site not in widths:
            raise InputError(f"{type(neurons.model).__name__} has no site {site!r}: it has {', '.join(widths)}")
        different = {_layer_widths(neurons, layer).get(site, 0) for layer in range(len(neurons.output))}
        if len(different) > 1:
            raise InputError(
                f"{type(neurons.model).__name__}: layers differ in the width of {site} ({sorted(different)}), but all "
                "layers of a lake have the same: choose other --sites"
            )
    return {site: widths[site] for site in sites}


def attach(neurons: Neurons, sites: Sequence[str], receive: Receive) -> list[Any]:
    """Hand over the sites of every layer while the model computes.

    Parameters
    ----------
    receive
        Called with (site, layer, values as the module has them, (…, width)).

    Returns
    -------
    What has to be `remove`d afterwards.
    """
    handles: list[Any] = []
    of_experts = [site for site in sites if neurons.moe and site in EXPERT_SITES]
    for layer in range(len(neurons.output)):
        if of_experts:
            handles.append(Tap(neurons.output[layer], of_experts, layer, receive))
        handles += [_hook(neurons, site, layer, receive) for site in sites if site not in of_experts]
    return handles


def _layer_widths(neurons: Neurons, layer: int) -> dict[str, int]:
    widths: dict[str, int] = {}
    output = neurons.output[layer]
    if neurons.moe:
        widths |= expert_widths(output)
        residual = output.down_proj.shape[2 if output.is_transposed else 1]
    else:
        widths["mlp.post"] = width_in(output)
        residual = width_out(output)
        if neurons.gate and neurons.activation:
            widths["mlp.gate"] = widths["mlp.gate_sign"] = widths["mlp.post"]
        if neurons.up or _fused(neurons, layer):
            widths["mlp.up"] = widths["mlp.post"]
    widths["mlp.out"] = residual
    if neurons.shared:
        widths["mlp.shared"] = width_in(neurons.shared[layer])
    if neurons.heads:
        widths["attn.head_out"] = width_in(neurons.heads[layer])
    if neurons.layers:
        widths["resid.post"] = residual
    return {site: int(widths[site]) for site in SITES if site in widths}


def _fused(neurons: Neurons, layer: int) -> bool:
    """Whether gate and up are one projection."""
    return bool(neurons.gate) and width_out(neurons.gate[layer]) == 2 * width_in(neurons.output[layer])


def _hook(neurons: Neurons, site: str, layer: int, receive: Receive) -> Any:
    """Hang one site of one layer on its module."""

    def before(_module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        receive(site, layer, args[0] if args else next(iter(kwargs.values())))

    def after(_module: Any, _args: tuple[Any, ...], output: Any) -> None:
        receive(site, layer, output[0] if isinstance(output, tuple | list) else output)

    def sign(_module: Any, args: tuple[Any, ...], _output: Any) -> None:
        receive(site, layer, (args[0] > 0).to(args[0].dtype))

    def second_half(_module: Any, _args: tuple[Any, ...], output: Any) -> None:
        receive(site, layer, output.chunk(2, dim=-1)[1])

    if site == "mlp.up" and not neurons.up:
        return neurons.gate[layer].register_forward_hook(second_half)
    if site == "mlp.gate_sign":
        return neurons.activation[layer].register_forward_hook(sign)
    inputs_of = {"mlp.post": neurons.output, "mlp.shared": neurons.shared, "attn.head_out": neurons.heads}
    if site in inputs_of:
        return inputs_of[site][layer].register_forward_pre_hook(before, with_kwargs=True)
    outputs_of = {
        "mlp.gate": neurons.activation,
        "mlp.up": neurons.up,
        "mlp.out": neurons.moe or neurons.output,
        "resid.post": neurons.layers,
    }
    return outputs_of[site][layer].register_forward_hook(after)
