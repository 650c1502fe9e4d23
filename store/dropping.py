"""Sites and kept results dropped from a lake, to free their disk.

The plan record is replaced by one that names the site as dropped: from then on, and at once, it does not exist for whoever
opens the lake. Its files go afterwards. Commit records stay as they are, since everything that was computed from a block is
tied to them; what they list of a dropped site counts for nothing. Interrupted at any point, the same command finishes.
"""

import dataclasses
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuronlake.store.commits import of_sites
from neuronlake.store.create import remove_temporary
from neuronlake.store.errors import DamageError, InputError
from neuronlake.store.files import remove_folder, sizes_below, stale_temporaries, storage_error, sync_folder
from neuronlake.store.kept import COVARIANCES, INDEX, KEPT, STATISTICS, discard, kept_record, kept_results
from neuronlake.store.lake import Lake, open_lake
from neuronlake.store.lock import writing
from neuronlake.store.objects import LakePath
from neuronlake.store.plan_record import publish_plan_record, write_dropped


@dataclass(kw_only=True)
class DropReport:
    """What was dropped."""

    lake: str
    sites: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    """Kept results, ``folder/name``."""
    bytes: int = 0
    """Of the files that were removed."""

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return dict(self.__dict__)


def check_drop(lake: Lake, sites: list[str]) -> list[str]:
    """Return those of the sites that are still stored.

    Raises
    ------
    InputError
        When the lake never had one of them, or none would be left.
    """
    for site in sites:
        if site not in (*lake.sites, *lake.plan.dropped):
            raise InputError(f"no site {site!r} in {lake.path}: it has {', '.join(lake.sites)}")
    stored = [site for site in lake.sites if site in sites]
    if len(stored) == len(lake.sites):
        raise InputError(
            f"{lake.path} has no other site than {', '.join(lake.sites)}: without one nothing is left; remove the folder "
            "instead"
        )
    return stored


def bytes_of_site(lake: Lake, site: str) -> int:
    """Bytes of a site's activations and scales in the committed blocks."""
    return sum(file.bytes for commit in lake.commits for file in commit.files if of_sites(file.path, [site]))


def drop_sites(root: LakePath, sites: list[str]) -> DropReport:
    """Drop sites from a lake, or finish that.

    Whoever has the lake open goes on reading its other sites; reading a dropped one is an error, never a wrong value.

    Raises
    ------
    InputError
        When there is no such site, none would be left, or somebody is writing to the lake. Nothing was changed.
    StorageError
        When the file system or the store refuses: run again, it goes on.
    """
    check_drop(open_lake(root), sites)  # taking the lock makes the folder
    with writing(root):
        lake = open_lake(root)
        report = DropReport(lake=str(root), sites=check_drop(lake, sites))
        if report.sites:
            dropped = sorted({*lake.plan.dropped, *report.sites})
            files = {path: file for path, file in lake.plan.files.items() if not of_sites(path, dropped)}
            plan = dataclasses.replace(lake.plan, dropped=tuple(dropped), files=files)
            write_dropped(root, plan.fingerprint, dropped)
            publish_plan_record(root, plan, instead=True)
        _remove_temporaries(root)
        for site in sites:
            _discard_results(root, site, report)
            for folder in ("activations", "scales"):
                report.bytes += _remove_folder(root / folder / site)
    return report


def drop_results(root: LakePath, folders: list[str]) -> DropReport:
    """Drop all kept results of some kinds (`KEPT`): they can be made again.

    Raises
    ------
    InputError
        When there is no such kind, no lake, or somebody is writing to it.
    StorageError
        When the file system or the store refuses: run again, it goes on.
    """
    for folder in folders:
        if folder not in KEPT:
            raise InputError(f"no kind of results {folder!r}: known are {', '.join(KEPT)}")
    open_lake(root)
    with writing(root):
        report = DropReport(lake=str(root))
        _remove_temporaries(root)
        for folder in folders:
            for name in kept_results(root, kept=folder):
                _discard(root, folder, name, report)
    return report


def _remove_temporaries(root: LakePath) -> None:
    """Remove what a killed run had put aside."""
    for temporary in stale_temporaries(root):
        remove_temporary(temporary)


def _discard_results(root: LakePath, site: str, report: DropReport) -> None:
    """Discard what was computed from a site; damaged results are for `verify --repair`."""
    for folder in (INDEX, STATISTICS, COVARIANCES):
        for name in kept_results(root, kept=folder):
            try:
                record = kept_record(root, name, kept=folder)
            except DamageError:
                continue
            if record.get("site", record.get("key", {}).get("site")) == site:
                _discard(root, folder, name, report)


def _discard(root: LakePath, folder: str, name: str, report: DropReport) -> None:
    place = root / folder / name
    size = sum(sizes_below(place).values())
    discard(root, name, kept=folder, sync=isinstance(root, Path))
    report.results.append(f"{folder}/{name}")
    report.bytes += size


def _remove_folder(folder: LakePath) -> int:
    """Remove what nobody refers to any more, and return its bytes."""
    size = sum(sizes_below(folder).values())
    if not isinstance(folder, Path):
        remove_folder(folder)
    elif folder.exists():
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise storage_error(error, folder, "remove") from error
        sync_folder(folder.parent)
    return size
