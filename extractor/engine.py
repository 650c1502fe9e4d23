"""What computes a block, whichever engine runs the model."""

from collections.abc import Callable
from typing import Any, Protocol

from neuronlake.extractor.capture import BlockPlan
from neuronlake.store.buffer import BlockBuffer


class Engine(Protocol):
    """A loaded model that fills blocks.

    `capture_block` is a pure function of model and plan: the same block gives the same values, on the same hardware and
    library versions, whatever was computed before.
    """

    overlaps: bool
    """Computes elsewhere than on the cores that encode: the next block may be computed while one is encoded."""
    ranks: int | None
    """Processes that fill a buffer, each its slice of the units; None when this one does. See `BlockBuffer`."""

    def provenance(self) -> dict[str, Any]:
        """Return what may move the last bits of the values, as JSON: recorded with every block."""

    def capture_block(self, plan: BlockPlan, buffer: BlockBuffer, progress: Callable[[int], None]) -> None:
        """Run every sequence of a block once and put every site of every layer in `buffer`.

        Parameters
        ----------
        progress
            Called now and then with the number of tokens done since the last call.

        Raises
        ------
        ActivationError
            When an activation cannot be stored.
        InputError
            When the engine cannot compute the block.
        """

    def close(self) -> None:
        """Release what the engine holds."""
