"""Is the lake whole? Compare what is on the disk with what the records promise."""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import neuronlake.store.layout as layout
from neuronlake.store.commits import Commit, committed_blocks, of_sites, read_commit
from neuronlake.store.create import read_spec
from neuronlake.store.encodings import get_encoding
from neuronlake.store.errors import DamageError, InputError, StorageError
from neuronlake.store.files import FileRecord, checksum_found, files_below, read_checked, sizes_below, stale_temporaries
from neuronlake.store.kept import INDEX, KEPT, MADE_BY, RECORD, kept_record, kept_results
from neuronlake.store.label_sets import LABELS, examine_label_set, is_label_set, label_set_names
from neuronlake.store.lock import CLAIMS, LOCK_FILE, writer_of
from neuronlake.store.objects import LakeName, LakePath, ObjectPath, lake_path
from neuronlake.store.parallel import map_waiting
from neuronlake.store.plan_record import DROPPED, PLAN_ASIDE, TABLES, PlanRecord, read_dropped, read_plan_record
from neuronlake.store.spec import LakeSpec, metadata_files
from neuronlake.store.tables import PADDING, from_parquet

_SHARD = re.compile(r"activations/[^/]+/\d+/c\.(\d+)\.0|scales/[^/]+/c\.0\.(\d+)\.0\.0")
_TABLE = re.compile(rf"(?:{'|'.join(TABLES)})/block-\d{{6,}}\.parquet")
_UPLOADED = re.compile(rf"(?:{'|'.join(KEPT)})/[^/]+/.+|{LABELS}/[^/]+/block-\d{{6,}}\.parquet")
"""Objects of a result or label set; without a record they are of an upload that was interrupted."""
_TEMPORARY = re.compile(r"(?:^|/)\.[^/]*\.tmp(?:/|$)")


@dataclass(kw_only=True)
class VerifyReport:
    """What `verify` found."""

    full: bool
    blocks_planned: int = 0
    blocks_committed: int = 0
    files_checked: int = 0
    bytes_checked: int = 0
    damage: list[str] = field(default_factory=list)
    """One line per damaged or missing file."""
    leftovers: list[str] = field(default_factory=list)
    """Temporary files of processes that ended, shards of blocks that were never committed, and what is left of sites that
    were dropped. They are never read."""
    unknown_files: list[str] = field(default_factory=list)
    """Files that no record mentions and nothing of ours leaves behind: somebody else's. They are never read."""
    writer: str | None = None
    """Who is writing to the lake at this moment; what it has not committed yet is no leftover."""

    @property
    def ok(self) -> bool:
        """Whether every committed value is safe."""
        return not self.damage

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"ok": self.ok, **self.__dict__}


@dataclass(kw_only=True)
class Findings:
    """The report, and what it means for a repair."""

    report: VerifyReport
    spec: LakeSpec | None = None
    """Settings that the root's metadata give, if they can be read: right only if `root` is None."""
    plan: PlanRecord | None = None
    """The plan record, if it can be read."""
    root: str | None = None
    """What is wrong with the root's metadata."""
    dropped: tuple[str, ...] = ()
    """Sites that were dropped."""
    copy: str | None = None
    """What is wrong with the second copy of that."""
    record: str | None = None
    """What is wrong with the plan record."""
    metadata: list[str] = field(default_factory=list)
    """Damaged metadata files of groups and arrays."""
    tables: list[str] = field(default_factory=list)
    """Damaged plan tables."""
    blocks: dict[int, str] = field(default_factory=dict)
    """Committed block → the first thing that is wrong with it."""
    kept: list[tuple[str, str]] = field(default_factory=list)
    """Folder and name of damaged results kept in the lake; they can be computed again."""
    labels: list[str] = field(default_factory=list)
    """Damaged label sets, and those of another plan."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Of the objects that were listed first: asking for each would take a request."""
    foreign: list[int] = field(default_factory=list)
    """Those of `blocks` whose commit record names another lake, or a block that the plan does not have."""


def verify(path: LakeName, *, full: bool = False) -> VerifyReport:
    """Check a lake.

    Quick: every record against its own checksum and against the others, every metadata file, every table's and shard's
    presence and size. Full: also every byte's checksum, and each block's rows against its plan table.

    Raises
    ------
    InputError
        When there is no lake to check, its plan was never finished, or its format is not ours.
    """
    root = lake_path(path)
    report = examine(root, full=full, writer=writer_of(root)).report
    if report.writer is None and (report.leftovers or report.unknown_files) and (writer := writer_of(root)) is not None:
        report = examine(root, full=full, writer=writer).report  # it began meanwhile: what it is at is no leftover
    return report


def examine(root: LakePath, *, full: bool, writer: str | None, alone: bool = False) -> Findings:
    """Do what `verify` does, and keep the findings apart by what a repair would do about them.

    With `alone`, nobody else can be writing: temporary files of other hosts were left behind, too.
    """
    found = Findings(report=VerifyReport(full=full, writer=writer))
    # Listed before the commits: what is committed in between is then not taken for a leftover.
    if isinstance(root, Path):
        present = sorted(path.relative_to(root).as_posix() for path in files_below(root))
    else:
        found.sizes = sizes_below(root)
        present = sorted(found.sizes)
    _examine_identity(root, found)
    known = {layout.ROOT_METADATA, layout.PLAN_RECORD, PLAN_ASIDE, DROPPED, LOCK_FILE}
    if found.plan is not None:
        _examine_plan(root, found, found.plan, known)
    committed = committed_blocks(root)
    found.report.blocks_committed = len(committed)
    for block in committed:
        known.add(layout.commit_path(block))
        _examine_block(root, found, block, known)
    found.kept = _examine_kept(root, found.report)
    if (
        full
        and not found.blocks
        and found.root is None
        and found.plan is not None
        and not found.tables
        and not found.metadata
    ):
        found.kept += _examine_index(root, found.report)
    _examine_labels(root, found)
    others = [path for path in present if path not in known and not _of_result(root, path, found.sizes)]
    others = [path for path in others if not path.startswith(f"{CLAIMS}/")]  # the next writer alone removes them
    if found.plan is None:  # then no record lists what planning wrote
        metadata = {} if found.spec is None else metadata_files(found.spec, 1)
        others = [path for path in others if not _TABLE.fullmatch(path) and path not in metadata]
    _sort_others(root, found, others, set(committed), alone=alone)
    return found


def _examine_identity(root: LakePath, found: Findings) -> None:
    """Read the root's metadata and the plan record, and let each check the other."""
    path, refusal = layout.ROOT_METADATA, None
    try:
        found.spec = read_spec(root)
    except DamageError as error:
        found.root = str(error)
    except InputError as error:
        found.root, refusal = str(error), error
    try:
        found.plan = read_plan_record(root)
    except DamageError as error:
        found.record = str(error)
    except InputError as error:
        raise refusal or error from None
    promised = found.plan.files.get(path) if found.plan is not None else None
    problem = _problem(root, promised, full=True, sizes=found.sizes) if promised is not None else None
    if refusal is not None and (promised is None or problem is None):
        raise refusal  # no lake, or a newer format: not damage, for nothing says that the file was ever different
    if found.plan is None and found.record is None:
        if not committed_blocks(root) and found.root is None and not (root / PLAN_ASIDE).exists():
            raise InputError(f"{root}: its plan is not finished; run the command that began it again")
        found.record = f"{layout.PLAN_RECORD}: missing; run the same `neuronlake extract` command to plan again"
    if found.root is None and problem is not None:
        found.root = problem
    if found.spec is not None and found.plan is not None and found.plan.fingerprint != found.spec.fingerprint:
        reason = f"{layout.PLAN_RECORD} and {path} belong to different lakes"
        found.root = f"{found.root}; {reason}" if found.root else reason
    _leave_dropped(root, found)
    if found.plan is not None and found.root is not None and found.plan.spec is not None:
        LakeSpec.from_dict(found.plan.spec, root / layout.PLAN_RECORD)  # refuses the record of a newer format
    found.report.damage += [problem for problem in (found.root, found.record) if problem is not None]


def _leave_dropped(root: LakePath, found: Findings) -> None:
    """Find out which sites were dropped: nothing of them is expected."""
    if found.plan is not None:
        found.dropped = found.plan.dropped
        if found.dropped and read_dropped(root, found.plan.fingerprint) != found.dropped:
            found.copy = f"{DROPPED}: missing, damaged or not what {layout.PLAN_RECORD} says"
            found.report.damage.append(found.copy)
    elif found.spec is not None:
        found.dropped = read_dropped(root, found.spec.fingerprint)
    if found.spec is not None and found.root is None:
        found.spec = found.spec.without(found.dropped)


def _examine_plan(root: LakePath, found: Findings, plan: PlanRecord, known: set[str]) -> None:
    found.report.blocks_planned = plan.blocks
    tables = {layout.table_path(table, block) for block in range(plan.blocks) for table in TABLES}
    expected = tables | {layout.ROOT_METADATA}
    if found.spec is not None and found.root is None:
        expected |= set(metadata_files(found.spec, plan.blocks))
    if missing := sorted(expected - set(plan.files)):
        found.record = f"{layout.PLAN_RECORD}: does not list {missing[0]}"
        found.report.damage.append(found.record)
    known.update(plan.files)
    records = [record for path, record in plan.files.items() if path != layout.ROOT_METADATA]  # that is checked already
    # metadata is small: its bytes are checked always, since a flipped bit in it spoils a whole layer
    for record, problem in _check(root, records, found, full=lambda path: path.endswith("zarr.json")):
        if problem:
            (found.tables if record.path in tables else found.metadata).append(record.path)


def _examine_block(root: LakePath, found: Findings, block: int, known: set[str]) -> None:
    path = layout.commit_path(block)

    def wrong(problem: str) -> None:
        found.report.damage.append(f"{path}: {problem}")
        found.blocks.setdefault(block, problem)

    try:
        commit = read_commit(root, block).without(found.dropped)
    except DamageError as error:
        wrong(str(error).removeprefix(f"{root / path} "))
        if found.spec is not None and found.root is None:
            known.update(block_files(found.spec, block))  # not leftovers either
        return
    lake = commit.provenance.get("lake")
    if found.plan is not None and found.root is None:
        if lake is not None and lake != found.plan.fingerprint:
            wrong("is the record of a block of another lake")
            found.foreign.append(block)
        if block >= found.plan.blocks:
            wrong(f"the plan has only {found.plan.blocks} blocks")
            found.foreign.append(block)
    if found.spec is not None and found.root is None:
        expected, listed = block_files(found.spec, block), sorted(record.path for record in commit.files)
        if listed != sorted(expected):
            odd = sorted(set(listed) ^ set(expected))
            wrong(f"lists {len(listed)} files, not {len(expected)}" + (f" (first difference {odd[0]})" if odd else ""))
    known.update(record.path for record in commit.files)
    for _, problem in _check(root, commit.files, found, full=lambda path: False):
        if problem:
            found.blocks.setdefault(block, problem)
    if found.report.full and found.plan is not None and (problem := _other_rows(root, found.plan, commit)):
        wrong(problem)


def _of_result(root: LakePath, path: str, sizes: Mapping[str, int]) -> bool:
    """Whether a file belongs to a result that is kept, or was when the files were listed and has been replaced since."""
    kept, *below = path.split("/")
    if isinstance(root, ObjectPath):  # there a result is what has a record
        return kept in (*KEPT, LABELS) and len(below) > 1 and f"{kept}/{below[0]}/{RECORD}" in sizes
    if kept == LABELS:
        return len(below) > 1 and not below[0].startswith(".") and is_label_set(root / kept / below[0])
    return kept in KEPT and len(below) > 1 and not below[0].startswith(".") and not (root / kept / below[0]).is_file()


def _examine_kept(root: LakePath, report: VerifyReport) -> list[tuple[str, str]]:
    """Check the results kept in the lake against their records; return folder and name of the damaged ones."""
    damaged = []
    for kept, name in [(folder, name) for folder in KEPT for name in kept_results(root, kept=folder)]:
        try:
            record = kept_record(root, name, kept=kept, full=report.full)
            for path in (root / kept / name).glob(f"*/{RECORD}"):  # of what was asked for later
                kept_record(root, f"{name}/{path.parent.name}", kept=kept, full=report.full)
        except DamageError as error:
            if not (root / kept / name).exists():  # replaced meanwhile
                continue
            report.damage.append(f"{kept}/{name}: {str(error).removeprefix(f'{root}/')}; {MADE_BY[kept]} again")
            damaged.append((kept, name))
            continue
        report.files_checked += len(record["files"])
        report.bytes_checked += sum(entry["bytes"] for entry in record["files"]) if report.full else 0
    return damaged


def _examine_labels(root: LakePath, found: Findings) -> None:
    """Check the label sets that were added later. Whether they are of this plan is known only if the plan itself is."""
    report = found.report
    plan = found.plan if found.root is None and found.record is None else None
    for name in label_set_names(root):
        try:
            record = examine_label_set(root, name, plan, full=report.full)
        except DamageError as error:
            if not (root / LABELS / name).exists():  # removed meanwhile
                continue
            report.damage.append(f"{LABELS}/{name}: {str(error).removeprefix(f'{root}/')}; its source can be added again")
            found.labels.append(name)
            continue
        report.files_checked += len(record["files"])
        report.bytes_checked += sum(entry["bytes"] for entry in record["files"]) if report.full else 0


def _examine_index(root: LakePath, report: VerifyReport) -> list[tuple[str, str]]:
    """Compare the index with the activations, which are whole; return folder and name of what does not fit them."""
    from neuronlake.store.index_check import index_problems
    from neuronlake.store.lake import open_lake

    wrong = []
    for name, problem in index_problems(open_lake(root)):
        report.damage.append(f"{INDEX}/{name}: {problem}; {MADE_BY[INDEX]} again")
        wrong.append((INDEX, name))
    return wrong


def block_files(spec: LakeSpec, block: int) -> list[str]:
    """List the files of a block, its commit record apart."""
    files = [layout.shard_path(site, layer, block) for site in spec.sites for layer in spec.layers]
    if get_encoding(spec.encoding).quantised:
        files += [layout.scales_path(site, block) for site in spec.sites]
    return files


def _other_rows(root: LakePath, plan: PlanRecord, commit: Commit) -> str | None:
    record = plan.files.get(layout.table_path("plan", commit.block))
    if record is None:
        return None
    with contextlib.suppress(DamageError):  # a damaged table is reported as itself
        flags = from_parquet(read_checked(root, record), ["flags"]).column("flags").to_numpy()
        if commit.rows != (used := int(np.count_nonzero(flags != PADDING))):
            return f"has {commit.rows} rows, the plan {used}"
    return None


def _sort_others(root: LakePath, found: Findings, paths: Iterable[str], committed: set[int], *, alone: bool) -> None:
    """Divide what no record mentions into leftovers, what a running writer is at, and unknown files."""
    report = found.report
    stale = {path.relative_to(root).as_posix() for path in stale_temporaries(root)} if isinstance(root, Path) else set()
    for path in paths:
        uncommitted = _is_uncommitted(path, found.spec, committed) or of_sites(path, found.dropped)
        interrupted = isinstance(root, ObjectPath) and _UPLOADED.fullmatch(path) is not None
        ended = uncommitted or interrupted or any(path == name or path.startswith(f"{name}/") for name in stale)
        if not uncommitted and not interrupted and not _TEMPORARY.search(path):
            report.unknown_files.append(path)
        elif path.startswith(tuple(f"{kept}/." for kept in KEPT)) and not ended:
            continue  # a result that a reader is about to keep; that needs no lock
        elif report.writer is None:
            (report.leftovers if ended or alone else report.unknown_files).append(path)


def _is_uncommitted(path: str, spec: LakeSpec | None, committed: set[int]) -> bool:
    """Whether a file is one that extraction writes for a block, of a block without a commit record."""
    match = _SHARD.fullmatch(path)
    if match is None or spec is None:
        return False
    block = int(match[1] or match[2])
    return block not in committed and path in block_files(spec, block)


def _check(
    root: LakePath, records: Iterable[FileRecord], found: Findings, *, full: Callable[[str], bool]
) -> Iterator[tuple[FileRecord, str | None]]:
    """Yield every record with what is wrong with its file; `full` tells the paths that are always read."""
    report = found.report

    def look(record: FileRecord) -> str | None:
        return _problem(root, record, full=report.full or full(record.path), sizes=found.sizes)

    records = list(records)
    for record, problem in zip(records, (map if isinstance(root, Path) else map_waiting)(look, records), strict=True):
        if problem is not None:
            report.damage.append(problem)
        report.files_checked += 1
        report.bytes_checked += record.bytes if report.full or full(record.path) else 0
        yield record, problem


def _problem(root: LakePath, record: FileRecord, *, full: bool, sizes: Mapping[str, int]) -> str | None:
    path = root / record.path
    try:
        if full:
            size, checksum = checksum_found(path, (record.bytes, record.xxh3))
        else:
            size, checksum = sizes[record.path] if record.path in sizes else path.stat().st_size, record.xxh3
    except FileNotFoundError:
        return f"{record.path}: missing"
    except StorageError:  # that nobody can read it now does not mean that it is damaged
        raise
    except OSError as error:
        return f"{record.path}: cannot be read ({error.strerror})"
    if size != record.bytes:
        return f"{record.path}: {size} bytes, expected {record.bytes}"
    if checksum != record.xxh3:
        return f"{record.path}: xxh3 {checksum}, expected {record.xxh3}"
    return None
