"""How a float32 activation becomes stored bytes, and back.

A value is first cast to 16 or 32 bits; that bit pattern is what the block's buffer holds and what readers get. The plain
encodings put the patterns themselves on the disk, `int8a` quantises them once more, with a scale per neuron and block
(`quantise`). Then comes a chain of standard Zarr v3 codecs over a chunk. All chains end in crc32c, because neither blosc
nor zstd without its own checksum notices a flipped bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc, zstd
from numpy.typing import NDArray

from neuronlake.store.errors import DamageError, InputError

_CHECKSUM_BYTES = 4
# lz4 level 5 on bit-shuffled values: measured on real activations at float16 it stores 1.88 bytes per value at 0.4
# Gvalues/s and thread; zstd saves under 1 % more and takes two to ten times as long.
_LZ4_LEVEL = 5
# Codes have no runs worth searching for but the rows of repeated tokens: level 2 stores 0.7 % less than level 1 and takes
# 1.4 times as long
_ZSTD_LEVEL = 1


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """One way of storing activations."""

    name: str
    values: str
    """Format of the decoded values: ``float32``, ``float16`` or ``bfloat16``."""
    stored: np.dtype[Any]
    """dtype of a value's bit pattern in memory; 16-bit values are kept as uint16."""
    codes: np.dtype[Any]
    """dtype of what a chunk holds on disk: the patterns, or quantised codes."""
    zarr_dtype: str
    """``data_type`` of the Zarr array. zarr-python has no bfloat16, so that is kept as uint16."""
    decode_formula: str
    """How a foreign reader turns the array's values into activations (Python, array ``a``; ``unit`` and ``knee`` are
    ``scales[layer, block, :, 0]`` and ``[…, 1]``)."""
    largest: float
    """Largest finite magnitude that can be stored."""
    quantised: bool = False
    """Whether codes are quantised, with scales beside them."""

    @property
    def itemsize(self) -> int:
        """Bytes of one value in memory."""
        return int(self.stored.itemsize)

    def codecs(self) -> list[dict[str, Any]]:
        """Return the Zarr v3 codec chain of an inner chunk, as metadata."""
        blosc_lz4 = {
            "name": "blosc",
            "configuration": {
                "typesize": self.itemsize,
                "cname": "lz4",
                "clevel": _LZ4_LEVEL,
                "shuffle": "bitshuffle",
                "blocksize": 0,
            },
        }
        plain_zstd = {"name": "zstd", "configuration": {"level": _ZSTD_LEVEL, "checksum": False}}
        to_bytes: dict[str, Any] = {"name": "bytes"}
        if self.codes.itemsize > 1:
            to_bytes["configuration"] = {"endian": "little"}
        return [to_bytes, plain_zstd if self.quantised else blosc_lz4, {"name": "crc32c"}]

    def compress(self, chunk: NDArray[Any]) -> tuple[bytes, bytes]:
        """Compress one contiguous chunk of codes; return its bytes and their checksum, to be written in this order."""
        packed: bytes
        if self.quantised:
            packed = zstd.compress(chunk, _ZSTD_LEVEL)
        else:
            packed = blosc.compress(chunk, b"lz4", _LZ4_LEVEL, blosc.BITSHUFFLE)
        return packed, checksum(packed)

    def decompress(self, data: NDArray[np.uint8], out: NDArray[Any], what: str) -> None:
        """Check and decompress one chunk (uint8, contiguous) into `out` (contiguous, dtype `codes`).

        Raises
        ------
        DamageError
            When the checksum or the length does not fit; `what` names the chunk in the message.
        """
        packed = check(data, what)
        try:
            size = _zstd_content_bytes(packed) if self.quantised else int.from_bytes(packed[4:8], "little")
            if size != out.nbytes:  # neither library minds a destination that is too large
                raise DamageError(f"{what}: holds {size} bytes, expected {out.nbytes}")
            if self.quantised:
                zstd.decompress(packed, out)
            else:
                blosc.decompress(packed, out)
        except (RuntimeError, ValueError) as error:
            raise DamageError(f"{what}: its checksum fits but it does not decode ({error})") from None


def checksum(data: bytes | NDArray[np.uint8]) -> bytes:
    """Return the crc32c of `data` as the codec of that name appends it."""
    return bytes(google_crc32c.value(data).to_bytes(_CHECKSUM_BYTES, "little"))


def check(data: NDArray[np.uint8], what: str) -> NDArray[np.uint8]:
    """Return `data` without the checksum at its end, or raise DamageError."""
    body = data[:-_CHECKSUM_BYTES]
    if len(data) < _CHECKSUM_BYTES or checksum(body) != data[-_CHECKSUM_BYTES:].tobytes():
        raise DamageError(f"{what}: checksum does not match; run `neuronlake verify --full` to list the damage")
    return body


def _zstd_content_bytes(frame: NDArray[np.uint8]) -> int:
    """Uncompressed size from a zstd frame's header (RFC 8878, 3.1.1.1); −1 if it has none."""
    header = frame[:18].tobytes()
    descriptor = header[4] if len(header) > 4 else 0
    single_segment = bool(descriptor & 0x20)
    width = (1 if single_segment else 0, 2, 4, 8)[descriptor >> 6]
    first = 5 + (not single_segment) + (0, 1, 2, 4)[descriptor & 3]
    if not width or len(header) < first + width:
        return -1
    return int.from_bytes(header[first : first + width], "little") + (256 if width == 2 else 0)


_ENCODINGS = (
    Encoding(
        name="float32",
        values="float32",
        stored=np.dtype("<f4"),
        codes=np.dtype("<f4"),
        zarr_dtype="float32",
        decode_formula="a",
        largest=float(np.finfo(np.float32).max),
    ),
    Encoding(
        name="float16",
        values="float16",
        stored=np.dtype("<u2"),
        codes=np.dtype("<u2"),
        zarr_dtype="float16",
        decode_formula="a.astype('float32')",
        largest=65504.0,
    ),
    Encoding(
        name="bfloat16",
        values="bfloat16",
        stored=np.dtype("<u2"),
        codes=np.dtype("<u2"),
        zarr_dtype="uint16",
        decode_formula="(a.astype('uint32') << 16).view('float32')",
        largest=3.3895313892515355e38,
    ),
    Encoding(
        name="int8a",
        values="float16",
        stored=np.dtype("<u2"),
        codes=np.dtype("i1"),
        zarr_dtype="int8",
        decode_formula="(q := abs(a.astype('float32')), (numpy.sign(a) * unit * numpy.where(knee > 0, "
        "q**2 - numpy.maximum(q - knee, 0) ** 2, "
        "numpy.ldexp(q % -knee - knee, (q // -knee).astype('int32')) + knee)).astype('float16'))[1]",
        largest=65504.0,
        quantised=True,
    ),
)
DEFAULT_ENCODING = "int8a"
"""The smallest whose effect on rankings and probes of real activations is within noise (docs/design/0002-store.md)."""
ENCODINGS: Mapping[str, Encoding] = MappingProxyType({encoding.name: encoding for encoding in _ENCODINGS})


def get_encoding(name: str) -> Encoding:
    """Return the encoding of that name, or raise InputError listing the known ones."""
    try:
        return ENCODINGS[name]
    except KeyError:
        raise InputError(f"unknown encoding {name!r}: known are {', '.join(ENCODINGS)}") from None
