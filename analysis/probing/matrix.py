"""Rows × features, read tile by tile and never held whole: of a lake, or of an array in memory."""

import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.probing.features import FeatureSet
from neuronlake.analysis.probing.kernels import scale
from neuronlake.analysis.source import LakeSource
from neuronlake.store.errors import InputError

_ARRAY_TILE_ROWS = 8192
_ALONE_BYTES = 512 << 20  # tiles above 512 MiB are read one at a time
_KEPT_BYTES = 3 << 30  # 3 GiB of tiles, of all matrices together, are kept for the next pass


class Matrix(Protocol):
    """A tall matrix in tiles of whole rows."""

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, features)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""

    @property
    def tiles(self) -> Sequence[slice]:
        """The rows of every tile."""

    @property
    def parts(self) -> Sequence[slice]:
        """Neighbouring features that belong together, such as those of a layer; together all of them."""

    def read(self, tile: int, out: NDArray[Any]) -> None:
        """Read a tile into `out`, (its rows, features)."""

    def scaled(self, centre: NDArray[np.float64], factor: NDArray[np.float64]) -> "Matrix":
        """Return the matrix of (x − centre)·factor, computed as it is read; centre and factor (features,)."""


class LakeMatrix:
    """Some rows × some neurons of a lake, float32. A tile is what a block holds of them.

    Not safe to read from several threads at once.

    Parameters
    ----------
    rows
        Which of the lake's committed rows there are, in block order.
    keep
        Keep tiles in memory, as far as all matrices together stay below 3 GiB: for whoever passes over them many times.
        A few neurons of every layer take the decoding of nearly all of them.
    """

    dtype: np.dtype[Any] = np.dtype(np.float32)

    def __init__(self, source: LakeSource, features: FeatureSet, rows: NDArray[np.bool_], *, keep: bool = False):
        self._source, self._features = source, features
        self._kept = _Tiles() if keep else None
        self.rows = rows
        size = features.size
        self._centre, self._factor = np.zeros(size, dtype=np.float32), np.ones(size, dtype=np.float32)
        by_block = rows.reshape(len(source.blocks), source.block_rows)
        counts = by_block.sum(axis=1)
        self._blocks = [
            (block, np.flatnonzero(chosen))
            for block, chosen, count in zip(source.blocks, by_block, counts, strict=True)
            if count
        ]
        ends = np.cumsum([len(chosen) for _, chosen in self._blocks])
        self.tiles = [slice(int(end) - len(chosen), int(end)) for end, (_, chosen) in zip(ends, self._blocks, strict=True)]
        self.shape = (int(counts.sum()), size)
        widths = [features.neurons_per_layer if chosen is None else len(chosen) for _, chosen in features.columns]
        stops = np.cumsum(widths)
        self.parts = [slice(int(stop - width), int(stop)) for stop, width in zip(stops, widths, strict=True)]

    def read(self, tile: int, out: NDArray[Any]) -> None:
        """Read a tile into `out`, (its rows, features)."""
        values = None if self._kept is None else self._kept.get(tile)
        if values is not None:
            out[...] = values
        else:
            self._decode(tile, out)
            if self._kept is not None:
                self._kept.put(tile, out)
        scale(out, self._centre, self._factor)

    def forget(self) -> None:
        """Give back the memory of kept tiles, also of those that the same matrix keeps scaled.

        Not left to whoever drops the matrix: optimisers hold on to it in reference cycles.
        """
        if self._kept is not None:
            self._kept.clear()

    def _decode(self, tile: int, out: NDArray[Any]) -> None:
        block, rows = self._blocks[tile]
        for (layer, chosen), part in zip(self._features.columns, self.parts, strict=True):
            if chosen is None:
                self._source.read_block(layer=layer, block=block, neurons=None, rows=rows, out=out[:, part])
            else:
                out[:, part] = self._source.read_block(layer=layer, block=block, neurons=chosen)[rows]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Read all of it into memory: what NumPy, and estimators that cannot do with tiles, ask for."""
        if copy is False:
            raise ValueError("a LakeMatrix is read into new memory: it cannot be an array without a copy")
        values = np.empty(self.shape, dtype=np.float32)
        for rows, tile in stream(self):
            values[rows] = tile
        return values if dtype is None else values.astype(dtype, copy=False)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, chosen: Any) -> "LakeMatrix":
        """Return the matrix of some rows, still unread: ``matrix[rows]``, rows a slice, mask, or ascending numbers.

        What scikit-learn's splitters ask for, also as ``matrix[rows, ...]``.

        Raises
        ------
        InputError
            When the rows are not in ascending order, or columns are asked for.
        """
        if isinstance(chosen, tuple):
            if len(chosen) != 2 or chosen[1] is not Ellipsis:
                raise InputError("the neurons of a LakeMatrix are chosen when it is made: index its rows only")
            chosen = chosen[0]
        places = np.atleast_1d(np.arange(len(self))[chosen])
        if np.any(np.diff(places) <= 0):
            raise InputError("the rows of a LakeMatrix are read in the order in which they are stored: sort the row numbers")
        rows = np.zeros_like(self.rows)
        rows[np.flatnonzero(self.rows)[places]] = True
        return self._other(rows, self._centre, self._factor)

    def scaled(self, centre: NDArray[np.float64], factor: NDArray[np.float64]) -> "LakeMatrix":
        """Return the matrix of (x − centre)·factor, computed as it is read; centre and factor (features,)."""
        other = self._other(self.rows, centre.astype(np.float32), factor.astype(np.float32))
        other._kept = self._kept
        return other

    def _other(self, rows: NDArray[np.bool_], centre: NDArray[np.float32], factor: NDArray[np.float32]) -> "LakeMatrix":
        other = LakeMatrix(self._source, self._features, rows)
        other._centre, other._factor = centre, factor
        return other


class _Tiles:
    """Tiles of a matrix, as far as the common budget goes; what they take of it is given back with this object."""

    _free = _KEPT_BYTES
    _counting = threading.Lock()

    def __init__(self) -> None:
        self._tiles: dict[int, NDArray[np.float32]] = {}
        taken = self._taken = [0]
        weakref.finalize(self, _Tiles._take, taken, 0)

    def get(self, tile: int) -> NDArray[np.float32] | None:
        return self._tiles.get(tile)

    def put(self, tile: int, values: NDArray[np.float32]) -> None:
        if self._take(self._taken, self._taken[0] + values.nbytes):
            self._tiles[tile] = values.copy()

    def clear(self) -> None:
        self._tiles.clear()
        self._take(self._taken, 0)

    @classmethod
    def _take(cls, taken: list[int], wanted: int) -> bool:
        """Have so many bytes of the budget from now on, if there are as many."""
        with cls._counting:
            if wanted - taken[0] > cls._free:
                return False
            cls._free -= wanted - taken[0]
            taken[0] = wanted
            return True


class ArrayMatrix:
    """An array in memory, (n, D)."""

    def __init__(self, values: NDArray[Any]):
        self._values = values
        self.shape = (values.shape[0], values.shape[1])
        self.dtype = values.dtype
        starts = range(0, max(1, len(values)), _ARRAY_TILE_ROWS)
        self.tiles = [slice(first, min(first + _ARRAY_TILE_ROWS, len(values))) for first in starts]
        self.parts = [slice(0, self.shape[1])]
        self._centre = np.zeros(self.shape[1], dtype=values.dtype)
        self._factor = np.ones(self.shape[1], dtype=values.dtype)

    def read(self, tile: int, out: NDArray[Any]) -> None:
        """Read a tile into `out`, (its rows, D)."""
        rows = self.tiles[tile]
        np.subtract(self._values[rows], self._centre, out=out)
        out *= self._factor

    def scaled(self, centre: NDArray[np.float64], factor: NDArray[np.float64]) -> "ArrayMatrix":
        """Return the matrix of (x − centre)·factor, computed as it is read; centre and factor (D,)."""
        other = ArrayMatrix(self._values)
        other._centre, other._factor = centre.astype(self.dtype), factor.astype(self.dtype)
        return other


def stream(matrix: Matrix, order: Sequence[int] | NDArray[np.int64] | None = None) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Yield the rows and values of every tile, in that order; the next one is read meanwhile.

    The values hold until the next tile is asked for, and may be overwritten.
    """
    order = range(len(matrix.tiles)) if order is None else order
    largest = max(tile.stop - tile.start for tile in matrix.tiles)
    size = largest * matrix.shape[1]
    ahead = len(order) > 1 and size * matrix.dtype.itemsize <= _ALONE_BYTES
    buffers = [np.empty((largest, matrix.shape[1]), dtype=matrix.dtype) for _ in range(1 + ahead)]

    def fetch(place: int) -> tuple[slice, NDArray[Any]]:
        rows = matrix.tiles[order[place]]
        values = buffers[place % len(buffers)][: rows.stop - rows.start]
        matrix.read(int(order[place]), values)
        return rows, values

    if not ahead:
        for place in range(len(order)):
            yield fetch(place)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="neuronlake-tile") as pool:
        coming = pool.submit(fetch, 0)
        for place in range(len(order)):
            rows, values = coming.result()
            if place + 1 < len(order):
                coming = pool.submit(fetch, place + 1)
            yield rows, values
