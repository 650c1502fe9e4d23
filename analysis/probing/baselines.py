"""What a probe must beat: predictions that never look at an activation."""

from collections import Counter, defaultdict

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.labels import LabelVector
from neuronlake.analysis.source import LakeSource


def word_forms(source: LakeSource, words: NDArray[np.int64]) -> list[str]:
    """Forms of the words with these ids, as written."""
    table = source.words(["word", "form"])
    ids = table.column("word").to_numpy()
    order = np.argsort(ids, kind="stable")
    lines = order[np.searchsorted(ids, words, sorter=order)]
    return [str(form) for form in table.column("form").take(lines).to_pylist()]


def predict_majority(train: NDArray[np.int16], test_size: int) -> NDArray[np.int16]:
    """The most frequent training tag, for every test token; of equally frequent tags the first."""
    return np.full(test_size, np.argmax(np.bincount(train)), dtype=np.int16)


def predict_by_word(train_forms: list[str], train_tags: NDArray[np.int16], test_forms: list[str]) -> NDArray[np.int16]:
    """The most frequent training tag of each test word's form; of equally frequent tags the first.

    A form never seen falls back to its lower-cased form (counted over all training words, lower-cased), and that to the
    most frequent tag of all.

    Returns
    -------
    int16 (test words,)
    """
    exact, lower = _most_frequent(train_forms, train_tags), _most_frequent(_lower(train_forms), train_tags)
    fallback = int(np.argmax(np.bincount(train_tags)))
    predicted = [exact.get(form, lower.get(low, fallback)) for form, low in zip(test_forms, _lower(test_forms), strict=True)]
    return np.array(predicted, dtype=np.int16)


def baseline_predictions(
    source: LakeSource, train: LabelVector, test_source: LakeSource, test: LabelVector
) -> dict[str, NDArray[np.int16]]:
    """Predictions of both baselines for every labelled test row of the lake that is tested on.

    Training counts words, not tokens: a word of several labelled tokens counts once. With a shift, it is the token's own
    word that predicts the tag of the later one.
    """
    learn, ask = train.codes >= 0, test.codes >= 0
    words, first = np.unique(train.words[learn], return_index=True)
    tags = train.codes[learn][first]
    known, asked = word_forms(source, words), word_forms(test_source, test.words[ask])
    return {
        "majority": predict_majority(train.codes[learn], int(np.count_nonzero(ask))),
        "most_frequent_tag_per_word": predict_by_word(known, tags, asked),
    }


def _most_frequent(forms: list[str], tags: NDArray[np.int16]) -> dict[str, int]:
    counts: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for form, tag in zip(forms, tags.tolist(), strict=True):
        counts[form][tag] += 1
    # max keeps the first of equals, so ties go to the lower tag.
    return {form: max(sorted(counter), key=lambda tag: counter[tag]) for form, counter in counts.items()}


def _lower(forms: list[str]) -> list[str]:
    return [form.lower() for form in forms]
