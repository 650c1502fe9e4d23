"""Control of the false discovery rate."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def benjamini_hochberg(p: NDArray[Any]) -> NDArray[np.float64]:
    """Adjusted p-values (q) of Benjamini & Hochberg (1995), J. R. Stat. Soc. B 57, 289–300.

    Sorted ascending, q_(i) = min over j ≥ i of p_(j)·m/j, at most 1. Rejecting q ≤ α keeps the expected share of false
    discoveries at most α when the tests are independent or positively dependent.

    Parameters
    ----------
    p : float, any shape
        p-values in [0, 1]; all of them form one family.

    Returns
    -------
    float64, the shape of `p`
    """
    flat = np.asarray(p, dtype=np.float64).ravel()
    order = np.argsort(flat)
    scaled = flat[order] * (flat.size / np.arange(1, flat.size + 1))
    adjusted = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    q = np.empty_like(flat)
    q[order] = adjusted
    return q.reshape(np.shape(p))
