"""Statistics as what users see: an xarray Dataset with named dimensions and units."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from neuronlake.analysis.derived import QUANTILES
from neuronlake.analysis.gathered import FOLD_FIELDS, Gathered
from neuronlake.analysis.labels import MIN_TOKENS
from neuronlake.analysis.moments import merge_folds, select_groups
from neuronlake.analysis.source import LakeSource
from neuronlake.store.errors import InputError

MAX_BYTES = 16 << 30  # 16 GiB of results: 150 tags of an 8B-parameter model
_HELD = 18  # variables per tag × neuron, with what is computed on request
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


def check_size(labels: Sequence[tuple[int, int]], layers: int, neurons: int) -> None:
    """Refuse, with an InputError, results that would not fit in memory: (tags, folds) of every label set."""
    tags = sum(count for count, _ in labels)
    needed = sum(count * (_HELD + len(FOLD_FIELDS) * folds) for count, folds in labels) * layers * neurons * 8
    if needed > MAX_BYTES:
        raise InputError(
            f"statistics of {tags} tags × {layers} layers × {neurons} neurons take {needed / 2**30:.0f} GiB, at most "
            f"{MAX_BYTES / 2**30:.0f} GiB are held: choose a label with fewer values, fewer layers or fewer folds"
        )


def as_dataset(source: LakeSource, found: Gathered, only_folds: Sequence[int] | None, *, basic: bool) -> xr.Dataset:
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
            "site": source.site,
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
