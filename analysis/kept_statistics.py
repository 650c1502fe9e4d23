"""Statistics kept in the lake they are of, so that a question asked again reads no activation.

A result is keyed by everything that decides it but the blocks: site, label, filter, sub-word policy, shift, folds and the
version of this code. It lists the blocks that it covers with the checksums of their commit records; blocks committed later
are read alone and added (Zarr arrays in ``pooled`` and ``by_fold``, see `column.Partials`), and a result of which a covered
block is gone or was replaced is not used.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.column import Partials
from neuronlake.analysis.derived import ON_REQUEST, REQUESTED, requested_statistics
from neuronlake.analysis.execute import Parts, Progress, run_all
from neuronlake.analysis.gathered import Gathered, moment_fields, some_moments
from neuronlake.analysis.histogram import Binning
from neuronlake.analysis.labels import MIN_TOKENS, LabelRequest, labels_key
from neuronlake.analysis.source import LakeSource
from neuronlake.store.arrays import create_array, open_array
from neuronlake.store.commits import commit_checksums
from neuronlake.store.errors import DamageError, StorageError
from neuronlake.store.kept import INDEX, STATISTICS, discard, kept_record, kept_results, publish_part, staging
from neuronlake.store.lake import Lake
from neuronlake.store.objects import LakePath

VERSION = 1
"""Of what is computed and how it is kept: results of another version are not used."""


class KeptDamageError(DamageError):
    """A kept result is not what was written; its lake may well be intact."""


@dataclass(frozen=True, kw_only=True)
class StatisticsKey:
    """What a result is of."""

    lake: str
    """Fingerprint."""
    site: str
    labels: Mapping[str, Any]
    """by, where, subword, shift; where it uses columns that were added later, ``added``: their label sets' identities."""
    folds: int
    basic: bool

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**self.__dict__, "labels": dict(self.labels), "version": VERSION}

    @classmethod
    def of(cls, source: LakeSource, request: LabelRequest, *, folds: int, basic: bool) -> "StatisticsKey":
        """Return the key of a question to a lake as it is now."""
        labels = labels_key(source, request)
        return cls(lake=source.fingerprint, site=source.site, labels=labels, folds=folds, basic=basic)

    @property
    def name(self) -> str:
        """Folder name: readable, then a hash."""
        text = json.dumps(self.as_dict(), sort_keys=True, ensure_ascii=False)
        readable = re.sub(r"[^A-Za-z0-9]+", "-", str(self.labels["by"])).strip("-")[:40]
        return f"{readable or 'label'}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, kw_only=True)
class KeptStatistics:
    """One kept result."""

    root: LakePath
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
    def folder(self) -> LakePath:
        """Where it lies."""
        return self.root / STATISTICS / self.name

    @property
    def counted(self) -> bool:
        """Whether it has histograms."""
        return bool(self.record["counted"])

    def read(self, name: str, selection: Any = ...) -> NDArray[Any]:
        """Read from one of its Zarr arrays.

        Raises
        ------
        KeptDamageError
            When it is not what was written.
        """
        try:
            return np.asarray(open_array(self.folder / name)[selection])
        except StorageError:
            raise
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:  # of the codecs and of the metadata
            raise KeptDamageError(f"{self.folder / name}: {error}") from None

    def check_requested(self, group: str) -> None:
        """Compare what was asked for later with the record of its own that it has; the result's record lists the rest.

        Raises
        ------
        KeptDamageError
            When it is not what was written, or not there.
        """
        if not any(entry["path"].startswith(f"{group}/") for entry in self.record["files"]):
            try:
                kept_record(self.root, f"{self.name}/{group}")
            except DamageError as error:
                raise KeptDamageError(str(error)) from None

    def partials(self, position: int, neurons: slice) -> Partials:
        """Return what later blocks are added to, of some neurons of the layer at that position."""
        here = (slice(None), position, neurons)
        per_tag, per_fold = moment_fields(self.record["key"]["basic"])
        return Partials(
            pooled=some_moments(self.count.sum(axis=1), {name: self.read(f"pooled/{name}", here) for name in per_tag}),
            by_fold=some_moments(self.count, {name: self.read(f"by_fold/{name}", here) for name in per_fold}),
            exponent=self.read("histogram/exponent", here[1:]) if self.counted else None,
            histogram=self.read("histogram/counts", here) if self.counted else None,
        )

    def gathered(self, layers: tuple[int, ...], stored: Sequence[int], *, by_fold: bool) -> Gathered:
        """Load the statistics of some of the lake's layers, with or without those per fold."""
        per_tag, per_fold = moment_fields(self.record["key"]["basic"])

        def load(folder: str, names: Iterable[str]) -> dict[str, NDArray[Any]]:
            return {name: self.layers(f"{folder}/{name}", layers, stored) for name in names}

        return Gathered(
            tags=self.tags,
            layers=layers,
            count=self.count,
            pooled=some_moments(self.count.sum(axis=1), load("pooled", per_tag)),
            by_fold=some_moments(self.count, load("by_fold", per_fold)) if by_fold else None,
            exponent=None,
            derived=load("derived", self.record["derived"]),
            attributes={**self.record["attributes"], "kept": self.name},
        )

    def layers(self, name: str, layers: Sequence[int], stored: Sequence[int]) -> NDArray[Any]:
        """Some of the lake's layers of an array ([tags,] layers, neurons)."""
        first, last = stored.index(layers[0]), stored.index(layers[-1]) + 1
        values = self.read(name, (..., slice(first, last), slice(None)))
        rows = [stored.index(layer) - first for layer in layers]
        return values if len(rows) == last - first else values[..., rows, :]


def write_gathered(folder: Path, found: Gathered, *, basic: bool) -> None:
    """Write what was found to a staged result's folder, one chunk per layer; the counts of histograms are there already."""
    per_tag, per_fold = moment_fields(basic)
    arrays: dict[str, NDArray[Any]] = {f"pooled/{name}": getattr(found.pooled, name) for name in per_tag}
    arrays |= {f"by_fold/{name}": getattr(found.by_fold, name) for name in per_fold}
    arrays |= {f"derived/{name}": values for name, values in found.derived.items() if name not in REQUESTED}
    arrays |= {f"{REQUESTED[name]}/{name}": values for name, values in found.derived.items() if name in REQUESTED}
    if found.exponent is not None:
        arrays["histogram/exponent"] = found.exponent
    for name, values in arrays.items():
        _write_array(folder, name, values)


def _write_array(folder: Path, name: str, values: NDArray[Any]) -> None:
    create_array(folder, name, values.shape, values.dtype, (*values.shape[:-2], 1, values.shape[-1]))[...] = values


def with_requested(
    kept: KeptStatistics,
    found: Gathered,
    groups: Sequence[str],
    source: LakeSource,
    *,
    scheduler: Any = None,
    progress: Progress | None = None,
) -> Gathered:
    """Add groups of `derived.ON_REQUEST` to what was loaded: kept already, or from kept histograms and kept now."""
    tags = np.flatnonzero(kept.count.sum(axis=1) >= MIN_TOKENS)
    if len(tags) < 2 or not kept.counted:
        return found
    stored = source.layers
    derived = dict(found.derived)
    missing = []
    for group in groups:
        try:
            kept.check_requested(group)
            derived |= {name: kept.layers(f"{group}/{name}", found.layers, stored) for name in ON_REQUEST[group]}
        except KeptDamageError:  # or never asked for
            missing.append(group)
    if missing:
        places = [{"position": stored.index(layer)} for layer in found.layers]
        of_layers = Parts.of_columns(source, [(layer, 0) for layer in found.layers], source.neurons)
        work = partial(_requested_of_layer, kept, tags, missing)
        parts = run_all(work, places, parts=of_layers, scheduler=scheduler, progress=progress)
        new = {name: np.stack([part[name] for part in parts], axis=1) for name in parts[0]}
        derived |= new
        if len(found.layers) == len(stored):
            for group in missing:
                _keep_requested(kept, group, new)
    return replace(found, derived=derived)


def _requested_of_layer(
    kept: KeptStatistics, tags: NDArray[np.int64], groups: Sequence[str], *, position: int
) -> dict[str, NDArray[Any]]:
    counts, minimum, maximum = (
        kept.read(name, (slice(None), position))[tags] for name in ("histogram/counts", "pooled/minimum", "pooled/maximum")
    )
    binning = Binning.of_exponents(kept.read("histogram/exponent", position))
    return requested_statistics(np.ascontiguousarray(counts), binning, minimum, maximum, groups)


def _keep_requested(kept: KeptStatistics, group: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Add a folder to a kept result, whole or not at all. A lake that cannot be written to stays as it is."""
    target = kept.folder / group
    try:
        with staging(kept.root, f"{kept.name}-{group}") as folder:
            for name in ON_REQUEST[group]:
                _write_array(folder, name, arrays[name])
            publish_part(folder, target, {"of": kept.name})
    except OSError:
        return


def result_record(key: StatisticsKey, blocks: Mapping[int, str], found: Gathered) -> dict[str, Any]:
    """Return what `publish` seals: what the result is of, and what is not an array."""
    return {
        "key": key.as_dict(),
        "blocks": {str(block): checksum for block, checksum in blocks.items()},
        "tags": list(found.tags),
        "count": found.count.tolist(),
        "counted": found.exponent is not None,
        "derived": sorted(set(found.derived) - set(REQUESTED)),
        "attributes": found.attributes,
    }


def block_checksums(lake: Lake) -> dict[int, str]:
    """Checksum of every committed block's record, which holds those of its files."""
    return commit_checksums(lake.path, lake.blocks)


def kept_labels(lake: Lake) -> list[str]:
    """Labels of which statistics are kept as they are asked for by default: of the last sub-word of every word; sorted."""
    found = set()
    for name in kept_results(lake.path):
        with suppress(DamageError):
            key = kept_record(lake.path, name)["key"]
            plain = key["labels"].get("where") is None and key["labels"]["subword"] == "last" and not key["labels"]["shift"]
            if key["lake"] == lake.fingerprint and key["site"] == lake.site and plain and not key["basic"]:
                found.add(str(key["labels"]["by"]))
    return sorted(found)


def find_kept(lake: Lake, key: StatisticsKey, checksums: Mapping[int, str], *, tidy: bool = True) -> KeptStatistics | None:
    """Return the kept result that covers most blocks, all of them unchanged; None if there is none.

    Of that key, or of the same question with more than basic statistics. With `tidy`, damaged ones are removed: whoever
    asks makes them again.
    """
    keys = (key, replace(key, basic=False)) if key.basic else (key,)
    candidates = (_most(lake, each, checksums, tidy) for each in keys)
    return max((found for found in candidates if found is not None), key=lambda found: len(found.blocks), default=None)


def _most(lake: Lake, key: StatisticsKey, checksums: Mapping[int, str], tidy: bool) -> KeptStatistics | None:
    best: KeptStatistics | None = None
    for name in kept_results(lake.path):
        if not name.startswith(f"{key.name}-"):
            continue
        try:
            record = kept_record(lake.path, name)
        except DamageError:
            if tidy:
                with suppress(StorageError):  # read-only
                    discard(lake.path, name)
            continue
        covered = {int(block): checksum for block, checksum in record["blocks"].items()}
        if record["key"] != key.as_dict() or any(checksums.get(block) != known for block, known in covered.items()):
            continue
        if best is None or len(covered) > len(best.blocks):
            best = KeptStatistics(root=lake.path.absolute(), name=name, record=record)
    return best


def result_name(key: StatisticsKey, blocks: Mapping[int, str]) -> str:
    """Folder name of a result that covers these blocks."""
    text = json.dumps(sorted(blocks.items()))
    return f"{key.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def discard_of_labels(root: LakePath, identity: str) -> list[str]:
    """Remove the results that rest on a label set, and return their names: without it they are never used again."""
    found = []
    for kept, name in [(folder, name) for folder in (STATISTICS, INDEX) for name in kept_results(root, kept=folder)]:
        with suppress(DamageError):
            record = kept_record(root, name, kept=kept)
            labels = record["key"]["labels"] if kept == STATISTICS else record.get("labels", {})  # lists of top tokens
            if identity in labels.get("added", {}).values():
                discard(root, name, kept=kept)
                found.append(name)
    return found


def discard_others(lake: Lake, key: StatisticsKey, name: str) -> None:
    """Remove the results that the one of that name replaces."""
    for other in kept_results(lake.path):
        if other.startswith(f"{key.name}-") and other != name:
            discard(lake.path, other)
