"""Attributions against captum and against one position at a time; every family; what cannot be attributed to is refused."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attribution_reference import OnePosition, load_plain, save_causal
from family_models import CASES, GROUPED, LAYERS, NEURONS, VOCABULARY

from neuronlake.extractor import ModelSource, resolve_model
from neuronlake.extractor.attributing import AttributionModel
from neuronlake.extractor.gradients import (
    gradient_in_one_pass,
    gradient_times_activation,
    integrated_gradients,
    quadrature,
)
from neuronlake.store import InputError

GPT2 = next(case for case in CASES if case.id == "gpt2")
CAUSAL = {case.id: case for case in CASES}
LENGTHS = [9, 4, 7]


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids padded on the right, chosen positions (padded), the tokens after them, and which are real."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((len(LENGTHS), max(LENGTHS)), dtype=np.int64)
    for line, length in enumerate(LENGTHS):
        ids[line, :length] = rng.integers(3, VOCABULARY, size=length)
    positions = np.array([[0, 3, 6, 7], [1, 2, 0, 0], [0, 5, 0, 0]])
    real = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]], dtype=bool)
    following = np.take_along_axis(ids, positions + 1, axis=1)
    ids, positions, following, real = map(torch.from_numpy, (ids, positions, following, real))
    return ids, positions, following, real


def downs(model: Any, case: Any) -> list[Any]:
    """Output projections, found by the path in the table of the tests."""
    layer_path = case.layer.removeprefix("decoder.")
    return [model.get_decoder().get_submodule(f"{layer_path.format(layer)}.{case.down}") for layer in range(LAYERS)]


def both(kind: str, folder: Path) -> tuple[AttributionModel, Any, list[Any]]:
    case = CAUSAL[kind]
    save_causal(case.kind, case.config, folder)
    source = ModelSource(folder=folder, name=kind, sha256="0")
    plain = load_plain(folder)
    return AttributionModel.load(source, device="cpu", dtype="float32"), plain, downs(plain, case)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_integrated_gradients_are_captums(kind: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum's own
        from captum.attr import IntegratedGradients

    model, plain, outputs = both(kind, tmp_path / "m")
    ids, positions, following, real = batch()
    clean = model.clean(ids, positions, following)
    for rule, steps, captum_rule in (("gauss", 4, "gausslegendre"), ("riemann", 20, "riemann_right")):
        found = integrated_gradients(model, clean, real, rule=rule, steps=steps)
        for place, (line, column) in enumerate(real.nonzero().tolist()):
            if place not in (1, 3, 5):
                continue
            single = OnePosition(plain, outputs, ids[line], int(positions[line, column]))
            for layer in range(LAYERS):
                expected = IntegratedGradients(single.function(layer), multiply_by_inputs=True).attribute(
                    single.clean[layer][None], n_steps=steps, method=captum_rule
                )[0]
                scale = float(expected.abs().max())
                np.testing.assert_allclose(found.values[place, layer], expected.numpy(), atol=1e-5 * max(scale, 1), rtol=0)
                np.testing.assert_allclose(found.values[place, layer] / scale, expected.numpy() / scale, atol=1e-5)


SINGLE = [
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo", "olmo2", "granite", "phi3", "nemotron",
    "gpt2", "gpt_neox", "opt", "phi", "starcoder2",
]  # fmt: skip


@pytest.mark.parametrize("kind", SINGLE)
def test_a_batch_of_positions_is_one_position_at_a_time(kind: str, tmp_path: Path) -> None:
    """Gradients, ablations and log-probabilities; shared key heads, windows of 4 tokens, soft caps among the families."""
    model, plain, outputs = both(kind, tmp_path / "m")
    ids, positions, following, real = batch()
    clean = model.clean(ids, positions, following)
    gradient = gradient_times_activation(model, clean, real)
    whole = gradient_in_one_pass(model, ids, positions, following, real)
    integrated = integrated_gradients(model, clean, real, rule="gauss", steps=1)
    assert gradient.values.shape == (8, LAYERS, NEURONS)
    for place, (line, column) in enumerate(real.nonzero().tolist()):
        single = OnePosition(plain, outputs, ids[line], int(positions[line, column]))
        assert gradient.log_probability[place] == pytest.approx(float(single.value), abs=1e-5)
        for layer in range(LAYERS):
            for found, scale in ((gradient, 1.0), (whole, 1.0), (integrated, 0.5)):
                expected = (single.clean[layer] * single.gradient(layer, scale)).numpy()
                np.testing.assert_allclose(found.values[place, layer], expected, atol=2e-5 * np.abs(expected).max() + 1e-7)
            with torch.no_grad():
                ablated = single.function(layer)(torch.zeros(1, NEURONS))[0]
            assert integrated.effect[place, layer] == pytest.approx(float(single.value - ablated), abs=1e-5)


def test_bfloat16(tmp_path: Path) -> None:
    case = CAUSAL["gemma2"]
    save_causal(case.kind, case.config, tmp_path / "m")
    source = ModelSource(folder=tmp_path / "m", name="m", sha256="0")
    ids, positions, following, real = batch()
    values = []
    for dtype in ("bfloat16", "float32"):
        model = AttributionModel.load(source, device="cpu", dtype=dtype)
        found = gradient_times_activation(model, model.clean(ids, positions, following), real).values
        assert found.dtype == np.float32
        values.append(found.ravel().astype(np.float64))
    assert np.corrcoef(*values)[0, 1] > 0.99


def test_sums_are_complete_and_probabilities_are_explained_too(tmp_path: Path) -> None:
    model, plain, outputs = both("llama", tmp_path / "m")
    ids, positions, following, real = batch()
    clean = model.clean(ids, positions, following)
    for quantity in ("log_probability", "probability"):
        found = integrated_gradients(model, clean, real, rule="gauss", steps=20, quantity=quantity)
        np.testing.assert_allclose(found.values.sum(-1), found.effect, atol=1e-5)
    single = OnePosition(plain, outputs, ids[0], 3)
    with torch.no_grad():
        ablated = single.function(1)(torch.zeros(1, NEURONS))[0]
    assert found.effect[1, 1] == pytest.approx(float(single.value.exp() - ablated.exp()), abs=1e-6)


def test_padding_and_neighbours_do_not_matter(tmp_path: Path) -> None:
    model, _, _ = both("mistral", tmp_path / "m")
    ids, positions, following, real = batch()
    together = integrated_gradients(model, model.clean(ids, positions, following), real, rule="gauss", steps=2)
    alone = []
    for line, column in real.nonzero().tolist():
        position = positions[line, column][None, None]
        clean = model.clean(ids[line : line + 1, : int(position) + 1], position, following[line, column][None, None])
        one = integrated_gradients(model, clean, torch.ones(1, 1, dtype=torch.bool), rule="gauss", steps=2)
        alone.append(one.values[0])
    np.testing.assert_allclose(together.values, alone, atol=2e-6)


def test_rules() -> None:
    nodes, weights = quadrature("gauss", 3)
    for power in range(6):
        assert np.dot(weights, np.power(nodes, power)) == pytest.approx(1 / (power + 1))
    assert quadrature("riemann", 4) == ([0.25, 0.5, 0.75, 1.0], [0.25] * 4)
    with pytest.raises(InputError, match="unknown rule 'simpson': known are gauss, riemann"):
        quadrature("simpson", 3)
    with pytest.raises(InputError, match="steps must be at least 1"):
        quadrature("gauss", 0)


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100}, "AttentionInterface"),
        ("gpt_neo", {"hidden_size": 32, "intermediate_size": 56, "num_layers": 2, "num_heads": 4, "vocab_size": 100,
                     "attention_types": [[["global"], 2]], "max_position_embeddings": 20}, "AttentionInterface"),
        ("mixtral", {**GROUPED, "num_local_experts": 2}, "mixture of experts"),
        ("bert", {"hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4,
                  "vocab_size": 100}, "needs a causal language model"),
    ],
)  # fmt: skip
def test_models_that_are_refused(kind: str, config: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_causal(kind, config, tmp_path / "m")
    with pytest.raises(InputError, match=message):
        AttributionModel.load(ModelSource(folder=tmp_path / "m", name=kind, sha256="0"), device="cpu", dtype="float32")


def test_a_quantised_model_is_refused(tmp_path: Path) -> None:
    import json

    save_causal("llama", GROUPED, tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}))
    with pytest.raises(InputError, match=r"quantised weights \(bitsandbytes\)"):
        AttributionModel.load(resolve_model(str(tmp_path / "m")), device="cpu")


def test_rough_paths_get_more_points(tmp_path: Path) -> None:
    """Neurons that write far more than the embedding: what is predicted turns within a small part of the way."""
    case = CAUSAL["llama"]
    save_causal(case.kind, case.config, tmp_path / "m")
    plain = load_plain(tmp_path / "m")
    with torch.no_grad():
        plain.model.layers[0].mlp.down_proj.weight *= 30
    plain.save_pretrained(tmp_path / "m")
    model = AttributionModel.load(ModelSource(folder=tmp_path / "m", name="m", sha256="0"), device="cpu", dtype="float32")
    ids, positions, following, real = batch()
    clean = model.clean(ids, positions, following)

    def missed(steps: int, tolerance: float | None) -> tuple[np.ndarray, np.ndarray]:
        found = integrated_gradients(model, clean, real, rule="gauss", steps=steps, tolerance=tolerance)
        error = np.abs(found.values.sum(-1, dtype=np.float64) - found.effect).sum(0) / np.abs(found.effect).sum(0)
        return found.values, error

    coarse, coarse_error = missed(2, None)
    fine, fine_error = missed(2, 0.001)
    dense, dense_error = missed(300, None)
    assert coarse_error[0] > 0.1
    assert max(fine_error) < 0.01
    assert max(dense_error) < 0.01
    apart = [np.abs(each - dense)[:, 0].sum() / np.abs(dense)[:, 0].sum() for each in (coarse, fine)]
    assert apart[0] > 0.1
    assert apart[1] < 0.02
