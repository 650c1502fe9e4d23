"""Sets of neurons, one per tag: read, checked, cut to their best, and random ones that match them layer by layer."""

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.neuron import neuron_name, parse_neuron
from neuronlake.store.errors import InputError

_FORMS = (
    '{"NOUN": [[layer, neuron], …], …}, or the list that `neuronlake rank --json` and `key-neurons --json` print: '
    '[{"tag": …, "layer": …, "neuron": …}, …], alone or under "neurons"'
)


@dataclass(frozen=True, kw_only=True)
class NeuronSet:
    """Neurons of a tag, best first."""

    tag: str
    layers: NDArray[np.int64] = field(repr=False)
    """(neurons,)"""
    neurons: NDArray[np.int64] = field(repr=False)
    """Index within the layer, (neurons,)."""

    @classmethod
    def of(cls, tag: str, pairs: Iterable[tuple[int, int]]) -> "NeuronSet":
        """Make one of (layer, neuron) pairs; what is named twice counts once."""
        unique = list(dict.fromkeys(pairs))
        array = np.array(unique, dtype=np.int64).reshape(-1, 2)
        return cls(tag=tag, layers=array[:, 0], neurons=array[:, 1])

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def profile(self) -> tuple[tuple[int, int], ...]:
        """(layer, how many of its neurons), by layer."""
        layers, counts = np.unique(self.layers, return_counts=True)
        return tuple((int(layer), int(count)) for layer, count in zip(layers, counts, strict=True))

    def by_layer(self) -> dict[int, NDArray[np.int64]]:
        """Layer → its neurons, ascending."""
        return {layer: np.sort(self.neurons[self.layers == layer]) for layer, _ in self.profile}

    def best(self, k: int) -> "NeuronSet":
        """Return the first k of them."""
        return NeuronSet(tag=self.tag, layers=self.layers[:k], neurons=self.neurons[:k])

    def pairs(self) -> list[tuple[int, int]]:
        """(layer, neuron) of each."""
        return list(zip(self.layers.tolist(), self.neurons.tolist(), strict=True))


def read_sets(path: Path) -> list[NeuronSet]:
    """Read sets of neurons from a JSON file, each in the file's order: best first.

    Raises
    ------
    InputError
        When the file cannot be read, or has another form.
    """
    try:
        parsed = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"could not read {path}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    found: dict[str, list[tuple[int, int]]] = {}
    if isinstance(parsed, Mapping) and _is_ranking(parsed.get("neurons")):
        parsed = parsed["neurons"]
    if isinstance(parsed, list):
        for entry in parsed:
            if not isinstance(entry, Mapping) or not isinstance(entry.get("tag"), str):
                raise InputError(f"{path}: a list holds entries with a tag each, got {_shown(entry)}; expected {_FORMS}")
            found.setdefault(entry["tag"], []).append(_pair(entry, path))
    elif isinstance(parsed, Mapping):
        for tag, entries in parsed.items():
            if not isinstance(entries, list):
                raise InputError(f"{path}: under {tag!r} is no list of neurons but {_shown(entries)}; expected {_FORMS}")
            found[tag] = [_pair(entry, path) for entry in entries]
    else:
        raise InputError(f"{path} holds {_shown(parsed)}; expected {_FORMS}")
    sets = [NeuronSet.of(tag, pairs) for tag, pairs in found.items()]
    if not sets or not all(map(len, sets)):
        empty = next((each.tag for each in sets if not len(each)), None)
        raise InputError(f"{path} names no neuron{'' if empty is None else f' of {empty!r}'}; expected {_FORMS}")
    return sets


def sets_of_ranking(entries: Iterable[Mapping[str, Any]]) -> list[NeuronSet]:
    """Make sets of the entries of `rank`."""
    found: dict[str, list[tuple[int, int]]] = {}
    for entry in entries:
        found.setdefault(str(entry["tag"]), []).append((int(entry["layer"]), int(entry["neuron"])))
    return [NeuronSet.of(tag, pairs) for tag, pairs in found.items()]


def check_sets(sets: Sequence[NeuronSet], layers: int, neurons: int, what: str) -> None:
    """Refuse neurons that a model does not have.

    Raises
    ------
    InputError
        When a layer or a neuron is out of range.
    """
    for each in sets:
        wrong = (each.layers < 0) | (each.layers >= layers) | (each.neurons < 0) | (each.neurons >= neurons)
        if wrong.any():
            place = int(np.flatnonzero(wrong)[0])
            raise InputError(
                f"{what} has layers 0 to {layers - 1} of {neurons:,} neurons, no {neuron_name(*each.pairs()[place])} (of "
                f"tag {each.tag}): these neurons are of another model"
            )


def matched_sets(
    sets: Sequence[NeuronSet], *, width: int, draws: int, seed: int
) -> tuple[list[NeuronSet], list[tuple[int, ...]]]:
    """Draw random sets with as many neurons in every layer as each set has, none of them in the set itself.

    Sets with the same number of neurons in every layer share their draws, which then hold none of the neurons of any of
    them (as long as that leaves enough neurons): their random sets are the same distribution, computed once.

    Parameters
    ----------
    width
        Neurons per layer.
    draws
        Random sets for every set.
    seed
        Of the draws, which depend on it, the set's own neurons and those of the sets it shares with, on nothing else.

    Returns
    -------
    The random sets, and for every set of `sets` the positions of its draws among them.

    Raises
    ------
    InputError
        When a layer has too few other neurons to draw from.
    """
    groups: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for place, each in enumerate(sets):
        groups.setdefault(each.profile, []).append(place)
    drawn: list[NeuronSet] = []
    positions: dict[int, tuple[int, ...]] = {}
    for profile, members in groups.items():
        together = [sets[place] for place in members]
        shared = [members] if len(members) == 1 or _enough(together, profile, width) else [[place] for place in members]
        for some in shared:
            mine = _draw([sets[place] for place in some], profile, width, draws, seed)
            where = tuple(range(len(drawn), len(drawn) + draws))
            positions |= dict.fromkeys(some, where)
            drawn += mine
    return drawn, [positions[place] for place in range(len(sets))]


def _used(sets: Sequence[NeuronSet], layer: int) -> NDArray[np.int64]:
    return np.unique(np.concatenate([each.neurons[each.layers == layer] for each in sets]))


def _enough(sets: Sequence[NeuronSet], profile: Iterable[tuple[int, int]], width: int) -> bool:
    # with exactly as many left as are drawn, all draws would be the same set
    return all(width - len(_used(sets, layer)) > count for layer, count in profile)


def _draw(
    sets: Sequence[NeuronSet], profile: Sequence[tuple[int, int]], width: int, draws: int, seed: int
) -> list[NeuronSet]:
    if draws and not _enough(sets, profile, width):
        layer, count = next((layer, count) for layer, count in profile if width - len(_used(sets, layer)) <= count)
        raise InputError(
            f"{sets[0].tag}: {count:,} of the {width:,} neurons of layer {layer} are key neurons, which leaves too few to "
            f"draw random sets of {count:,} from: choose fewer (-k)"
        )
    left = {layer: np.setdiff1d(np.arange(width), _used(sets, layer)) for layer, _ in profile}
    name = zlib.crc32(json.dumps([sorted(each.pairs()) for each in sets]).encode())
    result = []
    for number in range(draws):
        rng = np.random.default_rng([seed, name, number])
        chosen = [rng.choice(left[layer], size=count, replace=False) for layer, count in profile]
        result.append(
            NeuronSet(
                tag=f"random {number + 1}",
                layers=np.repeat([layer for layer, _ in profile], [count for _, count in profile]).astype(np.int64),
                neurons=np.concatenate(chosen).astype(np.int64),
            )
        )
    return result


def _is_ranking(entries: Any) -> bool:
    return isinstance(entries, list) and all(isinstance(entry, Mapping) and "tag" in entry for entry in entries)


def _pair(entry: Any, path: Path) -> tuple[int, int]:
    if isinstance(entry, str):
        return parse_neuron(entry)
    both = (entry.get("layer"), entry.get("neuron")) if isinstance(entry, Mapping) else entry
    if not isinstance(both, Sequence) or len(both) != 2 or not all(type(number) is int for number in both):
        raise InputError(f"{path}: {_shown(entry)} is no neuron; expected {_FORMS}")
    return int(both[0]), int(both[1])


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"
