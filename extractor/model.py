"""A Llama-family transformer and the place where its MLP neurons are."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neuronlake.extractor.source import ModelSource
from neuronlake.extractor.transformers_glue import LOAD_ERRORS, first_line, quiet_transformers
from neuronlake.store.errors import InputError
from neuronlake.store.layout import DEFAULT_SITE

if TYPE_CHECKING:
    import torch

# The input of the down projection is act(gate)·up: site mlp.post of Llama, Mistral, Qwen, Gemma, Phi-3, OLMo …
_DOWN_PROJECTION = re.compile(r"(?:^|\.)layers\.(\d+)\.mlp\.down_proj$")
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What the plan needs to know of a model before its weights are read."""

    layers: int
    neurons: int
    max_positions: int
    """Longest sequence the model was made for."""
    architecture: str
    dtype: str
    """The checkpoint's own dtype."""


def read_shape(source: ModelSource, *, trust_remote_code: bool = False) -> ModelShape:
    """Read layer count, neurons per layer and context length from the configuration, without weights.

    Raises
    ------
    InputError
        When the architecture is not supported.
    """
    import torch
    from transformers import AutoConfig, AutoModel

    try:
        config = AutoConfig.from_pretrained(source.folder, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    except LOAD_ERRORS as error:
        raise InputError(f"could not read the model in {source.folder}: {first_line(error)}") from error
    if getattr(config.get_text_config(), "use_bidirectional_attention", False):
        raise InputError(
            f"{config.model_type}: its tokens attend to later ones, but sentences are read as a causal model reads them"
        )
    projections = find_projections(model)
    widths = {int(module.in_features) for module in projections.values()}
    if len(widths) != 1:
        raise InputError(f"{config.model_type}: layers differ in their number of neurons ({sorted(widths)})")
    return ModelShape(
        layers=len(projections),
        neurons=widths.pop(),
        max_positions=int(getattr(config.get_text_config(), "max_position_embeddings", 1 << 30)),
        architecture=str(config.model_type),
        dtype=str(config.dtype or torch.float32).removeprefix("torch."),
    )


def find_projections(model: Any) -> dict[int, Any]:
    """Return layer → the MLP's output projection, whose input are the neurons.

    Raises
    ------
    InputError
        When there is none, or the layers are not 0, 1, 2 ….
    """
    found = {int(match[1]): module for name, module in model.named_modules() if (match := _DOWN_PROJECTION.search(name))}
    if not found:
        raise InputError(
            f"{type(model).__name__} is not supported: no module named layers.N.mlp.down_proj (Llama family) in it"
        )
    if sorted(found) != list(range(len(found))):
        raise InputError(f"{type(model).__name__}: found MLPs only in layers {sorted(found)}, expected all of them")
    return dict(sorted(found.items()))


class Model:
    """A loaded model, without its language-model head, in evaluation mode on one device."""

    def __init__(self, module: Any, *, device: str, threads: int):
        import torch

        self.module = module.to(device).eval()
        self.device = torch.device(device)
        self.projections = find_projections(module)
        self._threads = threads

    @classmethod
    def load(
        cls, source: ModelSource, *, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False
    ) -> "Model":
        """Load the weights.

        Parameters
        ----------
        device
            ``auto`` takes a GPU if there is one.
        dtype
            ``auto`` is float32 on a CPU and the checkpoint's own dtype on a GPU.

        Raises
        ------
        InputError
            When the device is not there or the weights cannot be read.
        """
        import torch
        from transformers import AutoModel

        device = choose_device(device)
        try:
            with quiet_transformers():
                module, loading = AutoModel.from_pretrained(
                    source.folder,
                    dtype=choose_dtype(dtype, device),
                    trust_remote_code=trust_remote_code,
                    output_loading_info=True,
                )
        except LOAD_ERRORS as error:
            raise InputError(f"could not load the model in {source.folder}: {first_line(error)}") from error
        # transformers fills what a checkpoint lacks with random numbers and only remarks on it
        if missing := sorted(loading["missing_keys"]) + sorted(str(key) for key in loading["mismatched_keys"]):
            raise InputError(
                f"{source.folder}: the checkpoint lacks {len(missing)} weights of {type(module).__name__}, "
                f"first {missing[0]}; it is not a checkpoint of this architecture"
            )
        return cls(module, device=device, threads=torch.get_num_threads())

    def provenance(self) -> dict[str, Any]:
        """Return what may move the last bits of the values: recorded with every block."""
        import torch
        import transformers

        return {
            "backend": "transformers",
            "device": self.device.type if self.device.type == "cpu" else torch.cuda.get_device_name(self.device),
            "threads": self._threads if self.device.type == "cpu" else None,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "attention": self.module.config._attn_implementation,
        }

    def capture(self, ids: "torch.Tensor", receive: Callable[[str, int, "torch.Tensor"], None]) -> None:
        """Run one batch and hand over each layer's neurons as they are computed.

        Parameters
        ----------
        ids : int64 (sequences, positions)
            Padded on the right. No attention mask is needed: in a causal model no real token attends to the padding after
            it, and what is computed for padding positions is dropped by the receiver.
        receive
            Called once per site and layer with (site, layer, values (sequences, positions, width)). The tensor belongs to
            the model and is only valid during the call.
        """
        import torch

        handles = [module.register_forward_pre_hook(_hook(layer, receive)) for layer, module in self.projections.items()]
        try:
            with torch.inference_mode():
                self.module(input_ids=ids.to(self.device), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()


def choose_device(device: str) -> str:
    """Resolve ``auto``, and refuse a device that is not there."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise InputError(f"unknown device {device!r}: use cpu, cuda or cuda:N") from None
    if kind not in ("cpu", "cuda"):
        raise InputError(f"device {device!r} is not supported: use cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device!r} asked for, but this torch sees no GPU: use --device cpu")
    return device


def choose_dtype(dtype: str, device: str) -> Any:
    """Resolve a dtype name for ``from_pretrained``."""
    import torch

    if dtype not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r}: known are {', '.join(DTYPES)}")
    if dtype == "auto":
        return torch.float32 if device == "cpu" else "auto"
    return getattr(torch, dtype)


def _hook(layer: int, receive: Callable[[str, int, "torch.Tensor"], None]) -> Callable[[Any, tuple[Any, ...]], None]:
    def hook(_module: Any, inputs: tuple[Any, ...]) -> None:
        receive(DEFAULT_SITE, layer, inputs[0])

    return hook
