"""Attributions to neurons, kept in the lake whose words they are of: the extractor computes them, anyone reads them.

``attribution/NAME`` holds sums over predictions, per tag of the predicted word. A pass that is under way keeps what it has
as ``NAME-at-BATCHES``, so that an interrupted one goes on from there; the record says whether a result is finished.
"""

import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from neuronlake.store.errors import DamageError, StorageError
from neuronlake.store.files import FileRecord, read_checked, storage_error, sync_folder, write_plain
from neuronlake.store.kept import ATTRIBUTION, discard, kept_record, kept_results, publish, staging
from neuronlake.store.objects import LakePath
from neuronlake.store.sharded import ShardedArray, write_sharded
from neuronlake.store.tables import to_parquet

VERSION = 1
"""Of what is computed and how it is kept: results of another version are not used."""
TARGETS = "targets.parquet"
_READABLE = 40  # characters of a label in a folder's name


@dataclass(kw_only=True)
class Tally:
    """Sums over the predictions that were explained so far."""

    hits: NDArray[np.uint32]
    """Predictions of the tag for which the neuron is among the strongest, (tags, layers, neurons)."""
    total: NDArray[np.float64]
    """Sum of the attributions, likewise."""
    log_probability: NDArray[np.float32]
    """Of every target, NaN before it was explained, (targets,)."""
    error: NDArray[np.float64]
    """Σ|Σ_i attribution_i − effect| over predictions, (layers,); zeros where the method has no such identity."""
    effect: NDArray[np.float64]
    """Σ|f(a) − f(layer at zero)|, likewise."""
    batches: int = 0
    """Batches added so far."""

    @classmethod
    def empty(cls, *, tags: int, layers: int, neurons: int, targets: int) -> "Tally":
        """Of nothing."""
        return cls(
            hits=np.zeros((tags, layers, neurons), dtype=np.uint32),
            total=np.zeros((tags, layers, neurons)),
            log_probability=np.full(targets, np.nan, dtype=np.float32),
            error=np.zeros(layers),
            effect=np.zeros(layers),
        )


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """A kept result, opened; safe to share between threads.

    Reading raises DamageError where a file is not what was written.
    """

    root: LakePath
    name: str
    record: Mapping[str, Any] = field(repr=False)

    @property
    def key(self) -> dict[str, Any]:
        """Everything that decides it."""
        return dict(self.record["key"])

    @property
    def tags(self) -> tuple[str, ...]:
        """Tags of the predicted words."""
        return tuple(self.record["tags"])

    @property
    def finished(self) -> bool:
        """Whether every target was explained."""
        return bool(self.record["finished"])

    def tally(self) -> Tally:
        """Read everything."""
        hits, total = (self._array(name) for name in ("hits", "total"))
        return Tally(
            hits=hits,
            total=total,
            log_probability=self.targets().column("log_probability").to_numpy().astype(np.float32),
            error=np.array(self.record["error"], dtype=np.float64),
            effect=np.array(self.record["effect"], dtype=np.float64),
            batches=int(self.record["batches"]),
        )

    def targets(self) -> pa.Table:
        """Columns row (of the predicted token, int64), tag (text) and log_probability (float32; NaN: not yet)."""
        (entry,) = [entry for entry in self.record["files"] if entry["path"] == TARGETS]
        return pq.read_table(io.BytesIO(read_checked(self._folder, FileRecord(**entry))))

    def _array(self, name: str) -> NDArray[Any]:
        array = ShardedArray(self._folder / name)
        return np.stack([array.read_part(place) for place in range(array.shape[0])])

    @property
    def _folder(self) -> LakePath:
        return self.root / ATTRIBUTION / self.name


def attribution_name(key: Mapping[str, Any]) -> str:
    """Folder name of the result with that key: readable, then a hash."""
    text = json.dumps(key, sort_keys=True, ensure_ascii=False)
    readable = re.sub(r"[^A-Za-z0-9]+", "-", f"{key['by']}-{key['method']}").strip("-")[:_READABLE]
    return f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def find_attributions(root: LakePath) -> list[Attribution]:
    """Return the finished results of a lake, sorted by name; their arrays are read later.

    Raises
    ------
    DamageError
        When one is damaged.
    """
    found = []
    for name in kept_results(root, kept=ATTRIBUTION):
        try:
            record = kept_record(root, name, kept=ATTRIBUTION)
        except DamageError as error:
            raise DamageError(f"{error}; `neuronlake verify {root} --repair` removes it") from None
        if record["version"] == VERSION and record["finished"]:
            found.append(Attribution(root=root, name=name, record=record))
    return found


def find_attribution(root: LakePath, key: Mapping[str, Any]) -> Attribution | None:
    """Return the finished result with that key, if it is there and whole."""
    name = attribution_name(key)
    if name not in kept_results(root, kept=ATTRIBUTION):
        return None
    found = _whole(root, name)
    return found if found is not None and found.key == dict(key) else None


def find_begun(root: LakePath, key: Mapping[str, Any], provenance: Mapping[str, Any]) -> Attribution | None:
    """Return what an interrupted pass left that has the same key and was computed in the same way, if it is whole."""
    prefix = f"{attribution_name(key)}-at-"
    for name in sorted((each for each in kept_results(root, kept=ATTRIBUTION) if each.startswith(prefix)), reverse=True):
        found = _whole(root, name)
        if found is not None and found.key == dict(key) and found.record["provenance"] == dict(provenance):
            return found
    return None


def keep_attribution(
    root: LakePath, key: Mapping[str, Any], record: Mapping[str, Any], tally: Tally, targets: pa.Table, *, finished: bool
) -> Attribution:
    """Write a result and make it last; it replaces what the same pass kept before.

    Parameters
    ----------
    record
        tags, provenance and whatever else is to be known of it.
    targets
        Columns row and tag; the log-probabilities are added.

    Raises
    ------
    StorageError
        When the file system refuses; what was kept before stays.
    """
    base = attribution_name(key)
    name = base if finished else f"{base}-at-{tally.batches:06d}"
    older = [
        each
        for each in kept_results(root, kept=ATTRIBUTION)
        if each != name and (each == base or each.startswith(f"{base}-at-"))
    ]
    if finished and name in kept_results(root, kept=ATTRIBUTION):  # damaged, else it would have been used
        discard(root, name, kept=ATTRIBUTION, sync=True)
    table = targets.append_column("log_probability", pa.array(tally.log_probability, pa.float32()))
    with staging(root, name, kept=ATTRIBUTION) as folder:
        try:
            for array in ("hits", "total"):
                values = getattr(tally, array)
                write_sharded(folder, array, values.shape, values.dtype, values.__getitem__, sync=True)
            write_plain(folder / TARGETS, [to_parquet(table)], sync=True)
            sync_folder(folder)
        except StorageError:
            raise
        except OSError as error:
            raise storage_error(error, folder, "write") from error
        whole = {
            **record,
            "version": VERSION,
            "key": dict(key),
            "finished": finished,
            "batches": tally.batches,
            "error": tally.error.tolist(),
            "effect": tally.effect.tolist(),
        }
        publish(folder, name, whole, sync=True)
    for each in older:
        discard(root, each, kept=ATTRIBUTION)
    return Attribution(root=root, name=name, record=kept_record(root, name, kept=ATTRIBUTION))


def _whole(root: LakePath, name: str) -> Attribution | None:
    try:
        record = kept_record(root, name, kept=ATTRIBUTION, full=True)
    except DamageError:  # computed again
        return None
    return Attribution(root=root, name=name, record=record) if record["version"] == VERSION else None
