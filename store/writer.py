"""From a full buffer to a committed block, in the background."""

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import chain
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

import neuronlake.store.layout as layout
from neuronlake.store.buffer import BlockBuffer
from neuronlake.store.commits import Commit, commit_checksum, mixed, write_commit
from neuronlake.store.encodings import checksum, get_encoding
from neuronlake.store.errors import StorageError
from neuronlake.store.files import FileRecord, StagedFile, StagedObject, stage, sync_folder
from neuronlake.store.index import block_flags, keep_block, merge_many
from neuronlake.store.index_build import BlockIndexer
from neuronlake.store.objects import LakePath
from neuronlake.store.parallel import usable_cpus
from neuronlake.store.plan_record import read_plan_record
from neuronlake.store.quantise import expand, quantise
from neuronlake.store.shard import build_index
from neuronlake.store.spec import LakeSpec

Tap = Callable[[str, int, int, int, NDArray[Any]], None]
"""Called with site, layer, block, chunk and the bit patterns of the values as they are stored, (block rows, c)."""
_PUBLISHERS = 4  # they wait for the disk


class BlockWriter:
    """Writes blocks while the next one is being computed.

    `buffer` hands out a free buffer, `submit` takes it back: its layers are encoded and written by a pool of threads,
    synced and renamed by another, and when all files of the block are safe its commit record is written. At most one block
    is being committed while the next one is filled: beyond that, `submit` waits (back-pressure). An error of the background
    work is raised by the next call. Leaving the ``with`` block waits for what was submitted.

    Parameters
    ----------
    root
        The lake's folder, with its plan published.
    spec
        The lake's settings.
    threads
        Encoding threads; by default two per core, since half of them wait for the disk, but one where values are quantised,
        which takes so long that threads would only wait for each other.
    overlap_encoding
        Encode in the background too, with a second buffer: right when the blocks are computed elsewhere, on a GPU. When
        the same cores compute them, it is faster to encode in between, on all cores: an encoding thread that takes a core
        from a parallel forward pass makes every thread of that pass wait. Writing overlaps in both cases.
    tap
        Called with every chunk as a reader will decode it, from the encoding threads: several at once, but never two of the
        same layer. The array is reused: it must not be kept. Its time is the writer's.
    index
        Keep the index of every block, once it is committed.
    ranks
        Number of other processes that fill the buffers, each its slice of the neurons: buffers are in memory that they can
        open. By default this process fills them.
    """

    def __init__(
        self,
        root: LakePath,
        spec: LakeSpec,
        *,
        threads: int | None = None,
        overlap_encoding: bool = True,
        tap: Tap | None = None,
        index: bool = True,
        ranks: int | None = None,
    ):
        self._root = root
        self._spec = spec
        self._encoding = get_encoding(spec.encoding)
        self._overlap_encoding = overlap_encoding
        self._tap = tap
        self._ranks = ranks
        self._plan = read_plan_record(root) if index else None
        self._indexer: BlockIndexer | None = None
        self._free: SimpleQueue[BlockBuffer | None] = SimpleQueue()
        for _ in range(2 if overlap_encoding else 1):
            self._free.put(None)  # made when first needed: a lake of one block needs one
        self._encoders = ThreadPoolExecutor(
            threads or usable_cpus() * (1 if self._encoding.quantised else 2), thread_name_prefix="neuronlake-encode"
        )
        self._publishers = ThreadPoolExecutor(_PUBLISHERS, thread_name_prefix="neuronlake-publish")
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="neuronlake-commit")
        self._pending: Future[None] | None = None
        self._local = threading.local()
        self._checksums: dict[int, str] = {}
        self.bytes_written = 0
        """Bytes of the shards written so far, for progress displays."""
        self.overtaken: set[int] = set()
        """Blocks that another process has committed meanwhile with other bytes: theirs stay."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # in the order in which work flows, so that none is handed to a pool that is closed already
        for pool in (self._encoders, self._publishers, self._committer):
            pool.shutdown(wait=True)
        if error is None:
            self.flush()

    def buffer(self, rows: int) -> BlockBuffer:
        """Return a buffer ready for a block of `rows` used rows, waiting until one is free."""
        buffer = self._free.get()
        if buffer is None:
            buffer = BlockBuffer(self._spec, ranks=self._ranks)
        buffer.reset(rows)
        return buffer

    def submit(self, block: int, rows: int, buffer: BlockBuffer, provenance: Mapping[str, Any]) -> None:
        """Encode a complete buffer; write and commit it in the background.

        Parameters
        ----------
        block
            Number of the block in the plan.
        rows
            Rows it uses, as `buffer` was told.
        buffer
            From `buffer`, with every used row put once in every layer. It is the writer's again.
        provenance
            What computed the values, as JSON: kept in the commit record, with the lake's fingerprint.

        Raises
        ------
        InputError
            When rows of the buffer are missing or were written twice.
        StorageError
            When an earlier block could not be written.
        """
        buffer.check_complete()
        self.flush()
        self._indexer = None
        table = None if self._plan is None else self._plan.files.get(layout.table_path("plan", block))
        if table is not None:
            self._indexer = BlockIndexer(self._spec, block_flags(self._root, table))
        # The last layers first: their values are the largest as a rule, so that fewer neurons enter the tokens' lists for a
        # while. Reversed again, since the commit lists files in the order of layers.
        layers = [
            self._encoders.submit(self._encode_layer, site, layer, block, buffer) for site, layer in reversed(buffer.keys)
        ][::-1]
        known = {**provenance, "lake": self._spec.fingerprint}
        self._pending = self._committer.submit(self._commit_block, block, rows, buffer, layers, known)
        if not self._overlap_encoding:
            wait(layers)

    def flush(self) -> None:
        """Wait until everything submitted is committed, and raise what went wrong."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _encode_layer(self, site: str, layer: int, block: int, buffer: BlockBuffer) -> "_EncodedLayer":
        """Encode one layer into its file, chunk by chunk, and leave the waiting for the disk to others.

        Keeping a layer's encoded chunks until all are there would cost a third of the rate in fresh memory.
        """
        path = layout.shard_path(site, layer, block)
        scales: list[NDArray[np.float32]] = []
        staged = stage(self._root, path, self._encoded(site, layer, block, buffer, scales), new=True)
        return _EncodedLayer(file=self._publishers.submit(self._publish, staged), scales=scales)

    def _encoded(
        self, site: str, layer: int, block: int, buffer: BlockBuffer, scales: list[NDArray[np.float32]]
    ) -> Iterator[bytes]:
        """Yield the parts of a shard; the scales of its chunks, if it has any, are appended to `scales` on the way."""
        lengths = []
        for number, tile in enumerate(buffer.tiles(site, layer)):
            codes = tile
            if self._encoding.quantised:
                codes = self._scratch("codes", self._encoding.codes)
                scales.append(quantise(tile, buffer.used, codes))
            if self._indexer is not None:
                self._indexer.add(site, layer, number, codes, scales[-1] if self._encoding.quantised else None)
            if self._tap is not None:
                stored = tile
                if self._encoding.quantised:
                    stored = self._scratch("stored", self._encoding.stored)
                    expand(codes, scales[-1], stored)
                self._tap(site, layer, block, number, stored)
            chunk = self._encoding.compress(codes)
            lengths.append(sum(map(len, chunk)))
            yield from chunk
        yield build_index(lengths)

    def _scratch(self, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return a buffer of this thread for a chunk: fresh memory per chunk would cost more than filling it."""
        if not hasattr(self._local, name):
            shape = (self._spec.block_rows, self._spec.chunk_neurons)
            setattr(self._local, name, np.empty(shape, dtype=dtype))
        return getattr(self._local, name)  # type: ignore[no-any-return]

    def _publish(self, staged: StagedFile | StagedObject) -> FileRecord:
        try:
            record = staged.publish()
        except FileExistsError as error:
            raise StorageError(
                f"{error.filename} holds other bytes, of a run that was stopped or goes on elsewhere, and stays as it is: "
                f"if nobody else extracts, run `neuronlake verify {self._root} --repair`, then the same command again"
            ) from None
        self.bytes_written += record.bytes  # approximate under threads: for display only
        return record

    def _commit_block(
        self,
        block: int,
        rows: int,
        buffer: BlockBuffer,
        layers: list[Future["_EncodedLayer"]],
        provenance: dict[str, Any],
    ) -> None:
        wait(layers)
        keys = buffer.keys
        self._free.put(buffer)
        indexer = self._indexer  # the next block's is made when this one is committed
        encoded = dict(zip(keys, (layer.result() for layer in layers), strict=True))
        records = [layer.file.result() for layer in encoded.values()]
        for site, layer in keys:
            sync_folder(self._root / layout.array_path(site, layer))
        if self._encoding.quantised:
            for site in self._spec.sites:
                parts = [encoded[site, layer].scale_parts(self._spec.width(site)) for layer in self._spec.layers]
                index = build_index([sum(map(len, part)) for part in parts])
                path = layout.scales_path(site, block)
                staged = stage(self._root, path, [*chain.from_iterable(parts), index], new=True)
                records.append(self._publish(staged))
                sync_folder((self._root / path).parent)
        if not write_commit(self._root, Commit(block=block, rows=rows, provenance=provenance, files=tuple(records))):
            self.overtaken.add(block)
        elif indexer is not None:
            self._keep_index(block, indexer)

    def _keep_index(self, block: int, indexer: BlockIndexer) -> None:
        try:
            self._checksums[block] = commit_checksum(self._root, block)
        except FileNotFoundError:
            raise mixed(self._root, block) from None
        for site, found in indexer.finish().items():
            keep_block(self._root, site, block, found)
            merge_many(self._root, site, self._checksums)


@dataclass(frozen=True, kw_only=True)
class _EncodedLayer:
    """One layer of a block on its way to the disk."""

    file: Future[FileRecord]
    scales: list[NDArray[np.float32]]
    """Per chunk float32 (chunk neurons, 2); empty for encodings without."""

    def scale_parts(self, neurons: int) -> tuple[bytes, bytes]:
        """Return the layer's scales as one chunk of the scales array: its bytes and their checksum."""
        data = np.concatenate(self.scales)[:neurons].astype("<f4").tobytes()
        return data, checksum(data)
