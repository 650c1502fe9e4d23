"""Weights at hand: what is stored equals what torch computes from the model itself, and only of the lake's own model."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lakes import make_spec, plan_lake, random_sentences, write_blocks
from scipy import stats
from tiny import conllu, make_model, make_tokenizer, some_sentences
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

from neuronlake.analysis import output_vectors, textualize, vocabulary
from neuronlake.cli.main import main
from neuronlake.extractor import ConlluCorpus, ExtractSettings, ModelSource, extract, resolve_model
from neuronlake.extractor.weights import store_weights
from neuronlake.store import DamageError, InputError, Lake, open_lake, repair, verify
from neuronlake.store.kept import WEIGHTS, kept_results
from neuronlake.store.weights import find_weights

TOKENS = len(make_tokenizer().get_vocab())


def lake_of(root: Path, source: ModelSource, *, layers: tuple[int, ...] = (0, 1, 2)) -> Lake:
    """A lake of noise that says it was made by this model: its weights are all that is asked for."""
    spec = make_spec(layers=len(layers), neurons=88, block_rows=64, chunk_neurons=16, encoding="float16")
    spec = dataclasses.replace(spec, layers=layers, model={"name": source.name, "sha256": source.sha256})
    rng = np.random.default_rng(0)
    record, rows = plan_lake(root, spec, random_sentences(rng, 60, tags=("NOUN", "VERB")))
    values = rng.standard_normal((max(layers) + 1, 60, 88)).astype(np.float32)
    write_blocks(root, spec, record, rows, values)
    return open_lake(root)


def disturb(folder: Path, *, dtype: torch.dtype = torch.float32, **saving: Any) -> None:
    """Give the norms gains that are not one, and save the model again."""
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(1)
    for name, weight in network.named_parameters():
        if "norm" in name:
            weight.data += 0.5 * torch.randn_like(weight)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    network.to(dtype).save_pretrained(folder, **saving)


def make_gemma(folder: Path) -> None:
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=400, hidden_size=32, intermediate_size=88, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=1, head_dim=16, query_pre_attn_scalar=16, max_position_embeddings=128, sliding_window=5,
        initializer_range=0.1, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    Gemma3ForCausalLM(config).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make_tokenizer(), bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(folder)


def reference(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Output vectors (layers, neurons, width) and cosines (layers, neurons, tokens), by running the model's own modules."""
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    body = network.model

    def through(norm: torch.nn.Module, vectors: torch.Tensor) -> torch.Tensor:
        """The norm without its division: every vector comes with the root mean square that it is divided by."""
        with torch.inference_mode():
            gain = norm(torch.ones(1, vectors.shape[-1], dtype=torch.float64))  # of all ones, that is 1
        return vectors * gain

    written = []
    for layer in body.layers:
        vectors = layer.mlp.down_proj.weight.T.detach()
        post = getattr(layer, "post_feedforward_layernorm", None)
        written.append(vectors if post is None else through(post, vectors))
    unembedding = through(body.norm, network.get_output_embeddings().weight.detach()[:TOKENS])
    unembedding = unembedding - unembedding.mean(dim=0)
    vectors = torch.stack(written)
    return vectors, torch.nn.functional.cosine_similarity(vectors[:, :, None], unembedding, dim=-1)


@pytest.fixture(scope="module", params=["untied", "tied bfloat16 shards", "padded float16", "gemma"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    match request.param:
        case "untied":
            make_model(folder)
            disturb(folder)
        case "tied bfloat16 shards":
            make_model(folder, tie_word_embeddings=True)
            disturb(folder, dtype=torch.bfloat16, max_shard_size="20KB")
            assert len(list(folder.glob("*.safetensors"))) > 3
        case "padded float16":
            make_model(folder, vocab_size=TOKENS + 13)
            disturb(folder, dtype=torch.float16)
        case _:
            make_gemma(folder)
            disturb(folder)
    return folder


def test_everything_is_what_torch_computes(model: Path, tmp_path: Path) -> None:
    source = resolve_model(str(model))
    lake = lake_of(tmp_path / "a.lake", source)
    before = lake.fingerprint
    report = store_weights(lake.path, source)
    assert report.made
    vectors, cosines = (values.numpy() for values in reference(model))
    np.testing.assert_allclose(output_vectors(lake), vectors, rtol=2**-11, atol=2**-24)
    np.testing.assert_array_equal(output_vectors(lake, 1), output_vectors(lake)[1])
    for layer, neuron in [(0, 0), (1, 87), (2, 41)]:
        found = vocabulary(lake, layer, neuron)
        here = cosines[layer, neuron]
        assert found["tokens"] == len(here) == TOKENS
        for end, order in (("top", np.argsort(-here)), ("bottom", np.argsort(here))):
            listed = np.array([entry["cosine"] for entry in found[end]])
            np.testing.assert_allclose(listed, here[order[:20]], atol=1e-6)
            np.testing.assert_allclose([here[entry["id"]] for entry in found[end]], listed, atol=1e-6)
        assert found["mean"] == pytest.approx(here.mean(), abs=1e-7)
        assert found["variance"] == pytest.approx(here.var(), rel=1e-5)
        assert found["skewness"] == pytest.approx(stats.skew(here), abs=1e-5)
        assert found["kurtosis"] == pytest.approx(stats.kurtosis(here, fisher=False), rel=1e-5)
    weights = find_weights(lake.path, source.sha256)
    assert weights is not None
    np.testing.assert_allclose(weights.layer("output/norms", 2), np.linalg.norm(vectors[2], axis=1), rtol=1e-6)
    embeddings = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).get_input_embeddings().weight
    np.testing.assert_allclose(weights.embeddings, embeddings.detach(), rtol=2**-11, atol=2**-24)
    assert open_lake(lake.path).fingerprint == before
    assert verify(lake.path, full=True).ok
    assert not store_weights(lake.path, source).made  # there already


def test_tokens_have_their_text(model: Path, tmp_path: Path) -> None:
    source = resolve_model(str(model))
    lake = lake_of(tmp_path / "a.lake", source)
    texts = store_weights(lake.path, source).weights.tokens
    tokenizer = make_tokenizer()
    assert texts[tokenizer.token_to_id("<s>")] == "<s>"
    assert texts[tokenizer.token_to_id("Ġthe")] == " the"
    assert texts[tokenizer.token_to_id("a")] == "a"
    assert texts[tokenizer.token_to_id("Ã")] == "Ã"  # half a character: the tokenizer's own name
    assert sorted(texts) == list(range(TOKENS))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return resolve_model(str(make_model(tmp_path_factory.mktemp("plain"))))


def test_only_some_layers(source: ModelSource, tmp_path: Path) -> None:
    lake = lake_of(tmp_path / "a.lake", source, layers=(0, 2))
    store_weights(lake.path, source)
    vectors, cosines = (values.numpy() for values in reference(source.folder))
    np.testing.assert_allclose(output_vectors(lake, 2), vectors[2], rtol=2**-11, atol=2**-24)
    assert vocabulary(lake, 2, 5, 1)["top"][0]["cosine"] == pytest.approx(cosines[2, 5].max(), abs=1e-6)
    with pytest.raises(InputError, match="no layer 1"):
        output_vectors(lake, 1)


def test_another_model_is_refused(source: ModelSource, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = make_model(tmp_path / "other", seed=7)
    lake = lake_of(tmp_path / "a.lake", source)
    assert main(["weights", str(lake.path), "--model", str(other)]) == 2
    assert "give --model the weights it was made with" in capsys.readouterr().err
    assert not (lake.path / WEIGHTS).exists()


def test_absent_weights_say_how_to_make_them(source: ModelSource, tmp_path: Path) -> None:
    lake = lake_of(tmp_path / "a.lake", source)
    for question in (lambda: output_vectors(lake), lambda: vocabulary(lake, 0, 0), lambda: textualize(lake, 0, 0)):
        with pytest.raises(InputError, match=r"run `neuronlake weights .*a\.lake --model"):
            question()
    store_weights(lake.path, source)
    with pytest.raises(InputError, match="valid are layers 0 to 2, neurons 0 to 87"):
        vocabulary(lake, 0, 88)
    for k in (0, 21):
        with pytest.raises(InputError, match="k must be from 1 to 20"):
            vocabulary(lake, 0, 0, k)


def test_damage_is_found_and_never_returned(source: ModelSource, tmp_path: Path) -> None:
    lake = lake_of(tmp_path / "a.lake", source)
    store_weights(lake.path, source)
    before = (output_vectors(lake), [vocabulary(lake, layer, 87) for layer in lake.layers], textualize(lake, 1, 3))
    folder = lake.path / WEIGHTS / kept_results(lake.path, kept=WEIGHTS)[0]
    rng = np.random.default_rng(2)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        good = path.read_bytes()
        bad = bytearray(good)
        bit = int(rng.integers(len(bad) * 8))
        bad[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(bad)
        report = verify(lake.path, full=True)
        assert [line for line in report.damage if "`neuronlake weights` makes it again" in line], path
        try:
            after = (output_vectors(lake), [vocabulary(lake, layer, 87) for layer in lake.layers], textualize(lake, 1, 3))
        except DamageError:
            pass
        else:  # what is damaged was not read
            np.testing.assert_array_equal(after[0], before[0])
            assert after[1:] == before[1:]
        path.write_bytes(good)
    assert verify(lake.path, full=True).ok
    path.unlink()
    with pytest.raises(DamageError, match="neuronlake weights"):
        vocabulary(lake, 0, 0)
    assert store_weights(lake.path, source).made  # in place of the damaged ones
    np.testing.assert_array_equal(output_vectors(lake), before[0])
    path.write_bytes(b"")
    assert "removed; `neuronlake weights` makes it again" in " ".join(repair(lake.path).actions)
    assert verify(lake.path, full=True).ok


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("shards gone", "neither model.safetensors nor model.safetensors.index.json"),
        ("no tokenizer", "has no tokenizer.json"),
        ("truncated tokenizer", "is not JSON"),
        ("layer norm", "LayerNorm"),
        ("no head", "0 tensors lm_head.weight"),
        ("not finite", "not finite"),
        ("other shape", "neurons, the checkpoint's MLPs"),
    ],
)
def test_what_cannot_be_read_is_refused(change: str, message: str, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", **({"intermediate_size": 64} if change == "other shape" else {}))
    config = json.loads((folder / "config.json").read_bytes())
    match change:
        case "shards gone":
            (folder / "model.safetensors").rename(folder / "weights.safetensors")
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
        case "truncated tokenizer":
            (folder / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes()[:100])
        case "layer norm":
            (folder / "config.json").write_text(json.dumps({**config, "model_type": "cohere"}))
        case "no head" | "not finite":
            network = AutoModelForCausalLM.from_pretrained(folder)
            network.model.layers[1].mlp.down_proj.weight.data[3, 4] = float("nan") if change == "not finite" else 0.0
            (network.model if change == "no head" else network).save_pretrained(folder)
            (folder / "config.json").write_text(json.dumps(config))
    source = resolve_model(str(folder))
    lake = lake_of(tmp_path / "a.lake", source)
    with pytest.raises(InputError, match=message):
        store_weights(lake.path, source)
    assert not kept_results(lake.path, kept=WEIGHTS)
    assert verify(lake.path).ok


def test_textualization_is_the_sum_of_what_activates(source: ModelSource, tmp_path: Path) -> None:
    (tmp_path / "a.conllu").write_text(conllu(some_sentences(30)), encoding="utf-8")
    lake_path = tmp_path / "a.lake"
    settings = ExtractSettings(encoding="float32", block_rows=256)
    extract(lake_path, ConlluCorpus(paths=(tmp_path / "a.conllu",)), source, settings)
    assert main(["weights", str(lake_path), "--model", str(source.folder), "--json"]) == 0
    lake = open_lake(lake_path)
    table = AutoModelForCausalLM.from_pretrained(source.folder).get_input_embeddings().weight.detach().numpy()
    table = table[:TOKENS].astype(np.float64)
    tokens = lake.tokens().to_pandas()
    ordinary = tokens["flags"].to_numpy() & 3 == 0
    for layer, neuron in [(0, 7), (2, 60)]:
        column = lake.read(layer=layer, neurons=[neuron])[ordinary, 0]
        ids = tokens["token_id"].to_numpy()[ordinary]
        for sign in (1, -1):
            order = np.argsort(-sign * column, kind="stable")[:12]
            chosen = order[sign * column[order] > 0]
            vector = sum(abs(column[at]) * table[ids[at]] for at in chosen)
            expected = table @ vector / np.linalg.norm(table, axis=1) / np.linalg.norm(vector)
            found = textualize(lake, layer, neuron, 5, activations=12, bottom=sign < 0)
            best = np.argsort(-expected)[:5]
            assert [entry["id"] for entry in found] == best.tolist()
            np.testing.assert_allclose([entry["cosine"] for entry in found], expected[best], atol=1e-3)


def test_no_model_library_is_needed(source: ModelSource, tmp_path: Path) -> None:
    lake = lake_of(tmp_path / "a.lake", source)
    code = (
        "import sys; from neuronlake.cli.main import main\n"
        f"assert main(['weights', {str(lake.path)!r}, '--model', {str(source.folder)!r}]) == 0\n"
        f"assert main(['describe', {str(lake.path)!r}, 'L0.N0']) == 0\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_copies_of_other_models_weights_are_absent(source: ModelSource, tmp_path: Path) -> None:
    other = resolve_model(str(make_model(tmp_path / "other", seed=7)))
    first, second = lake_of(tmp_path / "a.lake", source), lake_of(tmp_path / "b.lake", other)
    store_weights(first.path, source)
    shutil.copytree(first.path / WEIGHTS, second.path / WEIGHTS)
    with pytest.raises(InputError, match="holds no weights of its model"):
        vocabulary(second, 0, 0)
    store_weights(second.path, other)
    assert len(kept_results(second.path, kept=WEIGHTS)) == 1
