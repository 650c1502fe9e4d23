"""Activations as SwiGLU makes them, of any size, with neurons planted in them: generated when they are sliced, never held.

x = silu(g)·u with correlated Gaussian g and u; scales over three orders of magnitude; g is spread at its ends, which gives
kurtoses of 10 to some hundreds, as in SmolLM2; a fifth of the neurons seldom active and a tenth with exact zeros; eight
factors that all neurons share, a level of its own for every document, and pairs of neurons that are nearly alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEP = 1024  # rows drawn from one random stream
_PILOT = 4  # steps that a planted neuron's mean and deviation are taken from
FORMS = ("raised 1 sd", "raised 0.5 sd", "lowered 1 sd", "wider ×2", "tails ±5 sd")
"""What is done to the tag's tokens; the last two leave the mean where it is: all deviations doubled, or one in ten at ±5."""
TAGS = {
    "ADJ": 1865, "ADP": 2039, "ADV": 1230, "AUX": 1442, "CCONJ": 779, "DET": 1895, "INTJ": 115, "NOUN": 4202, "NUM": 383,
    "PART": 615, "PRON": 2192, "PROPN": 1866, "PUNCT": 2894, "SCONJ": 397, "SYM": 81, "VERB": 2706, "X": 57,
}  # fmt: skip
"""Tokens of EWT dev (SmolLM2's last sub-words)."""
DOCUMENTS = 318  # of EWT dev


def corpus(tokens: int, seed: int, tags: Mapping[str, int] = TAGS, documents: int = DOCUMENTS) -> dict[str, NDArray[Any]]:
    """Token table: tags with the frequencies given, in random order, and documents of equal size."""
    share = np.array(list(tags.values())) / sum(tags.values())
    count = np.maximum(np.round(share * tokens), 2).astype(int)
    count[count.argmax()] += tokens - count.sum()
    upos = np.random.default_rng(seed).permutation(np.repeat(list(tags), count))
    return {"upos": upos, "document": np.arange(tokens) * documents // tokens}


def choose_neurons(
    seed: int, shape: tuple[int, int], *, each: int, tags: Sequence[str], forms: Sequence[str] = FORMS
) -> dict[str, dict[str, NDArray[np.int64]]]:
    """Return form → tag → `each` neurons, places in the flat (layers, neurons); no neuron twice."""
    total = len(forms) * len(tags) * each
    chosen = np.random.default_rng([seed, 1]).choice(shape[0] * shape[1], size=total, replace=False)
    parts = iter(np.split(chosen, len(forms) * len(tags)))
    return {form: {tag: np.sort(next(parts)) for tag in tags} for form in forms}


@dataclass(frozen=True, kw_only=True)
class Activations:
    """One layer: float32 (rows, neurons), the same ones whenever and however they are sliced."""

    seed: int
    layer: int
    neurons: int
    tokens: Mapping[str, NDArray[Any]] = field(repr=False)
    """See `corpus`."""
    planted: Mapping[str, Mapping[str, NDArray[np.int64]]] = field(default_factory=dict, repr=False)
    """See `choose_neurons`."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, neurons."""
        return len(self.tokens["document"]), self.neurons

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        first, stop, _ = rows.indices(self.shape[0])
        steps = [self._step(step) for step in range(first // STEP, -(-stop // STEP))]
        return np.concatenate(steps)[first % STEP : first % STEP + stop - first]

    @cached_property
    def _parameters(self) -> dict[str, NDArray[np.float32]]:
        rng, width = np.random.default_rng([self.seed, 2, self.layer]), self.neurons
        kind = rng.random(width)
        documents = int(self.tokens["document"].max()) + 1
        found = {
            "scale": 10 ** rng.uniform(-2, 1, width),
            "together": rng.uniform(-0.4, 0.6, width),
            "bias": np.where(kind < 0.2, -2.0, rng.normal(0, 0.5, width)),
            "zeros": kind > 0.9,
            "factors": rng.normal(0, 0.15, (8, width)),
            "documents": rng.normal(0, 0.3, (documents, width)),
        }
        return {name: values.astype(np.float32) for name, values in found.items()}

    @cached_property
    def _plants(self) -> list[tuple[str, str, NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]]:
        """Form, tag, neurons, their means and deviations before anything was planted."""
        here = []
        for form, tags in self.planted.items():
            for tag, places in tags.items():
                own = places[places // self.neurons == self.layer] % self.neurons
                if len(own):
                    here.append((form, tag, own))
        if not here:
            return []
        last = -(-self.shape[0] // STEP)
        pilot = np.concatenate([self._bare(step) for step in range(min(_PILOT, last))])
        return [(form, tag, own, pilot[:, own].mean(axis=0), pilot[:, own].std(axis=0)) for form, tag, own in here]

    def _bare(self, step: int) -> NDArray[np.float32]:
        rng, own = np.random.default_rng([self.seed, 3, self.layer, step]), self._parameters
        rows = min(STEP, self.shape[0] - step * STEP)
        gate = rng.standard_normal((rows, self.neurons), dtype=np.float32)
        up = rng.standard_normal((rows, self.neurons), dtype=np.float32)
        for noise in (gate, up):
            pairs = noise[:, 1::10].shape[1]
            noise[:, 1::10] *= np.float32(0.3)
            noise[:, 1::10] += np.float32(0.95) * noise[:, 0::10][:, :pairs]
        up *= np.sqrt(1 - own["together"] ** 2)
        up += own["together"] * gate
        gate += rng.standard_normal((rows, 8), dtype=np.float32) @ own["factors"]
        gate += own["documents"][self.tokens["document"][step * STEP : step * STEP + rows]]
        gate += own["bias"]
        open_ = gate > 0
        gate *= 1 + np.float32(0.08) * gate * gate
        np.clip(gate, -60, None, out=gate)
        gate /= 1 + np.exp(-gate)
        gate *= up
        gate *= own["scale"]
        silent = own["zeros"] > 0
        gate[:, silent] *= open_[:, silent]
        return gate

    def _step(self, step: int) -> NDArray[np.float32]:
        values = self._bare(step)
        tags = self.tokens["upos"][step * STEP : step * STEP + len(values)]
        rng = np.random.default_rng([self.seed, 4, self.layer, step])
        for form, tag, neurons, mean, deviation in self._plants:
            rows = np.flatnonzero(tags == tag)
            own = values[np.ix_(rows, neurons)]
            if form == "wider ×2":
                own = mean + 2 * (own - mean)
            elif form == "tails ±5 sd":
                far = mean + 5 * deviation * rng.choice([-1, 1], size=own.shape)
                own = np.where(rng.random(own.shape) < 0.1, far, own)
            else:
                own += {"raised 1 sd": 1, "raised 0.5 sd": 0.5, "lowered 1 sd": -1}[form] * deviation
            values[np.ix_(rows, neurons)] = own
        return values


def write_activations(
    root: Any, *, seed: int, tokens: Mapping[str, NDArray[Any]], layers: int, neurons: int, encoding: str, planted: Any = ()
) -> Any:
    """Write them as a lake, by the writer that everybody uses."""
    from neuronlake.store import write_lake

    made = {
        layer: Activations(seed=seed, layer=layer, neurons=neurons, tokens=tokens, planted=dict(planted))
        for layer in range(layers)
    }
    return write_lake(root, made, tokens=dict(tokens), name="synthetic SwiGLU", encoding=encoding, identity={"seed": seed})
