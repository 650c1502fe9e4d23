"""What every corpus reader yields: sentences of words with labels and character spans."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """One unit of labels (UPOS, lemma, …)."""

    form: str
    start: int
    """First character in the sentence text, counted in code points."""
    end: int
    """One past the last character; always > start. Words of one surface token (French *du* = *de* + *le*) share a span."""
    labels: Mapping[str, str]
    """Label column → value. A label that the corpus does not give for this word is left out, never ``""`` or ``"_"``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """One sentence and where it stands."""

    text: str
    words: tuple[Word, ...]
    name: str
    """The corpus's own id of the sentence (``sent_id``), or one made from its place."""
    document: str
    """The document's id. Its sentences come one after the other: a change of (source, document) starts a new one."""
    source: str
    """Name of the file it came from, with as few leading folders as tell it from the corpus's other files (usually none)."""
    place: str
    """For error messages: ``file:line``."""
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterance(Sentence):
    """A spoken sentence: a stretch of an audio file, and when its words are said. Its text is the words joined by spaces."""

    audio: Path
    sampling_rate: int
    """Hertz."""
    first_sample: int
    """Of the utterance in its file."""
    samples: int
    times: tuple[tuple[float, float], ...]
    """(start, end) of every word, in seconds from the file's beginning; in order, none overlapping another."""


class Corpus(Protocol):
    """A re-iterable stream of sentences that never holds more than a few of them in memory."""

    def sentences(self) -> Iterator[Sentence]:
        """Yield every sentence in corpus order."""

    def identity(self) -> dict[str, Any]:
        """Return JSON-able facts that determine the stream: kind, file names with SHA-256, tagger and settings. No paths."""
