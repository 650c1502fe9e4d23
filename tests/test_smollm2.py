"""The main job on a real model: SmolLM2-135M from its GGUF file. Slow, and the point of it all."""

import gzip
import itertools
import json
import os
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from neuronlake.cli.demo import model_file
from neuronlake.cli.main import main
from neuronlake.extractor import ConlluCorpus, ExtractSettings, ModelSource, extract, resolve_model
from neuronlake.store import Lake, open_lake
from neuronlake.store.quantise import TARGET_L2, expand, quantise

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]
ROOT = Path(__file__).parent.parent
CORPORA = Path(os.environ.get("NEURONLAKE_CORPORA", ROOT.parent / "shared" / "corpora"))
SENTENCES = 200


@pytest.fixture(scope="module")
def source() -> ModelSource:
    return resolve_model(model_file())


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `neuronlake demo` has run on little text."""
    folder = tmp_path_factory.mktemp("demo")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["demo", "--words", "2500"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(scope="module")
def ewt(source: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Every tenth sentence of EWT dev, so that all genres are there."""
    path = CORPORA / "en_ewt-ud-dev.conllu.gz"
    if not path.is_file():
        pytest.skip(f"no gold treebank at {path}: set NEURONLAKE_CORPORA to the folder of en_ewt-ud-dev.conllu.gz")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        sentences = file.read().strip().split("\n\n")
    folder = tmp_path_factory.mktemp("ewt")
    chosen = sentences[:: len(sentences) // SENTENCES][:SENTENCES]
    (folder / "sample.conllu").write_text("\n\n".join(chosen) + "\n\n", encoding="utf-8")
    extract(
        folder / "a.lake",
        ConlluCorpus(paths=(folder / "sample.conllu",)),
        source,
        ExtractSettings(block_rows=2048, encoding="float16"),
    )
    return open_lake(folder / "a.lake")


def test_values_equal_a_plain_forward(ewt: Lake, source: ModelSource) -> None:
    """200 sentences, each alone through transformers, all 30 layers, every value."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(source.folder, dtype=torch.float32).eval()
    captured: dict[int, np.ndarray] = {}
    for index, layer in enumerate(model.layers):
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda _module, args, index=index: captured.__setitem__(index, args[0][0].numpy().copy())
        )
    tokens = ewt.tokens().to_pandas()
    sentences = ewt.sentences().to_pandas()
    assert len(sentences) == SENTENCES
    stored = {layer: ewt.read(layer=layer) for layer in ewt.layers}
    for number in sentences["sentence"]:
        mine = tokens[tokens["sentence"] == number]
        with torch.inference_mode():
            model(input_ids=torch.tensor(mine["token_id"].to_numpy()[None].astype(np.int64)), use_cache=False)
        for layer in ewt.layers:
            expected, found = captured[layer], stored[layer][mine["row"].to_numpy()]
            # float16's rounding; float32 passes are 1e-5 to 3e-5 of the largest value from a float64 one
            allowed = 2.0**-11 * np.abs(expected) + 2.0**-24 + 5e-5 * np.abs(expected).max(axis=1, keepdims=True)
            assert (np.abs(found - expected) <= allowed).all()


def test_int8a_keeps_its_promises(ewt: Lake) -> None:
    """Real activations of every fifth layer, the last one with its massive ones included."""
    rows = np.flatnonzero(ewt.tokens(blocks=[0]).column("token_id").to_numpy() >= 0)
    for layer in range(4, 30, 5):
        truth = ewt.read(layer=layer, rows=rows, neurons=slice(0, 256)).astype(np.float16)
        codes, patterns = np.empty(truth.shape, dtype=np.int8), np.empty(truth.shape, dtype=np.uint16)
        scales = quantise(truth.view(np.uint16), len(rows), codes)
        expand(codes, scales, patterns)
        x, y = truth.astype(np.float64), patterns.view(np.float16).astype(np.float64)
        np.testing.assert_array_equal(np.sign(x), np.sign(y))
        ranks = [rankdata(values, axis=0) - (len(rows) + 1) / 2 for values in (x, y)]
        rho = (ranks[0] * ranks[1]).sum(0) / np.sqrt((ranks[0] ** 2).sum(0) * (ranks[1] ** 2).sum(0))
        assert np.quantile(rho, 0.02) >= 0.999
        assert rho.min() >= 0.998
        assert np.median(np.linalg.norm(y - x, axis=0) / np.linalg.norm(x, axis=0)) <= TARGET_L2


def test_every_word_is_reached(ewt: Lake) -> None:
    counts = ewt.plan.counts
    assert counts["words_unreached"] == 0
    words, tokens = ewt.words().to_pandas(), ewt.tokens().to_pandas()
    texts = ewt.sentences().to_pandas().set_index("sentence")["text"]
    # found again by brute force over characters
    shared = alone = 0
    for number, word in words.groupby("sentence"):
        mine = tokens[(tokens["sentence"] == number)]
        for _, line in word.iterrows():
            covering = mine[(mine["char_start"] < line["char_end"]) & (mine["char_end"] > line["char_start"])]
            assert len(covering), f"{line['form']!r} in {texts[number]!r}"
            alone += bool((covering["word"] == line["word"]).any())
            shared += not (covering["word"] == line["word"]).any()
    assert shared == counts["words_only_multi"]
    assert alone + shared == counts["words"]


def test_neurons_tell_parts_of_speech_apart(ewt: Lake) -> None:
    """What is known of this model: a layer-0 neuron is low on determiners (AUROC 0.97 from the other side), and so on."""
    from sklearn.metrics import roc_auc_score

    from neuronlake.analysis import compute_statistics, rank, refine

    refined = refine(ewt, compute_statistics(ewt, "upos"), "auroc", top=1)
    best = {entry["tag"]: entry for entry in rank(refined, "auroc", top=1)}
    assert (best["DET"]["layer"], best["DET"]["sign"]) == (0, -1)
    assert best["DET"]["score"] > 0.94
    assert best["PRON"]["score"] > 0.85
    assert best["NOUN"]["score"] > 0.80
    tokens = ewt.tokens(labels=["upos"]).to_pandas()
    rows = tokens[tokens["upos"].notna() & tokens["is_last_subword"]]
    for tag in ("DET", "PRON", "NOUN"):
        entry = best[tag]
        values = ewt.read(layer=entry["layer"], rows=rows["row"].to_numpy(), neurons=[entry["neuron"]])[:, 0]
        assert entry["auroc"] == pytest.approx(roc_auc_score(rows["upos"] == tag, values), abs=1e-12)


def test_demo_leaves_a_lake_and_a_picture(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (demo / "demo" / "upos-auroc.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["info", str(demo / "demo" / "demo.lake"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["complete"]
    assert record["layers"] == 30
    assert record["neurons"] == 1536
    assert record["counts"]["words_unreached"] == 0


@pytest.mark.parametrize("document", ["README.md", "docs/format.md"])
def test_documents_code_runs(
    demo: Path, document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    monkeypatch.chdir(demo)
    for number, block in zip(itertools.count(), blocks, strict=False):
        script = tmp_path / f"block{number}.py"
        script.write_text(block, encoding="utf-8")
        runpy.run_path(str(script))
    if document == "README.md":
        assert "lower" in capsys.readouterr().out
