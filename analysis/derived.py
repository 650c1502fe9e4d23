"""What rankers need of a histogram, so that the histogram itself need not be loaded."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.histogram import ZERO_BIN, Binning
from neuronlake.analysis.histogram_statistics import (
    auroc_of_histogram,
    average_precision_of_histogram,
    hits_of_histogram,
    mutual_information_of_histogram,
    occupied_bins_of_histogram,
)

HIT_SHARE = 0.05
"""Tokens above the neuron's 95th percentile are hits."""


def derived_statistics(histogram: NDArray[np.uint32], binning: Binning) -> dict[str, NDArray[Any]]:
    """Variables of the statistics dataset that come from histograms: (tags, neurons) or (neurons,).

    Parameters
    ----------
    histogram : uint32 (tags, neurons, 256)
        Of the tags that are compared with each other, at least two.
    binning
        Its edges.
    """
    histogram = np.ascontiguousarray(histogram)
    area, area_error = auroc_of_histogram(histogram, zero_bin=ZERO_BIN)
    high, high_error = average_precision_of_histogram(histogram, zero_bin=ZERO_BIN)
    low, low_error = average_precision_of_histogram(histogram, zero_bin=ZERO_BIN, low=True)
    hits, first = hits_of_histogram(histogram, share=HIT_SHARE)
    _, upper = binning.edges()
    return {
        "auroc": area,
        "auroc_error": area_error,
        "average_precision": high,
        "average_precision_error": high_error,
        "average_precision_low": low,
        "average_precision_low_error": low_error,
        "hits": hits,
        "hit_threshold": upper[np.arange(len(first)), first - 1],
        "mutual_information": mutual_information_of_histogram(histogram),
        "bins": occupied_bins_of_histogram(histogram),
    }
