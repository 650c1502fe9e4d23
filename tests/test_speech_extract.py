"""Speech lakes: values against the modules' own weights, one utterance at a time; resume, audit, questions, refusals."""

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from speech import RATE, TAGS, make_corpus, make_model, utterance, write_wav
from tiny import conllu, some_sentences
from tiny import make_model as make_llama

from neuronlake.analysis import compute_statistics, top_tokens
from neuronlake.cli.main import main
from neuronlake.extractor import AudioCorpus, ConlluCorpus, ExtractSettings, Observer, extract, resolve_model
from neuronlake.extractor.recompute import recompute
from neuronlake.store import InputError, Lake, open_lake, verify
from neuronlake.store.tables import PADDING, UNCOVERED

KINDS = ["wav2vec2:layer", "wav2vec2:group", "hubert:layer", "wavlm:layer", "whisper"]
UTTERANCES = 9


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("speech") / "corpus", UTTERANCES)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: make_model(folder / kind.replace(":", "-"), kind) for kind in KINDS}


def run(root: Path, model: Path, table: Path, **settings: object) -> Lake:
    options = {"encoding": "float32", "block_rows": 256, "batch_tokens": 300, **settings}
    extract(root, AudioCorpus(paths=(table,)), resolve_model(str(model)), ExtractSettings(**options))  # type: ignore[arg-type]
    return open_lake(root)


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def reference(kind: str, model: Path, samples: np.ndarray) -> np.ndarray:
    """act(up) of one utterance alone: float64 (layers, frames, neurons), from each MLP's weights and inputs."""
    network, extractor, projections = load(kind, model)
    inputs: list[torch.Tensor] = []
    hooks = [
        projection.register_forward_hook(lambda _module, args, _output: inputs.append(args[0][0].double()))
        for projection in projections
    ]
    given = extractor(samples, sampling_rate=RATE, return_tensors="pt")
    given.pop("attention_mask", None)
    with torch.inference_mode():
        network(**given)
        neurons = [
            torch.nn.functional.gelu(x @ projection.weight.double().T + projection.bias.double())
            for projection, x in zip(projections, inputs, strict=True)
        ]
    for hook in hooks:
        hook.remove()
    return torch.stack(neurons).numpy()


@functools.cache
def load(kind: str, model: Path) -> tuple[Any, Any, list[Any]]:
    """The encoder, its feature extractor, and the projections into the MLPs."""
    from transformers import AutoFeatureExtractor, AutoModel

    network: Any = AutoModel.from_pretrained(model).eval()
    extractor = AutoFeatureExtractor.from_pretrained(model)
    if kind == "whisper":
        network = network.get_encoder()
        return network, extractor, [layer.fc1 for layer in network.layers]
    return network, extractor, [layer.feed_forward.intermediate_dense for layer in network.encoder.layers]


@pytest.mark.parametrize(("kind", "batch_tokens"), [*((kind, 300) for kind in KINDS), ("wav2vec2:layer", 1)])
def test_values_labels_and_contexts(
    tmp_path: Path, models: dict[str, Path], table: Path, kind: str, batch_tokens: int
) -> None:
    lake = run(tmp_path / "a.lake", models[kind], table, batch_tokens=batch_tokens)
    assert lake.plan.unit == "frame"
    assert verify(lake.path, full=True).ok
    tokens = lake.tokens(labels=["upos", "form"]).to_pandas().astype({"upos": object, "form": object})
    tokens = tokens.where(tokens.notna(), None)
    sentences = lake.sentences().to_pandas()
    assert (tokens.loc[tokens["flags"] != PADDING, "token_id"] == 0).all()
    frames = 0
    for number in range(UTTERANCES):
        samples, words = utterance(number, 2 + number * 3 % 5)
        expected = reference(kind, models[kind], samples.astype(np.float32) / 32768)
        count = -(-len(samples) // 320) if kind == "whisper" else expected.shape[1]
        rows = tokens[tokens["sentence"] == number]
        assert len(rows) == count
        frames += count
        for layer in lake.layers:
            values = lake.read(layer=layer, rows=slice(int(rows["row"].iloc[0]), int(rows["row"].iloc[-1]) + 1))
            np.testing.assert_allclose(values, expected[layer, :count], atol=1e-5, rtol=1e-5)
        for frame, line in enumerate(rows.itertuples()):
            centre = (320 * frame + (0 if kind == "whisper" else 200)) / RATE
            said = [word for word in words if word["start"] <= centre < word["end"]]
            assert (line.form, line.upos) == ((said[0]["form"], said[0]["upos"]) if said else (None, None))
            assert line.flags == (0 if said else UNCOVERED)
        metadata = json.loads(sentences.loc[number, "metadata"])
        assert metadata["audio"] == f"wav/u{number:02d}.wav"
        assert metadata["speaker"] == "A"
        assert (metadata["samples"], metadata["sampling_rate"]) == (str(len(samples)), str(RATE))
    assert lake.plan.counts["tokens"] == frames
    assert lake.plan.counts["special"] == lake.plan.counts["multi"] == 0
    centre = 0 if kind == "whisper" else 200
    assert {"hop": 320, "first_centre": centre, "sampling_rate": RATE}.items() <= lake.spec.plan["frames"].items()


@pytest.mark.parametrize("kind", ["wav2vec2:layer", "whisper"])
def test_other_sites(tmp_path: Path, models: dict[str, Path], table: Path, kind: str) -> None:
    """The residual stream, which transformers itself gives as hidden states."""
    lake = run(tmp_path / "a.lake", models[kind], table, sites=("mlp.post", "resid.post"))
    network, extractor, _ = load(kind, models[kind])
    samples = utterance(0, 2)[0].astype(np.float32) / 32768
    given = extractor(samples, sampling_rate=RATE, return_tensors="pt")
    given.pop("attention_mask", None)
    with torch.inference_mode():
        states = network(**given, output_hidden_states=True).hidden_states
    tokens = lake.tokens().to_pandas()
    rows = tokens.loc[tokens["sentence"] == 0, "row"]
    values = lake.read(site="resid.post", layer=0, rows=slice(int(rows.min()), int(rows.max()) + 1))
    np.testing.assert_allclose(values, states[1][0, : len(rows)].numpy(), atol=1e-5, rtol=1e-5)


def test_statistics_and_top_tokens_are_of_frames(tmp_path: Path, models: dict[str, Path], table: Path) -> None:
    """Means by tag over all frames of words, and the top frames, by brute force over the times."""
    lake = run(tmp_path / "a.lake", models["wav2vec2:layer"], table)
    tokens = lake.tokens(labels=["upos"]).to_pandas()
    values = lake.read(layer=1, rows=slice(0, len(tokens)))
    found = compute_statistics(lake, by="upos", subword="all")
    for tag in set(TAGS.values()):
        expected = values[(tokens["upos"] == tag).to_numpy()].mean(axis=0)
        np.testing.assert_allclose(found["mean"].sel(tag=tag, layer=1), expected, rtol=1e-4, atol=1e-5)
    used = np.flatnonzero((tokens["flags"] != PADDING).to_numpy())
    order = used[np.argsort(-values[used, 3], kind="stable")][:5]
    best = top_tokens(lake, 1, 3, k=5, labels=["upos"])
    assert [entry["row"] for entry in best] == tokens["row"].to_numpy()[order].tolist()
    for entry in best:
        assert entry["context"].count("«") == 1
        assert entry["token"] in TAGS if entry["labels"]["upos"] else entry["token"] == ""


def test_the_same_inputs_give_the_same_bytes_and_runs_resume(tmp_path: Path, models: dict[str, Path], table: Path) -> None:
    model = models["wav2vec2:layer"]
    whole = run(tmp_path / "a.lake", model, table)
    assert whole.plan.blocks > 1
    run(tmp_path / "b.lake", model, table, blocks=(1, 2))
    assert not open_lake(tmp_path / "b.lake").complete
    moved = tmp_path / "moved"  # the same corpus elsewhere
    shutil.copytree(table.parent, moved)
    run(tmp_path / "b.lake", model, moved / table.name)
    assert contents(tmp_path / "a.lake") == contents(tmp_path / "b.lake")


def test_an_interrupted_run_goes_on(tmp_path: Path, models: dict[str, Path], table: Path) -> None:
    """Stopped in the middle of the second block."""
    source, corpus = resolve_model(str(models["whisper"])), AudioCorpus(paths=(table,))
    settings = ExtractSettings(encoding="float32", block_rows=256)
    extract(tmp_path / "a.lake", corpus, source, settings)
    done = 0

    def stop(frames: int, _bytes: int) -> None:
        nonlocal done
        done += frames
        if done > 256:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(tmp_path / "b.lake", corpus, source, settings, Observer(advance=stop))
    committed = open_lake(tmp_path / "b.lake").blocks
    report = extract(tmp_path / "b.lake", corpus, source, settings)
    assert set(report.extracted) == set(range(report.blocks)) - set(committed)
    assert contents(tmp_path / "a.lake") == contents(tmp_path / "b.lake")


def test_changed_audio_is_refused(tmp_path: Path, models: dict[str, Path], table: Path) -> None:
    model = models["wav2vec2:layer"]
    shutil.copytree(table.parent, tmp_path / "corpus")
    mine = tmp_path / "corpus" / table.name
    run(tmp_path / "a.lake", model, mine, blocks=(0, 1))
    before = contents(tmp_path / "a.lake")
    sound = tmp_path / "corpus/wav/u08.wav"
    samples, _ = utterance(8, 2 + 8 * 3 % 5)
    write_wav(sound, np.where(np.arange(len(samples)) == 100, samples + 1, samples).astype(np.int16))
    with pytest.raises(InputError, match=r"different plan.*corpus\.audio\.sha256: .* in the lake, .* now"):
        run(tmp_path / "a.lake", model, mine)
    assert contents(tmp_path / "a.lake") == before


def test_recompute_needs_the_sound_and_checks_it(
    tmp_path: Path, models: dict[str, Path], table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, model = tmp_path / "a.lake", models["wav2vec2:group"]
    run(root, model, table)
    command = ["verify", str(root), "--recompute", "2", "--model", str(model), "--seed", "1"]
    assert main(command) == 2
    assert "is of speech, and its sound is not in it: name the tables it was made from (--audio)" in capsys.readouterr().err
    assert main([*command, "--audio", str(table), "--json"]) == 0
    assert all(block["identical"] for block in json.loads(capsys.readouterr().out)["recompute"]["blocks"])
    shutil.copytree(table.parent, tmp_path / "corpus")
    for path in (tmp_path / "corpus/wav").iterdir():
        write_wav(path, np.zeros(4000, dtype=np.int16))
    corpus = AudioCorpus(paths=(tmp_path / "corpus" / table.name,))
    with pytest.raises(InputError, match=r"u\d\d.wav has changed since the lake was planned"):
        recompute(root, resolve_model(str(model)), blocks=1, seed=0, audio=corpus)
    shutil.rmtree(tmp_path / "corpus/wav")
    with pytest.raises(InputError, match=r"no audio file .*u\d\d.wav: the lake was planned with it"):
        recompute(root, resolve_model(str(model)), blocks=1, seed=0, audio=corpus)


def test_truncated_utterances_see_only_their_frames(tmp_path: Path, models: dict[str, Path], table: Path) -> None:
    for kind in ("wav2vec2:layer", "whisper"):
        lake = run(tmp_path / f"{kind[:3]}.lake", models[kind], table, max_tokens=12, on_long="truncate")
        assert lake.plan.counts["truncated_sequences"] == UTTERANCES
        assert lake.plan.counts["tokens"] == 12 * UTTERANCES
        samples, _ = utterance(0, 2)
        cut = samples[: 11 * 320 + (1 if kind == "whisper" else 400)].astype(np.float32) / 32768
        values = lake.read(layer=0, rows=slice(0, 12))
        np.testing.assert_allclose(values, reference(kind, models[kind], cut)[0, :12], atol=1e-5, rtol=1e-5)


def test_stretches_of_a_recording(tmp_path: Path, models: dict[str, Path]) -> None:
    """Two utterances in one file give the values of two files."""
    parts = [utterance(number, 3) for number in range(2)]
    write_wav(tmp_path / "long.wav", np.concatenate([samples for samples, _ in parts]))
    lines, border = [], 0
    for samples, words in parts:
        shift = border / RATE
        later = [{**word, "start": word["start"] + shift, "end": word["end"] + shift} for word in words]
        border += len(samples)
        lines.append({"audio": "long.wav", "start": shift, "end": border / RATE, "words": later})
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    lake = run(tmp_path / "a.lake", models["wav2vec2:layer"], tmp_path / "t.jsonl")
    expected = [reference("wav2vec2:layer", models["wav2vec2:layer"], part.astype(np.float32) / 32768) for part, _ in parts]
    both = np.concatenate(expected, axis=1)
    np.testing.assert_allclose(lake.read(layer=1, rows=slice(0, both.shape[1])), both[1], atol=1e-5, rtol=1e-5)


def test_by_command(tmp_path: Path, models: dict[str, Path], table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(tmp_path / "a.lake")

    def said(*command: str) -> str:
        capsys.readouterr()
        assert main(list(command)) == 0
        return capsys.readouterr().out

    model = str(models["wav2vec2:layer"])
    text = said("extract", root, "--model", model, "--audio", str(table), "--block-rows", "256", "--encoding", "float16")
    frames = open_lake(root).plan.counts["tokens"]
    uncovered = open_lake(root).plan.counts["uncovered"]
    assert f"{UTTERANCES} sentences" in text
    assert f"{frames} frames\n" in text
    assert f"{uncovered} frames lie in no word; 0 words reached by no frame" in text
    assert f"{frames} frames" in said("info", root)
    ranked = json.loads(said("rank", root, "--by", "upos", "--subword", "all", "--top", "1", "--json"))
    assert {entry["tag"] for entry in ranked} == set(TAGS.values())
    assert "«" in said("top", root, "L0.N3", "-k", "3")
    assert "NOUN" in said("tokens", root, "L0.N3", "--above", "0", "--labels", "upos")
    assert "«dog»" in said("neurons", root, "--form", "dog")


def test_refusals(tmp_path: Path, models: dict[str, Path], table: Path) -> None:
    llama = make_llama(tmp_path / "llama")
    with pytest.raises(InputError, match=r"llama \(llama\) reads no audio that neuronlake knows of"):
        run(tmp_path / "a.lake", llama, table)
    with pytest.raises(InputError, match="vLLM reads tokens, not sound: extract speech with --backend transformers"):
        run(tmp_path / "a.lake", models["whisper"], table, backend="vllm")
    (tmp_path / "t.conllu").write_text(conllu(some_sentences(3)))
    text = ConlluCorpus(paths=(tmp_path / "t.conllu",))
    for kind in ("whisper", "wav2vec2:layer"):
        with pytest.raises(InputError, match=r"reads sound, not text: name tables of utterances with --audio"):
            extract(tmp_path / "a.lake", text, resolve_model(str(models[kind])), ExtractSettings())
    with pytest.raises(InputError, match=r"a speech model reads utterance by utterance"):
        run(tmp_path / "a.lake", models["whisper"], table, context="document", on_long="split")
    with pytest.raises(InputError, match=r"max_tokens 101 is longer than the model's context: at most 100"):
        run(tmp_path / "a.lake", models["whisper"], table, max_tokens=101)
    (tmp_path / "long").mkdir()
    write_wav(tmp_path / "long/a.wav", np.zeros(RATE * 2 + 1, dtype=np.int16))
    line = {"audio": "a.wav", "words": [{"form": "dog", "start": 0, "end": 1}]}
    (tmp_path / "long/t.jsonl").write_text(json.dumps(line))
    with pytest.raises(InputError, match=r"t.jsonl:1: utterance 't:1' has 101 frames \(2.0 s\), the limit is 100 \(2.0 s\)"):
        run(tmp_path / "a.lake", models["whisper"], tmp_path / "long/t.jsonl")
    write_wav(tmp_path / "long/a.wav", np.zeros(20_000, dtype=np.int16), rate=8000)
    with pytest.raises(InputError, match=r"sampled at 8000 Hz, the model expects 16000 Hz; convert it: ffmpeg -i a.wav -ar"):
        run(tmp_path / "a.lake", models["whisper"], tmp_path / "long/t.jsonl")
    assert not (tmp_path / "a.lake").exists() or not open_lake(tmp_path / "a.lake").blocks
