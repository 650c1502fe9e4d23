"""What a lake keeps of its model's weights, so that questions about neurons need neither the model nor its libraries.

``weights/NAME`` holds, of every neuron of the stored layers, the vector that it writes to the residual stream and how that
reads in the vocabulary; and, where it is small, the input embedding of every token. It belongs to one model, not to blocks:
the record names the model by its SHA-256, and weights of another model are as good as absent.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from neuronlake.store.errors import DamageError, InputError, StorageError
from neuronlake.store.files import FileRecord, read_checked, storage_error, sync_folder, write_plain
from neuronlake.store.kept import WEIGHTS, discard, kept_record, kept_results, publish, staging
from neuronlake.store.objects import LakePath
from neuronlake.store.sharded import ShardedArray, write_sharded
from neuronlake.store.tables import to_parquet

VERSION = 1
LISTED = 20
"""Vocabulary tokens listed at either end, of every neuron."""
MOMENTS = ("mean", "variance", "skewness", "kurtosis")
"""Of the cosines over the vocabulary; kurtosis is 3 for a normal distribution."""
ENDS = ("top", "bottom")
"""Highest and lowest cosines."""
VECTORS, NORMS, EMBEDDINGS, TOKENS = "output/vectors", "output/norms", "embeddings", "tokens.parquet"
Part = Callable[[int], NDArray[Any]]
"""Layer's position → its values."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Kept weights of one model, opened for reading; safe to share between threads.

    Every method raises DamageError where a file is not what was written.
    """

    root: LakePath
    name: str
    record: Mapping[str, Any] = field(repr=False)

    @property
    def listed(self) -> int:
        """Vocabulary tokens listed at either end."""
        return int(self.record["listed"])

    @property
    def embedded(self) -> bool:
        """Whether the input embeddings are there."""
        return bool(self.record["embeddings"])

    @cached_property
    def tokens(self) -> dict[int, str]:
        """Text of every token of the vocabulary, by id."""
        (entry,) = [entry for entry in self.record["files"] if entry["path"] == TOKENS]
        data = read_checked(self._folder, FileRecord(**entry))
        table = pq.read_table(io.BytesIO(data))
        return dict(zip(table.column("id").to_pylist(), table.column("text").to_pylist(), strict=True))

    def layer(self, name: str, place: int) -> NDArray[Any]:
        """Read an array's part of the layer at that position of the stored ones, (neurons, …)."""
        return ShardedArray(self._folder / name).read_part(place)

    def neuron(self, name: str, place: int, neuron: int) -> NDArray[Any]:
        """Read an array's entry of one neuron."""
        return ShardedArray(self._folder / name).read(place, neuron)

    @cached_property
    def embeddings(self) -> NDArray[np.float32]:
        """The input embedding of every token id, float32 (ids, width); kept in memory once read."""
        return ShardedArray(self._folder / EMBEDDINGS).read_part(0).astype(np.float32)

    @property
    def _folder(self) -> LakePath:
        return self.root / WEIGHTS / self.name


def find_weights(root: LakePath, model: Any, *, full: bool = False) -> Weights | None:
    """Return the kept weights of a model (its SHA-256), or None.

    Parameters
    ----------
    full
        Compare every byte with the record, not only sizes and metadata.

    Raises
    ------
    DamageError
        When they are damaged.
    """
    name = _name(str(model))
    if name not in kept_results(root, kept=WEIGHTS):
        return None
    try:
        record = kept_record(root, name, kept=WEIGHTS, full=full)
    except DamageError as error:
        raise DamageError(f"{error}; {_make(root)} makes the weights again") from None
    if record["version"] != VERSION or record["model"]["sha256"] != model:
        return None
    return Weights(root=root, name=name, record=record)


def open_weights(root: LakePath, model: Any) -> Weights:
    """Return the kept weights of a model.

    Raises
    ------
    InputError
        When there are none; the message says how to make them.
    DamageError
        When they are damaged.
    """
    found = find_weights(root, model)
    if found is None:
        raise InputError(f"{root} holds no weights of its model: run {_make(root)} once")
    return found


def keep_weights(
    root: LakePath,
    record: Mapping[str, Any],
    arrays: Mapping[str, tuple[tuple[int, ...], Any, Part]],
    tokens: Mapping[int, str],
) -> Weights:
    """Write the weights of a model and make them last; weights of other models are removed.

    Parameters
    ----------
    record
        model (with its sha256), layers, and what the arrays were made of.
    arrays
        Name → shape (layers, neurons, …), dtype, and what gives a layer's values. ``embeddings`` is (1, ids, width).
    tokens
        Text of every token that has one, by id.

    Raises
    ------
    StorageError
        When the file system refuses; nothing is left behind.
    """
    name = _name(str(record["model"]["sha256"]))
    with _staging(root, name) as folder:
        for array, (shape, dtype, part) in arrays.items():
            write_sharded(folder, array, shape, dtype, part, sync=True)
        table = pa.table({"id": pa.array(tokens.keys(), pa.int64()), "text": pa.array(tokens.values(), pa.string())})
        write_plain(folder / TOKENS, [to_parquet(table)], sync=True)
        sync_folder(folder)
        # of other models, or damaged
        for other in kept_results(root, kept=WEIGHTS):
            discard(root, other, kept=WEIGHTS)
        publish(folder, name, {"version": VERSION, **record}, sync=True)
    return Weights(root=root, name=name, record=kept_record(root, name, kept=WEIGHTS))


def neuron_arrays(listed: int) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Name → dtype and shape of an entry of the arrays about the vocabulary and the norms, one entry per neuron."""
    return {
        NORMS: (np.float32, ()),
        **{f"vocabulary/{end}_ids": (np.uint32, (listed,)) for end in ENDS},
        **{f"vocabulary/{end}_cosines": (np.float32, (listed,)) for end in ENDS},
        **{f"vocabulary/{moment}": (np.float32, ()) for moment in MOMENTS},
    }


def _make(root: LakePath) -> str:
    return f"`neuronlake weights {root} --model PATH|ID`"


def _name(model: str) -> str:
    return f"model-{model[:16]}"


@contextmanager
def _staging(root: LakePath, name: str) -> Iterator[Path]:
    with staging(root, name, kept=WEIGHTS) as folder:
        try:
            yield folder
        except StorageError:
            raise
        except OSError as error:
            raise storage_error(error, folder, "write") from error
