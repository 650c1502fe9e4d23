"""A copy is the lake, byte for byte, whatever happens on the way."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from lakes import GrowingLake
from moving import SITES, committed_values, kill_and_finish, label, text_lake, tree

from neuronlake.cli.main import main
from neuronlake.store import DamageError, InputError, open_lake, verify
from neuronlake.store.commits import read_commit, write_commit
from neuronlake.store.copying import copy_lake
from neuronlake.store.files import FileRecord, file_checksum


def furnish(root: Path) -> None:
    """Give a lake an index, lists, statistics with what is asked for later, covariances, and labels."""
    label(root)
    assert main(["index", str(root), "--by", "upos"]) == 0
    assert main(["rank", str(root), "--by", "upos", "--method", "average_precision", "--top", "1"]) == 0
    assert main(["neighbours", str(root), "L0.N1", "-k", "1"]) == 0


def test_a_copy_has_the_same_bytes_and_a_second_one_copies_nothing(tmp_path: Path) -> None:
    root = tmp_path / "a.lake"
    text_lake(root, 1, encoding="int8a")
    furnish(root)
    report = copy_lake(root, tmp_path / "b.lake")
    assert tree(tmp_path / "b.lake") == tree(root)
    assert report.copied == report.blocks == open_lake(root).blocks
    assert report.left == []
    assert {line.partition("/")[0] for line in report.results} == {"labels", "index", "statistics"}
    assert verify(tmp_path / "b.lake", full=True).ok
    again = copy_lake(root, tmp_path / "b.lake")
    assert (again.copied, again.files, again.bytes) == ((), 0, 0)
    assert tree(tmp_path / "b.lake") == tree(root)


def test_blocks_and_results_may_stay_behind_and_come_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, target = tmp_path / "a.lake", tmp_path / "b.lake"
    text_lake(root, 1)
    furnish(root)
    capsys.readouterr()
    assert main(["copy", str(root), str(target), "--blocks", "1:2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["blocks"], found["copied"], found["results"]) == ([1], [1], ["labels/mood"])
    assert all("covers" in line for line in found["left"])
    assert open_lake(target).blocks == (1,)
    assert not (target / "index").exists()
    assert verify(target, full=True).ok
    assert main(["copy", str(root), str(target), "--no-index", "--no-kept"]) == 0
    assert tree(target, results=False) == tree(root, results=False)
    assert not (target / "index").exists()
    assert not (target / "statistics").exists()
    assert main(["copy", str(root), str(target)]) == 0
    assert tree(target) == tree(root)


def test_a_lake_that_grows_meanwhile_is_copied_as_far_as_it_is_committed(tmp_path: Path) -> None:
    growing = GrowingLake(tmp_path / "a.lake")
    growing.commit(0, 1)
    seen: list[int] = []

    def grow(done: int, _total: int) -> None:
        if not seen:
            growing.commit(2, 3)
        seen.append(done)

    copy_lake(tmp_path / "a.lake", tmp_path / "b.lake", progress=grow)
    assert open_lake(tmp_path / "b.lake").blocks == (0, 1)
    assert verify(tmp_path / "b.lake", full=True).ok
    growing.commit(4, 5)
    assert copy_lake(tmp_path / "a.lake", tmp_path / "b.lake").copied == (2, 3, 4, 5)
    assert tree(tmp_path / "b.lake", results=False) == tree(tmp_path / "a.lake", results=False)


def test_readers_of_a_copy_under_way_see_committed_blocks_only(tmp_path: Path) -> None:
    source = text_lake(tmp_path / "a.lake", 1, tokens=400)
    whole = {site: source.read(layer=1, site=site) for site in SITES}
    seen: list[int] = []

    def read(done: int, total: int) -> None:
        assert 0 < done <= total
        lake = open_lake(tmp_path / "b.lake")
        seen.append(len(lake.blocks))
        for block in lake.blocks:
            rows = slice(block * 64, (block + 1) * 64)
            for site in SITES:
                np.testing.assert_array_equal(lake.read(layer=1, rows=rows, site=site), whole[site][rows])

    copy_lake(tmp_path / "a.lake", tmp_path / "b.lake", progress=read)
    assert sorted(set(seen)) == list(range(len(source.blocks)))


@pytest.mark.parametrize(
    "path", ["activations/resid.post/1/c.1.0", "scales/mlp.post/c.0.1.0.0", "words/block-000001.parquet"]
)
def test_what_is_damaged_is_not_copied(tmp_path: Path, path: str) -> None:
    root, target = tmp_path / "a.lake", tmp_path / "b.lake"
    text_lake(root, 1, encoding="int8a")
    whole = (root / path).read_bytes()
    (root / path).write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    with pytest.raises(DamageError, match=rf"{path}.* does not match its record"):
        copy_lake(root, target)
    assert not (target / path).exists()
    (root / path).unlink()
    with pytest.raises(DamageError, match=rf"{path}.* is missing"):
        copy_lake(root, target)
    (root / path).write_bytes(whole)
    copy_lake(root, target)
    assert tree(target) == tree(root)


def test_a_damaged_file_of_the_copy_is_copied_again_if_its_size_tells(tmp_path: Path) -> None:
    root, target = tmp_path / "a.lake", tmp_path / "b.lake"
    text_lake(root, 1)
    copy_lake(root, target)
    (target / "activations/mlp.post/0/c.0.0").write_bytes(b"short")
    (target / "activations/mlp.post/1/c.1.0").unlink()
    assert copy_lake(root, target).files == 2
    assert tree(target) == tree(root)


def test_blocks_that_another_machine_computed_stay(tmp_path: Path) -> None:
    source = text_lake(tmp_path / "a.lake", 1)
    other = tmp_path / "b.lake"
    copy_lake(source.path, other, blocks=(1, 2))
    path = other / "activations/mlp.post/0/c.1.0"
    data = path.read_bytes()
    path.write_bytes(data + b" ")  # as it were other bits
    size, checksum = file_checksum(path)
    commit = read_commit(other, 1)
    files = [
        FileRecord(path=file.path, bytes=size, xxh3=checksum) if file.path == "activations/mlp.post/0/c.1.0" else file
        for file in commit.files
    ]
    write_commit(other, dataclasses.replace(commit, files=tuple(files)))
    report = copy_lake(source.path, other)
    assert report.differing == (1,)
    assert path.read_bytes() == data + b" "
    assert open_lake(other).complete


def test_kills_at_calls(tmp_path: Path) -> None:
    """Real SIGKILLs: what is committed is right at any moment, and the same command ends with the same bytes."""
    source = text_lake(tmp_path / "a.lake", 1, tokens=100, encoding="float16")
    label(source.path)
    expected, values = tree(source.path), committed_values(source, "mlp.post")

    def check(root: Path) -> None:
        try:
            lake = open_lake(root)
        except InputError:
            return  # the plan was not there yet
        assert lake.blocks == tuple(range(len(lake.blocks)))
        assert verify(root, full=True).ok
        if lake.blocks:
            found = committed_values(lake, "mlp.post")
            np.testing.assert_array_equal(found, values[:, : found.shape[1]])

    kill_and_finish(tmp_path, {"kind": "copy", "sources": [str(source.path)]}, check, expected, kills=7)


def test_what_cannot_be_copied_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "a.lake"
    text_lake(root, 1)
    text_lake(tmp_path / "other.lake", 2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    before = tree(tmp_path)
    for target, message in (
        (root, "are the same lake"),
        (root / "copy", "lies inside"),
        (tmp_path, "lies inside"),
        (tmp_path / "other.lake", "holds another lake"),
        (tmp_path / "full", "exists and is not a lake (it has thesis.tex)"),
        (tmp_path / "full" / "thesis.tex", "is a file"),
    ):
        assert main(["copy", str(root), str(target)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert main(["copy", str(tmp_path / "nothing"), str(tmp_path / "b")]) == 2
    assert "no lake at" in capsys.readouterr().err
    assert main(["copy", str(root), str(tmp_path / "b"), "--blocks", "7:9"]) == 2
    assert "the plan of" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["copy", str(root), str(tmp_path / "b"), "--blocks", "3:1"])
    assert "expected FIRST:LAST" in capsys.readouterr().err
    assert tree(tmp_path) == before
    assert not (tmp_path / "b").exists()
