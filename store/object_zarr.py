"""Objects below a path as a store for zarr-python: its requests are tried again and counted as all others."""

import asyncio
from collections.abc import AsyncIterator, Iterable

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from neuronlake.store.objects import ObjectPath


class FolderStore(Store):
    """A folder in an object store, read-only. Methods raise StorageError when it refuses or does not answer."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, path: ObjectPath):
        super().__init__(read_only=True)
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FolderStore) and other._path == self._path

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return an object or part of it; None if there is none."""
        try:
            return prototype.buffer.from_bytes(await asyncio.to_thread(self._read, key, byte_range))
        except FileNotFoundError:
            return None

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return several."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether there is an object."""
        return await asyncio.to_thread((self._path / key).is_file)

    async def list(self) -> AsyncIterator[str]:
        """Yield all keys."""
        for path in await asyncio.to_thread(self._path.sizes):
            yield path.relative_to(self._path).as_posix()

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield the keys that begin so."""
        async for key in self.list():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names right below."""
        folder = self._path / prefix if prefix else self._path
        for path in await asyncio.to_thread(lambda: list(folder.iterdir())):
            yield path.name

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse: it is read-only."""
        raise NotImplementedError(f"{self} is read-only: {key} cannot be written")

    async def delete(self, key: str) -> None:
        """Refuse: it is read-only."""
        raise NotImplementedError(f"{self} is read-only: {key} cannot be deleted")

    def _read(self, key: str, part: ByteRequest | None) -> bytes:
        path = self._path / key
        if isinstance(part, RangeByteRequest):
            return path.read_range(part.start, part.end - part.start)
        if isinstance(part, SuffixByteRequest):
            return path.read_end(part.suffix)[1]
        data = path.read_bytes()
        return data[part.offset :] if isinstance(part, OffsetByteRequest) else data
