"""The index of a lake: written with each block, merged into few files, and never trusted where it does not fit the blocks.

It lies in ``index/`` as segments. A segment covers some blocks of one site; its record holds the checksums of their commit
records, and a segment of whose blocks one has changed is as good as absent. Losing the index loses nothing but time: it can
be made from the activations again, and whoever asks while it is not there reads them.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import neuronlake.store.layout as layout
from neuronlake.store.commits import commit_checksum, commit_checksums
from neuronlake.store.errors import DamageError
from neuronlake.store.files import read_checked
from neuronlake.store.index_build import EXTREMES, BlockIndex, BlockIndexer
from neuronlake.store.index_results import OfBlocks, fitting, index_staging
from neuronlake.store.kept import INDEX, discard, kept_record, kept_results, publish
from neuronlake.store.objects import LakePath
from neuronlake.store.parallel import map_ordered
from neuronlake.store.sharded import ShardedArray, write_sharded
from neuronlake.store.tables import from_parquet
from neuronlake.store.token_kernels import NOBODY, STRONGEST

if TYPE_CHECKING:
    from neuronlake.store.lake import Lake
    from neuronlake.store.tag_lists import TagLists

VERSION = 1
PREFIX = "blocks-"
"""Names of the segments begin with it."""
_PER_NEURON = ("top/rows", "top/values", "bottom/rows", "bottom/values", "sum")
_PER_TOKEN = ("tokens/neurons", "tokens/values")
_TOKENS = 512  # rows in a chunk of the lists per token
_MANY = 32  # segments of one block each that a writer merges as it goes on


@dataclass(frozen=True, kw_only=True)
class Segment(OfBlocks):
    """Index of some blocks of one site."""

    @cached_property
    def ordinary(self) -> NDArray[np.int64]:
        """Rows of each block that are neither special nor padding, (blocks,)."""
        return np.array(self.record["ordinary"], dtype=np.int64)

    @cached_property
    def arrays(self) -> dict[str, ShardedArray]:
        """Its arrays, see `_PER_NEURON` (layers, neurons, blocks, …) and `_PER_TOKEN` (blocks, rows, …)."""
        return {name: ShardedArray(self.folder / name) for name in (*_PER_NEURON, *_PER_TOKEN)}


def segments(root: LakePath, site: str, checksums: Mapping[int, str]) -> list[Segment]:
    """Return segments of a site that fit the committed blocks and do not overlap, those that cover most first.

    Parameters
    ----------
    checksums
        Block → checksum of its commit record.
    """
    chosen: list[Segment] = []
    covered: set[int] = set()
    for segment in fitting(Segment, root, f"{PREFIX}{site}-", site, checksums, version=VERSION):
        if not covered & set(segment.blocks):
            chosen.append(segment)
            covered |= set(segment.blocks)
    return chosen


def keep_block(root: LakePath, site: str, block: int, found: BlockIndex) -> None:
    """Write the index of a block that has just been committed, as a segment of its own, in this thread.

    Raises
    ------
    StorageError
        When the file system refuses.
    """
    record = _record(site, {block: commit_checksum(root, block)}, [found.ordinary])
    name = _name(record)
    with index_staging(root, name) as folder:
        for array, values in found.arrays.items():
            tokens = array in _PER_TOKEN
            whole = values[None] if tokens else values[:, :, None]
            width = _TOKENS if tokens else None
            write_sharded(folder, array, whole.shape, whole.dtype, whole.__getitem__, width=width, threads=1, sync=True)
        publish(folder, name, record, sync=True)


def merge(root: LakePath, parts: Sequence[Segment], *, threads: int | None = None) -> None:
    """Put segments of one site together into one, and remove them.

    Raises
    ------
    DamageError
        When one cannot be read.
    StorageError
        When the file system refuses.
    """
    place = {block: (part, at) for part in parts for at, block in enumerate(part.blocks)}
    blocks = sorted(place)
    site = parts[0].record["site"]
    record = _record(
        site,
        {block: place[block][0].record["blocks"][str(block)] for block in blocks},
        [int(place[block][0].ordinary[place[block][1]]) for block in blocks],
    )
    name = _name(record)
    order = np.argsort(np.concatenate([part.blocks for part in parts]), kind="stable")
    with index_staging(root, name) as folder:
        for array in _PER_NEURON:
            shape, dtype = parts[0].arrays[array].shape, parts[0].arrays[array].dtype

            def merged(layer: int, array: str = array) -> NDArray[Any]:
                return np.concatenate([part.arrays[array].read_part(layer) for part in parts], axis=1)[:, order]

            write_sharded(folder, array, (*shape[:2], len(blocks), *shape[3:]), dtype, merged, threads=threads, sync=True)
        for array in _PER_TOKEN:
            shape, dtype = parts[0].arrays[array].shape, parts[0].arrays[array].dtype

            def of_block(to: int, array: str = array) -> NDArray[Any]:
                part, at = place[blocks[to]]
                return part.arrays[array].read_part(at)

            write_sharded(
                folder, array, (len(blocks), *shape[1:]), dtype, of_block, width=_TOKENS, threads=threads, sync=True
            )
        publish(folder, name, record, sync=True)
    for part in parts:
        if part.name != name:
            discard(root, part.name, kept=INDEX)


def merge_many(root: LakePath, site: str, checksums: Mapping[int, str]) -> None:
    """Merge the segments of one block each, if they have become many: a query opens every segment.

    One that is damaged stays as it is, for `complete_index`: an extraction does not end for it.
    """
    single = [segment for segment in segments(root, site, checksums) if len(segment.blocks) == 1]
    if len(single) >= _MANY:
        with suppress(DamageError):
            merge(root, single, threads=1)


def complete_index(lake: "Lake", *, progress: Callable[[int, int], None] = lambda done, total: None) -> int:
    """Index the committed blocks that no segment covers, and merge all segments of a site into one.

    Segments of blocks that are committed meanwhile, by others, are left as they are.

    Returns
    -------
    int
        Blocks that were read.

    Raises
    ------
    DamageError
        When an activation chunk is damaged.
    StorageError
        When the file system refuses.
    """
    checksums = commit_checksums(lake.path, lake.blocks)
    missing: set[int] = set()
    for site in lake.sites:
        covered = {block for segment in segments(lake.path, site, checksums) for block in segment.blocks}
        missing |= set(lake.blocks) - covered
    for done, block in enumerate(sorted(missing)):
        progress(done, len(missing))
        for site, found in index_block(lake, block).items():
            keep_block(lake.path, site, block, found)
    progress(len(missing), len(missing))
    for site in lake.sites:
        parts = segments(lake.path, site, checksums)
        if len(parts) > 1:
            try:
                merge(lake.path, parts)
            except DamageError:
                for part in [part for part in parts if _damaged(part)] or parts:
                    discard(lake.path, part.name, kept=INDEX)
                return complete_index(lake, progress=progress)
        chosen = segments(lake.path, site, checksums)
        kept, covered = {part.name for part in chosen}, {block for part in chosen for block in part.blocks}
        for name in kept_results(lake.path, kept=INDEX):
            if name.startswith(f"{PREFIX}{site}-") and name not in kept and _is_obsolete(lake.path, name, covered):
                discard(lake.path, name, kept=INDEX)
    return len(missing)


def _is_obsolete(root: LakePath, name: str, covered: set[int]) -> bool:
    """Whether a segment that was not chosen is damaged, of blocks that have changed, or of blocks covered otherwise."""
    try:
        record = kept_record(root, name, kept=INDEX)
        if record["version"] != VERSION or covered >= {int(block) for block in record["blocks"]}:
            return True
        return any(commit_checksum(root, int(block)) != checksum for block, checksum in record["blocks"].items())
    except (DamageError, FileNotFoundError):  # a block's commit is gone
        return True


def index_block(lake: "Lake", block: int) -> dict[str, BlockIndex]:
    """Index one committed block from its activations."""
    indexer = BlockIndexer(lake.spec, block_flags(lake.path, lake.plan.files[layout.table_path("plan", block)]))
    buffers = _Buffers(lake)

    def add(where: tuple[str, int]) -> None:
        site, layer = where
        out, reader = buffers.mine(), lake.at(site).reader
        with reader.shard(layer, block, reader.fetch(layer, block, range(reader.chunks))) as shard:
            for chunk in range(reader.chunks):
                shard.codes(chunk, out)
                scales = reader.scales(layer, block, chunk) if reader.encoding.quantised else None
                indexer.add(site, layer, chunk, out, scales)

    for _ in map_ordered(add, [(site, layer) for site in lake.sites for layer in lake.layers]):
        pass
    return indexer.finish()


def block_flags(root: LakePath, record: Any) -> NDArray[np.uint8]:
    """Flags of a block's rows, from its checked plan table: uint8 (block rows,)."""
    flags: NDArray[np.uint8] = from_parquet(read_checked(root, record), ["flags"]).column("flags").to_numpy()
    return flags


class LakeIndex:
    """What a lake's segments know of one site: the reading side.

    Methods return what they find for the blocks they find it for; the caller reads the other blocks. Safe to share between
    threads.
    """

    def __init__(self, root: LakePath, site: str, blocks: Sequence[int]):
        self._root, self._site = root, site
        self._checksums = commit_checksums(root, blocks)
        self.segments = segments(root, site, self._checksums)

    @cached_property
    def tag_lists(self) -> "list[TagLists]":
        """Lists per tag, of every label that has them."""
        from neuronlake.store.tag_lists import find_tag_lists

        return find_tag_lists(self._root, self._site, self._checksums)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Covered blocks, ascending."""
        return tuple(sorted(block for segment in self.segments for block in segment.blocks))

    def extremes(self, place: int, neuron: int, *, bottom: bool) -> "Extremes":
        """Highest (or lowest) tokens of a neuron, block by block.

        Parameters
        ----------
        place
            Position of the layer among the stored ones.
        """
        side = "bottom" if bottom else "top"
        blocks, ordinary, rows, values = [], [], [], []
        for segment in self.segments:
            try:
                some_rows = segment.arrays[f"{side}/rows"].read(place, neuron)
                some_values = segment.arrays[f"{side}/values"].read(place, neuron)
            except DamageError:
                continue
            blocks.append(np.array(segment.blocks, dtype=np.int64))
            ordinary.append(segment.ordinary)
            rows.append(some_rows.astype(np.int64))
            values.append(some_values.astype(np.float32))
        if not blocks:
            none = np.empty(0, dtype=np.int64)
            return Extremes(none, none, none.reshape(0, EXTREMES), np.empty((0, EXTREMES), dtype=np.float32))
        return Extremes(np.concatenate(blocks), np.concatenate(ordinary), np.concatenate(rows), np.concatenate(values))

    def strongest(self, block: int, row: int) -> tuple[NDArray[np.uint32], NDArray[np.float32]] | None:
        """Neurons of largest magnitude on a row of a block, (STRONGEST,) each; None where it is not known."""
        for segment in self.segments:
            if block in segment.blocks:
                at = segment.blocks.index(block)
                try:
                    neurons, values = (segment.arrays[name].read(at, row) for name in _PER_TOKEN)
                except DamageError:
                    return None
                return neurons, values.astype(np.float32)
        return None


@dataclass(frozen=True)
class Extremes:
    """Highest or lowest tokens of a neuron in some blocks."""

    blocks: NDArray[np.int64]
    ordinary: NDArray[np.int64]
    """Rows of each block that could be listed, (blocks,)."""
    rows: NDArray[np.int64]
    """Within the block, best first, (blocks, EXTREMES); only the first `ordinary` are in use."""
    values: NDArray[np.float32]

    @property
    def used(self) -> NDArray[np.int64]:
        """Entries in use, (blocks,)."""
        return np.minimum(self.ordinary, self.rows.shape[1])


class _Buffers:
    """A buffer per thread for a chunk."""

    def __init__(self, lake: "Lake"):
        self._local = threading.local()
        self._shape, self._dtype = lake.reader.chunk_shape, lake.reader.encoding.codes

    def mine(self) -> NDArray[Any]:
        if not hasattr(self._local, "buffer"):
            self._local.buffer = np.empty(self._shape, dtype=self._dtype)
        return self._local.buffer  # type: ignore[no-any-return]


def _record(site: str, blocks: Mapping[int, str], ordinary: Iterable[int]) -> dict[str, Any]:
    return {
        "version": VERSION,
        "site": site,
        "blocks": {str(block): checksum for block, checksum in blocks.items()},
        "ordinary": list(ordinary),
        "extremes": EXTREMES,
        "strongest": STRONGEST,
        "nobody": int(NOBODY),
    }


def _name(record: Mapping[str, Any]) -> str:
    blocks = sorted(int(block) for block in record["blocks"])
    mark = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:8]
    return f"{PREFIX}{record['site']}-{blocks[0]:06d}-{blocks[-1]:06d}-{mark}"


def _damaged(segment: Segment) -> bool:
    try:
        kept_record(segment.root, segment.name, kept=INDEX, full=True)
    except DamageError:
        return True
    return False
