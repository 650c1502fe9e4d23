"""Speech-like sound with known word times, and tiny random speech models: made in a second, saved in a folder."""

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np

RATE = 16_000
TAGS = {"dog": "NOUN", "city": "NOUN", "runs": "VERB", "sees": "VERB", "the": "DET"}
KERNELS, STRIDES = [10, 3, 3, 3, 3, 2, 2], [5, 2, 2, 2, 2, 2, 2]  # of wav2vec 2.0


def chirp(form: str, seconds: float) -> np.ndarray:
    """A sweep whose pitches are the word's own, faded in and out."""
    seed = sum(form.encode())
    low, high = 120 + seed % 7 * 90, 700 + seed % 11 * 160
    if TAGS[form] == "VERB":
        low, high = high, low
    time = np.arange(round(seconds * RATE)) / RATE
    phase = 2 * np.pi * (low * time + (high - low) * time**2 / (2 * seconds))
    fade = np.minimum(1, np.minimum(time, time[::-1]) / 0.01)
    return 0.4 * fade * (np.sin(phase) + 0.3 * np.sin(3 * phase))


def utterance(number: int, words: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """int16 samples and the words said in them, with silences before, between and after."""
    rng = np.random.default_rng(number)
    pieces: list[np.ndarray] = []
    entries, position = [], 0
    for index in range(words):
        form = list(TAGS)[(number * 3 + index * 2) % len(TAGS)]
        silence = rng.normal(0, 1e-3, round(rng.uniform(0.0, 0.15) * RATE))
        sound = chirp(form, rng.uniform(0.06, 0.3))
        start = position + len(silence)
        position = start + len(sound)
        pieces += [silence, sound]
        entries.append({"form": form, "start": start / RATE, "end": position / RATE, "upos": TAGS[form]})
    pieces.append(rng.normal(0, 1e-3, round(rng.uniform(0.03, 0.12) * RATE)))
    samples = np.concatenate(pieces)
    return np.clip(np.round(samples * 32767), -32768, 32767).astype(np.int16), entries


def write_wav(path: Path, samples: np.ndarray, *, rate: int = RATE, channels: int = 1) -> None:
    """Write int16 samples by the standard library's writer."""
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", "not compressed"))
        file.writeframes(samples.astype("<i2").tobytes())


def make_corpus(folder: Path, utterances: int, *, per_document: int = 2) -> Path:
    """A table of utterances with one audio file each."""
    (folder / "wav").mkdir(parents=True)
    lines = []
    for number in range(utterances):
        samples, words = utterance(number, 2 + number * 3 % 5)
        name = f"wav/u{number:02d}.wav"
        write_wav(folder / name, samples)
        document = f"talk-{number // per_document}"
        lines.append({"audio": name, "document": document, "name": f"u{number}", "speaker": "A", "words": words})
    table = folder / "speech.jsonl"
    table.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return table


def make_model(folder: Path, kind: str, *, seed: int = 0, **overrides: Any) -> Path:
    """A tiny encoder of that kind: ``wav2vec2:layer``, ``wav2vec2:group``, ``hubert:layer``, …, ``whisper``."""
    import torch
    import transformers

    torch.manual_seed(seed)
    family, _, norm = kind.partition(":")
    if family == "whisper":
        config = transformers.WhisperConfig(
            d_model=24, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=40, decoder_layers=1,
            decoder_attention_heads=2, decoder_ffn_dim=16, vocab_size=60, num_mel_bins=16, max_source_positions=100,
            max_target_positions=20, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
            init_std=0.2, **overrides,
        )  # fmt: skip
        model = transformers.WhisperForConditionalGeneration(config)
        extractor = transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    else:
        prefix = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM", "data2vec-audio": "Data2VecAudio",
                  "unispeech-sat": "UniSpeechSat"}[family]  # fmt: skip
        config = getattr(transformers, f"{prefix}Config")(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40, conv_dim=[16] * 7,
            conv_kernel=KERNELS, conv_stride=STRIDES, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
            conv_pos_kernel_size=5, feat_extract_norm=norm or "layer", do_stable_layer_norm=norm == "layer",
            initializer_range=0.2, vocab_size=32, **overrides,
        )  # fmt: skip
        model = getattr(transformers, f"{prefix}Model")(config)
        extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer")
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder
