"""Feature matrices: which neurons a probe sees, and their values block by block."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from neuronlake.analysis.neuron import check_neuron, neuron_name, parse_neuron
from neuronlake.analysis.ranking import rank
from neuronlake.analysis.source import LakeSource, choose_layers
from neuronlake.store.errors import InputError

NeuronRef = str | tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """Neurons, ordered by layer and number; the columns of a feature matrix."""

    columns: tuple[tuple[int, NDArray[np.int64] | None], ...] = field(repr=False)
    """(layer, neurons ascending) for every layer, None for the whole layer."""
    neurons_per_layer: int
    """Neurons that a whole layer has."""

    @property
    def size(self) -> int:
        """Number of features D."""
        return sum(self.neurons_per_layer if chosen is None else len(chosen) for _, chosen in self.columns)

    @property
    def layers(self) -> list[int]:
        """Layers that features come from."""
        return [layer for layer, _ in self.columns]

    def names(self) -> list[str]:
        """Names of the neurons, in column order."""
        return [
            neuron_name(layer, int(neuron))
            for layer, chosen in self.columns
            for neuron in (range(self.neurons_per_layer) if chosen is None else chosen)
        ]


def whole_layers(source: LakeSource, layers: Sequence[int] | None) -> FeatureSet:
    """Every neuron of some layers (None: of all)."""
    return FeatureSet(
        columns=tuple((layer, None) for layer in choose_layers(source, layers)), neurons_per_layer=source.neurons
    )


def chosen_neurons(source: LakeSource, neurons: Sequence[NeuronRef]) -> FeatureSet:
    """Given neurons, as names (``L12.N345``) or (layer, neuron) pairs; repetitions count once.

    Raises
    ------
    InputError
        When one does not exist, or none is given.
    """
    pairs = set()
    for neuron in neurons:
        layer, number = parse_neuron(neuron, source) if isinstance(neuron, str) else neuron
        check_neuron(source, layer, number)
        pairs.add((int(layer), int(number)))
    if not pairs:
        raise InputError("no neuron given: name at least one, for example L12.N345")
    columns = tuple(
        (layer, np.array(sorted(number for at, number in pairs if at == layer), dtype=np.int64))
        for layer in sorted({layer for layer, _ in pairs})
    )
    return FeatureSet(columns=columns, neurons_per_layer=source.neurons)


def top_features(source: LakeSource, statistics: xr.Dataset, method: str, top_k: int) -> FeatureSet:
    """Union over tags of the `top_k` best neurons by a ranker.

    `statistics` must come from training documents only: what is selected on test documents flatters the test.
    """
    best = rank(statistics, method, top=top_k)
    return chosen_neurons(source, [(entry["layer"], entry["neuron"]) for entry in best])
