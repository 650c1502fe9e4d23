"""The first page of a lake: what it holds, and where in the network which tag is told apart."""

import shlex
from typing import Any

import numpy as np

from neuronlake.analysis.explorer.shades import sequential
from neuronlake.analysis.explorer.shelf import METHODS, Opened
from neuronlake.analysis.rankers import RANKERS
from neuronlake.analysis.statistics import are_kept
from neuronlake.analysis.weights import weights_of
from neuronlake.store.errors import DamageError, InputError
from neuronlake.store.lake import Lake
from neuronlake.store.layout import DEFAULT_SITE

MAX_TAGS = 60  # columns of the heat map; the tags with most tokens


def overview(opened: Opened, by: str | None, method: str) -> dict[str, Any]:
    """Gather the page's data.

    Returns
    -------
    dict
        facts (name → text), by, method, formula, labels, methods, tags (tag, count and the neuron that is best of all), rows
        (of each layer, the last one first: layer, and for every tag the best score, its shade and whether it is the tag's
        best layer), left_out (tags beyond `MAX_TAGS`), missing (see `missing_of`).

    Raises
    ------
    InputError
        When the label or the ranking is unknown, or its statistics are not kept.
    """
    by = opened.label(by)
    scores = opened.scores(by, method)
    values, count = scores["score"].to_numpy(), scores["count"].to_numpy()
    shown = np.sort(np.argsort(-count, kind="stable")[:MAX_TAGS])
    best = values[shown].max(axis=2)  # (tags, layers)
    neurons = values[shown].argmax(axis=2)
    layers = scores["layer"].to_numpy().tolist()
    steps = sequential(best)
    peaks = best.argmax(axis=1)
    tags = [str(tag) for tag in scores["tag"].to_numpy()[shown]]
    return {
        "facts": facts_of(opened.lake),
        "missing": missing_of(opened),
        "by": by,
        "method": method,
        "formula": RANKERS[method].formula,
        "description": RANKERS[method].description,
        "labels": opened.labels,
        "methods": METHODS,
        "tags": [
            {
                "tag": tag,
                "count": int(count[shown[at]]),
                "layer": layers[peaks[at]],
                "neuron": int(neurons[at, peaks[at]]),
                "score": float(best[at, peaks[at]]),
            }
            for at, tag in enumerate(tags)
        ],
        "rows": [
            {
                "layer": layer,
                "cells": [
                    {"tag": tag, "score": float(best[at, place]), "shade": int(steps[at, place]), "best": peaks[at] == place}
                    for at, tag in enumerate(tags)
                ],
            }
            for place, layer in reversed(list(enumerate(layers)))
        ],
        "left_out": len(count) - len(shown),
    }


def overview_without(opened: Opened, by: str | None, method: str, why: str) -> dict[str, Any]:
    """Gather what can be said of a lake without statistics: as `overview`, but rows is None, and `why` says why."""
    known = {"by": by, "method": method, "labels": opened.labels, "methods": METHODS}
    return {"facts": facts_of(opened.lake), "missing": missing_of(opened), "rows": None, "why": why, **known}


def facts_of(lake: Lake) -> dict[str, str]:
    """Say what a lake holds, in words."""
    counts, spec = lake.plan.counts, lake.spec
    files = [str(file["name"]) for file in spec.plan["corpus"].get("files", [])]
    return {
        "model": f"{spec.model['name']} ({spec.model['architecture']}, computed in {spec.capture['dtype']})",
        "corpus": ", ".join(files[:4]) + (" …" if len(files) > 4 else "") or str(spec.plan["corpus"].get("kind", "–")),
        "text": ", ".join(f"{counts[name]:,} {name}" for name in ("documents", "sentences", "words"))
        + f", {counts['tokens']:,} {lake.plan.unit}s",
        "neurons": f"{len(lake.layers)} layers × {lake.neurons:,} at {lake.site}, stored as {lake.encoding}",
        "extracted": f"{len(lake.blocks)} of {lake.plan.blocks} blocks" + ("" if lake.complete else " (not finished)"),
        "fingerprint": lake.fingerprint[:16],
    }


def missing_of(opened: Opened) -> list[tuple[str, str]]:
    """Say what pages lack for what is not in the lake, and the command that makes it; no command where it is another one."""
    lake = opened.lake
    path = shlex.quote(str(lake.path))
    site = "" if lake.site == lake.sites[0] else f" --site {lake.site}"
    found = []
    if not lake.complete:
        text = f"{len(lake.blocks)} of {lake.plan.blocks} blocks are extracted, and pages are of these: run the `extract` "
        found.append((text + "that began the lake again.", ""))
    if len(indexed := lake.index().blocks) < len(lake.blocks):
        text = f"The index covers {len(indexed)} of {len(lake.blocks)} blocks; neurons' pages read the others."
        found.append((text, f"neuronlake index {path}"))
    stale = opened.remember("stale", lambda: [label for label in opened.labels if not are_kept(lake, label)], small=True)
    found += [
        (f"Statistics of {label} are not of all blocks.", f"neuronlake rank {path} --by {shlex.quote(label)}{site}")
        for label in stale
    ]
    if not opened.labels:
        usual = "upos" if "upos" in lake.label_columns else lake.label_columns[0]
        found.append(("No statistics are kept: there is no heat map.", f"neuronlake rank {path} --by {usual}{site}"))
    elif others := [label for label in lake.plan.label_columns if label not in opened.labels]:
        shown = ", ".join(others[:12]) + (f" and {len(others) - 12} more" if len(others) > 12 else "")
        text = f"Statistics are kept of {', '.join(opened.labels)}, not of {shown}."
        found.append((text, f"neuronlake rank {path} --by {shlex.quote(others[0])}{site}"))
    if lake.site == DEFAULT_SITE and not has_weights(lake):
        found.append(
            ("No weights: neurons' pages do not say what they write.", f"neuronlake weights {path} --model PATH|ID")
        )
    return found


def has_weights(lake: Lake) -> bool:
    """Whether the lake holds what its neurons write."""
    if lake.site != DEFAULT_SITE:
        return False
    try:
        weights_of(lake)
    except (InputError, DamageError):
        return False
    return True
