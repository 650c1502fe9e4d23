"""What is learned and tested: tokens and their tags on both sides, and labels that mean nothing beside them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.labels import MIN_TOKENS, LabelVector, token_labels
from neuronlake.analysis.probing.baselines import baseline_predictions
from neuronlake.analysis.probing.controls import control_labels, shuffled_labels, word_types
from neuronlake.analysis.probing.splits import split_documents
from neuronlake.analysis.source import LakeSource
from neuronlake.store.errors import InputError


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """Which tokens, labels and documents."""

    by: str
    tags: tuple[str, ...] | None
    """Only these; None for all."""
    tag: str | None
    """This one against all others."""
    where: str | None
    """SQL predicate of the training tokens, and of the test tokens unless `test_where` is given."""
    test_where: str | None
    subword: str
    shift: int
    split: str
    test_share: float
    seed: int
    control_draws: int


@dataclass(frozen=True, kw_only=True)
class Task:
    """Training and test tokens of a probe."""

    train: LabelVector
    test: LabelVector
    test_source: LakeSource = field(repr=False)
    dropped: dict[str, int]
    labellings: tuple[NDArray[np.int16], ...] = field(repr=False)
    """Of the training tokens: the true tags, those of every control task, and shuffled ones; (training tokens,) each."""
    truths: tuple[NDArray[np.int16], ...] = field(repr=False)
    """What each is tested against, (test tokens,) each."""
    kinds: tuple[str, ...]
    """``task``, ``control_task`` … and ``shuffled_labels``."""
    known_words: float
    """Share of the test tokens whose word type occurs in the training tokens."""
    baselines: dict[str, NDArray[np.int16]] = field(repr=False)

    @property
    def train_rows(self) -> NDArray[np.bool_]:
        """Which rows of the lake are learned from."""
        return self.train.codes >= 0

    @property
    def test_rows(self) -> NDArray[np.bool_]:
        """Which rows of the test lake are tested on."""
        return self.test.codes >= 0

    @property
    def test_documents(self) -> NDArray[np.int32]:
        """Document of every test token."""
        return self.test.documents[self.test_rows]


def prepare(source: LakeSource, settings: TaskSettings, test_source: LakeSource | None) -> Task:
    """Label, split and draw the controls.

    Raises
    ------
    InputError
        When a side is left without tokens or with one tag.
    """
    labels = _labelled(source, settings, settings.where)
    if test_source is None:
        held_out = split_documents(labels, test_share=settings.test_share, seed=settings.seed, unit=settings.split)
        train_rows, test_rows = held_out.rows(labels)
        train, other, owner = labels.keep(train_rows), labels, source
        if settings.test_where is not None:
            other = _labelled(source, settings, settings.test_where)
            # the same document may hold both kinds of tokens: what was learned from is not tested on
            test_rows = ~np.isin(held_out.units(other), held_out.train)
        test = other.keep(test_rows)
    else:
        train, owner = labels, test_source
        test = _labelled(test_source, settings, settings.where if settings.test_where is None else settings.test_where)
    train = train.without_rare(MIN_TOKENS)
    if len(train.tags) < 2:
        raise InputError(
            f"the training tokens hold two or more only of {train.tags[0]!r}: a probe needs two values of {settings.by!r}"
        )
    left_out: dict[str, int] = {}
    # of one lake without other test tokens, `labels` are those of both sides
    for side in (labels,) if test_source is None and settings.test_where is None else (labels, test):
        for tag, count in zip(side.tags, side.counts.tolist(), strict=True):
            if tag not in train.tags and count:
                left_out[tag] = left_out.get(tag, 0) + count
    test = test.with_tags(train.tags)
    if not test.tokens:
        raise InputError(
            "there is no test token of a tag that was learned: "
            + ("raise test_share, or change seed" if test_source is None else "the lakes' labels have no tag in common")
        )
    true = train.codes[train.codes >= 0]
    truth = test.codes[test.codes >= 0]
    labellings, truths, kinds = [true], [truth], ["task"]
    types = word_types(source, train, owner, test)
    for draw in range(settings.control_draws):
        found = control_labels(types, true, len(train.tags), seed=settings.seed + draw)
        if found is not None:
            labellings.append(found[0])
            truths.append(found[1])
            kinds.append("control_task")
    for draw in range(settings.control_draws):
        labellings.append(shuffled_labels(true, seed=settings.seed + draw))
        truths.append(truth)
        kinds.append("shuffled_labels")
    return Task(
        train=train,
        test=test,
        test_source=owner,
        dropped={**labels.dropped, **left_out},
        labellings=tuple(labellings),
        truths=tuple(truths),
        kinds=tuple(kinds),
        known_words=types.known,
        baselines=baseline_predictions(source, train, owner, test),
    )


def _labelled(source: LakeSource, settings: TaskSettings, where: str | None) -> LabelVector:
    labels = token_labels(source, settings.by, where=where, subword=settings.subword, shift=settings.shift, min_tokens=1)
    if settings.tag is not None:
        _check_tags(labels, [settings.tag])
        if len(labels.tags) < 2:
            raise InputError(f"{settings.by!r} is {settings.tag!r} on every token: there is nothing to tell it from")
        own = labels.tags.index(settings.tag)
        codes = np.where(labels.codes < 0, -1, labels.codes == own).astype(np.int16)
        return replace(labels, codes=codes, tags=(f"not {settings.tag}", settings.tag))
    if settings.tags is not None:
        _check_tags(labels, settings.tags)
        return labels.with_tags(tuple(sorted(settings.tags)))
    return labels


def _check_tags(labels: LabelVector, tags: Sequence[str]) -> None:
    for tag in tags:
        if tag not in labels.tags:
            known = ", ".join(labels.tags[:40])
            raise InputError(f"no token is labelled {tag!r} by {labels.by!r}: there are {known}")
