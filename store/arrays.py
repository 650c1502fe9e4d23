"""Zarr arrays of results."""

from pathlib import Path
from typing import Any

from neuronlake.store.objects import LakePath, ObjectPath


def create_array(folder: Path, name: str, shape: tuple[int, ...], dtype: Any, chunks: tuple[int, ...]) -> Any:
    """Make a compressed, checksummed Zarr array in a result's folder."""
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    compressors = [BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()]
    return zarr.create_array(
        folder / name, shape=shape, dtype=dtype, chunks=tuple(map(max, chunks, (1,) * len(chunks))), compressors=compressors
    )


def open_array(path: LakePath) -> Any:
    """Open an array for reading."""
    import zarr

    if isinstance(path, ObjectPath):
        from neuronlake.store.object_zarr import FolderStore

        return zarr.open_array(FolderStore(path), mode="r", zarr_format=3)  # or it looks for that of older ones
    return zarr.open_array(path, mode="r")
