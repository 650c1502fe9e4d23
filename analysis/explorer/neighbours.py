"""Neurons like one neuron: a part of its page that is asked for by a button. Writes nothing to the lake."""

from typing import Any

from neuronlake.analysis.correlation import coactivation, strongest
from neuronlake.analysis.explorer.overview import has_weights
from neuronlake.analysis.explorer.shelf import NotKeptError, Opened
from neuronlake.analysis.neuron import check_neuron, neuron_name
from neuronlake.analysis.neuron_neighbours import SIGNATURES, neighbours
from neuronlake.analysis.sketch import kept_sketch
from neuronlake.store.errors import InputError

SHOWN = 20
_SCANNED = 1 << 35  # values that are scanned for a click at most: about a minute; 730,000 tokens of SmolLM2


def like(opened: Opened, layer: int, neuron: int, signature: str, by: str | None) -> dict[str, Any]:
    """Find the neurons most like one.

    Parameters
    ----------
    signature
        ``profile``: from kept statistics of the label `by`; ``weights``: from the lake's weights; ``activation``: reads
        activations, of some neurons where the lake keeps sketches, else of all.

    Returns
    -------
    dict
        name, signature, measure (the key of the values), neurons (of `neighbours`), by.

    Raises
    ------
    InputError
        When the neuron or the signature does not exist, or the lake lacks what it needs.
    NotKeptError
        When it would scan too much for a page.
    """
    lake = opened.lake
    check_neuron(lake, layer, neuron)
    if signature not in SIGNATURES:
        raise InputError(f"unknown signature {signature!r}: known are {', '.join(SIGNATURES)}")
    measure = SIGNATURES[signature]
    if signature == "profile":
        by = opened.label(by)
        found = neighbours(lake, layer, neuron, SHOWN, by=signature, label=by, statistics=opened.statistics(by))
    elif signature == "weights" or kept_sketch(lake) is not None:
        found = neighbours(lake, layer, neuron, SHOWN, by=signature)
    else:  # `neighbours` would make sketches and keep them
        values = len(lake.blocks) * lake.block_rows * len(lake.layers) * lake.neurons
        if values > _SCANNED:
            raise NotKeptError(
                f"without sketches it takes a scan of {values:.1e} activations: run `neuronlake neighbours {lake.path} "
                f"{neuron_name(layer, neuron)}` once, which keeps them, then ask again"
            )
        (found,) = strongest(coactivation(lake, (layer, neuron)), SHOWN)
    return {"name": neuron_name(layer, neuron), "signature": signature, "measure": measure, "neurons": found, "by": by}


def signatures(opened: Opened) -> dict[str, str]:
    """Return the signatures that a lake can answer by, with what each of them takes."""
    lake = opened.lake
    known = {}
    if opened.labels:
        known["profile"] = "their tags, from kept statistics"
    if has_weights(lake):
        known["weights"] = "what they write, from the weights"
    known["activation"] = "their activations, which are read: some seconds"
    return known
