"""Is the lake whole? Compare what is on the disk with what the records promise."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuronlake.store.commits import read_commit
from neuronlake.store.errors import DamageError
from neuronlake.store.files import FileRecord, file_checksum
from neuronlake.store.lake import open_lake


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
    unknown_files: list[str] = field(default_factory=list)
    """Files that no record mentions: leftovers of an interrupted run, or somebody else's. They are never read."""

    @property
    def ok(self) -> bool:
        """Whether every committed value is safe."""
        return not self.damage

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"ok": self.ok, **self.__dict__}


def verify(path: str | Path, *, full: bool = False) -> VerifyReport:
    """Check a lake.

    Quick: every record against its own checksum, every file's presence and size. Full: also every byte's checksum.

    Raises
    ------
    InputError
        When there is no lake to check.
    """
    root = Path(path)
    report = VerifyReport(full=full)
    try:
        lake = open_lake(root)
    except DamageError as error:
        report.damage.append(str(error))
        return report
    report.blocks_planned, report.blocks_committed = lake.plan.blocks, len(lake.blocks)
    known = {"plan/plan.json"}
    _check_files(root, lake.plan.files.values(), report, known)
    for block in lake.blocks:
        known.add(f"commits/block-{block:06d}.json")
        try:
            commit = read_commit(root, block)
        except DamageError as error:
            report.damage.append(str(error))
            continue
        if block >= lake.plan.blocks:
            report.damage.append(f"commits/block-{block:06d}.json: the plan has only {lake.plan.blocks} blocks")
        expected = len(lake.sites) * len(lake.layers)
        if len(commit.files) != expected:
            report.damage.append(f"commits/block-{block:06d}.json: lists {len(commit.files)} shards, not {expected}")
        _check_files(root, commit.files, report, known)
    report.unknown_files = sorted(path for path in _files(root) if path not in known)
    return report


def _check_files(root: Path, records: Any, report: VerifyReport, known: set[str]) -> None:
    for record in records:
        known.add(record.path)
        if problem := _problem(root, record, full=report.full):
            report.damage.append(problem)
        report.files_checked += 1
        report.bytes_checked += record.bytes if report.full else 0


def _problem(root: Path, record: FileRecord, *, full: bool) -> str | None:
    path = root / record.path
    try:
        size, checksum = file_checksum(path) if full else (path.stat().st_size, record.crc32c)
    except FileNotFoundError:
        return f"{record.path}: missing"
    except OSError as error:
        return f"{record.path}: cannot be read ({error.strerror})"
    if size != record.bytes:
        return f"{record.path}: {size} bytes, expected {record.bytes}"
    if checksum != record.crc32c:
        return f"{record.path}: crc32c {checksum}, expected {record.crc32c}"
    return None


def _files(root: Path) -> Iterator[str]:
    for path in root.rglob("*"):
        if path.is_file():
            yield path.relative_to(root).as_posix()
