"""Speech tables: what they hold, what identifies them, and every refusal; WAV against other readers."""

import json
import shutil
import struct
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io.wavfile
from speech import RATE, make_corpus, utterance, write_wav

from neuronlake.extractor.corpora.audio import AudioCorpus
from neuronlake.extractor.corpora.sound import open_sound
from neuronlake.store.errors import InputError


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return make_corpus(tmp_path / "corpus", 4)


def rewrite(table: Path, **changes: Any) -> AudioCorpus:
    """The corpus with keys of its second line replaced (or removed, by None)."""
    lines = [json.loads(line) for line in table.read_text().splitlines()]
    lines[1] = {key: value for key, value in {**lines[1], **changes}.items() if value is not None}
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return AudioCorpus(paths=(table,))


def test_utterances_are_read(table: Path) -> None:
    found = list(AudioCorpus(paths=(table,)).sentences())
    assert [sentence.name for sentence in found] == ["u0", "u1", "u2", "u3"]
    assert [sentence.document for sentence in found] == ["talk-0", "talk-0", "talk-1", "talk-1"]
    for number, sentence in enumerate(found):
        samples, words = utterance(number, 2 + number * 3 % 5)
        assert sentence.text == " ".join(word["form"] for word in words)
        assert [sentence.text[word.start : word.end] for word in sentence.words] == [word["form"] for word in words]
        assert [word.labels for word in sentence.words] == [{"upos": word["upos"]} for word in words]
        assert sentence.times == tuple((word["start"], word["end"]) for word in words)
        assert (sentence.first_sample, sentence.samples, sentence.sampling_rate) == (0, len(samples), RATE)
        assert sentence.metadata["audio"] == f"wav/u{number:02d}.wav"
        assert sentence.metadata["speaker"] == "A"
        assert sentence.metadata["samples"] == str(len(samples))
        sound = open_sound(sentence.audio).read(0, len(samples))
        np.testing.assert_array_equal(sound, samples.astype(np.float32) / 32768)
    assert len(list(AudioCorpus(paths=(table,), limit_sentences=3).sentences())) == 3


def test_parquet_holds_the_same(table: Path) -> None:
    lines = [json.loads(line) for line in table.read_text().splitlines()]
    for line in lines:
        line["words"][0]["lemma"] = None  # absent
        line["words"][-1]["lemma"] = "be"
    pq.write_table(pa.Table.from_pylist(lines), table.with_suffix(".parquet"))
    there = list(AudioCorpus(paths=(table.with_suffix(".parquet"),)).sentences())
    here = list(AudioCorpus(paths=(table,)).sentences())
    assert [(a.text, a.times, a.name, a.metadata) for a in there] == [(b.text, b.times, b.name, b.metadata) for b in here]
    assert there[0].words[-1].labels["lemma"] == "be"
    assert "lemma" not in there[0].words[0].labels


def test_a_stretch_of_a_recording_is_an_utterance(tmp_path: Path) -> None:
    first, words = utterance(0, 3)
    second, more = utterance(1, 3)
    write_wav(tmp_path / "long.wav", np.concatenate([first, second]))
    border = len(first) / RATE
    later = [{**word, "start": word["start"] + border, "end": word["end"] + border} for word in more]
    lines = [
        {"audio": "long.wav", "end": border, "words": words},
        {"audio": "long.wav", "start": border, "words": later},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    one, two = AudioCorpus(paths=(tmp_path / "t.jsonl",)).sentences()
    assert (one.first_sample, one.samples) == (0, len(first))
    assert (two.first_sample, two.samples) == (len(first), len(second))
    assert two.document == "long.wav"  # a recording is a document
    sound = open_sound(two.audio).read(two.first_sample, two.samples)
    np.testing.assert_array_equal(sound, second.astype(np.float32) / 32768)


def test_identity_is_of_tables_and_audio(table: Path) -> None:
    corpus = AudioCorpus(paths=(table,))
    before = corpus.identity()
    assert before["audio"]["files"] == 4
    assert json.loads(json.dumps(before)) == before
    assert corpus.identity() == before
    moved = table.parent.parent / "moved"
    shutil.copytree(table.parent, moved)
    assert AudioCorpus(paths=(moved / table.name,)).identity() == before
    sound = table.parent / "wav/u02.wav"
    data = bytearray(sound.read_bytes())
    data[-1] ^= 1
    sound.write_bytes(data)
    after = corpus.identity()
    assert after["audio"] != before["audio"]
    assert after["files"] == before["files"]
    # what is beyond the limit decides nothing
    assert (
        AudioCorpus(paths=(table,), limit_sentences=2).identity()
        == AudioCorpus(paths=(moved / table.name,), limit_sentences=2).identity()
    )


WORD = {"form": "dog", "start": 0.01, "end": 0.02}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio": None}, r"speech.jsonl:2: audio must name a file"),
        ({"audio": "wav/none.wav"}, r"speech.jsonl:2: no audio file .*none.wav; expected a path relative to the table"),
        ({"audio": "speech.jsonl"}, r"speech.jsonl:2: .*(soundfile|not a WAV file)"),
        ({"words": []}, r"words must be a list of at least one object"),
        ({"words": ["dog"]}, r"words\[0\]: expected an object with form, start and end, got 'dog'"),
        ({"words": [{**WORD, "form": " "}]}, r"words\[0\]: form must be a string that is not blank"),
        ({"words": [{"form": "dog", "start": 0.1}]}, r"words\[0\] 'dog': end must be a number of seconds, got None"),
        ({"words": [{**WORD, "start": "0"}]}, r"words\[0\] 'dog': start must be a number of seconds, got '0'"),
        ({"words": [{**WORD, "start": float("nan")}]}, r"start must be a number of seconds, got nan"),
        ({"words": [{**WORD, "end": 0.01}]}, r"words\[0\] 'dog': ends at 0.01 s, expected an end after its start at 0.01 s"),
        ({"words": [{**WORD, "end": 99}]}, r"said from 0.01 to 99 s, outside the utterance from 0 to .* s; times"),
        ({"words": [{**WORD, "start": -1}]}, r"said from -1 to 0.02 s, outside"),
        (
            {"words": [WORD, {"form": "ran", "start": 0.015, "end": 0.03}]},
            r"speech.jsonl:2: words\[1\] 'ran': starts at 0.015 s and overlaps words\[0\] 'dog', which ends at 0.02 s",
        ),
        (
            {"words": [{"form": "ran", "start": 0.04, "end": 0.05}, WORD]},
            r"words\[1\] 'dog': starts at 0.01 s and comes before words\[0\] 'ran'",
        ),
        ({"words": [{**WORD, "row": 3}]}, r"'row' cannot be the name of a label"),
        ({"words": [{**WORD, "upos": ["NOUN"]}]}, r"words\[0\] 'dog': upos must be text, a number or null"),
        ({"samples": 3}, r"'samples' is metadata that neuronlake adds itself"),
        ({"start": 2, "end": 1}, r"the utterance runs from 2 to 1 s, expected a stretch of u01.wav, which runs from 0 to"),
        ({"end": 1000}, r"the utterance runs from 0 to 1000 s"),
    ],
)  # fmt: skip
def test_refusals(table: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(rewrite(table, **changes).sentences())


def test_an_audio_file_is_no_table(table: Path) -> None:
    with pytest.raises(
        InputError, match=r"u01.wav: unknown kind of table; .*: a table of utterances, which names the audio"
    ):
        list(AudioCorpus(paths=(table.parent / "wav/u01.wav",)).sentences())


def test_several_channels_are_refused(table: Path) -> None:
    write_wav(table.parent / "wav/u01.wav", np.zeros(2000, dtype=np.int16), channels=2)
    with pytest.raises(InputError, match=r"speech.jsonl:2: u01.wav has 2 channels, expected 1; .*ffmpeg -i u01.wav -ac 1"):
        list(AudioCorpus(paths=(table,)).sentences())


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32", "float64"])
def test_wav_formats(tmp_path: Path, dtype: str) -> None:
    """Written by scipy; the values by their definition."""
    rng = np.random.default_rng(0)
    values = rng.uniform(-1, 1, 999)
    if dtype.startswith("float"):
        stored = values.astype(dtype)
        expected = stored.astype(np.float32)
    else:
        bits = 8 * np.dtype(dtype).itemsize
        signed = np.floor(values * 2 ** (bits - 1))
        stored = (signed + 128 if dtype == "uint8" else signed).astype(dtype)
        expected = (signed / 2 ** (bits - 1)).astype(np.float32)
    scipy.io.wavfile.write(tmp_path / "a.wav", 8000, stored)
    sound = open_sound(tmp_path / "a.wav")
    assert (sound.sampling_rate, sound.samples, sound.channels) == (8000, 999, 1)
    np.testing.assert_array_equal(sound.read(0, 999), expected)
    np.testing.assert_array_equal(sound.read(100, 50), expected[100:150])
    with pytest.raises(InputError, match=r"ends at sample 999, expected 1000: it is cut short"):
        sound.read(0, 1000)


def test_wav_of_24_bits_and_odd_chunks(tmp_path: Path) -> None:
    values = np.array([0, 1, -1, 2**23 - 1, -(2**23)], dtype=np.int32)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 3, 16000, 0, "NONE", "not compressed"))
        file.writeframes(b"".join(int(value).to_bytes(3, "little", signed=True) for value in values))
    data = (tmp_path / "a.wav").read_bytes()
    extra = b"LIST" + struct.pack("<I", 3) + b"abc\0"  # an odd length is padded
    (tmp_path / "a.wav").write_bytes(data[:12] + extra + data[12:])
    np.testing.assert_array_equal(open_sound(tmp_path / "a.wav").read(0, 5), (values / 2**23).astype(np.float32))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-10], r"cut short: its header promises 200 bytes of samples, 190 are there"),
        (lambda data: data[:30], r"format chunk has 10 bytes|no samples"),
        (lambda data: data[:36], r"it has no samples"),
        (lambda data: data[:20] + b"\x07" + data[21:], r"WAV format 7 with 16 bits; expected whole numbers"),
        (lambda data: data[:22] + b"\0\0" + data[24:], r"0 channels at 16000 Hz"),
    ],
)
def test_damaged_wav(tmp_path: Path, damage: Any, message: str) -> None:
    write_wav(tmp_path / "a.wav", np.zeros(100, dtype=np.int16))
    (tmp_path / "a.wav").write_bytes(damage((tmp_path / "a.wav").read_bytes()))
    with pytest.raises(InputError, match=message):
        open_sound(tmp_path / "a.wav")


def test_a_stream_of_unknown_length(tmp_path: Path) -> None:
    """As `ffmpeg … - > a.wav` writes it: the header cannot know how much follows."""
    write_wav(tmp_path / "a.wav", np.arange(100, dtype=np.int16))
    data = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(data[:40] + b"\xff" * 4 + data[44:])
    assert open_sound(tmp_path / "a.wav").samples == 100


def test_other_formats_need_soundfile(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    samples, _ = utterance(0, 3)
    soundfile.write(tmp_path / "a.flac", samples, RATE, subtype="PCM_16")
    sound = open_sound(tmp_path / "a.flac")
    assert (sound.sampling_rate, sound.samples, sound.channels) == (RATE, len(samples), 1)
    np.testing.assert_array_equal(sound.read(7, 100), samples[7:107].astype(np.float32) / 32768)
    (tmp_path / "b.flac").write_bytes(b"no audio at all")
    with pytest.raises(InputError, match=r"b.flac: not a format that soundfile reads"):
        open_sound(tmp_path / "b.flac")


def test_without_soundfile_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)  # as if it were not installed
    (tmp_path / "a.flac").write_bytes(b"fLaC")
    with pytest.raises(InputError, match=r"need soundfile .*pip install 'neuronlake\[audio\]', or convert it: ffmpeg -i"):
        open_sound(tmp_path / "a.flac")
