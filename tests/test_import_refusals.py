"""What `neuronlake import` cannot take: exit code 2, one clear line, nothing left behind."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import safetensors.numpy
import safetensors.torch
from foreign_files import run, values, write_saelens
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Refusal:
    id: str
    make: Callable[[Path], Any]
    """Prepares a folder."""
    arguments: str
    """After `import LAKE`; file names are inside the folder."""
    message: str


def _npy(**arrays: NDArray[Any]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)

    return make


def _with_table(name: str, text: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        np.save(folder / "a.npy", values(1)[0])
        (folder / name).write_text(text)

    return make


def _h5(**datasets: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        with h5py.File(folder / "a.hdf5", "w") as file:
            for name, data in datasets.items():
                file[name.lstrip("_")] = data

    return make


def _tensors(**tensors: NDArray[Any]) -> Callable[[Path], Any]:
    return lambda folder: safetensors.numpy.save_file(tensors, folder / "a.safetensors")


def _header(header: Any, data: bytes = b"") -> Callable[[Path], Any]:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return lambda folder: (folder / "a.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def _saelens(*columns: str, state: dict[str, Any] | None = None) -> Callable[[Path], None]:
    return lambda folder: write_saelens(folder / "acts", dict.fromkeys(columns, values(4, 5)), state=state)


ONE = values(1)[0]
INDEX = json.dumps({"a b": "0"})
REFUSALS = [
    Refusal(id="missing", make=_npy(), arguments="a.npy", message="a.npy does not exist"),
    Refusal(
        id="unknown", make=_with_table("a.txt", "x"), arguments="a.txt", message="a.txt: unknown format; known are NumPy"
    ),
    Refusal(
        id="two formats",
        make=lambda folder: (_npy(a=ONE)(folder), _h5(_0=ONE)(folder)),
        arguments="a.npy a.hdf5",
        message="all sources must be of one format",
    ),
    Refusal(
        id="flat", make=_npy(a=np.zeros(5)), arguments="a.npy", message="a.npy has shape (5,), expected (rows, neurons)"
    ),
    Refusal(
        id="objects", make=_npy(a=np.array([["x"]])), arguments="a.npy", message="a.npy holds <U1, expected real numbers"
    ),
    Refusal(id="no npy", make=_with_table("b.npy", "text"), arguments="b.npy", message="b.npy: not a readable .npy file"),
    Refusal(
        id="other rows",
        make=_npy(L0=ONE, L3=ONE[:7]),
        arguments="L0.npy L3.npy",
        message="layer 3 has 7 rows × 6 neurons, layer 0 has 40 × 6",
    ),
    Refusal(
        id="stack among layers",
        make=_npy(L0=ONE, L3=values()),
        arguments="L0.npy L3.npy",
        message="L3.npy holds several layers, (3, 40, 6): then give it alone",
    ),
    Refusal(
        id="same layer", make=_npy(a_L1=ONE, b_L1=ONE), arguments="a_L1.npy b_L1.npy", message="b_L1.npy are both layer 1"
    ),
    Refusal(
        id="numbers",
        make=_npy(a=values()),
        arguments="a.npy --layers 1,2",
        message="2 layer numbers were given, the source has 3",
    ),
    Refusal(id="numbers twice", make=_npy(a=values(2)), arguments="a.npy --layers 1,1", message="are both layer 1"),
    Refusal(id="no numbers", make=_npy(a=ONE), arguments="a.npy --layers x", message="expected layer numbers"),
    Refusal(id="select", make=_npy(a=ONE), arguments="a.npy --select x", message="npy files have none"),
    Refusal(id="per layer", make=_npy(a=ONE), arguments="a.npy --neurons-per-layer 3", message="is about NeuroX files"),
    Refusal(
        id="short table",
        make=_with_table("t.csv", "tag\n" + "x\n" * 39),
        arguments="a.npy --tokens t.csv",
        message="column 'tag' has 39 lines, the activations have 40 rows",
    ),
    Refusal(
        id="reserved",
        make=_with_table("t.csv", "row\n" + "x\n" * 40),
        arguments="a.npy --tokens t.csv",
        message="'row' cannot be the name of a label",
    ),
    Refusal(
        id="double column",
        make=_with_table("t.csv", "x,x\n" + "1,2\n" * 40),
        arguments="a.npy --tokens t.csv",
        message="is given twice",
    ),
    Refusal(
        id="ragged csv",
        make=_with_table("t.csv", "x,y\n1\n"),
        arguments="a.npy --tokens t.csv",
        message="t.csv: not a readable",
    ),
    Refusal(
        id="empty csv",
        make=_with_table("t.csv", ""),
        arguments="a.npy --tokens t.csv",
        message="t.csv: not a readable .csv file",
    ),
    Refusal(
        id="no json",
        make=_with_table("t.jsonl", '{"a": 1}\n[]\n'),
        arguments="a.npy --tokens t.jsonl",
        message="t.jsonl:2: expected a JSON object, got list",
    ),
    Refusal(
        id="bad json",
        make=_with_table("t.jsonl", "{"),
        arguments="a.npy --tokens t.jsonl",
        message="t.jsonl:1: not a JSON object",
    ),
    Refusal(
        id="no parquet",
        make=_with_table("t.parquet", "x"),
        arguments="a.npy --tokens t.parquet",
        message="t.parquet: not a readable .parquet file",
    ),
    Refusal(id="no table", make=_npy(a=ONE), arguments="a.npy --tokens t.csv", message="t.csv does not exist"),
    Refusal(
        id="kind of table",
        make=_with_table("t.xlsx", ""),
        arguments="a.npy --tokens t.xlsx",
        message="t.xlsx: unknown kind of token table; expected a file named *.parquet or *.csv",
    ),
    Refusal(
        id="nan",
        make=_npy(a=np.where(np.eye(40, 6) * ONE != 0, np.nan, ONE)),
        arguments="a.npy",
        message="L0.N0 is nan in row 0",
    ),
    Refusal(
        id="tensor shape",
        make=_tensors(ids=np.arange(4)),
        arguments="a.safetensors",
        message="tensor 'ids' of a.safetensors has shape (4,)",
    ),
    Refusal(
        id="tensor names",
        make=_tensors(**{"layers.1.mlp": ONE, "layers.1.attn": ONE}),
        arguments="a.safetensors",
        message="are both layer 1: give one of them",
    ),
    Refusal(
        id="no tensor",
        make=_tensors(a=ONE),
        arguments="a.safetensors --select b*",
        message="holds no activations that matches 'b*'",
    ),
    Refusal(
        id="no header", make=_header(b"\xff" * 30), arguments="a.safetensors", message="not a readable safetensors file"
    ),
    Refusal(
        id="header too long",
        make=lambda folder: (folder / "a.safetensors").write_bytes(b"\xff" * 20),
        arguments="a.safetensors",
        message="its header cannot have",
    ),
    Refusal(id="header list", make=_header([1]), arguments="a.safetensors", message="its header is no JSON object"),
    Refusal(
        id="float8",
        make=_header({"a": {"dtype": "F8_E4M3", "shape": [1, 1], "data_offsets": [0, 1]}}, b"x"),
        arguments="a.safetensors",
        message="no dtype that activations have ('F8_E4M3')",
    ),
    Refusal(
        id="cut",
        make=_header({"a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]}}, b"1234"),
        arguments="a.safetensors",
        message="reaches past the end of the file",
    ),
    Refusal(
        id="entry",
        make=_header({"a": 3}),
        arguments="a.safetensors",
        message="the header's entry of tensor 'a' is malformed",
    ),
    Refusal(id="no hdf5", make=_with_table("a.hdf5", "x"), arguments="a.hdf5", message="not a readable HDF5 file"),
    Refusal(id="other hdf5", make=_h5(x=ONE), arguments="a.hdf5", message="not a NeuroX file"),
    Refusal(
        id="words",
        make=_h5(_0=values(1, 3), sentence_to_index=[INDEX]),
        arguments="a.hdf5",
        message="sentence 0 has 3 tokens but 2 words: 'a b'",
    ),
    Refusal(
        id="no sentence",
        make=_h5(_0=values(1, 2), _1=values(1, 2), sentence_to_index=[INDEX]),
        arguments="a.hdf5",
        message="'sentence_to_index' does not have sentence 1",
    ),
    Refusal(
        id="mixed layers",
        make=_h5(_0=values(1, 2), _1=values(2, 2), sentence_to_index=[INDEX]),
        arguments="a.hdf5",
        message="sentence 1 has 2 layers × 6 neurons, sentence 0 has 1 × 6",
    ),
    Refusal(
        id="sentence shape",
        make=_h5(_0=np.zeros(3), sentence_to_index=[INDEX]),
        arguments="a.hdf5",
        message="sentence 0 has shape (3,), expected numbers",
    ),
    Refusal(
        id="neurons",
        make=_h5(_0=values(1, 2)[0], sentence_to_index=[INDEX]),
        arguments="a.hdf5 --neurons-per-layer 4",
        message="6 columns, not a multiple of 4",
    ),
    Refusal(
        id="no export", make=lambda folder: (folder / "acts").mkdir(), arguments="acts", message="acts: not a SAELens export"
    ),
    Refusal(
        id="same hook",
        make=_saelens("blocks.3.hook_mlp_out", "blocks.3.hook_resid_post"),
        arguments="acts",
        message="are both layer 3",
    ),
    Refusal(
        id="shuffled",
        make=_saelens("blocks.3.x", state={"_indices_files": [{"filename": "i.arrow"}]}),
        arguments="acts",
        message="reordered by an index file",
    ),
    Refusal(
        id="no data files",
        make=_saelens("blocks.3.x", state={"_data_files": []}),
        arguments="acts",
        message="it lists no data file",
    ),
    Refusal(
        id="lost data file",
        make=_saelens("blocks.3.x", state={"_data_files": [{"filename": "gone.arrow"}]}),
        arguments="acts",
        message="not a readable Arrow stream",
    ),
]


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case.id)
def test_bad_input_is_one_line_and_leaves_nothing_behind(
    case: Refusal, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case.make(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    code, out, err = run(capsys, "import", "x.lake", *case.arguments.split())
    assert (code, out) == (2, "")
    lines = [line for line in err.splitlines() if not line.startswith("hashing ")]
    assert len(lines) == 1
    assert case.message in lines[0]
    assert sorted(tmp_path.iterdir()) == before


def test_saelens_columns_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_saelens(tmp_path / "a", {"blocks.1.x": values(4, 5)}, token_ids=np.zeros((4, 5), np.int32))
    write_saelens(tmp_path / "b", {"blocks.2.x": values(4, 5)}, token_ids=np.ones((4, 5), np.int32))
    write_saelens(tmp_path / "c", {"blocks.3.x": values(6, 5)})
    for folders, message in ((("a", "b"), "are of different tokens"), (("a", "c"), "has 6 contexts of 5 tokens")):
        code, _, err = run(capsys, "import", tmp_path / "x.lake", *(tmp_path / folder for folder in folders))
        assert (code, message in err) == (2, True), err
    ragged = pa.table({"blocks.1.x": pa.array([[[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0]]])})
    other = pa.table({"blocks.1.x": pa.array([[[1.0, 2.0]]]), "text": ["x"]})
    missing = pa.table({"blocks.1.x": pa.array([[[1.0, None]], [[2.0, 3.0]]])})
    for table, message in (
        (ragged, "contexts differ in shape (1 and 2)"),
        (other, "column 'text' holds string, no (context, neurons)"),
        (missing, "a value is missing in contexts 0 to 0"),
    ):
        (tmp_path / "a" / "state.json").write_text('{"_data_files": [{"filename": "d.arrow"}]}')
        with pa.ipc.new_stream(tmp_path / "a" / "d.arrow", table.schema) as writer:
            writer.write_table(table)
        code, _, err = run(capsys, "import", tmp_path / "x.lake", tmp_path / "a")
        assert (code, message in err) == (2, True), err
    assert not (tmp_path / "x.lake").exists()
