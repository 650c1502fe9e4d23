"""Statistics kept in the lake they are of, so that a question asked again reads no activation.

A result is keyed by everything that decides it but the blocks: site, label, filter, sub-word policy, shift, folds and the
version of this code. It lists the blocks that it covers with the checksums of their commit records; blocks committed later
are read alone and added (Zarr arrays in ``pooled`` and ``by_fold``, see `column.Partials`), and a result of which a covered
block is gone or was replaced is not used.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import neuronlake.store.layout as layout
from neuronlake.analysis.arrays import create_array
from neuronlake.analysis.column import Partials
from neuronlake.analysis.gathered import FOLD_FIELDS, Gathered, fold_moments
from neuronlake.analysis.moments import FIELDS, Moments
from neuronlake.store.errors import DamageError
from neuronlake.store.files import file_checksum
from neuronlake.store.kept import KEPT, discard, kept_record, kept_results
from neuronlake.store.lake import Lake

VERSION = 1
"""Of what is computed and how it is kept: results of another version are not used."""


@dataclass(frozen=True, kw_only=True)
class StatisticsKey:
    """What a result is of."""

    lake: str
    """Fingerprint."""
    site: str
    labels: Mapping[str, Any]
    """by, where, subword, shift."""
    folds: int
    histogram: bool

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**self.__dict__, "labels": dict(self.labels), "version": VERSION}

    @property
    def name(self) -> str:
        """Folder name: readable, then a hash."""
        text = json.dumps(self.as_dict(), sort_keys=True, ensure_ascii=False)
        readable = re.sub(r"[^A-Za-z0-9]+", "-", str(self.labels["by"])).strip("-")[:40]
        return f"{readable or 'label'}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, kw_only=True)
class KeptStatistics:
    """One kept result."""

    root: Path
    name: str
    record: dict[str, Any] = field(repr=False)

    @property
    def tags(self) -> tuple[str, ...]:
        """All tags that occur in the covered blocks, sorted; dropped ones too."""
        return tuple(self.record["tags"])

    @property
    def count(self) -> NDArray[np.int64]:
        """Tokens, (tags, folds)."""
        return np.array(self.record["count"], dtype=np.int64).reshape(len(self.tags), -1)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Covered blocks."""
        return tuple(sorted(int(block) for block in self.record["blocks"]))

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.root / KEPT / self.name

    def array(self, name: str) -> Any:
        """Open one of its Zarr arrays."""
        import zarr

        return zarr.open_array(self.folder / name, mode="r")

    def moments(self, position: int | slice, neurons: slice = slice(None)) -> Moments:
        """Moments per tag, (tags, [layers,] neurons), of the layers at these positions."""
        fields = {name: self.array(f"pooled/{name}")[:, position, neurons] for name in FIELDS}
        return Moments(count=self.count.sum(axis=1).reshape(-1, *(1 for _ in fields["mean"].shape[1:])), **fields)

    def fold_moments(self, position: int | slice, neurons: slice = slice(None)) -> Moments:
        """Moments per group (tag, then fold), shaped alike."""
        return fold_moments(self.count, {name: self.array(f"by_fold/{name}")[:, position, neurons] for name in FOLD_FIELDS})

    def partials(self, position: int, neurons: slice) -> Partials:
        """Return what later blocks are added to, of some neurons of the layer at that position."""
        counted = self.record["counted"]
        return Partials(
            pooled=self.moments(position, neurons),
            by_fold=self.fold_moments(position, neurons),
            exponent=self.array("histogram/exponent")[position, neurons] if counted else None,
            histogram=self.array("histogram/counts")[:, position, neurons] if counted else None,
        )

    def gathered(self, layers: tuple[int, ...], stored: Sequence[int], *, by_fold: bool) -> Gathered:
        """Load the statistics of some of the lake's layers, with or without those per fold."""
        first, last = stored.index(layers[0]), stored.index(layers[-1]) + 1
        rows = [stored.index(layer) - first for layer in layers]

        def load(name: str) -> NDArray[Any]:
            values: NDArray[Any] = self.array(name)[..., first:last, :]
            return values if len(rows) == last - first else values[..., rows, :]

        return Gathered(
            tags=self.tags,
            layers=layers,
            count=self.count,
            pooled=Moments(count=self.count.sum(axis=1)[:, None, None], **{name: load(f"pooled/{name}") for name in FIELDS}),
            by_fold=fold_moments(self.count, {name: load(f"by_fold/{name}") for name in FOLD_FIELDS}) if by_fold else None,
            exponent=None,
            derived={name: load(f"derived/{name}") for name in self.record["derived"]},
            attributes={**self.record["attributes"], "kept": self.name},
        )


def write_gathered(folder: Path, found: Gathered) -> None:
    """Write what was found to a staged result's folder, one chunk per layer; the counts of histograms are there already."""
    arrays: dict[str, NDArray[Any]] = {f"pooled/{name}": getattr(found.pooled, name) for name in FIELDS}
    arrays |= {f"by_fold/{name}": getattr(found.by_fold, name) for name in FOLD_FIELDS}
    arrays |= {f"derived/{name}": values for name, values in found.derived.items()}
    if found.exponent is not None:
        arrays["histogram/exponent"] = found.exponent
    for name, values in arrays.items():
        chunks = (*values.shape[:-2], 1, values.shape[-1])
        create_array(folder, name, values.shape, values.dtype, chunks)[...] = values


def result_record(key: StatisticsKey, blocks: Mapping[int, str], found: Gathered) -> dict[str, Any]:
    """Return what `publish` seals: what the result is of, and what is not an array."""
    return {
        "key": key.as_dict(),
        "blocks": {str(block): checksum for block, checksum in blocks.items()},
        "tags": list(found.tags),
        "count": found.count.tolist(),
        "counted": found.exponent is not None,
        "derived": sorted(found.derived),
        "attributes": found.attributes,
    }


def block_checksums(lake: Lake) -> dict[int, str]:
    """Checksum of every committed block's record, which holds those of its files."""
    return {block: file_checksum(lake.path / layout.commit_path(block))[1] for block in lake.blocks}


def find_kept(lake: Lake, key: StatisticsKey, checksums: Mapping[int, str]) -> KeptStatistics | None:
    """Return the kept result of that key that covers most blocks, all of them unchanged; None if there is none."""
    best: KeptStatistics | None = None
    for name in kept_results(lake.path):
        if not name.startswith(f"{key.name}-"):
            continue
        try:
            record = kept_record(lake.path, name)
        except DamageError:  # it is computed again, and replaced
            continue
        covered = {int(block): checksum for block, checksum in record["blocks"].items()}
        if record["key"] != key.as_dict() or any(checksums.get(block) != known for block, known in covered.items()):
            continue
        if best is None or len(covered) > len(best.blocks):
            best = KeptStatistics(root=lake.path, name=name, record=record)
    return best


def result_name(key: StatisticsKey, blocks: Mapping[int, str]) -> str:
    """Folder name of a result that covers these blocks."""
    text = json.dumps(sorted(blocks.items()))
    return f"{key.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def discard_others(lake: Lake, key: StatisticsKey, name: str) -> None:
    """Remove the results that the one of that name replaces."""
    for other in kept_results(lake.path):
        if other.startswith(f"{key.name}-") and other != name:
            discard(lake.path, other)
