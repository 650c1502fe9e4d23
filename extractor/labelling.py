"""Labels for the words that a lake holds already: from a spaCy pipeline, or from CoNLL-U files with the same words."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from neuronlake.extractor.corpora.conllu import ConlluCorpus
from neuronlake.extractor.corpora.records import Sentence
from neuronlake.extractor.corpora.tagger import labels_of, load_pipeline
from neuronlake.store.errors import InputError
from neuronlake.store.label_adding import LabelSettings, Progress, add_label_set, labelling, set_name
from neuronlake.store.label_sets import LabelSet
from neuronlake.store.lake import Lake
from neuronlake.store.objects import LakeName, lake_path

BATCH_SIZE = 64
"""Sentences that a pipeline gets at a time, of one block."""


class _Planned(NamedTuple):
    """A sentence of the plan that has words."""

    name: str
    first: int
    """Its first word's line in the block's table."""
    forms: list[str]
    starts: list[int]
    """First characters of the words."""
    ends: list[int]


class _Columns(dict[str, list[str | None]]):
    """Label columns of a block, each begun when its first label comes."""

    def __init__(self, words: int):
        super().__init__()
        self._words = words

    def __missing__(self, name: str) -> list[str | None]:
        self[name] = [None] * self._words
        return self[name]

    def arrays(self) -> dict[str, pa.Array]:
        return {name: pa.array(self[name], pa.string()) for name in sorted(self)}


def label_with_spacy(
    root: LakeName, pipeline: str, settings: LabelSettings | None = None, *, progress: Progress | None = None
) -> LabelSet:
    """Run a spaCy pipeline over a lake's words and add what it says of them.

    Every sentence becomes a Doc of the lake's own words, with a space where the text has something between two of them, so
    labels belong to words by construction. Columns are those of text tagged while extracting: ``lemma``, ``upos``,
    ``xpos``, ``deprel``, ``entity`` and morphological features. Words without a form are left out and get no label.

    Parameters
    ----------
    root
        The lake. Its blocks need not be extracted.
    pipeline
        An installed pipeline package, or a saved pipeline's folder.
    settings
        Names.
    progress
        Called with words done, and all.

    Raises
    ------
    InputError
        When the pipeline cannot be loaded, or joins or splits words; when a column's name is taken. Nothing is added then.
    StorageError
        When the file system refuses.
    """
    root, settings = lake_path(root), settings or LabelSettings()
    with labelling(root) as lake:
        loaded = load_pipeline(pipeline)
        name = set_name(lake, settings, loaded.facts["pipeline"])
        source = {"kind": "spacy", **loaded.facts, "batch_size": BATCH_SIZE}
        blocks = _tagged(lake, loaded.nlp, pipeline)
        return add_label_set(lake, name, blocks, settings=settings, source=source, progress=progress)


def label_with_conllu(
    root: LakeName, corpus: ConlluCorpus, settings: LabelSettings | None = None, *, progress: Progress | None = None
) -> LabelSet:
    """Add the labels of CoNLL-U files whose sentences and words are those of the lake, in order and form by form.

    Parameters
    ----------
    root
        The lake. Its blocks need not be extracted.
    corpus
        The files.
    settings
        Names.
    progress
        Called with words done, and all.

    Raises
    ------
    InputError
        When a file cannot be read; at the first word that differs, and where there are fewer or more sentences; when a
        column's name is taken. Nothing is added then.
    StorageError
        When the file system refuses.
    """
    root, settings = lake_path(root), settings or LabelSettings()
    with labelling(root) as lake:
        source = corpus.identity()
        stem = Path(source["files"][0]["name"].removesuffix(".gz")).stem
        name = set_name(lake, settings, stem)
        return add_label_set(lake, name, _aligned(lake, corpus), settings=settings, source=source, progress=progress)


def _tagged(lake: Lake, nlp: Any, pipeline: str) -> Iterator[dict[str, pa.Array]]:
    """What the pipeline says, block by block."""
    from spacy.tokens import Doc

    def doc_of(sentence: _Planned) -> tuple[Any, Sequence[int]]:
        places = [place for place, form in enumerate(sentence.forms) if form]
        spaces = [sentence.starts[there] > sentence.ends[here] for here, there in pairwise(places)]
        doc = Doc(nlp.vocab, words=[sentence.forms[place] for place in places], spaces=[*spaces, False][: len(places)])
        return doc, [sentence.first + place for place in places]

    for block in range(lake.plan.blocks):
        words, sentences = _planned(lake, block)
        found = _Columns(words)
        texts = (doc_of(sentence) for sentence in sentences if any(sentence.forms))
        for doc, lines in nlp.pipe(texts, as_tuples=True, batch_size=BATCH_SIZE):
            if len(doc) != len(lines):
                raise InputError(
                    f"the spaCy pipeline {pipeline!r} makes {len(doc)} tokens of the {len(lines)} words {doc.text!r}: "
                    "labels need one for each; name a pipeline that does not merge or split them"
                )
            for line, token in zip(lines, doc, strict=True):
                for name, value in labels_of(token).items():
                    found[name][line] = value
        yield found.arrays()


def _aligned(lake: Lake, corpus: ConlluCorpus) -> Iterator[dict[str, pa.Array]]:
    """Labels of the files' words, block by block, having compared all words of the block."""
    given, done, files = corpus.sentences(), 0, [file["name"] for file in corpus.identity()["files"]]
    for block in range(lake.plan.blocks):
        words, sentences = _planned(lake, block)
        found = _Columns(words)
        for sentence in sentences:
            theirs = next(given, None)
            if theirs is None:
                raise InputError(
                    f"{files[-1]} ends after {done} sentences, {lake.path} goes on with sentence {sentence.name!r} "
                    f"({' '.join(sentence.forms[:6])} …): expected the sentences of the lake; nothing was added"
                )
            done += 1
            _compare(lake, sentence, theirs, done)
            for place, word in enumerate(theirs.words, sentence.first):
                for name, value in word.labels.items():
                    found[name][place] = value
        yield found.arrays()
    if (more := next(given, None)) is not None:
        raise InputError(
            f"{more.place}: sentence {more.name!r} comes after the {done} sentences of {lake.path}: expected the end, as "
            "the lake has no more (--limit-sentences reads a part of the files); nothing was added"
        )


def _compare(lake: Lake, ours: _Planned, theirs: Sentence, number: int) -> None:
    forms = [word.form for word in theirs.words]
    if forms == ours.forms:
        return
    pairs = zip(ours.forms, forms, strict=False)
    place = next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(forms), len(ours.forms)))
    expected, got = (repr(words[place]) if place < len(words) else "the end" for words in (ours.forms, forms))
    raise InputError(
        f"{theirs.place}: sentence {theirs.name!r} (the lake's {ours.name!r}, number {number}), word {place + 1}: expected "
        f"{expected} as in {lake.path}, got {got}; nothing was added"
    )


def _planned(lake: Lake, block: int) -> tuple[int, list[_Planned]]:
    """Words of a planned block, and its sentences that have any, in order."""
    words = lake.read_table("words", block, ["sentence", "form", "char_start", "char_end"])
    names = lake.read_table("sentences", block, ["sentence", "name"])
    name_of = dict(zip(names.column("sentence").to_pylist(), names.column("name").to_pylist(), strict=True))
    numbers = words.column("sentence").to_numpy()
    forms, starts, ends = (words.column(name).to_pylist() for name in ("form", "char_start", "char_end"))
    bounds = [*np.flatnonzero(np.diff(numbers, prepend=-1)).tolist(), len(forms)]
    return len(forms), [
        _Planned(
            name=name_of[int(numbers[first])],
            first=first,
            forms=forms[first:last],
            starts=starts[first:last],
            ends=ends[first:last],
        )
        for first, last in pairwise(bounds)
    ]
