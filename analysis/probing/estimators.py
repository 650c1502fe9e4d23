"""Probes as scikit-learn estimators, of arrays or of a lake's tokens that are never held whole.

They fit what `probe` fits, without its splits, baselines and controls. Importing this module imports scikit-learn.
"""

from abc import abstractmethod
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if

from neuronlake.analysis.probing.closed_form import fit_lda, fit_ridge, standard_of_scatter
from neuronlake.analysis.probing.elastic_net import fit_elastic_net
from neuronlake.analysis.probing.estimator_base import LinearProbe, ProbabilityProbe, probabilities
from neuronlake.analysis.probing.linear import Problem, Standard
from neuronlake.analysis.probing.matrix import Matrix
from neuronlake.analysis.probing.passes import Fit
from neuronlake.analysis.probing.scatter import ClassSums, Scatter, centre_of, gather_scatter, gather_sums
from neuronlake.analysis.probing.selection import select_forward
from neuronlake.analysis.probing.streaming import fit_streaming
from neuronlake.analysis.probing.survey import survey
from neuronlake.store.errors import InputError

_SPARSE = ("lda", "ridge", "logistic", "svm")  # classifiers of SparseProbe


class _SummedProbe(LinearProbe):
    """Needs class sums and the scatter matrix alone, which add up over batches."""

    scatter_: Scatter
    class_sums_: ClassSums

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Self:
        """Learn from more rows: the result is that of all rows so far at once.

        The first call names all `classes`; one without rows yet is never predicted.
        """
        first = not hasattr(self, "scatter_")
        if first and classes is None:
            raise InputError("classes must be given on the first call of partial_fit: all that will ever occur")
        matrix, y = self._rows_and_labels(X, y, first=first, least=1)
        self._check_parameters()
        if first:
            self.classes_ = np.unique(classes)
            self._check_classes("classes")
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise InputError(f"classes must be those of the first call, {self.classes_}, got {np.unique(classes)}")
        if unknown := sorted(set(np.unique(y).tolist()) - set(self.classes_.tolist())):
            raise InputError(
                f"y holds {unknown[0]!r}, which is none of the classes given on the first call: {self.classes_}"
            )
        self._add(matrix, np.searchsorted(self.classes_, y).astype(np.int16), first=first)
        return self

    def _fit(self, matrix: Matrix, codes: NDArray[np.int16]) -> None:
        self._add(matrix, codes, first=True)

    def _add(self, matrix: Matrix, codes: NDArray[np.int16], *, first: bool) -> None:
        centre = centre_of(matrix) if first else self.scatter_.centre
        scatter = gather_scatter(matrix, centre)
        (sums,) = gather_sums(matrix, centre, [codes], len(self.classes_))
        self.scatter_ = scatter if first else self.scatter_.plus(scatter)
        self.class_sums_ = sums if first else self.class_sums_.plus(sums)
        self._solve(self.scatter_, self.class_sums_, standard_of_scatter(self.scatter_, matrix.dtype))

    @abstractmethod
    def _solve(self, scatter: Scatter, sums: ClassSums, standard: Standard) -> None:
        """Fit from all rows seen so far."""


class LDAProbe(_SummedProbe, ProbabilityProbe):
    """Linear discriminants of classes with a common covariance, in closed form; see `fit_lda`.

    scikit-learn's ``LinearDiscriminantAnalysis(solver="lsqr", shrinkage=…)`` on standardised features.

    Parameters
    ----------
    shrinkage
        λ of the covariance, above 0 and at most 1.
    """

    def __init__(self, *, shrinkage: float = 0.01):
        self.shrinkage = shrinkage

    def _solve(self, scatter: Scatter, sums: ClassSums, standard: Standard) -> None:
        self._set(fit_lda(scatter, sums, standard, shrinkage=self.shrinkage), standard)


class RidgeProbe(_SummedProbe):
    """Least squares on the classes with an ℓ2 penalty, in closed form; see `fit_ridge`.

    scikit-learn's ``RidgeClassifier(alpha=λ·n)`` on standardised features.

    Parameters
    ----------
    penalty
        λ per row, positive.
    """

    def __init__(self, *, penalty: float = 1e-3):
        self.penalty = penalty

    def _solve(self, scatter: Scatter, sums: ClassSums, standard: Standard) -> None:
        self._set(fit_ridge(scatter, sums, standard, penalty=self.penalty), standard, targets=True)


class LogisticProbe(ProbabilityProbe):
    """Multinomial logistic regression with an ℓ2 penalty, streamed; see `fit_streaming`.

    scikit-learn's ``LogisticRegression(C=1/(λ·n))`` on standardised features. Of two classes, that fits one vector of
    weights and this one per class, the halves of a difference: there it is ``C=2/(λ·n)``.

    Parameters
    ----------
    penalty
        λ per row, positive.
    epochs
        Passes in mini-batches, from 4,096 rows on.
    max_passes
        Most full passes after that.
    tolerance
        Relative decrease of the objective at which these end; in float32, as of a lake, 5e-7 at least.
    random_state
        Of the mini-batches' order.
    """

    def __init__(
        self,
        *,
        penalty: float = 1e-3,
        epochs: int = 4,
        max_passes: int = 100,
        tolerance: float = 1e-8,
        random_state: Any = 0,
    ):
        self.penalty, self.epochs, self.max_passes = penalty, epochs, max_passes
        self.tolerance, self.random_state = tolerance, random_state

    def _fit(self, matrix: Matrix, codes: NDArray[np.int16]) -> None:
        fit, standard = _streamed(self, matrix, codes, "logistic", self.penalty)
        self._set_streamed(fit, standard, max_passes=self.max_passes)


class LinearSVMProbe(LinearProbe):
    """Linear support vectors with squared hinge loss, each class against the rest, streamed; see `fit_streaming`.

    scikit-learn's ``LinearSVC(C=1/(λ·n))`` on standardised features, but for its penalty on the intercept.

    Parameters
    ----------
    penalty
        λ per row, positive.
    epochs, max_passes, tolerance, random_state
        As those of `LogisticProbe`.
    """

    def __init__(
        self,
        *,
        penalty: float = 1 / 64,
        epochs: int = 4,
        max_passes: int = 100,
        tolerance: float = 1e-8,
        random_state: Any = 0,
    ):
        self.penalty, self.epochs, self.max_passes = penalty, epochs, max_passes
        self.tolerance, self.random_state = tolerance, random_state

    def _fit(self, matrix: Matrix, codes: NDArray[np.int16]) -> None:
        fit, standard = _streamed(self, matrix, codes, "svm", self.penalty)
        self._set_streamed(fit, standard, max_passes=self.max_passes, half=True)


class ElasticNetProbe(ProbabilityProbe):
    """Multinomial logistic regression whose penalty sets weights to zero, streamed; see `fit_elastic_net`.

    scikit-learn's ``LogisticRegression(solver="saga", l1_ratio=ρ, C=1/(λ·n))`` on standardised features for three classes or
    more; of two, its ℓ2 part is half as strong here.

    Parameters
    ----------
    penalty
        λ per row, positive.
    l1_ratio
        ρ, the share of λ that goes to Σ|w|; 0 … 1.
    max_passes
        Most steps, each a pass over the rows.
    tolerance
        Relative decrease of the objective in a step at which these end.
    """

    def __init__(self, *, penalty: float = 1e-3, l1_ratio: float = 0.5, max_passes: int = 500, tolerance: float = 1e-6):
        self.penalty, self.l1_ratio, self.max_passes, self.tolerance = penalty, l1_ratio, max_passes, tolerance

    def _fit(self, matrix: Matrix, codes: NDArray[np.int16]) -> None:
        scatter = gather_scatter(matrix, centre_of(matrix))
        standard = standard_of_scatter(scatter, matrix.dtype)
        fit = fit_elastic_net(
            matrix,
            [codes],
            [Problem(name="task")],
            scatter,
            standard,
            tags=len(self.classes_),
            penalty=self.penalty,
            l1_ratio=self.l1_ratio,
            max_passes=self.max_passes,
            tolerance=self.tolerance,
        )
        self._set_streamed(fit, standard, max_passes=self.max_passes)


class SparseProbe(LinearProbe):
    """A classifier of k features, chosen one after the other by what each adds; see `select_forward`.

    Parameters
    ----------
    k
        How many; where there are fewer, or the others are combinations of those chosen, fewer are used.
    classifier
        ``lda``, ``ridge``, ``logistic`` or ``svm``, fitted to those chosen.
    shrinkage
        Of ``lda``.
    penalty
        Of the others, λ per row; None means 0.001, for ``svm`` 1/64.
    epochs, max_passes, tolerance, random_state
        Of ``logistic`` and ``svm``, as those of `LogisticProbe`.

    Attributes
    ----------
    chosen_ : int64 (at most k,)
        Columns in the order of choice.
    """

    def __init__(
        self,
        *,
        k: int = 10,
        classifier: str = "logistic",
        shrinkage: float = 0.01,
        penalty: float | None = None,
        epochs: int = 4,
        max_passes: int = 100,
        tolerance: float = 1e-8,
        random_state: Any = 0,
    ):
        self.k, self.classifier, self.shrinkage, self.penalty = k, classifier, shrinkage, penalty
        self.epochs, self.max_passes, self.tolerance, self.random_state = epochs, max_passes, tolerance, random_state

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.classifier not in _SPARSE:
            raise InputError(f"unknown classifier {self.classifier!r}: known are {', '.join(_SPARSE)}")

    def _fit(self, matrix: Matrix, codes: NDArray[np.int16]) -> None:
        scatter = gather_scatter(matrix, centre_of(matrix))
        standard = standard_of_scatter(scatter, matrix.dtype)
        (sums,) = gather_sums(matrix, scatter.centre, [codes], len(self.classes_))
        self.chosen_ = select_forward(scatter, sums, standard, self.k)
        if not len(self.chosen_):
            raise InputError(f"none of the {matrix.shape[1]} features tells the classes apart: there is nothing to choose")
        columns = np.sort(self.chosen_)
        penalty = (1 / 64 if self.classifier == "svm" else 1e-3) if self.penalty is None else self.penalty
        if self.classifier == "lda":
            self._set(fit_lda(scatter, sums, standard, shrinkage=self.shrinkage, columns=columns), standard)
        elif self.classifier == "ridge":
            found = fit_ridge(scatter, sums, standard, penalty=penalty, columns=columns)
            self._set(found, standard, targets=True)
        else:
            fit, standard = _streamed(self, matrix, codes, self.classifier, penalty, columns)
            self._set_streamed(fit, standard, max_passes=self.max_passes, half=self.classifier == "svm")

    def _has_probabilities(self) -> bool:
        return self.classifier in ("lda", "logistic")

    @available_if(_has_probabilities)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> NDArray[Any]:
        """Probabilities of the classes, (n, classes); of ``lda`` and ``logistic``."""
        return probabilities(self.decision_function(X))


def _streamed(
    probe: Any,
    matrix: Matrix,
    codes: NDArray[np.int16],
    loss: str,
    penalty: float,
    columns: NDArray[np.int64] | None = None,
) -> tuple[Fit, Standard]:
    """Fit by an estimator's streaming settings."""
    state = probe.random_state
    seed = int(state) if isinstance(state, int | np.integer) else int(check_random_state(state).randint(1 << 31))
    seen = survey(matrix, seed=seed)
    fit = fit_streaming(
        matrix,
        [codes],
        [Problem(name="task", columns=columns)],
        seen,
        tags=len(probe.classes_),
        loss=loss,
        penalty=penalty,
        epochs=probe.epochs,
        max_passes=probe.max_passes,
        tolerance=probe.tolerance,
        seed=seed,
    )
    return fit, seen.standard
