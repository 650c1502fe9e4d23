"""The highest and lowest tokens of every neuron within every tag of a label: kept in the index, read, and put together.

Unlike the lists per block these are of all covered blocks together: a question about one tag reads nothing else.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.store.index_kernels import key_values, value_keys
from neuronlake.store.index_results import OfBlocks, fitting, index_staging, publish_instead
from neuronlake.store.objects import LakePath
from neuronlake.store.parallel import map_ordered
from neuronlake.store.sharded import ShardedArray, ShardedWriter, write_sharded
from neuronlake.store.tag_kernels import FULL, SIZE, SPACE, update_bags

TAG_EXTREMES = SIZE
"""Highest and lowest tokens that are listed per neuron and tag."""
_PREFIX = "tags-"
_VERSION = 1
_ARRAYS = ("rows", "values", "tags")


@dataclass(frozen=True, kw_only=True)
class TagLists(OfBlocks):
    """Lists of one label at one site, of some blocks."""

    @property
    def labels(self) -> dict[str, Any]:
        """Which tokens have which tag: what `analysis.labels.labels_key` gives."""
        return dict(self.record["labels"])

    @property
    def tags(self) -> tuple[str, ...]:
        """All that occur in the covered blocks, or in the plan when they were made; sorted."""
        return tuple(self.record["tags"])

    @cached_property
    def count(self) -> NDArray[np.int64]:
        """Tokens with each tag in the covered blocks, (tags,): `min(TAG_EXTREMES, count)` entries of a list are in use."""
        return np.array(self.record["count"], dtype=np.int64)

    @cached_property
    def arrays(self) -> dict[str, ShardedArray]:
        """``rows`` and ``values`` (layers, neurons, tags, 2, TAG_EXTREMES), ``tags`` (blocks, block rows)."""
        return {name: ShardedArray(self.folder / name) for name in _ARRAYS}

    def extremes(self, place: int, neuron: int, *, bottom: bool) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows and values of a neuron's highest (or lowest) tokens, best first, (tags, TAG_EXTREMES) each.

        Parameters
        ----------
        place
            Position of the layer among the stored ones.

        Raises
        ------
        DamageError
            When they are not what was written.
        """
        rows, values = (self.arrays[name].read(place, neuron)[:, int(bottom)] for name in ("rows", "values"))
        return rows.astype(np.int64), values.astype(np.float32)

    def row_tags(self, blocks: Sequence[int], block_rows: int) -> NDArray[np.int16]:
        """Tag of every row of some blocks, −1 where it has none or the block is not covered; int16 (blocks × rows,).

        Raises
        ------
        DamageError
            When they are not what was written.
        """
        found = np.full((len(blocks), block_rows), -1, dtype=np.int16)
        place = {block: at for at, block in enumerate(self.blocks)}
        covered = [at for at, block in enumerate(blocks) if block in place]
        found[covered] = self._tags[[place[blocks[at]] for at in covered]]
        return found.reshape(-1)

    @cached_property
    def _tags(self) -> NDArray[np.int16]:
        array = self.arrays["tags"]
        return np.stack([array.read_part(place) for place in range(array.shape[0])])


def find_tag_lists(root: LakePath, site: str, checksums: Mapping[int, str]) -> list[TagLists]:
    """Return the lists of a site that fit the committed blocks; of one label, those that cover most.

    Parameters
    ----------
    checksums
        Block → checksum of its commit record.
    """
    best: dict[str, TagLists] = {}
    for lists in fitting(TagLists, root, f"{_PREFIX}{site}-", site, checksums, version=_VERSION):
        best.setdefault(json.dumps(lists.labels, sort_keys=True), lists)
    return [best[key] for key in sorted(best)]


class LayerLists:
    """Lists of one layer that chunks are added to; different chunks from different threads.

    Parameters
    ----------
    tags
        How many.
    neurons, chunk_neurons
        Of the layer, of a chunk.
    values
        Format of the values: ``float16``, ``bfloat16`` or ``float32``.
    """

    def __init__(self, *, tags: int, neurons: int, chunk_neurons: int, values: str):
        self._values, self._width, self._neurons = values, chunk_neurons, neurons
        shape = (tags, 2, neurons)
        self._keys = np.empty((*shape, SPACE), dtype=_key_dtype(values))
        self._rows = np.empty((*shape, SPACE), dtype=np.uint32)
        self._cuts = np.zeros(shape, dtype=self._keys.dtype)
        self._counts = np.zeros(shape, dtype=np.uint8)
        chunks = -(-neurons // chunk_neurons)
        self._fill = np.zeros((chunks, tags), dtype=np.int64)
        self._tokens = np.zeros((chunks, tags), dtype=np.int64)
        self._last = np.full(chunks, -1, dtype=np.int64)

    @staticmethod
    def bytes(*, tags: int, neurons: int, values: str) -> int:
        """Memory that it takes."""
        return tags * 2 * neurons * (SPACE * (_key_dtype(values).itemsize + 4) + 4)

    def go_on_from(self, lists: TagLists, place: int, tags: Sequence[str]) -> None:
        """Begin with what is kept, whose tags are among these."""
        places = [tags.index(tag) for tag in lists.tags]
        keys = value_keys(lists.arrays["values"].read_part(place), self._values)
        keys[:, :, 1] *= -1
        self._keys[places, :, :, :TAG_EXTREMES] = keys.transpose(1, 2, 0, 3)
        self._rows[places, :, :, :TAG_EXTREMES] = lists.arrays["rows"].read_part(place).transpose(1, 2, 0, 3)
        self._cuts[places] = self._keys[places, :, :, TAG_EXTREMES - 1]
        self._counts[places] = np.minimum(lists.count, TAG_EXTREMES)[:, None, None]
        self._fill[:, places] = np.where(lists.count <= TAG_EXTREMES, lists.count, FULL)
        self._tokens[:, places] = lists.count
        self._last[:] = max(lists.blocks)

    def add(self, block: int, chunk: int, codes: NDArray[Any], order: NDArray[np.int32], starts: NDArray[np.int64]) -> None:
        """Add the labelled rows of a chunk: `order` by tag, each tag from ``starts[tag]`` on, see `update_bags`."""
        first = chunk * self._width
        width = min(self._width, self._neurons - first)
        bags = self._cuts, self._counts, self._keys, self._rows
        later = bool(block > self._last[chunk])
        update_bags(codes, order, starts, block * codes.shape[0], first, width, self._fill[chunk], *bags, later=later)
        self._tokens[chunk] += np.diff(starts)
        self._last[chunk] = max(self._last[chunk], block)

    def finish(self) -> tuple[NDArray[np.uint32], NDArray[Any], NDArray[np.int64]]:
        """Rows and values, (neurons, tags, 2, TAG_EXTREMES) each, zero where not in use, and the tokens per tag."""
        if np.any(self._tokens != self._tokens[0]):
            raise AssertionError("some chunks of the layer were given blocks that others were not")
        tokens, fill = self._tokens[0], self._fill[0]
        shape = (self._neurons, len(tokens), 2, TAG_EXTREMES)
        rows, keys = np.zeros(shape, dtype=np.uint32), np.zeros(shape, dtype=np.int32)
        for tag in range(len(tokens)):
            entries = fill[tag] if fill[tag] != FULL else self._counts[tag][..., None]
            # highest key first, then the lower row, as one integer each
            packed = self._rows[tag].astype(np.int64) - (self._keys[tag].astype(np.int64) << 32)
            packed[np.broadcast_to(np.arange(SPACE) >= entries, packed.shape)] = np.iinfo(np.int64).max
            packed.sort(axis=-1)
            used = min(int(tokens[tag]), TAG_EXTREMES)
            best = packed[..., :used].transpose(1, 0, 2)
            rows[:, tag, :, :used] = best & 0xFFFFFFFF
            keys[:, tag, :, :used] = -(best >> 32)
        keys[:, :, 1] *= -1
        return rows, key_values(keys, self._values), tokens


def keep_tag_lists(
    root: LakePath,
    site: str,
    *,
    labels: Mapping[str, Any],
    tags: Sequence[str],
    blocks: Mapping[int, str],
    row_tags: NDArray[np.int16],
    layers: int,
    neurons: int,
    values: str,
    layer: Callable[[int], LayerLists],
    progress: Callable[[int, int], None],
) -> None:
    """Write the lists of a label, layer by layer, and remove those that they replace.

    Parameters
    ----------
    blocks
        Covered block → checksum of its commit record.
    row_tags : int16 (blocks, block rows)
        Of the covered blocks, ascending.
    values
        Format of the values, see `LayerLists`.
    layer
        Position of a layer → its lists, complete; called from several threads.

    Raises
    ------
    StorageError
        When the file system refuses.
    """
    record: dict[str, Any] = {
        "version": _VERSION,
        "site": site,
        "labels": dict(labels),
        "tags": list(tags),
        "extremes": TAG_EXTREMES,
        "blocks": {str(block): blocks[block] for block in sorted(blocks)},
    }
    name = _name(record)
    with index_staging(root, name) as folder:
        shape = (layers, neurons, len(tags), 2, TAG_EXTREMES)
        writers = [
            ShardedWriter(folder, array, shape, dtype, sync=True)
            for array, dtype in (("rows", np.uint32), ("values", _kept_dtype(values)))
        ]

        def write(place: int) -> NDArray[np.int64]:
            *parts, count = layer(place).finish()
            for writer, part in zip(writers, parts, strict=True):
                writer.write(place, part)
            return count

        for place, count in enumerate(map_ordered(write, range(layers), ahead=1)):
            record["count"] = count.tolist()
            progress(place + 1, layers)
        for writer in writers:
            writer.close()
        write_sharded(folder, "tags", row_tags.shape, row_tags.dtype, row_tags.__getitem__, sync=True)
        publish_instead(root, folder, name, record, name.rsplit("-", 1)[0], sync=True)


def _name(record: Mapping[str, Any]) -> str:
    """Folder name: what it is of, then which blocks."""
    marks = [
        hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()[:8]
        for part in (record["labels"], [record["blocks"], record["tags"]])
    ]
    return "-".join([_PREFIX.rstrip("-"), record["site"], *marks])


def _kept_dtype(values: str) -> np.dtype[Any]:
    return np.dtype(np.float16 if values == "float16" else np.float32)


def _key_dtype(values: str) -> np.dtype[Any]:
    return np.dtype(np.int32 if values == "float32" else np.int16)
