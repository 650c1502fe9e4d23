"""Files that results are written to: checked before the work begins, and there whole or not at all."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from neuronlake.store.errors import InputError, StorageError
from neuronlake.store.files import temporary_name


def check_new(path: Path, suffixes: Sequence[str]) -> None:
    """Refuse a file that could not be written, before anything is computed.

    Raises
    ------
    InputError
        When its name ends otherwise, it exists, or there is no folder for it.
    """
    if path.suffix not in suffixes:
        raise InputError(f"--out writes {' or '.join(suffixes)}: expected a name ending so, got {path}")
    if path.exists():
        raise InputError(f"{path} exists: choose another name")
    if not path.absolute().parent.is_dir():
        raise InputError(f"no folder {path.parent} to write {path.name} in")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a path beside to write a file or folder to; it gets its name when the block ends, and is removed if that fails.

    Raises
    ------
    StorageError
        When the file system refuses.
    """
    beside = path.with_name(temporary_name(path.name))
    try:
        yield beside
        beside.rename(path)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"could not write {path}: {error.strerror or error}") from error
    finally:
        if beside.is_dir():
            shutil.rmtree(beside, ignore_errors=True)
        else:
            beside.unlink(missing_ok=True)


def rows_path(path: Path) -> Path:
    """File beside a ``.npy`` that holds the rows of its first axis."""
    return path.with_name(f"{path.stem}.rows.npy")


@contextmanager
def npy_file(path: Path, shape: tuple[int, ...], rows: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
    """Give a float32 array to fill, which becomes a ``.npy`` file; the rows of its first axis are written beside.

    Raises
    ------
    InputError
        When the disk has no room for it, or the file of the rows exists.
    StorageError
        When the file system refuses.
    """
    beside = rows_path(path)
    check_new(beside, [".npy"])
    size, free = 4 * int(np.prod(shape)), shutil.disk_usage(path.absolute().parent).free
    if size > free:
        raise InputError(f"{path} would take {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free: choose fewer tokens")
    with new_file(path) as target, new_file(beside) as rows_target:
        with rows_target.open("wb") as file:
            np.save(file, rows)
        if not size:
            with target.open("wb") as file:  # nothing to map
                np.save(file, np.empty(shape, dtype=np.float32))
            yield np.empty(shape, dtype=np.float32)
            return
        array = np.lib.format.open_memmap(target, mode="w+", dtype=np.float32, shape=shape)
        yield array
        array.flush()


class TableWriter(Protocol):
    """Takes tables of one schema, one after the other."""

    def write_table(self, table: pa.Table) -> None:
        """Write the next lines."""


@contextmanager
def table_writer(path: Path, schema: pa.Schema, about: Mapping[str, Any]) -> Iterator[TableWriter]:
    """Write a table part by part: Parquet, with `about` as JSON in its metadata (key ``neuronlake``), or CSV.

    Raises
    ------
    StorageError
        When the file system refuses.
    """
    import pyarrow.csv
    import pyarrow.parquet

    schema = schema.with_metadata({"neuronlake": json.dumps(dict(about), ensure_ascii=False)})
    with new_file(path) as beside:
        if path.suffix == ".csv":
            with pyarrow.csv.CSVWriter(beside, schema) as writer:
                yield writer
        else:
            with pyarrow.parquet.ParquetWriter(beside, schema, compression="zstd") as writer:
                yield writer
