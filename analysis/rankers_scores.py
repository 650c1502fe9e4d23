"""The form that every ranker returns its scores in."""

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from neuronlake.analysis.significance import benjamini_hochberg

_DIMS = ("tag", "layer", "neuron")


def scores(
    dataset: xr.Dataset,
    name: str,
    statistic: NDArray[np.float64],
    *,
    score: NDArray[np.float64] | None = None,
    direction: NDArray[Any] | None = None,
    p: NDArray[np.float64] | None = None,
) -> xr.Dataset:
    """Scores of one ranker.

    Parameters
    ----------
    dataset
        The statistics, for their coordinates.
    name
        Of the ranker and its statistic.
    statistic : (tags, layers, neurons)
    score
        Larger is stronger; the magnitude of the statistic unless given.
    direction
        Negative where the tag's tokens are the lower ones; the statistic unless given.
    p
        p-values, if there is a test.

    Returns
    -------
    xarray.Dataset
        ``score`` float64, ``sign`` int8 (+1 or −1), the statistic under its name, ``p`` and ``q``.
    """
    variables: dict[str, Any] = {
        "score": np.abs(statistic) if score is None else score,
        "sign": np.where((statistic if direction is None else direction) < 0, -1, 1).astype(np.int8),
        name: statistic,
    }
    if p is not None:
        variables |= {"p": p, "q": benjamini_hochberg(p)}
    return xr.Dataset(
        {key: (_DIMS, values) for key, values in variables.items()},
        coords={dim: dataset[dim] for dim in _DIMS},
    )
