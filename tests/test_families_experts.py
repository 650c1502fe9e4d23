"""Mixtures of experts: expert by expert in NumPy, from the router's weights on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_models import ACTIVATIONS, GROUPED, HIDDEN, LAYERS, Array, Spy, apply, save

from neuronlake.extractor import resolve_model
from neuronlake.extractor.model import Model, read_shape
from neuronlake.store.errors import InputError

EXPERTS, TOP, NEURONS, SHARED = 6, 2, 24, 40
LENGTHS = (7, 3)
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": EXPERTS, "intermediate_size": NEURONS},
    "qwen2_moe": {
        "num_experts": EXPERTS, "moe_intermediate_size": NEURONS, "shared_expert_intermediate_size": SHARED,
        "decoder_sparse_step": 1, "norm_topk_prob": False,
    },
    "qwen3_moe": {"num_experts": EXPERTS, "moe_intermediate_size": NEURONS, "norm_topk_prob": True, "head_dim": 8},
    "olmoe": {"num_experts": EXPERTS, "intermediate_size": NEURONS, "norm_topk_prob": False},
    # biases, transposed weights, interleaved gate and up, a clamped gate
    "gpt_oss": {"num_local_experts": EXPERTS, "intermediate_size": NEURONS, "head_dim": 8},
}  # fmt: skip
SITES = ("mlp.post", "mlp.gate", "mlp.gate_sign", "mlp.up", "mlp.routing", "mlp.out")


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def build(kind: str, folder: Path) -> None:
    save(kind, {**GROUPED, "num_experts_per_tok": TOP, **MIXTURES[kind]}, folder)


def double(tensor: torch.Tensor) -> Array:
    return tensor.detach().double().numpy()


def expected(kind: str, block: Any, x: Array) -> dict[str, Array]:
    """One layer's values for x (tokens, hidden)."""
    tokens = len(x)
    router, experts = (block.router, block.experts) if kind == "gpt_oss" else (block.gate, block.experts)
    logits = x @ double(router.weight).T + (double(router.bias) if kind == "gpt_oss" else 0)
    chosen = np.argsort(-logits, axis=1)[:, :TOP]
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    if kind in ("mixtral", "qwen3_moe", "gpt_oss"):
        weights /= np.take_along_axis(weights, chosen, axis=1).sum(axis=1, keepdims=True)
    result = {site: np.zeros((tokens, EXPERTS, NEURONS)) for site in SITES[:4]}
    result |= {"mlp.routing": np.zeros((tokens, EXPERTS)), "mlp.out": np.zeros((tokens, HIDDEN))}
    for token in range(tokens):
        for expert in chosen[token]:
            first, down = double(experts.gate_up_proj[expert]), double(experts.down_proj[expert])
            if kind == "gpt_oss":
                both = x[token] @ first + double(experts.gate_up_proj_bias[expert])
                gate, up = np.minimum(both[::2], 7), np.clip(both[1::2], -7, 7)
                post = (up + 1) * gate * sigmoid(1.702 * gate)
                out = post @ down + double(experts.down_proj_bias[expert])
            else:
                gate, up = np.split(first @ x[token], 2)
                post = ACTIVATIONS["silu"](gate) * up
                out = down @ post
                result["mlp.gate"][token, expert] = ACTIVATIONS["silu"](gate)
                result["mlp.gate_sign"][token, expert] = gate > 0
                result["mlp.up"][token, expert] = up
            result["mlp.post"][token, expert] = post
            result["mlp.routing"][token, expert] = weights[token, expert]
            result["mlp.out"][token] += weights[token, expert] * out
    if kind == "qwen2_moe":
        shared = block.shared_expert
        result["mlp.shared"] = ACTIVATIONS["silu"](apply(shared.gate_proj, x)) * apply(shared.up_proj, x)
        result["mlp.out"] += sigmoid(apply(block.shared_expert_gate, x)) * apply(shared.down_proj, result["mlp.shared"])
    return {site: values.reshape(tokens, -1) for site, values in result.items()}


@pytest.mark.parametrize("kind", MIXTURES)
def test_values_are_those_of_the_experts(kind: str, tmp_path: Path) -> None:
    build(kind, tmp_path)
    source = resolve_model(str(tmp_path))
    sites = [site for site in SITES if kind != "gpt_oss" or site not in ("mlp.gate", "mlp.gate_sign", "mlp.up")]
    if kind == "qwen2_moe":
        sites.append("mlp.shared")
    shape = read_shape(source, sites=sites)
    assert dict(shape.widths) == {
        site: {"mlp.routing": EXPERTS, "mlp.out": HIDDEN, "mlp.shared": SHARED}.get(site, EXPERTS * NEURONS)
        for site in sites
    }
    model = Model.load(source, device="cpu", sites=sites)
    ids = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.int64)
    for line, length in enumerate(LENGTHS):
        ids[line, :length] = torch.randint(3, 100, (length,), generator=torch.Generator().manual_seed(line))
    seen: dict[tuple[str, int], Array] = {}
    model.capture(ids, lambda site, layer, values: seen.update({(site, layer): double(values).copy()}), mask=ids > 0)
    assert len(seen) == len(sites) * LAYERS
    for line, length in enumerate(LENGTHS):
        spy = Spy(model.module, [f"layers.{layer}.mlp" for layer in range(LAYERS)])
        with torch.inference_mode():
            model.module(input_ids=ids[line : line + 1, :length])
        for layer in range(LAYERS):
            wanted = expected(kind, model.module.layers[layer].mlp, spy[f"layers.{layer}.mlp:in"][0])
            for site in sites:
                got = seen[site, layer][line, :length]
                if site != "mlp.out":
                    assert ((got == 0) == (wanted[site] == 0)).all()
                assert np.abs(got - wanted[site]).max() <= 1e-5 * np.abs(wanted[site]).max(), (site, layer)


@pytest.mark.parametrize("kind", ["qwen2_moe", "gpt_oss"])
def test_our_forward_is_transformers_own(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModel

    build(kind, tmp_path)
    ours = Model.load(resolve_model(str(tmp_path)), device="cpu")
    ids = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(0))
    theirs = AutoModel.from_pretrained(tmp_path, experts_implementation="eager").eval()
    with torch.inference_mode():
        wanted = theirs(input_ids=ids).last_hidden_state
        torch.testing.assert_close(ours.module(input_ids=ids).last_hidden_state, wanted, rtol=1e-5, atol=1e-5)


def test_sites_that_experts_lack_are_named(tmp_path: Path) -> None:
    build("gpt_oss", tmp_path)
    with pytest.raises(InputError, match=r"GptOssModel has no site 'mlp\.gate': it has mlp\.post, mlp\.out, mlp\.routing, "):
        read_shape(resolve_model(str(tmp_path)), sites=["mlp.gate"])


def test_dense_layers_among_sparse_ones_are_refused(tmp_path: Path) -> None:
    save("qwen2_moe", {**GROUPED, "num_experts_per_tok": TOP, **MIXTURES["qwen2_moe"], "mlp_only_layers": [0]}, tmp_path)
    with pytest.raises(
        InputError,
        match=r"Qwen2MoeModel: its layers are not alike \(layers\.\{layer\}\.mlp\.down_proj in layers 0 of 2 layers; "
        r"layers\.\{layer\}\.mlp\.experts in layers 1 of 2 layers\)",
    ):
        read_shape(resolve_model(str(tmp_path)))


def test_experts_that_are_built_otherwise_are_refused(tmp_path: Path) -> None:
    """As a mixture with code of its own may have them: a list of MLPs."""
    from transformers import AutoModel

    from neuronlake.extractor.families import find_neurons
    from neuronlake.extractor.sites import site_widths

    build("olmoe", tmp_path)
    model = AutoModel.from_pretrained(tmp_path)
    for layer in model.layers:
        layer.mlp.experts = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    with pytest.raises(InputError, match="ModuleList: its experts are not built on transformers' ExpertsInterface"):
        site_widths(find_neurons(model))
