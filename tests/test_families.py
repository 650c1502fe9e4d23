"""Every family: what is captured equals what NumPy makes of the model's weights and of what its MLPs see."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_models import (
    CASES,
    GROUPED,
    HIDDEN,
    LAYERS,
    POSITIONS,
    SPEECH,
    Array,
    Case,
    apply,
    config_count,
    markdown_table,
    reference,
    save,
)
from transformers import CONFIG_MAPPING

from neuronlake.extractor import resolve_model
from neuronlake.extractor.families import CAUSAL
from neuronlake.extractor.model import Model, read_shape

LENGTHS = (7, 4, 6)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # these matrices are tiny
    yield
    torch.set_num_threads(before)


def is_text(case: Case) -> bool:
    return case.id != "whisper" and not SPEECH.items() <= case.config.items()


def sites_of(case: Case) -> dict[str, int]:
    gated = ["mlp.gate", "mlp.gate_sign"] if case.gate else []
    heads = {"attn.head_out": case.head_columns} if case.heads else {}
    return {
        **dict.fromkeys(["mlp.post", *gated, "mlp.up"], case.neurons), "mlp.out": HIDDEN, **heads, "resid.post": HIDDEN
    }  # fmt: skip


def batch_of(case: Case) -> tuple[torch.Tensor, torch.Tensor, list[dict[str, Any]]]:
    """Inputs and mask of a batch, and the inputs of each of its sequences alone."""
    generator = torch.Generator().manual_seed(1)
    if case.id == "whisper":
        features = torch.randn(2, 8, 40, generator=generator)
        return features, torch.ones(2, 40), [{"input_features": line[None]} for line in features]
    if not is_text(case):
        samples = torch.randn(2, 400, generator=generator)
        return samples, torch.ones(2, 400), [{"input_values": line[None]} for line in samples]
    ids = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.int64)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for line, length in enumerate(LENGTHS):
        ids[line, :length] = torch.randint(3, 100, (length,), generator=generator)
        mask[line, :length] = True
    return ids, mask, [{"input_ids": ids[line : line + 1, :length]} for line, length in enumerate(LENGTHS)]


def capture(model: Model, inputs: torch.Tensor, mask: torch.Tensor) -> dict[tuple[str, int], Array]:
    seen: dict[tuple[str, int], Array] = {}

    def receive(site: str, layer: int, values: torch.Tensor) -> None:
        assert (site, layer) not in seen
        seen[site, layer] = values.double().numpy().copy()

    model.capture(inputs, receive, mask=mask)
    return seen


def close(got: Array, expected: Array, what: str) -> None:
    assert got.shape == expected.shape, what
    error = np.abs(got - expected).max() / np.abs(expected).max()
    assert error <= 1e-5, f"{what}: {error}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")  # WavLM in transformers
def test_values_are_those_of_the_weights(case: Case, tmp_path: Path) -> None:
    save(case.kind, case.config, tmp_path)
    source = resolve_model(str(tmp_path))
    widths = sites_of(case)
    shape = read_shape(source, sites=tuple(widths))
    assert dict(shape.widths) == widths
    assert widths["mlp.post"] == config_count(case)
    assert (shape.layers, shape.max_positions) == (LAYERS, case.limit)
    assert shape.causal == case.causal
    model = Model.load(source, device="cpu", sites=tuple(widths))
    inputs, mask, alone = batch_of(case)
    seen = capture(model, inputs, mask)
    assert set(seen) == {(site, layer) for site in widths for layer in range(LAYERS)}
    for line, single in enumerate(alone):
        for made_of, layer, expected in reference(case, model.module, single):
            through, _, site = made_of.rpartition(" ")
            got = seen[site, layer][line, : len(expected)]
            if through == "final_norm":
                got = (
                    model.module.get_submodule(str(case.final_norm))(torch.from_numpy(got).float()).detach().double().numpy()
                )
            elif through == "W_o":
                got = apply(model.module.get_submodule(f"{case.layer.format(layer)}.{case.heads}"), got)
            if site == "mlp.gate_sign":
                assert (got == expected).all()
            else:
                close(got, expected, f"{site} of layer {layer}")


@pytest.mark.parametrize("case", [case for case in CASES if is_text(case)], ids=lambda case: case.id)
def test_the_longest_sequence_can_be_run(case: Case, tmp_path: Path) -> None:
    save(case.kind, case.config, tmp_path)
    model = Model.load(resolve_model(str(tmp_path)), device="cpu")
    longest = min(case.limit, 2 * POSITIONS)
    seen = capture(model, torch.full((1, longest), 5), torch.ones(1, longest))
    assert all(values.shape == (1, longest, case.neurons) for values in seen.values())
    if case.hard_limit:
        with pytest.raises((IndexError, RuntimeError)):
            capture(model, torch.full((1, longest + 1), 5), torch.ones(1, longest + 1))


@pytest.mark.parametrize("kind", sorted(CAUSAL - {case.kind for case in CASES}))
def test_causal_models_do_not_look_ahead(kind: str, tmp_path: Path) -> None:
    """Those of the list that are not among the cases, which see this in that a padded batch equals single sequences."""
    gpt = {"n_embd": 32, "n_inner": 56, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "head_dim": 8}
    experts = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    keys = set(CONFIG_MAPPING[kind]().to_dict())
    save(kind, {name: value for name, value in {**GROUPED, **gpt, **experts}.items() if name in keys}, tmp_path)
    model = Model.load(resolve_model(str(tmp_path)), device="cpu", sites=["resid.post"])
    assert model.causal
    ids = torch.randint(3, 100, (1, 8), generator=torch.Generator().manual_seed(0))
    before = capture(model, ids, torch.ones(1, 8))
    ids[0, 7] += 1
    after = capture(model, ids, torch.ones(1, 8))
    for place in before:
        close(after[place][:, :7], before[place][:, :7], str(place))
        assert (after[place][:, 7] != before[place][:, 7]).any()


def test_the_documented_table_is_that_of_the_models() -> None:
    documented = (Path(__file__).parent.parent / "docs" / "models.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in markdown_table().splitlines() if line not in documented] == []
