"""A transformer, found in a folder and run: the transformers backend."""

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neuronlake.extractor.experts import use_our_forward
from neuronlake.extractor.families import Neurons, find_neurons, is_causal
from neuronlake.extractor.packed_linear import pack_linear_layers
from neuronlake.extractor.sites import attach, choose_sites
from neuronlake.extractor.source import ModelSource
from neuronlake.extractor.transformers_glue import LOAD_ERRORS, first_line, quiet_transformers
from neuronlake.store.errors import InputError

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "bfloat16", "float16")
UNLIMITED = 1 << 30
# Names of the longest sequence in configurations. Models with relative positions only have none of them.
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_source_positions")
_LONG, _SHORT = 9, 5  # tokens of the sequences that padding is tried with
# Of a layer's largest value: sums in another order stay below it, padding that counts does not.
_PADDING_NOISE = {"float32": 2.0**-12, "float16": 2.0**-6, "bfloat16": 2.0**-4}
# Weights that no neuron depends on: a checkpoint may lack them, as those trained for masked tokens lack a pooler.
_UNUSED = frozenset({"pooler", "masked_spec_embed"})


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What the plan needs to know of a model before its weights are read."""

    layers: int
    widths: Mapping[str, int]
    """Columns of each site asked for."""
    module: str
    """Full name of the MLPs' output projections, with ``{layer}``."""
    causal: bool
    """Whether tokens are known to attend only to earlier ones."""
    rope_boundary: int | None
    """Length up to which positions are computed in one way and beyond it in another, for the whole of a batch (longrope)."""
    max_positions: int
    """Longest sequence the model was made for."""
    architecture: str
    dtype: str
    """The checkpoint's own dtype."""


def read_shape(
    source: ModelSource,
    *,
    sites: Sequence[str] | None = None,
    module: str | None = None,
    trust_remote_code: bool = False,
) -> ModelShape:
    """Read layer count, widths and context length from the configuration, without weights.

    Parameters
    ----------
    sites, module
        See `Model.load`.

    Raises
    ------
    InputError
        When the architecture is not known and `module` not given, or the model has no such site.
    """
    import torch
    from transformers import AutoConfig, AutoModel

    try:
        config = AutoConfig.from_pretrained(source.folder, trust_remote_code=trust_remote_code)
        with torch.device("meta"), quiet_transformers():
            model = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    except LOAD_ERRORS as error:
        raise InputError(f"could not read the model in {source.folder}: {first_line(error)}") from error
    neurons = find_neurons(model, module=module)
    if not hasattr(neurons.model, "main_input_name"):
        raise InputError(f"{config.model_type}: its {type(neurons.model).__name__} cannot be run by itself in transformers")
    widths = choose_sites(neurons, sites)
    return ModelShape(
        layers=len(neurons.output),
        widths=widths,
        module=neurons.pattern,
        causal=is_causal(config),
        rope_boundary=rope_boundary(config),
        max_positions=context_length(neurons.model, config),
        architecture=str(config.model_type),
        dtype=str(config.dtype or torch.float32).removeprefix("torch."),
    )


def rope_boundary(config: Any) -> int | None:
    """Return the length from which on longrope takes other factors, None for models without it."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    # some models have one per kind of layer
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]
    found = [kind["original_max_position_embeddings"] for kind in kinds if kind.get("rope_type") == "longrope"]
    return min(map(int, found), default=None)


def context_length(model: Any, config: Any) -> int:
    """Return the longest sequence that a model (or its encoder) was made for."""
    from torch.nn import Embedding

    config = getattr(model, "config", config).get_text_config()
    named = (getattr(config, name, None) for name in _CONTEXT)
    longest = next((int(value) for value in named if isinstance(value, int) and value > 0), UNLIMITED)
    for name, part in model.named_modules():
        # RoBERTa and its relatives count positions from the padding's on
        if name.endswith("position_embeddings") and isinstance(part, Embedding) and part.padding_idx is not None:
            longest = min(longest, part.num_embeddings - part.padding_idx - 1)
    return longest


PACKED = "oneDNN, weights laid out once"
"""In a block's provenance, as ``linear``: see `pack_linear_layers`."""


class Model:
    """A loaded model, without its language-model head, in evaluation mode on one device."""

    def __init__(self, neurons: Neurons, *, sites: Sequence[str] | None, causal: bool, device: str, threads: int):
        import torch

        self.widths = choose_sites(neurons, sites)
        """Columns of each site."""
        self.module = neurons.model.to(device).eval()
        self.device = torch.device(device)
        self.causal = causal
        self.pads = True
        """Whether a sequence has the same values alone and padded beside a longer one."""
        self.layers = len(neurons.output)
        self._rope_boundary: int | None = None
        self._packed = False
        self._neurons = neurons
        self._threads = threads
        if neurons.moe:
            use_our_forward(self.module, neurons.output)
        accepted = inspect.signature(self.module.forward).parameters
        self._options = {"use_cache": False} if "use_cache" in accepted else {}

    @classmethod
    def load(
        cls,
        source: ModelSource,
        *,
        device: str = "auto",
        dtype: str = "auto",
        trust_remote_code: bool = False,
        sites: Sequence[str] | None = None,
        module: str | None = None,
        packed: bool = False,
    ) -> "Model":
        """Load the weights. Of an encoder–decoder only the encoder is kept.

        Parameters
        ----------
        device
            ``auto`` takes a GPU if there is one.
        dtype
            ``auto`` is float32 on a CPU and the checkpoint's own dtype on a GPU.
        sites
            What to hand over, see `neuronlake.extractor.sites`; by default the neurons, and the routing to experts.
        module
            Name of the MLP's output projection with ``{layer}``, for a family that is not known.
        packed
            On a CPU, let float32 linear layers compute faster and with other last bits, see `pack_linear_layers`.

        Raises
        ------
        InputError
            When the device is not there, the weights cannot be read, or the model has no such site.
        """
        import torch
        from transformers import AutoModel

        device = choose_device(device)
        try:
            with quiet_transformers():
                model, loading = AutoModel.from_pretrained(
                    source.folder,
                    dtype=choose_dtype(dtype, device),
                    trust_remote_code=trust_remote_code,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # told below, with names
                )
        except LOAD_ERRORS as error:
            raise InputError(f"could not load the model in {source.folder}: {first_line(error)}") from error
        neurons = find_neurons(model, module=module)
        # transformers fills what a checkpoint lacks with random numbers and only remarks on it
        if missing := missing_weights(model, neurons.model, loading):
            raise InputError(
                f"{source.folder}: the checkpoint lacks {len(missing)} weights of {type(model).__name__}, or has them in "
                f"another shape, first {missing[0]}; it is not a checkpoint of this architecture"
            )
        loaded = cls(neurons, sites=sites, causal=is_causal(model.config), device=device, threads=torch.get_num_threads())
        loaded._rope_boundary = rope_boundary(model.config)
        loaded._packed = packed and loaded.device.type == "cpu" and pack_linear_layers(loaded.module)
        if loaded.module.main_input_name == "input_ids" and (module is not None or not loaded.causal):
            loaded.pads = loaded._try_padding()
        return loaded

    def company(self, length: int) -> int:
        """Tell which sequences may share a batch: those of lengths with the same number (`capture.Company`)."""
        if not self.pads:
            return length
        return int(self._rope_boundary is not None and length > self._rope_boundary)

    def _try_padding(self) -> bool:
        """Compare two short sequences in one batch with each of them alone.

        Masks do not keep padding out of convolutions, Fourier transforms and the like. A model that keeps positions first,
        or pads by itself, is refused here.
        """
        import torch

        config = self.module.config.get_text_config() if hasattr(self.module, "config") else None
        highest = min(int(getattr(config, "vocab_size", 100)), 100)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(highest // 2, highest, (2, _LONG), generator=generator)
        mask = torch.ones(2, _LONG, dtype=torch.bool)
        ids[1, _SHORT:], mask[1, _SHORT:] = 0, False
        kept: list[dict[tuple[str, int], torch.Tensor]] = []

        def keep(site: str, layer: int, values: "torch.Tensor") -> None:
            kept[-1][site, layer] = values.detach().float().cpu().clone()

        # the long one first: some models change for good at their first short sequence (BigBird)
        for inputs, real in ((ids[:1], mask[:1]), (ids[1:, :_SHORT], mask[1:, :_SHORT]), (ids, mask)):
            kept.append({})
            self.capture(inputs, keep, mask=real)
        alone, short, both = kept
        noise = _PADDING_NOISE.get(str(self.module.dtype).removeprefix("torch."), max(_PADDING_NOISE.values()))
        for key, values in both.items():
            largest = max(float(values.abs().max()), 1e-30)
            apart = max(
                float((values[0] - alone[key][0]).abs().max()), float((values[1, :_SHORT] - short[key][0]).abs().max())
            )
            if apart > noise * largest:
                return False
        return True

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
            "linear": PACKED if self._packed else "torch",
        }

    def capture(
        self,
        inputs: "torch.Tensor",
        receive: Callable[[str, int, "torch.Tensor"], None],
        *,
        mask: "torch.Tensor | None" = None,
    ) -> None:
        """Run one batch and hand over each layer's sites as they are computed.

        Parameters
        ----------
        inputs : int64 (sequences, positions)
            Token ids, padded on the right (or whatever the model's main input is: samples, spectrogram).
        receive
            Called once per site and layer with (site, layer, values (sequences, positions, width)). The tensor belongs to
            the model and is only valid during the call. What is computed for padding is for the receiver to drop.
        mask : bool (sequences, positions)
            Which positions are real. Not needed by a causal model, where no real token attends to the padding after it, and
            not used by one, so that attention keeps its fast path.

        Raises
        ------
        InputError
            When a module did not run exactly once.
        """
        import torch

        if mask is None and not self.causal:
            raise ValueError("this model's tokens may attend to any other: it needs the mask of the real ones")
        calls: Counter[tuple[str, int]] = Counter()
        # of text a position is a token; speech models make frames of samples, as many in every layer
        positions = None if inputs.is_floating_point() else inputs.shape[1]

        def shaped(site: str, layer: int, values: "torch.Tensor") -> None:
            nonlocal positions
            calls[site, layer] += 1
            if values.ndim == 2:  # OPT and mixtures of experts: (sequences · positions, width)
                values = values.unflatten(0, (len(inputs), -1))
            positions = positions or values.shape[1]
            if values.shape != (expected := (len(inputs), positions, self.widths[site])):
                raise InputError(
                    f"{type(self.module).__name__}: site {site} of layer {layer} has shape {tuple(values.shape)}, expected "
                    f"{expected}: sequences, positions, width"
                )
            receive(site, layer, values)

        options = dict(self._options)
        if not self.causal and mask is not None:
            options["attention_mask"] = mask.to(self.device, torch.int64)
        handles = attach(self._neurons, tuple(self.widths), shaped)
        try:
            with torch.inference_mode():
                self.module(**{self.module.main_input_name: inputs.to(self.device)}, **options)
        finally:
            for handle in handles:
                handle.remove()
        for site, layer in ((site, layer) for site in self.widths for layer in range(self.layers)):
            if calls[site, layer] != 1:
                raise InputError(
                    f"{type(self.module).__name__}: site {site} of layer {layer} was computed {calls[site, layer]} times in "
                    f"a forward pass, expected once: {self._neurons.pattern} is not where this model keeps its neurons"
                )


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


def missing_weights(model: Any, run: Any, loading: Mapping[str, Any]) -> list[str]:
    """Names of weights that the checkpoint lacks and the values depend on."""
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    run_tensors = {id(tensor) for tensor in (*run.parameters(), *run.buffers())}
    lacking = [*loading["missing_keys"], *(key if isinstance(key, str) else key[0] for key in loading["mismatched_keys"])]
    return sorted(
        name
        for name in lacking
        if not _UNUSED & set(name.split(".")) and (name not in tensors or id(tensors[name]) in run_tensors)
    )
