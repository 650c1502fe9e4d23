"""Every tag against all other tags together: the statistics that rankers start from."""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from neuronlake.analysis.moments import rest_moments
from neuronlake.store.errors import InputError

_DIMS = ("tag", "layer", "neuron")
_RESOLUTION = float(np.finfo(np.float32).eps)  # 2⁻²³: of float32, the finest encoding


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A tag's moments and those of the rest: counts float64 (tags, 1, 1), others float64 (tags, layers, neurons)."""

    count: NDArray[np.float64]
    count_rest: NDArray[np.float64]
    mean: NDArray[np.float64]
    mean_rest: NDArray[np.float64]
    variance: NDArray[np.float64]
    """Unbiased; positive where both groups are constant, see `positive_variances`."""
    variance_rest: NDArray[np.float64]
    """As `variance`."""


def with_rest(dataset: xr.Dataset) -> xr.Dataset:
    """Add ``count_rest`` (tag), ``mean_rest`` and ``variance_rest`` (tag, layer, neuron) of all other tags together.

    A dataset that has them already is returned as it is.

    Raises
    ------
    InputError
        With fewer than two tags there is no rest.
    """
    if "mean_rest" in dataset:
        return dataset
    count = _count(dataset)
    mean, variance = (as_array(dataset, name).reshape(len(count), -1) for name in ("mean", "variance"))
    rest_count, rest_mean, rest_m2 = rest_moments(count, mean, variance * (count - 1))
    shape = tuple(dataset.sizes[dim] for dim in _DIMS)
    return dataset.assign(
        count_rest=("tag", rest_count[:, 0], {"long_name": "tokens of all other tags", "units": "tokens"}),
        mean_rest=(_DIMS, rest_mean.reshape(shape), {"long_name": "mean of all other tags", "units": "activation"}),
        variance_rest=(
            _DIMS,
            (rest_m2 / (rest_count - 1)).reshape(shape),
            {"long_name": "unbiased variance of all other tags", "units": "activation²"},
        ),
    )


def as_array(dataset: xr.Dataset, name: str) -> NDArray[np.float64]:
    """Variable as an array (tags, layers, neurons)."""
    values: NDArray[np.float64] = dataset[name].transpose(*_DIMS).to_numpy()
    return values


def counts(dataset: xr.Dataset) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Tokens of every tag and of all others, float64 (tags, 1, 1).

    Raises
    ------
    InputError
        With fewer than two tags there is no rest.
    """
    count = _count(dataset)[:, :, None]
    return count.astype(np.float64), (count.sum() - count).astype(np.float64)


def contrast(dataset: xr.Dataset) -> Contrast:
    """Moments of the activation, tag against rest."""
    dataset = with_rest(dataset)
    mean, mean_rest = as_array(dataset, "mean"), as_array(dataset, "mean_rest")
    variance, variance_rest = positive_variances(
        mean, as_array(dataset, "variance"), mean_rest, as_array(dataset, "variance_rest")
    )
    count, count_rest = counts(dataset)
    return Contrast(
        count=count,
        count_rest=count_rest,
        mean=mean,
        mean_rest=mean_rest,
        variance=variance,
        variance_rest=variance_rest,
    )


def absolute_contrast(dataset: xr.Dataset) -> Contrast:
    """Moments of the activation's magnitude |x|, tag against rest.

    Σ(|x| − mean|x|)² = Σx² − n·mean²|x| = (n − 1)·s² + n·(mean² − mean²|x|), where the squares of a large mean cancel: what
    is left below the square of the magnitude's resolution in float32 is taken for zero. A neuron of one sign keeps s².
    """
    count = _count(dataset)
    shape = tuple(dataset.sizes[dim] for dim in _DIMS)
    mean, variance, absolute = (
        as_array(dataset, name).reshape(len(count), -1) for name in ("mean", "variance", "mean_absolute")
    )
    signed = np.abs(mean)
    one_sign = absolute - signed <= 1e-14 * absolute
    absolute = np.where(one_sign, signed, absolute)
    m2 = (count - 1) * variance + count * ((signed - absolute) * (signed + absolute))
    m2 = np.where(m2 > count * (_RESOLUTION * absolute) ** 2, m2, np.where(one_sign, (count - 1) * variance, 0.0))
    rest_count, rest_mean, rest_m2 = rest_moments(count, absolute, m2)
    variance, variance_rest = positive_variances(absolute, m2 / (count - 1), rest_mean, rest_m2 / (rest_count - 1))
    own, rest = counts(dataset)
    return Contrast(
        count=own,
        count_rest=rest,
        mean=absolute.reshape(shape),
        mean_rest=rest_mean.reshape(shape),
        variance=variance.reshape(shape),
        variance_rest=variance_rest.reshape(shape),
    )


def positive_variances(
    mean: NDArray[np.float64],
    variance: NDArray[np.float64],
    mean_rest: NDArray[np.float64],
    variance_rest: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both variances, replaced where both are zero by the square of the values' resolution.

    Two constant groups would have an infinite standardised difference (or 0/0), which neither JSON nor a ranking can
    hold. Their true spread is unknown, not zero: it lies below what float32, the finest encoding, resolves. So the
    deviation becomes ε·max(|mean|, |mean_rest|) with ε = 2⁻²³, which is below any deviation that stored values can show,
    and leaves the difference finite, huge, and ordered. Where both groups are constant zero the variances become 1, which
    makes the difference 0.
    """
    constant = (variance == 0) & (variance_rest == 0)
    scale = np.maximum(np.abs(mean), np.abs(mean_rest))
    resolution = np.where(scale > 0, (scale * _RESOLUTION) ** 2, 1.0)
    return np.where(constant, resolution, variance), np.where(constant, resolution, variance_rest)


def _count(dataset: xr.Dataset) -> NDArray[np.int64]:
    """Tokens, int64 (tags, 1), if there are at least two tags."""
    count: NDArray[np.int64] = dataset["count"].to_numpy()[:, None]
    if len(count) < 2:
        raise InputError(f"ranking compares tags, but {dataset.attrs.get('by', 'the label')!r} has {len(count)} of them")
    return count
