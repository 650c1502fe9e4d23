"""Multinomial logistic regression with an elastic-net penalty, streamed over the rows; and neurons ranked by its weights.

Few weights are left over: the ℓ1 part sets the others to exactly zero, the ℓ2 part lets neurons that say the same share
their weight instead of electing one of them (Zou & Hastie 2005). Dalvi et al. (2019) rank neurons by such weights.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.probing.kernels import descend_coordinates
from neuronlake.analysis.probing.linear import LinearClassifier, Problem, Standard
from neuronlake.analysis.probing.matrix import Matrix
from neuronlake.analysis.probing.passes import LOSSES, Fit, Group, Slope, alike, slopes
from neuronlake.analysis.probing.scatter import Scatter
from neuronlake.store.errors import InputError

_CURVATURE = LOSSES["logistic"].curvature
_DAMPING = 1e-6  # added to the covariance's diagonal: float32 products leave so much open whether it bounds
_INNER = 1e-3  # share of what a step gained below which another sweep over the coordinates does not pay
_SWEEPS = 500


def fit_elastic_net(
    matrix: Matrix,
    labellings: Sequence[NDArray[np.int16]],
    problems: Sequence[Problem],
    scatter: Scatter,
    standard: Standard,
    *,
    tags: int,
    penalty: float,
    l1_ratio: float,
    max_passes: int,
    tolerance: float,
) -> Fit:
    """Minimise (1/n)·Σ loss + λ·(ρ·Σ|w| + (1 − ρ)/2·Σw²) of every problem, of standardised features, with a free bias.

    It is scikit-learn's ``LogisticRegression(solver="saga", l1_ratio=ρ, C=1/(λ·n))`` for three tags or more. Of two tags
    that fits the difference of the weights; its ℓ2 part is then half as strong here.

    Böhning's (1992) bound ½·C of the Hessian, C the covariance of the training rows, majorises the loss whatever the
    weights; the minimum of majoriser and penalty separates by tag and is found by coordinate descent (Friedman, Hastie &
    Tibshirani 2010). Such proximal steps are accelerated (Beck & Teboulle 2009), and begin anew where the momentum points
    against the step (the gradient scheme of O'Donoghue & Candès 2015, which needs no second pass to see the objective rise).

    Parameters
    ----------
    matrix
        The training rows as they are stored; one pass per step.
    labellings
        int16 (rows,) each, 0 … tags − 1.
    problems
        What is fitted, in the same passes; a problem that has converged is left out of the rest.
    scatter, standard
        Of the same rows, all of them.
    penalty
        λ, positive.
    l1_ratio
        ρ, 0 … 1.
    max_passes
        Most passes, at least 1.
    tolerance
        A problem has converged when the step, which does lower the objective, is good for less than this share of it.

    Returns
    -------
    Fit
        `objective` is an upper bound of that of the weights returned, by less than the last step's share.
    """
    scaled = matrix.scaled(standard.centre, standard.factor)
    covariance = _covariance(scatter, standard)
    groups = [
        _Group(members, labellings, problems, covariance, tags, lasso=penalty * l1_ratio, ridge=penalty * (1 - l1_ratio))
        for members in alike(problems)
    ]
    passes = 0
    while passes < max_passes and (running := [group for group in groups if group.running]):
        passes += 1
        for group, slope in zip(running, slopes(scaled, running), strict=True):
            group.step(slope, tolerance)
    paths = {place: path for group in groups for place, path in zip(group.members, group.paths, strict=True)}
    ordered = [paths[place] for place in range(len(problems))]
    return Fit(
        classifiers=[
            LinearClassifier(weights=path.weights, bias=path.bias, columns=problem.columns)
            for path, problem in zip(ordered, problems, strict=True)
        ],
        objective=sum(path.objective for path in ordered),
        passes=passes,
        converged=all(path.converged for path in ordered),
    )


def _covariance(scatter: Scatter, standard: Standard) -> NDArray[np.float64]:
    """Covariance of the standardised rows, float64 (D, D); zero for constant features."""
    mean = scatter.total / scatter.rows
    covariance: NDArray[np.float64] = scatter.gram / scatter.rows
    covariance -= np.outer(mean, mean)
    covariance *= standard.factor
    covariance *= standard.factor[:, None]
    return covariance


class _Path:
    """One problem's weights on their way."""

    def __init__(self, features: int, bias: NDArray[np.float64]):
        self.weights, self.bias = np.zeros((features, len(bias))), bias
        self.ahead, self.bias_ahead = self.weights, self.bias
        """Where the next gradient is taken."""
        self.pace = 1.0
        self.objective = float("nan")
        self.converged = False


class _Group(Group):
    """Problems on the same features; those that have not converged take part in the passes."""

    def __init__(
        self,
        members: list[int],
        labellings: Sequence[NDArray[np.int16]],
        problems: Sequence[Problem],
        covariance: NDArray[np.float64],
        tags: int,
        *,
        lasso: float,
        ridge: float,
    ):
        columns = problems[members[0]].columns
        self.bound = _CURVATURE * (covariance if columns is None else covariance[np.ix_(columns, columns)])
        diagonal = np.diagonal(self.bound)
        # Constant features keep a curvature of zero, which takes them out.
        self.bound[np.diag_indices_from(self.bound)] += np.where(diagonal > 0, _CURVATURE * _DAMPING, 0.0)
        self.lasso, self.ridge = lasso, ridge
        super().__init__(members, labellings, problems, features=len(self.bound), tags=tags, loss=LOSSES["logistic"])
        self.paths = [_Path(len(self.bound), bias) for bias in self.bias.reshape(len(members), tags)]
        self._all_codes = self.codes

    @property
    def running(self) -> list[_Path]:
        """Problems that have not converged."""
        return [path for path in self.paths if not path.converged]

    def step(self, slope: Slope, tolerance: float) -> None:
        """Take a step from every running problem's slope where it looked ahead to, and look ahead again."""
        running = self.running
        for at, path in enumerate(running):
            own = slice(at * self.tags, (at + 1) * self.tags)
            self._step(path, float(slope.losses[at]), slope.weights[:, own], slope.bias[own], tolerance)
        left = [place for place, path in enumerate(self.paths) if not path.converged]
        if left:
            self.codes = self._all_codes[:, left]
            self.weights = np.concatenate([self.paths[place].ahead for place in left], axis=1)
            self.bias = np.concatenate([self.paths[place].bias_ahead for place in left])

    def _step(
        self, path: _Path, loss: float, gradient: NDArray[np.float64], bias_gradient: NDArray[np.float64], tolerance: float
    ) -> None:
        # (tags, D), so that a tag's weights lie together
        weights, slope = path.ahead.T.copy("C"), gradient.T.copy("C")
        before = self._penalty(weights)
        gain = 0.5 * float(bias_gradient @ bias_gradient) / _CURVATURE
        for own, left in zip(weights, slope, strict=True):
            gain += descend_coordinates(self.bound, self.ridge, self.lasso, own, left, _INNER, _SWEEPS)
        new, bend = weights.T, slope.T - gradient  # bend: bound @ (new − ahead)
        bias = path.bias_ahead - bias_gradient / _CURVATURE
        against = -float(np.vdot(bend, new - path.weights)) + float(bias_gradient @ (bias - path.bias))
        objective = loss + before
        path.objective = objective - gain
        path.converged = bool(gain <= tolerance * objective)
        pace = 1.0 if against > 0 else 0.5 * (1 + np.sqrt(1 + 4 * path.pace**2))
        momentum = 0.0 if against > 0 else (path.pace - 1) / pace
        path.ahead = new + momentum * (new - path.weights)
        path.bias_ahead = bias + momentum * (bias - path.bias)
        path.weights, path.bias, path.pace = new, bias, pace

    def _penalty(self, weights: NDArray[np.float64]) -> float:
        return self.lasso * float(np.abs(weights).sum()) + 0.5 * self.ridge * float(np.vdot(weights, weights))


def nonzero_features(classifier: LinearClassifier) -> int:
    """Count the features with a weight for any tag."""
    return int(np.count_nonzero(classifier.weights.any(axis=1)))


def ranked_by_weight(classifier: Any, share: float) -> list[NDArray[np.int64]]:
    """Of every tag, the features that make up a share of its weights' mass, the heaviest first.

    The linguistic correlation analysis of Dalvi et al. (2019): features by |w| descending, the fewest whose Σ|w| reaches
    `share` of the tag's. Ties go to the lower column; weights of zero never count.

    NeuroX (``interpretation/linear_probe.py``) does the same per tag in ``get_top_neurons``, with these differences:

    - Its probe learns from features as they are, unless the user rescales them: a neuron whose activations are a hundred
      times smaller needs a weight a hundred times larger to say the same, so masses of weights do not compare. Weights here
      are of standardised features.
    - Adam never leaves a weight at exactly zero, and its ℓ2 penalty is ‖w‖, not its square (the source says that this makes
      no difference; it does: it shrinks all weights by one factor that depends on the rest). ``share=1`` then is every
      neuron, here it is those with weights.
    - ``get_bottom_neurons`` takes the smallest weights up to a share of the mass; ``get_top_neurons_hard_threshold`` those
      above max|w| *divided by* its ``fraction``, though its documentation says times.
    - ``get_neuron_ordering`` unites the tags' neurons at 0 %, 1 %, … 100 % of the mass, in arbitrary order within a step. A
      tag's share is of its own mass: a tag that is barely learned contributes as many as one that is learned well.

    However ranked, correlated features share their weight, and a neuron that says what another says already may have none:
    small weights do not mean that a neuron knows nothing.

    Parameters
    ----------
    classifier
        A fitted linear estimator such as `ElasticNetProbe`, or its `classifier_`.
    share
        Above 0, at most 1.

    Returns
    -------
    list of int64
        Per tag, columns of the matrix that the classifier was fitted on; empty for a tag without weights.

    Raises
    ------
    InputError
        When share is out of range.
    """
    if not 0 < share <= 1:
        raise InputError(f"share must be above 0 and at most 1, got {share}")
    fitted: LinearClassifier = getattr(classifier, "classifier_", classifier)
    found = []
    for weights in np.abs(fitted.weights.T):
        order = np.argsort(-weights, kind="stable")
        order = order[: np.count_nonzero(weights)]
        mass = np.cumsum(weights[order])
        count = 0 if not len(order) else int(np.searchsorted(mass, share * mass[-1])) + 1
        chosen = order[:count]
        found.append((chosen if fitted.columns is None else fitted.columns[chosen]).astype(np.int64))
    return found
