"""After `verify --repair` the same `extract` command gives the pristine bytes, whatever was damaged."""

import dataclasses
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lakes import forge_commit, synthetic_lake
from tiny import conllu, some_sentences
from tiny_world import SETTINGS, World, make_world

from neuronlake.cli.main import main
from neuronlake.extractor import ConlluCorpus, ExtractSettings, extract, resolve_model
from neuronlake.store import InputError, LakeSpec, create_lake, open_lake, verify
from neuronlake.store.commits import committed_blocks, read_commit
from neuronlake.store.create import discard_unfinished
from neuronlake.store.files import seal
from neuronlake.store.plan_record import PLAN_ASIDE, read_plan_record
from neuronlake.store.repair import RepairReport, repair


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def lake(world: World, tmp_path: Path) -> Path:
    root = tmp_path / "a.lake"
    shutil.copytree(world.lake, root)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def flip(path: Path, seed: int) -> None:
    data = bytearray(path.read_bytes())
    bit = int(np.random.default_rng(seed).integers(len(data) * 8))
    data[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(data)


def cut(path: Path, _seed: int) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path, _seed: int) -> None:
    path.write_bytes(b"")


def zero(path: Path, _seed: int) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def delete(path: Path, _seed: int) -> None:
    path.unlink()


def shards_kept(before: dict[str, bytes], root: Path, report: RepairReport) -> bool:
    """Whether all files of all blocks that the repair did not drop are as they were."""
    after = contents(root)
    return all(
        after.get(path) == data
        for path, data in before.items()
        if path.startswith("activations/") and "/c." in path
        if int(path.split("/c.")[1].split(".")[0]) not in report.redo
    )


@pytest.mark.parametrize("damage", [flip, cut, empty, zero, delete])
def test_every_file_can_be_damaged(world: World, tmp_path: Path, damage: Callable[[Path, int], None]) -> None:
    """Each file of the lake in turn: repair says what it did, keeps every other block, and extract restores all bytes."""
    expected = contents(world.lake)
    assert len(expected) > 20
    for number, name in enumerate(sorted(expected)):
        root = tmp_path / "a.lake"
        shutil.copytree(world.lake, root)
        damage(root / name, number)
        before = contents(root)
        report = repair(root, full=True)
        assert report.ok, (name, report)
        assert not report.refused
        if not (name.startswith("commits/") and damage is delete):  # a block that was never committed is no damage
            assert report.damage, name
        assert report.actions, name
        assert shards_kept(before, root, report) or name.startswith("commits/")
        assert len(report.redo) <= 1
        if not report.plan_again:
            assert verify(root, full=True).ok, name
        again = world.extract(root)
        assert set(report.redo) <= set(again)
        assert len(again) <= 1, f"{name}: blocks {again} were extracted again"
        assert contents(root) == expected, name
        shutil.rmtree(root)


def test_scales_belong_to_their_block(world: World, tmp_path: Path) -> None:
    root = tmp_path / "a.lake"
    world.extract(root, encoding="int8a")
    expected = contents(root)
    for damage in (flip, delete):
        damage(root / "scales/mlp.post/c.0.1.0.0", 0)
        damage(root / "scales/mlp.post/zarr.json", 0)
        report = repair(root, full=True)
        assert (report.ok, report.redo, report.plan_again) == (True, [1], False)
        assert not (root / "scales/mlp.post/c.0.1.0.0").exists()
        assert world.extract(root, encoding="int8a") == (1,)
        assert contents(root) == expected


def test_a_healthy_lake_is_left_alone(world: World, lake: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in lake.rglob("*") if path.is_file()}
    report = repair(lake, full=True)
    assert report.ok
    assert (report.actions, report.redo, report.damage, report.plan_again) == ([], [], [], False)
    assert {path: path.stat().st_mtime_ns for path in lake.rglob("*") if path.is_file()} == before
    assert contents(lake) == contents(world.lake)


def test_several_kinds_of_damage_at_once(world: World, lake: Path) -> None:
    delete(lake / "zarr.json", 0)
    flip(lake / "activations/mlp.post/1/zarr.json", 1)
    cut(lake / "words/block-000001.parquet", 0)
    flip(lake / "activations/mlp.post/0/c.0.0", 2)
    flip(lake / "commits/block-000002.json", 3)
    (lake / "notes.txt").write_text("mine")
    report = repair(lake, full=True)
    assert report.ok
    assert report.redo == [0, 2]
    assert report.plan_again
    with pytest.raises(InputError, match="plan is not finished; run the command that began it"):
        open_lake(lake)
    assert world.extract(lake) == (0, 2)
    assert (lake / "notes.txt").read_text() == "mine"
    (lake / "notes.txt").unlink()
    assert contents(lake) == contents(world.lake)


def test_root_and_plan_record_both_lost(world: World, lake: Path) -> None:
    """The commit records name the lake, and the command that is run again must give the same name."""
    flip(lake / "zarr.json", 0)
    cut(lake / "plan/plan.json", 0)
    report = repair(lake)
    assert report.ok
    assert report.plan_again
    before = contents(lake)
    for other in ({"encoding": "bfloat16"}, {"block_rows": 512}):
        with pytest.raises(InputError, match=r"lost its zarr.json, and its records are of a lake with other settings"):
            world.extract(lake, **other)
        assert contents(lake) == before
    assert world.extract(lake) == ()
    assert contents(lake) == contents(world.lake)


def test_nothing_says_what_a_lake_was_of(tmp_path: Path) -> None:
    """Commit records without the lake's fingerprint, both other records lost: refused, and nothing is touched."""
    root = tmp_path / "a.lake"
    synthetic_lake(root)
    for block in committed_blocks(root):
        forge_commit(root, dataclasses.replace(read_commit(root, block), provenance={}))
    for name in ("zarr.json", "plan/plan.json"):
        (root / name).write_text("{")
    before = contents(root)
    report = repair(root, full=True)
    assert not report.ok
    assert "both lost" in report.refused[0]
    assert contents(root) == before


def test_plan_records_without_a_copy_of_the_settings_are_read(world: World, lake: Path) -> None:
    """As older versions wrote them: the root is then restored by the extract command itself."""
    record = json.loads((lake / "plan/plan.json").read_text())
    del record["crc32c"], record["spec"]
    (lake / "plan/plan.json").write_bytes(seal(record))
    assert read_plan_record(lake).spec is None  # type: ignore[union-attr]
    assert verify(lake, full=True).ok
    old = contents(lake)
    flip(lake / "zarr.json", 0)
    assert repair(lake).ok
    assert world.extract(lake) == ()
    assert contents(lake) == old


def test_a_plan_record_of_another_lake(world: World, lake: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.lake"
    world.extract(other, encoding="bfloat16", blocks=(0, 1))
    shutil.copy(other / "plan/plan.json", lake / "plan/plan.json")
    with pytest.raises(RuntimeError, match="belong to different lakes"):
        world.extract(lake)
    report = repair(lake)
    assert report.ok, report
    assert report.plan_again
    assert not report.redo
    assert world.extract(lake) == ()
    assert contents(lake) == contents(world.lake)


def test_a_root_of_another_lake(world: World, lake: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.lake"
    world.extract(other, encoding="bfloat16", blocks=(0, 1))
    shutil.copy(other / "zarr.json", lake / "zarr.json")
    assert repair(lake).ok
    assert contents(lake) == contents(world.lake)


def test_root_and_plan_record_of_another_lake_drop_nothing(world: World, lake: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.lake"
    world.extract(other, encoding="bfloat16", blocks=(0, 1))
    for name in ("zarr.json", "plan/plan.json"):
        shutil.copy(other / name, lake / name)
    before = contents(lake)
    report = repair(lake, full=True)
    assert not report.ok
    assert "every committed block is of another lake" in report.refused[0]
    assert contents(lake) == before


def test_a_commit_of_another_lake_and_one_beyond_the_plan(world: World, lake: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.lake"
    world.extract(other, dtype="bfloat16", blocks=(1, 2))
    for name, data in contents(other).items():
        if (name.startswith("activations/") and "/c.1.0" in name) or name.startswith("commits/"):
            (lake / name).write_bytes(data)  # a whole block, valid in itself
    assert not verify(lake).ok, "the commit record names its lake"
    blocks = open_lake(lake).plan.blocks
    forge_commit(lake, dataclasses.replace(read_commit(lake, 0), block=blocks))
    report = repair(lake)
    assert report.ok
    assert report.redo == [1]
    assert committed_blocks(lake) == tuple(block for block in range(blocks) if block != 1)
    assert world.extract(lake) == (1,)
    assert contents(lake) == contents(world.lake)


def test_leftovers_are_removed_and_foreign_files_kept(world: World, lake: Path) -> None:
    (lake / "commits/block-000001.json").unlink()
    stale = lake / "plan" / f".x.{socket.gethostname().replace('.', '-')}.999999999.abc.tmp"
    # of another host, too: nobody else is writing while the lake is held alone
    elsewhere = lake / "plan/.x.another-host.1.abc.tmp"
    for path in (stale, elsewhere):
        path.write_text("half")
    foreign = [lake / "commits/README", lake / "activations/mlp.post/0/c.1.0.bak"]
    for path in foreign:
        path.write_text("kept")
    report = repair(lake)
    assert report.ok
    assert not stale.exists()
    assert not elsewhere.exists()
    assert not (lake / "activations/mlp.post/0/c.1.0").exists()
    assert all(path.read_text() == "kept" for path in foreign)
    for path in foreign:
        path.unlink()
    assert world.extract(lake) == (1,)
    assert contents(lake) == contents(world.lake)


# ---- committed blocks survive whatever happens before the plan is there again ---------------------------------------


def activations(root: Path) -> dict[str, bytes]:
    return {path: data for path, data in contents(root).items() if path.startswith(("activations/", "commits/"))}


def test_no_plan_record_never_costs_a_block(world: World, lake: Path, tmp_path: Path) -> None:
    """Other settings, bad input, another tokenisation: each is refused and leaves all of the lake as it was."""
    (lake / "plan/plan.json").unlink()
    before = contents(lake)
    with pytest.raises(InputError, match=r"different plan \(encoding"):
        world.extract(lake, encoding="bfloat16")
    assert contents(lake) == before
    with pytest.raises(ValueError, match="not ours to discard"):
        discard_unfinished(lake)
    spec = open_lake(world.lake).spec
    with pytest.raises(InputError, match="different plan"):
        create_lake(lake, dataclasses.replace(spec, block_rows=512))
    assert contents(lake) == before

    bad = tmp_path / "tiny.conllu"
    bad.write_text(world.treebank.read_text(encoding="utf-8").replace("\tdep\t_\t_", "\tdep\t_", 1), encoding="utf-8")
    corpus = ConlluCorpus(paths=(world.treebank,))
    same = corpus.identity()
    broken = ConlluCorpus(paths=(bad,))
    object.__setattr__(broken, "identity", lambda: same)  # the file went bad between hashing and reading
    with pytest.raises(InputError, match=r"tiny.conllu:\d+"):
        extract(lake, broken, world.source, ExtractSettings(**SETTINGS))  # type: ignore[arg-type]
    assert contents(lake) == before

    shorter = tmp_path / "short.conllu"
    shorter.write_text(conllu(some_sentences(20)), encoding="utf-8")
    other = ConlluCorpus(paths=(shorter,))
    object.__setattr__(other, "identity", lambda: same)
    with pytest.raises(InputError, match="plan made now is not the one that its committed blocks were extracted with"):
        extract(lake, other, world.source, ExtractSettings(**SETTINGS))  # type: ignore[arg-type]
    assert contents(lake) == before
    assert world.extract(lake) == ()
    assert contents(lake) == contents(world.lake)


def test_a_plan_that_comes_out_otherwise_is_refused(world: World, lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table was damaged and set aside; a library that tokenises otherwise now must not take its place."""
    import neuronlake.store.tables as tables

    cut(lake / "plan/block-000001.parquet", 0)
    assert repair(lake).ok
    assert (lake / PLAN_ASIDE).exists()
    before = activations(lake)
    honest = tables.to_parquet

    def other_tokens(table):  # type: ignore[no-untyped-def]
        if "token_id" in table.column_names and table.column("row")[0].as_py() == 256:
            ids = table.column("token_id").to_numpy().copy()
            ids[3] += 1
            table = table.set_column(table.column_names.index("token_id"), "token_id", [ids])
        return honest(table)

    monkeypatch.setattr(tables, "to_parquet", other_tokens)
    with pytest.raises(InputError, match=r"plan/block-000001.parquet differs from its record"):
        world.extract(lake)
    assert activations(lake) == before
    monkeypatch.undo()
    assert world.extract(lake) == ()
    assert contents(lake) == contents(world.lake)


def test_another_parquet_library_may_write_other_bytes(world: World, lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    import pyarrow.parquet as pq

    import neuronlake.store.tables as tables

    def uncompressed(table):  # type: ignore[no-untyped-def]
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="none", write_page_checksum=True)
        return sink.getvalue()

    delete(lake / "plan/block-000001.parquet", 0)
    assert repair(lake).ok
    before = activations(lake)
    tokens = open_lake(world.lake).tokens(labels=["upos"])
    monkeypatch.setattr(tables, "to_parquet", uncompressed)
    assert world.extract(lake) == ()
    assert activations(lake) == before
    assert verify(lake, full=True).ok
    assert open_lake(lake).tokens(labels=["upos"]).equals(tokens)


def test_a_renamed_model_does_not_change_what_the_lake_says(world: World, lake: Path, tmp_path: Path) -> None:
    shutil.copytree(world.source.folder, tmp_path / "renamed")
    renamed = dataclasses.replace(world, source=resolve_model(str(tmp_path / "renamed")))
    for damage in ("zarr.json", "plan/plan.json"):
        delete(lake / damage, 0)
        assert renamed.extract(lake) == ()  # no repair is needed when it is simply gone
        assert contents(lake) == contents(world.lake)


# ---- the command ------------------------------------------------------------------------------------------------------


def test_the_command(world: World, lake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(lake / "activations/mlp.post/0/c.1.0", 0)
    assert main(["verify", str(lake), "--full"]) == 1
    assert "--full --repair" in capsys.readouterr().out
    assert main(["verify", str(lake), "--full", "--repair"]) == 0
    out = capsys.readouterr().out
    assert "block 1: dropped (activations/mlp.post/0/c.1.0: xxh3" in out
    assert f"(neuronlake extract or import {lake} …) to extract block 1" in out
    assert main(["verify", str(lake), "--full", "--repair", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["actions"] == []
    assert world.extract(lake) == (1,)
    assert main(["verify", str(lake), "--full"]) == 0


def test_specs_survive_the_plan_record(world: World) -> None:
    plan = read_plan_record(world.lake)
    assert plan is not None
    assert plan.spec is not None
    spec = LakeSpec.from_dict(plan.spec, world.lake)
    assert spec.fingerprint == open_lake(world.lake).fingerprint == plan.fingerprint
    assert spec.as_dict() == json.loads((world.lake / "zarr.json").read_text())["attributes"]["neuronlake"]
