"""From a forward pass into a block's buffer: on a GPU through pinned memory, while the model goes on."""

from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from neuronlake.store.buffer import BlockBuffer

if TYPE_CHECKING:
    import torch

SLOTS = 8
SLOT_BYTES = 64 << 20  # 8 × 64 MiB: two layers of 16,384 tokens of Llama-3-8B are under way
_THREADS = 2  # each scatters 2 Gvalues/s, more than a PCIe link brings


class Drain(Protocol):
    """Takes tensors that are only valid during the call of a hook."""

    def put(
        self,
        buffer: BlockBuffer,
        site: str,
        layer: int,
        values: "torch.Tensor",
        source: NDArray[np.int64],
        target: NDArray[np.int64],
        *,
        rank: int = 0,
    ) -> None:
        """Bring ``values[source]`` into rows `target` of the block.

        Parameters
        ----------
        values : (positions, width)
            Any floating dtype, on the drain's device.
        source, target : int64 (n,)
        rank
            See `BlockBuffer.put`.

        Raises
        ------
        ActivationError
            Here or from `finish`: when a value cannot be stored.
        """

    def finish(self) -> None:
        """Wait until everything is in the buffer, and raise what went wrong."""

    def close(self) -> None:
        """Wait, and release what is held."""


def make_drain(device: "torch.device") -> Drain:
    """Return the drain for tensors of a device."""
    return Ring(device) if device.type == "cuda" else Direct()


class Direct:
    """On the CPU the values are scattered at once: they are in the cache."""

    def put(
        self,
        buffer: BlockBuffer,
        site: str,
        layer: int,
        values: "torch.Tensor",
        source: NDArray[np.int64],
        target: NDArray[np.int64],
        *,
        rank: int = 0,
    ) -> None:
        """See `Drain`."""
        import torch

        # no copy when it is float32
        buffer.put(site, layer, values.detach().to(torch.float32).contiguous().numpy(), source, target, rank=rank)

    def finish(self) -> None:
        """Nothing is under way."""

    def close(self) -> None:
        """Nothing is held."""


class Ring:
    """On a GPU: the rows wanted are gathered and cast there, copied once, and scattered by threads of the host.

    The gather is the copy that a hook needs anyway, since the model will reuse the tensor's memory; the cast to 16 bits
    halves what crosses the bus. The copy runs on a stream of its own into one of `slots` pinned buffers. When none is free,
    `put` waits: a disk that is too slow slows the model down instead of filling the memory.
    """

    def __init__(self, device: "torch.device", *, slots: int = SLOTS, slot_bytes: int = SLOT_BYTES):
        import torch

        cuda = device.type == "cuda"
        self._device = device
        self._stream: Any = torch.cuda.Stream(device) if cuda else None  # type: ignore[no-untyped-call, unused-ignore]
        self._slot_bytes = slot_bytes
        self._free: SimpleQueue[torch.Tensor] = SimpleQueue()
        for _ in range(slots):
            self._free.put(torch.empty(slot_bytes, dtype=torch.uint8, pin_memory=cuda))
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="neuronlake-drain")
        self._pending: list[Future[None]] = []
        self._chosen: tuple[NDArray[np.int64], torch.Tensor] | None = None

    def put(
        self,
        buffer: BlockBuffer,
        site: str,
        layer: int,
        values: "torch.Tensor",
        source: NDArray[np.int64],
        target: NDArray[np.int64],
        *,
        rank: int = 0,
    ) -> None:
        """See `Drain`."""
        import torch

        dtype = getattr(torch, buffer.encoding.values)
        rows = values.detach().index_select(0, self._on_device(source)).to(dtype)
        width = rows.shape[1] * rows.element_size()
        each = max(1, self._slot_bytes // width)
        for first in range(0, len(rows), each):
            part = rows[first : first + each]
            slot = self._free.get()
            if len(part) * width > len(slot):  # one row is larger than a slot
                slot = torch.empty(len(part) * width, dtype=torch.uint8, pin_memory=self._stream is not None)
            host = slot[: len(part) * width].view(dtype).view(part.shape)
            copied = self._copy(part, host)
            arguments = (buffer, site, layer, host, target[first : first + each], rank)
            self._pending.append(self._threads.submit(self._land, slot, copied, *arguments))

    def finish(self) -> None:
        """See `Drain`."""
        pending, self._pending = self._pending, []
        errors = [error for each in pending if (error := each.exception()) is not None]
        if errors:
            raise errors[0]

    def close(self) -> None:
        """See `Drain`."""
        self._threads.shutdown(wait=True)

    def _on_device(self, source: NDArray[np.int64]) -> "torch.Tensor":
        """Return the indices on the device; those of a batch are the same for all its layers and sites."""
        import torch

        if self._chosen is None or self._chosen[0] is not source:
            self._chosen = source, torch.from_numpy(source).to(self._device)
        return self._chosen[1]

    def _copy(self, part: "torch.Tensor", host: "torch.Tensor") -> Any:
        """Begin the copy; return the event that says when it is done."""
        import torch

        if self._stream is None:
            host.copy_(part)
            return None
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            host.copy_(part, non_blocking=True)
        part.record_stream(self._stream)  # its memory is not given to others before
        return self._stream.record_event()

    def _land(
        self,
        slot: "torch.Tensor",
        copied: Any,
        buffer: BlockBuffer,
        site: str,
        layer: int,
        host: "torch.Tensor",
        target: NDArray[np.int64],
        rank: int,
    ) -> None:
        import torch

        try:
            if copied is not None:
                copied.synchronize()
            patterns = host if host.dtype == torch.float32 else host.view(torch.uint16)
            buffer.put(site, layer, patterns.numpy(), np.arange(len(target)), target, rank=rank)
        finally:
            self._free.put(slot)
