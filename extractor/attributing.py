"""A language model whose neurons can be scaled at single positions, and the gradients of what it predicts there."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from neuronlake.extractor.families import Neurons, find_neurons, is_causal, width_in
from neuronlake.extractor.model import choose_device, context_length
from neuronlake.extractor.own_attention import NAME, CleanAttention, attending, register
from neuronlake.extractor.source import ModelSource
from neuronlake.extractor.transformers_glue import first_line, quiet_transformers
from neuronlake.extractor.with_head import load_with_head, read_config
from neuronlake.store.errors import InputError

if TYPE_CHECKING:
    import torch

# Largest difference of log-probabilities between our attention and the model's own, in deviations of the logits: some
# thousand roundings of float32, some ten of the 16-bit types.
_SAME = {"float32": 1e-3}
_SAME_HALF = 6e-2
_TRIAL = (2, 12)  # sequences, positions


@dataclass(frozen=True, kw_only=True)
class Clean:
    """A clean forward pass, as far as chosen positions need it."""

    ids: "torch.Tensor"
    """int64 (sequences, chosen): the tokens at the chosen positions."""
    following: "torch.Tensor"
    """int64 (sequences, chosen): the tokens whose probability is asked for, those that follow."""
    attention: CleanAttention
    neurons: "list[torch.Tensor]" = field(default_factory=list)
    """Of every layer, (sequences, chosen, neurons)."""
    hidden: "list[torch.Tensor]" = field(default_factory=list)
    """What goes into every layer, and what comes out of the last one; (sequences, chosen, width)."""

    def select(self, rows: "torch.Tensor", layer: int) -> "Clean":
        """Only some of the sequences, in that order and as often as they are named, for passes that begin at that layer."""
        return Clean(
            ids=self.ids[rows],
            following=self.following[rows],
            attention=self.attention.select(rows, layer),
            neurons=[values[rows] if place == layer else values for place, values in enumerate(self.neurons)],
            hidden=[values[rows] if place == layer else values for place, values in enumerate(self.hidden)],
        )


@dataclass(kw_only=True)
class _Pass:
    """The forward pass under way."""

    clean: Clean
    start: int = -1
    """First layer that is computed; those before it give what they gave in the clean pass."""
    replaced: "torch.Tensor | None" = None
    """Neurons of that layer."""
    traced: "list[torch.Tensor] | None" = None
    """Collects the neurons of every layer, as a part of the graph."""


class AttributionModel:
    """A causal language model with its head, in evaluation mode on one device; its weights need no gradients."""

    def __init__(self, model: Any, *, device: str = "cpu"):
        import torch

        if not is_causal(model.config):
            raise _not_causal(type(model).__name__)
        self.module = model.to(device).eval().requires_grad_(False)
        self.device = torch.device(device)
        neurons = _checked(find_neurons(model))
        self.layers = len(neurons.output)
        self.neurons = width_in(neurons.output[0])
        self._pass: _Pass | None = None
        accepted = inspect.signature(model.forward).parameters
        self._options = {"use_cache": False} if "use_cache" in accepted else {}
        self._positions, self._last_logits = "position_ids" in accepted, "logits_to_keep" in accepted
        trial = self._trial_ids()
        with torch.no_grad():
            expected = self._logits(trial)
        register()
        try:
            with quiet_transformers():
                model.set_attn_implementation(NAME)
        except (ValueError, NotImplementedError, AttributeError, KeyError) as error:
            raise self._no_attention(first_line(error)) from error
        for index, layer in enumerate(neurons.layers):
            layer.forward = partial(self._layer, index, layer.forward)
            neurons.output[index].register_forward_pre_hook(partial(self._output, index))
        self._check_attention(trial, expected)

    @classmethod
    def load(
        cls, source: ModelSource, *, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False
    ) -> "AttributionModel":
        """Load the weights.

        Raises
        ------
        InputError
            When they cannot be read, are quantised, or the model is none whose neurons can be attributed to.
        """
        device = choose_device(device)
        config = read_config(source, trust_remote_code=trust_remote_code)
        if (quantised := getattr(config, "quantization_config", None)) is not None:
            kind = quantised.get("quant_method", "") if isinstance(quantised, Mapping) else type(quantised).__name__
            raise InputError(
                f"{source.name} has quantised weights ({kind}), through which gradients are not the model's: give the "
                "unquantised model (a GGUF file is fine, its weights are read as float32)"
            )
        if not is_causal(config):
            raise _not_causal(config.model_type)
        model = load_with_head(source, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        return cls(model, device=device)

    def provenance(self) -> dict[str, Any]:
        """Return what may move the last bits of the results."""
        import torch
        import transformers

        return {
            "device": self.device.type if self.device.type == "cpu" else torch.cuda.get_device_name(self.device),
            "threads": torch.get_num_threads() if self.device.type == "cpu" else None,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def clean(self, ids: "torch.Tensor", positions: "torch.Tensor", following: "torch.Tensor") -> Clean:
        """Run a batch and keep what chosen positions need.

        Parameters
        ----------
        ids : int64 (sequences, positions)
            Padded on the right.
        positions : int64 (sequences, chosen)
            Which positions are to be changed later.
        following : int64 (sequences, chosen)
            The tokens after them.

        Raises
        ------
        InputError
            When the model's attention does not go through transformers' interface.
        """
        import torch

        ids, positions, following = (each.to(self.device) for each in (ids, positions, following))
        clean = Clean(ids=ids.gather(1, positions), following=following, attention=CleanAttention(positions=positions))
        with torch.no_grad():
            self._run(_Pass(clean=clean), ids, **({"logits_to_keep": 1} if self._last_logits else {}))
        if len(clean.attention.seen) != self.layers:
            raise self._no_attention(f"{len(clean.attention.seen)} of {self.layers} layers used it")
        clean.attention.recording = False
        return clean

    def log_probability(
        self,
        clean: Clean,
        *,
        layer: int,
        neurons: "torch.Tensor | None" = None,
        traced: "list[torch.Tensor] | None" = None,
    ) -> "torch.Tensor":
        """Log-probability of the tokens that follow the chosen positions, float32 (sequences, chosen).

        Only layers from `layer` on are computed, all of them responding live; with the number of layers, none.

        Parameters
        ----------
        neurons : (sequences, chosen, neurons)
            Values in place of that layer's own.
        traced
            Gets the neurons of every layer that is computed, so that gradients with respect to them can be asked for.
        """
        state = _Pass(clean=clean, start=layer, replaced=neurons, traced=traced)
        named = {"position_ids": clean.attention.positions} if self._positions else {}
        return _log_probability(self._run(state, clean.ids, **named), clean.following)

    def trace(
        self, ids: "torch.Tensor", positions: "torch.Tensor", following: "torch.Tensor", traced: "list[torch.Tensor]"
    ) -> "torch.Tensor":
        """Log-probability of the tokens that follow the chosen positions, in one pass over the whole sequences.

        Parameters
        ----------
        ids, positions, following
            See `clean`.
        traced
            Gets the neurons of every layer, of all positions, (sequences, positions, neurons). The gradient of a position's
            log-probability with respect to other positions is zero.
        """
        ids, positions, following = (each.to(self.device) for each in (ids, positions, following))
        clean = Clean(ids=ids, following=following, attention=CleanAttention(positions=positions, live=True))
        logits = self._run(_Pass(clean=clean, traced=traced), ids)
        return _log_probability(_at(logits, positions), following)

    def _run(self, state: _Pass, ids: "torch.Tensor", **named: Any) -> "torch.Tensor":
        self._pass = state
        try:
            with attending(state.clean.attention):
                return self._logits(ids, **named)
        finally:
            self._pass = None

    def _logits(self, ids: "torch.Tensor", **named: Any) -> "torch.Tensor":
        logits: torch.Tensor = self.module(input_ids=ids, **self._options, **named).logits
        return logits

    def _layer(self, index: int, forward: Any, hidden: "torch.Tensor", *arguments: Any, **named: Any) -> "torch.Tensor":
        """Forward of a layer: its own, or what it gave in the clean pass."""
        state = self._pass
        if state is None:
            return self._whole(forward(hidden, *arguments, **named))
        clean = state.clean
        if clean.attention.live:
            return self._whole(forward(hidden, *arguments, **named))
        if state.start < 0:
            clean.hidden.append(_at(hidden, clean.attention.positions))
            output = self._whole(forward(hidden, *arguments, **named))
            if index + 1 == self.layers:
                clean.hidden.append(_at(output, clean.attention.positions))
            return output
        if index < state.start:
            return clean.hidden[state.start]
        start = clean.hidden[index] if index == state.start else hidden
        return self._whole(forward(start, *arguments, **named))

    def _whole(self, output: Any) -> "torch.Tensor":
        import torch

        if not isinstance(output, torch.Tensor):
            raise self._no_attention("its layers return more than their output")
        return output

    def _output(self, index: int, _module: Any, arguments: tuple[Any, ...]) -> "tuple[torch.Tensor, ...] | None":
        """Before an output projection: its inputs are the neurons."""
        state = self._pass
        if state is None:
            return None
        values: torch.Tensor = arguments[0]
        if state.start < 0 and state.traced is None:
            positions = state.clean.attention.positions
            state.clean.neurons.append(_at(_by_sequence(values, len(positions)), positions))
            return None
        if index == state.start and state.replaced is not None:
            return (state.replaced.view(values.shape).to(values.dtype), *arguments[1:])
        if state.traced is not None:
            if not values.requires_grad:
                values = values.detach().requires_grad_()
            state.traced.append(values)
            return (values, *arguments[1:])
        return None

    def _trial_ids(self) -> "torch.Tensor":
        import torch

        vocabulary = self.module.get_input_embeddings().num_embeddings
        sequences, positions = _TRIAL
        size = sequences, min(positions, context_length(self.module, self.module.config))
        return torch.from_numpy(np.random.default_rng(0).integers(0, vocabulary, size=size)).to(self.device)

    def _check_attention(self, ids: "torch.Tensor", expected: "torch.Tensor") -> None:
        """Compare with the model's own attention: a part that ours lacks shows at once."""
        import torch

        positions = torch.arange(ids.shape[1] - 1, device=self.device).expand(len(ids), -1)
        clean = self.clean(ids, positions, ids[:, 1:])
        reference = expected.float().log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
        scale = float(expected.float().std())
        bound = _SAME.get(str(expected.dtype).removeprefix("torch."), _SAME_HALF)
        with torch.no_grad():
            for layer in sorted({0, self.layers // 2, self.layers}):
                apart = float((self.log_probability(clean, layer=layer) - reference).abs().max()) / scale
                if not apart <= bound:
                    raise InputError(
                        f"{type(self.module).__name__}: computed position by position, its predictions differ from its "
                        f"own by {apart:.2g} deviations of its logits (rounding is {bound:g} at most): its attention or"
                        " layers have a part that attribution does not know"
                    )

    def _no_attention(self, reason: str) -> InputError:
        return InputError(
            f"{type(self.module).__name__}: its attention does not go through transformers' AttentionInterface ({reason}), "
            "so that attribution cannot keep positions apart"
        )


def _not_causal(kind: str) -> InputError:
    return InputError(
        f"{kind}: its tokens are not known to attend only to earlier ones; attribution is of the next word's probability, "
        "which needs a causal language model"
    )


def _checked(neurons: Neurons) -> Neurons:
    """Refuse models that attribution is not made for."""
    kind = type(neurons.model).__name__
    if neurons.moe:
        raise InputError(f"{kind} is a mixture of experts: attribution to the neurons of experts is not supported")
    if not neurons.layers:
        raise InputError(f"{kind}: its layers are not known, attribution needs them")
    return neurons


def _log_probability(logits: "torch.Tensor", following: "torch.Tensor") -> "torch.Tensor":
    """(sequences, chosen, vocabulary) -> float32 (sequences, chosen)."""
    import torch

    loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), following.flatten(), reduction="none")
    return -loss.view_as(following)


def _by_sequence(values: "torch.Tensor", sequences: int) -> "torch.Tensor":
    """What OPT's output projections see is (sequences · positions, neurons)."""
    return values.unflatten(0, (sequences, -1)) if values.ndim == 2 else values


def _at(values: "torch.Tensor", positions: "torch.Tensor") -> "torch.Tensor":
    """(sequences, positions, width) -> (sequences, chosen, width)."""
    return values.gather(1, positions[..., None].expand(-1, -1, values.shape[-1]))
