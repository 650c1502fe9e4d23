"""Zarr arrays of results."""

from pathlib import Path
from typing import Any, Literal


def create_array(
    folder: Path,
    name: str,
    shape: tuple[int, ...],
    dtype: Any,
    chunks: tuple[int, ...],
    *,
    shards: tuple[int, ...] | None = None,
    codec: Literal["lz4", "zstd"] = "lz4",
) -> Any:
    """Make a compressed, checksummed Zarr array in a result's folder.

    Parameters
    ----------
    shards
        Shape of a file, in values; None means one file per chunk. A multiple of `chunks` in every dimension.
    codec
        ``lz4`` for what is read in bulk, ``zstd`` for what is read in small pieces and shall be small.
    """
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    compressors = [BloscCodec(cname=codec, clevel=5 if codec == "lz4" else 3, shuffle="bitshuffle"), Crc32cCodec()]
    chunks = tuple(map(max, chunks, (1,) * len(chunks)))
    return zarr.create_array(folder / name, shape=shape, dtype=dtype, chunks=chunks, shards=shards, compressors=compressors)
