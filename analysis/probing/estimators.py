"""Probes as scikit-learn estimators, of arrays or of a lake's tokens that are never held whole.

They fit what `probe` fits, without its splits, baselines and controls. Importing this module imports scikit-learn.
"""

import warnings
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from neuronlake.analysis.probing.closed_form import fit_lda, fit_ridge, standard_of_scatter
from neuronlake.analysis.probing.elastic_net import fit_elastic_net
from neuronlake.analysis.probing.linear import LinearClassifier, Problem, Standard, predict
from neuronlake.analysis.probing.matrix import ArrayMatrix, LakeMatrix, Matrix
from neuronlake.analysis.probing.passes import Fit
from neuronlake.analysis.probing.scatter import ClassSums, Scatter, centre_of, gather_scatter, gather_sums
from neuronlake.analysis.probing.selection import select_forward
from neuronlake.analysis.probing.streaming import fit_streaming
from neuronlake.analysis.probing.survey import survey
from neuronlake.store.errors import InputError

_MAX_CLASSES = int(np.iinfo(np.int16).max)
_SPARSE = ("lda", "ridge", "logistic", "svm")  # classifiers of SparseProbe


class _LinearProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Fits a linear classifier of standardised features, to an array (n, D) or a `LakeMatrix`.

    Attributes
    ----------
    classes_ : (classes,)
    n_features_in_ : int
    coef_ : float64 (classes, D), of two classes (1, D)
    intercept_ : float64 (classes,) or (1,)
        ``X @ coef_.T + intercept_`` is the decision function. They are for reading: where a feature's mean is large against
        its deviation that sum cancels. The methods centre first.
    standard_ : Standard
        Means and inverse deviations of the training rows; a constant feature has no weight.
    classifier_ : LinearClassifier
        The decision function of standardised features, whose weights compare.
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to X, an array (n, D) or `LakeMatrix`, and y (n,), one label per row."""
        matrix, y = self._rows_and_labels(X, y, first=True, least=2)
        self.classes_, codes = np.unique(y, return_inverse=True)
        self._check_classes("y")
        self._check_parameters()
        self._fit(matrix, codes.astype(np.int16))
        return self

    def decision_function(self, X: Any) -> NDArray[Any]:
        """Scores of every row, (n, classes); of two classes (n,), positive for the second."""
        check_is_fitted(self)
        scores = predict(self._rows(X), self.standard_, [self.classifier_], scores=True)[0]
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> NDArray[Any]:
        """Class of every row, (n,)."""
        scores = self.decision_function(X)
        chosen = (scores > 0).astype(np.int64) if scores.ndim == 1 else scores.argmax(axis=1)
        found: NDArray[Any] = self.classes_[chosen]
        return found

    def _check_classes(self, of: str) -> None:
        if len(self.classes_) < 2:
            raise InputError(f"{of} holds one class only, {self.classes_[0]!r}: two or more are needed")
        if len(self.classes_) > _MAX_CLASSES:
            raise InputError(f"{of} holds {len(self.classes_)} classes, at most {_MAX_CLASSES} can be told apart")

    def _check_parameters(self) -> None:
        """Refuse what is out of range."""
        values = self.get_params()
        if values.get("penalty") is not None and not values["penalty"] > 0:
            raise InputError(f"penalty must be above 0, got {values['penalty']}")
        if not 0 < values.get("shrinkage", 1) <= 1:
            raise InputError(f"shrinkage must be above 0 and at most 1, got {values['shrinkage']}")
        if not 0 <= values.get("l1_ratio", 0) <= 1:
            raise InputError(f"l1_ratio must lie between 0 and 1, got {values['l1_ratio']}")
        for name, least in (("k", 1), ("epochs", 0), ("max_passes", 0 if "epochs" in values else 1)):
            if values.get(name, least) < least:
                raise InputError(f"{name} must be at least {least}, got {values[name]}")
        if values.get("epochs", 1) == values.get("max_passes", 1) == 0:
            raise InputError("epochs and max_passes are both 0: nothing would be fitted")

    def _fit(self, matrix: Matrix, codes: NDArray[np.int16]) -> None:
        raise NotImplementedError

    def _rows_and_labels(self, X: Any, y: Any, *, first: bool, least: int) -> tuple[Matrix, NDArray[Any]]:
        matrix: Matrix
        if isinstance(X, LakeMatrix):
            y = column_or_1d(y, warn=True)
            if len(y) != len(X):
                raise InputError(f"y has {len(y)} labels, X {len(X)} rows: one label per row is needed")
            if len(y) < least:
                raise InputError(f"X has {len(y)} rows: {least} or more are needed")
            self._check_features(X, first=first)
            matrix = X
        else:
            X, y = validate_data(self, X, y, reset=first, dtype=[np.float64, np.float32], ensure_min_samples=least)
            matrix = ArrayMatrix(X)
        check_classification_targets(y)
        return matrix, y

    def _rows(self, X: Any) -> Matrix:
        if isinstance(X, LakeMatrix):
            self._check_features(X, first=False)
            return X
        return ArrayMatrix(validate_data(self, X, reset=False, dtype=[np.float64, np.float32]))

    def _check_features(self, X: LakeMatrix, *, first: bool) -> None:
        if first:
            self.n_features_in_ = X.shape[1]
            if hasattr(self, "feature_names_in_"):  # of an array fitted before
                del self.feature_names_in_
        elif X.shape[1] != self.n_features_in_:
            raise InputError(f"X has {X.shape[1]} features, {type(self).__name__} was fitted with {self.n_features_in_}")

    def _set(self, classifier: LinearClassifier, standard: Standard, *, targets: bool = False, half: bool = False) -> None:
        """Keep the decision function of a core classifier.

        `targets`: its scores are of indicators 0 and 1, those of scikit-learn's ridge of −1 and 1. `half`: of two classes
        either score is a decision function by itself.
        """
        weights, bias = classifier.weights, classifier.bias
        if len(bias) == 2:
            factor = 0.5 if half else 1.0
            weights, bias = factor * (weights[:, 1:] - weights[:, :1]), factor * (bias[1:] - bias[:1])
        elif targets:
            weights, bias = 2 * weights, 2 * bias - 1
        self.standard_ = standard
        self.classifier_ = LinearClassifier(weights=weights, bias=bias, columns=classifier.columns)
        used = slice(None) if classifier.columns is None else classifier.columns
        self.coef_ = np.zeros((len(bias), self.n_features_in_))
        self.coef_[:, used] = weights.T * standard.factor[used]
        self.intercept_ = bias - self.coef_ @ standard.centre

    def _set_streamed(self, fit: Fit, standard: Standard, *, max_passes: int, half: bool = False) -> None:
        self.passes_, self.converged_ = fit.passes, fit.converged
        if not fit.converged and fit.passes >= max_passes > 0:
            warnings.warn(
                f"{type(self).__name__} has not converged after max_passes={max_passes}: raise it, or tolerance",
                ConvergenceWarning,
                stacklevel=4,
            )
        self._set(fit.classifiers[0], standard, half=half)


def _probabilities(decision: NDArray[Any]) -> NDArray[Any]:
    """Softmax of scores (n, classes), or of 0 and scores (n,); in the dtype of the scores."""
    from scipy.special import expit, softmax

    if decision.ndim == 1:
        return np.stack([expit(-decision), expit(decision)], axis=1)
    found: NDArray[Any] = softmax(decision, axis=1)
    return found


class _ProbabilityProbe(_LinearProbe):
    def predict_proba(self, X: Any) -> NDArray[Any]:
        """Probabilities of the classes, (n, classes)."""
        return _probabilities(self.decision_function(X))

    def predict_log_proba(self, X: Any) -> NDArray[Any]:
        """Their logarithms, (n, classes)."""
        with np.errstate(divide="ignore"):
            found: NDArray[Any] = np.log(self.predict_proba(X))
        return found


class _SummedProbe(_LinearProbe):
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

    def _solve(self, scatter: Scatter, sums: ClassSums, standard: Standard) -> None:
        raise NotImplementedError


class LDAProbe(_SummedProbe, _ProbabilityProbe):
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


class LogisticProbe(_ProbabilityProbe):
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
        Relative decrease of the objective at which these end.
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


class LinearSVMProbe(_LinearProbe):
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


class ElasticNetProbe(_ProbabilityProbe):
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


class SparseProbe(_LinearProbe):
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
        return _probabilities(self.decision_function(X))


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
