"""Exact values kept beside the statistics that they refine: one Parquet file per variable, its checksum in its name."""

from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xarray as xr
import xxhash
from numpy.typing import NDArray

from neuronlake.analysis.source import LakeSource
from neuronlake.store.errors import StorageError
from neuronlake.store.files import write_file
from neuronlake.store.kept import STATISTICS, kept_results
from neuronlake.store.lake import Lake
from neuronlake.store.objects import LakePath

_PREFIX = "exact-"


def load_exact(
    source: LakeSource, dataset: xr.Dataset, names: Sequence[str], arrays: Mapping[str, NDArray[np.float64]]
) -> None:
    """Overwrite what is kept: `arrays` holds every variable and its ``…_error``, (tags, layers, neurons)."""
    place = _place(source, dataset)
    if place is None:
        return
    position = {int(layer): at for at, layer in enumerate(dataset["layer"].to_numpy())}
    for name in names:
        table = _load(place[0].path / place[1], name)
        if table is None:
            continue
        values, errors = (
            table.column(column).combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
            for column in ("value", "error")
        )
        if values.shape[1] != dataset.sizes["tag"]:
            continue
        layers, neurons = (table.column(column).to_numpy() for column in ("layer", "neuron"))
        for layer, at in position.items():
            here = np.flatnonzero(layers == layer)
            arrays[name][:, at, neurons[here]] = values[here].T
            arrays[f"{name}_error"][:, at, neurons[here]] = errors[here].T


def keep_exact(
    source: LakeSource, dataset: xr.Dataset, names: Sequence[str], arrays: Mapping[str, NDArray[np.float64]]
) -> None:
    """Keep every value whose bound is tighter than the histogram's. A lake that cannot be written to stays as it is."""
    place = _place(source, dataset)
    if place is None:
        return
    lake, folder = place
    for name in names:
        errors = arrays[f"{name}_error"]
        loose = dataset[f"{name}_error"].transpose("tag", "layer", "neuron").to_numpy()
        at, neurons = np.nonzero((errors < loose).any(axis=0))
        table = pa.table(
            {
                "layer": dataset["layer"].to_numpy()[at].astype(np.int32),
                "neuron": neurons.astype(np.int32),
                "value": _per_neuron(arrays[name][:, at, neurons]),
                "error": _per_neuron(errors[:, at, neurons]),
            }
        )
        sink = BytesIO()
        pq.write_table(table, sink, compression="zstd")
        data = sink.getvalue()
        file = f"{_PREFIX}{name}-{xxhash.xxh3_64_hexdigest(data)}.parquet"
        try:
            write_file(lake.path, f"{folder}/{file}", [data])
        except StorageError:  # read-only: the next question computes them again
            return
        for path in _files(lake.path / folder, name):
            if path.name != file:
                path.unlink(missing_ok=True)


def _load(folder: LakePath, name: str) -> pa.Table | None:
    """Read the values of a variable; None if there are none, or they are damaged and computed again."""
    for path in _files(folder, name):
        try:
            data = path.read_bytes()
        except StorageError:
            raise
        except OSError:
            continue
        if path.stem.endswith(f"-{xxhash.xxh3_64_hexdigest(data)}"):
            return pq.read_table(BytesIO(data))
    return None


def _files(folder: LakePath, name: str) -> list[LakePath]:
    return sorted(folder.glob(f"{_PREFIX}{name}-*.parquet"))


def _per_neuron(values: NDArray[np.float64]) -> pa.Array:
    """One list of all tags' values per neuron, from (tags, neurons)."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.T.ravel()), len(values))


def _place(source: LakeSource, dataset: xr.Dataset) -> tuple[Lake, str] | None:
    name = str(dataset.attrs.get("kept", ""))
    if not isinstance(source, Lake) or name not in kept_results(source.path):
        return None
    return source, f"{STATISTICS}/{name}"
