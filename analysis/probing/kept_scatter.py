"""Scatter matrices kept in the lake they are of: gathered once per layer, used for every label, split and subset of neurons.

What is kept is of all words' tokens (under a sub-word policy), whatever their labels. Those of training tokens are that less
the scatter of the others, which are fewer. Blocks committed later are read alone and added.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.kept_statistics import block_checksums
from neuronlake.analysis.labels import counted_rows
from neuronlake.analysis.probing.features import FeatureSet, whole_layers
from neuronlake.analysis.probing.matrix import LakeMatrix
from neuronlake.analysis.probing.scatter import Scatter, centre_of, gather_scatter
from neuronlake.analysis.source import LakeSource, versions
from neuronlake.store.arrays import create_array, open_array
from neuronlake.store.errors import DamageError, StorageError
from neuronlake.store.kept import COVARIANCES, discard, kept_record, kept_results, publish, staging
from neuronlake.store.lake import Lake

VERSION = 1
"""Of what is gathered and how it is kept: results of another version are not used."""
_ARRAYS = ("centre", "total", "gram")


def scatter_of_rows(
    source: LakeSource, features: FeatureSet, rows: NDArray[np.bool_], *, subword: str, keep: bool
) -> Scatter:
    """Scatter of some rows, from what the lake keeps of their layer where that takes less reading.

    Parameters
    ----------
    features
        Any; only whole single layers are kept.
    rows
        Which of the lake's committed rows; bool (rows,).
    subword
        Policy under which the rows were chosen.
    keep
        Use what is kept, and keep what is gathered.
    """
    matrix = LakeMatrix(source, features, rows)
    single = len(features.columns) == 1 and features.columns[0][1] is None
    if keep and single and isinstance(source, Lake):
        counted = counted_rows(source, subword)
        others = counted & ~rows
        if not np.any(rows & ~counted) and np.count_nonzero(others) <= np.count_nonzero(rows):
            everything = kept_scatter(source, features.layers[0], counted, subword=subword)
            rest = LakeMatrix(source, features, others)
            return everything.plus(gather_scatter(rest, everything.centre), -1)
    return gather_scatter(matrix, centre_of(matrix))


def kept_scatter(lake: Lake, layer: int, counted: NDArray[np.bool_], *, subword: str) -> Scatter:
    """Scatter of all counted rows of a layer, as it is kept; gathered and kept, as far as it is not.

    Where the lake cannot be written to it is gathered alone.
    """
    key = {"lake": lake.fingerprint, "site": lake.site, "layer": layer, "subword": subword, "version": VERSION}
    prefix = f"L{layer}-{subword}-{_hash(key)[:16]}"
    checksums = block_checksums(lake)
    known, covered = _find(lake, prefix, key, checksums)
    if known is not None and len(covered) == len(checksums):
        return known
    missing = counted.reshape(len(lake.blocks), -1) & ~np.isin(lake.blocks, sorted(covered))[:, None]
    matrix = LakeMatrix(lake, whole_layers(lake, [layer]), missing.ravel())
    gathered = gather_scatter(matrix, centre_of(matrix) if known is None else known.centre)
    found = gathered if known is None else known.plus(gathered)
    name = f"{prefix}-{_hash(checksums)[:8]}"
    with suppress(StorageError, OSError):  # read-only, or full
        _keep(lake, name, {"key": key, "blocks": {str(block): each for block, each in checksums.items()}}, found)
        for other in kept_results(lake.path, kept=COVARIANCES):
            if other.startswith(f"{prefix}-") and other != name:
                discard(lake.path, other, kept=COVARIANCES)
    return found


def _keep(lake: Lake, name: str, record: dict[str, Any], found: Scatter) -> None:
    with staging(lake.path, name, kept=COVARIANCES) as folder:
        size = len(found.centre)
        packed = found.gram[np.triu_indices(size)]
        for array, values in zip(_ARRAYS, (found.centre, found.total, packed), strict=True):
            create_array(folder, array, values.shape, values.dtype, values.shape)[...] = values
        publish(folder, name, {**record, "rows": found.rows, "versions": versions()})


def _find(
    lake: Lake, prefix: str, key: Mapping[str, Any], checksums: Mapping[int, str]
) -> tuple[Scatter | None, frozenset[int]]:
    """What is kept of that key, all of its blocks unchanged, and these blocks. What is damaged is removed."""
    for name in kept_results(lake.path, kept=COVARIANCES):
        if not name.startswith(f"{prefix}-"):
            continue
        try:
            record = kept_record(lake.path, name, kept=COVARIANCES)
            covered = {int(block): checksum for block, checksum in record["blocks"].items()}
            if record["key"] != key or any(checksums.get(block) != known for block, known in covered.items()):
                continue
            folder = lake.path / COVARIANCES / name
            centre, total, packed = (np.asarray(open_array(folder / each)[...]) for each in _ARRAYS)
        except StorageError:
            raise
        except (DamageError, OSError, ValueError, RuntimeError, KeyError, TypeError):  # of the codecs and the metadata
            with suppress(StorageError):
                discard(lake.path, name, kept=COVARIANCES)
            continue
        gram = np.empty((len(centre),) * 2)
        upper = np.triu_indices(len(centre))
        gram[upper] = packed
        gram.T[upper] = packed
        return Scatter(centre=centre, rows=int(record["rows"]), total=total, gram=gram), frozenset(covered)
    return None, frozenset()


def _hash(of: Mapping[Any, Any]) -> str:
    return hashlib.sha256(json.dumps(sorted(map(list, of.items())), ensure_ascii=False).encode()).hexdigest()
