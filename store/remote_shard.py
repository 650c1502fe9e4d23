"""A shard in an object store: its index, and of its chunks those that are wanted, neighbours by one request."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from neuronlake.store.errors import DamageError
from neuronlake.store.objects import ObjectPath, read_until_right
from neuronlake.store.shard import index_bytes, parse_index

_Result = TypeVar("_Result")
_TAIL_BYTES = 1 << 15  # 32 KiB: asked for with the index, since small shards are no larger


class RemoteShard:
    """Bytes of a shard that are here already; what is not is read when it is asked for.

    Not shared between threads while it fetches. Methods raise FileNotFoundError when there is no such object, DamageError
    when its index is damaged, StorageError when the store refuses.

    Parameters
    ----------
    path
        The object.
    known
        Its index, if that is known.
    """

    def __init__(self, path: ObjectPath, known: NDArray[np.uint64] | None = None):
        self.known = known
        self._path = path
        self._here: list[tuple[int, bytes]] = []  # offset, bytes

    @property
    def index(self) -> NDArray[np.uint64]:
        """Offset and length of every chunk, uint64 (chunks, 2)."""
        assert self.known is not None
        return self.known

    def fetch_whole(self, *, chunks: int) -> None:
        """Fetch everything, index included."""

        def fetch() -> bytes:
            data = self._path.read_bytes()
            self._parse(data[-index_bytes(chunks) :], chunks, len(data))
            return data

        self._here.append((0, read_until_right(fetch)))

    def fetch_index(self, *, chunks: int) -> None:
        """Fetch the index, with what lies before it, by one request."""
        wanted = index_bytes(chunks)

        def fetch() -> tuple[int, bytes]:
            size, data = self._path.read_end(max(wanted, _TAIL_BYTES))
            self._parse(data[-wanted:], chunks, size)
            return size - len(data), data

        self._here.append(read_until_right(fetch))

    def fetch_chunks(self, chunks: Sequence[int]) -> None:
        """Fetch some chunks, as far as they are not here."""
        for first, last in runs([(int(self.index[chunk, 0]), int(self.index[chunk, 1])) for chunk in chunks]):
            if self._find(first, last - first) is None:
                self._here.append((first, self._path.read_range(first, last - first)))

    def read(self, offset: int, length: int, decode: Callable[[NDArray[np.uint8]], _Result]) -> _Result:
        """Return what `decode` makes of bytes, uint8 (length,); while it raises DamageError they are read again."""
        here = self._find(offset, length)
        if here is not None:
            try:
                return decode(here)
            except DamageError:
                pass
        return read_until_right(lambda: decode(np.frombuffer(self._path.read_range(offset, length), dtype=np.uint8)))

    def _find(self, offset: int, length: int) -> NDArray[np.uint8] | None:
        for first, data in self._here:
            if first <= offset and offset + length <= first + len(data):
                return np.frombuffer(data, dtype=np.uint8, count=length, offset=offset - first)
        return None

    def _parse(self, data: bytes, chunks: int, size: int) -> None:
        self.known = parse_index(data, chunks=chunks, shard_bytes=size, what=str(self._path))


def runs(places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return (first, last) of the byte ranges that cover places (offset, length), of neighbours one."""
    found: list[tuple[int, int]] = []
    for offset, length in sorted(places):
        if found and found[-1][1] == offset:
            found[-1] = found[-1][0], offset + length
        else:
            found.append((offset, offset + length))
    return found
