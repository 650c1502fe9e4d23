"""Documents to learn from, and documents to test on."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.labels import LabelVector
from neuronlake.store.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Split:
    """Two disjoint sets of documents (or sentences)."""

    unit: str
    train: NDArray[np.int64] = field(repr=False)
    test: NDArray[np.int64] = field(repr=False)
    test_share: float
    seed: int

    def rows(self, labels: LabelVector) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which rows belong to the training and to the test units, bool (rows,) each."""
        units = self.units(labels)
        return np.isin(units, self.train), np.isin(units, self.test)

    def units(self, labels: LabelVector) -> NDArray[Any]:
        """Return the document (or sentence) of every row, (rows,)."""
        return _units(labels, self.unit)


def split_documents(labels: LabelVector, *, test_share: float = 0.2, seed: int = 0, unit: str = "document") -> Split:
    """Draw held-out documents (or sentences) among those with labelled tokens.

    Parameters
    ----------
    labels
        The labelled rows.
    test_share
        Share of the units that is held out, strictly between 0 and 1; at least one unit goes to either side.
    seed
        The same labels, share, unit and seed always give the same split.
    unit
        ``document``, or ``sentence`` where there are too few documents. Sentences of one document resemble each other,
        so the scores of a split by sentence flatter.

    Raises
    ------
    InputError
        When a setting is wrong or there are fewer than two units.
    """
    if unit not in ("document", "sentence"):
        raise InputError(f"unknown split {unit!r}: known are document, sentence")
    if not 0 < test_share < 1:
        raise InputError(f"test_share must lie between 0 and 1, got {test_share}")
    units = np.unique(_units(labels, unit)[labels.codes >= 0])
    if len(units) < 2:
        fix = "use split='sentence'" if unit == "document" else "store more text"
        raise InputError(f"{len(units)} {unit} with tokens labelled {labels.by!r} cannot be split in two: {fix}")
    held_out = min(max(round(test_share * len(units)), 1), len(units) - 1)
    shuffled = np.random.default_rng(seed).permutation(units)
    return Split(
        unit=unit,
        train=np.sort(shuffled[held_out:]),
        test=np.sort(shuffled[:held_out]),
        test_share=test_share,
        seed=seed,
    )


def _units(labels: LabelVector, unit: str) -> NDArray[Any]:
    return labels.documents if unit == "document" else labels.sentences
