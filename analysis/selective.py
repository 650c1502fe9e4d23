"""Neurons that are active for some classes only: languages, tags, any label.

Three published ways to find them, all from how often a neuron is active (x > 0) for each of K classes. Nothing knows which
classes there are: another language is another value of the label.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from neuronlake.store.errors import InputError

_DIMS = ("tag", "layer", "neuron")
CLASSES = ("specific", "related", "agnostic")
"""Classes of `language_classes`; a neuron's code is the place here."""
CATEGORIES = ("non_activated", "specific", "partial_shared", "all_shared")
"""Categories of `SharedCategories`, in the order of its counts."""


@dataclass(frozen=True, kw_only=True)
class Selectivity:
    """How unevenly the activity of some neurons is spread over K tags."""

    share: NDArray[np.float64] = field(repr=False)
    """p' = p/Σp, (tags, …); 0 for a neuron that is never active."""
    entropy: NDArray[np.float64] = field(repr=False)
    """−Σ p' ln p' in nats, (…); ln K for a neuron that is never active."""
    bar: float
    """The percentile of all p."""
    above: NDArray[np.bool_] = field(repr=False)
    """p > bar, (tags, …)."""

    @property
    def passes(self) -> NDArray[np.bool_]:
        """Neurons that some tag activates more than the bar, (…)."""
        return np.asarray(self.above.any(axis=0))


def selectivity(active: NDArray[np.float64], *, activity_percentile: float) -> Selectivity:
    """Compare the tags' shares of active tokens.

    Parameters
    ----------
    active : float64 (tags, …)
        p, shares of tokens with x > 0.
    activity_percentile
        The bar is that element of all p in ascending order: number round(size·percentile/100), from 1.
    """
    total = active.sum(axis=0)
    share = active / np.where(total > 0, total, 1.0)
    entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(axis=0)
    place = max(round(active.size * activity_percentile / 100) - 1, 0)
    bar = float(np.partition(active, place, axis=None)[place])
    # + 0.0: no negative zero
    return Selectivity(
        share=share, entropy=np.where(total > 0, entropy, np.log(len(active))) + 0.0, bar=bar, above=active > bar
    )


def lape(dataset: xr.Dataset, *, activity_percentile: float = 95.0, keep_share: float = 0.01) -> xr.Dataset:
    """Neurons specific to tags by language activation probability entropy (LAPE).

    Tang et al. (2024), arXiv 2402.16438: p_k = P(x > 0 | tag k), p' = p/Σp, entropy −Σ p' ln p'. Neurons with no p above the
    95th percentile of all p are dropped; of the others those with the lowest entropy are kept, 1 % of all neurons; each is
    assigned to every tag with p above that percentile. Equal entropies are taken by layer, then neuron. The authors count
    act(gate) > 0; what is counted here is the sign of the site that the statistics are of.

    Parameters
    ----------
    dataset
        Of `compute_statistics`; ``fraction_active`` is read.
    activity_percentile
        Percentile of all p, 0 to 100.
    keep_share
        Share of all neurons that is kept, 0 to 1; fewer are when fewer pass, and one at least is when one does.

    Returns
    -------
    xarray.Dataset
        ``entropy`` (layer, neuron) float64 in nats, of every neuron; ``selected`` (layer, neuron) bool; ``assigned``
        (tag, layer, neuron) bool. Attributes: those of the statistics, and ``activity_bar``.

    Raises
    ------
    InputError
        With fewer than two tags, or settings out of range.
    """
    active = _active(dataset, activity_percentile, keep_share)
    found = selectivity(active, activity_percentile=activity_percentile)
    chosen = _lowest(np.where(found.passes, found.entropy, np.inf), keep_share)
    settings = {"activity_percentile": float(activity_percentile), "keep_share": float(keep_share)}
    return xr.Dataset(
        {
            "entropy": (_DIMS[1:], found.entropy, {"long_name": "entropy of the activity over tags", "units": "nat"}),
            "selected": (_DIMS[1:], chosen, {"long_name": "among the lowest entropies", "units": "1"}),
            "assigned": (_DIMS, chosen & found.above, {"long_name": "selected and active for the tag", "units": "1"}),
        },
        coords={dim: dataset[dim] for dim in _DIMS},
        attrs={**dataset.attrs, "method": "lape", **settings, "activity_bar": found.bar},
    )


def language_classes(
    dataset: xr.Dataset,
    *,
    activity_percentile: float = 95.0,
    keep_share: float = 0.01,
    max_lambda: float = 0.2,
    tolerance: float = 1e-3,
) -> xr.Dataset:
    """Classes of neurons by the number of tags that they serve: specific, related, agnostic.

    Zhang et al. (2025), arXiv 2505.21505: s = H(p')/ln K − λ·max_k p_k/(H_K/K), with H the entropy, p not normalised in the
    second term, and H_K the harmonic number; the lowest 1 % of all neurons are selected, and λ is the largest in [0, 0.2]
    with which no selected neuron has all K tags above the bar, by bisection to 0.001 (which takes for granted that a larger
    λ selects more of these). Neurons below the bar everywhere are not dropped first, as they are in `lape`. With N the tags
    above the bar, selected neurons are specific (N = 1) or related (1 < N < K). Our reading: all others are agnostic, those
    that are not selected and those with N = 0 included. Equal scores are taken by layer, then neuron.

    Parameters
    ----------
    dataset
        Of `compute_statistics`; ``fraction_active`` is read.
    activity_percentile
        The bar, a percentile of all p, 0 to 100.
    keep_share
        Share of all neurons that is selected, 0 to 1; one at least is.
    max_lambda
        Upper end of the search.
    tolerance
        Where the search stops.

    Returns
    -------
    xarray.Dataset
        ``n_tags`` (layer, neuron) int64, N of every neuron; ``selected`` (layer, neuron) bool; ``assigned``
        (tag, layer, neuron) bool; ``class_code`` (layer, neuron) int8, a place in `CLASSES`; ``neurons`` (layer, class)
        int64, how many. Attributes: those of the statistics, ``activity_bar``, ``lambda``, and ``lambda_found``, which is
        False where even λ = 0 selects a neuron with all tags above the bar (it is agnostic then).

    Raises
    ------
    InputError
        With fewer than two tags, or settings out of range.
    """
    active = _active(dataset, activity_percentile, keep_share)
    if not (max_lambda >= 0 and tolerance > 0):
        raise InputError(f"max_lambda must be at least 0 and tolerance above 0, got {max_lambda} and {tolerance}")
    tags = len(active)
    found = selectivity(active, activity_percentile=activity_percentile)
    evenness = found.entropy / np.log(tags)
    strength = active.max(axis=0) / (np.sum(1 / np.arange(1, tags + 1)) / tags)
    n_tags = found.above.sum(axis=0)

    def select(weight: float) -> NDArray[np.bool_]:
        return _lowest(evenness - weight * strength, keep_share)

    weight, exists = _largest_weight(select, n_tags == tags, max_lambda, tolerance)
    chosen = select(weight)
    code = np.where(chosen & (n_tags == 1), 0, np.where(chosen & (n_tags > 1) & (n_tags < tags), 1, 2)).astype(np.int8)
    settings = {"activity_percentile": float(activity_percentile), "keep_share": float(keep_share)}
    return xr.Dataset(
        {
            "n_tags": (_DIMS[1:], n_tags, {"long_name": "tags above the bar", "units": "1"}),
            "selected": (_DIMS[1:], chosen, {"long_name": "among the lowest scores", "units": "1"}),
            "assigned": (_DIMS, chosen & found.above, {"long_name": "selected and active for the tag", "units": "1"}),
            "class_code": (_DIMS[1:], code, {"flag_values": [0, 1, 2], "flag_meanings": " ".join(CLASSES)}),
            "neurons": (
                ("layer", "class"),
                np.stack([(code == value).sum(axis=1) for value in range(len(CLASSES))], axis=1),
                {"long_name": "neurons of the class", "units": "1"},
            ),
        },
        coords={**{dim: dataset[dim] for dim in _DIMS}, "class": list(CLASSES)},
        attrs={
            **dataset.attrs, "method": "language_classes", **settings, "activity_bar": found.bar,
            "lambda": weight, "lambda_found": exists,
        },
    )  # fmt: skip


class SharedCategories:
    """Counts of how many languages a neuron is active in, input by input; the whole array need not be in memory.

    Wang et al. (2024), arXiv 2406.09265: for one input in L languages and one neuron, S is the number of languages in which
    it is active. S = 0 is non-activated, S = 1 specific, S = L all-shared, all else partial-shared; averaged over inputs.
    A neuron is active when its value exceeds 0. The authors' code compares one vector per input and language; which of the
    input's tokens it is of is left to the caller. We take the last token, the only one that has seen the whole input; "any
    token above 0" would call nearly every neuron of a long sentence active.
    """

    def __init__(self, *, languages: int, neurons: int):
        if languages < 2:
            raise InputError(f"sharing is between languages: expected at least 2, got {languages}")
        self._shape = languages, neurons
        self.counts: NDArray[np.int64] = np.zeros((len(CATEGORIES), neurons), dtype=np.int64)
        """Inputs per category and neuron, (4, neurons), in the order of `CATEGORIES`."""
        self.inputs = 0
        """Inputs added."""

    def add(self, active: NDArray[np.bool_] | NDArray[np.integer]) -> None:
        """Add some inputs.

        Parameters
        ----------
        active : bool or integer (inputs, languages, neurons)
            Whether the neuron is active; of integers, such as numbers of active tokens, whatever is above 0.

        Raises
        ------
        InputError
            When the shape or the type is another.
        """
        if active.ndim != 3 or active.shape[1:] != self._shape:
            expected = f"(inputs, {self._shape[0]}, {self._shape[1]})"
            raise InputError(f"expected an array {expected} of inputs × languages × neurons, got {active.shape}")
        if active.dtype.kind not in "bui":
            raise InputError(f"expected True or False per neuron, got {active.dtype}: compare the values with 0 first")
        languages = self._shape[0]
        shared = np.count_nonzero(active > 0, axis=1)  # (inputs, languages, neurons) -> (inputs, neurons)
        category = np.where(shared == languages, 3, np.minimum(shared, 2))
        for place in range(len(CATEGORIES)):
            self.counts[place] += np.count_nonzero(category == place, axis=0)
        self.inputs += len(active)

    def shares(self) -> NDArray[np.float64]:
        """Share of the inputs in each category, float64 (4, neurons); 0 without inputs."""
        return self.counts / max(self.inputs, 1)


def shared_categories(active: NDArray[np.bool_] | NDArray[np.integer]) -> NDArray[np.int64]:
    """Inputs per category of `SharedCategories` and neuron, in one go.

    Parameters
    ----------
    active : bool or integer (inputs, languages, neurons)
        As for `SharedCategories.add`.

    Returns
    -------
    int64 (4, neurons)
        In the order of `CATEGORIES`.
    """
    if active.ndim != 3:
        raise InputError(f"expected an array (inputs, languages, neurons), got {active.ndim} dimensions")
    found = SharedCategories(languages=active.shape[1], neurons=active.shape[2])
    found.add(active)
    return found.counts


def _active(dataset: xr.Dataset, activity_percentile: float, keep_share: float) -> NDArray[np.float64]:
    """Shares of active tokens (tags, layers, neurons), if what was asked for makes sense."""
    if "fraction_active" not in dataset:
        raise InputError("selectivity reads the variable 'fraction_active', which these statistics lack")
    if dataset.sizes["tag"] < 2:
        raise InputError(f"selectivity compares tags: expected at least 2, got {dataset.sizes['tag']}")
    if not 0 <= activity_percentile <= 100:
        raise InputError(f"activity_percentile must be from 0 to 100, got {activity_percentile}")
    if not 0 < keep_share <= 1:
        raise InputError(f"keep_share must be above 0 and at most 1, got {keep_share}")
    active: NDArray[np.float64] = dataset["fraction_active"].transpose(*_DIMS).to_numpy().astype(np.float64)
    return active


def _lowest(values: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    """Mark a share of the values, the lowest, infinite ones never; of equal ones the first."""
    flat = values.ravel()
    count = min(max(round(share * flat.size), 1), int(np.isfinite(flat).sum()))
    chosen = np.zeros(flat.size, dtype=np.bool_)
    if count:
        last = np.partition(flat, count - 1)[count - 1]
        chosen[flat < last] = True
        chosen[np.flatnonzero(flat == last)[: count - int(chosen.sum())]] = True
    return chosen.reshape(values.shape)


def _largest_weight(
    select: Callable[[float], NDArray[np.bool_]], everywhere: NDArray[np.bool_], most: float, tolerance: float
) -> tuple[float, bool]:
    """Find the largest weight that selects no neuron marked `everywhere`, and say whether there is one; 0 if not."""

    def allowed(weight: float) -> bool:
        return not np.any(select(weight) & everywhere)

    if allowed(most):
        return float(most), True
    low, high = 0.0, float(most)
    if not allowed(low):
        return low, False
    while high - low > tolerance:
        middle = (low + high) / 2
        low, high = (middle, high) if allowed(middle) else (low, middle)
    return low, True
