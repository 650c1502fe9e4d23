"""Frames: their number against the models themselves, their times and words by brute force, batches that change nothing."""

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speech import KERNELS, RATE, STRIDES, make_corpus, make_model

from neuronlake.extractor import resolve_model
from neuronlake.extractor.align import align_times
from neuronlake.extractor.corpora.audio import AudioCorpus
from neuronlake.extractor.frames import FrameGrid, make_frame_sequences
from neuronlake.extractor.sequences import SequenceSettings
from neuronlake.extractor.speech import FrontEnd
from neuronlake.store.errors import InputError
from neuronlake.store.tables import UNCOVERED

GRID = FrameGrid.of_convolutions(KERNELS, STRIDES, sampling_rate=RATE)
KINDS = ["wav2vec2:layer", "wav2vec2:group", "hubert:layer", "wavlm:layer", "unispeech-sat:layer", "data2vec-audio"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: make_model(folder / kind.replace(":", "-"), kind) for kind in [*KINDS, "whisper"]}


def load(folder: Path) -> Any:
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder).eval()


def test_the_usual_grid_is_20_ms() -> None:
    assert (GRID.hop, GRID.needed, GRID.first_centre) == (320, 400, 200)
    np.testing.assert_allclose(GRID.centres(3), [0.0125, 0.0325, 0.0525])


def test_frames_are_those_of_the_model(models: dict[str, Path]) -> None:
    """The model's own convolutions, run over the borders where a frame is gained and over random lengths."""
    network = load(models["wav2vec2:layer"])
    rng = np.random.default_rng(0)
    lengths = {400 + 320 * frames + more for frames in (0, 1, 2, 7) for more in (0, 1, 159, 319)}
    lengths |= {int(length) for length in rng.integers(400, 9000, 40)}
    for samples in sorted(lengths):
        with torch.inference_mode():
            given = network.feature_extractor(torch.zeros(1, samples)).shape[-1]
        assert GRID.count(samples) == given, samples
    assert GRID.count(399) == GRID.count(0) == 0


@given(
    st.lists(st.tuples(st.integers(1, 11), st.integers(1, 6)), min_size=1, max_size=7),
    st.integers(0, 50_000),
)
@settings(max_examples=200)
def test_count_is_the_floors_of_layer_after_layer(layers: list[tuple[int, int]], samples: int) -> None:
    grid = FrameGrid.of_convolutions([kernel for kernel, _ in layers], [stride for _, stride in layers], sampling_rate=1)
    length = samples
    for kernel, stride in layers:
        length = (length - kernel) // stride + 1 if length >= kernel else 0
    assert grid.count(samples) == length
    if length:
        assert grid.count(grid.samples(length)) == length
        assert grid.count(grid.samples(length) - 1) == length - 1


def test_a_frame_sees_its_receptive_field_and_nothing_else(models: dict[str, Path]) -> None:
    """By gradient: the samples that move frame i of the convolutions lie in [i·S, i·S + R), centred."""
    network = load(models["wav2vec2:layer"])
    for frame in (0, 3):
        samples = torch.randn(1, 2400, requires_grad=True)
        network.feature_extractor(samples)[0, :, frame].sum().backward()
        assert samples.grad is not None
        moved = torch.nonzero(samples.grad[0]).flatten()
        assert (int(moved.min()), int(moved.max()) + 1) == (frame * 320, frame * 320 + 400)
        assert (int(moved.min()) + int(moved.max()) + 1) / 2 / RATE == GRID.centres(4)[frame]


def test_whisper_frames_are_centred_on_multiples_of_the_hop(models: dict[str, Path]) -> None:
    """A click at sample 320·i moves output frame i of the convolutions most, symmetrically on both sides."""
    front = FrontEnd.load(resolve_model(str(models["whisper"])))
    assert (front.grid.hop, front.grid.needed, front.grid.first_centre, front.window) == (320, 1, 0, 100)
    filters = np.ones(16)
    for frame in (2, 40):
        click = np.zeros(2 * RATE, dtype=np.float32)
        click[320 * frame] = 1
        mel = front.inputs([click]).values[0]  # (mel bins, time)
        energy = filters @ (mel - mel.min())
        assert 2 * frame == int(np.argmax(energy))
        np.testing.assert_allclose(energy[2 * frame - 1], energy[2 * frame + 1], rtol=0.05)
    # every frame centred in the real audio counts: those of the extractor's own mask, halved by the encoder's stride
    network = load(models["whisper"])
    for samples in (1, 159, 160, 161, 320, 321, 640, 5000, 31_999, 32_000):
        mask = front.extractor(np.zeros(samples, dtype=np.float32), sampling_rate=RATE, return_attention_mask=True)
        real = int(np.asarray(mask["attention_mask"]).sum())
        assert front.grid.count(samples) == math.ceil(samples / 320)
        assert front.grid.count(samples) == int(network._get_feat_extract_output_lengths(torch.tensor(real)))


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 80)), min_size=1, max_size=8),
    st.integers(1, 40),
    st.integers(0, 2000),
)
@settings(max_examples=150)
def test_words_of_frames_by_brute_force(steps: list[tuple[int, int]], frames: int, first_sample: int) -> None:
    """Exact rational times (milliseconds from the utterance's first sample), frame by frame and word by word."""
    words, position = [], 0
    for pause, length in steps:
        words.append((position + pause, position + pause + length))
        position += pause + length
    offset = Fraction(first_sample, RATE)
    starts, ends = ([offset + Fraction(word[side], 1000) for word in words] for side in (0, 1))
    alignment = align_times(
        starts=[float(start) for start in starts],
        ends=[float(end) for end in ends],
        centres=GRID.centres(frames, first_sample=first_sample),
    )
    expected, seen = [], dict.fromkeys(range(len(words)), 0)
    for frame in range(frames):
        centre = Fraction(first_sample + 320 * frame + 200, RATE)
        inside = [index for index in range(len(words)) if starts[index] <= centre < ends[index]]
        word = inside[0] if inside else -1
        expected.append((word, seen[word] if inside else -1, 0 if inside else UNCOVERED))
        if inside:
            seen[word] += 1
    found = zip(alignment.word.tolist(), alignment.subword.tolist(), alignment.flags.tolist(), strict=True)
    assert list(found) == expected
    last = {index: max(frame for frame in range(frames) if expected[frame][0] == index) for index in seen if seen[index]}
    assert np.flatnonzero(alignment.is_last).tolist() == sorted(last.values())
    assert alignment.reached.tolist() == [seen[index] > 0 for index in range(len(words))]


def test_sequences(tmp_path: Path) -> None:
    table = make_corpus(tmp_path, 5)
    corpus = AudioCorpus(paths=(table,))
    utterances = list(corpus.sentences())
    sequences = list(make_frame_sequences(corpus, GRID, SequenceSettings(max_tokens=512)))
    assert [sequence.new_document for sequence in sequences] == [True, False, True, False, True]
    for utterance, sequence in zip(utterances, sequences, strict=True):
        assert sequence.sentences == (utterance,)
        assert len(sequence.ids) == (utterance.samples - 400) // 320 + 1
        assert (sequence.ids == 0).all()
        for frame, (start, end) in enumerate(sequence.spans):
            word = int(sequence.alignment.word[frame])
            text = utterance.text[start:end]
            assert text == (utterance.words[word].form if word >= 0 else "")
            assert 0 <= start <= end <= len(utterance.text)
        assert (np.diff(sequence.spans[:, 1]) >= 0).all()
    short = list(make_frame_sequences(corpus, GRID, SequenceSettings(max_tokens=12, on_long="truncate")))
    assert {len(sequence.ids) for sequence in short} == {12}
    assert all(sequence.truncated for sequence in short)


def test_refused_sequences(tmp_path: Path) -> None:
    corpus = AudioCorpus(paths=(make_corpus(tmp_path, 2),))

    def make(grid: FrameGrid = GRID, **options: Any) -> None:
        list(make_frame_sequences(corpus, grid, SequenceSettings(**{"max_tokens": 512, **options})))

    with pytest.raises(
        InputError, match=r"speech.jsonl:1: u00.wav is sampled at 16000 Hz, the model expects 8000 Hz; convert"
    ):
        make(replace(GRID, sampling_rate=8000))
    with pytest.raises(InputError, match=r"speech.jsonl:1: utterance 'u0' has \d+ samples, the model needs 99999 for one"):
        make(replace(GRID, needed=99_999))
    with pytest.raises(InputError, match=r"utterance 'u0' has \d+ frames \(\d\.\d s\), the limit is 12 \(0\.2 s\): cut it"):
        make(max_tokens=12)
    with pytest.raises(InputError, match=r"context 'document': a speech model reads utterance by utterance"):
        make(context="document", on_long="split")


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")  # WavLM's own attention
@pytest.mark.parametrize("kind", [*KINDS, "whisper"])
def test_a_batch_gives_what_each_utterance_gives_alone(models: dict[str, Path], kind: str) -> None:
    """Through the whole encoder, with transformers' own feature extractor for the one at a time."""
    front = FrontEnd.load(resolve_model(str(models[kind])))
    assert front.masked == (kind in {"wav2vec2:layer", "hubert:layer", "wavlm:layer", "unispeech-sat:layer"})
    rng = np.random.default_rng(1)
    lengths = [4000, 7123, 7000, 4000, 12_345, 7123, 400]
    waveforms = [rng.normal(0, 0.1, length).astype(np.float32) for length in lengths]
    network = load(models[kind])
    network = network.get_encoder() if kind == "whisper" else network
    batches = front.batches(lengths, batch_tokens=250)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert len(batches) < len(lengths)
    for batch in batches:
        inputs = front.inputs([waveforms[index] for index in batch])
        mask = torch.from_numpy(inputs.mask.astype(np.int64))
        with torch.inference_mode():
            together = network(torch.from_numpy(inputs.values), attention_mask=mask).last_hidden_state
        assert together.shape[1] == inputs.frames
        assert len(batch) * inputs.frames <= 250 or len(batch) == 1
        for line, index in enumerate(batch):
            single = front.extractor(waveforms[index], sampling_rate=RATE, return_tensors="pt")
            single.pop("attention_mask", None)
            with torch.inference_mode():
                alone = network(**single).last_hidden_state[0]
            count = front.grid.count(lengths[index])
            assert count == len(alone) or kind == "whisper"
            np.testing.assert_allclose(together[line, :count], alone[:count], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["wav2vec2:group", "data2vec-audio"])
def test_padding_would_change_the_values_of_the_others(models: dict[str, Path], kind: str) -> None:
    """Why they are not padded: with zeros and a mask, the same utterance gives other values."""
    front = FrontEnd.load(resolve_model(str(models[kind])))
    waveform = np.random.default_rng(1).normal(0, 0.1, 4000).astype(np.float32)
    alone = torch.from_numpy(front.inputs([waveform]).values)
    padded = torch.nn.functional.pad(alone, (0, 3000))
    mask = (torch.arange(7000) < 4000).long()[None]
    network = load(models[kind])
    with torch.inference_mode():
        expected = network(alone).last_hidden_state[0]
        found = network(padded, attention_mask=mask).last_hidden_state[0, : len(expected)]
    assert float((found - expected).abs().max()) > 1e-2
    with pytest.raises(ValueError, match="different lengths"):
        front.inputs([waveform, waveform[:3000]])


def test_hubert_with_normalised_positions_is_not_padded(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", "hubert:layer", conv_pos_batch_norm=True)
    assert not FrontEnd.load(resolve_model(str(model))).masked


def test_a_feature_extractor_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    from tiny import make_model as make_llama
    from transformers import WhisperFeatureExtractor

    whisper = make_model(tmp_path / "whisper", "whisper")
    before = FrontEnd.load(resolve_model(str(whisper))).identity()
    WhisperFeatureExtractor(feature_size=16, chunk_length=2, dither=0.1).save_pretrained(whisper)
    with pytest.raises(InputError, match="adds random noise"):
        FrontEnd.load(resolve_model(str(whisper)))
    WhisperFeatureExtractor(feature_size=16, chunk_length=30).save_pretrained(whisper)
    with pytest.raises(InputError, match=r"extractor gives 16 × 3000 mel frames, the encoder takes 16 × 200"):
        FrontEnd.load(resolve_model(str(whisper)))
    WhisperFeatureExtractor(feature_size=16, chunk_length=2, padding_value=0.5).save_pretrained(whisper)
    assert FrontEnd.load(resolve_model(str(whisper))).identity() != before
    (whisper / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match=r"could not load a feature extractor .*expected a preprocessor_config.json"):
        FrontEnd.load(resolve_model(str(whisper)))
    with pytest.raises(InputError, match=r"llama \(llama\) reads no audio .*known are .*wav2vec2"):
        FrontEnd.load(resolve_model(str(make_llama(tmp_path / "llama"))))
