"""What the kinds of results in ``index/`` share: each is of some blocks, as good as absent once one of them has changed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from neuronlake.store.commits import commit_checksum
from neuronlake.store.errors import DamageError
from neuronlake.store.files import storage_error
from neuronlake.store.kept import INDEX, discard, kept_record, kept_results, publish, staging
from neuronlake.store.objects import LakePath


@dataclass(frozen=True, kw_only=True)
class OfBlocks:
    """A result of some blocks of one site, opened."""

    root: LakePath
    name: str
    record: Mapping[str, Any] = field(repr=False)

    @property
    def folder(self) -> LakePath:
        """Where it lies."""
        return self.root / INDEX / self.name

    @property
    def blocks(self) -> tuple[int, ...]:
        """Covered blocks, ascending."""
        return tuple(sorted(int(block) for block in self.record["blocks"]))


_Kind = TypeVar("_Kind", bound=OfBlocks)


def fitting(
    kind: type[_Kind],
    root: LakePath,
    prefix: str,
    site: str,
    checksums: Mapping[int, str],
    *,
    version: int,
    full: bool = False,
) -> list[_Kind]:
    """Return the results of a kind that fit the committed blocks, those that cover most first.

    Parameters
    ----------
    prefix
        Their names begin with it.
    checksums
        Block → checksum of its commit record.
    full
        Compare every byte with its record, not sizes alone.
    """
    found = []
    for name in kept_results(root, kept=INDEX):
        if not name.startswith(prefix):
            continue
        try:
            record = kept_record(root, name, kept=INDEX, full=full)
        except DamageError:  # `verify` lists it
            continue
        same = record["version"] == version and record["site"] == site
        if same and all(checksums.get(int(block)) == checksum for block, checksum in record["blocks"].items()):
            found.append(kind(root=root, name=name, record=record))
    return sorted(found, key=lambda result: (-len(result.blocks), result.name))


@contextmanager
def index_staging(root: LakePath, name: str) -> Iterator[Path]:
    """As `kept.staging`, for the index; what the file system refuses becomes a StorageError."""
    with staging(root, name, kept=INDEX) as folder:
        try:
            yield folder
        except OSError as error:
            raise storage_error(error, folder, "write") from error


def publish_instead(
    root: LakePath, folder: Path, name: str, record: dict[str, Any], prefix: str, *, sync: bool = False
) -> None:
    """Publish a staged result and remove those whose names begin alike: it covers what they do.

    If another process has published one meanwhile that covers more, that one stays instead.

    Raises
    ------
    StorageError
        When the file system refuses.
    """
    discard(root, name, kept=INDEX)  # a damaged one would keep its place
    publish(folder, name, record, sync=sync)
    for other in kept_results(root, kept=INDEX):
        if other.startswith(prefix) and other != name:
            discard(root, name if _covers_more(root, other, record["blocks"]) else other, kept=INDEX)


def _covers_more(root: LakePath, name: str, blocks: Mapping[str, str]) -> bool:
    """Whether a result is whole, of blocks that are all unchanged, and of more than these."""
    try:
        others = kept_record(root, name, kept=INDEX)["blocks"]
        return others.items() > blocks.items() and all(
            commit_checksum(root, int(block)) == checksum for block, checksum in others.items()
        )
    except (DamageError, FileNotFoundError):  # a block's commit is gone
        return False
