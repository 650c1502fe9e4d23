"""Open a lake and read from it. Uncommitted blocks are absent: they are never read as fill values."""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import neuronlake.store.layout as layout
import neuronlake.store.tables as tables
from neuronlake.store.commits import Commit, committed_blocks, read_commits
from neuronlake.store.create import read_spec
from neuronlake.store.errors import DamageError, InputError
from neuronlake.store.files import read_checked
from neuronlake.store.objects import LakeName, LakePath, ObjectPath, lake_path
from neuronlake.store.parallel import map_ordered, usable_cpus
from neuronlake.store.plan_record import PlanRecord, read_plan_record
from neuronlake.store.reader import Cache, Fetched, ShardReader
from neuronlake.store.scan import Tile, scan
from neuronlake.store.selection import grouped, normalise_neurons, normalise_rows

if TYPE_CHECKING:
    import dask.array
    import xarray

    from neuronlake.store.index import LakeIndex
    from neuronlake.store.label_sets import LabelSet
    from neuronlake.store.views import LayerArray

_Result = TypeVar("_Result")
_TASKS_PER_THREAD = 4
_REMEMBERED = 128  # blocks: 60 MB at 8,192 rows


def open_lake(path: LakeName) -> "Lake":
    """Open a lake for reading.

    The committed blocks are listed once, here: blocks that a running extraction commits later are seen by the next
    `open_lake`.

    Raises
    ------
    InputError
        When there is no lake, or its plan is not finished.
    DamageError
        When its records do not match their checksums.
    """
    root = lake_path(path)
    spec = read_spec(root)
    plan = read_plan_record(root)
    if plan is None:
        raise InputError(f"{root}: its plan is not finished; run the command that began it again")
    if plan.fingerprint != spec.fingerprint:
        raise DamageError(f"{root}: {layout.PLAN_RECORD} and {layout.ROOT_METADATA} belong to different lakes")
    return Lake(root, spec.without(plan.dropped), plan, committed_blocks(root))


class Lake:
    """A lake opened for reading, at one of its sites. Make one with `open_lake`: it is at the first site.

    Methods that take a `site` read that one; None is the site that the lake is at.
    """

    def __init__(self, root: LakePath, spec: Any, plan: PlanRecord, blocks: tuple[int, ...], site: str | None = None):
        self.path = root
        self.site = str(spec.sites[0]) if site is None else site
        """Where in the model `neurons` and everything that is read are from, such as ``mlp.post``."""
        self.spec = spec
        self.plan = plan
        self.blocks = blocks
        """Committed blocks, ascending."""
        self.sites: tuple[str, ...] = tuple(spec.sites)
        """Sites that are stored."""
        self.layers: tuple[int, ...] = tuple(spec.layers)
        """Layers that are stored."""
        self.neurons = int(spec.width(self.site))
        """Neurons (or other units) per layer of the site."""
        self.block_rows = int(spec.block_rows)
        """Rows of a block."""
        self.chunk_neurons = int(spec.chunk_neurons)
        """Neurons of an inner chunk."""
        self.encoding = str(spec.encoding)
        """Name of the encoding."""
        self.fingerprint = str(spec.fingerprint)
        """SHA-256 of everything that decides the values: model, corpus, tokenizer, settings, format."""
        self.reader = ShardReader(root, spec, self.site)
        self.texts: Cache[Any] = Cache(_REMEMBERED)
        """Token and sentence tables of blocks that were shown lately, for whoever shows tokens in context."""
        self._index: LakeIndex | None = None
        self._others: dict[str, Lake] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        from neuronlake.store.lake_summary import lake_text

        return lake_text(self)

    def _repr_html_(self) -> str:
        from neuronlake.store.lake_summary import lake_html

        return lake_html(self)

    def __reduce__(self) -> tuple[Any, ...]:
        # What a worker in another process needs; it opens the files itself.
        return Lake, (self.path.absolute(), self.spec, self.plan, self.blocks, self.site)

    @property
    def complete(self) -> bool:
        """Whether every block of the plan is committed."""
        return len(self.blocks) == self.plan.blocks

    @property
    def label_columns(self) -> tuple[str, ...]:
        """Columns that `tokens(labels=…)` takes, those added later included."""
        added = (column for labels in self.label_sets for column in labels.columns)
        return (*self.plan.label_columns, *added, "form", *tables.SENTENCE_LABELS)

    @cached_property
    def label_sets(self) -> "tuple[LabelSet, ...]":
        """Labels added to the plan later, sorted by name; listed once, when they are first asked for.

        Raises
        ------
        DamageError
            When the record of one is damaged, or is of another plan.
        """
        from neuronlake.store.label_sets import read_label_sets

        return read_label_sets(self.path, self.plan)

    @cached_property
    def commits(self) -> tuple[Commit, ...]:
        """Commit records of the committed blocks, without the files of sites that were dropped since."""
        return tuple(commit.without(self.plan.dropped) for commit in read_commits(self.path, self.blocks))

    def at(self, site: str | None) -> "Lake":
        """Return the same lake at another site.

        Raises
        ------
        InputError
            When that site is not stored.
        """
        if site in (None, self.site):
            return self
        if site not in self.sites:
            raise InputError(f"no site {site!r} in {self.path}: it has {', '.join(self.sites)}")
        with self._lock:
            if site not in self._others:
                self._others[site] = Lake(self.path, self.spec, self.plan, self.blocks, site)
            return self._others[site]

    def index(self) -> "LakeIndex":
        """Return what the lake's index knows of the site; opened once."""
        from neuronlake.store.index import LakeIndex

        with self._lock:
            if self._index is None:
                self._index = LakeIndex(self.path, self.site, self.blocks)
            return self._index

    # ---- activations ----------------------------------------------------------------------------------------------

    def read(
        self,
        *,
        layer: int,
        rows: slice | int | Sequence[int] | NDArray[Any] | None = None,
        neurons: slice | int | Sequence[int] | NDArray[Any] | None = None,
        site: str | None = None,
    ) -> NDArray[np.float32]:
        """Read any rows × neurons of one layer, decoded.

        Parameters
        ----------
        layer, site
            Which array.
        rows
            Global row numbers, in any order; None reads all rows of the plan.
        neurons
            Neuron indices, in any order; None reads all.

        Returns
        -------
        float32 (rows, neurons)

        Raises
        ------
        InputError
            When a layer, row or neuron does not exist, or a row's block is not committed.
        DamageError
            When a chunk is damaged.
        """
        reader = self._reader(site, layer)
        row_index = normalise_rows(rows, self.plan.blocks * self.block_rows)
        neuron_index = normalise_neurons(neurons, reader.neurons)
        out = np.empty((len(row_index), len(neuron_index)), dtype=np.float32)
        rows_of = grouped(row_index, self.block_rows)
        neurons_of = grouped(neuron_index, self.chunk_neurons)
        for block in rows_of:
            self._check_block(block)

        def read_chunks(where: Sequence[tuple[int, int]], fetched: Fetched | None = None) -> None:
            for block, chunk in where:
                (in_rows, out_rows), (in_columns, out_columns) = rows_of[block], neurons_of[chunk]
                with reader.shard(layer, block, fetched) as shard:
                    shard.gather(chunk, in_rows, in_columns, out, out_rows, out_columns)

        if isinstance(self.path, ObjectPath):
            each = [[(block, chunk) for chunk in neurons_of] for block in rows_of]
            chunks = list(neurons_of)
            begun = reader.ahead(each, lambda where: reader.fetch(layer, where[0][0], chunks), chunks=len(chunks))
            for _ in map_ordered(lambda item: read_chunks(*item), begun):
                pass
            return out

        pieces = [(block, chunk) for block in rows_of for chunk in neurons_of]
        # handing over a task costs as much as small chunks
        size = -(-len(pieces) // (_TASKS_PER_THREAD * usable_cpus())) or 1
        tasks = [pieces[first : first + size] for first in range(0, len(pieces), size)]
        for _ in map_ordered(read_chunks, tasks, threads=None if len(tasks) > 1 else 1):
            pass
        return out

    def read_block(
        self,
        *,
        layer: int,
        block: int,
        neurons: Sequence[int] | NDArray[Any] | None = None,
        site: str | None = None,
        rows: NDArray[np.int64] | None = None,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Read one committed block of a layer: float32 (block rows, neurons), padding rows are zero.

        Of whole layers (`neurons` None): only `rows`, if given; `out`, if given, is overwritten and returned.
        """
        reader = self._reader(site, layer, block)
        if neurons is not None:
            every = slice(block * self.block_rows, (block + 1) * self.block_rows)
            return self.read(site=site, layer=layer, rows=every, neurons=neurons)
        shape = (self.block_rows if rows is None else len(rows), reader.neurons)
        values = np.empty(shape, dtype=np.float32) if out is None else out
        with reader.shard(layer, block, reader.fetch(layer, block, range(reader.chunks))) as shard:
            shard.unpack(range(reader.chunks), values, rows=rows)
        return values

    def read_codes(
        self,
        *,
        layer: int,
        block: int,
        chunk: int,
        out: NDArray[Any] | None = None,
        site: str | None = None,
    ) -> NDArray[Any]:
        """Read the bit patterns of one inner chunk's values: neurons ``[chunk·c, chunk·c + width)`` of a block.

        Parameters
        ----------
        out : uint16 or float32 (block rows, c), C order, optional
            Decoded into and returned (its first `width` columns), to spare an allocation per chunk.

        Returns
        -------
        uint16 bit patterns (of float16, for `int8a` too, or bfloat16) or float32, (block rows, width); width = c or less
        at the layer's edge
        """
        reader = self._reader(site, layer, block)
        if out is None:
            out = np.empty(reader.chunk_shape, dtype=reader.encoding.stored)
        with reader.shard(layer, block, reader.fetch(layer, block, [chunk])) as shard:
            shard.patterns(chunk, out)
        return out[:, : reader.neurons - chunk * self.chunk_neurons]

    def read_chunks(
        self,
        *,
        layer: int,
        block: int,
        chunks: range,
        rows: int | None = None,
        out: NDArray[Any],
        site: str | None = None,
    ) -> Generator[NDArray[Any]]:
        """Read neighbouring inner chunks one after the other, each as `read_codes` does, into the same array.

        Parameters
        ----------
        rows
            Only the first so many rows are wanted: what the others hold is undefined. None means all.
        out
            As for `read_codes`; int8 for the codes of a quantised encoding, whose scales `chunk_scales` has.
        """
        reader = self._reader(site, layer, block)
        return self._read_chunks(reader, layer, block, chunks, rows, out, reader.fetch(layer, block, chunks))

    def _read_chunks(
        self,
        reader: ShardReader,
        layer: int,
        block: int,
        chunks: range,
        rows: int | None,
        out: NDArray[Any],
        fetched: Fetched | None,
    ) -> Generator[NDArray[Any]]:
        with reader.shard(layer, block, fetched) as shard:
            for chunk in chunks:
                if out.dtype == reader.encoding.codes:
                    shard.codes(chunk, out)
                else:
                    shard.patterns(chunk, out, rows=rows)
                yield out[:, : reader.neurons - chunk * self.chunk_neurons]

    def chunk_scales(self, *, layer: int, block: int, chunk: int, site: str | None = None) -> NDArray[np.float32] | None:
        """Return unit and knee of the codes of an inner chunk, float32 (c, 2); None where the encoding has none."""
        reader = self._reader(site, layer, block)
        return reader.scales(layer, block, chunk) if reader.encoding.quantised else None

    def chunk_bytes(self, *, layer: int, block: int, neuron: int, site: str | None = None) -> int:
        """Size on disk of the inner chunk that holds a neuron's values in a block, in bytes."""
        reader = self._reader(site, layer, block)
        with reader.shard(layer, block) as shard:
            return shard.chunk_bytes(int(normalise_neurons(neuron, reader.neurons)[0]) // self.chunk_neurons)

    def scan(
        self,
        kernel: Callable[[Tile], _Result],
        *,
        layers: Iterable[int] | None = None,
        blocks: Sequence[int] | None = None,
        values: str = "float32",
        threads: int | None = None,
        site: str | None = None,
    ) -> Iterator[_Result]:
        """Decode every committed value once and yield what `kernel` makes of each tile.

        Reading ahead, decoding and the kernel run on all cores, in buffers that are reused; memory does not grow with the
        lake. Results come in the order of layers, blocks and neurons, and nothing runs until the first is asked for.

        Parameters
        ----------
        kernel
            Called with a `Tile`, from several threads at once. It should release the GIL (NumPy and ``nogil`` numba
            functions do), and copy what it keeps of ``tile.values``.
        layers, blocks
            All stored layers, all committed blocks by default.
        values
            ``"float32"``; ``"stored"`` for bit patterns (uint16 of float16 or bfloat16; float32 for that encoding);
            ``"codes"`` for what a chunk holds on disk, int8 with ``tile.scales`` for `int8a`: to count, codes are enough.
        threads
            One per core by default.

        Raises
        ------
        InputError
            When a layer or block is not there.
        DamageError
            When a chunk is damaged.

        Examples
        --------
        The largest activation of every neuron of layer 3:

        >>> tiles = lake.scan(lambda tile: (tile.first_neuron, tile.values.max(axis=0)), layers=[3])  # doctest: +SKIP
        """
        chosen, some = self._chosen_layers(layers), self._chosen(blocks)
        return scan(self.at(site), kernel, layers=chosen, blocks=some, values=values, threads=threads)

    def array(self, *, layer: int, site: str | None = None) -> "LayerArray":
        """Return a lazily sliced NumPy-like view (rows, neurons) of one layer."""
        from neuronlake.store.views import LayerArray

        self._reader(site, layer)
        return LayerArray(self.at(site), layer)

    def dask(self, *, layer: int, site: str | None = None) -> "dask.array.Array":
        """Return a Dask array, float32 (committed rows, neurons), one chunk per block."""
        from neuronlake.store.views import dask_layer

        self._reader(site, layer)
        return dask_layer(self.at(site), layer)

    def xarray(
        self,
        *,
        layers: Iterable[int] | None = None,
        labels: Sequence[str] = (),
        site: str | None = None,
    ) -> "xarray.DataArray":
        """Return a lazy DataArray, float32 (layer, row, neuron), with the tokens' labels as coordinates of `row`."""
        from neuronlake.store.views import xarray_layers

        return xarray_layers(self.at(site), self._chosen_layers(layers), tuple(labels))

    # ---- tokens ---------------------------------------------------------------------------------------------------

    def tokens(self, labels: Sequence[str] = (), blocks: Sequence[int] | None = None) -> pa.Table:
        """Return the token table of the committed blocks (or of some of them), one line per row, padding included.

        Columns: row, document, sentence, position, token_id, word, subword, is_last_subword, char_start, char_end, flags
        and the labels asked for (null where a row has no single word, or its word no such label).

        Raises
        ------
        InputError
            When a label column is unknown; the known ones are listed.
        """
        from neuronlake.store.tokens import token_table

        return token_table(self, tuple(labels), self._chosen(blocks))

    def words(self, columns: Sequence[str] | None = None, blocks: Sequence[int] | None = None) -> pa.Table:
        """Return the words of the committed blocks: word, sentence, index, form, char_start, char_end and labels."""
        from neuronlake.store.tokens import word_table

        return word_table(self, None if columns is None else tuple(columns), self._chosen(blocks))

    def sentences(self, blocks: Sequence[int] | None = None) -> pa.Table:
        """Return the sentences of the committed blocks: sentence, document, document_name, name, source, text, metadata."""
        return pa.concat_tables(
            [tables.SENTENCE_SCHEMA.empty_table()] + [self.read_table("sentences", block) for block in self._chosen(blocks)]
        )

    def read_table(self, table: str, block: int, columns: list[str] | None = None) -> pa.Table:
        """Read one Parquet table of a block after comparing the file with its checksum."""
        path = layout.table_path(table, block)
        try:
            record = self.plan.files[path]
        except KeyError:
            raise InputError(f"block {block} is not in the plan: it has blocks 0 to {self.plan.blocks - 1}") from None
        return tables.from_parquet(read_checked(self.path, record), columns)

    # ---- checks ---------------------------------------------------------------------------------------------------

    def _chosen(self, blocks: Sequence[int] | None) -> Sequence[int]:
        if blocks is None:
            return self.blocks
        for block in blocks:
            self._check_block(block)
        return blocks

    def _chosen_layers(self, layers: Iterable[int] | None) -> tuple[int, ...]:
        chosen = self.layers if layers is None else tuple(layers)
        for layer in chosen:
            self._reader(None, layer)
        return chosen

    def _reader(self, site: str | None, layer: int, block: int | None = None) -> ShardReader:
        """Check what is asked for, and return the reader of its site."""
        if layer not in self.layers:
            raise InputError(f"no layer {layer} in {self.path}: it has layers {self.layers[0]} to {self.layers[-1]}")
        if block is not None:
            self._check_block(block)
        return self.at(site).reader

    def _check_block(self, block: int) -> None:
        if block in self.blocks:
            return
        if not 0 <= block < self.plan.blocks:
            raise InputError(f"no block {block} in {self.path}: it has blocks 0 to {self.plan.blocks - 1}")
        raise InputError(
            f"rows {block * self.block_rows} to {(block + 1) * self.block_rows - 1} (block {block}) of {self.path} are not "
            "extracted yet: run the command that began the lake again"
        )
