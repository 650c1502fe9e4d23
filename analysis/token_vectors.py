"""A search index of one layer's tokens by their activation vectors, made when first asked for and kept in the lake.

A token's vector holds the layer's activations, each standardised over the ordinary tokens; alike means a large cosine. The
index is faiss' inverted file over the first principal components, in float16: it proposes, the activations decide.
"""

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.execute import Parts, run_in_order, scan_all
from neuronlake.analysis.sketch import ordinary_rows
from neuronlake.store.commits import commit_checksums
from neuronlake.store.index_results import OfBlocks, fitting, index_staging, publish_instead
from neuronlake.store.kept import INDEX, kept_record
from neuronlake.store.lake import Lake
from neuronlake.store.objects import ObjectPath
from neuronlake.store.scan import Tile

COMPONENTS = 256
_SAMPLE = 32_768
_CELL = 256  # tokens in a cell of the inverted file, about
_MOST_CELLS = 4096
_PROBED = 64
_PREFIX = "vectors-"
_VERSION = 1
_ARRAYS = ("mean", "inverse", "components")
_Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Standard:
    """How activations of a layer are standardised."""

    mean: NDArray[np.float32]
    """(neurons,)."""
    inverse: NDArray[np.float32]
    """One over the standard deviation, 0 for constant neurons; (neurons,)."""

    def unit(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Standardise in place and divide by the length: float32 (tokens, neurons); zero where nothing varies."""
        values -= self.mean
        values *= self.inverse
        return unit_rows(values)


@dataclass(frozen=True, kw_only=True)
class VectorIndex(OfBlocks):
    """The kept index of a layer."""

    @cached_property
    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """``mean`` and ``inverse`` (neurons,), ``components`` (neurons, COMPONENTS)."""
        return {name: np.load(io.BytesIO((self.folder / f"{name}.npy").read_bytes())) for name in _ARRAYS}

    @property
    def standard(self) -> Standard:
        """How the vectors were standardised when the index was trained."""
        return Standard(mean=self.arrays["mean"], inverse=self.arrays["inverse"])

    @cached_property
    def faiss(self) -> Any:
        """The inverted file; its numbers are rows of the lake."""
        import faiss

        path = self.folder / "faiss.index"
        if isinstance(path, ObjectPath):
            found: Any = faiss.deserialize_index(np.frombuffer(path.read_bytes(), dtype=np.uint8))
        else:
            found = faiss.read_index(str(path))
        found.nprobe = _PROBED
        return found

    def project(self, unit: NDArray[np.float32]) -> NDArray[np.float32]:
        """Principal components of unit vectors, of length 1 again: float32 (tokens, COMPONENTS)."""
        return unit_rows(unit @ self.arrays["components"])

    def search(self, unit: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """Rows that may be most alike to each vector, best first: int64 (tokens, count), −1 where there are no more."""
        _, rows = self.faiss.search(self.project(unit), count)
        found: NDArray[np.int64] = rows
        return found


def vector_index(
    lake: Lake, layer: int, *, scheduler: Any = None, progress: _Progress = lambda done, total: None
) -> VectorIndex:
    """Return the index of a layer; what is missing is made from the activations and kept.

    Blocks that were committed since are added. When the tokens have more than doubled, it is trained again.

    Parameters
    ----------
    scheduler
        As for `compute_statistics`.
    progress
        Called with (blocks added, blocks to add).

    Raises
    ------
    DamageError
        When an activation chunk is damaged.
    StorageError
        When the lake cannot be written to.
    """
    import faiss

    checksums = commit_checksums(lake.path, lake.blocks)
    start = f"{_PREFIX}{lake.site}-{layer}-"
    base = next(iter(fitting(VectorIndex, lake.path, start, lake.site, checksums, version=_VERSION, full=True)), None)
    if base is not None and base.blocks == lake.blocks:
        return base
    rows = {block: ordinary_rows(lake, block) for block in lake.blocks}
    tokens = sum(map(len, rows.values()))
    if base is not None and tokens > 2 * int(base.record["trained"]):
        base = None
    if base is None:
        arrays, made = _train(lake, layer, rows, scheduler)
        covered: tuple[int, ...] = ()
        standard = Standard(mean=arrays["mean"], inverse=arrays["inverse"])
    else:
        arrays, made, covered, standard = base.arrays, base.faiss, base.blocks, base.standard
    missing = [block for block in lake.blocks if block not in covered]

    def vectors(block: int) -> NDArray[np.float32]:
        unit = standard.unit(lake.read_block(layer=layer, block=block)[rows[block]])
        return unit_rows(unit @ arrays["components"])

    places, parts = [{"block": block} for block in missing], Parts.of_blocks(lake, missing)
    computed = run_in_order(vectors, places, parts=parts, scheduler=scheduler, progress=progress)
    for block, found in zip(missing, computed, strict=True):
        made.add_with_ids(found, block * lake.block_rows + rows[block])
    record: dict[str, Any] = {
        "version": _VERSION,
        "site": lake.site,
        "layer": layer,
        "components": int(arrays["components"].shape[1]),
        "trained": tokens if base is None else base.record["trained"],
        "blocks": {str(block): checksums[block] for block in lake.blocks},
        "faiss": faiss.__version__,
    }
    name = f"{start}{hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:8]}"
    with index_staging(lake.path, name) as folder:
        for array, values in arrays.items():
            np.save(folder / f"{array}.npy", values)
        (folder / "faiss.index").write_bytes(faiss.serialize_index(made).tobytes())
        publish_instead(lake.path, folder, name, record, start)
    return VectorIndex(root=lake.path, name=name, record=kept_record(lake.path, name, kept=INDEX))


def standard_of(lake: Lake, layer: int, *, scheduler: Any = None) -> Standard:
    """Mean and standard deviation of a layer's neurons over the ordinary tokens, by one scan of the layer."""
    ordinary = {block: ordinary_rows(lake, block) for block in lake.blocks}

    def moments(tile: Tile) -> tuple[int, int, NDArray[np.float64], NDArray[np.float64]]:
        values = tile.values[ordinary[tile.block]]
        mean = values.mean(axis=0, dtype=np.float64)
        return tile.first_neuron, len(values), mean, np.square(values - mean).sum(axis=0)

    count = np.zeros(lake.neurons)
    mean, square = np.zeros((2, lake.neurons))
    blocks = [block for block in lake.blocks if len(ordinary[block])]
    for first, n, some, squares in scan_all(lake, moments, layers=[layer], blocks=blocks, scheduler=scheduler):
        here = slice(first, first + len(some))
        delta, whole = some - mean[here], count[here] + n  # Chan, Golub & LeVeque 1979
        square[here] += squares + delta * delta * (count[here] * n / whole)
        mean[here] += delta * (n / whole)
        count[here] = whole
    deviation = np.sqrt(square / np.maximum(count, 1))
    inverse = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    return Standard(mean=mean.astype(np.float32), inverse=inverse.astype(np.float32))


def unit_rows(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Divide every row by its length; zero stays zero."""
    length = np.linalg.norm(values, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.divide(values, length, out=np.zeros_like(values), where=length > 0)
    return unit


def _train(
    lake: Lake, layer: int, rows: Mapping[int, NDArray[np.int64]], scheduler: Any
) -> tuple[dict[str, NDArray[np.float32]], Any]:
    """Principal components and cells, from a sample of the tokens."""
    import faiss

    standard = standard_of(lake, layer, scheduler=scheduler)
    every = np.concatenate([block * lake.block_rows + inside for block, inside in rows.items()])
    sample = np.sort(np.random.default_rng(0).choice(every, min(_SAMPLE, len(every)), replace=False))
    unit = standard.unit(lake.read(layer=layer, rows=sample))
    _, vectors = np.linalg.eigh((unit.T @ unit).astype(np.float64))
    components = np.ascontiguousarray(vectors[:, ::-1][:, :COMPONENTS], dtype=np.float32)
    cells = int(np.clip(len(every) // _CELL, 1, _MOST_CELLS))
    width = components.shape[1]
    kind = faiss.ScalarQuantizer.QT_fp16  # eight bits do not tell first tokens of sentences apart: thousands, nearly equal
    flat = faiss.IndexFlatIP(width)
    made = faiss.IndexIVFScalarQuantizer(flat, width, cells, kind, faiss.METRIC_INNER_PRODUCT)
    made.cp.min_points_per_centroid = 1  # else it prints a warning
    made.train(unit_rows(unit @ components))
    return {"mean": standard.mean, "inverse": standard.inverse, "components": components}, made
