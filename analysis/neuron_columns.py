"""All values of some neurons as a table, one line per token, block by block."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from neuronlake.analysis.chosen_tokens import Where, eligible_tokens, rows_of_lines
from neuronlake.analysis.neuron import check_neuron, neuron_name
from neuronlake.analysis.outputs import check_new, npy_file, table_writer
from neuronlake.analysis.source import LakeSource, versions
from neuronlake.store.errors import InputError
from neuronlake.store.parallel import map_ordered
from neuronlake.store.tables import PADDING, SPECIAL

TOKEN_COLUMNS = {
    "row": pa.int64(),
    "document": pa.int32(),
    "sentence": pa.int64(),
    "token": pa.string(),
    "special": pa.bool_(),
}
SUFFIXES = (".parquet", ".csv", ".npy")
Neurons = Sequence[tuple[int, int]]


def column_table(
    source: LakeSource,
    neurons: Neurons,
    *,
    labels: Sequence[str] = (),
    where: Where = None,
    special: bool = False,
) -> pa.Table:
    """All values of some neurons.

    Parameters
    ----------
    source
        The lake.
    neurons
        (layer, neuron) of each.
    labels
        Label columns to add.
    where : str or (by, tag), optional
        Only these tokens, as for `top_tokens`.
    special
        Special tokens too; padding is never among the lines.

    Returns
    -------
    pyarrow.Table
        One line per token in the order of the rows: row, document, sentence, token (its text), special, the labels (text, or
        null) and a float32 column per neuron, named ``L12.N345``.

    Raises
    ------
    InputError
        When a neuron or label does not exist or is named twice, no neuron is given, or `where` is refused.
    """
    parts = column_tables(source, neurons, labels=labels, where=where, special=special)
    return pa.concat_tables([column_schema(neurons, labels).empty_table(), *parts])


def column_tables(
    source: LakeSource,
    neurons: Neurons,
    *,
    labels: Sequence[str] = (),
    where: Where = None,
    special: bool = False,
) -> Iterator[pa.Table]:
    """Yield the lines of `column_table` block by block: memory does not grow with the lake, but for a byte per row.

    What is wrong with the arguments is raised here, before the first block is asked for.
    """
    _check(source, neurons, labels)
    eligible = None if where is None else eligible_tokens(source, where, special=special)
    schema = column_schema(neurons, labels)

    def of_block(position: int) -> pa.Table:
        return _block_table(source, position, neurons, labels, schema, eligible, special=special)

    return map_ordered(of_block, range(len(source.blocks)))


def column_schema(neurons: Neurons, labels: Sequence[str]) -> pa.Schema:
    """Schema of `column_table`."""
    names = [neuron_name(*neuron) for neuron in neurons]
    return pa.schema(
        [*TOKEN_COLUMNS.items(), *((label, pa.string()) for label in labels), *((name, pa.float32()) for name in names)]
    )


def write_columns(
    source: LakeSource,
    path: Path,
    neurons: Neurons,
    *,
    labels: Sequence[str] = (),
    where: Where = None,
    special: bool = False,
) -> int:
    """Write `column_table` to a file block by block, and return its number of lines.

    Parameters
    ----------
    path
        ``.parquet``, ``.csv``; or ``.npy`` for the values alone, float32 (tokens, neurons), with their rows beside in a
        file ending in ``.rows.npy``, int64 (tokens,).

    Raises
    ------
    InputError
        As `column_table` does; when the file exists or is of another kind, or ``.npy`` is to hold labels.
    StorageError
        When the file system refuses.
    """
    check_new(path, SUFFIXES)
    if path.suffix == ".npy":
        return _write_npy(source, path, neurons, labels, eligible_tokens(source, where, special=special))
    parts = column_tables(source, neurons, labels=labels, where=where, special=special)
    lines = 0
    about = {
        "lake": source.fingerprint,
        "site": source.site,
        "where": where if where is None or isinstance(where, str) else list(where),
        "special": special,
        "blocks": [int(block) for block in source.blocks],
        "versions": versions(),
    }
    with table_writer(path, column_schema(neurons, labels), about) as writer:
        for part in parts:
            writer.write_table(part)
            lines += part.num_rows
    return lines


def token_texts(tokens: pa.Table, sentences: pa.Table) -> list[str]:
    """Text that each token of a token table covers; special tokens and padding cover none."""
    texts = dict(zip(sentences.column("sentence").to_pylist(), sentences.column("text").to_pylist(), strict=True))
    columns = (tokens.column(name).to_pylist() for name in ("sentence", "char_start", "char_end"))
    return [
        (texts.get(sentence) or "")[start:end] if start >= 0 else "" for sentence, start, end in zip(*columns, strict=True)
    ]


def _check(source: LakeSource, neurons: Neurons, labels: Sequence[str]) -> None:
    if not neurons:
        raise InputError("no neuron given")
    for layer, neuron in neurons:
        check_neuron(source, layer, neuron)
    names = [*TOKEN_COLUMNS, *labels, *(neuron_name(*neuron) for neuron in neurons)]
    for label in labels:
        if label not in source.label_columns:
            raise InputError(f"no label column {label!r}: known are {', '.join(source.label_columns)}")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"the table would have two columns {name!r}: leave one out")


def _block_table(
    source: LakeSource,
    position: int,
    neurons: Neurons,
    labels: Sequence[str],
    schema: pa.Schema,
    eligible: NDArray[np.bool_] | None,
    *,
    special: bool,
) -> pa.Table:
    block = source.blocks[position]
    if eligible is not None:
        inside = np.flatnonzero(eligible[position * source.block_rows : (position + 1) * source.block_rows])
        if not inside.size:
            return schema.empty_table()
    tokens = source.tokens(labels=list(labels), blocks=[block])
    flags = tokens.column("flags").to_numpy()
    if eligible is None:
        inside = np.flatnonzero((flags & (PADDING if special else PADDING | SPECIAL)) == 0)
    tokens = tokens.take(inside)
    arrays = {
        **{name: tokens.column(name) for name in ("row", "document", "sentence", *labels)},
        "token": token_texts(tokens, source.sentences(blocks=[block])),
        "special": (flags[inside] & SPECIAL) != 0,
    }
    values = _block_values(source, position, neurons, inside)
    arrays |= {neuron_name(*neuron): line for neuron, line in zip(neurons, values, strict=True)}
    columns = [
        arrays[field.name].cast(field.type)
        if isinstance(arrays[field.name], pa.ChunkedArray)
        else pa.array(arrays[field.name], field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _block_values(source: LakeSource, position: int, neurons: Neurons, inside: NDArray[np.int64]) -> NDArray[np.float32]:
    """Values of some rows of a block, float32 (neurons, tokens)."""
    out = np.empty((len(neurons), len(inside)), dtype=np.float32)
    for layer in dict.fromkeys(layer for layer, _ in neurons):
        places = [place for place, (other, _) in enumerate(neurons) if other == layer]
        wanted = [neurons[place][1] for place in places]
        found = source.read_block(layer=layer, block=source.blocks[position], neurons=wanted)
        out[places] = found[inside].T
    return out


def _write_npy(source: LakeSource, path: Path, neurons: Neurons, labels: Sequence[str], eligible: NDArray[np.bool_]) -> int:
    _check(source, neurons, labels)
    if labels:
        raise InputError(f"{path.suffix} holds values alone, no labels: write .parquet or .csv")
    lines = np.flatnonzero(eligible)
    positions, inside = lines // source.block_rows, lines % source.block_rows
    starts = np.searchsorted(positions, np.arange(len(source.blocks) + 1))

    def read(position: int) -> NDArray[np.float32]:
        return _block_values(source, position, neurons, inside[starts[position] : starts[position + 1]])

    with npy_file(path, (len(lines), len(neurons)), rows_of_lines(source, lines)) as array:
        wanted = np.unique(positions).tolist()
        for position, values in zip(wanted, map_ordered(read, wanted), strict=True):
            array[starts[position] : starts[position + 1]] = values.T
    return len(lines)
