"""Which rows of a lake a question is about, block by block."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from neuronlake.analysis.source import LakeSource
from neuronlake.analysis.sql import evaluate, read_expression
from neuronlake.store.errors import InputError
from neuronlake.store.lake import Lake
from neuronlake.store.tables import PADDING, SPECIAL


@dataclass(frozen=True, kw_only=True)
class ChosenRows:
    """Rows of the committed blocks."""

    blocks: Mapping[int, NDArray[np.int64]] = field(repr=False)
    """Block → rows within it, ascending; only blocks that have any."""
    block_rows: int
    special: bool
    """Whether special tokens (begin, end …) may be among them."""
    where: str | None
    masked: bool
    """Whether a mask of the caller's chose among them."""

    @property
    def count(self) -> int:
        """How many."""
        return sum(map(len, self.blocks.values()))

    @property
    def last_block(self) -> int:
        """The last block that has any."""
        return max(self.blocks)

    @property
    def rows(self) -> NDArray[np.int64]:
        """Their global numbers, ascending, int64 (count,)."""
        parts = [block * self.block_rows + self.blocks[block] for block in sorted(self.blocks)]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    @property
    def attributes(self) -> dict[str, Any]:
        """What to record with a result."""
        return {"special": self.special, "where": self.where, "masked": self.masked, "rows": self.count}


def choose_rows(
    lake: Lake, *, special: bool = False, where: str | None = None, mask: NDArray[np.bool_] | None = None, least: int = 0
) -> ChosenRows:
    """Choose rows of all committed blocks; padding is never among them.

    Parameters
    ----------
    lake
        The lake.
    special
        Special tokens too. On these, many neurons are larger than anywhere else by orders of magnitude, so that they alone
        decide a correlation.
    where
        SQL predicate over the token, see `token_labels`.
    mask : bool (committed rows,), optional
        One entry per line of ``lake.tokens()``.
    least
        Refuse fewer.

    Raises
    ------
    InputError
        When the mask has another shape, the predicate is refused, or fewer than `least` rows remain.
    """
    lines = len(lake.blocks) * lake.block_rows
    keep = token_mask(lake, where, special=special)
    if mask is not None:
        mask = np.asarray(mask)
        if mask.shape != (lines,) or mask.dtype != np.bool_:
            raise InputError(
                f"the mask needs one true or false per committed row ({lines}), got {mask.dtype} of shape {mask.shape}"
            )
        keep &= mask
    chosen = keep.reshape(len(lake.blocks), lake.block_rows)
    inside = {block: np.flatnonzero(line) for block, line in zip(lake.blocks, chosen, strict=True) if line.any()}
    result = ChosenRows(blocks=inside, block_rows=lake.block_rows, special=special, where=where, masked=mask is not None)
    if result.count < least:
        raise InputError(
            f"{result.count} of the {lines} committed rows are chosen"
            f"{'' if where is None else f' by where={where!r}'}, at least {least} are needed"
        )
    return result


def token_mask(source: LakeSource, where: str | None, *, special: bool) -> NDArray[np.bool_]:
    """Which committed rows are no padding, special only if asked for, and fulfil an SQL predicate: bool (committed rows,).

    Raises
    ------
    InputError
        When the predicate is refused.
    """
    predicate = None
    if where is not None:
        predicate = read_expression(where, argument="where", label_columns=source.label_columns, predicate=True)
    columns = [] if predicate is None else [name for name in predicate.columns if name in source.label_columns]
    table = source.tokens(labels=columns)
    flags = table.column("flags").to_numpy()
    keep: NDArray[np.bool_] = (flags & (PADDING if special else PADDING | SPECIAL)) == 0
    if predicate is not None:
        rows, answers = evaluate(predicate, table)
        true = np.zeros_like(keep)
        true[rows] = pc.fill_null(answers, False).to_numpy()
        keep &= true
    return keep
