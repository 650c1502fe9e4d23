"""How a float32 activation becomes stored bytes, and back.

An encoding has two steps: a cast to the *stored* dtype (the only lossy step) and a chain of standard Zarr v3 codecs over a
chunk. All chains end in crc32c, because neither blosc nor lz4 notices a flipped bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from neuronlake.store.errors import DamageError, InputError

_CHECKSUM_BYTES = 4
# lz4 level 5 on bit-shuffled values: measured on real activations at float16 it stores 1.88 bytes per value at 0.4
# Gvalues/s and thread; zstd saves under 1 % more and takes two to ten times as long.
_COMPRESSOR, _LEVEL = "lz4", 5


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """One way of storing activations."""

    name: str
    stored: np.dtype[Any]
    """dtype of the buffer in memory; the 16-bit encodings keep their bit patterns in uint16."""
    zarr_dtype: str
    """``data_type`` of the Zarr array. zarr-python has no bfloat16, so that is kept as uint16."""
    decode_formula: str
    """How a foreign reader turns the array's values into activations (Python, array ``a``)."""
    largest: float
    """Largest finite magnitude that can be stored."""

    @property
    def itemsize(self) -> int:
        """Bytes of one stored value before compression."""
        return int(self.stored.itemsize)

    def codecs(self) -> list[dict[str, Any]]:
        """Return the Zarr v3 codec chain of an inner chunk, as metadata."""
        return [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {
                "name": "blosc",
                "configuration": {
                    "typesize": self.itemsize,
                    "cname": _COMPRESSOR,
                    "clevel": _LEVEL,
                    "shuffle": "bitshuffle",
                    "blocksize": 0,
                },
            },
            {"name": "crc32c"},
        ]

    def compress(self, chunk: NDArray[Any]) -> tuple[bytes, bytes]:
        """Encode one contiguous chunk of stored values; return its bytes and their checksum, to be written in this order."""
        packed: bytes = blosc.compress(chunk, _COMPRESSOR.encode(), _LEVEL, blosc.BITSHUFFLE)
        return packed, google_crc32c.value(packed).to_bytes(_CHECKSUM_BYTES, "little")

    def decompress(self, data: bytes, out: NDArray[Any], what: str) -> None:
        """Check and decode one chunk into `out` (contiguous, stored dtype).

        Raises
        ------
        DamageError
            When the checksum or the length does not fit; `what` names the chunk in the message.
        """
        packed, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
        if google_crc32c.value(packed).to_bytes(_CHECKSUM_BYTES, "little") != checksum:
            raise DamageError(f"{what}: checksum does not match; run `neuronlake verify --full` to list the damage")
        size = int.from_bytes(packed[4:8], "little")  # blosc 1 header: uncompressed bytes
        if size != out.nbytes:
            raise DamageError(f"{what}: holds {size} bytes, expected {out.nbytes}")
        blosc.decompress(packed, out)


_ENCODINGS = (
    Encoding(
        name="float32",
        stored=np.dtype("<f4"),
        zarr_dtype="float32",
        decode_formula="a",
        largest=float(np.finfo(np.float32).max),
    ),
    Encoding(
        name="float16",
        stored=np.dtype("<u2"),
        zarr_dtype="float16",
        decode_formula="a.astype('float32')",
        largest=65504.0,
    ),
    Encoding(
        name="bfloat16",
        stored=np.dtype("<u2"),
        zarr_dtype="uint16",
        decode_formula="(a.astype('uint32') << 16).view('float32')",
        largest=3.3895313892515355e38,
    ),
)
ENCODINGS: Mapping[str, Encoding] = MappingProxyType({encoding.name: encoding for encoding in _ENCODINGS})


def get_encoding(name: str) -> Encoding:
    """Return the encoding of that name, or raise InputError listing the known ones."""
    try:
        return ENCODINGS[name]
    except KeyError:
        raise InputError(f"unknown encoding {name!r}: known are {', '.join(ENCODINGS)}") from None
