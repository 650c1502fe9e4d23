"""Intrinsic probing by class-conditional Gaussians: which few dimensions carry a label, and how many bits of it."""

from collections.abc import Iterator
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.special import logsumexp
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from neuronlake.analysis.probing.class_labels import classes_and_codes
from neuronlake.analysis.probing.gaussian_selection import ClassGaussians, select_dimensions, selection_bytes
from neuronlake.store.errors import InputError

DEFAULT_K = 50
_CHUNK_ROWS = 4096  # rows converted to float64 at once


class GaussianProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Class-conditional Gaussians on greedily chosen dimensions (Torroba Hennigen, Williams & Cotterell 2020, EMNLP).

    One full-covariance Gaussian per class over all D usable features; the probe of any subset of them is its marginal, the
    sub-vector of the mean and the sub-block of the covariance, so that no subset needs training (decomposability). From
    these, k dimensions are chosen one by one, each the one that raises the log-likelihood of the labels,
    Σ log p(y | x_C), most. That is the same order as by the mutual information estimated as
    I(y; x_C) = H(y) + mean log₂ p(y | x_C), with the plug-in entropy H of the labels.

    The prior is normal–inverse-Wishart, NIW(μ₀, κ₀, Λ₀, ν₀), the same for all classes: μ₀ the mean of all rows, Λ₀
    `prior_scale` times the diagonal of their covariance (divided by n). With n rows, mean x̄ and scatter S of a class, its
    posterior (Murphy 2012, §4.6.3) has μₙ = (κ₀μ₀ + n·x̄)/(κ₀ + n) and
    Λₙ = Λ₀ + S + κ₀n/(κ₀ + n)·(x̄ − μ₀)(x̄ − μ₀)ᵀ. The class mean is μₙ, its covariance

    - ``estimate="mode"``: Λₙ/(ν₀ + n + D + 2), the joint MAP estimate, as in the paper. Its divisor grows with D, so that
      the Gaussian of a class with n ≲ 2·D rows is far too narrow;
    - ``estimate="mean"``: Λₙ/(ν₀ + n − D − 1), the posterior expectation. With ν₀ = D + 2 that is Λₙ/(n + 1) whatever D is:
      the estimate for a subset alone is the same as the sub-block of the estimate for all.

    The paper's published code centres the prior of a class on that class's own mean and variances instead; for classes of
    more than a few dozen rows the difference vanishes as 1/n.

    Everything is computed on features that are standardised internally; results are in the units of X.

    Parameters
    ----------
    k
        How many dimensions to choose; None means 50, or all usable ones if fewer.
    estimate
        ``mode`` or ``mean``.
    prior_mean_strength
        κ₀, rows that the prior mean counts for.
    prior_scale
        Factor of Λ₀.
    degrees_of_freedom
        ν₀; None means D + 2, with which Λ₀ is the prior expectation of the covariance.
    selection_rows
        With more rows than this, the likelihood that guides the selection is of so many rows drawn without replacement;
        the Gaussians are of all rows, always.
    max_bytes
        Largest memory of the selection. Candidates are scored in tiles of about 1 MiB per thread; what grows with n is a
        copy of the rows and, per row, class and chosen dimension, one number in the precision of X.
    random_state
        Of those rows.
    select
        False uses every usable feature in the order given, without looking for the best: `k` and `information_` mean
        nothing then.

    Attributes
    ----------
    classes_ : (classes,)
    selected_ : int64 (k,)
        Features in the order chosen.
    information_ : float64 (k,)
        Bits about the label after each step, on the training rows used for the selection: they flatter, see `information`
        for others. Where they fall from one step to the next, every remaining dimension fits a Gaussian too badly to help.
    normalized_information_ : float64 (k,)
        `information_` / `entropy_`.
    entropy_ : float
        H(y) in bits on those rows.
    selection_rows_ : int64 (at most selection_rows,)
        The rows.
    usable_ : int64 (D,)
        Features that are not constant; only they are candidates.
    class_prior_ : float64 (classes,)
        Shares of the classes.
    means_ : float64 (classes, n_features_in_)
    covariances_ : float64 (classes, n_features_in_, n_features_in_)
        Zero where a feature is constant.

    Raises
    ------
    InputError
        A ValueError. When there is one class only, or a class with one row; when `k` exceeds the usable features or those
        that are linearly independent; when a setting is wrong or the memory would exceed `max_bytes`.
    """

    def __init__(
        self,
        k: int | None = None,
        *,
        estimate: str = "mode",
        prior_mean_strength: float = 0.01,
        prior_scale: float = 1.0,
        degrees_of_freedom: float | None = None,
        selection_rows: int = 20_000,
        max_bytes: int = 2 << 30,
        random_state: Any = 0,
        select: bool = True,
    ):
        self.k = k
        self.select = select
        self.estimate = estimate
        self.prior_mean_strength = prior_mean_strength
        self.prior_scale = prior_scale
        self.degrees_of_freedom = degrees_of_freedom
        self.selection_rows = selection_rows
        self.max_bytes = max_bytes
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Fit the Gaussians and choose dimensions.

        Parameters
        ----------
        X : float32 or float64 (n, features)
            The selection works in this precision.
        y : (n,)
        """
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, codes = classes_and_codes(y)
        self.usable_, centre, scale = _scales(X)
        k = self._check(X)
        counts = np.bincount(codes)
        self.class_prior_ = counts / len(y)
        if not self.select:
            return self._fit_all(X, codes, centre, scale)
        rows = self._rows_to_select_on(len(y))
        values = np.empty((len(rows), len(self.usable_)), dtype=X.dtype)
        for first, some in _chunks(X, rows, self.usable_):
            values[first : first + len(some)] = (some - centre) / scale
        means, covariances = self._posterior(X, codes, centre, scale)
        gaussians = ClassGaussians(means=means, covariances=covariances, log_priors=np.log(self.class_prior_))
        order, likelihood = select_dimensions(values, codes[rows], gaussians, k=k)
        if len(order) < k and (self.k is not None or not len(order)):
            raise InputError(
                f"of {X.shape[1]} features only {len(order)} could be chosen, {k} were wanted: in some class the others are "
                f"constant or linear combinations of these; use a larger prior_scale than {self.prior_scale}, or a smaller k"
            )
        self.selected_ = self.usable_[order]
        self.selection_rows_ = rows
        self.entropy_ = _entropy(codes[rows])
        self.information_ = self.entropy_ + likelihood / np.log(2)
        self.normalized_information_ = self.information_ / self.entropy_ if self.entropy_ else np.zeros(len(order))
        self._to_units_of(X, means, covariances, centre, scale)
        return self

    def _fit_all(self, X: NDArray[Any], codes: NDArray[Any], centre: NDArray[Any], scale: NDArray[Any]) -> Self:
        """Use every usable feature, in the order in which they are given."""
        means, covariances = self._posterior(X, codes, centre, scale)
        self.selected_ = self.usable_
        self.selection_rows_ = np.empty(0, dtype=np.int64)
        self.entropy_ = _entropy(codes)
        self.information_ = self.normalized_information_ = np.empty(0)
        self._to_units_of(X, means, covariances, centre, scale)
        return self

    def predict_log_proba(self, X: Any, k: int | None = None) -> NDArray[np.float64]:
        """log p(class | first `k` chosen dimensions), all by default; (n, classes)."""
        return np.concatenate([joint[-1] for joint in self._log_probabilities(X, k)])

    def predict_proba(self, X: Any, k: int | None = None) -> NDArray[np.float64]:
        """p(class | first `k` chosen dimensions), all by default; (n, classes)."""
        return np.exp(self.predict_log_proba(X, k))

    def predict(self, X: Any, k: int | None = None) -> NDArray[Any]:
        """Most probable class given the first `k` chosen dimensions, all by default; (n,)."""
        best = self.predict_log_proba(X, k).argmax(axis=1)
        found: NDArray[Any] = self.classes_[best]
        return found

    def information(self, X: Any, y: Any, k: int | None = None) -> NDArray[np.float64]:
        """Bits about the label by 1 … k chosen dimensions, estimated on other rows; float64 (k,).

        H(y) + mean log₂ p(y | x_C), with the plug-in entropy H of `y` itself: below zero where the probe misleads.
        """
        check_is_fitted(self)
        labels = np.asarray(y)
        codes = np.minimum(np.searchsorted(self.classes_, labels), len(self.classes_) - 1)
        if (self.classes_[codes] != labels).any():
            unknown = labels[self.classes_[codes] != labels][0]
            raise InputError(f"the label '{unknown}' was not among the training rows: leave its rows out")
        total, first = 0.0, 0
        for log in self._log_probabilities(X, k):
            own = codes[first : first + log.shape[1]]
            total += log[:, np.arange(len(own)), own].sum(axis=1)
            first += len(own)
        bits: NDArray[np.float64] = _entropy(codes) + total / (np.log(2) * len(codes))
        return bits

    def _log_probabilities(self, X: Any, k: int | None) -> Iterator[NDArray[np.float64]]:
        """log p(class | the first 1 … k dimensions), (k, rows, classes), for some rows at a time."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        k = len(self.selected_) if k is None else k
        if not 1 <= k <= len(self.selected_):
            raise InputError(f"k must be between 1 and the {len(self.selected_)} dimensions chosen, got {k}")
        chosen = self.selected_[:k]
        # A leading block of a Cholesky factor is the factor of the leading block.
        factors = np.linalg.cholesky(self.covariances_[:, chosen[:, None], chosen])
        for _, values in _chunks(X, np.arange(len(X)), chosen):
            joint = np.empty((k, len(values), len(self.classes_)))
            for code, (mean, factor) in enumerate(zip(self.means_[:, chosen], factors, strict=True)):
                whitened = solve_triangular(factor, (values - mean).T, lower=True, check_finite=False)  # (k, rows)
                steps = -0.5 * whitened**2 - np.log(np.diagonal(factor))[:, None]
                joint[:, :, code] = np.cumsum(steps, axis=0) + np.log(self.class_prior_[code])
            yield joint - logsumexp(joint, axis=2, keepdims=True)

    def _check(self, X: NDArray[Any]) -> int:
        usable, features = len(self.usable_), X.shape[1]
        if self.estimate not in ("mode", "mean"):
            raise InputError(f"unknown estimate {self.estimate!r}: known are mode, mean")
        if not usable:
            raise InputError(f"all {features} features are constant: there is nothing to choose from")
        if self.k is not None and not 1 <= self.k <= usable:
            constant = f" ({features - usable} more are constant)" if usable < features else ""
            raise InputError(f"k must be between 1 and the {usable} usable features{constant}, got {self.k}")
        if min(self.prior_mean_strength, self.prior_scale) < 0:
            raise InputError(
                "prior_mean_strength and prior_scale must not be negative, got "
                f"{self.prior_mean_strength} and {self.prior_scale}"
            )
        if self.selection_rows < 1:
            raise InputError(f"selection_rows must be at least 1, got {self.selection_rows}")
        k = min(DEFAULT_K, usable) if self.k is None else self.k
        rows = min(self.selection_rows, len(X))
        needed = selection_bytes(rows, len(self.classes_), usable, k, X.itemsize)
        if needed > self.max_bytes:
            raise InputError(
                f"choosing {k} of {usable} features on {rows} rows of {len(self.classes_)} classes needs "
                f"{needed / 2**30:.2f} GiB, at most {self.max_bytes / 2**30:.2f} GiB may be used: lower selection_rows or k"
            )
        return k

    def _rows_to_select_on(self, rows: int) -> NDArray[np.int64]:
        if rows <= self.selection_rows:
            return np.arange(rows)
        random = check_random_state(self.random_state)
        return np.sort(random.choice(rows, self.selection_rows, replace=False)).astype(np.int64)

    def _posterior(
        self, X: NDArray[Any], codes: NDArray[np.int64], centre: NDArray[np.float64], scale: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Means and covariances of the classes of standardised features, for which μ₀ = 0 and Λ₀ = prior_scale · I."""
        width, strength = len(centre), self.prior_mean_strength
        freedom = width + 2 if self.degrees_of_freedom is None else self.degrees_of_freedom
        means = np.empty((len(self.classes_), width))
        covariances = np.empty((len(self.classes_), width, width))
        for code in range(len(self.classes_)):
            rows = np.flatnonzero(codes == code)
            n = len(rows)
            divisor = freedom + n + (width + 2 if self.estimate == "mode" else -width - 1)
            if divisor <= 0:
                raise InputError(
                    f"class '{self.classes_[code]}' of {n} rows has no posterior {self.estimate} with "
                    f"degrees_of_freedom={freedom} and {width} features: use more, such as {width + 2}"
                )
            mean = sum(((some - centre) / scale).sum(axis=0) for _, some in _chunks(X, rows, self.usable_)) / n
            scatter = np.zeros((width, width))
            for _, some in _chunks(X, rows, self.usable_):
                deviations = (some - centre) / scale - mean
                scatter += deviations.T @ deviations
            scatter += strength * n / (strength + n) * np.outer(mean, mean)
            scatter[np.diag_indices(width)] += self.prior_scale
            means[code], covariances[code] = n * mean / (strength + n), scatter / divisor
        return means, covariances

    def _to_units_of(
        self,
        X: NDArray[Any],
        means: NDArray[np.float64],
        covariances: NDArray[np.float64],
        centre: NDArray[np.float64],
        scale: NDArray[np.float64],
    ) -> None:
        classes, features = len(self.classes_), X.shape[1]
        self.means_ = np.repeat(X[:1].astype(np.float64), classes, axis=0)  # right where a feature is constant
        self.means_[:, self.usable_] = centre + scale * means
        self.covariances_ = np.zeros((classes, features, features))
        self.covariances_[:, self.usable_[:, None], self.usable_] = covariances * scale * scale[:, None]


def _scales(X: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Features that are not constant, their means and deviations (divided by n)."""
    span = X.max(axis=0).astype(np.float64) - X.min(axis=0)
    usable = np.flatnonzero(span > 0)
    span = span[usable]  # neither tiny nor huge features lose their squares
    centre = X.mean(axis=0, dtype=np.float64)[usable]
    squares = np.zeros(len(usable))
    for _, some in _chunks(X, np.arange(len(X)), usable):
        squares += (((some - centre) / span) ** 2).sum(axis=0)
    return usable, centre, span * np.sqrt(squares / len(X))


def _chunks(
    X: NDArray[Any], rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    for first in range(0, len(rows), _CHUNK_ROWS):
        yield first, X[rows[first : first + _CHUNK_ROWS, None], columns].astype(np.float64)


def _entropy(codes: NDArray[np.int64]) -> float:
    """Plug-in entropy in bits."""
    shares = np.bincount(codes) / len(codes)
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum())
