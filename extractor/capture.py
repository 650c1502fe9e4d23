"""Fill a block's buffer by forward passes over its sequences. A pure function of (plan, model, block)."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.extractor.batching import plan_batches
from neuronlake.extractor.clips import Clip
from neuronlake.extractor.drain import make_drain
from neuronlake.extractor.model import Model
from neuronlake.store.buffer import BlockBuffer
from neuronlake.store.errors import InputError
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
    def from_table(cls, table: Any, *, clips: Sequence[Clip] = ()) -> "BlockPlan":
        """Read it from a block's plan table (columns token_id, position, flags)."""
        used = int((table.column("flags").to_numpy() != PADDING).sum())
        position = table.column("position").to_numpy()[:used]
        return cls(
            ids=table.column("token_id").to_numpy()[:used],
            starts=np.append(np.flatnonzero(position == 0), used),
            clips=tuple(clips),
        )

    clips: tuple[Clip, ...] = ()
    """Of a speech lake: where the sound of each sequence is."""

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

    inputs: NDArray[Any]
    """What the model reads: token ids, int64 (sequences, longest), padded on the right with 0; or sound."""
    mask: NDArray[np.bool_]
    """(sequences, longest) which of the inputs are real."""
    positions: int
    """Of each sequence in what the model computes, padding included."""
    source: NDArray[np.int64]
    """(rows,) positions in the flattened batch that are real."""
    target: NDArray[np.int64]
    """(rows,) their rows in the block."""


Company = Callable[[int], int]
"""Length → which lengths may share a batch with it: those with the same number."""
MakeBatches = Callable[[BlockPlan, int, Company], Iterator[Batch]]
"""Makes the forward passes of a block, each of at most so many positions, padding included; a pure decision."""


def text_batches(plan: BlockPlan, batch_tokens: int, company: Company) -> Iterator[Batch]:
    """Yield the forward passes of a block of text, see `MakeBatches`."""
    lengths = plan.lengths
    groups: dict[int, list[int]] = {}
    for sequence, length in enumerate(lengths):
        groups.setdefault(company(length), []).append(sequence)
    for group in groups.values():
        for members in plan_batches([lengths[sequence] for sequence in group], batch_tokens=batch_tokens):
            yield make_batch(plan, [group[member] for member in members])


def make_batch(plan: BlockPlan, members: Sequence[int]) -> Batch:
    """Lay out the chosen sequences of text as one batch."""
    lengths = plan.lengths
    longest = max(lengths[member] for member in members)
    ids = np.zeros((len(members), longest), dtype=np.int64)
    for line, member in enumerate(members):
        first, length = int(plan.starts[member]), lengths[member]
        ids[line, :length] = plan.ids[first : first + length]
    source, target = lay_out_rows(plan, members, positions=longest)
    mask = np.zeros(ids.size, dtype=np.bool_)
    mask[source] = True
    return Batch(inputs=ids, mask=mask.reshape(ids.shape), positions=longest, source=source, target=target)


def lay_out_rows(plan: BlockPlan, members: Sequence[int], *, positions: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where the rows of the chosen sequences are in a flattened batch of so many positions each, and in the block."""
    lengths = plan.lengths
    source = [np.arange(line * positions, line * positions + lengths[member]) for line, member in enumerate(members)]
    target = [np.arange(plan.starts[member], plan.starts[member] + lengths[member]) for member in members]
    return np.concatenate(source), np.concatenate(target)


class TransformersEngine:
    """Forward passes by transformers, in this process.

    Parameters
    ----------
    model
        Loaded.
    batch_tokens
        Largest padded size of a forward pass.
    batches
        Makes the forward passes of a block; by default those of text.
    """

    def __init__(
        self,
        model: Model,
        *,
        batch_tokens: int,
        batches: MakeBatches = text_batches,
    ):
        self.model = model
        self.overlaps = model.device.type != "cpu"
        self.ranks: int | None = None
        self._batch_tokens = batch_tokens
        self._batches = batches
        self._drain = make_drain(model.device)

    def provenance(self) -> dict[str, Any]:
        """See `neuronlake.extractor.engine.Engine`."""
        return {**self.model.provenance(), "batch_tokens": self._batch_tokens}

    def capture_block(self, plan: BlockPlan, buffer: BlockBuffer, progress: Callable[[int], None]) -> None:
        """See `neuronlake.extractor.engine.Engine`."""
        import torch

        with warnings.catch_warnings():
            # transformers' WavLM hands torch masks of two types
            warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask", category=UserWarning)
            for batch in self._batches(plan, self._batch_tokens, self.model.company):
                inputs = torch.from_numpy(batch.inputs)
                if inputs.is_floating_point():
                    inputs = inputs.to(self.model.module.dtype)
                self.model.capture(inputs, self.receiver(buffer, batch), mask=torch.from_numpy(batch.mask))
                progress(len(batch.source))
        self._drain.finish()

    def receiver(self, buffer: BlockBuffer, batch: Batch) -> Callable[[str, int, "torch.Tensor"], None]:
        """Return what takes the values of a batch, (sequences, positions, width), inside the forward pass."""

        def receive(site: str, layer: int, values: "torch.Tensor") -> None:
            if values.shape[1] != batch.positions:
                raise InputError(
                    f"layer {layer}, site {site}: the model gave {values.shape[1]} positions for each sequence, "
                    f"{batch.positions} were planned"
                )
            flat = values.reshape(-1, values.shape[-1])  # of the whole batch, padding included
            self._drain.put(buffer, site, layer, flat, batch.source, batch.target)

        return receive

    def close(self) -> None:
        """See `neuronlake.extractor.engine.Engine`."""
        self._drain.close()
