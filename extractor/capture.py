"""Fill a block's buffer by forward passes over its sequences. A pure function of (plan, model, block)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.extractor.batching import plan_batches
from neuronlake.extractor.drain import make_drain
from neuronlake.extractor.model import Model
from neuronlake.store.buffer import BlockBuffer
from neuronlake.store.tables import PADDING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """The sequences of one block, from its plan table."""

    ids: NDArray[np.int32]
    """Token ids of the used rows, (rows,)."""
    starts: NDArray[np.int64]
    """First row (within the block) of each sequence, and the number of used rows as the last entry."""

    @classmethod
    def from_table(cls, table: Any) -> "BlockPlan":
        """Read it from a block's plan table (columns token_id, position, flags)."""
        used = int((table.column("flags").to_numpy() != PADDING).sum())
        position = table.column("position").to_numpy()[:used]
        return cls(
            ids=table.column("token_id").to_numpy()[:used],
            starts=np.append(np.flatnonzero(position == 0), used),
        )

    @property
    def rows(self) -> int:
        """Used rows."""
        return len(self.ids)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence."""
        return [int(length) for length in np.diff(self.starts)]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One padded forward pass and where its rows go."""

    ids: NDArray[np.int64]
    """(sequences, longest), padded on the right with 0."""
    source: NDArray[np.int64]
    """(tokens,) positions in the flattened batch that are real."""
    target: NDArray[np.int64]
    """(tokens,) their rows in the block."""

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Which positions are real, (sequences, longest)."""
        mask = np.zeros(self.ids.size, dtype=np.bool_)
        mask[self.source] = True
        return mask.reshape(self.ids.shape)


def make_batch(plan: BlockPlan, members: Sequence[int]) -> Batch:
    """Lay out the chosen sequences as one batch."""
    lengths = plan.lengths
    longest = max(lengths[member] for member in members)
    ids = np.zeros((len(members), longest), dtype=np.int64)
    source, target = [], []
    for line, member in enumerate(members):
        first, length = int(plan.starts[member]), lengths[member]
        ids[line, :length] = plan.ids[first : first + length]
        source.append(np.arange(line * longest, line * longest + length))
        target.append(np.arange(first, first + length))
    return Batch(ids=ids, source=np.concatenate(source), target=np.concatenate(target))


class TransformersEngine:
    """Forward passes by transformers, in this process.

    Parameters
    ----------
    model
        Loaded.
    batch_tokens
        Largest padded size of a forward pass.
    """

    def __init__(self, model: Model, *, batch_tokens: int):
        self.model = model
        self.overlaps = model.device.type != "cpu"
        self.ranks: int | None = None
        self._batch_tokens = batch_tokens
        self._drain = make_drain(model.device)

    def provenance(self) -> dict[str, Any]:
        """See `neuronlake.extractor.engine.Engine`."""
        return {**self.model.provenance(), "batch_tokens": self._batch_tokens}

    def capture_block(self, plan: BlockPlan, buffer: BlockBuffer, progress: Callable[[int], None]) -> None:
        """See `neuronlake.extractor.engine.Engine`."""
        import torch

        for members in plan_batches(plan.lengths, batch_tokens=self._batch_tokens):
            batch = make_batch(plan, members)
            mask = torch.from_numpy(batch.mask)
            self.model.capture(torch.from_numpy(batch.ids), self.receiver(buffer, batch), mask=mask)
            progress(len(batch.source))
        self._drain.finish()

    def receiver(self, buffer: BlockBuffer, batch: Batch) -> Callable[[str, int, "torch.Tensor"], None]:
        """Return what takes the values of a batch, (sequences, positions, width), inside the forward pass."""

        def receive(site: str, layer: int, values: "torch.Tensor") -> None:
            flat = values.reshape(-1, values.shape[-1])  # of the whole batch, padding included
            self._drain.put(buffer, site, layer, flat, batch.source, batch.target)

        return receive

    def close(self) -> None:
        """See `neuronlake.extractor.engine.Engine`."""
        self._drain.close()
