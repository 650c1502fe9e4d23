"""Is a concept a direction, or a region? Concept activation vectors and concept activation regions."""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from neuronlake.analysis.probing.class_labels import balanced_accuracy, classes_and_codes
from neuronlake.store.errors import InputError

_GAMMA_FACTORS = (1 / 16, 1 / 4, 1.0, 4.0)
_VALIDATION_SHARE = 0.25
_ROWS = 1024  # × 2,000 support vectors × 8 bytes = 16 MB


class _BinaryProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Two classes; the second, True or the later in order, is the concept."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def predict(self, X: Any) -> NDArray[Any]:
        """The class of every row, (n,)."""
        side = self.decision_function(X) > 0
        found: NDArray[Any] = self.classes_[side.astype(np.int64)]
        return found

    def _validated(self, X: Any, y: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, codes = classes_and_codes(y, binary=True)
        return X, codes


class CAVProbe(_BinaryProbe):
    """Concept activation vector: a direction along which rows of a concept lie (Kim et al. 2018, ICML).

    Parameters
    ----------
    kind
        - ``logistic``: the unit normal of the plane by which a logistic regression separates concept from rest. It is
          fitted on standardised features, with classes weighted to count the same and an ℓ2 penalty on the standardised
          weights; the normal is that of the same plane in the units of X.
        - ``mean_difference``: from the mean of the rest to that of the concept, in the units of X; the plane stands half
          way. Features of large variance have a large say.
    strength
        C·n of the logistic regression, so that the balance of loss and penalty does not depend on the number of rows.
    max_iter
        Of its solver.

    Attributes
    ----------
    classes_ : (2,)
        The second is the concept.
    vector_ : float64 (features,)
        Of unit length, in the units of X, pointing to the concept. Zero where a feature is constant.
    intercept_ : float
        ``X @ vector_ + intercept_`` is the signed distance to the plane, the `decision_function`.
    converged_ : bool
        Whether the solver was done within `max_iter`; else scikit-learn warns, too.
    n_iter_ : int
        Iterations of the solver, 1 for the mean difference.

    Raises
    ------
    InputError
        A ValueError. When there are not two classes of two rows or more; when no direction tells them apart; when a
        setting is wrong.
    """

    def __init__(self, kind: str = "logistic", *, strength: float = 64.0, max_iter: int = 1000):
        self.kind = kind
        self.strength = strength
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any) -> Self:
        """Find the direction.

        Parameters
        ----------
        X : float32 or float64 (n, features)
        y : (n,)
            Boolean, True for the concept, or of two classes.
        """
        X, codes = self._validated(X, y)
        if self.kind not in ("logistic", "mean_difference"):
            raise InputError(f"unknown kind {self.kind!r}: known are logistic, mean_difference")
        if not self.strength > 0:
            raise InputError(f"strength must be above 0, got {self.strength}")
        direction, offset = self._logistic(X, codes) if self.kind == "logistic" else self._mean_difference(X, codes)
        length = np.linalg.norm(direction)
        if not length > 0:
            raise InputError(
                f"no direction tells {self.classes_[1]} from {self.classes_[0]}: the {X.shape[1]} features are constant, or "
                "have the same mean in both classes"
            )
        self.vector_ = direction / length
        self.intercept_ = float(offset / length)
        return self

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Signed distance to the plane in the units of X, float64 (n,); above zero on the side of the concept."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        distance: NDArray[np.float64] = X @ self.vector_ + self.intercept_
        return distance

    def _logistic(self, X: NDArray[Any], codes: NDArray[np.int64]) -> tuple[NDArray[np.float64], float]:
        scaler = StandardScaler()
        standardised = scaler.fit_transform(X)
        model: Any = LogisticRegression(C=self.strength / len(X), class_weight="balanced", max_iter=self.max_iter)
        model.fit(standardised, codes)
        self.n_iter_ = int(model.n_iter_.max())
        self.converged_ = self.n_iter_ < self.max_iter
        direction = model.coef_[0].astype(np.float64) / scaler.scale_
        direction[X.max(axis=0) == X.min(axis=0)] = 0.0
        return direction, float(model.intercept_[0] - direction @ scaler.mean_)

    def _mean_difference(self, X: NDArray[Any], codes: NDArray[np.int64]) -> tuple[NDArray[np.float64], float]:
        self.n_iter_, self.converged_ = 1, True
        rest, concept = (X[codes == code].mean(axis=0, dtype=np.float64) for code in (0, 1))
        direction = concept - rest
        return direction, float(-direction @ (concept + rest) / 2)


class CARProbe(_BinaryProbe):
    """Concept activation region: where a kernel machine expects a concept (Crabbé & van der Schaar 2022, NeurIPS).

    A support vector machine with the kernel exp(−γ‖x − x′‖²) on as many rows of the concept as of the rest. Distances are
    in the units of X, as in the paper: put a scaler before it where features differ in kind. A region that is no better
    than `CAVProbe`'s direction on held-out rows speaks for a concept that is linear.

    Parameters
    ----------
    per_side
        Rows drawn of either class, without replacement; as many as the smaller class has, if fewer. The time to fit grows
        with its square.
    gamma
        γ: a number; ``scale``, 1/(features · variance of all values of the sample), scikit-learn's default; or
        ``held_out``, the best of 1/16, 1/4, 1 and 4 times that by balanced accuracy on a quarter of the sample, which does
        not take part in these fits.
    C
        Penalty of rows on the wrong side. scikit-learn's default of 1 is too smooth for thousands of neurons: on parts of
        speech in three layers of SmolLM2-135M it costs up to 7 points of balanced accuracy.
    random_state
        Of the sample and the held-out quarter.

    Attributes
    ----------
    classes_ : (2,)
        The second is the concept.
    sample_ : int64 (2 · rows per side,)
        Rows of X fitted on.
    gamma_ : float
    gamma_scores_ : dict
        Balanced accuracy of every γ tried; empty unless ``held_out``.
    machine_ : sklearn.svm.SVC
        Fitted on the whole sample.

    Raises
    ------
    InputError
        A ValueError. When there are not two classes of two rows or more, or a setting is wrong.
    """

    def __init__(self, *, per_side: int = 1000, gamma: float | str = "scale", C: float = 10.0, random_state: Any = 0):
        self.per_side = per_side
        self.gamma = gamma
        self.C = C
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Fit the region.

        Parameters
        ----------
        X : float32 or float64 (n, features)
        y : (n,)
            Boolean, True for the concept, or of two classes.
        """
        X, codes = self._validated(X, y)
        if self.per_side < 2:
            raise InputError(f"per_side must be at least 2, got {self.per_side}")
        if not self.C > 0:
            raise InputError(f"C must be above 0, got {self.C}")
        if self.gamma not in ("scale", "held_out") if isinstance(self.gamma, str) else not self.gamma > 0:
            raise InputError(f"gamma must be scale, held_out or a number above 0, got {self.gamma!r}")
        random = check_random_state(self.random_state)
        sides = [np.flatnonzero(codes == code) for code in (0, 1)]
        each = min(self.per_side, *map(len, sides))
        drawn = [random.permutation(side)[:each] for side in sides]
        self.sample_ = np.sort(np.concatenate(drawn))
        values = X[self.sample_].astype(np.float64)
        variance = values.var()
        scale = 1.0 / (values.shape[1] * variance) if variance > 0 else 1.0
        self.gamma_scores_: dict[float, float] = {}
        if self.gamma == "held_out":
            self.gamma_scores_ = self._try(X, codes, drawn, scale)
            self.gamma_ = max(self.gamma_scores_, key=lambda gamma: self.gamma_scores_[gamma])
        else:
            self.gamma_ = scale if isinstance(self.gamma, str) else float(self.gamma)
        self.machine_ = SVC(C=self.C, gamma=self.gamma_).fit(values, codes[self.sample_])
        return self

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Σ α·k(x, support vector) + bias, float64 (n,); above zero within the region."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        # As the machine's own, but distances by a matrix product: a tenth of the time. Centred, so that little cancels.
        support, weights = self.machine_.support_vectors_, self.machine_.dual_coef_[0]
        centre = support.mean(axis=0)
        support = support - centre
        lengths = np.einsum("ij,ij->i", support, support)
        found = np.empty(len(X))
        for first in range(0, len(X), _ROWS):
            values = X[first : first + _ROWS] - centre
            squares = values @ support.T
            squares *= -2.0
            squares += lengths
            squares += np.einsum("ij,ij->i", values, values)[:, None]
            np.maximum(squares, 0.0, out=squares)
            squares *= -self.gamma_
            found[first : first + _ROWS] = np.exp(squares, out=squares) @ weights
        found += self.machine_.intercept_[0]
        return found

    def _try(
        self, X: NDArray[Any], codes: NDArray[np.int64], drawn: list[NDArray[np.int64]], scale: float
    ) -> dict[float, float]:
        each = len(drawn[0])
        held_out = min(max(1, round(_VALIDATION_SHARE * each)), each - 1)
        test, train = (np.concatenate([side[part] for side in drawn]) for part in (slice(held_out), slice(held_out, None)))
        scores = {}
        for factor in _GAMMA_FACTORS:
            machine = SVC(C=self.C, gamma=factor * scale).fit(X[train].astype(np.float64), codes[train])
            scores[factor * scale] = balanced_accuracy(codes[test], machine.predict(X[test]))
        return scores
