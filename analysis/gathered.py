"""What a pass found, of all neurons together: from its pieces, or from where it was kept."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.column_pass import Piece
from neuronlake.analysis.moments import FIELDS, Moments

FOLD_FIELDS = ("mean", "m2", "absolute", "active")
"""What is kept per fold: enough for every ranker that starts from moments."""


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """Statistics of some layers."""

    tags: tuple[str, ...]
    """All that occur, with too few tokens or not."""
    layers: tuple[int, ...]
    count: NDArray[np.int64]
    """Tokens, (tags, folds)."""
    pooled: Moments = field(repr=False)
    """(tags, layers, neurons)."""
    by_fold: Moments | None = field(repr=False)
    """(tags × folds, layers, neurons), `FOLD_FIELDS` only: the other fields mean nothing. None if it was not loaded."""
    exponent: NDArray[np.int16] | None = field(repr=False)
    """Scales of the histograms' bins, (layers, neurons)."""
    derived: Mapping[str, NDArray[Any]] = field(repr=False)
    """Of the tags with enough tokens, ([tags,] layers, neurons)."""
    attributes: dict[str, Any] = field(repr=False)


def gather_pieces(
    pieces: list[Piece],
    *,
    layers: tuple[int, ...],
    neurons: int,
    tags: tuple[str, ...],
    count: NDArray[np.int64],
    attributes: dict[str, Any],
) -> Gathered:
    """Put pieces together; the list is emptied on the way, so that results are held once, not twice."""
    place = {layer: position for position, layer in enumerate(layers)}
    pooled: dict[str, NDArray[Any]] = {}
    by_fold: dict[str, NDArray[Any]] = {}
    derived: dict[str, NDArray[Any]] = {}
    exponent = np.zeros((len(layers), neurons), dtype=np.int16) if pieces[0].partials.exponent is not None else None

    def put(target: dict[str, NDArray[Any]], name: str, values: NDArray[Any], piece: Piece) -> None:
        if name not in target:
            target[name] = np.empty((*values.shape[:-1], len(layers), neurons), dtype=values.dtype)
        target[name][..., place[piece.layer], piece.first : piece.first + values.shape[-1]] = values

    while pieces:
        piece = pieces.pop()
        for name in FIELDS:
            put(pooled, name, getattr(piece.partials.pooled, name), piece)
        for name in FOLD_FIELDS:
            put(by_fold, name, getattr(piece.partials.by_fold, name), piece)
        for name, values in piece.derived.items():
            put(derived, name, values, piece)
        if exponent is not None and piece.partials.exponent is not None:
            last = piece.first + len(piece.partials.exponent)
            exponent[place[piece.layer], piece.first : last] = piece.partials.exponent
    return Gathered(
        tags=tags,
        layers=layers,
        count=count,
        pooled=Moments(count=count.sum(axis=1)[:, None, None], **pooled),
        by_fold=fold_moments(count, by_fold),
        exponent=exponent,
        derived=derived,
        attributes=attributes,
    )


def fold_moments(count: NDArray[np.int64], fields: Mapping[str, NDArray[Any]]) -> Moments:
    """Moments per group with `FOLD_FIELDS` only; the others are zeros that take no memory."""
    shape = fields["mean"].shape
    zero, single = np.broadcast_to(np.zeros(1), shape), np.broadcast_to(np.zeros(1, dtype=np.float32), shape)
    return Moments(
        count=count.reshape(-1, *(1 for _ in shape[1:])), **fields, m3=zero, m4=zero, minimum=single, maximum=single
    )
