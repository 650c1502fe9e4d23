"""From a full buffer to a committed block, in the background."""

import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

import neuronlake.store.layout as layout
from neuronlake.store.buffer import BlockBuffer
from neuronlake.store.commits import Commit, write_commit
from neuronlake.store.encodings import get_encoding
from neuronlake.store.files import FileRecord, sync_folder, write_file
from neuronlake.store.shard import build_index
from neuronlake.store.spec import LakeSpec


class BlockWriter:
    """Writes blocks while the next one is being computed.

    Two buffers go round: `buffer()` hands out a free one (and waits for the writer when both are busy: that is the
    back-pressure), `submit` takes it back and returns at once. Every layer is encoded, written and synced by a pool of
    threads; when all files of the block are safe its commit record is written. An error of the background work is raised
    by the next call. Leaving the ``with`` block waits for what was submitted.

    Parameters
    ----------
    root
        The lake's folder, with its plan published.
    spec
        The lake's settings.
    threads
        Encoding threads; by default one per core. More threads than one halve the time during which encoding competes
        with a forward pass on the same cores.
    """

    def __init__(self, root: Path, spec: LakeSpec, *, threads: int | None = None):
        self._root = root
        self._spec = spec
        self._encoding = get_encoding(spec.encoding)
        self._geometry = spec.geometry(blocks=0)
        self._free: SimpleQueue[BlockBuffer | None] = SimpleQueue()
        for _ in range(2):
            self._free.put(None)  # made when first needed: a lake of one block needs one
        self._encoders = ThreadPoolExecutor(threads or os.cpu_count() or 1, thread_name_prefix="neuronlake-encode")
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="neuronlake-commit")
        self._pending: list[Future[None]] = []
        self.bytes_written = 0
        """Bytes of the shards written so far, for progress displays."""
        self.committed: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._committer.shutdown(wait=True)
        self._encoders.shutdown(wait=True)
        if error is None:
            self._raise_failures(wait=True)

    def buffer(self, rows: int) -> BlockBuffer:
        """Return a buffer ready for a block of `rows` used rows, waiting until one is free."""
        buffer = self._free.get()
        self._raise_failures(wait=False)
        if buffer is None:
            buffer = BlockBuffer(
                sites=self._spec.sites, layers=self._spec.layers, geometry=self._geometry, encoding=self._encoding
            )
        buffer.reset(rows)
        return buffer

    def submit(self, block: int, rows: int, buffer: BlockBuffer, provenance: Mapping[str, Any]) -> None:
        """Encode, write and commit a complete buffer in the background.

        Raises
        ------
        InputError
            When rows of the buffer are missing or were written twice.
        StorageError
            When an earlier block could not be written.
        """
        buffer.check_complete()
        self._raise_failures(wait=False)
        self._pending.append(self._committer.submit(self._write_block, block, rows, buffer, dict(provenance)))

    def _write_block(self, block: int, rows: int, buffer: BlockBuffer, provenance: dict[str, Any]) -> None:
        try:
            jobs = [self._encoders.submit(self._write_layer, site, layer, block, buffer) for site, layer in buffer.keys]
            records = tuple(job.result() for job in jobs)
            for site, layer in buffer.keys:
                sync_folder(self._root / layout.array_path(site, layer))
            write_commit(self._root, Commit(block=block, rows=rows, provenance=provenance, files=records))
            self.committed.append(block)
        finally:
            self._free.put(buffer)

    def _write_layer(self, site: str, layer: int, block: int, buffer: BlockBuffer) -> FileRecord:
        parts = [self._encoding.compress(tile) for tile in buffer.tiles(site, layer)]
        parts.append(build_index([len(part) for part in parts]))
        record = write_file(self._root, layout.shard_path(site, layer, block), parts)
        self.bytes_written += record.bytes  # approximate under threads: for display only
        return record

    def _raise_failures(self, *, wait: bool) -> None:
        while self._pending and (wait or self._pending[0].done()):
            self._pending.pop(0).result()
