"""Activation files of NeuroX: HDF5, one data set a sentence.

Data set ``"17"`` holds sentence 17 as (layers, words, neurons). Files written with `decompose_layers` hold one layer each
and are called ``NAME-layer3.hdf5``. Data set ``sentence_to_index`` holds one JSON object, sentence → number; a sentence is
its words joined by blanks, and when it occurs for the second time NeuroX appends `` (Occurrence 2)`` to it.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.store.compose import LayerOf
from neuronlake.store.errors import InputError
from neuronlake.store.foreign import ForeignSettings, Part, json_text, unreadable

_OCCURRENCE = re.compile(r" \(Occurrence \d+\)$")
_OPEN_SENTENCES = 1 << 14  # handles kept: more than a block has sentences, so that its layers open each but once


class NeuroxFile:
    """The sentences of one file behind each other: (layers, rows, neurons)."""

    def __init__(self, path: Path, file: Any, neurons_per_layer: int | None):
        self._path = path
        self._neurons_per_layer = neurons_per_layer
        self.sentences = sorted((name for name in file if name.isdecimal()), key=int)
        if not self.sentences or "sentence_to_index" not in file:
            raise InputError(f"{path}: not a NeuroX file (it needs data sets '0', '1', … and 'sentence_to_index')")
        self._open = lru_cache(maxsize=_OPEN_SENTENCES)(lambda sentence: file[self.sentences[sentence]])
        shapes = [self._shape(sentence) for sentence in range(len(self.sentences))]
        self.lengths = [rows for _, rows, _ in shapes]
        for name, (layers, _, neurons) in zip(self.sentences, shapes, strict=True):
            if (layers, neurons) != (shapes[0][0], shapes[0][2]):
                raise InputError(
                    f"{path}: sentence {name} has {layers} layers × {neurons} neurons, sentence {self.sentences[0]} has "
                    f"{shapes[0][0]} × {shapes[0][2]}"
                )
        self._starts = np.cumsum([0, *self.lengths])
        self.shape = (shapes[0][0], int(self._starts[-1]), shapes[0][2])
        self.forms = self._read_forms(file)

    def __getitem__(self, key: tuple[int, slice]) -> NDArray[Any]:
        """Return rows ``[first:last]`` of a layer."""
        layer, rows = key
        first, last, _ = rows.indices(self.shape[1])
        pieces = []
        sentence = int(np.searchsorted(self._starts, first, side="right")) - 1
        while first < last:
            start, end = int(self._starts[sentence]), min(last, int(self._starts[sentence + 1]))
            if first < end:
                pieces.append(self._part(sentence, layer, first - start, end - start))
                first = end
            sentence += 1
        return np.concatenate(pieces)

    def _part(self, sentence: int, layer: int, first: int, last: int) -> NDArray[Any]:
        dataset, neurons = self._open(sentence), self.shape[2]
        try:
            if dataset.ndim == 3:
                part = dataset[layer, first:last]
            else:  # (tokens, layers · neurons)
                part = dataset[first:last, layer * neurons : (layer + 1) * neurons]
        except OSError as error:  # a damaged or truncated file is found when it is read
            raise InputError(f"{self._path}: sentence {self.sentences[sentence]} cannot be read ({error})") from None
        return np.asarray(part)

    def _shape(self, sentence: int) -> tuple[int, int, int]:
        """(layers, rows, neurons) of a sentence."""
        dataset, name = self._open(sentence), self.sentences[sentence]
        shape: tuple[int, ...] = getattr(dataset, "shape", None) or ()
        if len(shape) not in (2, 3) or dataset.dtype.kind not in "fiu":
            raise InputError(f"{self._path}: sentence {name} has shape {shape}, expected numbers (layers, tokens, neurons)")
        if len(shape) == 3:
            if self._neurons_per_layer not in (None, shape[2]):
                raise InputError(f"{self._path}: layers have {shape[2]} neurons, {self._neurons_per_layer} were expected")
            return (int(shape[0]), int(shape[1]), int(shape[2]))
        neurons = self._neurons_per_layer or shape[1]
        if shape[1] % neurons:
            raise InputError(f"{self._path}: sentence {name} has {shape[1]} columns, not a multiple of {neurons} neurons")
        return (int(shape[1] // neurons), int(shape[0]), int(neurons))

    def _read_forms(self, file: Any) -> list[str]:
        """Words of all sentences, one per row."""
        try:
            text = np.asarray(file["sentence_to_index"]).reshape(-1)[0]
        except (OSError, IndexError, ValueError) as error:
            raise unreadable(self._path, error, "a NeuroX file") from None
        index = json_text(text if isinstance(text, bytes) else str(text).encode(), self._path, "a NeuroX file")
        if not isinstance(index, dict):
            raise InputError(f"{self._path}: 'sentence_to_index' holds no JSON object of sentences")
        texts = {str(number): sentence for sentence, number in index.items()}
        forms: list[str] = []
        for name, length in zip(self.sentences, self.lengths, strict=True):
            if name not in texts:
                raise InputError(f"{self._path}: 'sentence_to_index' does not have sentence {name}")
            forms.extend(self._words(name, texts[name], length))
        return forms

    def _words(self, name: str, sentence: str, length: int) -> list[str]:
        for text in (sentence, _OCCURRENCE.sub("", sentence)):
            words = text.split(" ") if text else []
            if len(words) == length:
                return words
        raise InputError(
            f"{self._path}: sentence {name} has {length} tokens but {len(sentence.split(' '))} words: {sentence[:60]!r}"
        )


def open_neurox(paths: Sequence[Path], settings: ForeignSettings) -> tuple[list[Part], dict[str, Any], Callable[[], None]]:
    """Open one file with all layers, or one per layer; return them, the columns form and sentence, and how to close.

    Raises
    ------
    InputError
        When h5py is not installed, a file is malformed, or two files have different sentences.
    """
    try:
        import h5py
    except ModuleNotFoundError:
        raise InputError("NeuroX files are HDF5 and need h5py: pip install 'neuronlake[import]'") from None
    with ExitStack() as stack:
        files: list[NeuroxFile] = []
        for path in paths:
            try:
                handle = stack.enter_context(h5py.File(path, "r"))
            except OSError as error:
                raise unreadable(path, error, "a readable HDF5 file") from None
            files.append(NeuroxFile(path, handle, settings.neurons_per_layer))
        first = files[0]
        parts = []
        for path, file in zip(paths, files, strict=True):
            if (file.sentences, file.lengths, file.forms) != (first.sentences, first.lengths, first.forms):
                raise InputError(f"{path} and {paths[0]} are of different sentences")
            array = file if len(files) == 1 and file.shape[0] > 1 else _single(path, file)
            parts.append(Part(name=path.name, key=path.stem, array=array))
        tokens = {"form": first.forms, "sentence": np.repeat([int(name) for name in first.sentences], first.lengths)}
        return parts, tokens, stack.pop_all().close
    raise AssertionError("unreachable: an ExitStack of files swallows no exception")


def _single(path: Path, file: NeuroxFile) -> Any:
    if file.shape[0] != 1:
        raise InputError(f"{path} holds {file.shape[0]} layers: give it alone, or files of one layer each")
    return LayerOf(file, 0)
