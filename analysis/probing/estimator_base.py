"""What all probes share as scikit-learn estimators: rows and labels in, a decision function and its readings out."""

import warnings
from abc import ABC, abstractmethod
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from neuronlake.analysis.probing.linear import LinearClassifier, Standard, predict
from neuronlake.analysis.probing.matrix import ArrayMatrix, LakeMatrix, Matrix
from neuronlake.analysis.probing.passes import Fit
from neuronlake.store.errors import InputError

_MAX_CLASSES = int(np.iinfo(np.int16).max)


class LinearProbe(ClassifierMixin, BaseEstimator, ABC):  # type: ignore[misc]
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
            raise InputError(f"{of} holds one class only, {str(self.classes_[0])!r}: two or more are needed")
        if len(self.classes_) > _MAX_CLASSES:
            raise InputError(f"{of} holds {len(self.classes_)} classes, at most {_MAX_CLASSES} can be told apart")

    def _check_parameters(self) -> None:
        """Refuse what is out of range."""
        values = self.get_params()
        if values.get("penalty") is not None and not 0 < values["penalty"] < np.inf:
            raise InputError(f"penalty must be above 0 and finite, got {values['penalty']}")
        if not 0 < values.get("shrinkage", 1) <= 1:
            raise InputError(f"shrinkage must be above 0 and at most 1, got {values['shrinkage']}")
        if not 0 <= values.get("l1_ratio", 0) <= 1:
            raise InputError(f"l1_ratio must lie between 0 and 1, got {values['l1_ratio']}")
        for name, least in (("k", 1), ("epochs", 0), ("max_passes", 0 if "epochs" in values else 1)):
            if values.get(name, least) < least:
                raise InputError(f"{name} must be at least {least}, got {values[name]}")
        if values.get("epochs", 1) == values.get("max_passes", 1) == 0:
            raise InputError("epochs and max_passes are both 0: nothing would be fitted")

    @abstractmethod
    def _fit(self, matrix: Matrix, codes: NDArray[np.int16]) -> None:
        """Fit on rows with tags 0 … classes − 1."""

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


def probabilities(decision: NDArray[Any]) -> NDArray[Any]:
    """Softmax of scores (n, classes), or of 0 and scores (n,); in the dtype of the scores."""
    from scipy.special import expit, softmax

    if decision.ndim == 1:
        return np.stack([expit(-decision), expit(decision)], axis=1)
    found: NDArray[Any] = softmax(decision, axis=1)
    return found


class ProbabilityProbe(LinearProbe):
    """One whose scores are logarithms of probabilities, up to a constant."""

    def predict_proba(self, X: Any) -> NDArray[Any]:
        """Probabilities of the classes, (n, classes)."""
        return probabilities(self.decision_function(X))

    def predict_log_proba(self, X: Any) -> NDArray[Any]:
        """Their logarithms, (n, classes)."""
        with np.errstate(divide="ignore"):
            found: NDArray[Any] = np.log(self.predict_proba(X))
        return found
