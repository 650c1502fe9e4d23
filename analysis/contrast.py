"""Every tag against all other tags together: the statistics that rankers start from."""

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from neuronlake.analysis.moments import rest_moments
from neuronlake.store.errors import InputError

_DIMS = ("tag", "layer", "neuron")


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
    tags = dataset.sizes["tag"]
    if tags < 2:
        raise InputError(f"ranking compares tags, but {dataset.attrs.get('by', 'the label')!r} has {tags} of them")
    count = dataset["count"].to_numpy()[:, None]
    mean, variance = (dataset[name].transpose(*_DIMS).to_numpy().reshape(tags, -1) for name in ("mean", "variance"))
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
    resolution = np.where(scale > 0, (scale * np.finfo(np.float32).eps) ** 2, 1.0)
    return np.where(constant, resolution, variance), np.where(constant, resolution, variance_rest)
