"""Chunks of one lake straight from its shards: read and decoded into buffers that are reused."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

import neuronlake.store.layout as layout
from neuronlake.store.encodings import check, get_encoding
from neuronlake.store.errors import DamageError, StorageError
from neuronlake.store.kernels import gather, unpack
from neuronlake.store.quantise import PARAMETERS, expand, gather_codes, unpack_codes
from neuronlake.store.shard import index_bytes, parse_index
from neuronlake.store.spec import LakeSpec

_CACHED_INDEXES = 4096  # 4,096 × 24 chunks × 16 bytes = 1.5 MB for a SmolLM2-sized layer
_CACHED_SCALES = 1024  # 1,024 × 1,536 neurons × 8 bytes = 12 MB

_Value = TypeVar("_Value")


class ShardReader:
    """Reads and decodes inner chunks; safe to share between threads, each of which has buffers of its own.

    zarr-python spends 0.2–0.5 ms per inner chunk on top of decoding; this reader spends one `open` and one `pread`.
    Fresh memory costs more than decoding into it: hence buffers that are kept.
    """

    def __init__(self, root: Path, spec: LakeSpec):
        self._root = root
        self._layers = tuple(spec.layers)
        self._encoding = get_encoding(spec.encoding)
        self._geometry = spec.geometry(blocks=0)
        self._indexes: _Cache[NDArray[np.uint64]] = _Cache(_CACHED_INDEXES)
        self._scales: _Cache[NDArray[np.float32]] = _Cache(_CACHED_SCALES)
        self._local = threading.local()

    @property
    def chunks(self) -> int:
        """Inner chunks of a layer in one block."""
        return self._geometry.chunks

    def empty_chunk(self) -> NDArray[Any]:
        """Return a buffer for one chunk's values as bit patterns: (block rows, chunk neurons)."""
        return np.empty((self._geometry.block_rows, self._geometry.chunk_neurons), dtype=self._encoding.stored)

    def patterns(self, site: str, layer: int, block: int, chunk: int, out: NDArray[Any]) -> None:
        """Decode one inner chunk to the bit patterns of its values.

        Parameters
        ----------
        out : dtype `stored` (block rows, chunk neurons), C order
            Overwritten.

        Raises
        ------
        DamageError
            When the shard is missing or a checksum does not match. `out` is then undefined.
        """
        with self._open(site, layer, block) as file:
            if self._encoding.quantised:
                codes = self._codes(file, site, layer, block, chunk)
                expand(codes, self.scales(site, layer, block, chunk), out)
            else:
                self._decompress(file, site, layer, block, chunk, out)

    def unpack(
        self, site: str, layer: int, block: int, chunks: range, out: NDArray[np.float32], *, first_neuron: int = 0
    ) -> None:
        """Decode neighbouring inner chunks to float32: neuron n goes to column ``n − first_neuron`` of `out`."""
        width = self._geometry.chunk_neurons
        with self._open(site, layer, block) as file:
            for chunk in chunks:
                column = chunk * width - first_neuron
                count = min(width, self._geometry.neurons - chunk * width)
                codes = self._codes(file, site, layer, block, chunk)
                if self._encoding.quantised:
                    unpack_codes(codes, self.scales(site, layer, block, chunk), count, out, column)
                else:
                    unpack(self._encoding.values, codes, count, out, column)

    def gather(
        self,
        site: str,
        layer: int,
        block: int,
        chunk: int,
        rows: NDArray[np.int64],
        columns: NDArray[np.int64],
        out: NDArray[np.float32],
        out_rows: NDArray[np.int64],
        out_columns: NDArray[np.int64],
    ) -> None:
        """Decode rows × columns of one inner chunk into ``out[out_rows × out_columns]``."""
        with self._open(site, layer, block) as file:
            codes = self._codes(file, site, layer, block, chunk)
        if self._encoding.quantised:
            scales = self.scales(site, layer, block, chunk)
            gather_codes(codes, scales, rows, columns, out, out_rows, out_columns)
        else:
            gather(self._encoding.values, codes, rows, columns, out, out_rows, out_columns)

    def scales(self, site: str, layer: int, block: int, chunk: int) -> NDArray[np.float32]:
        """Return unit and knee of a chunk's neurons: float32 (chunk neurons, 2), of a quantised encoding."""
        whole = self._scales.get((site, layer, block), lambda: self._read_scales(site, layer, block))
        first = chunk * self._geometry.chunk_neurons
        return whole[first : first + self._geometry.chunk_neurons]

    def prefetch(self, site: str, layer: int, block: int) -> None:
        """Ask the system to read a shard ahead, if it can; never waits and never fails."""
        if not hasattr(os, "posix_fadvise"):
            return
        try:
            file = os.open(self._root / layout.shard_path(site, layer, block), os.O_RDONLY)
        except OSError:  # whoever reads the shard gets the error
            return
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(file)

    # ---- one file -------------------------------------------------------------------------------------------------

    @contextmanager
    def _open(self, site: str, layer: int, block: int) -> Iterator[int]:
        with _opened(self._root / layout.shard_path(site, layer, block)) as file:
            yield file

    def _codes(self, file: int, site: str, layer: int, block: int, chunk: int) -> NDArray[Any]:
        """Decompress a chunk into this thread's buffer."""
        if not hasattr(self._local, "codes"):
            shape = (self._geometry.block_rows, self._geometry.chunk_neurons)
            self._local.codes = np.empty(shape, dtype=self._encoding.codes)
        codes: NDArray[Any] = self._local.codes
        self._decompress(file, site, layer, block, chunk, codes)
        return codes

    def _decompress(self, file: int, site: str, layer: int, block: int, chunk: int, out: NDArray[Any]) -> None:
        path = layout.shard_path(site, layer, block)
        index = self._indexes.get((site, layer, block), lambda: self._read_index(file, path, chunks=self._geometry.chunks))
        data = self._read(file, int(index[chunk, 0]), int(index[chunk, 1]), path)
        self._encoding.decompress(data, out, f"{self._root / path} chunk {chunk}")

    def _read_scales(self, site: str, layer: int, block: int) -> NDArray[np.float32]:
        path = layout.scales_path(site, block)
        with _opened(self._root / path) as file:
            index = self._indexes.get((site, block), lambda: self._read_index(file, path, chunks=len(self._layers)))
            position = self._layers.index(layer)
            data = self._read(file, int(index[position, 0]), int(index[position, 1]), path)
        what = f"{self._root / path} layer {layer}"
        body = check(data, what)
        expected = self._geometry.neurons * PARAMETERS * 4
        if len(body) != expected:
            raise DamageError(f"{what}: holds {len(body)} bytes, expected {expected}")
        # padded to whole chunks: the surplus columns decode to zero
        scales = np.zeros((self._geometry.chunks * self._geometry.chunk_neurons, PARAMETERS), dtype=np.float32)
        scales[: self._geometry.neurons] = body.view("<f4").reshape(-1, PARAMETERS)
        return scales

    def _read_index(self, file: int, path: str, *, chunks: int) -> NDArray[np.uint64]:
        size = os.fstat(file).st_size
        length = min(size, index_bytes(chunks))
        data = self._read(file, size - length, length, path)
        return parse_index(data.tobytes(), chunks=chunks, shard_bytes=size, what=str(self._root / path))

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
                raise StorageError(f"could not read {self._root / path}: {error.strerror}") from error
            if not count:
                raise DamageError(f"{self._root / path}: the file ends early; run `neuronlake verify` to list the damage")
            done += count
        return buffer[:length]


class _Cache(Generic[_Value]):
    """The most recently used values; two threads may compute the same one, which does no harm."""

    def __init__(self, capacity: int):
        self._capacity = capacity
        self._values: OrderedDict[Hashable, _Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], _Value]) -> _Value:
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
def _opened(path: Path) -> Iterator[int]:
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise DamageError(f"{path} is missing though its block is committed; run `neuronlake verify`") from None
    except OSError as error:
        raise StorageError(f"could not read {path}: {error.strerror}") from error
    try:
        yield file
    finally:
        os.close(file)
