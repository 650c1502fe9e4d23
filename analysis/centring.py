"""Columns centred for products in float32 that neither large offsets nor large or tiny magnitudes spoil.

A segment of rows is centred about its own mean and scaled by a power of two, so that products and squares of float32 lie
near one; sums over a segment join those of others in float64 by the pairwise update of Chan, Golub & LeVeque 1979.
"""

from typing import Any

import numba
import numpy as np

SEGMENT_ROWS = 2048
"""Rows that are multiplied in float32 before their sums join the others in float64."""
_FLUSH = 64  # rows whose sums are float32

_njit = numba.njit(nogil=True, cache=True)


@_njit  # type: ignore[untyped-decorator]
def centre(values: Any, rows: Any, out: Any, mean: Any, square: Any, total: Any, scale: Any) -> None:
    """Centre ``values[rows]`` column by column about nearly their mean.

    Parameters
    ----------
    values : float32 (any, c), C order
    rows : int64 (n,), n > 0
    out : float32 (n, c)
        Gets (x − centre) · scale; all zero where a column is constant.
    mean, square : float64 (c,)
        Get the columns' means, and Σ(x − mean)².
    total : float64 (c,)
        Gets Σ out: what rounding the centre to float32 left over.
    scale : float64 (c,)
        Gets the powers of two.
    """
    n, width = rows.shape[0], out.shape[1]
    first = values[rows[0]]
    sums = np.zeros(width, dtype=np.float32)
    largest = np.zeros(width, dtype=np.float32)
    for i in range(n):
        row = values[rows[i]]
        for j in range(width):
            difference = row[j] - first[j]
            sums[j] += difference
            difference = abs(difference)
            largest[j] = difference if difference > largest[j] else largest[j]
    middle = np.empty(width, dtype=np.float32)
    factor = np.empty(width, dtype=np.float32)
    for j in range(width):
        middle[j] = np.float32(np.float64(first[j]) + np.float64(sums[j]) / n)
        exponent = 0.0
        if largest[j] > 0:
            exponent = -np.floor(np.log2(np.float64(largest[j])))
        exponent = min(max(exponent, -126.0), 126.0)
        factor[j] = np.float32(2.0**exponent)
        scale[j] = factor[j]
        total[j] = 0.0
        square[j] = 0.0
    some = np.zeros(width, dtype=np.float32)
    squares = np.zeros(width, dtype=np.float32)
    for start in range(0, n, _FLUSH):
        for i in range(start, min(n, start + _FLUSH)):
            row, line = values[rows[i]], out[i]
            for j in range(width):
                value = (row[j] - middle[j]) * factor[j]
                line[j] = value
                some[j] += value
                squares[j] += value * value
        for j in range(width):
            total[j] += some[j]
            square[j] += squares[j]
            some[j] = np.float32(0)
            squares[j] = np.float32(0)
    for j in range(width):
        left = total[j] / n
        mean[j] = np.float64(middle[j]) + left / scale[j]
        square[j] = max(square[j] - total[j] * left, 0.0) / (scale[j] * scale[j])
