"""How sure is a probe's score? Test documents are drawn again, with replacement."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from neuronlake.store.errors import InputError

METRICS = ("accuracy", "macro_f1")
_SLICE_BYTES = 32 << 20  # 32 MiB: of one slice of weights, and of one slice of counts


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A score or a difference of two, with its interval."""

    value: float
    """On the test documents as they are."""
    low: float | None
    """Ends of the interval; None without one."""
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """Scores of several models on the same resampled documents."""

    documents: int
    draws: int
    """Resamples of the documents; 0 where there are no intervals."""
    level: float
    seed: int
    reason: str | None
    """Why there are no intervals; None where there are."""
    values: dict[str, NDArray[np.float64]] = field(repr=False)
    """accuracy and macro_f1 on the documents as they are, (models,) each."""
    resampled: dict[str, NDArray[np.float64]] = field(repr=False)
    """The same on every resample, (models, draws) each; column d of all models is of the same documents."""
    f1: NDArray[np.float64] = field(repr=False)
    """(models, tags); NaN for a tag that occurs neither in the truth nor among the predictions."""
    f1_interval: NDArray[np.float64] = field(repr=False)
    """(models, tags, 2), low and high; NaN where F1 is, and everywhere without intervals."""

    def estimate(self, metric: str, model: int) -> Estimate:
        """Return a model's accuracy or macro-F1.

        Raises
        ------
        InputError
            When the metric or the model is unknown.
        """
        self._check(metric, model)
        return self._percentiles(float(self.values[metric][model]), self.resampled[metric][model])

    def difference(self, metric: str, model: int, other: int) -> Estimate:
        """Return how much higher a model scores than another; both are scored on the same documents in every resample.

        Raises
        ------
        InputError
            When the metric or one of the models is unknown.
        """
        self._check(metric, model)
        self._check(metric, other)
        values, resampled = self.values[metric], self.resampled[metric]
        return self._percentiles(float(values[model] - values[other]), resampled[model] - resampled[other])

    def tag_f1(self, model: int, tag: int) -> Estimate | None:
        """Return a model's F1 of one tag; None where the tag occurs neither in the truth nor among the predictions.

        Resamples in which it occurs in neither do not count.

        Raises
        ------
        InputError
            When the model or the tag is unknown.
        """
        self._check("accuracy", model)
        if not 0 <= tag < self.f1.shape[1]:
            raise InputError(f"no tag {tag} among {self.f1.shape[1]}: tags are numbered from 0")
        value = float(self.f1[model, tag])
        if math.isnan(value):
            return None
        low, high = (None if math.isnan(end) else float(end) for end in self.f1_interval[model, tag])
        return Estimate(value=value, low=low, high=high)

    def _check(self, metric: str, model: int) -> None:
        if metric not in METRICS:
            raise InputError(f"unknown metric {metric!r}: known are {', '.join(METRICS)}")
        if not 0 <= model < len(self.values[metric]):
            raise InputError(f"no model {model} among {len(self.values[metric])}: models are numbered from 0")

    def _percentiles(self, value: float, resampled: NDArray[np.float64]) -> Estimate:
        if not self.draws:
            return Estimate(value=value, low=None, high=None)
        low, high = np.quantile(resampled, _ends(self.level))
        return Estimate(value=value, low=float(low), high=float(high))


def bootstrap_documents(
    truth: NDArray[np.integer],
    predicted: NDArray[np.integer],
    groups: NDArray[np.integer],
    *,
    tags: int,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Bootstrap:
    """Score models on the test documents, and on documents drawn from them again and again with replacement.

    Tokens of one document resemble each other, so whole documents are drawn: as many as there are, each with the same
    chance. Intervals are percentiles of the resampled scores (Efron & Tibshirani 1993, ch. 13); with few documents they
    are somewhat too narrow. Macro-F1 is the mean F1 of the tags that occur in the truth or among the predictions, in a
    resample of those that occur there.

    Parameters
    ----------
    truth : integer (tokens,) or (models, tokens)
        True tags, numbered from 0. One line per model where models learned different labels, such as a control task.
    predicted : integer (models, tokens) or (tokens,)
        Predicted tags of every model.
    groups : integer (tokens,)
        Document (or sentence) of every token.
    tags
        Number of tags.
    draws
        Resamples.
    level
        Share of the resamples inside an interval.
    seed
        The same documents and seed always give the same resamples.

    Returns
    -------
    Bootstrap
        Without intervals where all tokens are of one document.

    Raises
    ------
    InputError
        When shapes do not match, there are no tokens, a tag is out of range, or a setting is.
    """
    if draws < 1:
        raise InputError(f"draws must be at least 1, got {draws}")
    if not 0 < level < 1:
        raise InputError(f"level must lie between 0 and 1, got {level}")
    predicted, groups = np.atleast_2d(predicted), np.asarray(groups)
    truth = np.atleast_2d(truth)
    models, tokens = predicted.shape
    if len(truth) not in (1, models) or truth.shape[1] != tokens or groups.shape != (tokens,) or not tokens:
        raise InputError(
            f"truth {truth.shape}, predictions {predicted.shape} and groups {groups.shape} do not fit together: expected "
            "(tokens,) or (models, tokens), (models, tokens) and (tokens,), with at least one token"
        )
    for name, codes in (("truth", truth), ("predictions", predicted)):
        if codes.min() < 0 or codes.max() >= tags:
            raise InputError(f"{name} hold tags from {codes.min()} to {codes.max()}: expected 0 to {tags - 1}")
    ids, document = np.unique(groups, return_inverse=True)
    order = np.argsort(document, kind="stable")
    document = document[order]
    documents = len(ids)
    resample = documents > 1
    values = {metric: np.empty(models) for metric in METRICS}
    resampled = {metric: np.empty((models, draws if resample else 0)) for metric in METRICS}
    f1 = np.empty((models, tags))
    f1_interval = np.full((models, tags, 2), np.nan)
    everything = np.ones((1, documents))
    for model in range(models):
        true, guess = (codes[model % len(codes)][order].astype(np.intp) for codes in (truth, predicted))
        once = _totals(everything, true, guess, document, tags)
        f1[model] = _f1(once)[0]
        for metric, value in _scores(once).items():
            values[metric][model] = value[0]
        if resample:
            # every model draws the same documents anew: keeping all draws × documents would need gigabytes for large corpora
            totals = np.concatenate(
                [_totals(weights, true, guess, document, tags) for weights in _weights(documents, draws, seed)], axis=1
            )
            for metric, value in _scores(totals).items():
                resampled[metric][model] = value
            f1_interval[model] = _tag_intervals(_f1(totals), level)
    return Bootstrap(
        documents=documents,
        draws=draws if resample else 0,
        level=level,
        seed=seed,
        reason=None if resample else "all test tokens are of one document, and one document cannot be resampled",
        values=values,
        resampled=resampled,
        f1=f1,
        f1_interval=f1_interval,
    )


def _ends(level: float) -> tuple[float, float]:
    return (1 - level) / 2, (1 + level) / 2


def _weights(documents: int, draws: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each resample holds each document, in slices of draws; float64 (draws of the slice, documents)."""
    rng = np.random.default_rng(seed)
    at_once = max(1, _SLICE_BYTES // (8 * documents))
    for start in range(0, draws, at_once):
        size = min(at_once, draws - start)
        chosen = rng.integers(documents, size=(size, documents))
        chosen += documents * np.arange(size)[:, None]
        counts = np.bincount(chosen.ravel(), minlength=size * documents)
        yield counts.reshape(size, documents).astype(np.float64)


def _totals(
    weights: NDArray[np.float64],
    truth: NDArray[np.intp],
    predicted: NDArray[np.intp],
    document: NDArray[np.intp],
    tags: int,
) -> NDArray[np.float64]:
    """Right, predicted and true tokens of every tag in every resample; exact integers in float64, (3, draws, tags).

    Tokens come ordered by document.
    """
    documents = weights.shape[1]
    totals = np.zeros((3, len(weights), tags))
    at_once = max(1, _SLICE_BYTES // (8 * 3 * tags))
    for first in range(0, documents, at_once):
        size = min(at_once, documents - first)
        mine = slice(*np.searchsorted(document, [first, first + size]))
        place = (document[mine] - first) * tags
        true, guess = truth[mine], predicted[mine]
        right = true == guess
        for which, cells in enumerate(((place + true)[right], place + guess, place + true)):
            counts = np.bincount(cells, minlength=size * tags).reshape(size, tags)
            # (draws, documents) @ (documents, tags) -> (draws, tags)
            totals[which] += weights[:, first : first + size] @ counts.astype(np.float64)
    return totals


def _f1(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """F1 = 2 · right / (predicted + true), NaN for tags without either; (draws, tags)."""
    right, predicted, true = totals
    found = predicted + true
    f1: NDArray[np.float64] = np.full(right.shape, np.nan)
    np.divide(2 * right, found, out=f1, where=found > 0)
    return f1


def _scores(totals: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Accuracy and macro-F1 of every resample, (draws,) each."""
    right, _, true = totals
    f1 = _f1(totals)
    occurs = ~np.isnan(f1)
    return {
        "accuracy": right.sum(axis=1) / true.sum(axis=1),
        "macro_f1": np.where(occurs, f1, 0.0).sum(axis=1) / occurs.sum(axis=1),
    }


def _tag_intervals(f1: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """Interval of every tag over the resamples it occurs in, NaN without any; (tags, 2)."""
    intervals = np.full((f1.shape[1], 2), np.nan)
    for tag, column in enumerate(f1.T):
        found = column[~np.isnan(column)]
        if found.size:
            intervals[tag] = np.quantile(found, _ends(level))
    return intervals
