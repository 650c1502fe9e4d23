"""NumPy-like, Dask and xarray views of a lake, all lazy and aligned to blocks."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.store.errors import InputError

if TYPE_CHECKING:
    import dask.array
    import xarray

    from neuronlake.store.lake import Lake


class LayerArray:
    """One layer as an array that reads when it is sliced: ``view[rows, neurons]`` → float32.

    Rows are global row numbers; slicing into a block that is not committed raises.
    """

    dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(self, lake: "Lake", layer: int):
        self._lake, self._layer = lake, layer

    @property
    def shape(self) -> tuple[int, int]:
        """(rows of the plan, neurons)."""
        return self._lake.plan.blocks * self._lake.block_rows, self._lake.neurons

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<LayerArray L{self._layer} {self._lake.site} {self.shape} float32 of {self._lake.path}>"

    def __getitem__(self, key: Any) -> NDArray[np.float32]:
        rows, neurons = key if isinstance(key, tuple) else (key, slice(None))
        if rows is Ellipsis:
            rows = slice(None)
        values = self._lake.read(layer=self._layer, rows=rows, neurons=neurons)
        # as NumPy does, a single number drops its axis
        drop = tuple(axis for axis, index in enumerate((rows, neurons)) if isinstance(index, int | np.integer))
        return values.squeeze(axis=drop) if drop else values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a lake's values are decoded on reading: they cannot be viewed without a copy")
        values = self[:, :]
        return values if dtype is None else values.astype(dtype)


def dask_layer(lake: "Lake", layer: int) -> "dask.array.Array":
    """One Dask chunk per committed block: float32 (committed rows, neurons)."""
    import dask
    import dask.array as da

    _require_blocks(lake)
    shape = (lake.block_rows, lake.neurons)
    read = dask.delayed(lake.read_block, pure=True)
    parts = [
        da.from_delayed(
            read(
                layer=layer,
                block=block,
                dask_key_name=f"lake-{lake.fingerprint[:16]}-{lake.site}-{layer}-{block}",
            ),
            shape=shape,
            dtype=np.float32,
            meta=np.empty((0, 0), dtype=np.float32),
        )
        for block in lake.blocks
    ]
    return da.concatenate(parts, axis=0)


def xarray_layers(lake: "Lake", layers: tuple[int, ...], labels: tuple[str, ...]) -> "xarray.DataArray":
    """Lazy DataArray (layer, row, neuron) with row numbers, token ids and labels as coordinates."""
    import dask.array as da
    import xarray

    tokens = lake.tokens(labels=labels)
    coordinates: dict[str, Any] = {
        "layer": list(layers),
        "row": tokens.column("row").to_numpy(),
        "neuron": np.arange(lake.neurons),
        "token_id": ("row", tokens.column("token_id").to_numpy()),
    }
    for label in labels:
        coordinates[label] = ("row", tokens.column(label).to_numpy(zero_copy_only=False))
    return xarray.DataArray(
        da.stack([dask_layer(lake, layer) for layer in layers]),
        dims=("layer", "row", "neuron"),
        coords=coordinates,
        name=lake.site,
        attrs={"lake": lake.fingerprint, "site": lake.site, "encoding": lake.encoding},
    )


def _require_blocks(lake: "Lake") -> None:
    if not lake.blocks:
        raise InputError(f"{lake.path} has no committed block yet: run the command that began it again")
