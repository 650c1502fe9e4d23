"""Which neurons fire together: Pearson correlation of some neurons with all others, exactly, by one scan."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from neuronlake.analysis.centring import SEGMENT_ROWS, centre
from neuronlake.analysis.chosen_rows import ChosenRows, choose_rows
from neuronlake.analysis.execute import scan_all
from neuronlake.analysis.neuron import check_neuron, neuron_name
from neuronlake.analysis.source import choose_layers, versions
from neuronlake.store.errors import InputError
from neuronlake.store.lake import Lake
from neuronlake.store.scan import Tile

if TYPE_CHECKING:
    import xarray as xr

_QUERY_BYTES = 1 << 28  # 256 MiB of query columns at a time: 280 neurons of EWT train
Neurons = tuple[int, int] | Sequence[tuple[int, int]]


def coactivation(
    lake: Lake,
    neurons: Neurons,
    *,
    layers: Sequence[int] | None = None,
    special: bool = False,
    where: str | None = None,
    mask: NDArray[np.bool_] | None = None,
    scheduler: Any = None,
    progress: Callable[[int, int], None] | None = None,
) -> "xr.DataArray":
    """Correlate some neurons with all neurons over the tokens of a lake.

    Pearson's r = Σ(x − x̄)(y − ȳ) / √(Σ(x − x̄)² Σ(y − ȳ)²) over the chosen rows of all committed blocks. Products are of
    centred float32 values, sums are added up in float64 (see `centring`): r is within 1e-5 of float64 throughout.

    Parameters
    ----------
    lake
        The lake.
    neurons
        (layer, neuron), or several.
    layers
        Of the neurons to correlate with; all by default.
    special
        Count special tokens too. They are left out by default: on these, many neurons are larger than anywhere else by
        orders of magnitude.
    where
        SQL predicate over the token, e.g. ``upos='NOUN'``: only tokens for which it is true.
    mask : bool (committed rows,), optional
        Only these lines of ``lake.tokens()``.
    scheduler
        As for `compute_statistics`.
    progress
        Called with (shards done, shards in all).

    Returns
    -------
    xarray.DataArray
        ``correlation``, float64 (of, layer, neuron); `of` holds names such as ``L12.N345``. NaN with (and of) a neuron that
        has the same value on all tokens. Attributes record lake, rows and versions.

    Raises
    ------
    InputError
        When a neuron or layer does not exist, the predicate or the mask is refused, or fewer than two rows remain.
    """
    import xarray as xr

    given: Sequence[Any] = [neurons] if isinstance(neurons[0], int | np.integer) else neurons
    asked = [(int(layer), int(neuron)) for layer, neuron in given]
    for layer, neuron in asked:
        check_neuron(lake, layer, neuron)
    chosen = choose_layers(lake, layers)
    rows = choose_rows(lake, special=special, where=where, mask=mask, least=2)
    each = max(1, _QUERY_BYTES // (4 * rows.count))
    groups = [asked[first : first + each] for first in range(0, len(asked), each)]
    shards = len(chosen) * len(rows.blocks)
    found = []
    for place, group in enumerate(groups):

        def report(done: int, place: int = place) -> None:
            if progress is not None:
                progress(place * shards + done, len(groups) * shards)

        found.append(_correlate(lake, group, chosen, rows, scheduler, report))
    return xr.DataArray(
        np.concatenate(found),
        dims=("of", "layer", "neuron"),
        coords={
            "of": [neuron_name(*neuron) for neuron in asked],
            "layer": list(chosen),
            "neuron": np.arange(lake.neurons),
        },
        name="correlation",
        attrs={
            "lake": lake.fingerprint,
            "site": lake.site,
            **rows.attributes,
            "blocks": [int(block) for block in lake.blocks],
            "versions": versions(),
        },
    )


def strongest(found: "xr.DataArray", k: int = 20, *, signed: bool = False) -> list[list[dict[str, Any]]]:
    """List the neurons that correlate most with each neuron that was asked for, itself left out.

    Parameters
    ----------
    found
        Of `coactivation`.
    k
        Neurons wanted; fewer come back when there are fewer.
    signed
        Only by positive correlation. By default by magnitude: in a gated MLP, a neuron whose input and output weights both
        have the other sign is the same neuron.

    Returns
    -------
    list of list of dict
        For each neuron asked for: rank (from 1), layer, neuron, name, correlation. Equal ones by layer, then neuron.

    Raises
    ------
    InputError
        When `k` is below 1.
    """
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    layers, lists = found["layer"].to_numpy(), []
    for name, values in zip(found["of"].to_numpy().tolist(), found.to_numpy(), strict=True):
        flat = values.ravel()
        strength = np.nan_to_num(flat if signed else np.abs(flat), nan=-np.inf)
        best: list[dict[str, Any]] = []
        few = np.argpartition(-strength, min(k, len(flat) - 1))[: k + 1]
        # everything up to the last one's strength, ties included
        candidates = np.flatnonzero(strength >= strength[few].min())
        for place in candidates[np.argsort(-strength[candidates], kind="stable")]:
            layer, neuron = int(layers[place // values.shape[1]]), int(place % values.shape[1])
            if len(best) == k or np.isneginf(strength[place]):
                break
            if neuron_name(layer, neuron) != name:
                best.append(
                    {
                        "rank": len(best) + 1,
                        "layer": layer,
                        "neuron": neuron,
                        "name": neuron_name(layer, neuron),
                        "correlation": float(flat[place]),
                    }
                )
        lists.append(best)
    return lists


@dataclass
class Moments:
    """Sums over rows of c columns and q others; merge those of disjoint rows with `add`."""

    count: int
    mean: NDArray[np.float64]
    """(c,)."""
    other_mean: NDArray[np.float64]
    """(q,)."""
    square: NDArray[np.float64]
    """Σ(x − x̄)², (c,)."""
    other_square: NDArray[np.float64]
    """Σ(y − ȳ)², (q,)."""
    product: NDArray[np.float64]
    """Σ(x − x̄)(y − ȳ), (c, q)."""

    @classmethod
    def empty(cls, columns: int, others: int) -> "Moments":
        """Of no rows."""
        zeros = np.zeros
        return cls(0, zeros(columns), zeros(others), zeros(columns), zeros(others), zeros((columns, others)))

    def add(self, more: "Moments") -> None:
        """Add further rows (Chan, Golub & LeVeque 1979)."""
        count = self.count + more.count
        weight = self.count * more.count / count
        step, other_step = more.mean - self.mean, more.other_mean - self.other_mean
        self.product += more.product + weight * step[:, None] * other_step
        self.square += more.square + weight * step**2
        self.other_square += more.other_square + weight * other_step**2
        self.mean += step * (more.count / count)
        self.other_mean += other_step * (more.count / count)
        self.count = count

    def correlation(self) -> NDArray[np.float64]:
        """Pearson's r, (c, q); NaN where a column or its other is constant."""
        with np.errstate(divide="ignore", invalid="ignore"):
            # root by root: the product of two sums of squares may leave the range of float64
            found: NDArray[np.float64] = self.product / np.sqrt(self.square)[:, None] / np.sqrt(self.other_square)
        return np.clip(found, -1, 1, out=found)


@dataclass
class Segments:
    """Columns to correlate others with, centred segment by segment: what all tiles of a block share."""

    centred: list[NDArray[np.float32]]
    """(rows of the segment, q) each."""
    mean: NDArray[np.float64]
    """(segments, q), as all that follow."""
    square: NDArray[np.float64]
    total: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def of(cls, values: NDArray[np.float32], rows: NDArray[np.int64]) -> "Segments":
        """Centre ``values[rows]``, float32 (any, q)."""
        width = values.shape[1]
        starts = range(0, len(rows), SEGMENT_ROWS)
        mean, square, total, scale = np.empty((4, len(starts), width))
        centred = []
        for place, start in enumerate(starts):
            some = rows[start : start + SEGMENT_ROWS]
            centred.append(np.empty((len(some), width), dtype=np.float32))
            centre(values, some, centred[-1], mean[place], square[place], total[place], scale[place])
        return cls(centred, mean, square, total, scale)

    def products(self, values: NDArray[np.float32], rows: NDArray[np.int64]) -> Moments:
        """Sums of the same rows of further columns, float32 (any, c), with these."""
        width, others = values.shape[1], self.mean.shape[1]
        buffer = _buffer(len(self.centred[0]), width)
        mean, square, total, scale = np.empty((4, len(self.centred), width))
        product, counts = np.zeros((width, others)), np.empty(len(self.centred))
        for place, other in enumerate(self.centred):
            counts[place] = count = len(other)
            some = rows[place * SEGMENT_ROWS :][:count]
            out = buffer[:count]
            centre(values, some, out, mean[place], square[place], total[place], scale[place])
            part = (out.T @ other).astype(np.float64)  # (c, rows) @ (rows, q)
            part -= total[place][:, None] * (self.total[place] / count)
            part /= scale[place][:, None]
            part /= self.scale[place]
            product += part
        middle, other_middle = (counts @ each / counts.sum() for each in (mean, self.mean))
        away, other_away = mean - middle, self.mean - other_middle
        weighted = counts[:, None] * away
        return Moments(
            count=int(counts.sum()),
            mean=middle,
            other_mean=other_middle,
            square=square.sum(axis=0) + (weighted * away).sum(axis=0),
            other_square=self.square.sum(axis=0) + (counts[:, None] * other_away**2).sum(axis=0),
            product=product + weighted.T @ other_away,
        )


def _correlate(
    lake: Lake,
    asked: Sequence[tuple[int, int]],
    layers: tuple[int, ...],
    rows: ChosenRows,
    scheduler: Any,
    progress: Callable[[int, int], None] | None,
) -> NDArray[np.float64]:
    """Correlate with the neurons of some layers: float64 (asked, layers, neurons)."""
    others = {block: Segments.of(*part) for block, part in _read_columns(lake, asked, rows)}
    found = np.empty((len(asked), len(layers), lake.neurons))
    shards = len(layers) * len(others)
    done = 0
    whole = Moments.empty(lake.neurons, len(asked))
    part = Moments.empty(lake.neurons, len(asked))

    def multiply(tile: Tile) -> tuple[int, int, int, Moments]:
        moments = others[tile.block].products(tile.values, rows.blocks[tile.block])
        return tile.layer, tile.block, tile.first_neuron, moments

    with threadpool_limits(1, user_api="blas"):  # the scan keeps all cores busy
        for layer, block, first, some in scan_all(lake, multiply, layers=layers, blocks=list(others), scheduler=scheduler):
            last = first + len(some.mean)
            part.mean[first:last], part.square[first:last], part.product[first:last] = some.mean, some.square, some.product
            if last < lake.neurons:
                continue
            part.count, part.other_mean, part.other_square = some.count, some.other_mean, some.other_square
            whole.add(part)  # block by block, in order: the result does not depend on the number of threads
            done += 1
            if progress is not None:
                progress(done, shards)
            if block == rows.last_block:
                found[:, layers.index(layer)] = whole.correlation().T
                whole = Moments.empty(lake.neurons, len(asked))
    return found


def _read_columns(
    lake: Lake, neurons: Sequence[tuple[int, int]], rows: ChosenRows
) -> Iterator[tuple[int, tuple[NDArray[np.float32], NDArray[np.int64]]]]:
    """Columns of neurons of any layers at the chosen rows, float32 (rows, neurons), block by block."""
    columns = np.empty((rows.count, len(neurons)), dtype=np.float32)
    lines = rows.rows
    for layer in sorted({layer for layer, _ in neurons}):
        places = [place for place, (other, _) in enumerate(neurons) if other == layer]
        columns[:, places] = lake.read(layer=layer, rows=lines, neurons=[neurons[place][1] for place in places])
    start = 0
    for block in sorted(rows.blocks):
        count = len(rows.blocks[block])
        yield block, (columns[start : start + count], np.arange(count))
        start += count


_local = threading.local()


def _buffer(rows: int, width: int) -> NDArray[np.float32]:
    """This thread's buffer for a centred segment."""
    kept: NDArray[np.float32] = getattr(_local, "buffer", np.empty(0, dtype=np.float32))
    if kept.size < rows * width:
        kept = _local.buffer = np.empty(rows * width, dtype=np.float32)
    return kept[: rows * width].reshape(rows, width)
