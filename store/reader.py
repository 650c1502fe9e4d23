"""Chunks of one site straight from its shards: read and decoded into buffers that are reused."""

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

import neuronlake.store.layout as layout
from neuronlake.store.encodings import check, get_encoding
from neuronlake.store.errors import DamageError, StorageError
from neuronlake.store.kernels import gather, unpack
from neuronlake.store.objects import LakePath, ObjectPath
from neuronlake.store.parallel import waiting_pool
from neuronlake.store.quantise import PARAMETERS, expand, gather_codes, unpack_codes
from neuronlake.store.remote_shard import RemoteShard
from neuronlake.store.shard import index_bytes, parse_index
from neuronlake.store.spec import LakeSpec

_CACHED_INDEXES = 4096  # 4,096 × 24 chunks × 16 bytes = 1.5 MB for a SmolLM2-sized layer
_CACHED_SCALES = 1024  # 1,024 × 1,536 neurons × 8 bytes = 12 MB

_AHEAD_BYTES = 1 << 28  # 256 MiB of decoded values: what is fetched before it is wanted, of an object store
_AHEAD = 2, 24  # shards, at least and at most

_Value = TypeVar("_Value")
_Item = TypeVar("_Item")
Fetched = Future[RemoteShard]
"""Chunks of a shard on their way from an object store."""


class ShardReader:
    """Reads and decodes inner chunks; safe to share between threads, each of which has buffers of its own.

    zarr-python spends 0.2–0.5 ms per inner chunk on top of decoding; this reader spends one `open` and one `pread`.
    Fresh memory costs more than decoding into it: hence buffers that are kept.
    """

    def __init__(self, root: LakePath, spec: LakeSpec, site: str):
        self._root, self._site = root, site
        self._layers = tuple(spec.layers)
        self.encoding = get_encoding(spec.encoding)
        self._geometry = spec.geometry(site)
        self.neurons = self._geometry.neurons
        self._indexes: Cache[NDArray[np.uint64]] = Cache(_CACHED_INDEXES)
        self._scales: Cache[NDArray[np.float32]] = Cache(_CACHED_SCALES)
        self._local = threading.local()

    @property
    def chunks(self) -> int:
        """Inner chunks of a layer in one block."""
        return self._geometry.chunks

    @property
    def chunk_shape(self) -> tuple[int, int]:
        """(block rows, chunk neurons)."""
        return self._geometry.block_rows, self._geometry.chunk_neurons

    @contextmanager
    def shard(self, layer: int, block: int, fetched: Fetched | None = None) -> Iterator["Shard"]:
        """Open one layer's values in one block.

        Parameters
        ----------
        fetched
            What `fetch` gave for the chunks that are wanted; without it, each comes by a request of its own.

        Raises
        ------
        DamageError
            When the file is missing.
        """
        where = self._root / layout.shard_path(self._site, layer, block)
        path = str(where)
        if isinstance(where, ObjectPath):
            remote = fetched.result() if fetched is not None else self._fetch(where, layer, block, ())
            yield Shard(self, remote, path, remote.index, (layer, block))
            return
        with _opened(path) as file:
            index = self._indexes.get((layer, block), lambda: self._read_index(file, path, chunks=self.chunks))
            yield Shard(self, file, path, index, (layer, block))

    def fetch(self, layer: int, block: int, chunks: Sequence[int]) -> Fetched | None:
        """Begin to fetch inner chunks of a shard from an object store, neighbours by one request; None of a folder."""
        where = self._root / layout.shard_path(self._site, layer, block)
        return waiting_pool().submit(self._fetch, where, layer, block, chunks) if isinstance(where, ObjectPath) else None

    def ahead(
        self, items: Iterable[_Item], fetch: Callable[[_Item], Fetched | None], *, chunks: int
    ) -> Iterator[tuple[_Item, Fetched | None]]:
        """Yield every item with what `fetch` gave for it, begun while earlier ones are at work.

        Parameters
        ----------
        chunks
            Inner chunks of an item, about: bounds how many are begun.
        """
        rows, width = self.chunk_shape
        item_bytes = max(1, chunks * rows * width * self.encoding.itemsize)
        depth = int(np.clip(_AHEAD_BYTES // item_bytes, *_AHEAD)) if isinstance(self._root, ObjectPath) else 0
        waiting: deque[tuple[_Item, Fetched | None]] = deque()
        try:
            for item in items:
                waiting.append((item, fetch(item)))
                if len(waiting) > depth:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for _, fetched in waiting:
                if fetched is not None:
                    fetched.cancel()

    def scales(self, layer: int, block: int, chunk: int) -> NDArray[np.float32]:
        """Return unit and knee of a chunk's neurons: float32 (chunk neurons, 2), of a quantised encoding."""
        whole = self._scales.get((layer, block), lambda: self._read_scales(layer, block))
        first = chunk * self._geometry.chunk_neurons
        return whole[first : first + self._geometry.chunk_neurons]

    def prefetch(self, layer: int, block: int) -> None:
        """Ask the system to read a shard ahead, if it can; never waits and never fails."""
        if isinstance(self._root, ObjectPath) or not hasattr(os, "posix_fadvise"):
            return
        try:
            file = os.open(self._root / layout.shard_path(self._site, layer, block), os.O_RDONLY)
        except OSError:  # whoever reads the shard gets the error
            return
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(file)

    # ---- for its shards -------------------------------------------------------------------------------------------

    def scratch(self) -> NDArray[Any]:
        """Return this thread's buffer for the codes of a chunk; its content holds until the thread decodes another."""
        if not hasattr(self._local, "codes"):
            self._local.codes = np.empty(self.chunk_shape, dtype=self.encoding.codes)
        return self._local.codes  # type: ignore[no-any-return]

    def decompress(
        self, file: int | RemoteShard, path: str, place: NDArray[np.uint64], chunk: int, out: NDArray[Any]
    ) -> None:
        """Read and decompress one chunk of an open file."""
        offset, length, what = int(place[0]), int(place[1]), f"{path} chunk {chunk}"
        if isinstance(file, int):
            return self.encoding.decompress(self._read(file, offset, length, path), out, what)
        return file.read(offset, length, lambda data: self.encoding.decompress(data, out, what))

    def _fetch(self, where: ObjectPath, layer: int, block: int, chunks: Sequence[int]) -> RemoteShard:
        """Fetch a shard's index, and chunks; of a quantised encoding their scales, too."""
        path = str(where)
        remote = RemoteShard(where, self._indexes.peek((layer, block)))
        try:
            if len(chunks) == self.chunks:
                remote.fetch_whole(chunks=self.chunks)
            elif remote.known is None:
                remote.fetch_index(chunks=self.chunks)
            self._indexes.get((layer, block), lambda: remote.index)
            if len(chunks) < self.chunks:
                remote.fetch_chunks(chunks)
        except FileNotFoundError:
            raise _missing(path) from None
        if chunks and self.encoding.quantised:
            self.scales(layer, block, 0)
        return remote

    def _read_scales(self, layer: int, block: int) -> NDArray[np.float32]:
        where = self._root / layout.scales_path(self._site, block)
        path, position = str(where), self._layers.index(layer)
        what = f"{path} layer {layer}"
        if isinstance(where, ObjectPath):
            body = self._remote_scales(where, block, position, what)
        else:
            with _opened(path) as file:
                index = self._indexes.get(block, lambda: self._read_index(file, path, chunks=len(self._layers)))
                body = check(self._read(file, int(index[position, 0]), int(index[position, 1]), path), what)
        expected = self._geometry.neurons * PARAMETERS * 4
        if len(body) != expected:
            raise DamageError(f"{what}: holds {len(body)} bytes, expected {expected}")
        # padded to whole chunks: the surplus columns decode to zero
        scales = np.zeros((self._geometry.chunks * self._geometry.chunk_neurons, PARAMETERS), dtype=np.float32)
        scales[: self._geometry.neurons] = body.view("<f4").reshape(-1, PARAMETERS)
        return scales

    def _remote_scales(self, where: ObjectPath, block: int, position: int, what: str) -> NDArray[np.uint8]:
        remote = RemoteShard(where, self._indexes.peek(block))
        try:
            if remote.known is None:
                remote.fetch_index(chunks=len(self._layers))
            index = self._indexes.get(block, lambda: remote.index)
            offset, length = int(index[position, 0]), int(index[position, 1])
            return remote.read(offset, length, lambda data: check(data, what))
        except FileNotFoundError:
            raise _missing(str(where)) from None

    def _read_index(self, file: int, path: str, *, chunks: int) -> NDArray[np.uint64]:
        size = os.fstat(file).st_size
        length = min(size, index_bytes(chunks))
        data = self._read(file, size - length, length, path)
        return parse_index(data.tobytes(), chunks=chunks, shard_bytes=size, what=path)

    def _read(self, file: int, offset: int, length: int, path: str) -> NDArray[np.uint8]:
        """Read bytes into this thread's buffer; they hold until its next call."""
        buffer: NDArray[np.uint8] = getattr(self._local, "bytes", np.empty(0, dtype=np.uint8))
        if len(buffer) < length:
            buffer = self._local.bytes = np.empty(max(length, 2 * len(buffer)), dtype=np.uint8)
        done = 0
        while done < length:
            try:
                count = os.preadv(file, [buffer[done:length].data], offset + done)
            except OSError as error:
                raise StorageError(f"could not read {path}: {error.strerror}") from error
            if not count:
                raise DamageError(f"{path}: the file ends early; run `neuronlake verify` to list the damage")
            done += count
        return buffer[:length]


class Shard:
    """One layer's values in one block, open for reading by one thread.

    Every method raises DamageError when a checksum does not match; what it was to fill is then undefined.
    """

    def __init__(
        self, reader: ShardReader, file: int | RemoteShard, path: str, index: NDArray[np.uint64], where: tuple[int, int]
    ):
        self._reader, self._file, self._path, self._index, self._where = reader, file, path, index, where

    def codes(self, chunk: int, out: NDArray[Any]) -> None:
        """Decompress one inner chunk, and no more, into `out`: dtype `codes`, (block rows, chunk neurons), C order."""
        self._reader.decompress(self._file, self._path, self._index[chunk], chunk, out)

    def chunk_bytes(self, chunk: int) -> int:
        """Size of an inner chunk on disk, in bytes."""
        return int(self._index[chunk, 1])

    def patterns(self, chunk: int, out: NDArray[Any], *, rows: int | None = None) -> None:
        """Decode one inner chunk to the bit patterns of its values: dtype `stored`, (block rows, chunk neurons), C order.

        With `rows`, those after the first so many hold anything.
        """
        if self._reader.encoding.quantised:
            expand(self._decompressed(chunk)[:rows], self._scales(chunk), out)
        else:
            self.codes(chunk, out)

    def unpack(
        self,
        chunks: range,
        out: NDArray[np.float32],
        *,
        first_neuron: int = 0,
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        """Decode neighbouring inner chunks to float32: neuron n goes to column ``n − first_neuron`` of `out`.

        With `rows`, only these, in that order.
        """
        width, neurons = self._reader.chunk_shape[1], self._reader.neurons
        for chunk in chunks:
            column, count = chunk * width - first_neuron, min(width, neurons - chunk * width)
            codes = self._decompressed(chunk)
            if rows is not None:
                codes = codes[rows]
            if self._reader.encoding.quantised:
                unpack_codes(codes, self._scales(chunk), count, out, column)
            else:
                unpack(self._reader.encoding.values, codes, count, out, column)

    def gather(
        self,
        chunk: int,
        rows: NDArray[np.int64],
        columns: NDArray[np.int64],
        out: NDArray[np.float32],
        out_rows: NDArray[np.int64],
        out_columns: NDArray[np.int64],
    ) -> None:
        """Decode rows × columns of one inner chunk into ``out[out_rows × out_columns]``."""
        codes = self._decompressed(chunk)
        if self._reader.encoding.quantised:
            gather_codes(codes, self._scales(chunk), rows, columns, out, out_rows, out_columns)
        else:
            gather(self._reader.encoding.values, codes, rows, columns, out, out_rows, out_columns)

    def _decompressed(self, chunk: int) -> NDArray[Any]:
        codes = self._reader.scratch()
        self.codes(chunk, codes)
        return codes

    def _scales(self, chunk: int) -> NDArray[np.float32]:
        return self._reader.scales(*self._where, chunk)


class Cache(Generic[_Value]):
    """The most recently used values; two threads may compute the same one, which does no harm."""

    def __init__(self, capacity: int):
        self._capacity = capacity
        self._values: OrderedDict[Hashable, _Value] = OrderedDict()
        self._lock = threading.Lock()

    def peek(self, key: Hashable) -> _Value | None:
        """Return the value of a key if it is there."""
        with self._lock:
            return self._values.get(key)

    def get(self, key: Hashable, make: Callable[[], _Value]) -> _Value:
        """Return the value of a key, made if it is not there."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._capacity:
                self._values.popitem(last=False)
        return value


@contextmanager
def _opened(path: str) -> Iterator[int]:
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise _missing(path) from None
    except OSError as error:
        raise StorageError(f"could not read {path}: {error.strerror}") from error
    try:
        yield file
    finally:
        os.close(file)


def _missing(path: str) -> DamageError:
    return DamageError(f"{path} is missing though its block is committed; run `neuronlake verify`")
