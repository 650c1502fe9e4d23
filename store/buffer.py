"""The block in memory: tiles in the order of the chunks on disk, filled by the forward passes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.store.encodings import get_encoding
from neuronlake.store.errors import ActivationError, InputError
from neuronlake.store.kernels import scatter
from neuronlake.store.spec import LakeSpec


class BlockBuffer:
    """All layers of one block, already cast to the encoding's values.

    The tiles are laid out as the shards will be, so that a chunk is compressed straight from here. One cast-and-scatter
    pass per captured batch is all the copying there is. Reusable: `reset` starts the next block.
    """

    def __init__(self, spec: LakeSpec):
        self.encoding = get_encoding(spec.encoding)
        self.keys = tuple((site, layer) for site in spec.sites for layer in spec.layers)
        self._widths = {site: spec.width(site) for site in spec.sites}
        # zeros, not empty: pages that no row reaches are never touched, and surplus columns must be zero
        self._tiles = {
            (site, layer): np.zeros(spec.geometry(site).tiles_shape, dtype=self.encoding.stored) for site, layer in self.keys
        }
        self._writes = {key: np.zeros(spec.block_rows, dtype=np.uint8) for key in self.keys}
        self._used = 0

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

    def put(self, site: str, layer: int, values: NDArray[np.float32], source: NDArray[Any], target: NDArray[Any]) -> None:
        """Store ``values[source]`` as rows `target` of the block.

        Parameters
        ----------
        values : float32 (positions, neurons), C order
        source, target : int64 (n,)

        Raises
        ------
        ActivationError
            When a value is not finite, or too large for the encoding.
        """
        if values.shape[1] != self._widths[site]:
            raise InputError(f"layer {layer}, site {site}: got {values.shape[1]} neurons, the lake has {self._widths[site]}")
        if not scatter(self.encoding.values, values, source, target, self._tiles[site, layer]):
            self._refuse(site, layer, values[source], target)
        self._writes[site, layer][target] += 1

    def check_complete(self) -> None:
        """Assert that every used row was written exactly once in every layer, and no other row at all.

        A hook that silently did not fire, or fired twice, is found here and not months later.
        """
        for (site, layer), writes in self._writes.items():
            wrong = np.flatnonzero(writes != (np.arange(len(writes)) < self._used))
            if wrong.size:
                raise InputError(
                    f"layer {layer}, site {site}: row {wrong[0]} of the block was captured {writes[wrong[0]]} times "
                    f"({wrong.size} rows are wrong); the model does not run this layer once per token"
                )

    def _refuse(self, site: str, layer: int, values: NDArray[np.float32], target: NDArray[Any]) -> None:
        with np.errstate(invalid="ignore"):
            # not "<=" negated by hand: a NaN compares false and must count as bad
            position, neuron = (int(found[0]) for found in np.nonzero(~(np.abs(values) <= self.encoding.largest)))
        value, row = float(values[position, neuron]), int(target[position])
        where = f"L{layer}.N{neuron} (site {site})"
        if np.isfinite(value):
            raise ActivationError(
                f"{where} is {value:g}, beyond {self.encoding.name}'s range of ±{self.encoding.largest:g}: "
                "choose --encoding bfloat16 or float32",
                row=row,
            )
        raise ActivationError(f"{where} is {value}: the forward pass overflows, try --dtype float32", row=row)
