"""Which rows of a block belong together: tag × fold, sorted once for the many chunks that share them.

Folds are sets of whole documents. Keeping every statistic per fold lets one pass over the lake serve rankings on some
documents and tests on the others, and jackknife or bootstrap errors by document.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.labels import LabelVector

FOLDS = 5
_SAMPLE = 256


@dataclass(frozen=True, kw_only=True)
class BlockGroups:
    """Labelled rows of one block. Group ``tag · folds + fold``; a tag's folds are neighbours."""

    block: int
    rows: NDArray[np.int32] = field(repr=False)
    """Rows within the block, by group, ascending within each."""
    start: NDArray[np.int64] = field(repr=False)
    """Where each group begins in `rows`, and the end: (groups + 1,)."""
    folds: int

    @cached_property
    def sample(self) -> NDArray[np.int32]:
        """At most 256 rows, spread over the block."""
        rows = np.sort(self.rows)
        return np.ascontiguousarray(rows[:: -(-len(rows) // _SAMPLE) or 1])  # kernels take its address

    @cached_property
    def last_row(self) -> int:
        """The last labelled row; −1 without any."""
        return int(self.rows.max(initial=-1))

    @property
    def count(self) -> NDArray[np.int64]:
        """Tokens per group, (groups,)."""
        return np.diff(self.start)

    @cached_property
    def most(self) -> int:
        """Tokens of the most frequent tag."""
        return int(np.max(np.diff(self.start[:: self.folds]), initial=0))


def fold_of(documents: NDArray[np.int32], folds: int) -> NDArray[np.int32]:
    """Fold of every document: its number modulo `folds`, so that neighbours, alike in genre and author, are spread."""
    return documents % np.int32(folds)


def group_blocks(labels: LabelVector, *, folds: int, blocks: Collection[int] | None = None) -> list[BlockGroups]:
    """Return the blocks that have labelled rows, in order; only those in `blocks`, if given."""
    found = []
    for position, block in enumerate(labels.blocks):
        codes = labels.block(position)
        if (blocks is None or block in blocks) and np.any(codes >= 0):
            first = position * labels.block_rows
            documents = labels.documents[first : first + labels.block_rows]
            found.append(group_rows(codes, documents, tags=len(labels.tags), folds=folds, block=block))
    return found


def group_rows(
    codes: NDArray[np.int16], documents: NDArray[np.int32], *, tags: int, folds: int = 1, block: int = 0
) -> BlockGroups:
    """Sort one block's labelled rows.

    Parameters
    ----------
    codes : int16 (block_rows,)
        Tag of every row, below `tags`; −1 where it has none.
    documents : int32 (block_rows,)
        Document of every row.
    """
    rows = np.flatnonzero(codes >= 0)
    group = codes[rows].astype(np.int64) * folds + fold_of(documents[rows], folds)
    order = np.argsort(group, kind="stable")
    return BlockGroups(
        block=block,
        rows=rows[order].astype(np.int32),
        start=np.searchsorted(group[order], np.arange(tags * folds + 1)).astype(np.int64),
        folds=folds,
    )
