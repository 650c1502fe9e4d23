"""Statistics of every neuron per tag, out of core: one pass, kept in the lake, added to when blocks are added."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xarray as xr

from neuronlake.analysis.column_pass import (
    MAX_HISTOGRAM_TAGS,
    Column,
    Earlier,
    Pass,
    column_parts,
    create_counts,
    piece_statistics,
    pieces,
    write_counts,
)
from neuronlake.analysis.derived import requested
from neuronlake.analysis.execute import LOCAL_THREADS, Progress, run_each
from neuronlake.analysis.gathered import Arrays, Gathered, Gathering, arrays_of
from neuronlake.analysis.groups import FOLDS, fold_of, group_blocks
from neuronlake.analysis.kept_statistics import (
    KeptDamageError,
    KeptStatistics,
    StatisticsKey,
    block_checksums,
    discard_others,
    find_kept,
    result_name,
    result_record,
    with_requested,
    write_gathered,
)
from neuronlake.analysis.labels import MIN_TOKENS, LabelRequest, LabelVector, label_blocks, token_labels
from neuronlake.analysis.source import LakeSource, choose_layers, versions
from neuronlake.analysis.statistics_dataset import as_dataset, check_size
from neuronlake.store.errors import InputError, StorageError
from neuronlake.store.kept import discard, publish, staging
from neuronlake.store.lake import Lake


class EarlierBlocks(Earlier, Protocol):
    """Partials gathered elsewhere."""

    @property
    def base(self) -> str | None:
        """Name of the kept result whose bins they share and whose blocks they leave out; None if there was none."""


def compute_statistics(
    source: LakeSource,
    by: str = "upos",
    *,
    where: str | None = None,
    subword: str = "last",
    shift: int = 0,
    documents: Iterable[int] | None = None,
    layers: Sequence[int] | None = None,
    basic: bool = False,
    also: Sequence[str] = (),
    folds: int = FOLDS,
    only_folds: Sequence[int] | None = None,
    keep: bool = True,
    earlier: EarlierBlocks | None = None,
    scheduler: Any = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Statistics of every neuron for every tag of a label, from the stored values.

    One pass over the activations answers every ranker. What it finds is kept in the lake (folder ``statistics``) and asked
    again costs no activation; blocks that were committed since are read alone and added.

    Parameters
    ----------
    source
        The lake.
    by
        Label column, several joined by ``×`` (``upos×Number``), or an SQL expression; see `token_labels`.
    where
        SQL predicate: only tokens for which it is true.
    subword
        Tokens of a word that count: ``last``, ``first`` or ``all``.
    shift
        Use the label of the word so many words later in the sentence.
    documents
        Only tokens of these documents. Not kept.
    layers
        Only these layers; None means all that are stored. Fewer than all are not kept.
    basic
        Only count, mean, variance and share active: half the time.
    also
        What takes a while to compute from histograms, on request: ``average_precision``, ``mutual_information``,
        ``quantiles``. Where statistics are kept, these come from kept histograms: asking later costs no activation either.
    folds
        Documents are dealt to so many folds, and moments kept per fold.
    only_folds
        Statistics of the documents in these folds alone, from the same pass; without what needs histograms.
    keep
        Keep the result in the lake and use what is kept there.
    earlier
        Partials of some blocks gathered elsewhere; those blocks are not read.
    scheduler
        A Dask scheduler, or the address of a cluster; None means threads, one per core.
    progress
        Called with (pieces done, pieces in all).

    Returns
    -------
    xarray.Dataset
        Dimensions (tag, layer, neuron); every variable has units. ``count`` (tag) int64; from moments, in float64:
        ``mean``, ``variance`` (ddof = 1), ``third_moment``, ``fourth_moment`` (central), ``mean_absolute``,
        ``fraction_active``, ``minimum``, ``maximum``; from histograms: ``auroc`` with its bound ``auroc_error``, ``hits``,
        ``hit_threshold``, ``bins``; on request ``average_precision`` and ``average_precision_low`` with bounds ``…_error``,
        ``mutual_information``, ``quantile_05`` … ``median`` … ``quantile_95`` with bounds ``…_error``.
        Attributes say what was computed, of which lake, and which tags were dropped; they are JSON-compatible.

    Raises
    ------
    InputError
        When the label, a policy, a fold, a layer or a name in `also` is unknown; when no tag has two tokens; when the
        result would not fit in memory.
    DamageError
        When a chunk of the lake is damaged.
    """
    request = LabelRequest(by=by, where=where, subword=subword, shift=shift)
    return _answers(
        source, [request], documents=documents, layers=layers, basic=basic, also=also, folds=folds, only_folds=only_folds,
        keep=keep, earlier=earlier, scheduler=scheduler, progress=progress,
    )[0]  # fmt: skip


def compute_several(
    source: LakeSource,
    requests: Sequence[LabelRequest | str],
    *,
    layers: Sequence[int] | None = None,
    basic: bool = False,
    also: Sequence[str] = (),
    folds: int = FOLDS,
    keep: bool = True,
    scheduler: Any = None,
    progress: Progress | None = None,
) -> list[xr.Dataset]:
    """Statistics of several label sets from one pass over the activations.

    Parameters
    ----------
    requests
        Label sets: each a `LabelRequest`, or what `compute_statistics` takes as `by`.
    layers, basic, also, folds, keep, scheduler, progress
        As for `compute_statistics`.

    Returns
    -------
    list of xarray.Dataset
        Of `compute_statistics`, in the order of the requests.

    Raises
    ------
    InputError, DamageError
        As `compute_statistics` does; when there is no request.
    """
    if not requests:
        raise InputError("no label set given: name at least one, for example 'upos'")
    asked = [LabelRequest(by=request) if isinstance(request, str) else request for request in requests]
    return _answers(
        source, asked, documents=None, layers=layers, basic=basic, also=also, folds=folds, only_folds=None, keep=keep,
        earlier=None, scheduler=scheduler, progress=progress,
    )  # fmt: skip


def kept_statistics(lake: Lake, by: str) -> xr.Dataset | None:
    """Return what `compute_statistics` gives for a label by default, if it is kept of every committed block, else None.

    Nothing is computed and nothing written.
    """
    found = _kept_whole(lake, by)
    if found is None:
        return None
    try:
        return as_dataset(lake, found.gathered(tuple(lake.layers), lake.layers, by_fold=False), None, basic=False)
    except KeptDamageError:
        return None


def are_kept(lake: Lake, by: str) -> bool:
    """Whether `kept_statistics` would find them; their values are not looked at."""
    return _kept_whole(lake, by) is not None


def _kept_whole(lake: Lake, by: str) -> KeptStatistics | None:
    key = StatisticsKey.of(lake, LabelRequest(by=by), folds=FOLDS, basic=False)
    found = find_kept(lake, key, block_checksums(lake), tidy=False)
    return found if found is not None and found.blocks == tuple(lake.blocks) else None


def statistics_of_labels(
    source: LakeSource,
    labels: Sequence[LabelVector],
    *,
    layers: Sequence[int] | None = None,
    basic: bool = False,
    also: Sequence[str] = (),
    scheduler: Any = None,
    progress: Progress | None = None,
) -> list[xr.Dataset]:
    """Return what `compute_several` does, for rows that are labelled already. Nothing is kept."""
    chosen = choose_layers(source, layers)
    runs = [_Run(source, each, basic=basic, also=requested(also), folds=1, earlier=()) for each in labels]
    found = _gather(runs, chosen, [None] * len(runs), scheduler=scheduler, progress=progress)
    return [as_dataset(source, gathered, None, basic=basic) for gathered in found]


def _answers(
    source: LakeSource,
    requests: Sequence[LabelRequest],
    *,
    documents: Iterable[int] | None,
    layers: Sequence[int] | None,
    basic: bool,
    also: Sequence[str],
    folds: int,
    only_folds: Sequence[int] | None,
    keep: bool,
    earlier: EarlierBlocks | None,
    scheduler: Any,
    progress: Progress | None,
) -> list[xr.Dataset]:
    """Load what is kept; compute the rest in one pass, and keep it."""
    if folds < 1:
        raise InputError(f"folds must be at least 1, got {folds}")
    groups = requested(also)
    if basic and groups:
        raise InputError(f"{', '.join(groups)} come from histograms, which basic statistics do without")
    if only_folds is not None:
        groups = ()
    documents = None if documents is None else list(documents)
    chosen = choose_layers(source, layers)
    lake = source if keep and documents is None and isinstance(source, Lake) else None
    checksums = {} if lake is None else block_checksums(lake)
    keys = [StatisticsKey.of(source, request, folds=folds, basic=basic) for request in requests]
    kept = [None if lake is None else find_kept(lake, key, checksums) for key in keys]
    answers: list[Gathered | None] = [None] * len(requests)
    for place, found in enumerate(kept):
        if found is not None and found.blocks == tuple(source.blocks):
            try:
                gathered = found.gathered(chosen, source.layers, by_fold=only_folds is not None)
                _check_histograms(groups, gathered.tags)
                answers[place] = with_requested(found, gathered, groups, source, scheduler=scheduler, progress=progress)
            except KeptDamageError:
                _drop(found)
                kept[place] = None

    def compute(places: Sequence[int]) -> None:
        runs = []
        for place in places:
            request, found = requests[place], kept[place]
            if found is not None and earlier is not None and found.name != earlier.base:
                found = None  # kept in the meantime: it may cover the same blocks, with other bins
            labels = token_labels(source, **request.as_dict(), keep_documents=documents, min_tokens=1)
            known = tuple(part for part in (found, earlier) if part is not None)
            runs.append(_Run(source, labels, basic=basic, also=groups, folds=folds, earlier=known))
        if lake is None or chosen != tuple(source.layers):
            results = _gather(runs, chosen, [None] * len(runs), scheduler=scheduler, progress=progress)
        else:
            asked = [keys[place] for place in places]
            results = _gather_and_keep(lake, runs, asked, checksums, scheduler=scheduler, progress=progress)
        for place, gathered in zip(places, results, strict=True):
            answers[place] = gathered

    if missing := [place for place, answer in enumerate(answers) if answer is None]:
        try:
            compute(missing)
        except KeptDamageError:  # in what was to be added to
            for place in missing:
                _drop(kept[place])
                kept[place] = None
            compute(missing)
    return [as_dataset(source, answer, only_folds, basic=basic) for answer in answers if answer is not None]


def _drop(found: KeptStatistics | None) -> None:
    """Remove a damaged result, where that is possible."""
    if found is not None:
        with suppress(StorageError):
            discard(found.root, found.name)


class _Run:
    """What one label set takes of a pass over the lake, and what comes of it."""

    def __init__(
        self,
        source: LakeSource,
        labels: LabelVector,
        *,
        basic: bool,
        also: tuple[str, ...],
        folds: int,
        earlier: Sequence[Earlier],
    ):
        compared = labels.without_rare(MIN_TOKENS)
        _check_histograms(also, labels.tags)
        covered = {block for part in earlier for block in part.blocks}
        self.job = Pass(
            source=source,
            tags=labels.tags,
            kept=np.array([labels.tags.index(tag) for tag in compared.tags]),
            folds=folds,
            groups=group_blocks(labels, folds=folds, blocks=set(source.blocks) - covered),
            basic=basic,
            also=also,
            earlier=earlier,
            labels=label_blocks(compared),
            folder=None,
        )
        self._labels, self._compared = labels, compared

    def gathered(self, gathering: Gathering) -> Gathered:
        """Return what its columns make together."""
        job, labels, compared = self.job, self._labels, self._compared
        labelled = labels.codes >= 0
        group = labels.codes[labelled] * job.folds + fold_of(labels.documents[labelled], job.folds)
        count = np.bincount(group, minlength=len(job.tags) * job.folds).reshape(len(job.tags), job.folds)
        return gathering.gathered(
            tags=job.tags,
            count=count.astype(np.int64),
            attributes={
                "by": labels.by,
                "where": labels.where,
                "subword": labels.subword,
                "shift": labels.shift,
                "rows": compared.tokens,
                "documents": int(np.unique(compared.documents[compared.codes >= 0]).size),
                "blocks": [int(block) for block in job.source.blocks],
                "versions": versions(),
                **({"added": labels.added} if labels.added else {}),
            },
        )


def _gather(
    runs: Sequence[_Run],
    layers: tuple[int, ...],
    folders: Sequence[Path | None],
    *,
    scheduler: Any,
    progress: Progress | None,
) -> list[Gathered]:
    """One pass for all; the histograms of each go to its folder, if it has one."""
    jobs = [replace(run.job, folder=folder) for run, folder in zip(runs, folders, strict=True)]
    source = jobs[0].source
    check_size([(len(job.tags), job.folds) for job in jobs], len(layers), source.neurons)
    for job in jobs:
        create_counts(job, len(layers))
    gatherings = [Gathering(layers=layers, neurons=source.neurons, basic=job.basic) for job in jobs]
    if scheduler in LOCAL_THREADS:  # every piece is put where it belongs by the thread that made it
        work: Any = partial(piece_statistics, jobs, take=partial(_put, gatherings))
    else:
        work = partial(_statistics_of_piece, jobs)
    wanted = pieces(source, layers)
    parts = column_parts(source, [(piece["layer"], piece["first"]) for piece in wanted])
    for place, found in run_each(work, wanted, parts=parts, scheduler=scheduler, progress=progress):
        layer, first = wanted[place]["layer"], wanted[place]["first"]
        for job, gathering, (arrays, counts) in zip(jobs, gatherings, found or (), strict=found is not None):
            gathering.put_arrays(layer, first, arrays)
            write_counts(job, layer, first, counts)
    return [run.gathered(gathering) for run, gathering in zip(runs, gatherings, strict=True)]


def _statistics_of_piece(jobs: Sequence[Pass], *, layer: int, first: int, stop: int) -> list[tuple[Arrays, bytes | None]]:
    """Return what this process needs of a piece that another computed."""
    columns = piece_statistics(jobs, layer=layer, first=first, stop=stop) or []
    return [(arrays_of(column, job.basic), column.counts) for job, column in zip(jobs, columns, strict=True)]


def _put(gatherings: Sequence[Gathering], columns: Sequence[Column]) -> None:
    for gathering, column in zip(gatherings, columns, strict=True):
        gathering.put(column)


def _gather_and_keep(
    lake: Lake,
    runs: Sequence[_Run],
    keys: Sequence[StatisticsKey],
    checksums: dict[int, str],
    *,
    scheduler: Any,
    progress: Progress | None,
) -> list[Gathered]:
    """Compute and keep; where the lake cannot be written to, say so in the results and do without."""
    names = [result_name(key, checksums) for key in keys]
    found: list[Gathered] | None = None
    try:
        with ExitStack() as stack:
            folders = [stack.enter_context(staging(lake.path, name)) for name in names]
            found = _gather(runs, lake.layers, folders, scheduler=scheduler, progress=progress)
            for folder, name, key, gathered in zip(folders, names, keys, found, strict=True):
                gathered.attributes["kept"] = name
                write_gathered(folder, gathered, basic=key.basic)
                publish(folder, name, result_record(key, checksums, gathered))
                discard_others(lake, key, name)
    except OSError as error:  # read-only, or full
        if found is None:
            found = _gather(runs, lake.layers, [None] * len(runs), scheduler=scheduler, progress=progress)
        for gathered in found:
            gathered.attributes["kept"] = f"no: {error.strerror or error}"
    return found


def _check_histograms(groups: Sequence[str], tags: Sequence[str]) -> None:
    if groups and len(tags) > MAX_HISTOGRAM_TAGS:
        raise InputError(
            f"{', '.join(groups)} come from histograms, which are made for at most {MAX_HISTOGRAM_TAGS} tags, "
            f"got a label of {len(tags)}"
        )
