"""From a full buffer to a committed block, in the background."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

import neuronlake.store.layout as layout
from neuronlake.store.buffer import BlockBuffer
from neuronlake.store.commits import Commit, write_commit
from neuronlake.store.encodings import get_encoding
from neuronlake.store.files import FileRecord, StagedFile, sync_folder
from neuronlake.store.shard import build_index
from neuronlake.store.spec import LakeSpec

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
        Encoding threads; by default two per core, since half of them wait for the disk.
    overlap_encoding
        Encode in the background too, with a second buffer: right when the blocks are computed elsewhere, on a GPU. When
        the same cores compute them, it is faster to encode in between, on all cores: an encoding thread that takes a core
        from a parallel forward pass makes every thread of that pass wait. Writing overlaps in both cases.
    """

    def __init__(self, root: Path, spec: LakeSpec, *, threads: int | None = None, overlap_encoding: bool = True):
        self._root = root
        self._spec = spec
        self._encoding = get_encoding(spec.encoding)
        self._geometry = spec.geometry(blocks=0)
        self._overlap_encoding = overlap_encoding
        self._free: SimpleQueue[BlockBuffer | None] = SimpleQueue()
        for _ in range(2 if overlap_encoding else 1):
            self._free.put(None)  # made when first needed: a lake of one block needs one
        self._encoders = ThreadPoolExecutor(threads or 2 * (os.cpu_count() or 1), thread_name_prefix="neuronlake-encode")
        self._publishers = ThreadPoolExecutor(_PUBLISHERS, thread_name_prefix="neuronlake-publish")
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="neuronlake-commit")
        self._pending: Future[None] | None = None
        self.bytes_written = 0
        """Bytes of the shards written so far, for progress displays."""

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
            buffer = BlockBuffer(
                sites=self._spec.sites, layers=self._spec.layers, geometry=self._geometry, encoding=self._encoding
            )
        buffer.reset(rows)
        return buffer

    def submit(self, block: int, rows: int, buffer: BlockBuffer, provenance: Mapping[str, Any]) -> None:
        """Encode a complete buffer; write and commit it in the background.

        Raises
        ------
        InputError
            When rows of the buffer are missing or were written twice.
        StorageError
            When an earlier block could not be written.
        """
        buffer.check_complete()
        self.flush()
        layers = [self._encoders.submit(self._encode_layer, site, layer, block, buffer) for site, layer in buffer.keys]
        self._pending = self._committer.submit(self._commit_block, block, rows, buffer, layers, dict(provenance))
        if not self._overlap_encoding:
            wait(layers)

    def flush(self) -> None:
        """Wait until everything submitted is committed, and raise what went wrong."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _encode_layer(self, site: str, layer: int, block: int, buffer: BlockBuffer) -> Future[FileRecord]:
        """Encode one layer into its file, chunk by chunk, and leave the waiting for the disk to others.

        Keeping a layer's encoded chunks until all are there would cost a third of the rate in fresh memory.
        """
        path = layout.shard_path(site, layer, block)
        staged = StagedFile(self._root, path, self._encoded(buffer.tiles(site, layer)))
        return self._publishers.submit(self._publish, staged)

    def _encoded(self, tiles: NDArray[Any]) -> Iterator[bytes]:
        lengths = []
        for tile in tiles:
            chunk = self._encoding.compress(tile)
            lengths.append(sum(map(len, chunk)))
            yield from chunk
        yield build_index(lengths)

    def _publish(self, staged: StagedFile) -> FileRecord:
        record = staged.publish()
        self.bytes_written += record.bytes  # approximate under threads: for display only
        return record

    def _commit_block(
        self,
        block: int,
        rows: int,
        buffer: BlockBuffer,
        layers: list[Future[Future[FileRecord]]],
        provenance: dict[str, Any],
    ) -> None:
        wait(layers)
        self._free.put(buffer)
        records = tuple(layer.result().result() for layer in layers)
        for site, layer in buffer.keys:
            sync_folder(self._root / layout.array_path(site, layer))
        write_commit(self._root, Commit(block=block, rows=rows, provenance=provenance, files=records))
