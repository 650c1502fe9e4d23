"""What a probe's accuracy is held against: labels that mean nothing, and neurons that nobody chose."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.label_rows import column_rows
from neuronlake.analysis.labels import MIN_TOKENS, LabelVector
from neuronlake.analysis.source import LakeSource

_DRAWS = 100


@dataclass(frozen=True, kw_only=True)
class WordTypes:
    """Word type (the form as written) of every training and test token."""

    train: NDArray[np.int64] = field(repr=False)
    test: NDArray[np.int64] = field(repr=False)

    @property
    def known(self) -> float:
        """Share of the test tokens whose type occurs in the training tokens."""
        return float(np.isin(self.test, self.train).mean())


def word_types(source: LakeSource, train: LabelVector, test_source: LakeSource, test: LabelVector) -> WordTypes:
    """Find the word types that the labels of both sides belong to.

    With a shift it is the type of the word whose label is read, not of the token's own.
    """
    sides = []
    for lake, labels in ((source, train), (test_source, test)):
        codes, forms = column_rows(lake, lake.tokens(labels=["form"]), "form", labels.shift)
        sides.append((codes[labels.codes >= 0], forms))
    every = sorted({form for _, forms in sides for form in forms})
    place = {form: number for number, form in enumerate(every)}
    first, second = (np.array([*(place[form] for form in forms), len(every)])[codes] for codes, forms in sides)
    return WordTypes(train=first, test=second)


def control_labels(
    types: WordTypes, train_codes: NDArray[np.int16], tags: int, *, seed: int
) -> tuple[NDArray[np.int16], NDArray[np.int16]] | None:
    """Labels of a control task: every word type has a tag drawn at random, always the same (Hewitt & Liang 2019).

    The tags are drawn with the shares that the training tokens' true ones have. A probe can only know them by remembering
    word types; selectivity is its accuracy on the true task less that on this one.

    Parameters
    ----------
    train_codes : int16 (training rows,)
        The true tags.

    Returns
    -------
    int16 (training rows,), int16 (test rows,)
        None where there is no such task: no test token's word occurs in training, as in recordings without words, or no
        draw gives two tags to two training tokens each.
    """
    if not types.known:
        return None
    shares = np.bincount(train_codes, minlength=tags) / len(train_codes)
    last = int(max(types.train.max(initial=0), types.test.max(initial=0)))
    generator = np.random.default_rng(seed)
    for _ in range(_DRAWS):
        drawn = generator.choice(tags, size=last + 1, p=shares).astype(np.int16)
        if np.count_nonzero(np.bincount(drawn[types.train]) >= MIN_TOKENS) > 1:
            return drawn[types.train], drawn[types.test]
    return None


def shuffled_labels(codes: NDArray[np.int16], *, seed: int) -> NDArray[np.int16]:
    """Return the same labels in random order."""
    return np.random.default_rng(seed).permutation(codes)
