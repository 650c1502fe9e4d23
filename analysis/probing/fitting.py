"""One set of features: what is gathered of its training rows, once, and the classifiers fitted from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.probing.closed_form import fit_lda, fit_ridge, standard_of_scatter
from neuronlake.analysis.probing.elastic_net import fit_elastic_net
from neuronlake.analysis.probing.features import FeatureSet
from neuronlake.analysis.probing.kept_scatter import scatter_of_rows
from neuronlake.analysis.probing.linear import LinearClassifier, Problem, Standard, predict
from neuronlake.analysis.probing.matrix import LakeMatrix
from neuronlake.analysis.probing.passes import LOSSES
from neuronlake.analysis.probing.scatter import ClassSums, Scatter, gather_sums
from neuronlake.analysis.probing.selection import select_forward
from neuronlake.analysis.probing.streaming import FEW_ROWS, fit_streaming
from neuronlake.analysis.probing.survey import DENSE, Survey, survey
from neuronlake.analysis.probing.task import Task
from neuronlake.analysis.source import LakeSource
from neuronlake.store.errors import InputError

CLOSED = ("lda", "ridge")
ELASTIC_NET = "elastic_net"
LINEAR = (*CLOSED, *LOSSES, ELASTIC_NET)
PENALTIES = {"ridge": 1e-3, "logistic": 1e-3, "svm": 1 / 64, ELASTIC_NET: 1e-3}
"""λ by default: the best of 1e-4 … 1e-1 in steps of half a decade, or within 0.1 points of it, on layers of SmolLM2."""


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How classifiers are fitted."""

    classifier: str
    shrinkage: float
    penalty: float
    l1_ratio: float
    epochs: int
    max_passes: int
    tolerance: float
    seed: int
    keep: bool
    max_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Return those that the classifier uses."""
        used: tuple[str, ...] = {
            "lda": ("shrinkage",),
            "ridge": ("penalty",),
            ELASTIC_NET: ("penalty", "l1_ratio", "max_passes", "tolerance"),
        }.get(self.classifier, ())
        if self.classifier in LOSSES:
            used = ("penalty", "epochs", "max_passes", "tolerance")
        return {"classifier": self.classifier, **{name: getattr(self, name) for name in used}}

    @property
    def of_covariance(self) -> bool:
        """Whether the classifier needs the covariance of all features."""
        return self.classifier in (*CLOSED, ELASTIC_NET)


class Fitting:
    """Classifiers on some features of a task's tokens."""

    def __init__(self, source: LakeSource, task: Task, features: FeatureSet, settings: FitSettings):
        self._source, self._task, self._settings = source, task, settings
        self.features = features
        self.tags = len(task.train.tags)
        self._check_memory()
        self._matrix = LakeMatrix(source, features, task.train_rows, keep=settings.classifier in (*LOSSES, ELASTIC_NET))
        self._test = LakeMatrix(task.test_source, features, task.test_rows)

    @cached_property
    def _scatter(self) -> Scatter:
        settings = self._settings
        return scatter_of_rows(
            self._source,
            self.features,
            self._task.train_rows,
            subword=self._task.train.subword,
            keep=settings.keep,
        )

    @cached_property
    def scatter(self) -> Scatter:
        """Of the training rows.

        As it may be a small difference of large sums, its diagonal is that of a pass over the rows themselves: a neuron
        that fires in test documents only is constant, not rounding.
        """
        scatter = self._scatter
        scatter.gram[np.diag_indices_from(scatter.gram)] = self._sums[1]
        return scatter

    @property
    def sums(self) -> list[ClassSums]:
        """Of every labelling."""
        return self._sums[0]

    @cached_property
    def _sums(self) -> tuple[list[ClassSums], NDArray[np.float64]]:
        squares = np.zeros(self.features.size)
        centre = self._scatter.centre
        return gather_sums(self._matrix, centre, self._task.labellings, self.tags, squares=squares), squares

    @cached_property
    def survey(self) -> Survey:
        """Of the training rows."""
        return survey(self._matrix, seed=self._settings.seed)

    @cached_property
    def standard(self) -> Standard:
        """How the features are standardised."""
        if self._settings.of_covariance:
            return standard_of_scatter(self.scatter, self._matrix.dtype)
        return self.survey.standard

    def choose(self, k: int, among: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Columns of k features by forward selection among some, in the order of choice."""
        standard = standard_of_scatter(self.scatter, self._matrix.dtype)
        sums = self.sums[0]
        if among is None:
            return select_forward(self.scatter, sums, standard, k)
        few = ClassSums(count=sums.count, total=sums.total[:, among])
        return among[select_forward(self.scatter.subset(among), few, standard.subset(among), k)]

    def constant(self, columns: NDArray[np.int64] | None) -> int:
        """How many features do not vary in the training rows.

        Raises
        ------
        InputError
            When none does.
        """
        factor = self.standard.factor if columns is None else self.standard.factor[columns]
        constant = int(np.count_nonzero(factor == 0))
        if constant == len(factor):
            raise InputError(
                f"none of the {constant} neurons of layer {', '.join(map(str, self.features.layers))} varies over the "
                f"{self._matrix.shape[0]} training tokens: there is nothing to learn from; choose other neurons or layers"
            )
        return constant

    def fit(self, problems: Sequence[Problem]) -> tuple[list[LinearClassifier], dict[str, Any]]:
        """Fit every problem, and say how it went."""
        try:
            return self._fit(problems)
        finally:
            self._matrix.forget()

    def _fit(self, problems: Sequence[Problem]) -> tuple[list[LinearClassifier], dict[str, Any]]:
        settings = self._settings
        if settings.classifier == "lda":
            return [
                fit_lda(
                    self.scatter,
                    self.sums[each.labelling],
                    self.standard,
                    shrinkage=settings.shrinkage,
                    columns=each.columns,
                )
                for each in problems
            ], {}
        if settings.classifier == "ridge":
            return [
                fit_ridge(
                    self.scatter, self.sums[each.labelling], self.standard, penalty=settings.penalty, columns=each.columns
                )
                for each in problems
            ], {}
        if settings.classifier == ELASTIC_NET:
            sparse = fit_elastic_net(
                self._matrix,
                self._task.labellings,
                problems,
                self.scatter,
                self.standard,
                tags=self.tags,
                penalty=settings.penalty,
                l1_ratio=settings.l1_ratio,
                max_passes=settings.max_passes,
                tolerance=settings.tolerance,
            )
            return sparse.classifiers, {"passes": sparse.passes, "converged": sparse.converged}
        found = fit_streaming(
            self._matrix,
            self._task.labellings,
            problems,
            self.survey,
            tags=self.tags,
            loss=settings.classifier,
            penalty=settings.penalty,
            epochs=settings.epochs,
            max_passes=settings.max_passes,
            tolerance=settings.tolerance,
            seed=settings.seed,
        )
        epochs = {} if self._matrix.shape[0] >= FEW_ROWS else {"epochs": 0}
        return found.classifiers, {**epochs, "passes": found.passes, "converged": found.converged}

    def predict(self, classifiers: Sequence[LinearClassifier]) -> list[NDArray[np.int16]]:
        """Predict the test tokens with each, in one pass."""
        return predict(self._test, self.standard, classifiers)

    def _check_memory(self) -> None:
        size, rows = self.features.size, self._source.block_rows
        tiles = 3 * rows * size * 4
        closed = self._settings.of_covariance
        part = size if closed or size <= DENSE else self._source.neurons
        matrices = 4 * part * part * 8 * -(-size // part)
        needed, allowed = tiles + matrices, self._settings.max_bytes
        if needed > allowed:
            other = "classifier='logistic', " if closed and tiles + 4 * self._source.neurons * size * 8 <= allowed else ""
            raise InputError(
                f"{size} features need {needed / 2**30:.1f} GiB (their covariances and two blocks of tokens), at most "
                f"{allowed / 2**30:.1f} GiB may be used: use {other}fewer layers, or the top_k neurons per tag"
            )
