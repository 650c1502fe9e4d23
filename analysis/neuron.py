"""Names of neurons: ``L12.N345`` is neuron 345 of layer 12."""

import re

from neuronlake.analysis.source import LakeSource
from neuronlake.store.errors import InputError

_NAME = re.compile(r"L(\d{1,18})\.N(\d{1,18})", re.IGNORECASE)


def neuron_name(layer: int, neuron: int) -> str:
    """Return the name of a neuron."""
    return f"L{layer}.N{neuron}"


def parse_neuron(name: str, source: LakeSource | None = None) -> tuple[int, int]:
    """Return (layer, neuron) of a name such as ``L12.N345``.

    Parameters
    ----------
    name
        Case does not matter.
    source
        A lake to check the numbers against.

    Raises
    ------
    InputError
        When the name has another form, or the lake has no such neuron; the message names what is valid.
    """
    match = _NAME.fullmatch(name.strip())
    if match is None:
        valid = "" if source is None else f" ({_range(source)})"
        raise InputError(f"{name!r} is no neuron: write it as L<layer>.N<neuron>, for example L12.N345{valid}")
    layer, neuron = int(match[1]), int(match[2])
    if source is not None:
        check_neuron(source, layer, neuron)
    return layer, neuron


def check_neuron(source: LakeSource, layer: int, neuron: int) -> None:
    """Raise InputError, naming the valid range, unless the lake holds that neuron."""
    if layer not in source.layers or not 0 <= neuron < source.neurons:
        raise InputError(f"no neuron {neuron_name(layer, neuron)} in this lake: {_range(source)}")


def _range(source: LakeSource) -> str:
    layers = source.layers
    if layers == tuple(range(layers[0], layers[-1] + 1)):
        stored = f"layers {layers[0]} to {layers[-1]}"
    else:
        stored = f"layers {', '.join(map(str, layers))}"
    return f"valid are {stored}, neurons 0 to {source.neurons - 1} at {source.site}"
