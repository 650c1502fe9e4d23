"""Memory that other processes of the same machine can write into, without a name in any file system."""

import mmap
import os
import weakref
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from neuronlake.store.errors import InputError, StorageError

_ALIGNMENT = 64  # a cache line: no two processes share one, and vector loads are aligned


class SharedMemory:
    """Anonymous shared memory (``memfd_create``), found by others through its creator's entry in ``/proc``.

    It is gone when the last process that has it open is, however that ends: nothing has to be cleaned up, and /dev/shm and
    its limit are not involved. It begins as zeros, and pages that nobody writes to take no memory.
    """

    def __init__(self, file: int, size: int, path: str):
        self.path = path
        """Where another process of this user opens it, for as long as the process that created it lives."""
        self._map = mmap.mmap(file, size)
        self._inode = os.fstat(file).st_ino
        self._next = 0

    @classmethod
    def create(cls, size: int) -> Self:
        """Make `size` bytes of it."""
        if not hasattr(os, "memfd_create"):
            raise InputError("memory shared between processes needs Linux: use --backend transformers")
        file = os.memfd_create("neuronlake")
        try:
            os.ftruncate(file, size)
            memory = cls(file, size, f"/proc/{os.getpid()}/fd/{file}")
        except OSError as error:
            os.close(file)
            raise StorageError(f"no {size:,} bytes of memory to share: {error.strerror}") from error
        weakref.finalize(memory, os.close, file)  # the map outlives it
        return memory

    @classmethod
    def open(cls, path: str) -> Self:
        """Open what another process created."""
        try:
            file = os.open(path, os.O_RDWR)
        except OSError as error:
            raise StorageError(f"{path} cannot be opened ({error.strerror}): it belongs to another process") from error
        try:
            return cls(file, os.fstat(file).st_size, path)
        finally:
            os.close(file)

    def is_at(self, path: str) -> bool:
        """Whether `path` leads to this memory, and not to what another buffer has there now."""
        try:
            return Path(path).stat().st_ino == self._inode
        except OSError:
            return False

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return the next part of it: whoever asks for the same arrays in the same order gets the same memory."""
        count = int(np.prod(shape))
        values = np.frombuffer(self._map, dtype=dtype, count=count, offset=self._next).reshape(shape)
        self._next += aligned(count * dtype.itemsize)
        return values


def aligned(size: int) -> int:
    """Return `size` bytes rounded up to where the next array begins."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT
