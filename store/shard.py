"""The Zarr v3 `sharding_indexed` container, written and read without zarr's per-chunk overhead.

A shard is its encoded chunks, then an index of (offset, length) pairs as little-endian uint64, then the index's crc32c.
Pure functions on bytes; the file handling is elsewhere.
"""

from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from neuronlake.store.errors import DamageError

_CHECKSUM_BYTES = 4


def index_codecs() -> list[dict[str, Any]]:
    """Return the codec chain of the index, as Zarr metadata."""
    return [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]


def build_index(lengths: list[int]) -> bytes:
    """Return the index of chunks stored one after the other from offset 0."""
    index = np.empty((len(lengths), 2), dtype="<u8")
    index[:, 1] = lengths
    index[:, 0] = np.concatenate(([0], np.cumsum(index[:-1, 1], dtype=np.uint64)))
    data = index.tobytes()
    checksum: bytes = google_crc32c.value(data).to_bytes(_CHECKSUM_BYTES, "little")
    return data + checksum


def index_bytes(chunks: int) -> int:
    """Size of the index of a shard of that many chunks."""
    return chunks * 16 + _CHECKSUM_BYTES


def parse_index(data: bytes, *, chunks: int, shard_bytes: int, what: str) -> NDArray[np.uint64]:
    """Check an index and return it as uint64 (chunks, 2): offset and length of every chunk.

    Raises
    ------
    DamageError
        When it is short, its checksum does not match, or a chunk would lie outside the shard.
    """
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if len(data) != index_bytes(chunks) or google_crc32c.value(body).to_bytes(_CHECKSUM_BYTES, "little") != checksum:
        raise DamageError(f"{what}: the shard index is damaged; run `neuronlake verify --full` to list the damage")
    index = np.frombuffer(body, dtype="<u8").reshape(chunks, 2)
    # Python integers: an uint64 sum of hostile values could wrap.
    if any(int(offset) + int(length) > shard_bytes - len(data) for offset, length in index):
        raise DamageError(f"{what}: the shard index points outside the file")
    return index
