"""Lakes of one model put together, without the model and without encoding anything again.

Two cases. Lakes of one plan, extracted apart (by shards of it, on several machines), become one lake with the blocks of all.
Lakes of different texts become one whose plan is theirs one after the other: blocks, documents, sentences and words are
numbered on, every block is copied byte for byte under its new number, and the tables are written with the new numbers. The
index is carried over. Statistics and other results are made again when they are asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import neuronlake.store.layout as layout
from neuronlake.store.commits import Commit, commit_bytes, settle_commits
from neuronlake.store.copying import (
    THREADS,
    BlockCopy,
    CopyReport,
    Progress,
    check_target,
    copy_blocks,
    copy_lake,
)
from neuronlake.store.create import create_lake, read_spec, remove_temporary
from neuronlake.store.errors import DamageError, InputError
from neuronlake.store.files import FileRecord, stale_temporaries
from neuronlake.store.kept import WEIGHTS
from neuronlake.store.lake import Lake, open_lake
from neuronlake.store.lock import writing
from neuronlake.store.merged_index import carry_index
from neuronlake.store.merged_labels import merge_labels
from neuronlake.store.merged_plan import MergedPlan, Offsets, merge_spec
from neuronlake.store.objects import LakePath
from neuronlake.store.plan_record import publish_plan, read_plan_record
from neuronlake.store.result_copying import copy_results
from neuronlake.store.transfer import check_apart


@dataclass(kw_only=True)
class MergeReport(CopyReport):
    """What a merge did."""

    planned: int = 0
    """Blocks of the merged plan."""
    same_plan: bool = False
    """Whether the lakes were parts of one plan."""
    parts: list[str] = field(default_factory=list)
    """The lakes, in order."""


def merge_lakes(
    target: LakePath,
    sources: Sequence[LakePath],
    *,
    index: bool = True,
    threads: int = THREADS,
    progress: Progress = lambda done, total: None,
) -> MergeReport:
    """Merge lakes into a new one, or finish that.

    Parameters
    ----------
    target
        A new or empty folder, or an earlier merge of the same lakes.
    sources
        Two lakes at least: of one plan, or of different texts in the order they are to have.
    index
        Carry the index over.

    Raises
    ------
    InputError
        When the lakes do not go together: the message says in what they differ. Nothing was written.
    DamageError
        When a file of a source is damaged.
    StorageError
        When a store refuses.
    """
    if len(sources) < 2:
        raise InputError("merging takes two lakes at least")
    for place, source in enumerate(sources):
        check_apart(source, target)
        for other in sources[:place]:
            check_apart(other, source)
    lakes = [open_lake(source) for source in sources]
    if len({lake.fingerprint for lake in lakes}) == 1:
        return _merge_parts(target, lakes, index=index, threads=threads, progress=progress)
    return _merge_texts(target, lakes, index=index, threads=threads, progress=progress)


def _report(target: LakePath, lakes: Sequence[Lake], *, same_plan: bool) -> MergeReport:
    return MergeReport(target=str(target), blocks=(), same_plan=same_plan, parts=[str(lake.path) for lake in lakes])


def _merge_parts(target: LakePath, lakes: Sequence[Lake], *, index: bool, threads: int, progress: Progress) -> MergeReport:
    """Put the blocks of one plan together that were extracted apart."""
    first = lakes[0]
    report = _report(target, lakes, same_plan=True)
    report.planned = first.plan.blocks
    owner: dict[int, tuple[Lake, Commit]] = {}
    for lake in lakes:
        if lake.plan.as_dict() != first.plan.as_dict():
            raise InputError(
                f"{first.path} and {lake.path} are of one plan, but their plan records differ (planned by other library "
                "versions, or a site was dropped from one of them)"
            )
        for commit in lake.commits:
            other = owner.setdefault(commit.block, (lake, commit))
            if set(other[1].files) != set(commit.files):
                raise InputError(
                    f"{other[0].path} and {lake.path} overlap: both have block {commit.block}, with different bytes "
                    "(computed on other hardware or versions); copy one of them with --blocks to leave it out"
                )
    total, before = sum(file.bytes for _, commit in owner.values() for file in commit.files), 0

    def on_with(done: int, of_lake: int) -> None:
        del of_lake
        progress(before + done, total)

    for lake in lakes:
        # what each is the first to have: several lakes may hold a block, with the same bytes
        mine = {block: commit for block, (which, commit) in owner.items() if which is lake}
        done = copy_lake(lake.path, target, chosen=mine.keys(), index=index, threads=threads, progress=on_with)
        before += sum(file.bytes for commit in mine.values() for file in commit.files)
        report.blocks = tuple(sorted({*report.blocks, *mine}))
        report.copied = tuple(sorted({*report.copied, *done.copied}))
        report.files, report.bytes = report.files + done.files, report.bytes + done.bytes
        report.results = sorted({*report.results, *done.results})
        report.left += [line for line in done.left if line not in report.left]
    return report


def _merge_texts(target: LakePath, lakes: Sequence[Lake], *, index: bool, threads: int, progress: Progress) -> MergeReport:
    """Put lakes of different texts one after the other."""
    spec = merge_spec(lakes)
    plan = MergedPlan(lakes, spec)
    report = _report(target, lakes, same_plan=False)
    report.planned = plan.blocks
    there = read_spec(target) if (target / layout.ROOT_METADATA).is_file() else None
    if there is not None and there.fingerprint != spec.fingerprint:
        raise InputError(
            f"{target} holds another lake ({'; '.join(there.differences(spec)[:2])}): choose a new or empty folder"
        )
    if there is None:
        check_target(target, lakes[0])  # that nothing else is there
    with writing(target):
        root = create_lake(target, spec)
        for temporary in stale_temporaries(target):
            remove_temporary(temporary)
        record = read_plan_record(target)
        if record is None:
            record = publish_plan(target, spec, plan.write(target, root))
        settle_commits(target)
        copies = [
            _renumbered(lake, commit, offsets, spec.fingerprint)
            for lake, offsets in zip(lakes, plan.offsets, strict=True)
            for commit in lake.commits
        ]
        report.blocks = tuple(copy.commit.block for copy in copies)
        total = sum(file.bytes for copy in copies for file in copy.commit.files)
        copy_blocks(target, copies, report, total=total, threads=threads, progress=progress)
        merge_labels(target, record, lakes, plan.offsets, report.results, report.left)
        copy_results(lakes[0].path, target, [WEIGHTS], report.results, report.left)
        if index:
            carry_index(target, lakes, plan.offsets, report.results)
    return report


def _renumbered(lake: Lake, commit: Commit, offsets: Offsets, fingerprint: str) -> BlockCopy:
    """Return the copy of a block under its number in the merged lake."""
    files, origins = [], {}
    block = commit.block + offsets.block
    for file in commit.files:
        path = _renamed(file.path, lake, commit.block, block)
        origins[path] = file.path
        files.append(FileRecord(path=path, bytes=file.bytes, xxh3=file.xxh3))
    from_part = {"lake": lake.fingerprint, "block": commit.block}
    provenance: dict[str, Any] = {**commit.provenance, "lake": fingerprint}
    provenance.setdefault("part", from_part)
    moved = Commit(block=block, rows=commit.rows, provenance=provenance, files=tuple(files))
    return BlockCopy(source=lake.path, commit=moved, data=commit_bytes(moved), origins=origins)


def _renamed(path: str, lake: Lake, old: int, new: int) -> str:
    """Path of a block's file under the block's new number."""
    for site in lake.sites:
        if path == layout.scales_path(site, old):
            return layout.scales_path(site, new)
        for layer in lake.layers:
            if path == layout.shard_path(site, layer, old):
                return layout.shard_path(site, layer, new)
    raise DamageError(f"{lake.path / layout.commit_path(old)} lists {path}, which is no file of a block")
