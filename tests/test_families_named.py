"""Models that the table does not know, module names given by hand, and checkpoints that lack weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_models import ACTIVATIONS, CASES, GROUPED, HIDDEN, LAYERS, USUAL, Spy, apply, linear, save
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModel

from neuronlake.extractor import resolve_model
from neuronlake.extractor.families import FAMILIES, find_neurons
from neuronlake.extractor.model import Model, read_shape
from neuronlake.extractor.sites import choose_sites
from neuronlake.store.errors import InputError

XLM = {
    "emb_dim": HIDDEN, "n_layers": LAYERS, "n_heads": 4, "vocab_size": 100, "max_position_embeddings": 20, "n_langs": 1,
    "gelu_activation": True,
}  # fmt: skip
BY_ID = {case.id: case for case in CASES}


@pytest.fixture(scope="module")
def xlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its MLPs are in a list of their own, beside the attentions."""
    folder = tmp_path_factory.mktemp("xlm")
    save("xlm", XLM, folder)
    return folder


def meta(kind: str, config: dict[str, Any]) -> Any:
    with torch.device("meta"):
        return AutoModel.from_config(CONFIG_MAPPING[kind](**config))


def test_every_family_of_the_table_has_a_case() -> None:
    patterns = {find_neurons(AutoModel.from_config(CONFIG_MAPPING[case.kind](**case.config))).pattern for case in CASES}
    for family in FAMILIES:
        if not family.experts:
            assert any(pattern.endswith(family.output) for pattern in patterns), family.name


def test_an_unknown_family_is_told_how_to_name_its_module(xlm: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_shape(resolve_model(str(xlm)))
    message = str(caught.value)
    assert message.startswith("XLMModel is of no family that is known here: name the module whose inputs are the neurons")
    assert '--module "ffns.{layer}.lin2"' in message
    assert "ffns.{layer}.lin2 (in_features 128), attentions.{layer}.k_lin (in_features 32)" in message
    assert "\n" not in message


def test_a_module_named_by_hand(xlm: Path) -> None:
    source = resolve_model(str(xlm))
    sites = ["mlp.post", "mlp.out"]
    shape = read_shape(source, sites=sites, module="ffns.{layer}.lin2")
    assert (shape.layers, dict(shape.widths), shape.causal, shape.module) == (
        LAYERS, {"mlp.post": 4 * HIDDEN, "mlp.out": HIDDEN}, False, "ffns.{layer}.lin2",
    )  # fmt: skip
    model = Model.load(source, device="cpu", sites=sites, module="ffns.{layer}.lin2")
    ids = torch.randint(3, 100, (2, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    seen: dict[tuple[str, int], Any] = {}
    model.capture(ids, lambda site, layer, values: seen.update({(site, layer): values.double().numpy().copy()}), mask=mask)
    spy = Spy(model.module, [f"ffns.{layer}" for layer in range(LAYERS)])
    for line, length in enumerate((6, 4)):
        with torch.inference_mode():
            model.module(input_ids=ids[line : line + 1, :length])
        for layer, ffn in enumerate(model.module.ffns):
            post = ACTIVATIONS["gelu"](apply(ffn.lin1, spy[f"ffns.{layer}:in"][0]))
            for site, expected in (("mlp.post", post), ("mlp.out", apply(ffn.lin2, post))):
                error = np.abs(seen[site, layer][line, :length] - expected).max() / np.abs(expected).max()
                assert error <= 1e-5
    with pytest.raises(InputError, match=r"XLMModel has no site 'resid\.post': it has mlp\.post, mlp\.out$"):
        read_shape(source, sites=["resid.post"], module="ffns.{layer}.lin2")


@pytest.mark.parametrize(
    ("module", "match"),
    [
        ("ffns.0.lin2", r'--module "ffns\.0\.lin2" must contain \{layer\} exactly once'),
        ("{layer}.{layer}.lin2", r"must contain \{layer\} exactly once"),
        ("blocks.{layer}.lin2", r"matches no module of XLMModel: name the module .* its layers have ffns\.\{layer\}\.lin2"),
        ("ffns.{layer}", r"TransformerFFN is not a linear layer: name the module"),
        ("layer_norm1.{layer}", r"LayerNorm is not a linear layer"),
    ],
)
def test_a_wrong_module_is_refused(xlm: Path, module: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        read_shape(resolve_model(str(xlm)), module=module)


def test_a_module_of_some_layers_or_of_other_widths_is_refused() -> None:
    model = meta("deepseek_v3", {**GROUPED, "first_k_dense_replace": 1, "num_hidden_layers": 3, "moe_intermediate_size": 8})
    with pytest.raises(InputError, match=r"matches in layers 0 of DeepseekV3Model, expected it in each of its 3 layers"):
        find_neurons(model, module="layers.{layer}.mlp.down_proj")
    with pytest.raises(InputError, match=r"matches in layers 1–2 of DeepseekV3Model, expected it in each of its 3 layers"):
        find_neurons(model, module="layers.{layer}.mlp.shared_experts.down_proj")
    llama = meta("llama", GROUPED)
    llama.layers[1].mlp.down_proj = torch.nn.Linear(40, HIDDEN, device="meta")
    with pytest.raises(InputError, match=r"layers differ in their number of neurons \(\[40, 56\]\)"):
        find_neurons(llama, module="layers.{layer}.mlp.down_proj")
    with pytest.raises(InputError, match=r"LlamaModel: layers differ in the width of mlp\.post \(\[40, 56\]\)"):
        choose_sites(find_neurons(llama), ["mlp.post"])


def test_several_stacks_are_not_guessed_between() -> None:
    model = meta("llama", GROUPED)
    model.tower = meta("phi", USUAL)
    with pytest.raises(InputError, match=r"keeps neurons in several places: choose one with --module"):
        find_neurons(model)
    assert find_neurons(model, module="layers.{layer}.mlp.fc2").pattern == "tower.layers.{layer}.mlp.fc2"
    model.second = meta("phi", USUAL)
    with pytest.raises(InputError, match=r"matches several stacks of layers: tower\.layers.*, second\.layers"):
        find_neurons(model, module="layers.{layer}.mlp.fc2")
    model.tower = meta("llama", GROUPED)  # a full name means itself
    assert find_neurons(model, module="layers.{layer}.mlp.down_proj").pattern == "layers.{layer}.mlp.down_proj"


def test_a_multimodal_models_text_part_is_meant() -> None:
    vision = {"hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    model = meta("gemma3", {"text_config": {**GROUPED, "head_dim": 8, "model_type": "gemma3_text"}, "vision_config": vision})
    assert find_neurons(model).pattern == "language_model.layers.{layer}.mlp.down_proj"


@pytest.mark.parametrize(
    ("sites", "match"),
    [
        (
            ["mlp.gate"],
            r"GPT2Model has no site 'mlp\.gate': it has mlp\.post, mlp\.up, mlp\.out, attn\.head_out, resid\.post",
        ),
        (["mlp.routing"], r"has no site 'mlp\.routing'"),
        (["mlp.pre"], r"unknown site 'mlp\.pre': known are mlp\.post, mlp\.gate, "),
        (["mlp.post", "mlp.post"], r"name at least one site, and each once"),
        ([], r"name at least one site"),
    ],
)
def test_sites_that_are_not_there(sites: list[str], match: str) -> None:
    with pytest.raises(InputError, match=match):
        choose_sites(find_neurons(meta("gpt2", BY_ID["gpt2"].config)), sites)


def test_layers_that_are_shared_are_not_counted_as_one(tmp_path: Path) -> None:
    save("albert", {**USUAL, "embedding_size": 16}, tmp_path)
    with pytest.raises(InputError, match=r"AlbertModel: site mlp\.post of layer 0 was computed 2 times in a forward pass"):
        Model.load(
            resolve_model(str(tmp_path)), device="cpu",
            module="encoder.albert_layer_groups.{layer}.albert_layers.0.ffn_output",
        )  # fmt: skip


def test_a_model_that_keeps_positions_first_is_refused(tmp_path: Path) -> None:
    save("xlnet", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 56, "vocab_size": 100}, tmp_path)
    with pytest.raises(InputError, match=r"has shape \(9, 1, 56\), expected \(1, 9, 56\): sequences, positions, width"):
        Model.load(resolve_model(str(tmp_path)), device="cpu", module="layer.{layer}.ff.layer_2")


def test_a_model_that_looks_ahead_needs_a_mask(tmp_path: Path) -> None:
    save("bert", USUAL, tmp_path)
    model = Model.load(resolve_model(str(tmp_path)), device="cpu")
    with pytest.raises(ValueError, match="needs the mask of the real ones"):
        model.capture(torch.ones(1, 3, dtype=torch.int64), lambda *_: None)


def rewrite(folder: Path, keep: Any) -> None:
    """Drop weights from a checkpoint."""
    file = folder / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if keep(name)}, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("kind", "unneeded"), [("bert", "pooler"), ("roberta", "pooler"), ("wav2vec2", "masked_spec_embed")]
)
def test_weights_that_no_neuron_depends_on_may_be_missing(kind: str, unneeded: str, tmp_path: Path) -> None:
    save(kind, BY_ID[kind].config, tmp_path)
    rewrite(tmp_path, lambda name: unneeded not in name)
    assert Model.load(resolve_model(str(tmp_path)), device="cpu").layers == LAYERS


def test_an_encoders_checkpoint_needs_no_decoder(tmp_path: Path) -> None:
    save("t5", BY_ID["t5"].config, tmp_path)
    whole = Model.load(resolve_model(str(tmp_path)), device="cpu")
    rewrite(tmp_path, lambda name: not name.startswith("decoder."))
    encoder = Model.load(resolve_model(str(tmp_path)), device="cpu")
    for ours, theirs in zip(encoder.module.parameters(), whole.module.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    rewrite(tmp_path, lambda name: "block.1.layer.0.SelfAttention.o" not in name)
    with pytest.raises(
        InputError, match=r"lacks 1 weights of T5Model, .*first encoder\.block\.1\.layer\.0\.SelfAttention\.o"
    ):
        Model.load(resolve_model(str(tmp_path)), device="cpu")


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    save("gpt2", BY_ID["gpt2"].config, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_inner": 48}))
    with pytest.raises(
        InputError, match=r"lacks 6 weights of GPT2Model, or has them in another shape, first h\.0\.mlp\.c_fc"
    ):
        Model.load(resolve_model(str(tmp_path)), device="cpu")


def test_gpt2s_weights_are_the_other_way_round() -> None:
    """What the reference relies on: Conv1D holds (inputs, outputs)."""
    model = AutoModel.from_config(CONFIG_MAPPING["gpt2"](**BY_ID["gpt2"].config))
    assert linear(model.h[0].mlp.c_proj)[0].shape == (56, HIDDEN)
