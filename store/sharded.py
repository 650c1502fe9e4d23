"""Zarr arrays of results that are read in small pieces: one file per first index, cut into chunks along the second.

Any Zarr v3 reader can read them. Ours spends one `open` and two `pread` on a piece, where zarr-python takes milliseconds,
and is written with plain files, so that nothing else runs in a process that writes a lake.
"""

import json
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from neuronlake.store.encodings import check, checksum
from neuronlake.store.errors import DamageError, StorageError
from neuronlake.store.files import sync_folder, write_plain
from neuronlake.store.objects import LakePath, ObjectPath
from neuronlake.store.parallel import map_ordered
from neuronlake.store.remote_shard import RemoteShard
from neuronlake.store.shard import build_index, index_bytes, index_codecs, parse_index
from neuronlake.store.spec import dump_metadata

_LEVEL = 3
_CHUNK_BYTES = 1 << 17  # 0.1 ms to decode


def write_sharded(
    folder: Path,
    name: str,
    shape: tuple[int, ...],
    dtype: Any,
    part: Callable[[int], NDArray[Any]],
    *,
    width: int | None = None,
    threads: int | None = None,
    sync: bool = False,
) -> None:
    """Write an array part by part.

    Parameters
    ----------
    part
        Called once for every first index, from several threads: returns an array of shape ``shape[1:]``.
    width
        Second indices in a chunk; by default so many that it decodes to about 128 KiB.
    threads
        By default one per core.
    sync
        Make it last: the files, the array's folder and the one above it.

    Raises
    ------
    OSError
        When the file system refuses.
    """
    writer = ShardedWriter(folder, name, shape, dtype, width=width, sync=sync)
    for _ in map_ordered(lambda place: writer.write(place, part(place)), range(shape[0]), threads=threads):
        pass
    writer.close()


class ShardedWriter:
    """Writes an array one first index at a time, in any order and from several threads; arguments as of `write_sharded`.

    Every method raises OSError when the file system refuses.
    """

    def __init__(
        self, folder: Path, name: str, shape: tuple[int, ...], dtype: Any, *, width: int | None = None, sync: bool = False
    ):
        self._dtype = np.dtype(dtype)
        entry = max(1, int(np.prod(shape[2:])) * self._dtype.itemsize)
        self._width = max(1, min(shape[1], _CHUNK_BYTES // entry)) if width is None else width
        self._shape, self._sync, self._target = shape, sync, folder / name
        self._target.mkdir(parents=True)
        write_plain(self._target / "zarr.json", [dump_metadata(_metadata(shape, self._dtype, self._width))], sync=sync)

    def write(self, place: int, values: NDArray[Any]) -> None:
        """Write ``array[place]``, of shape ``shape[1:]``."""
        parts: list[bytes] = []
        lengths = []
        for first in range(0, self._shape[1], self._width):
            chunk = np.zeros((self._width, *self._shape[2:]), dtype=self._dtype)
            some = values[first : first + self._width]
            chunk[: len(some)] = some
            packed = blosc.compress(chunk, b"zstd", _LEVEL, blosc.BITSHUFFLE)
            parts += [packed, checksum(packed)]
            lengths.append(len(packed) + len(parts[-1]))
        write_plain(self._target / _chunk_name(place, len(self._shape)), [*parts, build_index(lengths)], sync=self._sync)

    def close(self) -> None:
        """Make it last, now that every first index was written."""
        if self._sync:
            sync_folder(self._target)
            sync_folder(self._target.parent)


class ShardedArray:
    """An array that `write_sharded` wrote, opened for reading; safe to share between threads.

    Every method raises DamageError where it is not what was written, or gone.
    """

    def __init__(self, path: LakePath):
        self._path = path
        self._remote: dict[int, NDArray[np.uint64]] = {}  # indexes of parts in an object store

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return tuple(self._metadata["shape"])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        dtype: np.dtype[Any] = np.dtype(self._metadata["data_type"])
        return dtype

    def read(self, first: int, second: int) -> NDArray[Any]:
        """Read ``array[first, second]``."""
        chunk, place = divmod(second, self._width)
        found: NDArray[Any] = self._read(first, [chunk])[place]
        return found

    def read_part(self, first: int) -> NDArray[Any]:
        """Read ``array[first]``."""
        found: NDArray[Any] = self._read(first, range(self._chunks))[: self.shape[1]]
        return found

    def _read(self, first: int, chunks: Sequence[int]) -> NDArray[Any]:
        path = self._path / _chunk_name(first, len(self.shape))
        if isinstance(path, ObjectPath):
            return self._read_remote(path, first, chunks)
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DamageError(f"{path}: {error.strerror}") from None
        try:
            size = os.fstat(file).st_size
            length = min(size, index_bytes(self._chunks))
            index = parse_index(os.pread(file, length, size - length), chunks=self._chunks, shard_bytes=size, what=str(path))
            found = [
                self._decode(os.pread(file, int(index[chunk, 1]), int(index[chunk, 0])), f"{path} chunk {chunk}")
                for chunk in chunks
            ]
        except OSError as error:
            raise DamageError(f"{path}: {error.strerror}") from None
        finally:
            os.close(file)
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _read_remote(self, path: ObjectPath, first: int, chunks: Sequence[int]) -> NDArray[Any]:
        shard = RemoteShard(path, self._remote.get(first))
        try:
            if len(chunks) == self._chunks:
                shard.fetch_whole(chunks=self._chunks)
            else:
                if shard.known is None:
                    shard.fetch_index(chunks=self._chunks)
                shard.fetch_chunks(chunks)
            self._remote[first] = shard.index
            found = [self._decode_remote(shard, chunk, f"{path} chunk {chunk}") for chunk in chunks]
        except FileNotFoundError as error:
            raise DamageError(f"{path}: {error.strerror}") from None
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _decode_remote(self, shard: RemoteShard, chunk: int, what: str) -> NDArray[Any]:
        offset, length = (int(part) for part in shard.index[chunk])
        return shard.read(offset, length, lambda data: self._decode(data, what))

    def _decode(self, data: bytes | NDArray[np.uint8], what: str) -> NDArray[Any]:
        packed = check(np.frombuffer(data, dtype=np.uint8), what)
        shape = (self._width, *self.shape[2:])
        try:
            return np.frombuffer(blosc.decompress(packed), dtype=self.dtype).reshape(shape)
        except (RuntimeError, ValueError) as error:
            raise DamageError(f"{what}: its checksum fits but it does not decode ({error})") from None

    @cached_property
    def _width(self) -> int:
        configuration = self._metadata["codecs"][0]["configuration"]
        return int(configuration["chunk_shape"][1])

    @cached_property
    def _chunks(self) -> int:
        return -(-self.shape[1] // self._width)

    @cached_property
    def _metadata(self) -> dict[str, Any]:
        path = self._path / "zarr.json"
        try:
            return dict(json.loads(path.read_bytes()))
        except StorageError:
            raise
        except (OSError, ValueError) as error:
            raise DamageError(f"{path}: {error}") from None


def _chunk_name(first: int, dimensions: int) -> str:
    return ".".join(("c", str(first), *("0",) * (dimensions - 1)))  # one folder, as of the activations


def _metadata(shape: tuple[int, ...], dtype: np.dtype[Any], width: int) -> dict[str, Any]:
    inner = (1, width, *shape[2:])
    blosc_zstd = {
        "name": "blosc",
        "configuration": {
            "typesize": dtype.itemsize,
            "cname": "zstd",
            "clevel": _LEVEL,
            "shuffle": "bitshuffle",
            "blocksize": 0,
        },
    }
    sharding = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": list(inner),
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, blosc_zstd, {"name": "crc32c"}],
            "index_codecs": index_codecs(),
            "index_location": "end",
        },
    }
    outer = [1, -(-shape[1] // width) * width, *shape[2:]]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": outer}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": 0,
        "codecs": [sharding],
        "attributes": {},
        "storage_transformers": [],
    }
