"""From predictions to a result: scores, intervals, baselines and controls."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.labels import LabelVector
from neuronlake.analysis.probing.bootstrap import METRICS, Bootstrap, Estimate, bootstrap_documents
from neuronlake.analysis.probing.metrics import confusion_counts, per_tag_scores
from neuronlake.analysis.probing.result import Interval, ProbeResult
from neuronlake.analysis.probing.settings import ProbeSettings
from neuronlake.analysis.probing.task import Task
from neuronlake.analysis.source import LakeSource, versions


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Of the test tokens by the probe (first) and its controls."""

    kinds: tuple[str, ...]
    """``task``, ``control_task``, ``shuffled_labels``, ``random_neurons``."""
    labellings: tuple[int, ...]
    """Of the task's, which one each was fitted to."""
    predicted: tuple[NDArray[np.int16], ...] = field(repr=False)


def score(
    source: LakeSource,
    task: Task,
    found: Predictions,
    settings: ProbeSettings,
    *,
    layers: list[int],
    neurons: list[str] | None,
    features: int,
    random_features: int,
    constant: int,
    fitted: dict[str, Any],
) -> ProbeResult:
    """Score the probe and its controls on the same resampled test documents."""
    truth, tags = task.truths[0], task.train.tags
    names = [*found.kinds, *task.baselines]
    booted = bootstrap_documents(
        np.stack([*(task.truths[labelling] for labelling in found.labellings), *(truth for _ in task.baselines)]),
        np.stack([*found.predicted, *task.baselines.values()]),
        task.test_documents,
        tags=len(tags),
        draws=settings.bootstrap_draws,
        seed=settings.seed,
    )
    places = {name: [at for at, other in enumerate(names) if other == name] for name in dict.fromkeys(names)}
    confusion = confusion_counts(truth, found.predicted[0], len(tags))
    per_tag = per_tag_scores(confusion, tags)
    for tag, (low, high) in zip(tags, booted.f1_interval[0].tolist(), strict=True):
        per_tag[tag]["f1_interval"] = None if np.isnan(low) else [low, high]
    controls: dict[str, dict[str, Any]] = {
        name: _mean_of_draws(booted, places[name])
        for name in ("control_task", "shuffled_labels", "random_neurons")
        if name in places
    }
    if "random_neurons" in controls:
        controls["random_neurons"]["neurons"] = random_features
    above = places["most_frequent_tag_per_word"][0]
    selectivity, selectivity_interval = _selectivity(booted, places)
    return ProbeResult(
        accuracy=float(booted.values["accuracy"][0]),
        macro_f1=float(booted.values["macro_f1"][0]),
        balanced_accuracy=float(np.mean([scores["recall"] for scores in per_tag.values() if scores["support"]])),
        intervals={
            **{metric: _ends(booted.estimate(metric, 0)) for metric in METRICS},
            "selectivity": selectivity_interval,
            "above_most_frequent_tag": _ends(booted.difference("accuracy", 0, above)),
        },
        tags=tags,
        per_tag=per_tag,
        confusion=confusion,
        baselines={
            name: {metric: float(booted.values[metric][places[name][0]]) for metric in METRICS} for name in task.baselines
        },
        controls=controls,
        selectivity=selectivity,
        counts={
            "n_train": task.train.tokens,
            "n_test": task.test.tokens,
            "n_train_documents": _distinct(task.train, task.train.documents),
            "n_test_documents": _distinct(task.test, task.test.documents),
            "n_train_sentences": _distinct(task.train, task.train.sentences),
            "n_test_sentences": _distinct(task.test, task.test.sentences),
            "n_features": features,
            "n_constant_features": constant,
            "n_test_known_words": round(task.known_words * task.test.tokens),
        },
        dropped=task.dropped,
        neurons=neurons,
        settings={
            "name": _name(settings, layers, features),
            "by": settings.by,
            "tags": None if settings.tags is None else list(settings.tags),
            "tag": settings.tag,
            "where": settings.where,
            "test_where": settings.test_where,
            "subword": settings.subword,
            "shift": settings.shift,
            "layers": layers,
            "top_k": settings.top_k,
            "method": settings.method,
            "random_share": settings.random_share,
            **fitted,
            "split": settings.split if task.test_source is source else None,
            "test_share": settings.test_share if task.test_source is source else None,
            "test_lake": None if task.test_source is source else task.test_source.fingerprint,
            "seed": settings.seed,
            "control_draws": settings.control_draws,
            "random_draws": settings.random_draws,
            "bootstrap": {"draws": booted.draws, "level": booted.level, "without": booted.reason},
            "site": source.site,
            "encoding": source.encoding,
        },
        lake=source.fingerprint,
        versions=versions(),
    )


def _mean_of_draws(booted: Bootstrap, places: list[int]) -> dict[str, Any]:
    draws = [{metric: float(booted.values[metric][place]) for metric in METRICS} for place in places]
    return {**{metric: float(np.mean([draw[metric] for draw in draws])) for metric in METRICS}, "draws": draws}


def _selectivity(booted: Bootstrap, places: dict[str, list[int]]) -> tuple[float | None, Interval]:
    """Accuracy less the mean over the control tasks, and its interval over the same resamples."""
    if "control_task" not in places:
        return None, None
    control = places["control_task"]
    value = float(booted.values["accuracy"][0] - booted.values["accuracy"][control].mean())
    resampled = booted.resampled["accuracy"]
    if not booted.draws:
        return value, None
    tail = 50 * (1 - booted.level)
    low, high = np.percentile(resampled[0] - resampled[control].mean(axis=0), [tail, 100 - tail])
    return value, [float(low), float(high)]


def _ends(estimate: Estimate) -> Interval:
    return None if estimate.low is None or estimate.high is None else [estimate.low, estimate.high]


def _name(settings: ProbeSettings, layers: list[int], features: int) -> str:
    where = f"layer {layers[0]}" if len(layers) == 1 else f"{len(layers)} layers"
    return f"{settings.classifier}, {where}, {features} neurons"


def _distinct(labels: LabelVector, ids: NDArray[Any]) -> int:
    return int(np.unique(ids[labels.codes >= 0]).size)
