"""Tensors of a safetensors file, memory-mapped.

The container is a length, a JSON header and raw little-endian values. It is read here and not with the `safetensors`
package, whose NumPy side cannot give bfloat16; so the package is not needed at all.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.store.errors import InputError
from neuronlake.store.foreign import ForeignSettings, Part, json_text, unreadable

_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "<u1",
    "BOOL": "<?",
}
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100 << 20  # 100 MiB, the format's own limit


@dataclass(frozen=True)
class BFloat16:
    """uint16 bit patterns that are sliced into float32."""

    bits: NDArray[np.uint16]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self.bits.shape

    def __getitem__(self, key: Any) -> NDArray[np.float32]:
        """Return a part, converted exactly."""
        widened = np.asarray(self.bits[key]).astype(np.uint32)
        return np.left_shift(widened, np.uint32(16)).view(np.float32)


def tensor_parts(path: Path, settings: ForeignSettings) -> list[Part]:
    """List the chosen tensors of a file.

    Raises
    ------
    InputError
        When the file is malformed or a chosen tensor is of a dtype that is no activation's.
    """
    expected = "a readable safetensors file"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if not 2 <= length <= min(size - _LENGTH_BYTES, _MAX_HEADER_BYTES):
                raise InputError(f"{path}: not {expected} (its header cannot have {length} bytes)")
            header = json_text(file.read(length), path, expected)
    except OSError as error:
        raise unreadable(path, error, expected) from None
    if not isinstance(header, dict):
        raise InputError(f"{path}: not {expected} (its header is no JSON object)")
    data = _LENGTH_BYTES + length
    names = [name for name in header if name != "__metadata__" and settings.chosen(name)]
    return [
        Part(name=f"tensor {name!r} of {path.name}", key=name, array=_tensor(path, name, header[name], data, size))
        for name in names
    ]


def _tensor(path: Path, name: str, entry: Any, data: int, size: int) -> Any:
    try:
        kind, shape, (first, last) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        dtype = np.dtype(_DTYPES[kind])
    except KeyError as error:
        raise InputError(f"{path}: tensor {name!r} has no dtype that activations have ({error})") from None
    except (TypeError, ValueError):
        raise InputError(f"{path}: the header's entry of tensor {name!r} is malformed") from None
    if last - first != dtype.itemsize * int(np.prod(shape)) or not 0 <= first <= last <= size - data:
        raise InputError(f"{path}: tensor {name!r} reaches past the end of the file, or its size is not its shape's")
    if not last - first:
        return np.empty(shape, dtype)  # nothing to map
    array = np.memmap(path, mode="r", dtype=dtype, offset=data + first, shape=shape)
    return BFloat16(array) if kind == "BF16" else array
