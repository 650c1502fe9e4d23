"""Packed linear layers: values against float64, hooks, what is left alone, and the choice in an extraction."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import conllu, make_model, some_sentences

from neuronlake.extractor import ConlluCorpus, ExtractSettings, extract, resolve_model
from neuronlake.extractor.model import PACKED
from neuronlake.extractor.packed_linear import pack_linear_layers
from neuronlake.extractor.recompute import recompute
from neuronlake.store import InputError, open_lake


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(48, 130)
        self.down = torch.nn.Linear(130, 48, bias=False)
        self.low = torch.nn.Linear(48, 48).to(torch.bfloat16)

    def forward(self, x: Any) -> Any:
        return self.down(torch.nn.functional.silu(self.up(x)))


@pytest.mark.parametrize("shape", [(1, 48), (7, 48), (3, 11, 48), (600, 48)])
def test_values_are_those_of_float64(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    block, x = Block(), torch.randn(*shape)
    expected = Block().double()
    expected.load_state_dict(block.state_dict())
    seen: list[Any] = []
    block.down.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    untouched = block.low.forward
    assert pack_linear_layers(block)
    assert block.low.forward == untouched
    with torch.inference_mode():
        found, truth = block(x), expected(x.double())
    assert seen[0].shape == (*shape[:-1], 130)
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-5)
    assert block.up.weight.shape == (130, 48)


def test_without_room_or_float32_layers_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not pack_linear_layers(torch.nn.Linear(8, 8).to(torch.bfloat16))
    import neuronlake.extractor.packed_linear as packed_linear

    monkeypatch.setattr(packed_linear, "_ROOM", 0.0)
    layer = torch.nn.Linear(8, 8)
    assert not pack_linear_layers(layer)
    assert "forward" not in vars(layer)


def test_an_extraction_is_packed_unless_told_otherwise(tmp_path: Path) -> None:
    source = resolve_model(str(make_model(tmp_path / "model")))
    (tmp_path / "a.conllu").write_text(conllu(some_sentences(20)), encoding="utf-8")
    corpus = ConlluCorpus(paths=(tmp_path / "a.conllu",))
    lakes = {}
    for plain in (False, True):
        root = tmp_path / f"{plain}.lake"
        extract(root, corpus, source, ExtractSettings(encoding="float32", block_rows=128, plain_kernels=plain))
        lakes[plain] = open_lake(root)
        assert lakes[plain].commits[0].provenance["linear"] == ("torch" if plain else PACKED)
        audit = recompute(root, source, blocks=1, seed=0)
        assert audit.ok
        assert not audit.blocks[0].provenance_differences
    assert lakes[True].spec.fingerprint == lakes[False].spec.fingerprint
    for layer in lakes[True].layers:
        np.testing.assert_allclose(lakes[False].read(layer=layer), lakes[True].read(layer=layer), rtol=1e-4, atol=1e-5)


def test_plain_kernels_are_of_transformers() -> None:
    with pytest.raises(InputError, match="plain_kernels is for backend transformers, got vllm"):
        ExtractSettings(backend="vllm", plain_kernels=True)
