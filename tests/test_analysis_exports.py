"""Columns and rows as tables and files, against plain reads; files opened by their own libraries."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import xarray as xr
import zarr
from memory_lake import PADDING, MemoryLake
from query_lakes import NEURONS, flags, make_lake, stored

import neuronlake.analysis.token_rows as token_rows
from neuronlake.analysis import choose_tokens, column_table, token_activations, write_columns, write_token_activations
from neuronlake.store import open_lake
from neuronlake.store.errors import InputError, StorageError

PAIR = [(1, 65), (0, 3)]


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    return make_lake(tmp_path_factory.mktemp("lakes") / "a.lake", encoding="int8a", seed=3)


@pytest.fixture(scope="module")
def some(tmp_path_factory):
    """Blocks 1, 3 and 4 of it."""
    return make_lake(tmp_path_factory.mktemp("lakes") / "b.lake", encoding="int8a", seed=3, blocks=[1, 3, 4])


def expected_lines(lake, mask):
    """Lines by Python alone: text from the sentence, values from whole blocks."""
    texts = dict(zip(*(lake.sentences().column(name).to_pylist() for name in ("sentence", "text")), strict=True))
    values = {pair: stored(lake, pair[0])[:, pair[1]] for pair in PAIR}
    lines = []
    for line, token in enumerate(lake.tokens(labels=["upos", "form"]).to_pylist()):
        if mask[line]:
            special = token["flags"] == 1
            text = "" if special else texts[token["sentence"]][token["char_start"] : token["char_end"]]
            lines.append(
                {name: token[name] for name in ("row", "document", "sentence")}
                | {"token": text, "special": special, "upos": token["upos"], "form": token["form"]}
                | {"L1.N65": float(values[1, 65][line]), "L0.N3": float(values[0, 3][line])}
            )
    return lines


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("where", [None, "row % 7 = 3", ("upos", "NOUN")])
def test_a_table_of_columns(lake, some, where, special):
    for each in (lake, some):
        mask = (flags(each) & PADDING == 0) if special else flags(each) == 0
        if isinstance(where, str):
            mask &= each.tokens().column("row").to_numpy() % 7 == 3
        elif where is not None:
            mask &= np.array([tag == "NOUN" for tag in each.tokens(labels=["upos"]).column("upos").to_pylist()])
        table = column_table(each, PAIR, labels=["upos", "form"], where=where, special=special)
        assert table.to_pylist() == expected_lines(each, mask)
        assert table.schema.field("L0.N3").type == pa.float32()


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_files_of_columns(lake, tmp_path, suffix):
    path = tmp_path / f"c{suffix}"
    lines = write_columns(lake, path, PAIR, labels=["upos"], where="row % 3 = 1", special=True)
    expected = column_table(lake, PAIR, labels=["upos"], where="row % 3 = 1", special=True)
    read = pq.read_table(path) if suffix == ".parquet" else pyarrow.csv.read_csv(path)
    assert lines == read.num_rows == expected.num_rows
    for name in ("row", "L1.N65", "L0.N3"):
        np.testing.assert_array_equal(read.column(name).to_numpy().astype(np.float32), expected.column(name).to_numpy())
    assert read.column("token").to_pylist() == expected.column("token").to_pylist()
    if suffix == ".parquet":
        assert read.schema.remove_metadata() == expected.schema
        assert json.loads(read.schema.metadata[b"neuronlake"])["lake"] == lake.fingerprint
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_column_as_npy(some, tmp_path):
    lines = write_columns(some, tmp_path / "c.npy", PAIR, where=("upos", "VERB"))
    table = column_table(some, PAIR, where=("upos", "VERB"))
    values, rows = np.load(tmp_path / "c.npy"), np.load(tmp_path / "c.rows.npy")
    assert (values.dtype, rows.dtype, lines) == (np.float32, np.int64, len(values))
    assert rows.tolist() == table.column("row").to_pylist()
    np.testing.assert_array_equal(values, np.stack([table.column(name).to_numpy() for name in ("L1.N65", "L0.N3")], axis=1))


def test_a_column_of_a_lake_in_memory():
    lake = MemoryLake()
    table = column_table(lake, [(2, 3)], special=True)
    used = lake.column("flags") != PADDING
    np.testing.assert_array_equal(table.column("L2.N3").to_numpy(), lake.stored(2)[used, 3])


@pytest.mark.parametrize("layers", [None, [1], [1, 0, 1]])
def test_rows(lake, some, layers):
    for each in (lake, some):
        tokens = choose_tokens(each, where="row % 5 = 2", special=True)
        chosen = [0, 1] if layers is None else sorted(set(layers))
        mask = (flags(each) & PADDING == 0) & (each.tokens().column("row").to_numpy() % 5 == 2)
        expected = np.stack([stored(each, layer)[mask] for layer in chosen], axis=1)
        np.testing.assert_array_equal(token_activations(each, tokens, layers=layers), expected)


@pytest.mark.parametrize("suffix", token_rows.SUFFIXES)
@pytest.mark.parametrize("piece_tokens", [1, 16, 4096])
def test_files_of_rows(lake, tmp_path, monkeypatch, suffix, piece_tokens):
    monkeypatch.setattr(token_rows, "_PIECE_BYTES", piece_tokens * NEURONS * 4)
    tokens = choose_tokens(lake, where="row % 4 = 2")
    path, expected = tmp_path / f"r{suffix}", token_activations(lake, tokens)
    assert write_token_activations(lake, tokens, path) == expected.shape
    left = {path.name}
    if suffix == ".npy":
        found, rows = np.load(path), np.load(tmp_path / "r.rows.npy")
        left.add("r.rows.npy")
    elif suffix == ".npz":
        with np.load(path) as file:
            found, rows = file["activations"], file["rows"]
            assert file["layers"].tolist() == [0, 1]
    elif suffix == ".zarr":
        group = zarr.open_group(path, mode="r")
        found, rows = group["activations"][:], group["row"][:]
        dataset = xr.open_zarr(path, consolidated=False)
        assert dict(dataset.sizes) == {"row": tokens.count, "layer": 2, "neuron": NEURONS}
        np.testing.assert_array_equal(dataset["activations"].sel(row=rows[3], layer=1), expected[3, 1])
    else:
        table = pq.read_table(path)
        assert table.column("layer").to_pylist() == [0] * tokens.count + [1] * tokens.count
        rows = table.column("row").to_numpy()[: tokens.count]
        values = table.column("activations").combine_chunks().flatten().to_numpy()
        found = values.reshape(2, tokens.count, NEURONS).swapaxes(0, 1)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    assert rows.tolist() == tokens.rows.tolist()
    assert {entry.name for entry in tmp_path.iterdir()} == left


def test_damage_leaves_no_file(lake, tmp_path):
    import shutil

    root = shutil.copytree(lake.path, tmp_path / "a.lake")
    shard = root / "activations/mlp.post/1/c.2.0"
    data = bytearray(shard.read_bytes())
    data[30] ^= 4
    shard.write_bytes(data)
    damaged, out = open_lake(root), tmp_path / "out"
    out.mkdir()
    tokens = choose_tokens(damaged, where="upos = 'NOUN'")
    for suffix in token_rows.SUFFIXES:
        with pytest.raises(RuntimeError, match=r"c\.2\.0"):
            write_token_activations(damaged, tokens, out / f"r{suffix}")
    for suffix in (".parquet", ".csv", ".npy"):
        with pytest.raises(RuntimeError, match=r"c\.2\.0"):
            write_columns(damaged, out / f"c{suffix}", [(1, 3)])
    assert list(out.iterdir()) == []


def test_refusals(lake, tmp_path, monkeypatch):
    tokens = choose_tokens(lake, where="upos = 'NOUN'")
    with pytest.raises(
        InputError, match=r"tokens × 2 layers × 70 neurons, 0\.0 GB, are more than the 0\.0 GB meant for memory"
    ):
        token_activations(lake, tokens, max_bytes=1000)
    monkeypatch.setattr(token_rows, "MEMORY_BYTES", 1000)
    with pytest.raises(InputError, match=r"or write \.npy, \.zarr or \.parquet"):
        write_token_activations(lake, tokens, tmp_path / "r.npz")
    (tmp_path / "r.rows.npy").write_text("mine")
    with pytest.raises(InputError, match=r"r\.rows\.npy exists: choose another name"):
        write_token_activations(lake, tokens, tmp_path / "r.npy")
    with pytest.raises(InputError, match="no neuron given"):
        column_table(lake, [])
    with pytest.raises(InputError, match=r"two columns 'L0\.N1': leave one out"):
        column_table(lake, [(0, 1), (0, 1)])
    with pytest.raises(InputError, match=r"\.npy holds values alone"):
        write_columns(lake, tmp_path / "c.npy", PAIR, labels=["upos"])
    with pytest.raises(InputError, match=r"expected a name ending so, got .*c\.txt"):
        write_columns(lake, tmp_path / "c.txt", PAIR)
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.rows.npy"]


def test_a_folder_that_is_gone(tmp_path):
    from neuronlake.analysis.outputs import new_file

    with pytest.raises(StorageError, match="could not write"), new_file(tmp_path / "gone/x.csv") as beside:
        beside.write_text("x")
