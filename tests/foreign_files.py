"""Activation files in the formats of others, made with the libraries that those use."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from neuronlake.cli.main import main

ROWS, NEURONS = 40, 6
SENTENCES = ["the cat sat", "a b", "the cat sat", "one", "the cat sat", "say (Occurrence 2)"]
WORDS = [word for sentence in SENTENCES for word in sentence.split(" ")]


def values(layers: int = 3, rows: int = ROWS, dtype: str = "float32", seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).standard_normal((layers, rows, NEURONS)).astype(dtype)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def write_neurox(path: Path, array: NDArray[Any], *, flat: bool = False) -> None:
    """As NeuroX' HDF5 writer does: a data set a sentence, repeated sentences told apart by their occurrence."""
    index: dict[str, str] = {}
    first = 0
    with h5py.File(path, "w") as file:
        for number, sentence in enumerate(SENTENCES):
            last = first + len(sentence.split(" "))
            part = array[:, first:last]  # (layers, tokens, neurons)
            file.create_dataset(str(number), data=np.concatenate(list(part), axis=1) if flat else part)
            name, occurrence = sentence, 1
            while name in index:
                occurrence += 1
                name = f"{sentence} (Occurrence {occurrence})"
            index[name] = str(number)
            first = last
        file.create_dataset("sentence_to_index", (1,), dtype=h5py.special_dtype(vlen=str))[0] = json.dumps(index)


def write_saelens(
    folder: Path,
    columns: dict[str, NDArray[Any]],
    *,
    token_ids: NDArray[np.int32] | None = None,
    fixed: bool = False,
    state: dict[str, Any] | None = None,
) -> None:
    """As `datasets` saves it: two Arrow streams of record batches, lists of lists, and a state that lists the files."""
    folder.mkdir()
    contexts = len(next(iter(columns.values())))
    halves = [(0, contexts // 2), (contexts // 2, contexts)]
    names = [f"data-{number:05d}-of-00002.arrow" for number in range(2)]
    for name, (first, last) in zip(names, halves, strict=True):
        arrays = {}
        for hook, array in columns.items():
            part = array[first:last]  # (contexts, context, neurons)
            flat = pa.array(part.reshape(-1))
            if fixed:
                rows = pa.FixedSizeListArray.from_arrays(flat, part.shape[2])
                arrays[hook] = pa.FixedSizeListArray.from_arrays(rows, part.shape[1])
            else:
                rows = pa.ListArray.from_arrays(pa.array(np.arange(0, flat.__len__() + 1, part.shape[2], np.int32)), flat)
                arrays[hook] = pa.ListArray.from_arrays(pa.array(np.arange(0, len(rows) + 1, part.shape[1], np.int32)), rows)
        if token_ids is not None:
            ids = pa.array(token_ids[first:last].reshape(-1))
            arrays["token_ids"] = pa.FixedSizeListArray.from_arrays(ids, token_ids.shape[1])
        table = pa.table(arrays)
        with pa.ipc.new_stream(folder / name, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names], **(state or {})}))
    (folder / "dataset_info.json").write_text("{}")
