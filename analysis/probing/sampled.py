"""Classifiers that need their rows in memory: fitted on a sample of the training rows, of a size that is fixed."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.probing.features import FeatureSet
from neuronlake.analysis.probing.fitting import FitSettings
from neuronlake.analysis.probing.linear import Problem
from neuronlake.analysis.probing.matrix import LakeMatrix, stream
from neuronlake.analysis.probing.task import Task
from neuronlake.analysis.source import LakeSource
from neuronlake.store.errors import InputError

BINARY = ("cav", "car")
SAMPLED = ("gaussian", *BINARY)
MOST_FEATURES = 256
"""That a Gaussian probe chooses from."""
_GAUSSIAN_ROWS = 200_000
_PER_SIDE = {"cav": 5000, "car": 1000}


class SampledFitting:
    """As `Fitting`, of a Gaussian probe, a concept activation vector or region."""

    def __init__(self, source: LakeSource, task: Task, features: FeatureSet, settings: FitSettings):
        self._task, self._settings = task, settings
        self.features = features
        generator = np.random.default_rng(settings.seed)
        count = len(task.labellings[0])
        if settings.classifier == "gaussian":
            everyone = np.sort(generator.choice(count, size=min(count, _GAUSSIAN_ROWS), replace=False))
            samples = [everyone] * len(task.labellings)
        else:
            samples = [_balanced(labelling, _PER_SIDE[settings.classifier], generator) for labelling in task.labellings]
        chosen = np.unique(np.concatenate(samples))
        needed = 3 * 4 * features.size * (len(chosen) + source.block_rows)
        if needed > settings.max_bytes:
            raise InputError(
                f"{len(chosen)} tokens × {features.size} neurons need {needed / 2**30:.1f} GiB, at most "
                f"{settings.max_bytes / 2**30:.1f} GiB may be used: use fewer layers, or the top_k neurons per tag"
            )
        rows = np.zeros(len(task.train_rows), dtype=np.bool_)
        rows[np.flatnonzero(task.train_rows)[chosen]] = True
        self._labellings = [labelling[sample] for labelling, sample in zip(task.labellings, samples, strict=True)]
        self._samples = [np.searchsorted(chosen, sample) for sample in samples]
        self._matrix = LakeMatrix(source, features, rows)
        self._test = LakeMatrix(task.test_source, features, task.test_rows)

    @cached_property
    def _values(self) -> NDArray[np.float32]:
        return np.asarray(self._matrix)

    def _sample(self, labelling: int, columns: NDArray[np.int64] | None) -> NDArray[np.float32]:
        """Values of a labelling's sample, (rows, features)."""
        values = self._values[self._samples[labelling]]
        return values if columns is None else values[:, columns]

    def choose(self, k: int, among: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Columns of k neurons by their information about the tags, in the order of choice."""
        from neuronlake.analysis.probing.gaussian import GaussianProbe

        values = self._sample(0, among)
        fitted = GaussianProbe(k, estimate="mean", random_state=self._settings.seed).fit(values, self._labellings[0])
        selected: NDArray[np.int64] = fitted.selected_
        return selected if among is None else among[selected]

    def constant(self, columns: NDArray[np.int64] | None) -> int:
        """How many features do not vary in the sample.

        Raises
        ------
        InputError
            When none does.
        """
        values = self._sample(0, columns)
        constant = int(np.count_nonzero(np.ptp(values, axis=0) == 0))
        if constant == values.shape[1]:
            raise InputError(
                f"none of the {constant} neurons varies over the {len(values)} training tokens: there is nothing to learn "
                "from; choose other neurons or layers"
            )
        return constant

    def fit(self, problems: Sequence[Problem]) -> tuple[list[tuple[Problem, Any]], dict[str, Any]]:
        """Fit every problem, and say on how many tokens."""
        return [
            (
                each,
                self._estimator().fit(self._sample(each.labelling, each.columns), self._labellings[each.labelling]),
            )
            for each in problems
        ], {"rows_fitted": len(self._samples[0])}

    def predict(self, fitted: Sequence[tuple[Problem, Any]]) -> list[NDArray[np.int16]]:
        """Predict the test tokens with each, in one pass."""
        found = [np.empty(self._test.shape[0], dtype=np.int16) for _ in fitted]
        for rows, tile in stream(self._test):
            for (problem, estimator), into in zip(fitted, found, strict=True):
                into[rows] = estimator.predict(tile if problem.columns is None else tile[:, problem.columns])
        return found

    def _estimator(self) -> Any:
        if self._settings.classifier == "gaussian":
            from neuronlake.analysis.probing.gaussian import GaussianProbe

            return GaussianProbe(None, estimate="mean", select=False)
        from neuronlake.analysis.probing.concept import CARProbe, CAVProbe

        if self._settings.classifier == "cav":
            return CAVProbe()
        return CARProbe(per_side=_PER_SIDE["car"], random_state=self._settings.seed)


def _balanced(labelling: NDArray[np.int16], most: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """As many rows of either side, at most so many each; ascending."""
    sides = [np.flatnonzero(labelling == side) for side in (0, 1)]
    size = min(most, *map(len, sides))
    return np.sort(np.concatenate([generator.choice(side, size=size, replace=False) for side in sides]))
