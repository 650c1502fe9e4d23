"""What a lake will take before there is one: blocks, files, bytes, memory. Pure decisions, no I/O.

Blocks, files and memory follow from the format and are exact, given how full blocks become. Bytes rest on what was measured
of other activations: how far they compress depends on model and text.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import neuronlake.store.layout as layout
from neuronlake.store.encodings import get_encoding
from neuronlake.store.errors import InputError
from neuronlake.store.index_build import EXTREMES, row_dtype
from neuronlake.store.layout import Geometry
from neuronlake.store.plan_record import TABLES
from neuronlake.store.quantise import PARAMETERS
from neuronlake.store.tag_kernels import SIZE
from neuronlake.store.token_kernels import STRONGEST

SCALE_BYTES = PARAMETERS * 4  # float32 per neuron and block
MOST_TOKENS = 10**15  # 32 million tokens a second for a year: beyond that a number is a slip
MOST_UNITS = 1 << 24  # of a layer; the index counts neurons through all layers in 32 bits
MOST_LAYERS = 10_000


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Sizes that cannot be known without activations, as measured somewhere."""

    source: str
    """Where they were measured, for whoever reads the estimate."""
    code_bytes: Mapping[str, float]
    """Encoding → bytes per value of the shards, scales apart."""
    table_bytes: float
    """Plan, words and sentences, bytes per token."""
    index_share: float
    """Bytes of the index of its arrays' uncompressed bytes."""
    lists_share: float
    """Likewise of the lists per tag."""
    statistics_bytes: float
    """Kept statistics, bytes per neuron and tag."""


BENCHMARKED = Footprint(
    source="SmolLM2-135M, English EWT train: benchmarks/results/encodings.json and queries.json, docs/design/0002-store.md",
    code_bytes=MappingProxyType({"float32": 3.48, "float16": 1.855, "bfloat16": 1.517, "int8a": 0.644}),
    table_bytes=28.0,
    index_share=0.65,
    lists_share=0.57,
    statistics_bytes=383.0,
)


@dataclass(frozen=True, kw_only=True)
class LakeShape:
    """What is stored of every token, and how much is in a block."""

    layers: int
    widths: Mapping[str, int]
    """Units per layer of each site, the first site first."""
    encoding: str
    block_rows: int

    def __post_init__(self) -> None:
        get_encoding(self.encoding)
        check_whole("layers", self.layers, most=MOST_LAYERS)
        if not self.widths:
            raise InputError("an estimate needs at least one site")
        for site, width in self.widths.items():
            check_whole(f"units of {site}", width, most=MOST_UNITS)
        if self.block_rows & (self.block_rows - 1) or not 1 <= self.block_rows <= 1 << 30:
            raise InputError(f"block rows must be a power of two, got {self.block_rows}")

    @classmethod
    def of(cls, *, layers: int, widths: Mapping[str, int], encoding: str, block_rows: int | None = None) -> "LakeShape":
        """Choose the block's size as extraction does, unless it is given."""
        chosen = block_rows or layout.default_block_rows(
            layers=layers, neurons=sum(widths.values()), itemsize=get_encoding(encoding).itemsize
        )
        return cls(layers=layers, widths=widths, encoding=encoding, block_rows=chosen)

    @property
    def values_per_token(self) -> int:
        """Values of all layers and sites."""
        return self.layers * sum(self.widths.values())

    @property
    def chunk_neurons(self) -> int:
        """Units of an inner chunk."""
        first = next(iter(self.widths.values()))
        itemsize = get_encoding(self.encoding).itemsize
        return layout.default_chunk_neurons(rows=self.block_rows, neurons=first, itemsize=itemsize)

    @property
    def buffer_bytes(self) -> int:
        """Memory of one block's buffer: its tiles, and a count of writes per row."""
        itemsize, rows = get_encoding(self.encoding).itemsize, self.block_rows
        geometries = [
            Geometry(blocks=1, block_rows=rows, neurons=width, chunk_neurons=self.chunk_neurons)
            for width in self.widths.values()
        ]
        return self.layers * sum(math.prod(geometry.tiles_shape) * itemsize + rows for geometry in geometries)

    def index_bytes(self, site: str) -> int:
        """Bytes of a block's index at a site before they are compressed."""
        per_neuron = 2 * EXTREMES * (row_dtype(self.block_rows).itemsize + self._value_bytes) + 8  # lists, and a sum
        return self.layers * self.widths[site] * per_neuron + self.block_rows * STRONGEST * (4 + self._value_bytes)

    def lists_bytes(self, site: str) -> int:
        """Bytes of the lists of one tag at a site before they are compressed: rows and values, highest and lowest."""
        return self.layers * self.widths[site] * 2 * SIZE * (4 + self._value_bytes)

    @property
    def _value_bytes(self) -> int:
        return 4 if get_encoding(self.encoding).values == "float32" else 2


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Files and bytes of a lake of so many tokens."""

    tokens: int
    blocks: int
    files: Mapping[str, int] = field(repr=False)
    """Kind → number: ``shards``, ``scales``, ``tables``, ``commits``, ``metadata``; of results, which are few, none."""
    size: Mapping[str, int] = field(repr=False)
    """Kind → bytes: ``shards``, ``scales``, ``tables``, ``index``, ``lists`` and ``statistics`` of one label."""

    @property
    def all_files(self) -> int:
        """All of them."""
        return sum(self.files.values())

    @property
    def all_bytes(self) -> int:
        """All of them."""
        return sum(self.size.values())


def contents(shape: LakeShape, *, tokens: int, filled: float, tags: int, footprint: Footprint) -> Contents:
    """Work out what a lake will hold.

    Parameters
    ----------
    tokens
        Rows in use, special tokens included.
    filled
        Rows in use of a block on average: sequences are not divided, so that some stay empty at each block's end.
    tags
        Of the label for which statistics and lists of top tokens are kept; 0 for none.

    Raises
    ------
    InputError
        When a number makes no sense.
    """
    check_whole("tokens", tokens, most=MOST_TOKENS)
    if not 0 < filled <= shape.block_rows:
        raise InputError(f"blocks of {shape.block_rows} rows cannot hold {filled:g} tokens on average")
    blocks = math.ceil(tokens / filled)
    sites, units = len(shape.widths), shape.values_per_token
    quantised = get_encoding(shape.encoding).quantised
    files = {
        "shards": blocks * sites * shape.layers,
        "scales": blocks * sites if quantised else 0,
        "tables": blocks * len(TABLES),
        "commits": blocks,
        # the root's and the plan's; a group of activations, of scales; per site a group, its arrays, its scales' array
        "metadata": 2 + 1 + sites * (1 + shape.layers) + ((1 + sites) if quantised else 0),
    }
    size = {
        "shards": tokens * units * footprint.code_bytes[shape.encoding],
        "scales": blocks * units * SCALE_BYTES if quantised else 0,
        "tables": tokens * footprint.table_bytes,
        "index": blocks * sum(shape.index_bytes(site) for site in shape.widths) * footprint.index_share,
        "lists": sum(shape.lists_bytes(site) for site in shape.widths) * tags * footprint.lists_share,
        "statistics": units * tags * footprint.statistics_bytes,
    }
    return Contents(tokens=tokens, blocks=blocks, files=files, size={kind: round(count) for kind, count in size.items()})


def check_whole(what: str, value: int, *, most: int) -> None:
    """Raise InputError unless 1 ≤ value ≤ most."""
    if not 1 <= value <= most:
        shown = f"{value:g}" if value > 1 << 40 else str(value)
        raise InputError(f"{what} must be a whole number from 1 to {most:,}, got {shown}")
