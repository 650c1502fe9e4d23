"""What rankers need of a histogram, so that the histogram itself need not be loaded."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.histogram import ZERO_BIN, Binning
from neuronlake.analysis.histogram_statistics import (
    average_precision_of_histogram,
    mutual_information_of_histogram,
    quantiles_of_histogram,
    summary_of_histogram,
)
from neuronlake.store.errors import InputError

HIT_SHARE = 0.05
"""Tokens above the neuron's 95th percentile are hits."""
QUANTILES = {"quantile_05": 0.05, "quantile_25": 0.25, "median": 0.5, "quantile_75": 0.75, "quantile_95": 0.95}
"""Names and shares."""
ON_REQUEST: dict[str, tuple[str, ...]] = {
    "average_precision": (
        "average_precision",
        "average_precision_error",
        "average_precision_low",
        "average_precision_low_error",
    ),
    "mutual_information": ("mutual_information",),
    "quantiles": tuple(f"{name}{ending}" for name in QUANTILES for ending in ("", "_error")),
}
"""What takes longer to compute from histograms than the histograms themselves, and the variables of each."""
REQUESTED = {name: group for group, names in ON_REQUEST.items() for name in names}
"""Those variables, and the group of each."""


def requested(also: Iterable[str]) -> tuple[str, ...]:
    """Return the groups of `ON_REQUEST` that these names (of groups, or of their variables) ask for, in order.

    Raises
    ------
    InputError
        When one is unknown.
    """
    homes = {group: group for group in ON_REQUEST} | REQUESTED
    for name in (wanted := tuple(also)):
        if name not in homes:
            raise InputError(f"{name!r} is not computed on request: known are {', '.join(ON_REQUEST)}")
    return tuple(group for group in ON_REQUEST if group in {homes[name] for name in wanted})


def derived_statistics(histogram: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Variables of the statistics dataset that come from histograms: (tags, neurons) or (neurons,).

    But for ``hit_threshold``, which is the upper edge of the bins ``hit_bin``.

    Parameters
    ----------
    histogram : uint16 or uint32 (tags, neurons, 256), C order
        Of the tags that are compared with each other, at least two.
    """
    tokens = int(histogram[:, 0].sum(dtype=np.int64))  # of every neuron
    found = summary_of_histogram(histogram, zero_bin=ZERO_BIN, share=HIT_SHARE, tokens=tokens)
    return {
        "auroc": found.auroc,
        "auroc_error": found.auroc_error,
        "hits": found.hits,
        "hit_bin": found.first - 1,
        "bins": found.occupied,
    }


def requested_statistics(
    histogram: NDArray[np.uint32],
    binning: Binning,
    minimum: NDArray[np.float32],
    maximum: NDArray[np.float32],
    groups: Iterable[str],
) -> dict[str, NDArray[Any]]:
    """Variables of some groups of `ON_REQUEST`, (tags, neurons).

    Parameters
    ----------
    histogram, binning
        As for `derived_statistics`.
    minimum, maximum : float32 (tags, neurons)
        Of the tags' values: they bound the outermost bins.
    """
    found: dict[str, NDArray[Any]] = {}
    for group in groups:
        if group == "mutual_information":
            values: tuple[NDArray[Any], ...] = (mutual_information_of_histogram(histogram),)
        elif group == "quantiles":
            values = tuple(_quantiles(histogram, binning, minimum, maximum))
        else:
            high = average_precision_of_histogram(histogram, zero_bin=ZERO_BIN)
            low = average_precision_of_histogram(histogram, zero_bin=ZERO_BIN, low=True)
            values = (*high, *low)
        found |= dict(zip(ON_REQUEST[group], values, strict=True))
    return found


def _quantiles(
    histogram: NDArray[np.uint32], binning: Binning, minimum: NDArray[np.float32], maximum: NDArray[np.float32]
) -> Iterator[NDArray[np.float64]]:
    lowest, highest = minimum[..., None].astype(np.float64), maximum[..., None].astype(np.float64)
    lower, upper = (np.clip(ends, lowest, highest) for ends in binning.edges())
    estimates, lows, highs = quantiles_of_histogram(histogram, lower, upper, list(QUANTILES.values()))
    for estimate, low, high in zip(estimates, lows, highs, strict=True):
        yield estimate
        yield np.maximum(high - estimate, estimate - low)
