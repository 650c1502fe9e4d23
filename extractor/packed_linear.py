"""Linear layers whose weights are laid out for the processor once: a faster forward pass on a CPU.

For float32 torch takes a general matrix product, which lays out its arguments anew in every call. oneDNN, which comes with
torch, keeps the weights laid out: the same arithmetic added up in another order, so that values differ by float32's
rounding. The plain weights stay where they are, for code that reads them; so there must be room for both.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_ROWS = 512
"""Rows of the products that the layout is chosen for; others are computed as well."""
_ROOM = 0.5
"""Share of the available memory that the second copy may take."""


def pack_linear_layers(module: "torch.nn.Module") -> bool:
    """Let the float32 linear layers of a model on the CPU compute by oneDNN, without gradients from now on.

    Hooks and names of the layers stay as they are.

    Returns
    -------
    bool
        Whether it was done: not without oneDNN or room, or where its products are not those of torch.
    """
    import psutil  # type: ignore[import-untyped]
    import torch

    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    layers = [
        layer
        for layer in module.modules()
        if type(layer) is torch.nn.Linear and layer.weight.dtype == torch.float32 and layer.weight.device.type == "cpu"
    ]
    if not layers or sum(layer.weight.nbytes for layer in layers) > _ROOM * psutil.virtual_memory().available:
        return False
    try:
        if not _agrees(layers[0]):
            return False
        packed = [_packed(layer) for layer in layers]
    except (RuntimeError, NotImplementedError):  # a processor or a build that oneDNN has no kernel for
        return False
    for layer, forward in zip(layers, packed, strict=True):
        layer.forward = forward
    return True


def _packed(layer: "torch.nn.Linear") -> Callable[["torch.Tensor"], Any]:
    import torch

    bias = None if layer.bias is None else layer.bias.detach()
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _ROWS)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _agrees(layer: "torch.nn.Linear") -> bool:
    import torch

    with torch.inference_mode():
        x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0))
        return bool(torch.allclose(_packed(layer)(x), layer(x), rtol=1e-3, atol=1e-4 * float(layer(x).abs().max())))
