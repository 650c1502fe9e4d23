"""Scores of predicted tags, by scikit-learn (imported when used: it takes two seconds)."""

import numpy as np
from numpy.typing import NDArray


def accuracy_and_f1(truth: NDArray[np.int16], predicted: NDArray[np.int16]) -> dict[str, float]:
    """Accuracy, and the mean F1 of the tags that occur in the truth or among the predictions (undefined F1 is 0)."""
    from sklearn.metrics import accuracy_score, f1_score

    return {
        "accuracy": float(accuracy_score(truth, predicted)),
        "macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0)),
    }


def per_tag_scores(
    truth: NDArray[np.int16], predicted: NDArray[np.int16], tags: tuple[str, ...]
) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and support of every tag; undefined ratios are 0."""
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, support = precision_recall_fscore_support(
        truth, predicted, labels=np.arange(len(tags)), zero_division=0
    )
    return {
        tag: {
            "precision": float(precision[at]),
            "recall": float(recall[at]),
            "f1": float(f1[at]),
            "support": int(support[at]),
        }
        for at, tag in enumerate(tags)
    }


def confusion_counts(truth: NDArray[np.int16], predicted: NDArray[np.int16], tags: int) -> NDArray[np.int64]:
    """Counts (true tag, predicted tag), int64."""
    from sklearn.metrics import confusion_matrix

    matrix: NDArray[np.int64] = confusion_matrix(truth, predicted, labels=np.arange(tags))
    return matrix
