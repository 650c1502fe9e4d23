"""The index of merged lakes, from theirs: its lists count rows within a block, so that only the blocks' numbers change."""

import dataclasses
from collections.abc import Sequence

from neuronlake.store.commits import commit_checksum, committed_blocks
from neuronlake.store.errors import DamageError
from neuronlake.store.index import Segment, merge, segments
from neuronlake.store.lake import Lake
from neuronlake.store.merged_plan import Offsets
from neuronlake.store.objects import LakePath


def carry_index(target: LakePath, lakes: Sequence[Lake], offsets: Sequence[Offsets], done: list[str]) -> None:
    """Give a merged lake the index that its parts have. What they lack is read from the activations, or made by
    `neuronlake index`.

    Raises
    ------
    StorageError
        When a store refuses.
    """
    checksums = {block: commit_checksum(target, block) for block in committed_blocks(target)}
    for site in lakes[0].sites:
        there = {block for segment in segments(target, site, checksums) for block in segment.blocks}
        moved = []
        for lake, offset in zip(lakes, offsets, strict=True):
            own = {block: commit_checksum(lake.path, block) for block in lake.blocks}
            for segment in segments(lake.path, site, own):
                numbers = {block + offset.block: block for block in segment.blocks}
                if set(numbers) <= there or not set(numbers) <= checksums.keys():
                    continue
                moved.append(_renumbered(segment, {str(block): checksums[block] for block in numbers}))
        if moved:
            try:
                merge(target, moved)
            except DamageError:  # `neuronlake index` makes it from the activations
                continue
            done.append(f"index of {site}")


def _renumbered(segment: Segment, blocks: dict[str, str]) -> Segment:
    """Return a segment, whose arrays stay where they are, under the numbers and checksums of the merged lake's blocks."""
    return dataclasses.replace(segment, record={**segment.record, "blocks": blocks})
