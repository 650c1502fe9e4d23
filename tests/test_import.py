"""`neuronlake import` reads other people's files: every format comes back to the exact value."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from foreign_files import NEURONS, ROWS, SENTENCES, WORDS, run, values, write_neurox, write_saelens
from numpy.typing import NDArray

from neuronlake.store import BlockWriter, Lake, open_lake, verify
from neuronlake.store.foreign import layer_numbers, open_foreign
from neuronlake.store.tables import PADDING


def imported(capsys: pytest.CaptureFixture[str], root: Path, *arguments: object) -> tuple[Lake, dict[str, Any]]:
    """Import, check that every byte is in order, and return the lake and what the command said."""
    code, out, err = run(capsys, "import", root, *arguments, "--json")
    assert code == 0, err
    assert verify(root, full=True).ok
    return open_lake(root), json.loads(out)


def check_values(lake: Lake, expected: dict[int, NDArray[Any]]) -> None:
    assert lake.layers == tuple(sorted(expected))
    rows = np.flatnonzero(lake.tokens().column("flags").to_numpy() & PADDING == 0)
    for layer, array in expected.items():
        np.testing.assert_array_equal(lake.read(layer=layer, rows=rows), array.astype(np.float32))


def column(lake: Lake, name: str) -> list[Any]:
    """A column of the used rows."""
    table = lake.tokens(labels=[name] if name in lake.label_columns else [])
    return [value for value, flags in zip(table[name].to_pylist(), table["flags"].to_pylist(), strict=True) if not flags]


@pytest.mark.parametrize("encoding", ["float16", "float32"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_npy(tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str, encoding: str) -> None:
    array = values(dtype=dtype)
    np.save(tmp_path / "stack.npy", array)
    for layer in (2, 10, 9):
        np.save(tmp_path / f"L{layer}.npy", array[layer % 3])
    exact = array if encoding == "float32" else array.astype(np.float16)
    options = ("--encoding", encoding, "--block-rows", 16)
    lake, report = imported(capsys, tmp_path / "stack.lake", tmp_path / "stack.npy", *options)
    check_values(lake, dict(enumerate(exact)))
    assert (report["written"], report["rows"], report["format"]) == ([0, 1, 2], ROWS, "npy")
    files = [tmp_path / f"L{layer}.npy" for layer in (10, 2, 9)]  # as a shell sorts them
    lake, report = imported(capsys, tmp_path / "files.lake", *files, *options)
    check_values(lake, {2: exact[2], 9: exact[0], 10: exact[1]})
    assert report["layers"] == {"2": "L2.npy", "9": "L9.npy", "10": "L10.npy"}
    assert run(capsys, "import", tmp_path / "files.lake", *files, *options)[1].endswith("committed, 0 by this run\n")


def test_npy_of_one_layer_and_given_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    array = values(2)
    np.save(tmp_path / "gpt2.npy", np.asfortranarray(array[0]))
    lake, _ = imported(capsys, tmp_path / "one.lake", tmp_path / "gpt2.npy", "--encoding", "float32", "--name", "GPT-2")
    check_values(lake, {0: array[0]})  # the number in a model's name is no layer
    assert lake.spec.model["name"] == "GPT-2"
    np.save(tmp_path / "both.npy", array)
    lake, _ = imported(
        capsys,
        tmp_path / "two.lake",
        tmp_path / "both.npy",
        "--layers",
        "4,8",
        "--encoding",
        "float32",
        "--site",
        "resid.pre",
    )
    assert lake.sites == ("resid.pre",)
    np.testing.assert_array_equal(lake.read(layer=8, rows=slice(0, ROWS), site="resid.pre"), array[1])


def test_safetensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    array = values()
    names = ["model.layers.11.mlp", "model.layers.2.mlp", "model.layers.0.mlp"]
    safetensors.numpy.save_file(
        {**dict(zip(names, array, strict=True)), "ids": np.arange(ROWS)}, tmp_path / "a.safetensors", {"made": "by hand"}
    )
    options = ("--encoding", "float32", "--block-rows", 16)
    lake, report = imported(capsys, tmp_path / "a.lake", tmp_path / "a.safetensors", "--select", "*.mlp", *options)
    check_values(lake, {11: array[0], 2: array[1], 0: array[2]})
    assert report["layers"]["11"] == "tensor 'model.layers.11.mlp' of a.safetensors"
    safetensors.numpy.save_file({"acts": array.astype(np.float16)}, tmp_path / "b.safetensors")
    lake, _ = imported(capsys, tmp_path / "b.lake", tmp_path / "b.safetensors", *options)
    check_values(lake, dict(enumerate(array.astype(np.float16))))


def test_safetensors_of_bfloat16_against_the_real_reader(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({f"blocks.{n}": torch.from_numpy(v).bfloat16() for n, v in enumerate(values())}, path)
    lake, _ = imported(capsys, tmp_path / "a.lake", path, "--encoding", "bfloat16", "--block-rows", 16)
    with safetensors.safe_open(path, "pt") as file:
        check_values(lake, {layer: file.get_slice(f"blocks.{layer}")[:].float().numpy() for layer in range(3)})


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_neurox(tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str) -> None:
    array = values(rows=len(WORDS), dtype=dtype)
    write_neurox(tmp_path / "acts.hdf5", array)
    options = ("--encoding", dtype, "--block-rows", 4)
    lake, _ = imported(capsys, tmp_path / "a.lake", tmp_path / "acts.hdf5", *options)
    check_values(lake, dict(enumerate(array)))
    assert column(lake, "form") == WORDS
    assert lake.sentences().column("text").to_pylist() == SENTENCES
    for layer in range(3):  # one file a layer, called as NeuroX calls them
        write_neurox(tmp_path / f"acts-layer{layer + 5}.hdf5", array[[layer]])
    files = [tmp_path / f"acts-layer{layer}.hdf5" for layer in (5, 6, 7)]
    lake, _ = imported(capsys, tmp_path / "b.lake", *files, *options)
    check_values(lake, dict(zip((5, 6, 7), array, strict=True)))
    write_neurox(tmp_path / "flat.hdf5", array, flat=True)
    lake, _ = imported(capsys, tmp_path / "c.lake", tmp_path / "flat.hdf5", "--neurons-per-layer", NEURONS, *options)
    check_values(lake, dict(enumerate(array)))
    lake, _ = imported(capsys, tmp_path / "d.lake", tmp_path / "flat.hdf5", *options)
    check_values(lake, {0: np.concatenate(list(array), axis=1)})


def test_neurox_with_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_neurox(tmp_path / "acts.hdf5", values(rows=len(WORDS)))
    tags = [f"T{len(word)}" for word in WORDS]
    (tmp_path / "tags.tsv").write_text("pos\n" + "\n".join(tags) + "\n")
    lake, report = imported(
        capsys, tmp_path / "a.lake", tmp_path / "acts.hdf5", "--tokens", tmp_path / "tags.tsv", "--block-rows", 4
    )
    assert (column(lake, "pos"), column(lake, "form")) == (tags, WORDS)
    assert report["labels"] == ["pos"]


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_saelens(tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str, fixed: bool) -> None:
    contexts = values(8, 5, dtype=dtype)  # 8 contexts of 5 tokens
    ids = np.arange(40, dtype=np.int32).reshape(8, 5) % 7
    write_saelens(tmp_path / "acts", {"blocks.3.hook_mlp_out": contexts}, token_ids=ids, fixed=fixed)
    write_saelens(tmp_path / "more", {"blocks.7.hook_mlp_out": 2 * contexts}, fixed=fixed)
    flat = contexts.reshape(40, NEURONS)
    options = ("--encoding", dtype, "--block-rows", 8)  # a context does not straddle blocks: three rows are padding
    lake, report = imported(capsys, tmp_path / "a.lake", tmp_path / "acts", *options)
    check_values(lake, {3: flat})
    assert column(lake, "token_id") == ids.ravel().tolist()
    assert column(lake, "form") == [str(token) for token in ids.ravel()]
    assert column(lake, "position") == list(range(5)) * 8
    assert (report["blocks"], report["counts"]["sentences"], lake.spec.model["name"]) == (8, 8, "acts")
    lake, _ = imported(capsys, tmp_path / "b.lake", tmp_path / "acts", tmp_path / "more", *options)
    check_values(lake, {3: flat, 7: 2 * flat})
    # slices that begin and end inside contexts and record batches
    with open_foreign([tmp_path / "acts"]) as source:
        for first, last in ((0, 40), (3, 4), (4, 6), (7, 33), (39, 40)):
            np.testing.assert_array_equal(source.layers[3][first:last], flat[first:last])


def test_slices_of_neurox_across_sentences(tmp_path: Path) -> None:
    array = values(rows=len(WORDS))
    write_neurox(tmp_path / "acts.hdf5", array)
    with open_foreign([tmp_path / "acts.hdf5"]) as source:
        for first in range(len(WORDS)):
            for last in range(first + 1, len(WORDS) + 1):
                np.testing.assert_array_equal(source.layers[1][first:last], array[1, first:last])


def test_layer_numbers() -> None:
    cases: list[tuple[list[str], list[int] | None]] = [
        (["model.layers.12.mlp.act_fn2", "model.layers.3.mlp.act_fn2"], [12, 3]),
        (["transformer.h.5.mlp", "transformer.h.6.mlp"], [5, 6]),
        (["blocks.3.hook_mlp_out"], [3]),
        (["acts-layer10", "acts-layer9"], [10, 9]),
        (["10", "9"], [10, 9]),
        (["gpt2-acts-0", "gpt2-acts-1"], [0, 1]),
        (["gpt2"], None),
        (["run1-part2", "run2-part3"], None),
        (["a", "b"], None),
    ]
    for names, expected in cases:
        assert layer_numbers(names) == expected, names


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv", "jsonl"])
def test_token_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    """The same table in each kind of file; quotes, commas, leading zeros and NA stay what they are."""
    forms = ['"', "a,b", "01", "NA", "é"] * 8
    table = pa.table(
        {"form": forms, "sentence": [str(n // 5) for n in range(40)], "code": ["01", None, "NA", "null", "x"] * 8}
    )
    path = tmp_path / f"tokens.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "csv":
        pa.csv.write_csv(table, path)
    elif kind == "tsv":
        lines = ["\t".join(value or "" for value in row.values()) for row in table.to_pylist()]
        path.write_text("\n".join(["\t".join(table.column_names), *lines]) + "\n", encoding="utf-8")
    else:
        records = [{name: value for name, value in row.items() if value is not None} for row in table.to_pylist()]
        path.write_text("\n".join(json.dumps(record) for record in records) + "\n", encoding="utf-8")
    np.save(tmp_path / "a.npy", values(1)[0])
    lake, _ = imported(capsys, tmp_path / "a.lake", tmp_path / "a.npy", "--tokens", path, "--block-rows", 16)
    assert column(lake, "form") == forms
    assert column(lake, "code") == table["code"].to_pylist()
    assert lake.sentences().column("text")[0].as_py() == '" a,b 01 NA é'


def test_a_changed_file_is_another_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole file counts, not only its first and last block."""
    array = values(1)[0]
    np.save(tmp_path / "a.npy", array)
    imported(capsys, tmp_path / "a.lake", tmp_path / "a.npy", "--block-rows", 8)
    array[20, 3] += 1
    np.save(tmp_path / "a.npy", array)
    code, _, err = run(capsys, "import", tmp_path / "a.lake", tmp_path / "a.npy", "--block-rows", 8)
    assert code == 2
    assert "exists with a different plan" in err
    assert "source.files" in err


def test_interrupted_and_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "a.npy", values())
    arguments = ("import", tmp_path / "a.lake", tmp_path / "a.npy", "--block-rows", 8)
    submit = BlockWriter.submit

    def interrupted(self: BlockWriter, block: int, *others: Any) -> None:
        if block == 3:
            raise KeyboardInterrupt
        submit(self, block, *others)

    with monkeypatch.context() as patch:
        patch.setattr(BlockWriter, "submit", interrupted)
        code, _, err = run(capsys, *arguments)
    assert code == 130
    assert "interrupted; 3 of 5 blocks are committed" in err
    code, out, _ = run(capsys, *arguments, "--json")
    assert (code, json.loads(out)["written"], json.loads(out)["committed"]) == (0, [3, 4], 5)
    run(capsys, "import", tmp_path / "b.lake", *arguments[2:])
    for path in (tmp_path / "b.lake").rglob("*"):
        if path.is_file():
            assert (tmp_path / "a.lake" / path.relative_to(tmp_path / "b.lake")).read_bytes() == path.read_bytes()


def test_nothing_optional_is_imported_and_its_absence_is_said(tmp_path: Path) -> None:
    write_neurox(tmp_path / "a.hdf5", values(rows=len(WORDS)))
    code = (
        "import sys, neuronlake.store, neuronlake.store.foreign, neuronlake.cli.main\n"
        "print([name for name in ('torch', 'h5py', 'safetensors', 'pandas') if name in sys.modules])\n"
        "sys.modules['h5py'] = None\n"
        "sys.exit(neuronlake.cli.main.main(sys.argv[1:]))"
    )
    arguments = ["import", str(tmp_path / "x.lake"), str(tmp_path / "a.hdf5")]
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "[]"
    assert result.returncode == 2
    assert result.stderr == "neuronlake: NeuroX files are HDF5 and need h5py: pip install 'neuronlake[import]'\n"
