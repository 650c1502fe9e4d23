"""The block in memory: tiles in the order of the chunks on disk, filled by the forward passes."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.store.encodings import get_encoding
from neuronlake.store.errors import ActivationError, InputError
from neuronlake.store.kernels import scatter, unpack
from neuronlake.store.shared_memory import SharedMemory, aligned
from neuronlake.store.spec import LakeSpec


class BlockBuffer:
    """All layers of one block, already cast to the encoding's values.

    The tiles are laid out as the shards will be, so that a chunk is compressed straight from here. One cast-and-scatter
    pass per captured batch is all the copying there is. Reusable: `reset` starts the next block.

    Several processes can fill it together, each its slice of every layer's units: it is then made with `ranks`, and each of
    them makes its own over the same memory.

    Parameters
    ----------
    spec
        The lake's settings.
    ranks
        Number of processes that fill it, if it is not this one.
    memory
        `shared_path` of such a buffer, to be one of those processes; `spec` and `ranks` must be the same.
    """

    def __init__(self, spec: LakeSpec, *, ranks: int | None = None, memory: str | None = None):
        self.spec = spec
        self.encoding = get_encoding(spec.encoding)
        self.keys = tuple((site, layer) for site in spec.sites for layer in spec.layers)
        self._widths = {site: spec.width(site) for site in spec.sites}
        self.ranks = ranks or 1
        shapes = {key: spec.geometry(key[0]).tiles_shape for key in self.keys}
        counts = (self.ranks, spec.block_rows)
        self._memory: SharedMemory | None = None
        if memory is not None:
            self._memory = SharedMemory.open(memory)
        elif ranks is not None:
            tiles = sum(aligned(math.prod(shape) * self.encoding.itemsize) for shape in shapes.values())
            self._memory = SharedMemory.create(tiles + len(self.keys) * aligned(math.prod(counts)))
        # zeros, not empty: pages that no row reaches are never touched, and surplus columns must be zero
        make = np.zeros if self._memory is None else self._memory.array
        self._tiles = {key: make(shape, self.encoding.stored) for key, shape in shapes.items()}
        self._writes = {key: make(counts, np.dtype(np.uint8)) for key in self.keys}
        self._used = 0

    @property
    def shared_path(self) -> str:
        """Path of its memory, for another process's buffer."""
        if self._memory is None:
            raise InputError("this buffer belongs to one process: make it with `ranks`")
        return self._memory.path

    def shares(self, path: str) -> bool:
        """Whether its memory is what is now at `path`: paths are used again when a buffer is gone."""
        return self._memory is not None and self._memory.is_at(path)

    @property
    def nbytes(self) -> int:
        """Bytes of all tiles."""
        return sum(tiles.nbytes for tiles in self._tiles.values())

    @property
    def used(self) -> int:
        """Rows that the block uses; the rest is padding."""
        return self._used

    def tiles(self, site: str, layer: int) -> NDArray[Any]:
        """Return the tiles of one layer: stored dtype (chunks, rows, chunk neurons)."""
        return self._tiles[site, layer]

    def reset(self, rows: int) -> None:
        """Start a block that uses its first `rows` rows; the rest is zero."""
        for tiles in self._tiles.values():
            tiles[:, rows : self._used] = 0
        for writes in self._writes.values():
            writes[:] = 0
        self._used = rows

    def columns(self, site: str, rank: int) -> tuple[int, int]:
        """Return the first unit of a rank's slice and the one after its last: equal shares, in the order of ranks."""
        width = self._widths[site]
        return rank * width // self.ranks, (rank + 1) * width // self.ranks

    def put(
        self,
        site: str,
        layer: int,
        values: NDArray[Any],
        source: NDArray[Any],
        target: NDArray[Any],
        *,
        rank: int = 0,
    ) -> None:
        """Store ``values[source]`` as rows `target` of the block.

        Parameters
        ----------
        values : float32 (positions, units of the rank), C order
            Or uint16: bit patterns of the encoding's 16-bit values.
        source, target : int64 (n,)
        rank
            Whose slice of the units it is, when several processes fill the buffer.

        Raises
        ------
        ActivationError
            When a value is not finite, or too large for the encoding.
        """
        first, last = self.columns(site, rank)
        if values.shape[1] != last - first:
            of = f" for rank {rank} of {self.ranks}" if self.ranks > 1 else ""
            raise InputError(f"layer {layer}, site {site}: got {values.shape[1]} neurons, the lake has {last - first}{of}")
        if not scatter(self.encoding.values, values, source, target, self._tiles[site, layer], first):
            self._refuse(site, layer, values[source], target, first)
        self._writes[site, layer][rank, target] += 1

    def check_complete(self) -> None:
        """Assert that every used row was written exactly once in every layer, and no other row at all.

        A hook that silently did not fire, or fired twice, is found here and not months later.
        """
        expected = np.arange(self.spec.block_rows) < self._used
        for (site, layer), of_ranks in self._writes.items():
            for rank, writes in enumerate(of_ranks):
                wrong = np.flatnonzero(writes != expected)
                if wrong.size:
                    by = f" by rank {rank} of {self.ranks}" if self.ranks > 1 else ""
                    raise InputError(
                        f"layer {layer}, site {site}: row {wrong[0]} of the block was captured {writes[wrong[0]]} times{by} "
                        f"({wrong.size} rows are wrong); the model does not run this layer once per token"
                    )

    def _refuse(self, site: str, layer: int, values: NDArray[Any], target: NDArray[Any], first: int) -> None:
        if cast := values.dtype == np.uint16:
            patterns, values = values, np.empty(values.shape, dtype=np.float32)
            unpack(self.encoding.values, patterns, patterns.shape[1], values, 0)
        with np.errstate(invalid="ignore"):
            # not "<=" negated by hand: a NaN compares false and must count as bad
            position, neuron = (int(found[0]) for found in np.nonzero(~(np.abs(values) <= self.encoding.largest)))
        value, row = float(values[position, neuron]), int(target[position])
        where = f"L{layer}.N{first + neuron} (site {site})"
        if cast:
            raise ActivationError(
                f"{where} is {value} as {self.encoding.values}: it is beyond ±{self.encoding.largest:g}, or the forward "
                "pass overflows; choose --encoding bfloat16 or float32, or --dtype float32",
                row=row,
            )
        if np.isfinite(value):
            raise ActivationError(
                f"{where} is {value:g}, beyond {self.encoding.name}'s range of ±{self.encoding.largest:g}: "
                "choose --encoding bfloat16 or float32",
                row=row,
            )
        raise ActivationError(f"{where} is {value}: the forward pass overflows, try --dtype float32", row=row)
