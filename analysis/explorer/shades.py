"""Steps of shading: of one colour for scores, of two colours for activations. Which colours, the style sheet says."""

import numpy as np
from numpy.typing import NDArray

STEPS = 10


def sequential(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return steps from 0 (the smallest value) to `STEPS` (the largest); 0 where all are equal."""
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return np.zeros(values.shape, dtype=np.int64)
    return np.rint((values - low) / (high - low) * STEPS).astype(np.int64)


def signed(value: float | None, limit: float) -> str:
    """Return the shade of an activation: ``p0`` … ``p10`` above zero, ``n0`` … ``n10`` below, ``u`` where it is not known.

    Parameters
    ----------
    limit
        Magnitude of the darkest shade.
    """
    if value is None:
        return "u"
    step = round(min(abs(value) / limit, 1.0) * STEPS) if limit > 0 else 0
    return f"{'n' if value < 0 else 'p'}{step}"
