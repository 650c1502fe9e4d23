"""Probes: how well do neurons predict a label, on documents never used for fitting or for choosing neurons?"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from neuronlake.analysis.execute import Parts, Progress, run_all
from neuronlake.analysis.probing.elastic_net import nonzero_features
from neuronlake.analysis.probing.features import FeatureSet, chosen_neurons, top_features, whole_layers
from neuronlake.analysis.probing.fitting import ELASTIC_NET, Fitting
from neuronlake.analysis.probing.linear import LinearClassifier, Problem
from neuronlake.analysis.probing.result import ProbeResult, ProbeResults
from neuronlake.analysis.probing.sampled import MOST_FEATURES, SAMPLED, SampledFitting
from neuronlake.analysis.probing.scoring import Predictions, score
from neuronlake.analysis.probing.settings import ProbeSettings
from neuronlake.analysis.probing.survey import DENSE
from neuronlake.analysis.probing.task import Task, prepare
from neuronlake.analysis.probing.variants import Columns, beside_random, names_of
from neuronlake.analysis.rankers import get_ranker
from neuronlake.analysis.refinement import refine
from neuronlake.analysis.source import LakeSource, choose_layers
from neuronlake.analysis.statistics import statistics_of_labels
from neuronlake.store.errors import InputError
from neuronlake.store.lake import Lake
from neuronlake.store.parallel import usable_cpus

SCREEN = 100
"""Neurons per tag that k neurons are chosen from, where there are more than can be chosen from at once."""


def probe(
    source: LakeSource, by: str = "upos", *, test: LakeSource | None = None, scheduler: Any = None, **settings: Any
) -> ProbeResult:
    """Fit a classifier of a label on neurons, and test it on held-out documents, beside what it must be compared with.

    Parameters
    ----------
    source
        The lake.
    by
        Label column, several joined by ``×``, or an SQL expression.
    test
        Another lake of the same model to test on; the whole of `source` is learned from then.
    scheduler
        A Dask scheduler for choosing neurons by `top_k`; None means threads.
    **settings
        Fields of `ProbeSettings`: layer or neurons, classifier, split, controls and so on.

    Returns
    -------
    ProbeResult

    Raises
    ------
    InputError
        When a setting is out of range or contradicts another; when there are fewer than two documents or tags, no neuron
        varies, or the matrices would not fit in `max_bytes`.
    """
    chosen = ProbeSettings(by=by, **settings)
    task = _task(source, chosen, test)
    (found,) = _probe_set(
        source, task, chosen, scheduler, layers=chosen.layers, ks=None if chosen.k is None else (chosen.k,)
    )
    return found


def probe_sweep(
    source: LakeSource,
    by: str = "upos",
    *,
    over: str = "layer",
    layers: Sequence[int] | None = None,
    ks: Sequence[int] | None = None,
    shifts: Sequence[int] | None = None,
    test: LakeSource | None = None,
    scheduler: Any = None,
    progress: Progress | None = None,
    **settings: Any,
) -> ProbeResults:
    """Fit one probe per layer, per number of neurons, or per shift.

    Parameters
    ----------
    source, by, test, settings
        As for `probe`.
    over
        ``layer``: one probe per layer. ``all``: the neurons of `layers` together, for `ks` or `shifts`.
    layers
        Which; None means all.
    ks
        Numbers of neurons, each a probe; chosen as by ``k``.
    shifts
        Shifts, each a probe.
    scheduler
        A Dask scheduler that runs the layers; None means threads.
    progress
        Called with probes done and probes in all.

    Returns
    -------
    ProbeResults
        In the order of shifts, layers and numbers of neurons.

    Raises
    ------
    InputError
        As `probe` does.
    """
    if ks is not None and not ks:
        raise InputError("ks is empty: give the numbers of neurons, or None for all")
    if over not in ("layer", "all"):
        raise InputError(f"over must be 'layer' or 'all', got {over!r}")
    if {"layer", "k", "shift"} & set(settings):
        raise InputError("a sweep takes layers, ks and shifts instead of layer, k and shift")
    base = ProbeSettings(by=by, **settings)
    for k in ks or ():
        replace(base, k=k)  # refuses what `probe` refuses
    wanted = choose_layers(source, layers)
    if base.neurons is not None:
        over = "all"
    sets: list[dict[str, Any]] = (
        [{"layers": [layer]} for layer in wanted] if over == "layer" else [{"layers": None if layers is None else wanted}]
    )
    sizes = None if ks is None else tuple(sorted(set(ks)))
    found: list[ProbeResult] = []
    for place, shift in enumerate(shifts or (0,)):
        each = replace(base, shift=shift)

        def report(done: int, of: int, before: int = place * len(sets)) -> None:
            if progress is not None:
                progress(before + done, of * len(shifts or (0,)))

        task = _task(source, each, test)
        if len(sets) == 1:
            with _alone():
                found += _probe_set(source, task, each, scheduler, ks=sizes, **sets[0])
            report(1, 1)
            continue
        work = partial(_probe_set, source, task, each, "synchronous", ks=sizes)
        parts = Parts.of_columns(source, [(layer, 0) for layer in wanted], source.neurons)
        if test is not None:
            parts = replace(parts, others=(test,))
        for results in run_all(work, sets, parts=parts, scheduler=scheduler, blas=True, progress=report):
            found += results
    return ProbeResults(tuple(found))


@contextmanager
def _alone() -> Iterator[None]:
    """One set of neurons at a time: a core is left to whoever reads the next tile, or both wait for each other."""
    with threadpool_limits(max(1, usable_cpus() - 1), user_api="blas"):
        yield


def _task(source: LakeSource, settings: ProbeSettings, test: LakeSource | None) -> Task:
    if test is not None:
        check_same_model(source, test)
    return prepare(source, settings.task, test)


def check_same_model(source: LakeSource, other: LakeSource) -> None:
    """Refuse a lake whose neurons are not those of another.

    Raises
    ------
    InputError
        When site, layers, neurons or the model's weights differ.
    """
    here, there = ((lake.site, lake.neurons, tuple(lake.layers)) for lake in (source, other))
    if here != there:
        raise InputError(
            f"the lake to test on has {len(other.layers)} layers of {other.neurons} neurons at {other.site}, the other one "
            f"{len(source.layers)} of {source.neurons} at {source.site}: a probe is tested on the neurons that it learned"
        )
    if source.fingerprint == other.fingerprint:
        raise InputError(
            "the lake to test on holds the same tokens as the one to learn from: leave it out, and documents are held out"
        )
    if isinstance(source, Lake) and isinstance(other, Lake):
        mine, theirs = (lake.spec.model.get("sha256") for lake in (source, other))
        if mine != theirs:
            raise InputError(
                f"{other.path} was extracted from another model ({other.spec.model.get('name')}, {str(theirs)[:12]}…) than "
                f"{source.path} ({source.spec.model.get('name')}, {str(mine)[:12]}…)"
            )


def _probe_set(
    source: LakeSource,
    task: Task,
    settings: ProbeSettings,
    scheduler: Any,
    *,
    layers: Sequence[int] | None,
    ks: Sequence[int] | None,
) -> list[ProbeResult]:
    """Probe one set of neurons, and if `ks` are given so many of them each."""
    pool = _pool(source, task, settings, scheduler, layers, most=max(ks or (0,)))
    if settings.classifier == "gaussian" and ks is None and pool.size > MOST_FEATURES:
        raise InputError(
            f"a Gaussian probe of {pool.size} neurons has {pool.size * (pool.size + 1) // 2} covariances per tag: give k, "
            "how many are chosen, or fewer neurons"
        )
    if ks is not None and max(ks) > pool.size:
        raise InputError(f"k={max(ks)} neurons cannot be chosen from {pool.size}: choose fewer")
    columns = beside_random(
        source,
        pool,
        draws=settings.random_draws,
        share=settings.random_share,
        layer_matched=ks is None,
        size=max(ks or (0,)),
        seed=settings.seed,
    )
    how_fitted = SampledFitting if settings.classifier in SAMPLED else Fitting
    fitting: Any = how_fitted(source, task, columns.features, settings.fit)
    constant = fitting.constant(columns.chosen)
    sets = [(columns.chosen, columns.draws)] if ks is None else _chosen_sets(fitting, columns, ks)
    problems, owners = [], []
    for place, (chosen, draws) in enumerate(sets):
        own = None if chosen is None else np.sort(chosen)
        for labelling, kind in enumerate(task.kinds):
            problems.append(Problem(name=kind, labelling=labelling, columns=own))
            owners.append(place)
        for draw in draws:
            problems.append(Problem(name="random_neurons", columns=np.sort(draw)))
            owners.append(place)
    classifiers, how = fitting.fit(problems)
    predicted = fitting.predict(classifiers)
    whole = settings.top_k is None and settings.neurons is None and ks is None and columns.chosen is None
    results = []
    for place, (chosen, draws) in enumerate(sets):
        mine = [at for at, owner in enumerate(owners) if owner == place]
        results.append(
            score(
                source,
                task,
                Predictions(
                    kinds=tuple(problems[at].name for at in mine),
                    labellings=tuple(problems[at].labelling for at in mine),
                    predicted=tuple(predicted[at] for at in mine),
                ),
                settings,
                layers=pool.layers,
                neurons=None if whole else names_of(columns.features, chosen),
                features=columns.features.size if chosen is None else len(chosen),
                random_features=len(draws[0]) if draws else 0,
                constant=constant,
                fitted={
                    **settings.fit.as_dict(),
                    **how,
                    **_sparsity(settings, classifiers[mine[0]]),
                    "k": None if ks is None else list(ks),
                    "chosen_from": pool.size,
                },
            )
        )
    return results


def _sparsity(settings: ProbeSettings, classifier: LinearClassifier) -> dict[str, int]:
    return {"n_nonzero": nonzero_features(classifier)} if settings.classifier == ELASTIC_NET else {}


def _pool(
    source: LakeSource,
    task: Task,
    settings: ProbeSettings,
    scheduler: Any,
    layers: Sequence[int] | None,
    *,
    most: int,
) -> FeatureSet:
    """Return the neurons that are used, or that k are chosen from; ranked on training tokens only."""
    if settings.neurons is not None:
        return chosen_neurons(source, settings.neurons)
    whole = whole_layers(source, layers)
    top = settings.top_k
    if top is None and most:
        if settings.classifier == "gaussian" and whole.size > MOST_FEATURES:
            top = max(1, MOST_FEATURES // len(task.train.tags))
        elif whole.size > DENSE:
            # thrice as many as are chosen, since tags share their best neurons
            top = min(max(SCREEN, -(-3 * most // len(task.train.tags))), DENSE // len(task.train.tags))
    if top is None:
        return whole
    statistics = statistics_of_labels(
        source,
        [task.train],
        layers=whole.layers,
        also=get_ranker(settings.method).also,
        scheduler=scheduler,
    )[0]
    statistics = refine(source, statistics, settings.method, top=top, labels=task.train, scheduler=scheduler)
    return top_features(source, statistics, settings.method, top)


def _chosen_sets(
    fitting: Any, columns: Columns, ks: Sequence[int]
) -> list[tuple[NDArray[np.int64], tuple[NDArray[np.int64], ...]]]:
    """Columns of every number of chosen neurons, ascending, and of as many random ones."""
    order = fitting.choose(max(ks), columns.chosen)
    # fewer where the others are constant or repeat those chosen
    sizes = sorted({min(k, len(order)) for k in ks})
    return [(order[:size], tuple(draw[:size] for draw in columns.draws)) for size in sizes]
