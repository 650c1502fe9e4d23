"""Added labels survive everything, or are gone whole: kills, refused calls, power cuts, damage, repairs."""

import io
import json
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faults import ERRORS, Call, Faults, at, flip, refuse
from forks import ForkServer
from labelling_run import TABLE, WORDS, label
from lakes import make_spec, plan_lake, random_sentences, synthetic_lake
from powercut import cuts, materialise
from tiny_world import World, make_world

import neuronlake.store.tables as tables
from neuronlake.analysis import compute_statistics
from neuronlake.store import (
    DamageError,
    LabelSettings,
    Lake,
    StorageError,
    label_from_table,
    open_lake,
    remove_label_set,
    repair,
    verify,
)
from neuronlake.store.label_sets import LABELS

TESTS = str(Path(__file__).parent)


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def labels_of(root: Path, column: str = "x") -> list[str | None]:
    lake = open_lake(root)
    planned = Lake(lake.path, lake.spec, lake.plan, tuple(range(lake.plan.blocks)))
    found: list[str | None] = planned.words([column]).column(column).to_pylist()
    return found


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lakes") / "a.lake"
    synthetic_lake(root, tokens=WORDS)
    return root


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "area" / "a.lake"))


def check_whole_or_nothing(root: Path, *, expected: bool | None = None) -> bool:
    """Assert that the labels are all there or not at all, and return which."""
    report = verify(root, full=True)
    assert report.ok, report.damage
    lake = open_lake(root)
    there = "x" in lake.label_columns
    if there:
        assert labels_of(root) == TABLE.column("x").to_pylist()
    assert expected is None or there == expected
    return there


# ---- adding -----------------------------------------------------------------------------------------------------------


def test_a_kill_at_any_call_adds_all_or_nothing(original: Path, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(original, tmp_path / "whole.lake"))
    with Faults(whole, sync=False) as faults:
        label(whole)
    assert faults.count > 20
    server = ForkServer("import labelling_run\ndef work(request): labelling_run.label_until_killed(**request)\n")
    seen = set()
    with server:
        for number in range(faults.count):
            root = Path(shutil.copytree(original, tmp_path / "area" / "a.lake"))
            server.start(root=str(root), number=number, when=("before", "within", "after")[number % 3])
            assert server.wait() == -9
            there = check_whole_or_nothing(root)
            seen.add(there)
            if not there:
                label(root)  # what the killed run left is in nobody's way, and goes
            after = {path: data for path, data in contents(root).items() if path != ".neuronlake.lock"}
            assert after == contents(whole)
            shutil.rmtree(root.parent)
    assert seen == {True, False}


def test_a_refused_call_adds_nothing(original: Path, tmp_path: Path) -> None:
    number, errors = 0, 0
    while True:
        root = Path(shutil.copytree(original, tmp_path / "area" / "a.lake"))
        with Faults(root.parent, at(number, refuse(ERRORS[number % len(ERRORS)])), sync=False) as faults:
            with suppress(StorageError):
                label(root)
                errors -= 1
            errors += 1
        if not faults.acted:
            break
        there = check_whole_or_nothing(root)
        if not there:
            assert not [path for path in contents(root) if path.startswith(f"{LABELS}/") and ".tmp" not in path]
            label(root)
            check_whole_or_nothing(root, expected=True)
        shutil.rmtree(root.parent)
        number += 2
    assert errors > 10


def test_power_cuts_while_labels_are_added_and_removed(tmp_path: Path) -> None:
    """In every state that POSIX allows after a cut, the labels are there whole or not at all; reported ones are there."""
    folder = tmp_path / "log"
    folder.mkdir()
    spec = make_spec(layers=1, neurons=4, block_rows=64, chunk_neurons=4, encoding="float16")
    with Faults(folder, keep=True) as faults:
        plan_lake(folder / "a.lake", spec, random_sentences(np.random.default_rng(3), WORDS, tags=("A", "B")))
        planned = faults.count
        label(folder / "a.lake")
        faults.mark("committed 0")
        added = faults.count
        remove_label_set(folder / "a.lake", "mine")
    calls = [call for call in faults.log if isinstance(call, Call)]
    assert len(calls) > added > planned
    rng = np.random.default_rng(1)
    states = list(cuts(faults.log, rng, random_states=2, each=True, points=range(planned, len(calls) + 1)))
    seen = set()
    for index in rng.choice(len(states), size=min(120, len(states)), replace=False):
        cut = states[index]
        area = tmp_path / "area"
        area.mkdir()
        materialise(cut.state, area)
        promised = cut.after == added and bool(cut.promised)
        seen.add(check_whole_or_nothing(area / "a.lake", expected=True if promised else None))
        shutil.rmtree(area)
    assert seen == {True, False}


# ---- damage -----------------------------------------------------------------------------------------------------------


def test_damage_is_found_and_never_data(original: Path, tmp_path: Path) -> None:
    """Every file of a set, flipped, cut and missing: found, named, and the set alone is dropped by a repair."""
    pristine = Path(shutil.copytree(original, tmp_path / "pristine.lake"))
    label(pristine, "other", "other_")
    without = contents(pristine)
    label(pristine)
    names = sorted(path.name for path in (pristine / LABELS / "mine").iterdir())
    assert len(names) > 2
    rng = np.random.default_rng(2)
    for name in names:
        for damage in ("flip", "cut", "missing"):
            root = Path(shutil.copytree(pristine, tmp_path / "a.lake"))
            path = root / LABELS / "mine" / name
            if damage == "flip":
                flip(path, int(rng.integers(path.stat().st_size * 8)))
            elif damage == "cut":
                path.write_bytes(path.read_bytes()[:-1])
            else:
                path.unlink()
            assert verify(root).ok == (damage == "flip" and name != "record.json")
            report = verify(root, full=True)
            (line,) = report.damage
            assert line.startswith("labels/mine: ")
            assert name in line
            assert not report.unknown_files
            with pytest.raises(DamageError, match=f"labels/mine/{name}"):
                labels_of(root)
            assert open_lake(root).tokens(labels=["upos"]).num_rows  # what the plan has needs no label set
            fixed = repair(root, full=True)
            assert fixed.ok
            assert fixed.actions == ["labels/mine: removed; `neuronlake label` adds it again from its source"]
            assert contents(root) == without
            shutil.rmtree(root)


def test_a_damaged_set_can_be_removed_by_name(root: Path) -> None:
    label(root)
    (root / LABELS / "mine" / "record.json").write_text("{")
    with pytest.raises(DamageError, match=r"label .*a\.lake --remove mine` removes these labels"):
        compute_statistics(open_lake(root), "upos")
    remove_label_set(root, "mine")
    assert not (root / LABELS).exists()


def test_what_is_not_ours_is_left_alone(root: Path) -> None:
    label(root)
    for path in ("labels/notes.txt", "labels/drafts/notes.txt", "labels/drafts/more/x.parquet"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("mine")
    report = verify(root, full=True)
    assert report.ok
    assert report.unknown_files == ["labels/drafts/more/x.parquet", "labels/drafts/notes.txt", "labels/notes.txt"]
    assert [labels.name for labels in open_lake(root).label_sets] == ["mine"]
    flip(root / LABELS / "mine" / "block-000000.parquet", 99)
    assert repair(root, full=True).ok
    assert (root / "labels/drafts/notes.txt").read_text() == "mine"


# ---- the plan that labels belong to -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def labelled(world: World, tmp_path: Path) -> Path:
    root = Path(shutil.copytree(world.lake, tmp_path / "a.lake"))
    lake = open_lake(root)
    words = range(lake.plan.counts["words"])
    label_from_table(root, pa.table({"word": words, "x": [f"x{word % 3}" for word in words]}), LabelSettings(name="mine"))
    return root


def expected_labels(root: Path) -> bool:
    found = open_lake(root).tokens(labels=["x"]).to_pylist()
    return all(row["x"] == (f"x{row['word'] % 3}" if row["word"] >= 0 else None) for row in found)


@pytest.mark.parametrize(
    "damaged", ["plan/plan.json", "words/block-000001.parquet", "zarr.json", "commits/block-000000.json"]
)
def test_repairs_of_anything_else_keep_the_labels(world: World, labelled: Path, damaged: str) -> None:
    before = contents(labelled)
    flip(labelled / damaged, 1000)
    report = repair(labelled, full=True)
    assert report.ok
    assert not any("labels" in action for action in report.actions)
    world.extract(labelled)
    assert contents(labelled) == before
    assert expected_labels(labelled)


def test_a_plan_written_again_by_another_library_keeps_its_labels(
    world: World,
    labelled: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Other bytes, the same words: what the record says of their content decides."""

    def uncompressed(table: pa.Table) -> bytes:
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="none", write_page_checksum=True)
        return sink.getvalue()

    (labelled / "words/block-000001.parquet").unlink()
    assert repair(labelled).ok
    monkeypatch.setattr(tables, "to_parquet", uncompressed)
    world.extract(labelled)
    assert expected_labels(labelled)
    assert verify(labelled, full=True).ok


def test_labels_of_a_plan_with_other_words_are_refused(labelled: Path) -> None:
    """The same fingerprint, but a word differs: as if the plan had been made again by a library that reads otherwise."""
    from neuronlake.store.files import file_checksum, seal, unseal

    path = labelled / "words/block-000001.parquet"
    words = pq.read_table(path)
    forms = words.column("form").to_pylist()
    forms[3] += "!"
    path.write_bytes(tables.to_parquet(words.set_column(words.column_names.index("form"), "form", pa.array(forms))))
    size, checksum = file_checksum(path)
    record = unseal((labelled / "plan/plan.json").read_bytes(), "plan")
    for entry in record["files"]:
        if entry["path"] == "words/block-000001.parquet":
            entry |= {"bytes": size, "xxh3": checksum}
    (labelled / "plan/plan.json").write_bytes(seal(record))
    with pytest.raises(DamageError, match=r"labels/mine/record.json is of another plan: words/block-000001.parquet differs"):
        open_lake(labelled).tokens(labels=["x"])
    (line,) = verify(labelled).damage
    assert line.startswith("labels/mine: labels/mine/record.json is of another plan")


def test_damaged_labels_do_not_end_an_extraction(world: World, labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Blocks need no labels; the statistics that would be gathered on the way are left out, and said to be."""
    from neuronlake.cli.main import main

    (labelled / "commits/block-000000.json").unlink()
    record = labelled / LABELS / "mine" / "record.json"
    record.write_text(json.dumps({"x": 1}))
    arguments = ["extract", str(labelled), "--model", str(world.source.folder), "--conllu", str(world.treebank)]
    assert main([*arguments, "--encoding", "float16", "--block-rows", "256", "--batch-tokens", "96"]) == 0
    assert "no statistics on the way" in capsys.readouterr().err.replace("\n", " ")
    assert open_lake(labelled).complete


def test_labels_of_a_lake_whose_record_grew(root: Path) -> None:
    """A block more or less in the record than in the plan."""
    from neuronlake.store.files import seal, unseal

    label(root)
    path = root / LABELS / "mine" / "record.json"
    record = unseal(path.read_bytes(), "record")
    for change in ({"tables": record["tables"][:-1]}, {"files": record["files"][:-1]}, {"of": "sentences"}):
        path.write_bytes(seal({**record, **change}))
        with pytest.raises(DamageError, match=r"record.json (is of another plan|lacks 'sentences')"):
            labels_of(root)
        assert not verify(root).ok


def test_readers_that_cannot_read(root: Path) -> None:
    import errno

    from faults import Reading

    label(root)
    with Reading(lambda path: "labels/mine/block" in path, errno.EIO), pytest.raises(StorageError, match="Input/output"):
        labels_of(root)
    with Reading(lambda path: "record.json" in path, errno.EIO), pytest.raises(StorageError, match="Input/output"):
        labels_of(root)
