"""From sentences to the sequences of the forward passes: tokenised, aligned, cut where they must be."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuronlake.extractor.align import Alignment, align
from neuronlake.extractor.corpora.records import Corpus, Sentence
from neuronlake.extractor.tokenizer import Encoded, Tokenizer
from neuronlake.store.errors import InputError

CONTEXTS = ("sentence", "document")
ON_LONG = ("error", "truncate", "split")
_JOINT = " "
_BATCH = 256  # sentences tokenised by one call


@dataclass(frozen=True, kw_only=True)
class SequenceSettings:
    """How sequences are made."""

    context: str = "sentence"
    """What the model sees at once: ``sentence`` or ``document``."""
    max_tokens: int
    """Longest sequence, special tokens included."""
    on_long: str = "error"
    """A longer one is an ``error``, is ``truncate``d (counted), or a document is ``split`` between sentences."""

    def __post_init__(self) -> None:
        if self.context not in CONTEXTS:
            raise InputError(f"unknown context {self.context!r}: known are {', '.join(CONTEXTS)}")
        if self.on_long not in ON_LONG:
            raise InputError(f"unknown choice {self.on_long!r} for too long sequences: known are {', '.join(ON_LONG)}")
        if self.on_long == "split" and self.context == "sentence":
            raise InputError("a sentence cannot be split: --on-long split needs --context document")
        if self.max_tokens < 2:
            raise InputError(f"max_tokens must be at least 2, got {self.max_tokens}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """One forward pass's worth of tokens and the sentences they come from."""

    sentences: tuple[Sentence, ...]
    ids: NDArray[np.int32]
    alignment: Alignment
    """Words are numbered through all the sentences."""
    sentence: NDArray[np.int64]
    """(tokens,) index into `sentences`."""
    spans: NDArray[np.int32]
    """(tokens, 2) characters in the token's own sentence; −1 for special tokens."""
    truncated: bool
    new_document: bool
    """Whether this is the first sequence of its document."""


def make_sequences(corpus: Corpus, tokenizer: Tokenizer, settings: SequenceSettings) -> Iterator[Sequence]:
    """Yield the sequences of a corpus in its order, holding a few sentences (or one document) at a time.

    Raises
    ------
    InputError
        When a sequence is too long and `settings.on_long` is ``error``; the sentence or document is named.
    """
    documents = itertools.groupby(corpus.sentences(), key=lambda sentence: (sentence.source, sentence.document))
    if settings.context == "sentence":
        return _sentence_sequences(documents, tokenizer, settings)
    return _document_sequences(documents, tokenizer, settings)


def _sentence_sequences(
    documents: Iterable[tuple[object, Iterator[Sentence]]], tokenizer: Tokenizer, settings: SequenceSettings
) -> Iterator[Sequence]:
    marked = ((sentence, index == 0) for _, sentences in documents for index, sentence in enumerate(sentences))
    while batch := list(itertools.islice(marked, _BATCH)):
        encoded = tokenizer.encode([sentence.text for sentence, _ in batch])
        for (sentence, opens), tokens in zip(batch, encoded, strict=True):
            yield _sequence((sentence,), tokens, settings, opens)


def _document_sequences(
    documents: Iterable[tuple[object, Iterator[Sentence]]], tokenizer: Tokenizer, settings: SequenceSettings
) -> Iterator[Sequence]:
    for _, document in documents:
        windows = _windows(document, tokenizer, settings) if settings.on_long == "split" else iter([tuple(document)])
        encoded_windows = (found for window in windows for found in _encode_window(window, tokenizer, settings))
        for index, (window, encoded) in enumerate(encoded_windows):
            yield _sequence(window, encoded, settings, index == 0)


def _windows(
    sentences: Iterable[Sentence], tokenizer: Tokenizer, settings: SequenceSettings
) -> Iterator[tuple[Sentence, ...]]:
    """Cut a document between sentences, by the token counts of the sentences one by one."""
    window: list[Sentence] = []
    tokens = 0
    for sentence in sentences:
        (encoded,) = tokenizer.encode([_JOINT + sentence.text])
        added, special = int((~encoded.special).sum()), int(encoded.special.sum())
        if window and tokens + added + special > settings.max_tokens:
            yield tuple(window)
            window, tokens = [], 0
        window.append(sentence)
        tokens += added
    yield tuple(window)


def _encode_window(
    window: tuple[Sentence, ...], tokenizer: Tokenizer, settings: SequenceSettings
) -> Iterator[tuple[tuple[Sentence, ...], Encoded]]:
    (encoded,) = tokenizer.encode([_JOINT.join(sentence.text for sentence in window)])
    if settings.on_long == "split" and len(encoded.ids) > settings.max_tokens and len(window) > 1:
        # some tokenizers need more tokens for a joint text than for its parts
        half = len(window) // 2
        yield from _encode_window(window[:half], tokenizer, settings)
        yield from _encode_window(window[half:], tokenizer, settings)
    else:
        yield window, encoded


def _sequence(sentences: tuple[Sentence, ...], encoded: Encoded, settings: SequenceSettings, opens: bool) -> Sequence:
    truncated = len(encoded.ids) > settings.max_tokens
    if truncated:
        # even a split document may hold one sentence that is too long by itself
        if settings.on_long != "truncate":
            raise InputError(_too_long(sentences, len(encoded.ids), settings))
        keep = slice(0, settings.max_tokens)
        encoded = Encoded(ids=encoded.ids[keep], offsets=encoded.offsets[keep], special=encoded.special[keep])
    bases = np.cumsum([0] + [len(sentence.text) + len(_JOINT) for sentence in sentences[:-1]])
    alignment = align(
        starts=[word.start + base for sentence, base in zip(sentences, bases, strict=True) for word in sentence.words],
        ends=[word.end + base for sentence, base in zip(sentences, bases, strict=True) for word in sentence.words],
        offsets=encoded.offsets,
        special=encoded.special,
    )
    # by the last character: a token's leading space may still belong to the sentence before
    sentence = np.searchsorted(bases, np.maximum(encoded.offsets[:, 1] - 1, 0), side="right") - 1
    spans = np.maximum(encoded.offsets - bases[sentence][:, None], 0).astype(np.int32)
    spans[encoded.special] = -1
    if encoded.special.any():
        sentence = _nearest_text(sentence, encoded.special)
    return Sequence(
        sentences=sentences,
        ids=encoded.ids,
        alignment=alignment,
        sentence=sentence,
        spans=spans,
        truncated=truncated,
        new_document=opens,
    )


def _nearest_text(sentence: NDArray[np.int64], special: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Give a special token the sentence of the text before it, or else the first one."""
    position = np.maximum.accumulate(np.where(special, 0, np.arange(len(sentence))))
    return np.where(special & (position == 0), 0, sentence[position])


def _too_long(sentences: tuple[Sentence, ...], tokens: int, settings: SequenceSettings) -> str:
    first = sentences[0]
    what = f"sentence {first.name!r}" if len(sentences) == 1 else f"document {first.document!r}"
    cures = "--on-long truncate" if settings.context == "sentence" else "--on-long split or truncate"
    if len(sentences) == 1 and settings.context == "document":
        cures = "--on-long truncate"
    return (
        f"{first.place}: {what} has {tokens} tokens, the limit is {settings.max_tokens}: "
        f"use {cures}, or a model with a longer context"
    )
