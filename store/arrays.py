"""Zarr arrays of results."""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from neuronlake.store.objects import LakePath, ObjectPath


def create_array(folder: Path, name: str, shape: tuple[int, ...], dtype: Any, chunks: tuple[int, ...]) -> Any:
    """Make a compressed, checksummed Zarr array in a result's folder."""
    return _create(folder / name, shape, dtype, chunks)


def encoded_chunk(values: NDArray[Any], chunks: tuple[int, ...]) -> bytes | None:
    """Return what the file of a chunk of `create_array` holds; None for zeros alone, which have no file.

    Parameters
    ----------
    values
        The chunk; less of it at an array's end.
    """
    from zarr.storage import MemoryStore

    files: dict[str, Any] = {}
    _create(MemoryStore(files), chunks, values.dtype, chunks)[tuple(map(slice, values.shape))] = values
    file = files.get("c/" + "/".join("0" * len(chunks)))
    return None if file is None else bytes(file.to_bytes())


def write_chunk(folder: Path, name: str, place: tuple[int, ...], data: bytes | None) -> None:
    """Write a chunk that was encoded elsewhere; `place` counts chunks along every axis."""
    if data is not None:
        path = folder.joinpath(name, "c", *map(str, place))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _create(store: Any, shape: tuple[int, ...], dtype: Any, chunks: tuple[int, ...]) -> Any:
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    compressors = [BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()]
    return zarr.create_array(
        store, shape=shape, dtype=dtype, chunks=tuple(map(max, chunks, (1,) * len(chunks))), compressors=compressors
    )


def open_array(path: LakePath) -> Any:
    """Open an array for reading."""
    import zarr

    if isinstance(path, ObjectPath):
        from neuronlake.store.object_zarr import FolderStore

        return zarr.open_array(FolderStore(path), mode="r", zarr_format=3)  # or it looks for that of older ones
    return zarr.open_array(path, mode="r")
