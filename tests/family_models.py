"""Tiny random models of many families, and their values computed from their own weights by NumPy."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import erf
from transformers import CONFIG_MAPPING, AutoModel

from neuronlake.extractor.families import FAMILIES, find_neurons
from neuronlake.extractor.sites import site_widths

Array = NDArray[Any]
DENSE_SITES = ("mlp.post", "mlp.gate", "mlp.gate_sign", "mlp.up", "mlp.out", "attn.head_out", "resid.post")
HIDDEN, NEURONS, LAYERS, VOCABULARY, POSITIONS = 32, 56, 2, 100, 20

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: np.maximum(x, 0),
}
USUAL = {
    "hidden_size": HIDDEN, "intermediate_size": NEURONS, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {**USUAL, "num_key_value_heads": 2}
SPEECH = {
    "hidden_size": HIDDEN, "intermediate_size": NEURONS, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "conv_dim": (8, 8), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """A family: its configuration, and where its modules are. Paths are relative to the layer."""

    id: str
    config: dict[str, Any]
    layer: str
    """Path of a layer in what `Model` runs, with ``{}``."""
    down: str
    activation: str
    mlp_input: str
    """Module, and whether its first input or its output is what the MLP sees."""
    heads: str
    """The attention's output projection W_o; empty: never called as a module."""
    attention: str
    """Module whose output is W_o·heads (+ residual, see `adds_residual`), or the heads themselves if `bare_heads`."""
    bare_heads: bool = False
    up: str | None = None
    gate: str | None = None
    """Without `up`: gate and up in one projection."""
    adds_residual: bool = False
    final_norm: str | None = None
    """Of the model: applied to the last layer's output before it becomes the last hidden state."""
    neurons: int = NEURONS
    count: str = "intermediate_size"
    """What the configuration calls their number."""
    head_columns: int = HIDDEN
    limit: int = POSITIONS
    """Longest sequence that the configuration allows."""
    hard_limit: bool = False
    """A longer one fails."""
    causal: bool = True
    model_type: str = ""

    @property
    def kind(self) -> str:
        """Of the configuration."""
        return self.model_type or self.id


def save(model_type: str, config: dict[str, Any], folder: Path) -> None:
    """Save a model with random weights, biases and norms, so that none of them could be forgotten unnoticed."""
    torch.manual_seed(0)
    model = AutoModel.from_config(CONFIG_MAPPING[model_type](**config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = parameter.normal_(0, 0.2)
            if "norm" in name.lower() and name.endswith("weight"):
                scale += 1
    model.save_pretrained(folder)


def linear(module: Any) -> tuple[Array, Array | float]:
    """Weights (inputs, outputs) and bias in float64."""
    weight = module.weight.detach().double().numpy()
    bias = module.bias.detach().double().numpy() if getattr(module, "bias", None) is not None else 0.0
    return (weight if type(module).__name__ == "Conv1D" else weight.T), bias


def apply(module: Any, x: Array) -> Array:
    """A linear layer by NumPy."""
    weight, bias = linear(module)
    return x @ weight + bias


class Spy:
    """Remembers what went into modules and came out, as transformers calls them."""

    def __init__(self, model: Any, paths: list[str]):
        self.seen: dict[str, tuple[Array, Array]] = {}
        for path in paths:
            model.get_submodule(path).register_forward_hook(self._remember(path), with_kwargs=True)

    def _remember(self, path: str) -> Callable[..., None]:
        def hook(_module: Any, args: Any, kwargs: Any, output: Any) -> None:
            first = args[0] if args else next(iter(kwargs.values()))
            result = output[0] if isinstance(output, tuple) else output
            self.seen[path] = first.detach().double().numpy(), result.detach().double().numpy()

        return hook

    def __getitem__(self, where: str) -> Array:
        path, _, side = where.partition(":")
        return self.seen[path][side == "out"]


def reference(case: Case, model: Any, inputs: dict[str, Any]) -> Iterator[tuple[str, int, Array]]:
    """Yield (site, layer, float64 (positions, width)) of one sequence, from what the MLPs see and from the weights.

    A site "W_o attn.head_out" or "final_norm resid.post" is what that module makes of the values.
    """
    places = [case.layer.format(layer) for layer in range(LAYERS)]
    spy = Spy(
        model,
        [f"{place}.{path}" for place in places for path in (case.mlp_input.partition(":")[0], case.attention)] + places,
    )
    with torch.inference_mode():
        output = model(**inputs, output_hidden_states=True)
    hidden = [state.double().numpy() for state in output.hidden_states]
    act = ACTIVATIONS[case.activation]
    for layer, place in enumerate(places):
        module = model.get_submodule(place)
        x = spy[f"{place}.{case.mlp_input}"].reshape(-1, HIDDEN)
        if case.gate is None:
            up = apply(module.get_submodule(str(case.up)), x)
            post = act(up)
        else:
            first = apply(module.get_submodule(case.gate), x)
            if case.up is None:
                first, up = first[:, : case.neurons], first[:, case.neurons :]
            else:
                up = apply(module.get_submodule(case.up), x)
            post = act(first) * up
            yield "mlp.gate", layer, act(first)
            yield "mlp.gate_sign", layer, (first > 0).astype(float)
        yield "mlp.up", layer, up
        yield "mlp.post", layer, post
        yield "mlp.out", layer, apply(module.get_submodule(case.down), post)
        if layer + 1 < LAYERS or case.final_norm is None:
            yield "resid.post", layer, hidden[layer + 1][0]
        else:
            yield "final_norm resid.post", layer, hidden[layer + 1][0]
        if case.heads:
            mixed = spy[f"{place}.{case.attention}:out"][0]
            name = "attn.head_out" if case.bare_heads else "W_o attn.head_out"
            yield name, layer, mixed - hidden[layer][0] if case.adds_residual else mixed


CASES = [
    *(
        Case(
            id=kind, config={**GROUPED, **more}, layer="layers.{}", down="mlp.down_proj", activation=activation,
            mlp_input="mlp:in", gate="mlp.gate_proj", up="mlp.up_proj", heads="self_attn.o_proj", attention="self_attn",
            final_norm="norm", head_columns=columns,
        )
        for kind, activation, columns, more in [
            ("llama", "silu", 32, {}),
            ("mistral", "silu", 32, {"sliding_window": 4}),
            ("qwen2", "silu", 32, {}),
            ("qwen3", "silu", 64, {"head_dim": 16}),
            ("gemma", "gelu_tanh", 64, {"head_dim": 16}),
            ("gemma2", "gelu_tanh", 64, {"head_dim": 16, "sliding_window": 4}),
            ("gemma3_text", "gelu_tanh", 64, {"head_dim": 16, "sliding_window": 4}),
            ("olmo", "silu", 32, {}),
            ("olmo2", "silu", 32, {}),
            ("granite", "silu", 32, {}),
        ]
    ),
    Case(
        id="phi3", config=GROUPED, layer="layers.{}", down="mlp.down_proj", activation="silu", mlp_input="mlp:in",
        gate="mlp.gate_up_proj", heads="self_attn.o_proj", attention="self_attn", final_norm="norm",
    ),
    Case(
        id="nemotron", config={**GROUPED, "hidden_act": "relu"}, layer="layers.{}", down="mlp.down_proj", activation="relu",
        mlp_input="mlp:in", up="mlp.up_proj", heads="self_attn.o_proj", attention="self_attn", final_norm="norm",
    ),
    Case(
        count="n_inner",
        id="gpt2", config={"n_embd": 32, "n_inner": 56, "n_layer": 2, "n_head": 4, "vocab_size": 100, "n_positions": 20},
        layer="h.{}", down="mlp.c_proj", activation="gelu_tanh", mlp_input="mlp:in", up="mlp.c_fc", heads="attn.c_proj",
        attention="attn", final_norm="ln_f", hard_limit=True,
    ),
    Case(
        id="gpt_neo",
        config={
            "hidden_size": 32, "intermediate_size": 56, "num_layers": 2, "num_heads": 4, "vocab_size": 100, "window_size": 4,
            "max_position_embeddings": 20, "attention_types": [[["global", "local"], 1]],
        },
        layer="h.{}", down="mlp.c_proj", activation="gelu_tanh", mlp_input="mlp:in", up="mlp.c_fc",
        heads="attn.attention.out_proj", attention="attn", final_norm="ln_f", hard_limit=True,
    ),
    Case(
        count="n_inner",
        id="gptj",
        config={
            "n_embd": 32, "n_inner": 56, "n_layer": 2, "n_head": 4, "vocab_size": 100, "n_positions": 20, "rotary_dim": 4,
        },
        layer="h.{}", down="mlp.fc_out", activation="gelu_tanh", mlp_input="mlp:in", up="mlp.fc_in", heads="attn.out_proj",
        attention="attn", final_norm="ln_f",
    ),
    Case(
        id="gpt_bigcode",
        config={"n_embd": 32, "n_inner": 56, "n_layer": 2, "n_head": 4, "vocab_size": 100, "n_positions": 20},
        count="n_inner", layer="h.{}", down="mlp.c_proj", activation="gelu_tanh", mlp_input="mlp:in", up="mlp.c_fc",
        heads="attn.c_proj", attention="attn", final_norm="ln_f", hard_limit=True,
    ),
    Case(
        id="codegen",
        config={
            "n_embd": 32, "n_inner": 56, "n_layer": 2, "n_head": 4, "vocab_size": 100, "n_positions": 20, "rotary_dim": 4,
        },
        count="n_inner", layer="h.{}", down="mlp.fc_out", activation="gelu_tanh", mlp_input="mlp:in", up="mlp.fc_in",
        heads="attn.out_proj", attention="attn", final_norm="ln_f",
    ),
    Case(
        id="gpt_neox", config=USUAL, layer="layers.{}", down="mlp.dense_4h_to_h", activation="gelu", mlp_input="mlp:in",
        up="mlp.dense_h_to_4h", heads="attention.dense", attention="attention", final_norm="final_layer_norm",
    ),
    Case(
        count="ffn_dim",
        id="opt", config={**USUAL, "ffn_dim": 56, "word_embed_proj_dim": 32}, layer="decoder.layers.{}", down="fc2",
        activation="relu", mlp_input="final_layer_norm:out", up="fc1", heads="self_attn.out_proj", attention="self_attn",
        final_norm="decoder.final_layer_norm", hard_limit=True,
    ),
    Case(
        count="ffn_dim",
        id="opt-350m", model_type="opt",
        config={**USUAL, "ffn_dim": 56, "word_embed_proj_dim": 16, "do_layer_norm_before": False}, layer="decoder.layers.{}",
        down="fc2", activation="relu", mlp_input="self_attn_layer_norm:out", up="fc1", heads="self_attn.out_proj",
        attention="self_attn", final_norm="decoder.project_out", hard_limit=True,
    ),
    Case(
        count="4 × hidden_size",
        id="bloom", config={"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100}, layer="h.{}", neurons=128,
        down="mlp.dense_4h_to_h", activation="gelu_tanh", mlp_input="mlp:in", up="mlp.dense_h_to_4h", final_norm="ln_f",
        heads="self_attention.dense", attention="self_attention", adds_residual=True, limit=1 << 30,
    ),
    *(
        Case(
            count="ffn_hidden_size",
            id=name, model_type="falcon", config={**USUAL, "ffn_hidden_size": 56, **more}, layer="h.{}",
            down="mlp.dense_4h_to_h", activation="gelu", mlp_input="mlp:in", up="mlp.dense_h_to_4h",
            heads="self_attention.dense", attention="self_attention", final_norm="ln_f",
        )
        for name, more in [
            ("falcon-7b", {}),
            ("falcon-40b", {"new_decoder_architecture": True, "num_kv_heads": 2}),
            ("falcon-rw", {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}),
        ]
    ),
    Case(
        count="4 × d_model",
        id="mpt", config={"d_model": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 100, "max_seq_len": 20}, neurons=128,
        layer="blocks.{}", down="ffn.down_proj", activation="gelu", mlp_input="ffn:in", up="ffn.up_proj",
        heads="attn.out_proj", attention="attn", final_norm="norm_f",
    ),
    Case(
        id="phi", config=USUAL, layer="layers.{}", down="mlp.fc2", activation="gelu_tanh", mlp_input="mlp:in", up="mlp.fc1",
        heads="self_attn.dense", attention="self_attn", final_norm="final_layernorm",
    ),
    Case(
        id="starcoder2", config=GROUPED, layer="layers.{}", down="mlp.c_proj", activation="gelu_tanh", mlp_input="mlp:in",
        up="mlp.c_fc", heads="self_attn.o_proj", attention="self_attn", final_norm="norm",
    ),
    Case(
        id="embedding-gemma", model_type="gemma3_text", causal=False, head_columns=64,
        config={**GROUPED, "head_dim": 16, "sliding_window": 4, "use_bidirectional_attention": True}, layer="layers.{}",
        down="mlp.down_proj", activation="gelu_tanh", mlp_input="mlp:in", gate="mlp.gate_proj", up="mlp.up_proj",
        heads="self_attn.o_proj", attention="self_attn", final_norm="norm",
    ),
    *(
        Case(
            id=kind, causal=False, config={**USUAL, "pad_token_id": pad, **more}, layer="encoder.layer.{}",
            down="output.dense", activation="gelu", mlp_input="intermediate:in", up="intermediate.dense",
            heads="attention.output.dense", attention="attention.self", bare_heads=True, limit=limit, hard_limit=True,
        )
        for kind, pad, limit, more in [
            ("bert", 0, 20, {}),
            ("roberta", 1, 18, {}),
            ("xlm-roberta", 1, 18, {}),
            ("electra", 0, 20, {"embedding_size": 16}),
            ("deberta-v2", 0, 20, {"relative_attention": False, "position_biased_input": True}),
        ]
    ),
    Case(
        count="hidden_dim",
        id="distilbert", causal=False, hard_limit=True, layer="transformer.layer.{}", down="ffn.lin2", activation="gelu",
        config={"dim": 32, "hidden_dim": 56, "n_layers": 2, "n_heads": 4, "vocab_size": 100, "max_position_embeddings": 20},
        mlp_input="ffn:in", up="ffn.lin1", heads="attention.out_lin", attention="attention",
    ),
    Case(
        id="modernbert", causal=False,
        config={
            **USUAL, "local_attention": 4, "global_attn_every_n_layers": 2, "cls_token_id": 1, "sep_token_id": 2,
        },
        layer="layers.{}", down="mlp.Wo", activation="gelu", mlp_input="mlp:in", gate="mlp.Wi", heads="attn.Wo",
        attention="attn", final_norm="final_norm",
    ),
    *(
        Case(
            count="d_ff",
            id=name, model_type="t5", causal=False, layer="block.{}", down="layer.1.DenseReluDense.wo",
            config={
                "d_model": 32, "d_ff": 56, "d_kv": 16, "num_layers": 2, "num_heads": 4, "vocab_size": 100,
                "feed_forward_proj": projection,
            },
            activation=activation, mlp_input="layer.1.DenseReluDense:in", up=f"layer.1.DenseReluDense.{up}",
            gate=gate and f"layer.1.DenseReluDense.{gate}", heads="layer.0.SelfAttention.o", limit=1 << 30,
            attention="layer.0.SelfAttention", final_norm="final_layer_norm", head_columns=64,
        )
        for name, projection, activation, up, gate in [
            ("t5", "relu", "relu", "wi", None),
            ("t5-v1.1", "gated-gelu", "gelu_tanh", "wi_1", "wi_0"),
        ]
    ),
    Case(
        count="encoder_ffn_dim",
        id="bart", causal=False, layer="layers.{}", down="fc2", activation="gelu", mlp_input="self_attn_layer_norm:out",
        config={
            "d_model": 32, "encoder_ffn_dim": 56, "decoder_ffn_dim": 40, "encoder_layers": 2, "decoder_layers": 1,
            "encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 20,
        },
        up="fc1", heads="self_attn.out_proj", attention="self_attn", hard_limit=True,
    ),
    *(
        Case(
            id=name, model_type=name.split("-")[0], causal=False, config={**SPEECH, **more}, layer="encoder.layers.{}",
            down="feed_forward.output_dense", activation="gelu", mlp_input="feed_forward:in",
            up="feed_forward.intermediate_dense", heads="" if name == "wavlm" else "attention.out_proj",
            attention="attention", limit=1 << 30,
        )
        for name, more in [
            ("wav2vec2", {}),
            ("wav2vec2-large", {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}),
            ("hubert", {}),
            ("wavlm", {}),
        ]
    ),
    Case(
        count="encoder_ffn_dim",
        id="whisper", causal=False, layer="layers.{}", down="fc2", activation="gelu", mlp_input="final_layer_norm:out",
        config={
            "d_model": 32, "encoder_ffn_dim": 56, "decoder_ffn_dim": 40, "encoder_layers": 2, "decoder_layers": 1,
            "encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 100, "max_source_positions": 20,
            "num_mel_bins": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
        },
        up="fc1", heads="self_attn.out_proj", attention="self_attn", final_norm="layer_norm",
    ),
]  # fmt: skip


def config_count(case: Case) -> int:
    """Neurons of a layer as the configuration states them."""
    factor, _, name = case.count.rpartition(" × ")
    return int(factor or 1) * int(getattr(CONFIG_MAPPING[case.kind](**case.config), name))


def markdown_table() -> str:
    """The families of the table with what the cases show of them, for the documentation."""
    lines = [
        "| family | neurons are the inputs of | per layer, by the configuration | activation | attention | without |",
        "|---|---|---|---|---|---|",
    ]
    for family in FAMILIES:
        cases = [(case, meta) for case, meta in _meta_models() if find_neurons(meta).pattern.endswith(family.output)]
        if not cases:
            continue
        lacking = [[site for site in DENSE_SITES if site not in site_widths(find_neurons(meta))] for _, meta in cases]
        columns = [
            family.name,
            f"`{family.output}`",
            _either(f"`{case.count}`" for case, _ in cases),
            _either(case.activation for case, _ in cases),
            _either("causal" if case.causal else "both ways" for case, _ in cases),
            _either(", ".join(each) or "none" for each in lacking),
        ]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def _meta_models() -> Iterator[tuple[Case, Any]]:
    for case in CASES:
        with torch.device("meta"):
            yield case, AutoModel.from_config(CONFIG_MAPPING[case.kind](**case.config))


def _either(values: Iterable[str]) -> str:
    return " or ".join(dict.fromkeys(values))
