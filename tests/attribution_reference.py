"""Attributions by other means: the model as transformers runs it, one position of one sequence at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
)


class OnePosition:
    """f(neurons of one layer at one position) = log p of the next token; the rest of the sequence is as it is.

    Hooks on plain modules and transformers' eager attention: nothing of ours.
    """

    def __init__(self, model: Any, downs: list[Any], ids: torch.Tensor, position: int):
        self.model, self.downs, self.ids, self.position = model, downs, ids, position
        self.clean: list[torch.Tensor] = []
        handles = [down.register_forward_pre_hook(self._remember) for down in downs]
        with torch.no_grad():
            self.value = self._log_probability()
        for handle in handles:
            handle.remove()

    def _remember(self, _module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        self.clean.append(self._rows(arguments[0])[self.position].clone())

    def _rows(self, values: torch.Tensor) -> torch.Tensor:
        return values.reshape(-1, values.shape[-1])  # of one sequence

    def _log_probability(self) -> torch.Tensor:
        logits = self.model(input_ids=self.ids[None, : self.position + 1], use_cache=False).logits[0, -1]
        return logits.log_softmax(-1)[self.ids[self.position + 1]]

    def function(self, layer: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """(points, neurons) -> (points,)"""

        def call(points: torch.Tensor) -> torch.Tensor:
            values = []
            for point in points:

                def replace(_module: Any, arguments: tuple[torch.Tensor, ...], point: torch.Tensor = point) -> Any:
                    rows = self._rows(arguments[0]).clone()
                    rows[self.position] = point
                    return (rows.view(arguments[0].shape),)

                handle = self.downs[layer].register_forward_pre_hook(replace)
                values.append(self._log_probability())
                handle.remove()
            return torch.stack(values)

        return call

    def gradient(self, layer: int, scale: float = 1.0) -> torch.Tensor:
        """Gradient at the scaled neurons of the layer, (neurons,)."""
        point = (self.clean[layer] * scale).requires_grad_()
        (found,) = torch.autograd.grad(self.function(layer)(point[None])[0], point)
        return found


def save_causal(model_type: str, config: dict[str, Any], folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Save a language model with random weights, biases and norms."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = parameter.normal_(0, 0.2)
            if "norm" in name.lower() and name.endswith("weight"):
                scale += 1
    model.to(dtype).save_pretrained(folder)
    return folder


def load_plain(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model with eager attention."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    return model.requires_grad_(False)
