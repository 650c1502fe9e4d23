"""The tokens of a lake that carry a label, as a matrix that is read when it is used."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.labels import MIN_TOKENS, token_labels
from neuronlake.analysis.probing.features import NeuronRef, chosen_neurons, whole_layers
from neuronlake.analysis.probing.matrix import LakeMatrix
from neuronlake.analysis.source import LakeSource
from neuronlake.store.errors import InputError


def labelled_matrix(
    lake: LakeSource,
    by: str = "upos",
    *,
    layer: Any = None,
    neurons: Sequence[NeuronRef] | None = None,
    where: str | None = None,
    subword: str = "last",
    shift: int = 0,
    min_tokens: int = MIN_TOKENS,
) -> tuple[LakeMatrix, NDArray[np.str_], NDArray[np.int32]]:
    """Return X, y and the documents of all labelled tokens, for the estimators; nothing of X is read yet.

    ``LogisticProbe().fit(*labelled_matrix(lake, "upos", layer=8)[:2])`` learns from all of them. ``X[rows]`` is the matrix
    of some, and scikit-learn's splitters by group keep documents whole::

        X, y, documents = labelled_matrix(lake, "upos", layer=8)
        cross_val_score(LDAProbe(), X, y, groups=documents, cv=GroupKFold(5))

    Parameters
    ----------
    lake
        The lake.
    by, where, subword, shift, min_tokens
        Which tokens carry which label: see `token_labels`.
    layer
        A layer or several; None means all.
    neurons
        Exactly these, as names or (layer, neuron) pairs, instead of layers; columns are ordered by layer and number.

    Returns
    -------
    X : LakeMatrix (n, D)
        float32, tokens in the order in which they are stored.
    y : str (n,)
    documents : int32 (n,)

    Raises
    ------
    InputError
        When there is no such label, layer or neuron, or both layers and neurons are given.
    """
    if layer is not None and neurons is not None:
        raise InputError("neurons are given: layer would choose others; give only one of them")
    if neurons is not None:
        features = chosen_neurons(lake, neurons)
    else:
        if isinstance(layer, str):
            raise InputError(f"layer must be a number, several, or None for all, got {layer!r}")
        features = whole_layers(lake, [int(layer)] if isinstance(layer, Integral) else layer)
    labels = token_labels(lake, by, where=where, subword=subword, shift=shift, min_tokens=min_tokens)
    rows = labels.codes >= 0
    y: NDArray[np.str_] = np.array(labels.tags)[labels.codes[rows]]
    return LakeMatrix(lake, features, rows), y, labels.documents[rows]
