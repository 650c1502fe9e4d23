"""What the analysis needs of a lake, as a protocol: `neuronlake.store.Lake` fits, and so does anything held in memory."""

from collections.abc import Generator, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from neuronlake.store.errors import InputError

VERSIONED = ("neuronlake", "numpy", "numba", "scipy", "scikit-learn", "dask", "xarray", "duckdb")
"""Packages that decide what a computation gives."""


class LakeSource(Protocol):
    """The reading side of a lake at one of its sites. Methods must be safe to call from several threads."""

    @property
    def site(self) -> str:
        """Where in the model the activations are from."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Stored layers."""

    @property
    def neurons(self) -> int:
        """Neurons (or other units) per layer of the site."""

    @property
    def block_rows(self) -> int:
        """Rows of a block."""

    @property
    def blocks(self) -> Sequence[int]:
        """Committed blocks, ascending."""

    @property
    def chunk_neurons(self) -> int:
        """Neurons of an inner chunk."""

    @property
    def encoding(self) -> str:
        """Name of the encoding; the values it decodes to are what `read_codes` gives."""

    @property
    def fingerprint(self) -> str:
        """Identity of the stored values."""

    @property
    def label_columns(self) -> tuple[str, ...]:
        """Columns that `tokens` takes as labels."""

    def read_codes(self, *, layer: int, block: int, chunk: int, out: NDArray[Any]) -> NDArray[Any]:
        """Decode one inner chunk into `out`: bit patterns of the values, (block rows, chunk neurons), C order."""

    def read_chunks(
        self, *, layer: int, block: int, chunks: range, rows: int | None, out: NDArray[Any]
    ) -> Generator[NDArray[Any]]:
        """Decode neighbouring inner chunks one after the other into `out`, of which only the first `rows` are wanted.

        Where the encoding is quantised and `out` is int8: its codes.
        """

    def chunk_scales(self, *, layer: int, block: int, chunk: int) -> NDArray[np.float32] | None:
        """Unit and knee of the codes of a chunk, (c, 2); None where the encoding is not quantised."""

    def read_block(
        self,
        *,
        layer: int,
        block: int,
        neurons: Sequence[int] | NDArray[Any] | None,
        rows: NDArray[np.int64] | None = None,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Return float32 (block rows, neurons), rows in order; of whole layers some of the rows, in `out`, if given."""

    def tokens(self, labels: Sequence[str] = (), blocks: Sequence[int] | None = None) -> Any:
        """Return the token table (pyarrow) of the committed blocks, one line per row, padding included."""

    def words(self, columns: Sequence[str] | None = None) -> Any:
        """Return the word table (pyarrow) of the committed blocks."""

    def sentences(self, blocks: Sequence[int] | None = None) -> Any:
        """Return the sentence table (pyarrow) of the committed blocks, or of some of them."""


def choose_layers(source: LakeSource, layers: Sequence[int] | None) -> tuple[int, ...]:
    """Return the layers asked for, ascending, or all of them.

    Raises
    ------
    InputError
        When one is not stored, or none is chosen.
    """
    if layers is None:
        return tuple(source.layers)
    for layer in layers:
        if layer not in source.layers:
            raise InputError(f"no layer {layer}: stored are {', '.join(map(str, source.layers))}")
    if not layers:
        raise InputError(f"no layer chosen: stored are {', '.join(map(str, source.layers))}")
    return tuple(sorted(set(layers)))


def versions() -> dict[str, str]:
    """Versions of everything that computes a result, to be recorded with it."""
    return dict(_versions())


@cache  # 10 ms: metadata are parsed as letters are
def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a source tree on the path, not installed
            found[name] = "unknown"
    return found
