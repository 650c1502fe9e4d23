"""What lesions did: Δ log-loss and Δ accuracy by the target's tag, against random sets and other tags' key neurons."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.significance import benjamini_hochberg
from neuronlake.store.errors import InputError

BEYOND = 0.95
"""Share of the random sets that an effect should exceed."""
SCARCE = 10
"""A tag of fewer targets says little: it does not count among the others that a lesion is compared on."""


@dataclass(frozen=True, kw_only=True)
class LesionSums:
    """Sums over targets; run 0 is without lesion."""

    tags: tuple[str, ...]
    targets: NDArray[np.integer] = field(repr=False)
    """Targets of every document and tag, (documents, tags)."""
    log_loss: NDArray[np.float64] = field(repr=False)
    """Sum of −log p, in nats, (runs, documents, tags)."""
    hits: NDArray[np.integer] = field(repr=False)
    """Targets that were predicted right, (runs, documents, tags)."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The key neurons of a tag, lesioned, and the random sets to hold them against: numbers of runs."""

    tag: str
    neurons: int
    run: int
    random: tuple[int, ...]
    dose: int | None = None
    """How many neurons were asked for, as a place in a dose–response; None: the whole set. Only trials of the same dose are
    compared with each other."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A difference between two means, with its interval by document bootstrap (None with a single document)."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What a lesion of a tag's key neurons did. Losses are in nats per target."""

    tag: str
    neurons: int
    dose: int | None
    """See `Trial`."""
    targets: int
    """Of its own tag."""
    documents: int
    """That hold them."""
    own: Change
    """Δ log-loss on its own tag's targets."""
    own_accuracy: Change
    """Δ accuracy likewise."""
    others: Change
    """Mean over the other tags of their Δ log-loss; of those with at least `SCARCE` targets."""
    selectivity: Change
    """`own` − `others`."""
    random_mean: float | None
    """Mean Δ log-loss of the random sets on the same targets; None without any."""
    random: tuple[float, ...]
    """That of each random set."""
    above_random: Change | None
    """`own` − `random_mean`."""
    exceeded: float | None
    """Share of the random sets whose Δ is smaller than `own`."""
    p: float | None
    """(1 + random sets with at least `own`) / (1 + random sets): one-sided, Monte Carlo."""
    q: float | None
    """Benjamini–Hochberg over the tags of the same dose."""
    p_selectivity: float | None
    """As `p`, of `selectivity`."""
    other_keys_mean: float | None
    """Mean Δ log-loss on these targets of the other tags' key neurons; None without any."""
    other_keys_max: float | None
    other_keys_worst: str | None
    """The tag whose key neurons these are."""
    above_other_keys: Change | None
    """`own` − `other_keys_mean`."""
    by_target: dict[str, dict[str, Any]] = field(repr=False)
    """Tag of the target → targets, Δ log-loss (value, low, high), Δ accuracy, random_mean."""

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


def clean_scores(sums: LesionSums) -> dict[str, dict[str, Any]]:
    """Tag → targets, log_loss and accuracy without lesion, of the tags that occur."""
    total, loss, hits = (part.sum(axis=0) for part in (sums.targets, sums.log_loss[0], sums.hits[0]))
    return {
        tag: {
            "targets": int(total[place]),
            "log_loss": float(loss[place] / total[place]),
            "accuracy": float(hits[place] / total[place]),
        }
        for place, tag in enumerate(sums.tags)
        if total[place]
    }


def lesion_effects(
    sums: LesionSums, trials: Sequence[Trial], *, draws: int = 1000, level: float = 0.95, seed: int = 0
) -> list[Effect]:
    """Compare every lesion with the clean run, with its random sets and with the other trials of the same dose.

    Δ_r(c) = (Σ_d L_r(d, c) − Σ_d L_0(d, c)) / Σ_d n(d, c), L the summed log-loss of run r on the targets of tag c in
    document d and n their number. Intervals draw whole documents with replacement, as many as there are, and take
    percentiles (Efron & Tibshirani 1993, ch. 13); every Δ of one effect uses the same draws, so that differences are
    paired. p is a Monte-Carlo p-value (Davison & Hinkley 1997, § 4.2.3): with R random sets never below 1 / (1 + R).

    Parameters
    ----------
    draws
        Resamples of documents.
    level
        Share of the resamples inside an interval.
    seed
        Of the resamples.

    Returns
    -------
    list of Effect
        In the order of `trials`.

    Raises
    ------
    InputError
        When a trial's tag has no target.
    """
    total = sums.targets.sum(axis=0)
    for trial in trials:
        if trial.tag not in sums.tags or not total[sums.tags.index(trial.tag)]:
            raise InputError(f"tag {trial.tag!r} has no word to predict; there are words of {', '.join(clean_scores(sums))}")
    resample = _Resample(sums.targets, draws=draws, level=level, seed=seed)
    delta = _differences(sums.log_loss, total)
    effects = [_effect(sums, trial, trials, delta, resample) for trial in trials]
    return _corrected(effects)


class _Resample:
    """Means over resampled documents."""

    def __init__(self, targets: NDArray[np.integer], *, draws: int, level: float, seed: int):
        documents = len(targets)
        self.ends = ((1 - level) / 2, (1 + level) / 2)
        rng = np.random.default_rng(seed)
        self.draws = draws if documents > 1 else 0
        # how often each resample holds each document, (draws, documents)
        self.weights = rng.multinomial(documents, np.full(documents, 1 / documents), size=self.draws).astype(np.float64)
        self.count = self.weights @ targets  # (draws, tags)

    def means(self, differences: NDArray[Any]) -> NDArray[np.float64]:
        """Mean of every resample, NaN where it has no target: (documents, tags) -> (draws, tags)."""
        found: NDArray[np.float64] = np.full(self.count.shape, np.nan)
        np.divide(self.weights @ differences, self.count, out=found, where=self.count > 0)
        return found

    def change(self, value: float, resampled: NDArray[np.float64]) -> Change:
        """Value with its percentile interval."""
        known = resampled[~np.isnan(resampled)]
        if not known.size:
            return Change(value=value, low=None, high=None)
        low, high = np.quantile(known, self.ends)
        return Change(value=value, low=float(low), high=float(high))


def _differences(sums: NDArray[Any], total: NDArray[np.integer]) -> NDArray[np.float64]:
    """Δ per target of every run against the first: (runs, documents, tags) -> (runs, tags), NaN without targets."""
    pooled = sums.sum(axis=1, dtype=np.float64)
    found: NDArray[np.float64] = np.full(pooled.shape, np.nan)
    np.divide(pooled - pooled[0], total, out=found, where=total > 0)
    return found


def _effect(
    sums: LesionSums, trial: Trial, trials: Sequence[Trial], delta: NDArray[np.float64], resample: _Resample
) -> Effect:
    own = sums.tags.index(trial.tag)
    total = sums.targets.sum(axis=0)
    others_there = [place for place, count in enumerate(total) if count and place != own]
    present = [place for place in others_there if total[place] >= SCARCE] or others_there
    losses = sums.log_loss[trial.run] - sums.log_loss[0]  # (documents, tags)
    resampled = resample.means(losses)
    hits = sums.hits[trial.run] - sums.hits[0]
    accuracy, resampled_accuracy = hits.sum(axis=0), resample.means(hits)

    def others(values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean over the other tags that occur, (…, tags) -> (…)."""
        rest = values[..., present]
        known = ~np.isnan(rest)
        mean: NDArray[np.float64] = np.full(rest.shape[:-1], np.nan)
        count = known.sum(axis=-1)
        np.divide(np.where(known, rest, 0.0).sum(axis=-1), count, out=mean, where=count > 0)
        return mean

    value, rest = float(delta[trial.run, own]), float(others(delta[trial.run]))
    rest = 0.0 if np.isnan(rest) else rest  # a single tag has no others
    resampled_rest = others(resampled) if present else np.zeros(len(resampled))
    random = list(trial.random)
    of_random = delta[random, own]
    selective_random = of_random - (others(delta[random]) if present else 0.0)
    above = random_mean = None
    if random:
        random_mean = float(of_random.mean())
        mean_random = resample.means(sums.log_loss[random].mean(axis=0) - sums.log_loss[0])[:, own]
        above = resample.change(value - random_mean, resampled[:, own] - mean_random)
    rivals = [each for each in trials if each.tag != trial.tag and each.dose == trial.dose]
    rival_runs = [each.run for each in rivals]
    above_rivals = None
    if rivals:
        mean_rival = resample.means(sums.log_loss[rival_runs].mean(axis=0) - sums.log_loss[0])[:, own]
        above_rivals = resample.change(value - float(delta[rival_runs, own].mean()), resampled[:, own] - mean_rival)
    worst = int(np.argmax(delta[rival_runs, own])) if rivals else None
    return Effect(
        tag=trial.tag,
        neurons=trial.neurons,
        dose=trial.dose,
        targets=int(total[own]),
        documents=int(np.count_nonzero(sums.targets[:, own])),
        own=resample.change(value, resampled[:, own]),
        own_accuracy=resample.change(float(accuracy[own] / total[own]), resampled_accuracy[:, own]),
        others=resample.change(rest, resampled_rest),
        selectivity=resample.change(value - rest, resampled[:, own] - resampled_rest),
        random_mean=random_mean,
        random=tuple(float(each) for each in of_random),
        above_random=above,
        exceeded=float(np.mean(of_random < value)) if random else None,
        p=_monte_carlo(value, of_random),
        q=None,
        p_selectivity=_monte_carlo(value - rest, selective_random),
        other_keys_mean=float(delta[rival_runs, own].mean()) if rivals else None,
        other_keys_max=None if worst is None else float(delta[rival_runs[worst], own]),
        other_keys_worst=None if worst is None else rivals[worst].tag,
        above_other_keys=above_rivals,
        by_target={
            sums.tags[place]: {
                "targets": int(total[place]),
                **asdict(resample.change(float(delta[trial.run, place]), resampled[:, place])),
                "accuracy": float(accuracy[place] / total[place]),
                "random_mean": float(delta[random, place].mean()) if random else None,
            }
            for place in sorted([own, *others_there])
        },
    )


def _monte_carlo(value: float, random: NDArray[np.float64]) -> float | None:
    return float((1 + np.count_nonzero(random >= value)) / (1 + len(random))) if len(random) else None


def _corrected(effects: Sequence[Effect]) -> list[Effect]:
    """Add q, over the effects of the same number of neurons and random sets."""
    result = list(effects)
    groups: dict[int | None, list[int]] = {}
    for place, effect in enumerate(effects):
        if effect.p is not None:
            groups.setdefault(effect.dose, []).append(place)
    for places in groups.values():
        for place, q in zip(places, benjamini_hochberg(np.array([effects[at].p for at in places])), strict=True):
            result[place] = replace(effects[place], q=float(q))
    return result


def summary(effects: Sequence[Effect]) -> dict[str, Any]:
    """Count the tags whose key neurons matter more to them than the controls do.

    Returns
    -------
    dict
        tags; above_others: `selectivity` above 0, and how many with the whole interval; above_random: more than 95 % of the
        random sets; largest_of_keys: no other tag's key neurons hurt it more; all: selectivity above 0 and beyond random.
    """
    selective = [effect.selectivity.value > 0 for effect in effects]
    beyond = [effect.exceeded is not None and effect.exceeded >= BEYOND for effect in effects]
    return {
        "tags": len(effects),
        "above_others": sum(selective),
        "above_others_interval": sum((effect.selectivity.low or 0) > 0 for effect in effects),
        "above_random": sum(beyond),
        "above_random_interval": sum(
            effect.above_random is not None and (effect.above_random.low or 0) > 0 for effect in effects
        ),
        "largest_of_keys": sum(
            effect.other_keys_max is not None and effect.own.value > effect.other_keys_max for effect in effects
        ),
        "both": sum(one and other for one, other in zip(selective, beyond, strict=True)),
    }
