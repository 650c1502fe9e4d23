"""The sets of neurons that one run compares, as columns of one matrix that holds them all."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.probing.features import FeatureSet
from neuronlake.analysis.source import LakeSource


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Chosen neurons and random ones beside them, in one matrix."""

    features: FeatureSet
    """Of the matrix."""
    chosen: NDArray[np.int64] | None = field(repr=False)
    """Columns of the chosen neurons; None for all."""
    draws: tuple[NDArray[np.int64], ...] = field(repr=False)
    """Columns of every random draw, in random order: any first few of them are a random draw of so many."""


def beside_random(
    source: LakeSource, chosen: FeatureSet, *, draws: int, share: float, layer_matched: bool, size: int, seed: int
) -> Columns:
    """Lay chosen neurons and random draws out as the columns of one matrix.

    Parameters
    ----------
    draws
        How many.
    share
        Of whole layers, the share of their neurons that a draw has.
    layer_matched
        A draw has as many neurons of each layer as were chosen of it; otherwise `size` from all of the layers together.
    seed
        Of the draws.
    """
    generator = np.random.default_rng(seed)
    layers, width = chosen.layers, source.neurons
    own = np.concatenate(
        [layer * width + (np.arange(width) if neurons is None else neurons) for layer, neurons in chosen.columns]
    )
    every = np.concatenate([layer * width + np.arange(width) for layer in layers])
    drawn = []
    for _ in range(draws):
        if layer_matched:
            parts = [
                layer * width
                + generator.choice(
                    width, size=max(1, round(share * width)) if neurons is None else len(neurons), replace=False
                )
                for layer, neurons in chosen.columns
            ]
            drawn.append(generator.permutation(np.concatenate(parts)))
        else:
            drawn.append(generator.choice(every, size=min(size, len(every)), replace=False))
    if all(neurons is None for _, neurons in chosen.columns):
        return Columns(
            features=chosen, chosen=None, draws=tuple(np.searchsorted(own, draw).astype(np.int64) for draw in drawn)
        )
    union = np.unique(np.concatenate([own, *drawn]))
    features = FeatureSet(
        columns=tuple(
            (layer, (union[union // width == layer] % width).astype(np.int64))
            for layer in np.unique(union // width).tolist()
        ),
        neurons_per_layer=width,
    )
    return Columns(
        features=features,
        chosen=None if len(union) == len(own) else np.searchsorted(union, own).astype(np.int64),
        draws=tuple(np.searchsorted(union, draw).astype(np.int64) for draw in drawn),
    )


def names_of(features: FeatureSet, columns: Sequence[int] | NDArray[np.int64] | None) -> list[str]:
    """Names of the neurons at some columns, in their order."""
    names = features.names()
    return names if columns is None else [names[column] for column in columns]
