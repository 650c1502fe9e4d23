"""`write_lake`: foreign activations become a lake, block by block, and an interrupted call goes on where it stopped."""

import doctest
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import neuronlake.store.compose
from neuronlake.analysis import compute_statistics
from neuronlake.store import ActivationError, InputError, Lake, open_lake, verify, write_lake
from neuronlake.store.tables import PADDING, SPECIAL


@dataclass
class Slices:
    """An array that notes what was asked of it, and fails once if told to."""

    array: Any
    fail_at: int | None = None
    asked: list[tuple[int, int]] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    def __getitem__(self, rows: slice) -> Any:
        self.asked.append((rows.start, rows.stop))
        if self.fail_at is not None and rows.start <= self.fail_at < rows.stop:
            raise OSError("the network drive went away")
        return self.array[rows]


def activations(rows: int, *, layers: int = 2, neurons: int = 5, seed: int = 0) -> NDArray[np.float16]:
    return np.random.default_rng(seed).standard_normal((layers, rows, neurons)).astype(np.float16)


def used_rows(lake: Lake) -> NDArray[np.int64]:
    return np.flatnonzero(lake.tokens().column("flags").to_numpy() & PADDING == 0)


def stored(lake: Lake, layer: int) -> NDArray[np.float32]:
    """What the lake has of a layer, in the source's order."""
    return lake.read(layer=layer, rows=used_rows(lake))


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_the_examples_of_the_docstrings_run() -> None:
    result = doctest.testmod(neuronlake.store.compose)
    assert result.attempted > 15
    assert result.failed == 0


# ---- round trips ------------------------------------------------------------------------------------------------------


@st.composite
def sources(draw: st.DrawFn) -> dict[str, Any]:
    """Sentences of words of rows, some rows outside any word; also as plain Python lists to compare with."""
    block_rows = draw(st.sampled_from([4, 8, 16]))
    word = st.tuples(st.integers(1, 3), st.sampled_from(["", "ADJ", "NOUN"]), st.sampled_from(["é", "dog", "", "x y"]))
    sentence = st.lists(st.one_of(word, st.none()), min_size=1, max_size=14)
    rows: list[dict[str, Any]] = []
    for number, words in enumerate(draw(st.lists(sentence, min_size=1, max_size=6))):
        for index, item in enumerate(words):
            length, tag, form = item or (1, "", "<s>")
            for subword in range(length):
                rows.append(
                    {
                        "sentence": number,
                        "document": f"d{number // 3}",
                        "word": None if item is None else index,
                        "form": form,
                        "upos": tag,
                        "token_id": 7 if item is None else len(rows) + 10,
                        "subword": -1 if item is None else subword,
                        "last": item is not None and subword == length - 1,
                    }
                )
    return {
        "rows": rows,
        "block_rows": block_rows,
        "layers": draw(st.integers(1, 3)),
        "neurons": draw(st.integers(1, 9)),
        "encoding": draw(st.sampled_from(["float16", "float32"])),
    }


@settings(max_examples=30)
@given(sources())
def test_values_words_and_labels_come_back(source: dict[str, Any]) -> None:
    rows = source["rows"]
    values = activations(len(rows), layers=source["layers"], neurons=source["neurons"])
    names = ("sentence", "document", "word", "form", "upos", "token_id")
    tokens = {name: [row[name] for row in rows] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "a.lake"
        lake = write_lake(
            root, values, tokens=tokens, name="s", encoding=source["encoding"], block_rows=source["block_rows"]
        )
        assert lake.complete
        assert verify(root, full=True).ok
        for layer in range(source["layers"]):
            np.testing.assert_array_equal(stored(lake, layer), values[layer].astype(np.float32))
        table = lake.tokens(labels=["upos", "form", "document_name"])
        assert table.num_rows == lake.plan.blocks * source["block_rows"]
        lines = [line for line in table.to_pylist() if not line["flags"] & PADDING]
        padding = [line for line in table.to_pylist() if line["flags"] & PADDING]
        assert all(line["token_id"] == line["word"] == line["sentence"] == -1 for line in padding)
        sentences = {line["sentence"]: line for line in lake.sentences().to_pylist()}
        assert sorted(sentences) == list(range(len(sentences)))
        words = lake.words().to_pylist()
        assert [word["word"] for word in words] == list(range(len(words)))
    assert len(lines) == len(rows)
    opened = -1
    for row, line in zip(rows, lines, strict=True):
        special = row["word"] is None
        assert line["flags"] == (SPECIAL if special else 0)
        assert (line["token_id"], line["subword"]) == (row["token_id"], row["subword"])
        assert line["is_last_subword"] == row["last"]
        assert line["document_name"] == row["document"]
        assert (line["upos"] or "", line["form"] or "") == ("" if special else row["upos"], "" if special else row["form"])
        opened += line["subword"] == 0
        assert line["word"] == (-1 if special else opened)
        sentence = sentences[line["sentence"]]
        if not special:
            assert sentence["text"][line["char_start"] : line["char_end"]] == row["form"]
            assert words[opened]["sentence"] == line["sentence"]
        assert sentence["name"].partition(" ")[0] == str(row["sentence"])  # a window is called after its sentence
    for number in sentences:  # no sequence straddles a block, and positions count from its first row
        mine = [line for line in lines if line["sentence"] == number]
        assert [line["position"] for line in mine] == list(range(len(mine)))
        assert len({line["row"] // source["block_rows"] for line in mine}) == 1


def test_every_kind_of_array(tmp_path: Path) -> None:
    values = activations(50, layers=1)[0]
    np.save(tmp_path / "a.npy", values)
    file = h5py.File(tmp_path / "a.h5", "w")
    file["x"] = values
    group = zarr.create_array(tmp_path / "a.zarr", shape=values.shape, chunks=(7, 2), dtype="float16")
    group[:] = values
    kinds = {
        "array": values,
        "float64": values.astype(np.float64),
        "memmap": np.load(tmp_path / "a.npy", mmap_mode="r"),
        "h5py": file["x"],
        "zarr": group,
        "torch": torch.from_numpy(values.copy()).requires_grad_(),
        "pandas": pd.DataFrame(values),
        "fortran": np.asfortranarray(values),
    }
    for kind, array in kinds.items():
        lake = write_lake(tmp_path / f"{kind}.lake", {4: array}, name=kind, block_rows=16)
        assert lake.layers == (4,)
        np.testing.assert_array_equal(stored(lake, 4), values.astype(np.float32), err_msg=kind)
    counts = np.arange(100, dtype=np.uint8).reshape(20, 5)
    np.testing.assert_array_equal(stored(write_lake(tmp_path / "n.lake", counts, name="spikes"), 0), counts)
    half = torch.from_numpy(values.copy()).bfloat16()
    lake = write_lake(tmp_path / "b.lake", half, name="b", encoding="bfloat16")
    np.testing.assert_array_equal(stored(lake, 0), half.float().numpy())
    file.close()


def test_a_long_recording_without_a_table(tmp_path: Path) -> None:
    """Rows are words called after their numbers; the recording is cut every 512 rows."""
    values = activations(1300, layers=1, neurons=3)
    lake = write_lake(tmp_path / "a.lake", values, name="EEG", block_rows=1024)
    assert lake.plan.blocks == 2
    table = lake.tokens(labels=["form"])
    np.testing.assert_array_equal(used_rows(lake), np.arange(1300))
    assert table.column("form")[1299].as_py() == "1299"
    assert [line["name"] for line in lake.sentences().to_pylist()] == ["EEG [0:512]", "EEG [512:1024]", "EEG [1024:1300]"]
    assert lake.plan.counts["documents"] == 1
    assert lake.sentences().column("text")[2].as_py().startswith("1024 1025 ")
    small = write_lake(tmp_path / "b.lake", values[:, :10], name="EEG")
    assert (small.block_rows, small.sentences().column("name").to_pylist()) == (16, ["EEG"])


def test_columns_of_all_kinds_become_labels(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "text_label": ["a", "", None],
            "number": [1, 2, 3],
            "rounded": [1.0, np.nan, 2.5],
            "flag": [True, False, True],
            "kind": pd.Categorical(["x", "y", "x"]),
            "day": pd.to_datetime(["2026-01-01", "2026-01-02", None]).date,
            "nothing": [None, None, None],
        }
    )
    expected = {
        "text_label": ["a", None, None],
        "number": ["1", "2", "3"],
        "rounded": ["1", None, "2.5"],
        "flag": ["true", "false", "true"],
        "kind": ["x", "y", "x"],
        "day": ["2026-01-01", "2026-01-02", None],
        "nothing": [None, None, None],
    }
    for case, tokens in enumerate((frame, pa.Table.from_pandas(frame), {name: frame[name].tolist() for name in frame})):
        lake = write_lake(tmp_path / f"{case}.lake", activations(3), tokens=tokens, name="x")
        table = lake.tokens(labels=list(expected))
        assert {name: table.column(name).to_pylist()[:3] for name in expected} == expected


def test_statistics_agree_with_numpy(tmp_path: Path) -> None:
    values = activations(300, layers=2, neurons=6)
    label = np.array(["ADJ", "NOUN", "VERB"])[np.random.default_rng(2).integers(0, 3, 300)]
    sentence = np.arange(300) // 7
    lake = write_lake(tmp_path / "a.lake", values, tokens={"tag": label, "sentence": sentence}, name="x", block_rows=32)
    table = compute_statistics(lake, "tag")
    for tag in ("ADJ", "NOUN", "VERB"):
        chosen = values[:, label == tag].astype(np.float64)
        result = table.sel(tag=tag)
        np.testing.assert_array_equal(result["count"], (label == tag).sum())
        np.testing.assert_allclose(result["mean"], chosen.mean(axis=1), rtol=1e-6, atol=1e-9)


# ---- block by block, and again ----------------------------------------------------------------------------------------


def test_no_more_than_a_block_is_asked_for_and_each_block_once(tmp_path: Path) -> None:
    source = Slices(activations(100, layers=1)[0])
    lake = write_lake(tmp_path / "a.lake", source, name="x", tokens={"sentence": np.arange(100) // 3}, block_rows=16)
    assert max(last - first for first, last in source.asked) == 16
    in_blocks = source.asked[-lake.plan.blocks :]  # before: one row for the dtype, two blocks for the identity
    assert len(source.asked) == lake.plan.blocks + 3
    assert [first for first, _ in in_blocks] == [0, *(last for _, last in in_blocks[:-1])]
    assert in_blocks[-1][1] == 100
    known = Slices(activations(100, layers=1)[0])
    write_lake(tmp_path / "b.lake", known, name="x", block_rows=16, identity={"sha256": "0"})
    assert len(known.asked) == 1 + 7


@pytest.mark.parametrize("encoding", ["float16", "float32"])
def test_an_interrupted_call_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, encoding: str) -> None:
    values = activations(100)
    tokens = {"sentence": np.arange(100) // 6, "tag": np.arange(100) % 4}
    settled: dict[str, Any] = {"tokens": tokens, "name": "x", "encoding": encoding, "block_rows": 16}
    whole, parts = tmp_path / "whole.lake", tmp_path / "parts.lake"
    write_lake(whole, dict(enumerate(values)), **settled)
    done: list[int] = []
    for fail_at in (40, 70):  # in the last layer, so that a block is half filled
        layers = {0: values[0], 1: Slices(values[1], fail_at=fail_at)}
        with pytest.raises(OSError, match="network drive"):
            write_lake(parts, layers, **settled)
        done.append(len(open_lake(parts).blocks))
    assert done == [3, 5]
    rest = Slices(values[1])
    calls: list[tuple[int, int]] = []
    write_lake(parts, {0: values[0], 1: rest}, **settled, progress=lambda *step: calls.append(step))
    assert snapshot(parts) == snapshot(whole)
    assert calls[-1] == (100, 100)
    assert len(calls) == open_lake(whole).plan.blocks - 5
    assert all(first == 0 or first >= 60 for first, _ in rest.asked)  # committed blocks are not read again
    nothing = Slices(values[1])
    write_lake(parts, {0: values[0], 1: nothing}, **settled)
    assert len(nothing.asked) == 3


def test_another_source_is_refused_by_name(tmp_path: Path) -> None:
    values, root = activations(100), tmp_path / "a.lake"
    tokens = {"tag": np.arange(100) % 4}
    write_lake(root, values, tokens=tokens, name="x", block_rows=16)
    before = snapshot(root)
    changed = values.copy()
    changed[1, 99, 4] += 1
    cases: list[tuple[str, Any, dict[str, Any]]] = [
        ("sha256", changed, {}),
        ("tokens_sha256", values, {"tokens": {"tag": np.arange(100) % 5}}),
        ("tokens_sha256", values, {"tokens": {"label": np.arange(100) % 4}}),
        ("corpus.rows", values[:, :96], {"tokens": {"tag": np.arange(96) % 4}}),
        ("layers", values[:1], {}),
        ("capture.dtype", values.astype(np.float32), {}),
        ("encoding", values, {"encoding": "float32"}),
        ("corpus.files", values, {"name": "y"}),
    ]
    for what, array, other in cases:
        with pytest.raises(InputError, match=f"different plan.*{what}"):
            write_lake(root, array, **{"tokens": tokens, "name": "x", "block_rows": 16, **other})
    assert snapshot(root) == before


# ---- refusals ---------------------------------------------------------------------------------------------------------


def test_values_that_cannot_be_stored_are_named(tmp_path: Path) -> None:
    tokens = {"form": [f"w{row}" for row in range(40)], "sentence": np.arange(40) // 5}
    for bad, message in (
        (np.nan, r"L1.N2 is nan in row 3 of the source \(token 'w3', sentence '0'\): activations must be finite"),
        (-np.inf, r"L1.N2 is -inf in row 3"),
        (1e300, r"L1.N2 is 1e\+300 in row 3 .* beyond float16's range of ±65504: choose encoding bfloat16 or float32"),
        (70000.0, r"L1.N2 is 70000 in row 3 "),
    ):
        values = activations(40).astype(np.float64)
        values[1, 3, 2] = bad
        with pytest.raises(ActivationError, match=message):
            write_lake(tmp_path / "a.lake", values, tokens=tokens, name="x", block_rows=8)
        assert list(tmp_path.iterdir()) == []  # the first block: nothing is left in the way
    values = activations(40)
    values[0, 33, 1] = np.nan
    with pytest.raises(ActivationError, match=r"L0.N1 is nan in row 33 of the source \(token 'w33', sentence '6'\)"):
        write_lake(tmp_path / "b.lake", values, tokens=tokens, name="x", block_rows=8)
    lake = open_lake(tmp_path / "b.lake")
    assert lake.blocks == (0, 1, 2, 3, 4, 5)
    np.testing.assert_array_equal(lake.read(layer=1, rows=slice(0, 5)), values[1, :5].astype(np.float32))


@dataclass(frozen=True, kw_only=True)
class Refusal:
    id: str
    message: str
    activations: Any = field(default_factory=lambda: activations(6))
    tokens: Any = None
    settings: dict[str, Any] = field(default_factory=dict)


WORDS = {"sentence": [0, 0, 0, 1, 1, 1], "word": [0, 1, 1, 0, 1, 1]}
REFUSALS = [
    Refusal(id="flat", activations=np.zeros(6), message=r"activations are .* got shape \(6,\)"),
    Refusal(id="no array", activations="x.npy", message="got str"),
    Refusal(id="no layer", activations={}, message="there is no layer"),
    Refusal(id="layer name", activations={"first": np.zeros((6, 2))}, message="whole numbers from 0, got 'first'"),
    Refusal(id="layer shape", activations={0: np.zeros((6, 2)), 1: np.zeros(6)}, message=r"layer 1 has shape \(6,\)"),
    Refusal(id="empty", activations=np.zeros((0, 4)), message=r"layer 0 has shape \(0, 4\)"),
    Refusal(
        id="other rows",
        activations={0: np.zeros((6, 2)), 3: np.zeros((5, 2))},
        message="layer 3 has 5 rows × 2 neurons, layer 0 has 6 × 2",
    ),
    Refusal(id="text", activations=np.full((6, 2), "x"), message="layer 0 holds <U1, expected real numbers"),
    Refusal(id="complex", activations=np.zeros((6, 2), complex), message="layer 0 holds complex128"),
    Refusal(id="short table", tokens={"tag": ["a"] * 5}, message="column 'tag' has 5 lines, the activations have 6 rows"),
    Refusal(id="reserved", tokens={"position": range(6)}, message="'position' cannot be the name of a label"),
    Refusal(id="nested", tokens={"tag": [[1]] * 6}, message=r"column 'tag' holds list<"),
    Refusal(id="mixed", tokens={"tag": [1, "a", 2, 3, 4, 5]}, message="column 'tag' cannot be a table's column"),
    Refusal(id="no table", tokens=[1, 2], message="a table or a mapping of columns, got list"),
    Refusal(id="no name", tokens={3: ["a"] * 6}, message="have names, got 3"),
    Refusal(id="sentence again", tokens={"sentence": [0, 0, 1, 1, 0, 0]}, message="sentence '0' .* comes back in row 4"),
    Refusal(id="no sentence", tokens={"sentence": [0, None, 1, 1, 1, 1]}, message="row 1 has no sentence"),
    Refusal(id="document again", tokens={"document": list("aabbaa")}, message="document 'a' comes back in row 4"),
    Refusal(
        id="word text", tokens={"word": ["a", "b", "a", "c", "d", "e"]}, message="word 'a' .* its text goes into `form`"
    ),
    Refusal(
        id="two labels",
        tokens={**WORDS, "tag": list("abcabb")},
        message="rows 1 and 2 are one word with two values of 'tag', 'b' and 'c'",
    ),
    Refusal(
        id="label outside",
        tokens={"word": [None, 1, 2, 3, 4, 5], "tag": list("abcdef")},
        message="row 0 has tag 'a' but no word to carry it",
    ),
    Refusal(
        id="token id", tokens={"token_id": ["1", "x", "2", "3", "4", "5"]}, message="'token_id' must hold whole numbers"
    ),
    Refusal(id="negative id", tokens={"token_id": [0, 1, -1, 3, 4, 5]}, message="token_id of row 2 is -1"),
    Refusal(id="long word", tokens={"word": [1] * 6}, settings={"block_rows": 4}, message="rows 0 to 5 does not fit"),
    Refusal(id="encoding", settings={"encoding": "int4"}, message="unknown encoding 'int4'"),
    Refusal(id="block", settings={"block_rows": 12}, message="power of two, got 12"),
    Refusal(id="site", settings={"site": "../up"}, message="site names are words joined by dots"),
]


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case.id)
def test_bad_input_is_one_line_and_leaves_nothing_behind(case: Refusal, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=case.message) as caught:
        write_lake(tmp_path / "a.lake", case.activations, tokens=case.tokens, name="x", **case.settings)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
