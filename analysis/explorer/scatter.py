"""Every neuron as a point of two scores, in few marks: cells that are the darker the more neurons they hold."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE = 400
"""Width and height of the plane, in units of the drawing."""
MOST = 2000
_GRIDS = (100, 80, 64, 50, 40)  # cells a side; the last one has at most 1,600


def scatter(x: NDArray[np.float64], y: NDArray[np.float64], named: dict[str, int], *, same: bool = True) -> dict[str, Any]:
    """Place points, y upwards.

    Parameters
    ----------
    x, y : float64 (n,)
        Finite.
    named
        Name → point, of those that are marked each.
    same
        Both axes have the same range, so that the diagonal is where both are equal.

    Returns
    -------
    dict
        side, cell (width of one), cells (x, y, count, opacity; at most `MOST`), marks (name, x, y, and its values), ticks of
        the x and of the y axis (place, value), diagonal (whether it is drawn).
    """
    both = np.concatenate([x, y])
    ranges = [_range(both)] * 2 if same else [_range(x), _range(y)]
    place = [(values - low) / (high - low) for values, (low, high) in zip((x, y), ranges, strict=True)]
    for grid in _GRIDS:
        column, line = (np.minimum((part * grid).astype(np.int64), grid - 1) for part in place)
        cells, counts = np.unique(line * grid + column, return_counts=True)
        if len(cells) <= MOST:
            break
    step, darkest = SIDE / grid, np.log1p(counts.max(initial=1))
    return {
        "side": SIDE,
        "cell": step,
        "cells": [
            {
                "x": round(cell % grid * step, 2),
                "y": round(SIDE - (cell // grid + 1) * step, 2),
                "count": count,
                "opacity": round(0.25 + 0.75 * float(np.log1p(count) / darkest), 2),
            }
            for cell, count in zip(cells.tolist(), counts.tolist(), strict=True)
        ],
        "marks": [
            {
                "name": name,
                "x": round(float(place[0][at]) * SIDE, 2),
                "y": round((1 - float(place[1][at])) * SIDE, 2),
                "values": (float(x[at]), float(y[at])),
            }
            for name, at in named.items()
        ],
        "ticks": tuple(
            [{"place": share * SIDE, "value": low + share * (high - low)} for share in (0, 0.25, 0.5, 0.75, 1)]
            for low, high in ranges
        ),
        "diagonal": same,
    }


def _range(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
