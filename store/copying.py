"""A lake copied to another place: committed blocks only, every byte compared with its record, each block's commit last.

Run again, it goes on where it stopped. The source may be written to meanwhile: what it has committed when the copy begins is
copied. Readers of the copy see committed blocks only, as always.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import neuronlake.store.layout as layout
from neuronlake.store.commits import Commit, committed_blocks, publish_commit, read_commit, settle_commits
from neuronlake.store.create import read_spec, remove_temporary
from neuronlake.store.errors import InputError
from neuronlake.store.files import FileRecord, read_sealed_bytes, seal, stale_temporaries, sync_folder
from neuronlake.store.kept import INDEX, KEPT
from neuronlake.store.label_sets import LABELS
from neuronlake.store.lake import Lake, open_lake
from neuronlake.store.lock import LOCK_FILE, writing
from neuronlake.store.objects import LakePath
from neuronlake.store.plan_record import publish_plan_record, read_plan_record, write_dropped
from neuronlake.store.result_copying import copy_results
from neuronlake.store.transfer import check_apart, crew, sync_folders, transfer

THREADS = 8
"""Files that are copied at once: most of the time they wait for a disk or a network."""
Progress = Callable[[int, int], None]
"""Called with the bytes of activations that are there, and all."""


@dataclass(kw_only=True)
class CopyReport:
    """What a copy did."""

    target: str
    blocks: tuple[int, ...]
    """Blocks asked for that the source has committed."""
    copied: tuple[int, ...] = ()
    """Blocks committed by this run."""
    differing: tuple[int, ...] = ()
    """Blocks that the target had committed already with other bytes, of another machine: they stay."""
    files: int = 0
    """Files copied by this run."""
    bytes: int = 0
    """Their bytes."""
    results: list[str] = field(default_factory=list)
    """Label sets and kept results that are there now."""
    left: list[str] = field(default_factory=list)
    """Kept results that were not copied, and why."""

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**self.__dict__, **{name: list(self.__dict__[name]) for name in ("blocks", "copied", "differing")}}


def copy_lake(
    source: LakePath,
    target: LakePath,
    *,
    blocks: tuple[int, int] | None = None,
    chosen: Collection[int] | None = None,
    index: bool = True,
    kept: bool = True,
    threads: int = THREADS,
    progress: Progress = lambda done, total: None,
) -> CopyReport:
    """Copy a lake, or finish a copy.

    Parameters
    ----------
    source, target
        Folders or places in object stores. The target is a new or empty folder, or an earlier copy.
    blocks
        Only blocks [first, last).
    chosen
        Only these.
    index, kept
        Copy the index, and the other results: they can be made again. Labels are copied always.
    threads
        Files copied at once; each thread holds 8 MiB of one, or the whole of it where the target takes no less.

    Raises
    ------
    InputError
        When there is no lake to copy, or the target is something else. Nothing was written.
    DamageError
        When a file of the source is damaged. What was copied before stays.
    StorageError
        When one of the two stores refuses.
    """
    check_apart(source, target)
    lake = open_lake(source)
    first, last = blocks or (0, lake.plan.blocks)
    if not 0 <= first < min(last, lake.plan.blocks):
        raise InputError(f"blocks {first}:{last} asked for, but the plan of {source} has 0 to {lake.plan.blocks - 1}")
    wanted = tuple(block for block in lake.blocks if first <= block < last and (chosen is None or block in chosen))
    check_target(target, lake)
    report = CopyReport(target=str(target), blocks=wanted)
    with writing(target):
        check_target(target, lake)
        for temporary in stale_temporaries(target):
            remove_temporary(temporary)
        _copy_plan(lake, target, report, threads)
        settle_commits(target)
        commits = [commit for commit in lake.commits if commit.block in wanted]
        total = sum(file.bytes for commit in commits for file in commit.files)
        copies = (BlockCopy.of(lake, commit) for commit in commits)
        copy_blocks(target, copies, report, total=total, threads=threads, progress=progress)
        kinds = [LABELS, *(folder for folder in KEPT if (index if folder == INDEX else kept))]
        copy_results(lake.path, target, kinds, report.results, report.left)
    return report


def check_target(target: LakePath, lake: Lake) -> None:
    """Raise InputError unless a place is empty, or holds (the beginning of) a copy of the lake."""
    if (target / layout.ROOT_METADATA).is_file():
        there = read_spec(target)
        if there.fingerprint != lake.spec.fingerprint:
            raise InputError(
                f"{target} holds another lake ({'; '.join(there.differences(lake.spec)[:2])}): choose a new or empty folder"
            )
        plan = read_plan_record(target)
        if plan is not None and plan.as_dict() != lake.plan.as_dict():
            raise InputError(
                f"{target} holds the lake of {lake.path} with another plan record (planned by other library versions, or a "
                "site was dropped from one of them): choose a new or empty folder"
            )
        return
    try:
        entries = [entry.name for entry in target.iterdir()]
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise InputError(f"{target} is a file: choose a new or empty folder") from None
    if found := [name for name in entries if name != LOCK_FILE and not name.endswith(".tmp")]:
        raise InputError(f"{target} exists and is not a lake (it has {sorted(found)[0]}): choose a new or empty folder")


@dataclass(frozen=True, kw_only=True)
class BlockCopy:
    """A committed block on its way to another lake."""

    source: LakePath
    """The lake it is from."""
    commit: Commit
    """As it will be in the target."""
    data: bytes
    """Its record there."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Path of a file in the target → in the source, where that is another one."""

    @classmethod
    def of(cls, lake: Lake, commit: Commit) -> "BlockCopy":
        """Return the copy of a block that keeps its number."""
        data, _ = read_sealed_bytes(lake.path / layout.commit_path(commit.block))
        return cls(source=lake.path, commit=commit, data=data)

    def origin(self, file: FileRecord) -> FileRecord:
        """Return where a file of the target comes from."""
        return dataclasses.replace(file, path=self.origins.get(file.path, file.path))


def copy_blocks(
    target: LakePath, copies: Iterable[BlockCopy], report: CopyReport, *, total: int, threads: int, progress: Progress
) -> None:
    """Copy committed blocks one after the other, each block's files several at a time.

    Parameters
    ----------
    total
        Bytes of all of them, for the progress.
    """
    there, done = set(committed_blocks(target)), 0
    copied, differing = list(report.copied), list(report.differing)

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    with crew(threads) as work:
        for copy in copies:
            block, files = copy.commit.block, list(copy.commit.files)
            if block in there:
                own = {file.path: file for file in read_commit(target, block).files}
                if any(own.get(file.path) != file for file in files):
                    differing.append(block)
                    files = []
                # a file is under its name only whole, so that its size tells whether it is there
                files = [file for file in files if not _has_size(target / file.path, file.bytes)]
                advance(sum(file.bytes for file in copy.commit.files) - sum(file.bytes for file in files))

            def move(file: FileRecord, copy: BlockCopy = copy) -> tuple[int, int]:
                return file.bytes, transfer(copy.source, copy.origin(file), target, file.path)

            moved = work([partial(move, file) for file in files], advance)
            report.files += sum(count > 0 for count in moved)
            report.bytes += sum(moved)
            sync_folders(target, (file.path for file in files))
            if block not in there:
                publish_commit(target, copy.commit, copy.data)
                copied.append(block)
            report.copied, report.differing = tuple(copied), tuple(differing)


def _copy_plan(lake: Lake, target: LakePath, report: CopyReport, threads: int) -> None:
    """Copy what the plan record lists, the root's metadata first, and then the record itself."""
    data = (lake.path / layout.PLAN_RECORD).read_bytes()
    if data != seal(lake.plan.as_dict()):
        raise InputError(f"the plan of {lake.path} was changed just now: run the same command again")
    planned = read_plan_record(target) is not None
    root = lake.plan.files[layout.ROOT_METADATA]
    if not planned:
        transfer(lake.path, root, target)
        sync_folder(target)
    files = [file for file in lake.plan.files.values() if not (planned and _has_size(target / file.path, file.bytes))]

    def move(file: FileRecord) -> tuple[int, int]:
        return file.bytes, transfer(lake.path, file, target)

    with crew(threads) as work:
        moved = work([partial(move, file) for file in files], lambda size: None)
    report.files += sum(count > 0 for count in moved)
    report.bytes += sum(moved)
    sync_folders(target, (file.path for file in files))
    if lake.plan.dropped:
        write_dropped(target, lake.plan.fingerprint, lake.plan.dropped)
    if not planned:
        publish_plan_record(target, lake.plan, data)


def _has_size(path: LakePath, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False
