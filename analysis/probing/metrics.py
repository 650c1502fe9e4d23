"""Scores of predicted tags, from the counts of a confusion matrix."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def confusion_counts(truth: NDArray[np.int16], predicted: NDArray[np.int16], tags: int) -> NDArray[np.int64]:
    """Counts (true tag, predicted tag), int64 (tags, tags)."""
    pairs = truth.astype(np.int64) * tags + predicted
    return np.bincount(pairs, minlength=tags * tags).reshape(tags, tags).astype(np.int64)


def per_tag_scores(confusion: NDArray[np.int64], tags: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Precision, recall, F1 and support of every tag; undefined ratios are 0."""
    right, true, guessed = np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall, f1 = (
        right / np.maximum(guessed, 1),
        right / np.maximum(true, 1),
        2 * right / np.maximum(true + guessed, 1),
    )
    return {
        tag: {
            "precision": float(precision[at]),
            "recall": float(recall[at]),
            "f1": float(f1[at]),
            "support": int(true[at]),
        }
        for at, tag in enumerate(tags)
    }
