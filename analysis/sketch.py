"""A short vector for every neuron whose products estimate correlations: made by one scan, kept in the lake.

A count sketch (Charikar, Chen & Farach-Colton 2002, "Finding frequent items in data streams"; as a projection that keeps
products: Weinberger et al. 2009, "Feature hashing for large scale multitask learning"): every token is dealt to one of D
places with a random sign, and a neuron's sketch is the sum of its signed, centred values per place. The cosine of two
sketches estimates Pearson's correlation r of two neurons with a standard error of about (1 − r²)/√D. Entries are kept in
eight bits: rounding adds a hundredth of that error.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.execute import LOCAL_THREADS, Parts, run_each, run_in_order
from neuronlake.store.commits import commit_checksums
from neuronlake.store.index_results import OfBlocks, fitting, index_staging, publish_instead
from neuronlake.store.kept import INDEX, kept_record
from neuronlake.store.lake import Lake
from neuronlake.store.sharded import ShardedArray, ShardedWriter
from neuronlake.store.tables import PADDING, SPECIAL

PLACES = 4096  # an error of 0.016; a quarter of them finds half as many neighbours among as many candidates
_LARGEST = 127
_PREFIX = "sketch-"
_VERSION = 1
_Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Sketch(OfBlocks):
    """Sketches of all neurons of a site over the ordinary tokens of some blocks."""

    @cached_property
    def arrays(self) -> dict[str, ShardedArray]:
        """``codes`` int8 (layers, neurons, PLACES); ``moments`` float64 (layers, neurons, 3): mean, M2, value of a code."""
        return {name: ShardedArray(self.folder / name) for name in ("codes", "moments")}

    def unit_vectors(self, place: int, *, fold: int = 1) -> NDArray[np.float32]:
        """Sketches of one layer's neurons with length 1, zero where constant: float32 (neurons, PLACES / fold).

        Parameters
        ----------
        place
            Position of the layer among the stored ones.
        fold
            Add so many places up: a sketch with fewer of them.

        Raises
        ------
        DamageError
            When they are not what was written.
        """
        codes = self.arrays["codes"].read_part(place).astype(np.float32)
        codes = codes.reshape(len(codes), fold, -1).sum(axis=1) if fold > 1 else codes
        length = np.linalg.norm(codes, axis=1, keepdims=True)
        unit: NDArray[np.float32] = np.divide(codes, length, out=np.zeros_like(codes), where=length > 0)
        return unit


def sketch_neurons(lake: Lake, *, scheduler: Any = None, progress: _Progress = lambda done, total: None) -> Sketch:
    """Return the sketches of all neurons over all committed blocks; what is missing is made and kept in the lake.

    Special tokens are left out. Blocks that were committed since are read alone.

    Parameters
    ----------
    scheduler
        As for `compute_statistics`.
    progress
        Called with (layers done, layers in all).

    Raises
    ------
    DamageError
        When an activation chunk is damaged.
    StorageError
        When the lake cannot be written to: sketches are kept in it, since making them reads all of it.
    """
    checksums = commit_checksums(lake.path, lake.blocks)
    start = f"{_PREFIX}{lake.site}-"
    base = _kept(lake, checksums)
    if base is not None and base.blocks == lake.blocks:
        return base
    missing = [block for block in lake.blocks if base is None or block not in base.blocks]
    rows = {block: ordinary_rows(lake, block) for block in missing}
    signs = np.zeros(PLACES, dtype=np.int64) if base is None else np.array(base.record["signs"], dtype=np.int64)
    dealt = {block: deal(block * lake.block_rows + rows[block]) for block in missing}
    for places, some in dealt.values():
        np.add.at(signs, places, some.astype(np.int64))
    record: dict[str, Any] = {
        "version": _VERSION,
        "site": lake.site,
        "places": PLACES,
        "blocks": {str(block): checksums[block] for block in lake.blocks},
        "signs": signs.tolist(),
        "tokens": sum(map(len, rows.values())) + (0 if base is None else int(base.record["tokens"])),
    }
    name = f"{start}{hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:8]}"
    width, chunks = lake.chunk_neurons, lake.reader.chunks

    def make(place: int) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
        sums = np.zeros((chunks, PLACES, width), dtype=np.float32)
        moments = np.zeros((chunks, 2, width))
        count = 0
        if base is not None:
            before = base.arrays["moments"].read_part(place)
            whole = base.arrays["codes"].read_part(place) * before[:, 2:] + before[:, :1] * np.array(base.record["signs"])
            sums[:] = _padded(whole, chunks, width)
            moments[:] = _padded(before[:, :2], chunks, width)
            count = int(base.record["tokens"])
        values = np.empty(lake.reader.chunk_shape, dtype=np.float32)
        for block in missing:
            fetched = lake.reader.fetch(lake.layers[place], block, range(chunks))
            with lake.reader.shard(lake.layers[place], block, fetched) as shard:
                for chunk in range(chunks):
                    first = chunk * width
                    shard.unpack(range(chunk, chunk + 1), values, first_neuron=first)
                    used = min(width, lake.neurons - first)
                    _add(values, rows[block], *dealt[block], used, count, sums[chunk], *moments[chunk])
            count += len(rows[block])
        mean, m2 = moments.transpose(1, 0, 2).reshape(2, -1)[:, : lake.neurons]
        sketch = sums.transpose(0, 2, 1).reshape(-1, PLACES)[: lake.neurons]
        sketch -= (mean[:, None] * signs).astype(np.float32)
        sketch[m2 == 0] = 0  # what rounding leaves of a constant
        step = np.abs(sketch).max(axis=1) / _LARGEST
        scaled = np.divide(sketch, step[:, None], out=np.zeros_like(sketch), where=step[:, None] > 0)
        return np.rint(scaled).astype(np.int8), np.stack([mean, m2, step], axis=1)

    with index_staging(lake.path, name) as folder:
        shape = (len(lake.layers), lake.neurons)
        writers = [
            ShardedWriter(folder, "codes", (*shape, PLACES), np.int8),
            ShardedWriter(folder, "moments", (*shape, 3), np.float64),
        ]

        of_layers = [{"place": place} for place in range(len(lake.layers))]
        parts = Parts.of_columns(lake, [(layer, 0) for layer in lake.layers], lake.neurons)

        def write(place: int, made: tuple[NDArray[np.int8], NDArray[np.float64]] | None = None) -> None:
            codes, moments = made or make(place)
            writers[0].write(place, codes)
            writers[1].write(place, moments)

        if scheduler in LOCAL_THREADS:  # every thread writes what it made
            for _ in run_in_order(write, of_layers, parts=parts, scheduler=scheduler, progress=progress):
                pass
        else:
            for place, made in run_each(make, of_layers, parts=parts, scheduler=scheduler, progress=progress):
                write(place, made)
        publish_instead(lake.path, folder, name, record, start)
    return Sketch(root=lake.path, name=name, record=kept_record(lake.path, name, kept=INDEX))


def kept_sketch(lake: Lake) -> Sketch | None:
    """Return the sketches that the lake keeps if they are of all committed blocks; nothing is read but their record."""
    found = _kept(lake, commit_checksums(lake.path, lake.blocks))
    return found if found is not None and found.blocks == lake.blocks else None


def _kept(lake: Lake, checksums: Mapping[int, str]) -> Sketch | None:
    start = f"{_PREFIX}{lake.site}-"
    return next(iter(fitting(Sketch, lake.path.absolute(), start, lake.site, checksums, version=_VERSION, full=True)), None)


def deal(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Place and sign of every row, from its number alone (SplitMix64's finaliser), so that blocks add up in any order."""
    mixed = rows.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return (mixed % np.uint64(PLACES)).astype(np.int64), np.where(mixed >> np.uint64(63), np.float32(-1), np.float32(1))


def _padded(values: NDArray[Any], chunks: int, width: int) -> NDArray[Any]:
    """(neurons, n) → (chunks, n, width), zero beyond the last neuron."""
    whole = np.zeros((chunks * width, values.shape[1]), dtype=values.dtype)
    whole[: len(values)] = values
    return whole.reshape(chunks, width, -1).transpose(0, 2, 1)


def ordinary_rows(lake: Lake, block: int) -> NDArray[np.int64]:
    """Rows of a block, counted within it, that are neither special nor padding, ascending."""
    flags = lake.read_table("plan", block, ["flags"]).column("flags").to_numpy()
    return np.flatnonzero((flags & (SPECIAL | PADDING)) == 0).astype(np.int64)


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _add(values: Any, rows: Any, places: Any, signs: Any, width: int, count: int, sums: Any, mean: Any, m2: Any) -> None:
    """Add rows of a chunk to its sums per place, (PLACES, c), and to mean and M2 of its `count` tokens so far (c,)."""
    n = rows.shape[0]
    total, square = np.zeros(width), np.zeros(width)
    for i in range(n):
        line, out, sign = values[rows[i]], sums[places[i]], signs[i]
        for j in range(width):
            out[j] += sign * line[j]
            total[j] += np.float64(line[j])
    for j in range(width):
        total[j] /= max(n, 1)
    for i in range(n):
        line = values[rows[i]]
        for j in range(width):
            d = np.float64(line[j]) - total[j]
            square[j] += d * d
    whole = max(count + n, 1)
    for j in range(width):  # Chan, Golub & LeVeque 1979
        delta = total[j] - mean[j]
        m2[j] += square[j] + delta * delta * (count * (n / whole))
        mean[j] += delta * (n / whole)
