"""Gemma 3: another norm around the MLP, another activation, and a sliding window in most layers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import conllu, make_tokenizer, some_sentences
from transformers import AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

from neuronlake.extractor import ConlluCorpus, ExtractSettings, extract, resolve_model
from neuronlake.store import open_lake

LAYERS = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemma")
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=88,
        num_hidden_layers=len(LAYERS),
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        max_position_embeddings=128,
        sliding_window=5,  # shorter than the sentences
        layer_types=LAYERS,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    Gemma3ForCausalLM(config).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make_tokenizer(), bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(folder)
    return folder


def reference(folder: Path, texts: list[str]) -> list[np.ndarray]:
    """Input of every down projection, each text in a forward pass of its own: float32 (layers, tokens, neurons)."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = Gemma3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    seen: list[torch.Tensor] = []
    for layer in network.model.layers:
        layer.mlp.down_proj.register_forward_hook(lambda _module, args, _output: seen.append(args[0][0]))
    result = []
    for text in texts:
        seen.clear()
        with torch.inference_mode():
            network(**tokenizer(text, return_tensors="pt"))
        result.append(torch.stack(seen).numpy())
    return result


def test_values_are_those_of_a_plain_forward(tmp_path: Path, gemma: Path) -> None:
    treebank = tmp_path / "tiny.conllu"
    treebank.write_text(conllu(some_sentences(40)), encoding="utf-8")
    settings = ExtractSettings(encoding="float32", block_rows=256, batch_tokens=96)  # several sentences a batch, padded
    extract(tmp_path / "a.lake", ConlluCorpus(paths=(treebank,)), resolve_model(str(gemma)), settings)
    lake = open_lake(tmp_path / "a.lake")
    assert lake.spec.model["architecture"] == "gemma3_text"
    tokens, sentences = lake.tokens().to_pandas(), lake.sentences().to_pandas()
    assert len(sentences) == 40
    longest = 0
    for number, values in enumerate(reference(gemma, sentences["text"].tolist())):
        rows = tokens.loc[tokens["sentence"] == number, "row"].to_numpy()
        read = np.stack([lake.read(layer=layer, rows=rows) for layer in lake.layers])
        assert read.shape == values.shape == (len(LAYERS), len(rows), 88)
        np.testing.assert_allclose(read, values, rtol=2e-5, atol=1e-6)  # the noise of two float32 forward passes
        longest = max(longest, len(rows))
    assert longest > 5
