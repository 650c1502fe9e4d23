"""Rankers: how strongly does a neuron tell a tag from all others? One registry of pure functions of the statistics.

Every ranker returns a Dataset (tag, layer, neuron) with ``score`` (larger is stronger, whatever the direction), ``sign``
(+1 where the tag's tokens are the higher ones, −1 where they are the lower ones), the statistic itself under the ranker's
name, and ``p`` and ``q`` where a test is defined. q is Benjamini–Hochberg over all neurons × tags of the dataset.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import special

from neuronlake.analysis.contrast import positive_variances, with_rest
from neuronlake.analysis.significance import benjamini_hochberg
from neuronlake.store.errors import InputError

_DIMS = ("tag", "layer", "neuron")


@dataclass(frozen=True, kw_only=True)
class Ranker:
    """One way of scoring neurons."""

    name: str
    description: str
    formula: str
    source: str
    """Where the formula comes from."""
    needs: tuple[str, ...]
    """Variables of the statistics that it reads."""
    function: Callable[[xr.Dataset], xr.Dataset]
    """Statistics → scores, see the module."""


def mean_difference(dataset: xr.Dataset) -> xr.Dataset:
    """Difference of means, μ_tag − μ_rest, in units of activation.

    Not comparable between neurons of different scale; a first look, and what steering moves along.
    """
    dataset = with_rest(dataset)
    values = _values(dataset)
    return _scores(dataset, "mean_difference", values.mean - values.mean_rest)


def cohen_d(dataset: xr.Dataset) -> xr.Dataset:
    """Cohen's d with the pooled deviation: (μ_tag − μ_rest)/√(((P−1)·s²_tag + (N−1)·s²_rest)/(P+N−2)).

    Cohen (1988), Statistical Power Analysis for the Behavioral Sciences, eq. 2.5.2. Two constant groups: see
    `contrast.positive_variances`; equal ones give 0.
    """
    dataset = with_rest(dataset)
    v = _values(dataset)
    pooled = ((v.count - 1) * v.variance + (v.count_rest - 1) * v.variance_rest) / (v.count + v.count_rest - 2)
    return _scores(dataset, "cohen_d", (v.mean - v.mean_rest) / np.sqrt(pooled))


def welch_t(dataset: xr.Dataset) -> xr.Dataset:
    """Welch's t, (μ_tag − μ_rest)/√(s²_tag/P + s²_rest/N), with two-sided p.

    Welch (1947), Biometrika 34, 28–35; degrees of freedom by Welch–Satterthwaite. Two constant groups: see
    `contrast.positive_variances`; equal ones give t = 0 and p = 1.
    """
    dataset = with_rest(dataset)
    v = _values(dataset)
    error, error_rest = v.variance / v.count, v.variance_rest / v.count_rest
    t = (v.mean - v.mean_rest) / np.sqrt(error + error_rest)
    share = error / (error + error_rest)
    freedom = 1 / (share**2 / (v.count - 1) + (1 - share) ** 2 / (v.count_rest - 1))
    return _scores(dataset, "welch_t", t, p=2 * special.stdtr(freedom, -np.abs(t)))


def auroc(dataset: xr.Dataset) -> xr.Dataset:
    """AUROC of tag against rest; the score is max(a, 1 − a), so 0.5 is chance in either direction.

    p is two-sided, from the normal approximation of the Mann–Whitney statistic without correction for ties:
    z = (a − ½)·√(12·P·N/(P + N + 1)). Ties make the true variance smaller, so p errs on the safe side.
    Mann & Whitney (1947), Ann. Math. Stat. 18, 50–60.
    """
    if "auroc" not in dataset:
        raise InputError("these statistics were computed without AUROC: compute them again with auroc=True")
    dataset = with_rest(dataset)
    area = dataset["auroc"].transpose(*_DIMS).to_numpy()
    count, rest = (dataset[name].to_numpy()[:, None, None].astype(np.float64) for name in ("count", "count_rest"))
    z = (area - 0.5) * np.sqrt(12 * count * rest / (count + rest + 1))
    scores = _scores(dataset, "auroc", area, p=2 * special.ndtr(-np.abs(z)))
    return scores.assign(
        score=(_DIMS, np.maximum(area, 1 - area)), sign=(_DIMS, np.where(area < 0.5, -1, 1).astype(np.int8))
    )


_RANKERS = (
    Ranker(
        name="mean_difference",
        description="difference of mean activations; depends on the neuron's scale",
        formula="|μ_tag − μ_rest|",
        source="elementary",
        needs=("mean",),
        function=mean_difference,
    ),
    Ranker(
        name="cohen_d",
        description="difference of means in pooled standard deviations",
        formula="|μ_tag − μ_rest| / √(((P−1)·s²_tag + (N−1)·s²_rest)/(P+N−2))",
        source="Cohen 1988, Statistical Power Analysis for the Behavioral Sciences",
        needs=("mean", "variance"),
        function=cohen_d,
    ),
    Ranker(
        name="welch_t",
        description="Welch's t-test, unequal variances; grows with the number of tokens",
        formula="|μ_tag − μ_rest| / √(s²_tag/P + s²_rest/N)",
        source="Welch 1947, Biometrika 34, 28–35",
        needs=("mean", "variance"),
        function=welch_t,
    ),
    Ranker(
        name="auroc",
        description="how often a token of the tag exceeds one of another tag; independent of scale and outliers",
        formula="max(a, 1 − a), a = P(x_tag > x_rest) + ½·P(x_tag = x_rest)",
        source="Mann & Whitney 1947, Ann. Math. Stat. 18, 50–60; Hanley & McNeil 1982, Radiology 143, 29–36",
        needs=("auroc",),
        function=auroc,
    ),
)
RANKERS: Mapping[str, Ranker] = MappingProxyType({ranker.name: ranker for ranker in _RANKERS})


def get_ranker(name: str) -> Ranker:
    """Return the ranker of that name, or raise InputError listing the known ones."""
    try:
        return RANKERS[name]
    except KeyError:
        raise InputError(f"unknown method {name!r}: known are {', '.join(RANKERS)}") from None


@dataclass(frozen=True, kw_only=True)
class _Values:
    """Arrays (tags, layers, neurons), counts (tags, 1, 1) as float64; variances are positive where both were zero."""

    count: NDArray[np.float64]
    count_rest: NDArray[np.float64]
    mean: NDArray[np.float64]
    mean_rest: NDArray[np.float64]
    variance: NDArray[np.float64]
    variance_rest: NDArray[np.float64]


def _values(dataset: xr.Dataset) -> _Values:
    mean, mean_rest, variance, variance_rest = (
        dataset[name].transpose(*_DIMS).to_numpy() for name in ("mean", "mean_rest", "variance", "variance_rest")
    )
    variance, variance_rest = positive_variances(mean, variance, mean_rest, variance_rest)
    count, count_rest = (dataset[name].to_numpy()[:, None, None].astype(np.float64) for name in ("count", "count_rest"))
    return _Values(
        count=count,
        count_rest=count_rest,
        mean=mean,
        mean_rest=mean_rest,
        variance=variance,
        variance_rest=variance_rest,
    )


def _scores(
    dataset: xr.Dataset, name: str, statistic: NDArray[np.float64], p: NDArray[np.float64] | None = None
) -> xr.Dataset:
    """Dataset of a signed statistic: score = magnitude, sign = direction."""
    variables: dict[str, Any] = {
        "score": np.abs(statistic),
        "sign": np.where(statistic < 0, -1, 1).astype(np.int8),
        name: statistic,
    }
    if p is not None:
        variables |= {"p": p, "q": benjamini_hochberg(p)}
    return xr.Dataset(
        {key: (_DIMS, values) for key, values in variables.items()},
        coords={dim: dataset[dim] for dim in _DIMS},
    )
