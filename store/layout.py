"""Names, sizes and shapes inside a lake: pure decisions, no I/O."""

from dataclasses import dataclass

FORMAT_VERSION = 1
DEFAULT_SITE = "mlp.post"

CHUNK_BYTES = 1 << 20  # 1 MiB decoded: zarr costs 0.2–0.5 ms a chunk, whatever its size
BLOCK_BYTES = 2 << 30  # 2 GiB of buffer for a block of all layers
# Larger blocks would only make a commit rarer: at 8,192 rows a 135M-parameter model commits every 20 s on two cores.
MAX_BLOCK_ROWS = 8192
# The index has a fixed size per neuron and block: at 256 rows it would be larger than the activations, here it is an eighth.
MIN_BLOCK_ROWS = 2048


def default_block_rows(*, layers: int, neurons: int, itemsize: int) -> int:
    """Largest power of two whose block of all layers fits in BLOCK_BYTES, within the two limits above.

    `neurons` are those of all sites of a layer together.
    """
    rows = MAX_BLOCK_ROWS
    while rows > MIN_BLOCK_ROWS and rows * layers * neurons * itemsize > BLOCK_BYTES:
        rows //= 2
    return rows


def default_chunk_neurons(*, rows: int, neurons: int, itemsize: int) -> int:
    """Largest power of two of neurons whose chunk of all the block's rows fits in CHUNK_BYTES (at least 1)."""
    width = 1
    while width < neurons and rows * width * 2 * itemsize <= CHUNK_BYTES:
        width *= 2
    return width


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Shape of a site's arrays: every layer has the same."""

    blocks: int
    block_rows: int
    neurons: int
    chunk_neurons: int
    """Neurons of an inner chunk; the last one of a layer may reach past `neurons` (its surplus columns are zero)."""

    @property
    def chunks(self) -> int:
        """Inner chunks of a layer in one block."""
        return -(-self.neurons // self.chunk_neurons)

    @property
    def tiles_shape(self) -> tuple[int, int, int]:
        """A layer of a block in memory, in the order of its chunks: (chunks, block rows, chunk neurons)."""
        return self.chunks, self.block_rows, self.chunk_neurons

    @property
    def rows(self) -> int:
        """Rows of the whole lake, padding and uncommitted blocks included."""
        return self.blocks * self.block_rows


def array_path(site: str, layer: int) -> str:
    """Folder of one layer's Zarr array."""
    return f"activations/{site}/{layer}"


def shard_path(site: str, layer: int, block: int) -> str:
    """File of one layer's values in one block."""
    return f"{array_path(site, layer)}/c.{block}.0"


def scales_path(site: str, block: int) -> str:
    """File of a block's scales, all layers of a site."""
    return f"scales/{site}/c.0.{block}.0.0"


def table_path(table: str, block: int) -> str:
    """File of a plan table (`plan`, `words` or `sentences`) for one block."""
    return f"{table}/block-{block:06d}.parquet"


def commit_path(block: int) -> str:
    """Commit record of a block: the block exists when this file does."""
    return f"commits/block-{block:06d}.json"


PLAN_RECORD = "plan/plan.json"
ROOT_METADATA = "zarr.json"
