"""Attributions that a lake keeps, as a labelled dataset. `neuronlake attribute` makes them; nothing here needs the model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from neuronlake.store.attribution import Attribution, find_attributions
from neuronlake.store.errors import InputError
from neuronlake.store.lake import Lake

_DIMS = ("tag", "layer", "neuron")
# What tells results of one label apart, in the order in which people would.
_TOLD_APART = (
    "method", "rule", "steps", "tolerance", "quantity", "share", "within", "where", "tags", "per_tag", "seed", "dtype",
    "batch_targets",
)  # fmt: skip


def read_attribution(lake: Lake, by: str = "upos", *, name: str | None = None, **settings: Any) -> xr.Dataset:
    """Read the attributions of the predictions of words, per tag of the predicted word.

    Parameters
    ----------
    by
        Label of the predicted words.
    name
        Of the result, where several fit; a unique part of it is enough.
    settings
        Values of what the result was made with, such as ``method="gradient"``: method, rule, steps, tolerance, quantity,
        share, within, where, tags, per_tag, seed, dtype, batch_targets.

    Returns
    -------
    xarray.Dataset
        ``hits`` uint32 (tag, layer, neuron): predictions of the tag for which the neuron is among the strongest;
        ``attribution`` float64, likewise: mean over the tag's predictions; ``samples`` int64 (tag): predictions explained;
        ``completeness_error`` float64 (layer): Σ|Σ_i attribution_i − effect| / Σ|effect|, NaN where the method has no such
        identity. Attributes: the settings, name, strongest (hits per prediction), versions.

    Raises
    ------
    InputError
        When there is none (what there is is listed), or several.
    DamageError
        When it is damaged.
    """
    if unknown := set(settings) - set(_TOLD_APART):
        raise InputError(f"attributions have no setting {min(unknown)!r}: known are {', '.join(_TOLD_APART)}")
    found = _choose(lake, by, name, settings)
    tally, record = found.tally(), found.record
    samples = np.array(record["samples"], dtype=np.int64)
    return xr.Dataset(
        {
            "hits": (_DIMS, tally.hits, {"long_name": "predictions that hit the neuron", "units": "predictions"}),
            "attribution": (
                _DIMS,
                tally.total / np.maximum(samples, 1)[:, None, None],
                {"long_name": "mean attribution", "units": "nats" if found.key["quantity"] == "log_probability" else "1"},
            ),
            "samples": ("tag", samples, {"long_name": "predictions explained", "units": "predictions"}),
            "completeness_error": ("layer", _completeness(found), {"long_name": "error of the sums", "units": "1"}),
        },
        coords={
            "tag": list(found.tags),
            "layer": list(record["layers"]),
            "neuron": np.arange(tally.hits.shape[-1]),
        },
        attrs={
            **{key: value for key, value in found.key.items() if key != "blocks"},
            "name": found.name,
            "strongest": record["strongest"],
            "provenance": record["provenance"],
        },
    )


def _choose(lake: Lake, by: str, name: str | None, settings: dict[str, Any]) -> Attribution:
    everything = [each for each in find_attributions(lake.path) if each.key["lake"] == lake.fingerprint]
    make = f"`neuronlake attribute {lake.path} --model PATH|ID`"
    fitting = [
        each
        for each in everything
        if each.key["by"] == by
        and (name is None or name in each.name)
        and all(_same(each.key.get(setting), value) for setting, value in settings.items())
    ]
    if not everything:
        raise InputError(f"{lake.path} holds no attributions: {make} makes them")
    if not fitting:
        listed = "; ".join(describe(each, everything) for each in everything)
        raise InputError(f"{lake.path} holds no such attributions of {by!r}; it has {listed}: {make} makes others")
    if len(fitting) > 1:
        listed = "; ".join(describe(each, fitting) for each in fitting)
        raise InputError(f"{lake.path} holds {len(fitting)} attributions of {by!r}: choose one by its name: {listed}")
    return fitting[0]


def describe(attribution: Attribution, among: Sequence[Attribution]) -> str:
    """Name of a result, and its settings as far as they tell it from others."""
    differing = [
        setting
        for setting in ("by", *_TOLD_APART)
        if len({str(each.key.get(setting)) for each in among}) > 1 and attribution.key.get(setting) is not None
    ]
    settings = ", ".join(f"{setting} {attribution.key[setting]}" for setting in differing)
    return f"{attribution.name} ({settings})" if settings else attribution.name


def _same(kept: Any, asked: Any) -> bool:
    return bool(sorted(kept) == sorted(asked) if isinstance(kept, list) and not isinstance(asked, str) else kept == asked)


def _completeness(attribution: Attribution) -> NDArray[np.float64]:
    error, effect = (np.array(attribution.record[name], dtype=np.float64) for name in ("error", "effect"))
    relative = np.full(len(error), np.nan)
    np.divide(error, effect, out=relative, where=effect > 0)
    return relative
