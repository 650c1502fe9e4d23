"""Store, once, what questions about neurons need of a model's weights. Without torch: see `checkpoint`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from neuronlake.extractor.checkpoint import Checkpoint, check_finite, read_json
from neuronlake.extractor.source import ModelSource
from neuronlake.extractor.vocabulary import read_vocabulary
from neuronlake.store.errors import DamageError, InputError
from neuronlake.store.lake import Lake, open_lake
from neuronlake.store.layout import DEFAULT_SITE
from neuronlake.store.objects import LakeName, LakePath
from neuronlake.store.weights import EMBEDDINGS, VECTORS, Weights, find_weights, keep_weights, neuron_arrays

MAX_EMBEDDING_BYTES = 1 << 30  # 1 GiB as float16: 128,256 tokens of 4,096 dimensions
_HIGHEST = float(np.finfo(np.float16).max)
_NOT_TEXT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, kw_only=True)
class WeightsReport:
    """What `store_weights` did."""

    lake: LakePath
    weights: Weights
    made: bool
    """Whether they were made now; otherwise they were there."""

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(int(entry["bytes"]) for entry in self.weights.record["files"])

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        record = {name: value for name, value in self.weights.record.items() if name != "files"}
        return {"lake": str(self.lake), "made": self.made, "bytes": self.bytes, **record}


def store_weights(
    lake: LakeName,
    source: ModelSource,
    *,
    say: Callable[[str], None] = lambda message: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> WeightsReport:
    """Store the output vector of every neuron, how it reads in the vocabulary, and the input embeddings.

    Parameters
    ----------
    lake
        Its folder.
    source
        The model that the lake was made with.
    say
        Called with one line before each step that takes long.
    progress
        Called with (pieces done, pieces in all) of the vocabulary reading.

    Raises
    ------
    InputError
        When the lake was made with another model, or its architecture is not supported.
    StorageError
        When the file system refuses; the lake is as it was.
    """
    opened = open_lake(lake)
    check_model(opened, source)
    opened = opened.at(DEFAULT_SITE)
    try:
        there = find_weights(opened.path, source.sha256, full=True)
    except DamageError:
        there = None
    if there is not None:
        return WeightsReport(lake=opened.path, weights=there, made=False)
    checkpoint = Checkpoint(source.folder)
    _check_shape(opened, checkpoint)
    tokens = token_texts(source.folder, checkpoint.unembedding.shape[0])
    say(f"reading {len(opened.layers) * opened.neurons:,} neurons in a vocabulary of {len(tokens):,}")
    values = read_vocabulary(checkpoint, opened.layers, np.array(sorted(tokens), dtype=np.int64), progress=progress)
    return WeightsReport(lake=opened.path, weights=_keep(opened, checkpoint, values, tokens), made=True)


def token_texts(folder: Path, ids: int) -> dict[int, str]:
    """Text of every id below `ids` that has a token, as it stands in running text: with its leading space.

    A token of a few bytes that are no whole character is shown as the tokenizer's own name of it.

    Raises
    ------
    InputError
        When the folder has no ``tokenizer.json``, or a malformed one.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"{folder} has no tokenizer.json, which the texts of the vocabulary come from")
    read_json(path)  # a truncated file; the library has no error of its own to catch
    tokenizer = Tokenizer.from_file(str(path))
    names = {number: name for name, number in tokenizer.get_vocab(with_added_tokens=True).items() if number < ids}
    numbers = sorted(names)
    # Decoders of SentencePiece drop the space that opens a text: so every token follows another one.
    before = tokenizer.token_to_id("a")
    opening = [] if before is None else [before]
    skip = len(tokenizer.decode(opening)) if opening else 0
    texts = tokenizer.decode_batch([[*opening, number] for number in numbers], skip_special_tokens=False)
    decoded = {number: text[skip:] for number, text in zip(numbers, texts, strict=True)}
    return {number: names[number] if not text or _NOT_TEXT in text else text for number, text in decoded.items()}


def check_model(lake: Lake, source: ModelSource) -> None:
    """Raise InputError where a lake was made with another model, or with none."""
    made_by = lake.spec.model
    if made_by.get("architecture") == "imported":
        raise InputError(f"{lake.path} holds imported values, of no model that neuronlake knows")
    if source.sha256 != made_by.get("sha256"):
        raise InputError(
            f"{lake.path} was made by {made_by.get('name')} (sha256 {str(made_by.get('sha256'))[:16]}…), "
            f"not by {source.name} (sha256 {source.sha256[:16]}…): give --model the weights it was made with"
        )


def _check_shape(lake: Lake, checkpoint: Checkpoint) -> None:
    if lake.neurons != checkpoint.neurons or not set(lake.layers) <= set(checkpoint.layers):
        raise InputError(
            f"{lake.path} has layers {lake.layers[0]} to {lake.layers[-1]} of {lake.neurons} neurons, the checkpoint's MLPs "
            f"are layers {checkpoint.layers[0]} to {checkpoint.layers[-1]} of {checkpoint.neurons}"
        )


def _keep(lake: Lake, checkpoint: Checkpoint, values: dict[str, NDArray[Any]], tokens: dict[int, str]) -> Weights:
    """Write everything; the vectors are read from the checkpoint a second time, layer by layer."""
    layers, neurons, width = lake.layers, lake.neurons, checkpoint.width
    rows = checkpoint.embeddings.shape[0]
    embedded = rows * width * np.dtype(np.float16).itemsize <= MAX_EMBEDDING_BYTES

    def vectors(place: int) -> NDArray[np.float16]:
        return _half(checkpoint.output_vectors(layers[place]), f"the output vectors of layer {layers[place]}")

    arrays: dict[str, Any] = {VECTORS: ((len(layers), neurons, width), np.float16, vectors)}
    for name, (dtype, entry) in neuron_arrays(values["vocabulary/top_ids"].shape[-1]).items():
        arrays[name] = ((len(layers), neurons, *entry), dtype, values[name].__getitem__)
    if embedded:
        arrays[EMBEDDINGS] = (
            (1, rows, width),
            np.float16,
            lambda place: _half(checkpoint.embeddings[:], "the embeddings"),
        )
    record = {
        "model": dict(lake.spec.model),
        "layers": list(layers),
        "neurons": neurons,
        "width": width,
        "vocabulary": len(tokens),
        "listed": values["vocabulary/top_ids"].shape[-1],
        "tied": checkpoint.tied,
        "final_gain": checkpoint.gain_formula,
        "post_norm": checkpoint.post_norm(layers[0]) is not None,
        "centred": True,
        "embeddings": embedded,
    }
    return keep_weights(lake.path, record, arrays, tokens)


def _half(values: NDArray[np.float32], what: str) -> NDArray[np.float16]:
    """Round to float16: exact for checkpoints of 16 bits down to 7.6e-6, within 2⁻¹¹ of each value else."""
    check_finite(values, what)
    largest = float(np.abs(values).max(initial=0))
    if largest > _HIGHEST:
        raise InputError(f"{what} reach {largest:.3g}, float16 holds {_HIGHEST:.0f} at most")
    return values.astype(np.float16)
