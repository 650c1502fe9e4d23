"""Write a lake from activations that somebody already has: another model's, SAE features, EEG channels.

`write_lake` does all of it. Whoever computes activations block by block, and has nothing to slice, takes the steps below it:
a spec, `create_lake`, the plan's tables, `publish_plan`, and a `BlockWriter` whose buffers are filled in any order.

Examples
--------
>>> import tempfile
>>> from pathlib import Path
>>> import numpy as np
>>> from neuronlake.store import BlockWriter, LakeSpec, create_lake, open_lake
>>> from neuronlake.store.compose import write_tables
>>> from neuronlake.store.compose_plan import ComposedPlan
>>> from neuronlake.store.compose_tokens import token_columns
>>> from neuronlake.store.plan_record import publish_plan
>>> tokens = {"form": ["to", "be", "or", "not", "to", "be"], "sentence": [0, 0, 1, 1, 1, 1]}
>>> spec = LakeSpec(
...     model={"name": "mine", "sha256": "of the weights", "architecture": "none"},
...     capture={"dtype": "float32"},
...     plan={"corpus": {"kind": "mine", "files": [{"name": "six words"}]}, "context": "sentence"},
...     sites=("mlp.post",), layers=(0, 1), neurons=3, block_rows=4, chunk_neurons=2, encoding="float32",
... )
>>> folder = tempfile.TemporaryDirectory()
>>> root = Path(folder.name) / "my.lake"
>>> plan = ComposedPlan(token_columns(tokens, rows=6), block_rows=spec.block_rows, name="six words")
>>> _ = publish_plan(root, spec, write_tables(root, spec, plan, create_lake(root, spec)))
>>> with BlockWriter(root, spec) as writer:
...     for block in range(plan.blocks):
...         first, last = plan.bounds(block)  # sentences are not cut: two rows of block 0 and four of block 1 are used
...         buffer = writer.buffer(last - first)
...         for layer in spec.layers:
...             computed = np.full((last - first, spec.neurons), 10 * layer + block, dtype=np.float32)
...             rows = np.arange(last - first)
...             buffer.put("mlp.post", layer, computed, rows, rows)
...         writer.submit(block, last - first, buffer, {"backend": "mine"})
>>> open_lake(root).read(layer=1, rows=[0, 1, 4], neurons=[0]).ravel().tolist()
[10.0, 10.0, 11.0]
>>> folder.cleanup()
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

import neuronlake.store.layout as layout
import neuronlake.store.tables as tables
from neuronlake.store.commits import committed_blocks
from neuronlake.store.compose_plan import ComposedPlan
from neuronlake.store.compose_tokens import TokenColumns, token_columns
from neuronlake.store.create import create_lake, discard_unfinished, read_spec, unfinished
from neuronlake.store.encodings import get_encoding
from neuronlake.store.errors import ActivationError, DamageError, InputError
from neuronlake.store.files import FileRecord, write_file
from neuronlake.store.index import complete_index
from neuronlake.store.lake import Lake, open_lake
from neuronlake.store.lock import writing
from neuronlake.store.objects import LakeName, LakePath, lake_path
from neuronlake.store.plan_record import PlanRecord, adopt_plan, plan_beside, publish_plan, read_plan_record
from neuronlake.store.spec import LakeSpec
from neuronlake.store.writer import BlockWriter


@runtime_checkable
class RowSource(Protocol):
    """Anything with a shape that gives rows when sliced: a NumPy array or memmap, an h5py dataset, a torch tensor, …"""

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, neurons), or (layers, rows, neurons) where a function says so."""
        ...

    def __getitem__(self, key: Any, /) -> Any:
        """Return rows ``[first:last]`` as something NumPy can take."""
        ...


@dataclass(frozen=True)
class LayerOf:
    """One layer of a (layers, rows, neurons) array."""

    array: Any
    index: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, neurons)."""
        return tuple(self.array.shape[1:])

    def __getitem__(self, rows: slice, /) -> Any:
        """Return rows ``[first:last]``."""
        return self.array[self.index, rows]


def write_lake(
    path: LakeName,
    activations: Any,
    *,
    tokens: Any = None,
    name: str,
    encoding: str = "float16",
    site: str = layout.DEFAULT_SITE,
    block_rows: int | None = None,
    identity: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Lake:
    """Write a lake from activations, or finish one that an earlier call began.

    One row is one token. The source is read block by block, in order, each layer's rows of a block in one slice, so that
    no more than a block is in memory. Blocks with a commit record are left alone: a call that was interrupted goes on where
    it stopped when repeated, and ends with the same bytes. The used rows of the lake (``flags`` without the padding bit) are
    the rows of the source, in its order.

    Parameters
    ----------
    path
        Folder of the lake.
    activations : mapping of layer -> (rows, neurons), or (layers, rows, neurons), or (rows, neurons)
        Anything with ``shape`` that is sliced by rows: NumPy array, memmap, h5py dataset, zarr array, torch tensor. Real
        numbers of any dtype; they become float32 (nearest value) before they are encoded.
    tokens : pyarrow.Table, pandas.DataFrame or mapping of columns, one line per row, optional
        ``form`` (text of the word; by default the token id, or else the row number), ``token_id`` (default 0), ``document``
        and ``sentence`` (ids; consecutive rows with the same id belong together; by default one document, cut into sentences
        of 512 rows), ``word`` (id; consecutive rows with the same id are one word, whose other columns must agree; null: a
        special token outside any word; by default every row is a word). Every other column is a label: strings,
        booleans (``true``/``false``), numbers and dates become text; null, NaN and ``""`` mean that the word has no
        such label. A sentence longer than a block is split into windows of whole words, each a sentence of its own
        called ``NAME [FIRST:LAST]`` after its rows in the whole one.
    name
        What the activations are of; kept as the model's name and, without a document column, as the document's.
    encoding, site
        How and where values are stored.
    block_rows
        Rows of a block, a power of two; by default what fits in 2 GiB of buffer, at most 8,192.
    identity
        What the source is, as a JSON object (names and SHA-256 of its files …). By default the SHA-256 of the first and last
        block of rows of every layer: a source that differs only in between is then not recognised as another one.
    progress
        Called after each block with the rows done so far and all rows.

    Returns
    -------
    The lake, open for reading.

    Raises
    ------
    InputError
        When shapes, columns or settings do not fit (nothing is left behind then), the lake was made from another source, or
        somebody else is writing to it.
    DamageError
        When the lake's records are damaged.
    ActivationError
        When a value is not finite or beyond the encoding's range; layer, neuron and row are named. Blocks before stay; in
        the first block, nothing is left behind.
    StorageError
        When the file system refuses. Committed blocks stay valid.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from neuronlake.store import write_lake
    >>> eeg = np.linspace(-1, 1, 1000 * 8, dtype=np.float32).reshape(1000, 8)  # (samples, channels)
    >>> phase = np.where(np.arange(1000) % 200 < 100, "rest", "task")
    >>> folder = tempfile.TemporaryDirectory()
    >>> lake = write_lake(f"{folder.name}/eeg.lake", eeg, tokens={"phase": phase}, name="EEG", encoding="float32")
    >>> bool(np.array_equal(lake.read(layer=0, rows=slice(0, 1000)), eeg))
    True
    >>> lake.tokens(labels=["phase"]).column("phase")[150].as_py()
    'task'
    >>> folder.cleanup()
    """
    layers = _layers(activations)
    rows, neurons = _common_shape(layers)
    columns = token_columns(tokens, rows)
    kind = get_encoding(encoding)
    block_rows = block_rows or min(
        layout.default_block_rows(layers=len(layers), neurons=neurons, itemsize=kind.itemsize),
        1 << (rows - 1).bit_length(),  # a block larger than the source would be padding
    )
    source = _Source(layers=layers, rows=rows, neurons=neurons)
    dtypes = source.dtypes()
    spec = _spec(source, dtypes, columns, name, encoding, site, block_rows, identity)
    plan = ComposedPlan(columns, block_rows=block_rows, name=name)
    root = lake_path(path)
    with writing(root):
        root_record = create_lake(root, spec)
        spec = read_spec(root)  # equal, but for the name that the source had when the lake was begun
        _ensure_plan(root, spec, plan, root_record)
        try:
            _write_blocks(root, spec, plan, source, progress)
        except ActivationError:
            if not committed_blocks(root):  # nothing was stored: the lake would only be in the way of the next attempt
                (root / layout.PLAN_RECORD).unlink()
                discard_unfinished(root)
            raise
        complete_index(open_lake(root))
    return open_lake(root)


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Layers of one shape."""

    layers: Mapping[int, RowSource]
    rows: int
    neurons: int

    def read(self, layer: int, first: int, last: int) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Return rows ``[first, last)`` of a layer as float32 in C order, and as they came."""
        piece = self.layers[layer][first:last]
        if hasattr(piece, "detach"):  # a torch tensor: bfloat16 has no NumPy type, float32 holds it exactly
            piece = piece.detach().cpu()
            piece = piece.float() if str(piece.dtype) == "torch.bfloat16" else piece
        given = np.asarray(piece)
        if given.shape != (last - first, self.neurons):
            raise InputError(
                f"layer {layer}: rows {first} to {last - 1} came as {given.shape}, expected {(last - first, self.neurons)}"
            )
        if given.dtype.kind not in "fiub" and given.dtype.name != "bfloat16":
            raise InputError(f"layer {layer} holds {given.dtype}, expected real numbers; convert it before")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused by name
            return np.ascontiguousarray(given, dtype=np.float32), given

    def dtypes(self) -> str:
        """Return the dtype of the values, found by reading one row of every layer."""
        return ", ".join(sorted({self.read(layer, 0, 1)[1].dtype.name for layer in self.layers}))

    def sample_sha256(self, block_rows: int) -> str:
        """SHA-256 over the first and the last `block_rows` rows of every layer."""
        digest = hashlib.sha256()
        for layer in self.layers:
            for first in sorted({0, max(0, self.rows - block_rows)}):
                digest.update(f"layer {layer}, row {first}\n".encode())
                digest.update(self.read(layer, first, min(first + block_rows, self.rows))[0].data)
        return digest.hexdigest()


def _layers(activations: Any) -> dict[int, RowSource]:
    if isinstance(activations, Mapping):
        for layer in activations:
            if isinstance(layer, bool) or not isinstance(layer, int | np.integer) or layer < 0:
                raise InputError(f"layers are whole numbers from 0, got {layer!r}")
        return {int(layer): activations[layer] for layer in sorted(activations)}
    shape = getattr(activations, "shape", None)
    if shape is None or len(shape) not in (2, 3):
        got = type(activations).__name__ if shape is None else f"shape {tuple(shape)}"
        raise InputError(f"activations are (rows, neurons), (layers, rows, neurons) or a mapping of layers, got {got}")
    return {0: activations} if len(shape) == 2 else {layer: LayerOf(activations, layer) for layer in range(shape[0])}


def _common_shape(layers: Mapping[int, RowSource]) -> tuple[int, int]:
    if not layers:
        raise InputError("no activations: there is no layer in them")
    expected: tuple[int, ...] | None = None
    for layer, array in layers.items():
        shape = tuple(int(length) for length in getattr(array, "shape", ()))
        if len(shape) != 2 or 0 in shape:
            raise InputError(f"layer {layer} has shape {shape}, expected (rows, neurons) with at least one of each")
        expected = expected or shape
        if shape != expected:
            first = next(iter(layers))
            raise InputError(
                f"layer {layer} has {shape[0]} rows × {shape[1]} neurons, layer {first} has {expected[0]} × {expected[1]}: "
                "all layers of a lake have the same rows and neurons; write the others into a lake of their own"
            )
    assert expected is not None
    return expected[0], expected[1]


def _spec(
    source: _Source,
    dtypes: str,
    columns: TokenColumns,
    name: str,
    encoding: str,
    site: str,
    block_rows: int,
    identity: Mapping[str, Any] | None,
) -> LakeSpec:
    if not site or not all(part.isidentifier() for part in site.split(".")):
        raise InputError(f"site names are words joined by dots, as in {layout.DEFAULT_SITE!r}; got {site!r}")
    if block_rows < 1:
        raise InputError(f"block_rows must be at least 1, got {block_rows}")
    if identity is None:
        identity = {"sha256": source.sample_sha256(block_rows), "covers": "first and last block of every layer"}
    known = json.dumps(dict(identity), sort_keys=True)
    return LakeSpec(
        model={"name": name, "sha256": hashlib.sha256(known.encode()).hexdigest(), "architecture": "imported"},
        capture={"dtype": dtypes},
        plan={
            "corpus": {
                "kind": "activations",
                "files": [{"name": name}],
                "rows": source.rows,
                "source": dict(identity),
                "tokens_sha256": columns.sha256(),
            },
            "context": "sentence",
        },
        sites=(site,),
        layers=tuple(source.layers),
        neurons=source.neurons,
        block_rows=block_rows,
        chunk_neurons=layout.default_chunk_neurons(
            rows=block_rows, neurons=source.neurons, itemsize=get_encoding(encoding).itemsize
        ),
        encoding=encoding,
    )


def _ensure_plan(root: LakePath, spec: LakeSpec, plan: ComposedPlan, root_record: FileRecord) -> None:
    """Publish the plan, unless that was done before; after a repair only if it is the plan of the committed blocks."""
    found = read_plan_record(root)
    if found is None and unfinished(root):
        publish_plan(root, spec, write_tables(root, spec, plan, root_record))
    elif found is None:
        with plan_beside(root) as folder:
            adopt_plan(root, folder, spec, write_tables(folder, spec, plan, root_record))
    elif found.fingerprint != spec.fingerprint:
        raise DamageError(
            f"{root}: {layout.PLAN_RECORD} and {layout.ROOT_METADATA} belong to different lakes: "
            f"run `neuronlake verify {root} --repair`"
        )


def write_tables(folder: LakePath, spec: LakeSpec, plan: ComposedPlan, root_record: FileRecord) -> PlanRecord:
    """Write the tables of every block into a folder; return the record that `publish_plan` takes."""
    files = {root_record.path: root_record}
    for block in range(plan.blocks):
        for table_name, table in plan.tables(block).items():
            path = layout.table_path(table_name, block)
            files[path] = write_file(folder, path, [tables.to_parquet(table)])
    return PlanRecord(
        fingerprint=spec.fingerprint,
        blocks=plan.blocks,
        label_columns=plan.label_columns,
        counts=plan.counts,
        special_tokens=plan.special_tokens,
        files=files,
    )


def _write_blocks(
    root: LakePath, spec: LakeSpec, plan: ComposedPlan, source: _Source, progress: Callable[[int, int], None]
) -> None:
    done = set(committed_blocks(root))
    site = spec.sites[0]
    # without overlap there is one buffer: the source is read by the thread that would have to wait anyway
    with BlockWriter(root, spec, overlap_encoding=False) as writer:
        for block in _todo(plan, done):
            first, last = plan.bounds(block)
            buffer, rows = writer.buffer(last - first), np.arange(last - first)
            for layer in spec.layers:
                values, given = source.read(layer, first, last)
                try:
                    buffer.put(site, layer, values, rows, rows)
                except ActivationError as error:
                    raise _refusal(error, spec, plan, layer, first, values, given) from error
            writer.submit(block, last - first, buffer, {"backend": "import"})
            progress(last, source.rows)


def _todo(plan: ComposedPlan, done: set[int]) -> Iterator[int]:
    return (block for block in range(plan.blocks) if block not in done)


def _refusal(
    error: ActivationError,
    spec: LakeSpec,
    plan: ComposedPlan,
    layer: int,
    first: int,
    values: NDArray[np.float32],
    given: NDArray[Any],
) -> ActivationError:
    """Name layer, neuron and row of a value that cannot be stored, and the token."""
    row = values[error.row]
    finite = np.isfinite(row)
    neuron = int(np.argmax(np.abs(row)) if finite.all() else np.argmin(finite))
    value = float(given[error.row, neuron])
    where = f"L{layer}.N{neuron} is {value:g} in row {first + error.row} of the source ({plan.describe(first + error.row)})"
    if np.isfinite(value):
        largest = get_encoding(spec.encoding).largest
        fix = f"beyond {spec.encoding}'s range of ±{largest:g}: choose encoding bfloat16 or float32, and a new folder"
        return ActivationError(f"{where}, {fix}", row=error.row)
    return ActivationError(f"{where}: activations must be finite; correct the source and use a new folder", row=error.row)
