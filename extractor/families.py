"""Where each family of transformers keeps its MLP neurons: one table, matched to a model by the names of its modules."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from neuronlake.store.errors import InputError

_LAYER = "{layer}"
_SHOWN = 8  # candidates that an error lists


@dataclass(frozen=True, kw_only=True)
class Family:
    """Names of modules. All but `output` are relative to the layer; of several, the first that the model has is meant."""

    name: str
    """Some members, for people."""
    output: str
    """The MLP's output projection, whose input are the neurons; or the module that holds the weights of all experts."""
    up: tuple[str, ...] = ()
    """Linear part: the up projection of a gated MLP, the first projection of one without gate."""
    gate: tuple[str, ...] = ()
    """Projection into the activation function. Twice as wide as the MLP: gate and up in one, gate first."""
    activation: tuple[str, ...] = ()
    """Activation function of a gated MLP, a module that is called once with the gate."""
    heads: tuple[str, ...] = ()
    """Output projection of the attention."""
    heads_unless: str = ""
    """A module whose presence says that the attention is one function call, its output projection never called."""
    shared: tuple[str, ...] = ()
    """Output projection of the expert that sees every token."""
    experts: bool = False
    """Whether `output` holds experts."""


FAMILIES = (
    Family(
        name="Llama, Mistral, Qwen 2/3, Gemma 1–3, Phi-3, OLMo, Granite, SmolLM3, Nemotron",
        output="layers.{layer}.mlp.down_proj",
        up=("mlp.up_proj",),
        gate=("mlp.gate_proj", "mlp.gate_up_proj"),
        activation=("mlp.act_fn", "mlp.activation_fn"),
        heads=("self_attn.o_proj",),
    ),
    Family(
        name="Mixtral, Qwen-MoE, OLMoE",
        output="layers.{layer}.mlp.experts",
        heads=("self_attn.o_proj",),
        shared=("mlp.shared_expert.down_proj", "mlp.shared_experts.down_proj"),
        experts=True,
    ),
    Family(
        name="GPT-2, GPT-Neo, GPT-BigCode",
        output="h.{layer}.mlp.c_proj",
        up=("mlp.c_fc",),
        heads=("attn.c_proj", "attn.attention.out_proj"),
    ),
    Family(name="GPT-J, CodeGen", output="h.{layer}.mlp.fc_out", up=("mlp.fc_in",), heads=("attn.out_proj",)),
    Family(
        name="GPT-NeoX, Pythia",
        output="layers.{layer}.mlp.dense_4h_to_h",
        up=("mlp.dense_h_to_4h",),
        heads=("attention.dense",),
    ),
    Family(
        name="BLOOM, Falcon",
        output="h.{layer}.mlp.dense_4h_to_h",
        up=("mlp.dense_h_to_4h",),
        heads=("self_attention.dense",),
    ),
    Family(name="MPT", output="blocks.{layer}.ffn.down_proj", up=("ffn.up_proj",), heads=("attn.out_proj",)),
    Family(name="Phi-1, Phi-2", output="layers.{layer}.mlp.fc2", up=("mlp.fc1",), heads=("self_attn.dense",)),
    Family(name="StarCoder2", output="layers.{layer}.mlp.c_proj", up=("mlp.c_fc",), heads=("self_attn.o_proj",)),
    Family(
        name="OPT, BART, Whisper (encoder)",
        output="layers.{layer}.fc2",
        up=("fc1",),
        heads=("self_attn.out_proj",),
    ),
    Family(
        name="BERT, RoBERTa, ELECTRA, DeBERTa",
        output="layer.{layer}.output.dense",
        up=("intermediate.dense",),
        heads=("attention.output.dense",),
    ),
    Family(name="DistilBERT", output="layer.{layer}.ffn.lin2", up=("ffn.lin1",), heads=("attention.out_lin",)),
    Family(
        name="ModernBERT",
        output="layers.{layer}.mlp.Wo",
        gate=("mlp.Wi",),
        activation=("mlp.act",),
        heads=("attn.Wo",),
    ),
    Family(
        name="T5 (encoder), also gated",
        output="block.{layer}.layer.1.DenseReluDense.wo",
        up=("layer.1.DenseReluDense.wi", "layer.1.DenseReluDense.wi_1"),
        gate=("layer.1.DenseReluDense.wi_0",),
        activation=("layer.1.DenseReluDense.act",),
        heads=("layer.0.SelfAttention.o",),
    ),
    Family(
        name="wav2vec 2.0, HuBERT, WavLM",
        output="layers.{layer}.feed_forward.output_dense",
        up=("feed_forward.intermediate_dense",),
        heads=("attention.out_proj",),
        heads_unless="attention.gru_rel_pos_linear",  # WavLM
    ),
)

# Their tokens attend only to earlier ones, so that padding on the right needs no mask and attention its fast path. Anything
# else gets a mask, which is always right.
CAUSAL = frozenset({
    "arcee", "bloom", "codegen", "cohere", "cohere2", "falcon", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt2",
    "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_oss", "gptj", "granite", "llama", "ministral", "mistral", "mixtral", "mpt",
    "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "opt", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe",
    "smollm3", "stablelm", "starcoder2",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Neurons:
    """A model's modules, one per layer, that its sites hang on. An empty tuple: the model has no such module."""

    model: Any
    """The part of the model that is run: all of it, or the encoder of an encoder–decoder."""
    pattern: str
    """Full name of the output projections, with ``{layer}``."""
    output: tuple[Any, ...]
    layers: tuple[Any, ...] = ()
    up: tuple[Any, ...] = ()
    gate: tuple[Any, ...] = ()
    activation: tuple[Any, ...] = ()
    heads: tuple[Any, ...] = ()
    shared: tuple[Any, ...] = ()
    moe: tuple[Any, ...] = ()
    """Mixture-of-experts blocks around `output`, which then are modules of experts."""


def find_neurons(model: Any, *, module: str | None = None) -> Neurons:
    """Find the neurons of a model by the names of its modules.

    Parameters
    ----------
    model
        A transformers model without head; weights are not needed.
    module
        Name of the MLP's output projection with ``{layer}`` for its number, for a model that the table does not know.
        Leading parts may be left out.

    Raises
    ------
    InputError
        When nothing matches, several things do, or the layers are not alike.
    """
    run, scope = _parts(model)
    names = {name: part for name, part in model.named_modules() if part is run or name.startswith(scope)}
    if module is not None:
        return _named(model, run, names, module)
    found = {
        (family.name, prefix): (family, layers)
        for family in FAMILIES
        for prefix, layers in _matches(names, family.output).items()
    }
    if not found:
        raise InputError(f"{_kind(model)} is of no family that is known here: {_candidates(names)}")
    patterns = [prefix + family.output for (_, prefix), (family, _) in found.items()]
    whole = [
        (family, prefix, layers)
        for (_, prefix), (family, layers) in found.items()
        if sorted(layers) == list(range(_depth(names, prefix + family.output)))
    ]
    if not whole:
        parts = "; ".join(
            f"{prefix + family.output} in {_ranges(layers)} of {_depth(names, prefix + family.output)} layers"
            for (_, prefix), (family, layers) in found.items()
        )
        raise InputError(
            f"{_kind(model)}: its layers are not alike ({parts}), but all layers of a lake have the same number of neurons"
        )
    if len(whole) > 1:
        raise InputError(f'{_kind(model)} keeps neurons in several places: choose one with --module "…" of {patterns}')
    family, prefix, layers = whole[0]
    return _resolve(names, run, family, prefix, len(layers))


def is_causal(config: Any) -> bool:
    """Whether a configuration is known to let tokens attend only to earlier ones."""
    text = config.get_text_config()
    return (
        text.model_type in CAUSAL
        and not getattr(text, "use_bidirectional_attention", False)
        and getattr(text, "is_causal", True) is not False
    )


def width_in(module: Any) -> int:
    """Columns of a linear-like module's input."""
    return int(module.in_features if hasattr(module, "in_features") else module.nx)


def width_out(module: Any) -> int:
    """Columns of a linear-like module's output."""
    return int(module.out_features if hasattr(module, "out_features") else module.nf)


def _parts(model: Any) -> tuple[Any, str]:
    """Return the part to run, and the prefix of the names to search: the encoder's, or a multimodal model's text part's."""
    run = model
    if getattr(model.config, "is_encoder_decoder", False):
        run = where = model.get_encoder()
    else:
        where = model.get_decoder()
    name = next((name for name, part in model.named_modules() if part is where), "")
    return run, f"{name}." if name else ""


def _matches(names: Mapping[str, Any], pattern: str) -> dict[str, dict[int, Any]]:
    """Return prefix → layer → module of what the pattern names, in every stack of layers."""
    before, after = pattern.split(_LAYER)
    expression = re.compile(rf"(?P<prefix>(?:.+\.)?){re.escape(before)}(?P<layer>\d+){re.escape(after)}")
    found: dict[str, dict[int, Any]] = {}
    for name, part in names.items():
        if match := expression.fullmatch(name):
            found.setdefault(match["prefix"], {})[int(match["layer"])] = part
    return found


def _depth(names: Mapping[str, Any], pattern: str) -> int:
    """Layers in the stack that a full pattern points into."""
    stack = names.get(pattern.split(_LAYER)[0].removesuffix("."))
    return sum(name.isdigit() for name, _ in stack.named_children()) if stack is not None else 0


def _resolve(names: Mapping[str, Any], run: Any, family: Family, prefix: str, layers: int) -> Neurons:
    stack = prefix + family.output.split(_LAYER)[0]

    def modules(candidates: tuple[str, ...]) -> tuple[Any, ...]:
        for name in candidates:
            found = tuple(names.get(f"{stack}{layer}.{name}") for layer in range(layers))
            if None not in found and len({id(part) for part in found}) == layers:
                return found
        return ()

    after = family.output.split(f"{_LAYER}.")[1]
    gate = modules(family.gate)
    return Neurons(
        model=run,
        pattern=prefix + family.output,
        output=modules((after,)),
        layers=tuple(names[f"{stack}{layer}"] for layer in range(layers)),
        up=modules(family.up),
        gate=gate,
        activation=modules(family.activation) if gate else (),
        heads=() if f"{stack}0.{family.heads_unless}" in names else modules(family.heads),
        shared=modules(family.shared),
        moe=modules((after.rpartition(".")[0],)) if family.experts else (),
    )


def _named(model: Any, run: Any, names: Mapping[str, Any], pattern: str) -> Neurons:
    """Return what a pattern given by the user names."""
    if pattern.count(_LAYER) != 1:
        raise InputError(f'--module "{pattern}" must contain {_LAYER} exactly once, for the number of the layer')
    found = _matches(names, pattern)
    if not found:
        raise InputError(f'--module "{pattern}" matches no module of {_kind(model)}: {_candidates(names)}')
    if len(found) > 1 and "" not in found:  # a full name means itself
        raise InputError(f'--module "{pattern}" matches several stacks of layers: {", ".join(p + pattern for p in found)}')
    prefix = "" if "" in found else next(iter(found))
    layers, full = found[prefix], prefix + pattern
    if sorted(layers) != list(range(len(layers))) or len(layers) < _depth(names, full):
        raise InputError(
            f'--module "{pattern}" matches in {_ranges(layers)} of {_kind(model)}, expected it in each of its '
            f"{max(_depth(names, full), max(layers) + 1)} layers"
        )
    output = tuple(part for _, part in sorted(layers.items()))
    if not all(_is_linear(part) for part in output):
        raise InputError(f'--module "{pattern}": {type(output[0]).__name__} is not a linear layer: {_candidates(names)}')
    if len(widths := {width_in(part) for part in output}) > 1:
        raise InputError(f'--module "{pattern}": layers differ in their number of neurons ({sorted(widths)})')
    return Neurons(model=run, pattern=full, output=output)


def _is_linear(part: Any) -> bool:
    return hasattr(part, "in_features") or (hasattr(part, "nx") and hasattr(part, "nf"))


def _repeated(names: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    """Yield (pattern, inputs, outputs) of the linear layers that repeat in every layer, those with most inputs first."""
    groups: dict[str, dict[int, Any]] = {}
    for name, part in names.items():
        if _is_linear(part):
            for number in re.finditer(r"(?:^|(?<=\.))\d+(?=\.|$)", name):
                pattern = name[: number.start()] + _LAYER + name[number.end() :]
                groups.setdefault(pattern, {})[int(number[0])] = part
    whole = {pattern: group for pattern, group in groups.items() if sorted(group) == list(range(len(group)))}
    deepest = max((len(group) for group in whole.values()), default=0)
    rows = [(pattern, width_in(group[0]), width_out(group[0])) for pattern, group in whole.items() if len(group) == deepest]
    yield from sorted(rows, key=lambda row: (-row[1], row[2], row[0]))


def _candidates(names: Mapping[str, Any]) -> str:
    """Say how to name a module, for an error message."""
    rows = list(_repeated(names))
    if not rows:
        return "it has no linear layer that repeats in every layer, and cannot be read"
    # An output projection is the one that makes a layer's many neurons few again.
    example = next((pattern for pattern, inputs, outputs in rows if inputs > outputs), rows[0][0])
    shown = ", ".join(f"{pattern} (in_features {inputs})" for pattern, inputs, _ in rows[:_SHOWN])
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return f'name the module whose inputs are the neurons, as in --module "{example}"; its layers have {shown}{more}'


def _kind(model: Any) -> str:
    return type(model).__name__


def _ranges(layers: Mapping[int, Any]) -> str:
    """Write layer numbers shortly: ``layers 0–3, 5``."""
    parts: list[list[int]] = []
    for number in sorted(layers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return "layers " + ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in parts)
