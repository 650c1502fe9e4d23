"""Extraction on a tiny real Llama: values against a plain forward, resume, and every refusal."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import conllu, make_model, some_sentences
from transformers import AutoModelForCausalLM, AutoTokenizer

from neuronlake.extractor import ConlluCorpus, ExtractSettings, Observer, extract, resolve_model
from neuronlake.extractor.tokenizer import Tokenizer
from neuronlake.store import InputError, Lake, open_lake, verify
from neuronlake.store.tables import MULTI, PADDING, SPECIAL

SENTENCES = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def treebank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "tiny.conllu"
    path.write_text(conllu(some_sentences(SENTENCES)), encoding="utf-8")
    return path


def run(root: Path, model: Path, treebank: Path, **settings: object) -> Lake:
    options = {"encoding": "float32", "block_rows": 256, "batch_tokens": 96, **settings}
    extract(root, ConlluCorpus(paths=(treebank,)), resolve_model(str(model)), ExtractSettings(**options))  # type: ignore[arg-type]
    return open_lake(root)


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def reference(model: Path, texts: list[str]) -> list[np.ndarray]:
    """act(gate)·up of each text alone, computed from the module's weights: float64 (layers, tokens, neurons)."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    inputs: dict[int, torch.Tensor] = {}
    for index, layer in enumerate(network.model.layers):
        layer.mlp.register_forward_pre_hook(lambda _module, args, index=index: inputs.__setitem__(index, args[0]))
    result = []
    for text in texts:
        with torch.inference_mode():
            network(**tokenizer(text, return_tensors="pt"))
            neurons = []
            for index, layer in enumerate(network.model.layers):
                x = inputs[index][0].double()
                gate, up = x @ layer.mlp.gate_proj.weight.double().T, x @ layer.mlp.up_proj.weight.double().T
                neurons.append(torch.nn.functional.silu(gate) * up)
        result.append(torch.stack(neurons).numpy())
    return result


@pytest.mark.parametrize("encoding", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("batch_tokens", [1, 96])
def test_values_are_those_of_a_plain_forward(
    tmp_path: Path, model: Path, treebank: Path, encoding: str, batch_tokens: int
) -> None:
    lake = run(tmp_path / "a.lake", model, treebank, encoding=encoding, batch_tokens=batch_tokens)
    tokens, sentences = lake.tokens().to_pandas(), lake.sentences().to_pandas()
    assert lake.plan.blocks > 1
    expected = reference(model, sentences["text"].tolist())
    relative = {"float32": 0.0, "float16": 2**-11, "bfloat16": 2**-8}[encoding]
    for number, values in enumerate(expected):
        rows = tokens.loc[tokens["sentence"] == number, "row"].to_numpy()
        read = np.stack([lake.read(layer=layer, rows=rows) for layer in lake.layers])
        assert read.shape == values.shape
        # the cast's own rounding, and the noise of two float32 forward passes
        np.testing.assert_allclose(read, values, rtol=relative + 2e-5, atol=1e-6)


def test_document_context_sees_the_whole_document(tmp_path: Path, model: Path, treebank: Path) -> None:
    lake = run(tmp_path / "a.lake", model, treebank, context="document", on_long="split")
    tokens, sentences = lake.tokens(labels=["form"]).to_pandas(), lake.sentences().to_pandas()
    used = tokens[(tokens["flags"] & PADDING) == 0]
    starts = used.loc[used["position"] == 0, "row"].to_numpy()
    for first, last in zip(starts, [*starts[1:], None], strict=True):
        part = used[(used["row"] >= first) & (used["row"] < (last if last is not None else len(tokens)))]
        text = " ".join(sentences.set_index("sentence").loc[part["sentence"].unique(), "text"])
        (expected,) = reference(model, [text])
        read = np.stack([lake.read(layer=layer, rows=part["row"].to_numpy()) for layer in lake.layers])
        np.testing.assert_allclose(read, expected, rtol=2e-5, atol=1e-6)
    words = lake.words().to_pandas()
    sliced = tokens[tokens["word"] >= 0].merge(words, on="word", suffixes=("", "_word"))
    for _, line in sliced.iterrows():
        text = sentences.loc[line["sentence"], "text"]
        assert text[line["char_start"] : line["char_end"]].strip() in line["form"]


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path, model: Path, treebank: Path) -> None:
    run(tmp_path / "a.lake", model, treebank)
    run(tmp_path / "b.lake", model, treebank)
    assert contents(tmp_path / "a.lake") == contents(tmp_path / "b.lake")


def test_blocks_can_be_extracted_in_parts(tmp_path: Path, model: Path, treebank: Path) -> None:
    whole = run(tmp_path / "a.lake", model, treebank)
    first = run(tmp_path / "b.lake", model, treebank, blocks=(1, 2))
    assert first.blocks == (1,)
    run(tmp_path / "b.lake", model, treebank, blocks=(0, 1))
    run(tmp_path / "b.lake", model, treebank)
    assert contents(tmp_path / "a.lake") == contents(tmp_path / "b.lake")
    assert whole.complete
    with pytest.raises(InputError, match="plan has blocks 0 to"):
        run(tmp_path / "b.lake", model, treebank, blocks=(99, 100))


def command(root: Path, model: Path, treebank: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "neuronlake.cli.main", "extract", str(root), "--model", str(model), "--conllu", str(treebank),
        "--block-rows", "256", "--batch-tokens", "32", "--encoding", "float16", *more,
    ]  # fmt: skip


def test_killed_anywhere_it_resumes_to_the_same_bytes(tmp_path: Path, model: Path) -> None:
    """SIGKILL at random moments, from planning to commits. The long form is `python -m benchmarks kill`."""
    treebank = tmp_path / "big.conllu"
    treebank.write_text(conllu(some_sentences(300)), encoding="utf-8")
    subprocess.run(command(tmp_path / "whole.lake", model, treebank), check=True, capture_output=True)
    expected = contents(tmp_path / "whole.lake")
    rng = random.Random(0)
    root = tmp_path / "killed.lake"
    for _ in range(3):
        process = subprocess.Popen(command(root, model, treebank), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        seen = len(contents(root)) if root.exists() else 0
        while process.poll() is None and time.monotonic() < deadline:
            if root.exists() and len(list(root.rglob("*"))) > seen:
                time.sleep(rng.uniform(0, 0.4))
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command(root, model, treebank), check=True, capture_output=True)
    assert contents(root) == expected
    assert verify(root, full=True).ok


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, model: Path) -> None:
    treebank = tmp_path / "big.conllu"
    treebank.write_text(conllu(some_sentences(3000)), encoding="utf-8")
    root = tmp_path / "a.lake"
    # where these tests run in the background of a shell, SIGINT is ignored, and a child would inherit that
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command(root, model, treebank), stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 90
    while not list((root / "commits").glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "blocks are committed" in stderr
    assert "run the same command again" in stderr
    assert "Traceback" not in stderr
    assert verify(root, full=True).ok
    assert not verify(root).unknown_files


def test_a_lake_of_another_plan_is_left_alone(tmp_path: Path, model: Path, treebank: Path) -> None:
    root = tmp_path / "a.lake"
    run(root, model, treebank)
    before = contents(root)
    with pytest.raises(InputError, match=r"different plan.*context: .sentence. in the lake, .document. now"):
        run(root, model, treebank, context="document", on_long="split")
    with pytest.raises(InputError, match=r"model\.sha256"):
        run(root, make_model(tmp_path / "other", seed=1), treebank)
    assert contents(root) == before


def test_an_unfinished_plan_makes_room_for_another(tmp_path: Path, model: Path, treebank: Path) -> None:
    root = tmp_path / "a.lake"
    run(root, model, treebank)
    shutil.rmtree(root / "commits")
    (root / "plan" / "plan.json").unlink()  # as a kill while planning leaves it
    lake = run(root, model, treebank, encoding="bfloat16")
    assert lake.encoding == "bfloat16"
    assert not verify(root, full=True).unknown_files


def test_a_renamed_model_folder_is_the_same_model(tmp_path: Path, model: Path, treebank: Path) -> None:
    run(tmp_path / "a.lake", model, treebank, blocks=(0, 1))
    shutil.copytree(model, tmp_path / "renamed")
    assert run(tmp_path / "a.lake", tmp_path / "renamed", treebank).complete


def test_batch_size_may_change_between_runs(tmp_path: Path, model: Path, treebank: Path) -> None:
    run(tmp_path / "a.lake", model, treebank, blocks=(0, 1), batch_tokens=200)
    lake = run(tmp_path / "a.lake", model, treebank, batch_tokens=50)
    assert [commit.provenance["batch_tokens"] for commit in lake.commits][:2] == [200, 50]


def test_special_tokens_and_shared_tokens_have_no_word(tmp_path: Path, model: Path) -> None:
    treebank = tmp_path / "t.conllu"
    # "dog," is written as one word "dog," split by the treebank into do + g, so its tokens cover several words
    treebank.write_text("# text = the dog\n1\tthe\t_\tDET\t_\t_\t0\t_\t_\t_\n2\tdo\t_\tX\t_\t_\t0\t_\t_\tSpaceAfter=No\n"
                        "3\tg\t_\tX\t_\t_\t0\t_\t_\t_\n\n")  # fmt: skip
    lake = run(tmp_path / "a.lake", model, treebank)
    tokens = lake.tokens(labels=["upos"]).to_pandas()
    assert tokens.loc[0, "flags"] == SPECIAL
    assert tokens.loc[0, "word"] == -1
    assert (tokens["flags"] == MULTI).sum() == lake.plan.counts["multi"] > 0
    assert (tokens.loc[tokens["flags"] == MULTI, "word"] == -1).all()
    assert lake.plan.counts["words_unreached"] == 0
    without = run(tmp_path / "b.lake", model, treebank, special_tokens=False)
    assert without.plan.counts["special"] == 0
    assert without.plan.counts["tokens"] == lake.plan.counts["tokens"]


def test_long_sequences_are_refused_cut_or_split(tmp_path: Path, model: Path, treebank: Path) -> None:
    with pytest.raises(InputError, match=r"tiny.conllu:\d+: sentence 's\d+' has \d+ tokens, the limit is 12: use --on-long"):
        run(tmp_path / "a.lake", model, treebank, max_tokens=12)
    lake = run(tmp_path / "b.lake", model, treebank, max_tokens=12, on_long="truncate")
    counts = lake.plan.counts
    assert counts["truncated_sequences"] > 0
    assert counts["words_unreached"] > 0
    assert counts["words"] == sum(len(sentence) for sentence in some_sentences(SENTENCES))
    with pytest.raises(InputError, match="max_tokens 500 is longer than the model's context: at most 128"):
        run(tmp_path / "c.lake", model, treebank, max_tokens=500)
    with pytest.raises(InputError, match="a sentence cannot be split"):
        run(tmp_path / "c.lake", model, treebank, on_long="split")


def test_an_overflow_names_neuron_and_token(tmp_path: Path, treebank: Path) -> None:
    from transformers import AutoModelForCausalLM

    loud = make_model(tmp_path / "loud")
    network = AutoModelForCausalLM.from_pretrained(loud)
    with torch.no_grad():
        network.model.layers[1].mlp.up_proj.weight.mul_(1e6)
    network.save_pretrained(loud)
    with pytest.raises(
        InputError, match=r"L1\.N\d+ .*beyond float16.*--encoding bfloat16.*token: .*sentence 's\d+' of tiny"
    ):
        run(tmp_path / "a.lake", loud, treebank, encoding="float16")
    assert open_lake(tmp_path / "a.lake").blocks == ()


def test_an_empty_corpus_is_refused(tmp_path: Path, model: Path) -> None:
    empty = tmp_path / "empty.conllu"
    empty.write_text("\n")
    with pytest.raises(InputError, match="corpus is empty"):
        run(tmp_path / "a.lake", model, empty)


def test_a_slow_tokenizer_is_refused() -> None:
    from transformers import CanineTokenizer

    with pytest.raises(InputError, match="CanineTokenizer is a slow tokenizer without character offsets"):
        Tokenizer(CanineTokenizer(), special_tokens=True)


def test_what_is_not_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "weightless").mkdir()
    (tmp_path / "weightless" / "config.json").write_text("{}")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF? no")
    for model, match in {
        str(tmp_path / "nowhere"): "no model at",
        str(tmp_path / "empty"): "not a model: it has no config.json",
        str(tmp_path / "weightless"): "no weights",
        str(tmp_path / "missing.gguf"): "no GGUF file at",
        str(tmp_path / "broken.gguf"): "could not read .* as a GGUF model",
    }.items():
        with pytest.raises(InputError, match=match):
            resolve_model(model)


def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # read at import by the hub client, so a process of its own
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code = "from neuronlake.extractor import resolve_model; resolve_model('no-such-user/no-such-model')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ)
    assert "InputError: no model 'no-such-user/no-such-model': it is no local folder, and the hub says" in result.stderr


def test_the_model_runs_once_per_token(tmp_path: Path, model: Path, treebank: Path) -> None:
    """Tokens reported by the run add up to the plan, and a finished lake needs no forward pass at all."""
    seen: list[int] = []
    observer = Observer(advance=lambda tokens, _bytes: seen.append(tokens))
    arguments = (ConlluCorpus(paths=(treebank,)), resolve_model(str(model)), ExtractSettings(block_rows=256))
    report = extract(tmp_path / "a.lake", *arguments, observer)
    assert sum(seen) == report.counts["tokens"] + report.counts["special"]
    seen.clear()
    assert extract(tmp_path / "a.lake", *arguments, observer).extracted == ()
    assert seen == []
