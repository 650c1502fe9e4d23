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
    Earlier,
    Pass,
    create_counts,
    piece_statistics,
    pieces,
)
from neuronlake.analysis.derived import QUANTILES, requested
from neuronlake.analysis.execute import Progress, run_all
from neuronlake.analysis.gathered import FOLD_FIELDS, Gathered, gather_columns
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
from neuronlake.analysis.moments import merge_folds, select_groups
from neuronlake.analysis.source import DEFAULT_SITE, LakeSource, choose_layers, versions
from neuronlake.store.errors import InputError, StorageError
from neuronlake.store.kept import discard, publish, staging
from neuronlake.store.lake import Lake

MAX_BYTES = 16 << 30  # 16 GiB of results: 150 tags of an 8B-parameter model
_DIMS = ("tag", "layer", "neuron")
_VARIABLES: dict[str, tuple[str, str]] = {
    "mean": ("mean activation", "activation"),
    "variance": ("unbiased variance of the activation (ddof = 1)", "activation²"),
    "third_moment": ("mean of (x − mean)³", "activation³"),
    "fourth_moment": ("mean of (x − mean)⁴", "activation⁴"),
    "mean_absolute": ("mean magnitude of the activation", "activation"),
    "fraction_active": ("share of tokens with an activation above zero", "1"),
    "minimum": ("smallest activation", "activation"),
    "maximum": ("largest activation", "activation"),
    "auroc": ("area under the ROC curve, tag against all other labelled tokens", "1"),
    "auroc_error": ("upper bound of the error of auroc", "1"),
    "average_precision": ("average precision of the activation as a detector of the tag", "1"),
    "average_precision_error": ("upper bound of the error of average_precision", "1"),
    "average_precision_low": ("average precision of the negated activation", "1"),
    "average_precision_low_error": ("upper bound of the error of average_precision_low", "1"),
    "hits": ("tokens above hit_threshold", "tokens"),
    "hit_threshold": ("bin edge nearest to the 95th percentile of all labelled tokens", "activation"),
    "mutual_information": ("between having the tag and the bin of the activation", "bit"),
    "bins": ("occupied bins of the histogram", "1"),
    **{
        f"{name}{ending}": (f"{before}value that {share:.0%} of the tag's tokens do not exceed", "activation")
        for name, share in QUANTILES.items()
        for ending, before in (("", ""), ("_error", "upper bound of the error of the "))
    },
}
_BASIC = ("mean", "variance", "fraction_active")
_PER_FOLD = ("mean", "variance", "mean_absolute", "fraction_active")


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
    site: str = DEFAULT_SITE,
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
    site
        Site of the activations.
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
    if folds < 1:
        raise InputError(f"folds must be at least 1, got {folds}")
    groups = requested(also)
    if basic and groups:
        raise InputError(f"{', '.join(groups)} come from histograms, which basic statistics do without")
    if only_folds is not None:
        groups = ()
    request = LabelRequest(by=by, where=where, subword=subword, shift=shift)
    chosen = choose_layers(source, layers)
    lake = source if keep and documents is None and isinstance(source, Lake) else None
    key = StatisticsKey(lake=source.fingerprint, site=site, labels=request.as_dict(), folds=folds, basic=basic)
    checksums = {} if lake is None else block_checksums(lake)

    def answer(found: KeptStatistics | None) -> Gathered:
        if found is not None and found.blocks == tuple(source.blocks):
            gathered = found.gathered(chosen, source.layers, by_fold=only_folds is not None)
            _check_histograms(groups, gathered.tags)
            return with_requested(found, gathered, groups, source.layers, scheduler=scheduler, progress=progress)
        if found is not None and earlier is not None and found.name != earlier.base:
            found = None  # kept in the meantime: it may cover the same blocks, with other bins
        labels = token_labels(source, by, where=where, subword=subword, shift=shift, keep_documents=documents, min_tokens=1)
        run = _Run(
            source, labels, site=site, basic=basic, also=groups, folds=folds, scheduler=scheduler, progress=progress,
            earlier=tuple(part for part in (found, earlier) if part is not None),
        )  # fmt: skip
        if lake is None or chosen != tuple(source.layers):
            return run.gather(chosen, None)
        return _kept(lake, run, key, checksums)

    found = None if lake is None else find_kept(lake, key, checksums)
    try:
        gathered = answer(found)
    except KeptDamageError:
        if found is not None:
            with suppress(StorageError):  # read-only
                discard(found.root, found.name)
        gathered = answer(None)
    return _dataset(source, gathered, site, only_folds, basic=basic)


def statistics_of_labels(
    source: LakeSource,
    labels: LabelVector,
    *,
    layers: Sequence[int] | None = None,
    basic: bool = False,
    also: Sequence[str] = (),
    site: str = DEFAULT_SITE,
    scheduler: Any = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Return what `compute_statistics` does, for rows that are labelled already. Nothing is kept."""
    chosen = choose_layers(source, layers)
    run = _Run(
        source, labels, site=site, basic=basic, also=requested(also), folds=1, scheduler=scheduler, progress=progress,
        earlier=(),
    )  # fmt: skip
    return _dataset(source, run.gather(chosen, None), site, None, basic=basic)


class _Run:
    """One pass over the lake: what it reads, and what comes of it."""

    def __init__(
        self,
        source: LakeSource,
        labels: LabelVector,
        *,
        site: str,
        basic: bool,
        also: tuple[str, ...],
        folds: int,
        earlier: Sequence[Earlier],
        scheduler: Any,
        progress: Progress | None,
    ):
        compared = labels.without_rare(MIN_TOKENS)
        _check_histograms(also, labels.tags)
        covered = {block for part in earlier for block in part.blocks}
        self._job = Pass(
            source=source,
            site=site,
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
        self._scheduler, self._progress = scheduler, progress

    def gather(self, layers: tuple[int, ...], folder: Path | None) -> Gathered:
        """Compute all pieces; the histograms go to `folder`, if one is given."""
        job = replace(self._job, folder=folder)
        source = job.source
        _check_size(len(job.tags), job.folds, len(layers), source.neurons)
        create_counts(job, len(layers))
        found = run_all(
            partial(piece_statistics, job),
            pieces(source, layers),
            scheduler=self._scheduler,
            progress=self._progress,
        )
        labelled = self._labels.codes >= 0
        group = self._labels.codes[labelled] * job.folds + fold_of(self._labels.documents[labelled], job.folds)
        count = np.bincount(group, minlength=len(job.tags) * job.folds).reshape(len(job.tags), job.folds)
        return gather_columns(
            found,
            layers=layers,
            neurons=source.neurons,
            tags=job.tags,
            count=count.astype(np.int64),
            attributes={
                "by": self._labels.by,
                "where": self._labels.where,
                "subword": self._labels.subword,
                "shift": self._labels.shift,
                "rows": self._compared.tokens,
                "documents": int(np.unique(self._compared.documents[self._compared.codes >= 0]).size),
                "blocks": [int(block) for block in source.blocks],
                "versions": versions(),
            },
            basic=job.basic,
        )


def _kept(lake: Lake, run: _Run, key: StatisticsKey, checksums: dict[int, str]) -> Gathered:
    """Compute and keep; where the lake cannot be written to, say so in the result and do without."""
    name = result_name(key, checksums)
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(staging(lake.path, name))
        except StorageError as error:
            gathered = run.gather(lake.layers, None)
            gathered.attributes["kept"] = f"no: {error}"
            return gathered
        gathered = run.gather(lake.layers, folder)
        gathered.attributes["kept"] = name
        write_gathered(folder, gathered, basic=key.basic)
        publish(folder, name, result_record(key, checksums, gathered))
        discard_others(lake, key, name)
    return gathered


def _check_histograms(groups: Sequence[str], tags: Sequence[str]) -> None:
    if groups and len(tags) > MAX_HISTOGRAM_TAGS:
        raise InputError(
            f"{', '.join(groups)} come from histograms, which are made for at most {MAX_HISTOGRAM_TAGS} tags, "
            f"got a label of {len(tags)}"
        )


def _check_size(tags: int, folds: int, layers: int, neurons: int) -> None:
    needed = tags * layers * neurons * 8 * (len(_VARIABLES) + len(FOLD_FIELDS) * folds)
    if needed > MAX_BYTES:
        raise InputError(
            f"statistics of {tags} tags × {layers} layers × {neurons} neurons take {needed / 2**30:.0f} GiB, at most "
            f"{MAX_BYTES / 2**30:.0f} GiB are held: choose a label with fewer values, fewer layers or fewer folds"
        )


def _dataset(source: LakeSource, found: Gathered, site: str, only_folds: Sequence[int] | None, *, basic: bool) -> xr.Dataset:
    """Turn what was gathered into the public form, without the tags that have too few tokens."""
    folds = found.count.shape[1]
    moments, derived, tokens = found.pooled, found.derived, found.count.sum(axis=1)
    if only_folds is not None and found.by_fold is not None:
        chosen = sorted(set(only_folds))
        if not chosen or not 0 <= chosen[0] <= chosen[-1] < folds:
            raise InputError(f"only_folds must name some of the folds 0 to {folds - 1}, got {list(only_folds)}")
        groups = (np.arange(len(found.tags))[:, None] * folds + chosen).ravel()
        moments, derived = merge_folds(select_groups(found.by_fold, groups), len(chosen)), {}
        tokens = found.count[:, chosen].sum(axis=1)
    enough = np.flatnonzero(tokens >= MIN_TOKENS)
    if not len(enough):
        raise InputError(f"no value of {found.attributes['by']!r} has {MIN_TOKENS} tokens in the folds {only_folds}")
    n = tokens[enough][:, None, None]
    data = {
        "mean": moments.mean[enough],
        "variance": moments.m2[enough] / (n - 1),
        "third_moment": moments.m3[enough] / n,
        "fourth_moment": moments.m4[enough] / n,
        "mean_absolute": moments.absolute[enough],
        "fraction_active": moments.active[enough] / n,
        "minimum": moments.minimum[enough],
        "maximum": moments.maximum[enough],
        **derived,
    }
    if basic or only_folds is not None:
        data = {name: values for name, values in data.items() if name in (_BASIC if basic else _PER_FOLD)}
    dataset = xr.Dataset(
        {"count": ("tag", tokens[enough], {"long_name": "labelled tokens", "units": "tokens"})},
        coords={
            "tag": np.asarray(found.tags, dtype=str)[enough],
            "layer": np.asarray(found.layers, dtype=np.int64),
            "neuron": np.arange(source.neurons, dtype=np.int64),
        },
        attrs={
            "lake": source.fingerprint,
            "site": site,
            "encoding": source.encoding,
            "dropped": {tag: int(n) for tag, n in zip(found.tags, tokens, strict=True) if n < MIN_TOKENS},
            "folds": folds,
            "only_folds": None if only_folds is None else [int(fold) for fold in chosen],
            **found.attributes,
        },
    )
    for name, values in data.items():
        long_name, units = _VARIABLES[name]
        dims = _DIMS if values.ndim == len(_DIMS) else _DIMS[1:]
        dataset[name] = (dims, values, {"long_name": long_name, "units": units})
    return dataset
