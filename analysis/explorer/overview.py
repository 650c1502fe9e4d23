"""The first page of a lake: what it holds, and where in the network which tag is told apart."""

from typing import Any

import numpy as np

from neuronlake.analysis.explorer.shades import sequential
from neuronlake.analysis.explorer.shelf import METHODS, Opened
from neuronlake.analysis.rankers import RANKERS
from neuronlake.store.lake import Lake

MAX_TAGS = 60  # columns of the heat map; the tags with most tokens


def overview(opened: Opened, by: str | None, method: str) -> dict[str, Any]:
    """Gather the page's data.

    Returns
    -------
    dict
        facts (name → text), by, method, formula, labels, methods, tags (tag, count and the neuron that is best of all), rows
        (of each layer, the last one first: layer, and for every tag the best score, its shade and whether it is the tag's
        best layer), left_out (tags beyond `MAX_TAGS`).

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
