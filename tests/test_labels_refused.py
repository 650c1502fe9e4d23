"""What cannot be a label of a lake is refused with one message, and nothing is added."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from lakes import synthetic_lake

from neuronlake.store import InputError, LabelSettings, label_from_table, open_lake, remove_label_set
from neuronlake.store.label_sets import LABELS
from neuronlake.store.lock import writing


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lakes") / "a.lake"
    synthetic_lake(root, tokens=300)
    return root


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "a.lake"))


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@dataclass(frozen=True, kw_only=True)
class Refused:
    id: str
    match: str
    table: dict[str, Any]
    settings: dict[str, Any]


FORMS = "FORMS"  # the lake's own, put in by the test
CASES = [
    Refused(id=name, match=match, table=table, settings=settings)
    for name, match, table, settings in [
        ("taken", r"a\.lake has 'upos' already: add --prefix P", {"word": [0], "upos": ["X"]}, {}),
        ("case", r"has 'upos' \(for 'UPOS'\) already", {"word": [0], "UPOS": ["X"]}, {}),
        ("own column", r"has 'token_id', 'sentence' already", {"word": [0], "token_id": [1], "sentence": [1]}, {}),
        ("prefix", r"has 'upos' already", {"word": [0], "pos": ["X"]}, {"prefix": "u"}),
        ("twins", r"has 'Mood' \(for 'mood'\) already", {"word": [0], "Mood": ["X"], "mood": ["Y"]}, {}),
        ("blank name", r"' ' cannot be the name of a label column", {"word": [0], " ": ["X"]}, {}),
        ("pick", r"no column 'y' in the source: it has x", {"word": [0], "x": ["X"]}, {"columns": ("y",)}),
        ("no label", r"has no column for a label \(word, form\)", {"word": [0], "form": ["w1"]}, {}),
        ("no lines", r"has no lines", {"word": [], "x": []}, {}),
        ("no key", r"has neither word nor row nor form among its columns \(x\)", {"x": ["X"]}, {}),
        ("two keys", r"has a column word and a column row", {"word": [0], "row": [0], "x": ["X"]}, {}),
        ("no such word", r"record 2 is of word 300, .*a\.lake has words 0 to 299", {"word": [0, 300], "x": ["a", "b"]}, {}),
        ("negative", r"record 1 is of word -1", {"word": [-1], "x": ["a"]}, {}),
        ("twice", r"word 7 occurs twice, in records 1 and 3", {"word": [7, 8, 7], "x": ["a", "b", "c"]}, {}),
        ("no number", r"record 2 has word 'b', expected a whole number", {"word": ["1", "b"], "x": ["a", "b"]}, {}),
        ("half", r"record 2 has word 1.5, expected a whole number", {"word": [1.0, 1.5], "x": ["a", "b"]}, {}),
        ("missing", r"record 2 has no word", {"word": [1, None], "x": ["a", "b"]}, {}),
        ("no such row", r"record 1 is of row 9999", {"row": [9999], "x": ["a"]}, {}),
        ("padding", r"record 1 is of row 63, which is padding", {"row": [63], "x": ["a"]}, {}),
        ("other form", r"record 2 has another form of word 5: expected 'w\d+' as in .*, got 'nope'",
         {"word": [6, 5], "form": [None, "nope"], "x": ["a", "b"]}, {}),
        ("short", r"ends after 299 records at word 299: expected 'w\d+'", {"form": (FORMS, 299), "x": ["a"] * 299}, {}),
        ("long", r"has 301 records, .*a\.lake 300 words", {"form": (FORMS, 301), "x": ["a"] * 301}, {}),
        ("lists", r"column 'x' holds list<", {"word": [0], "x": [["a"]]}, {}),
    ]
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_refusals(root: Path, case: Refused) -> None:
    forms = open_lake(root).words(["form"]).column("form").to_pylist()
    table = dict(case.table)
    if isinstance(table.get("form"), tuple):
        table["form"] = [*forms, "more"][: table["form"][1]]
    if case.id == "other form":
        table["form"][0] = forms[6]
    if case.id == "padding":
        flags = open_lake(root).tokens().column("flags").to_numpy()
        assert flags[63] == 2
    before = contents(root)
    with pytest.raises(InputError, match=case.match) as caught:
        label_from_table(root, pa.table(table), LabelSettings(**case.settings))
    assert "\n" not in str(caught.value)
    assert contents(root) == before
    assert not (root / LABELS).exists()


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "a b", "x" * 101])
def test_names_that_are_no_folder(name: str) -> None:
    with pytest.raises(InputError, match="cannot be the name of a label set"):
        LabelSettings(name=name)


def test_a_second_set_of_the_same_name_or_column(root: Path) -> None:
    label_from_table(root, pa.table({"word": [0], "x": ["a"]}), LabelSettings(name="mine"))
    before = contents(root)
    with pytest.raises(InputError, match="has a label set 'mine' already: give this one another name with --name"):
        label_from_table(root, pa.table({"word": [0], "y": ["a"]}), LabelSettings(name="Mine"))
    with pytest.raises(InputError, match="has 'x' already"):
        label_from_table(root, pa.table({"word": [0], "x": ["b"]}), LabelSettings(name="other"))
    assert contents(root) == before
    label_from_table(root, pa.table({"word": [0], "x": ["b"]}), LabelSettings(name="other", prefix="second_"))
    assert [labels.name for labels in open_lake(root).label_sets] == ["mine", "other"]
    assert open_lake(root).words(["x", "second_x"]).to_pylist()[0] == {"x": "a", "second_x": "b"}


def test_one_writer_at_a_time(root: Path) -> None:
    with writing(root), pytest.raises(InputError, match="is being written by"):
        label_from_table(root, pa.table({"word": [0], "x": ["a"]}))
    with pytest.raises(InputError, match=r"no label set 'x' in .*: it has none"):
        remove_label_set(root, "x")
