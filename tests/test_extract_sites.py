"""Several sites in one lake, encoders, experts, and modules named by hand: from the corpus to what is stored."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import conllu, make_tokenizer, some_sentences
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedTokenizerFast

from neuronlake.cli.main import main
from neuronlake.extractor import ConlluCorpus, ExtractSettings, extract, resolve_model
from neuronlake.extractor.model import Model
from neuronlake.extractor.recompute import recompute
from neuronlake.store import Lake, open_lake, verify

COMMON = {
    "vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
MODELS = {
    "llama": {"intermediate_size": 88, "num_key_value_heads": 2},
    "bert": {"intermediate_size": 88},
    "convbert": {"intermediate_size": 88, "embedding_size": 32, "conv_kernel_size": 5},
    "phi3": {
        "intermediate_size": 88, "num_key_value_heads": 2, "original_max_position_embeddings": 12,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
            "original_max_position_embeddings": 12,
        },
    },
    "qwen3_moe": {
        "moe_intermediate_size": 24, "intermediate_size": 24, "num_experts": 6, "num_experts_per_tok": 2, "head_dim": 8,
        "num_key_value_heads": 2, "mlp_only_layers": [],
    },
}  # fmt: skip
WIDTHS = {
    "mlp.post": 88, "mlp.gate": 88, "mlp.gate_sign": 88, "mlp.up": 88, "mlp.out": 32, "attn.head_out": 32, "resid.post": 32
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models by their type, and a treebank."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "tiny.conllu").write_text(conllu(some_sentences(30)), encoding="utf-8")
    for kind, settings in MODELS.items():
        torch.manual_seed(0)
        model = AutoModel.from_config(CONFIG_MAPPING[kind](**COMMON, **settings, initializer_range=0.2))
        model.save_pretrained(folder / kind)
        PreTrainedTokenizerFast(tokenizer_object=make_tokenizer(), bos_token="<s>").save_pretrained(folder / kind)
    return folder


def run(folder: Path, root: Path, kind: str, **settings: object) -> Lake:
    options = {"encoding": "float32", "block_rows": 256, "batch_tokens": 96, **settings}
    source = resolve_model(str(folder / kind))
    extract(root, ConlluCorpus(paths=(folder / "tiny.conllu",)), source, ExtractSettings(**options))  # type: ignore[arg-type]
    lake = open_lake(root)
    assert verify(root, full=True).ok
    check(lake, folder / kind, settings.get("module"))
    return lake


def check(lake: Lake, model: Path, module: object) -> None:
    """Compare every value with the model run on one sentence at a time."""
    loaded = Model.load(resolve_model(str(model)), device="cpu", sites=lake.sites, module=module)  # type: ignore[arg-type]
    tokens = lake.tokens().to_pandas()
    tokens = tokens[tokens["token_id"] >= 0]
    assert len(tokens) > 200
    for _, mine in tokens.groupby("sentence"):
        ids = torch.tensor(mine["token_id"].to_numpy()[None].astype(np.int64))
        expected: list[tuple[str, int, np.ndarray]] = []

        def receive(site: str, layer: int, values: torch.Tensor, expected: list = expected) -> None:  # type: ignore[type-arg]
            expected.append((site, layer, values[0].numpy().copy()))

        loaded.capture(ids, receive, mask=torch.ones_like(ids, dtype=torch.bool))
        for site, layer, values in expected:
            found = lake.read(site=site, layer=layer, rows=mine["row"].to_numpy())
            if site == "mlp.gate_sign":
                assert (found == values).mean() > 0.999  # but for gates of about 1e-7
            else:
                np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-5 * np.abs(values).max())


def test_all_sites_of_a_gated_mlp_in_one_lake(folder: Path, tmp_path: Path) -> None:
    lake = run(folder, tmp_path / "a.lake", "llama", sites=tuple(WIDTHS))
    assert {site: lake.at(site).neurons for site in lake.sites} == WIDTHS
    gate, up = lake.read(site="mlp.gate", layer=1), lake.read(site="mlp.up", layer=1)
    np.testing.assert_allclose(lake.read(layer=1), gate * up, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(lake.read(site="mlp.gate_sign", layer=1), gate > 0)
    audit = recompute(lake.path, resolve_model(str(folder / "llama")), blocks=1, seed=0, device="cpu")
    assert all(block.identical for block in audit.blocks)


def test_a_site_that_is_not_the_neurons_alone(folder: Path, tmp_path: Path) -> None:
    lake = run(folder, tmp_path / "a.lake", "llama", sites=("resid.post",), encoding="float32")
    assert (lake.sites, lake.neurons) == (("resid.post",), 32)


def test_an_encoder_sees_no_padding(folder: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path / "a.lake", "bert").neurons == 88


@pytest.mark.parametrize("kind", ["convbert", "phi3"])
def test_a_sentence_has_its_values_whoever_shares_its_batch(folder: Path, tmp_path: Path, kind: str) -> None:
    """Convolutions see padding; longrope computes positions by the longest sequence of the batch."""
    lake = run(folder, tmp_path / "a.lake", kind)
    model = Model.load(resolve_model(str(folder / kind)), device="cpu")
    lengths = lake.tokens().to_pandas().query("token_id >= 0").groupby("sentence").size()
    assert lengths.min() <= 12 < lengths.max()
    groups = len({model.company(length) for length in lengths})
    assert groups == (lengths.nunique() if kind == "convbert" else 2)


def test_experts_and_their_routing(folder: Path, tmp_path: Path) -> None:
    lake = run(folder, tmp_path / "a.lake", "qwen3_moe")
    assert {site: lake.at(site).neurons for site in lake.sites} == {"mlp.post": 6 * 24, "mlp.routing": 6}
    for layer in lake.layers:
        routed = lake.read(site="mlp.routing", layer=layer) > 0
        values = lake.read(layer=layer).reshape(-1, 6, 24)
        real = lake.tokens().column("token_id").to_numpy() >= 0
        np.testing.assert_array_equal(routed.sum(axis=1)[real], 2)
        np.testing.assert_array_equal((values != 0).all(axis=2), routed)
        np.testing.assert_array_equal((values != 0).any(axis=2), routed)


def test_a_module_named_by_hand_is_in_the_record(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake = run(folder, tmp_path / "a.lake", "llama", module="layers.{layer}.self_attn.o_proj")
    assert lake.neurons == 32
    assert lake.spec.capture["module"] == "layers.{layer}.self_attn.o_proj"
    audit = recompute(lake.path, resolve_model(str(folder / "llama")), blocks=1, seed=0, device="cpu")
    assert audit.ok
    again = ["extract", str(lake.path), "--model", str(folder / "llama"), "--conllu", str(folder / "tiny.conllu")]
    assert main([*again, "--encoding", "float32", "--block-rows", "256"]) == 2
    assert "capture.module" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("llama", ["--sites", "mlp.port"], "unknown site 'mlp.port'"),
        ("bert", ["--sites", "mlp.gate"], "BertModel has no site 'mlp.gate': it has mlp.post, mlp.up"),
        ("llama", ["--sites", "mlp.post", "mlp.post"], "each once"),
        ("llama", ["--sites", "mlp.routing"], "has no site 'mlp.routing'"),
        ("llama", ["--module", "layers.0.mlp.down_proj"], "must contain {layer} exactly once"),
        ("llama", ["--module", "layers.{layer}.mlp.fc9"], 'name the module whose inputs are the neurons, as in --module "'),
    ],
)
def test_refusals(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, options: list[str], message: str
) -> None:
    treebank = str(folder / "tiny.conllu")
    assert main(["extract", str(tmp_path / "a.lake"), "--model", str(folder / kind), "--conllu", treebank, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.splitlines()[:-1] == ["hashing the model's weights…"]
    assert not (tmp_path / "a.lake").exists()
