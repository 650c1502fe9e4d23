"""Damage is found by `verify` and never returned as data; a file system that refuses loses nothing."""

import dataclasses
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lakes import forge_commit, make_spec, plan_lake, random_sentences, synthetic_lake, write_blocks

from neuronlake.cli.main import main
from neuronlake.store import DamageError, InputError, StorageError, create_lake, open_lake, verify
from neuronlake.store.commits import read_commit
from neuronlake.store.files import storage_error, write_file


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pristine") / "a.lake"
    synthetic_lake(root, tokens=100)
    return root


def files(root: Path) -> list[Path]:
    return sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())


def read_everything(root: Path) -> list[np.ndarray]:
    lake = open_lake(root)
    tables = [lake.tokens(labels=["upos"]), lake.words(), lake.sentences()]
    return [lake.read(layer=layer) for layer in lake.layers] + [
        np.array(table.to_pylist(), dtype=object) for table in tables
    ]


def test_bit_flips_are_found_and_never_returned(pristine: Path, tmp_path: Path) -> None:
    """Every file kind, 150 random single-bit flips: verify finds each, reading either fails or gives the old data."""
    rng = np.random.default_rng(1)
    before = read_everything(pristine)
    everything = files(pristine)
    for case in range(150):
        broken = tmp_path / f"{case}.lake"
        shutil.copytree(pristine, broken)
        path = broken / everything[case % len(everything)]
        data = bytearray(path.read_bytes())
        bit = int(rng.integers(len(data) * 8))
        data[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(data)
        try:
            found = not verify(broken, full=True).ok
        except InputError:  # the root's metadata no longer says that this is a lake
            found = True
        assert found, f"flip of bit {bit} in {path.relative_to(broken)} was not found"
        try:
            after = read_everything(broken)
        except (DamageError, InputError):
            continue
        for old, new in zip(before, after, strict=True):
            np.testing.assert_array_equal(old, new)


def test_truncations_and_missing_files_are_found_without_reading_all(pristine: Path, tmp_path: Path) -> None:
    for case, name in enumerate(files(pristine)):
        broken = tmp_path / f"{case}.lake"
        shutil.copytree(pristine, broken)
        path = broken / name
        if case % 2:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-1])
        if name.parts[0] == "commits" and case % 2:
            assert len(open_lake(broken).blocks) == len(open_lake(pristine).blocks) - 1  # simply not committed
            continue
        try:
            assert not verify(broken).ok, f"{name} was cut or removed and the quick check passed"
        except InputError:
            assert name.name in ("zarr.json", "plan.json")


def test_unknown_files_are_reported_and_ignored(pristine: Path, tmp_path: Path) -> None:
    root = tmp_path / "a.lake"
    shutil.copytree(pristine, root)
    (root / "activations" / "stray").write_text("?")
    report = verify(root, full=True)
    assert report.ok
    assert report.unknown_files == ["activations/stray"]


def test_shards_of_uncommitted_blocks_are_leftovers(pristine: Path, tmp_path: Path) -> None:
    root = tmp_path / "a.lake"
    shutil.copytree(pristine, root)
    (root / "commits" / "block-000001.json").unlink()
    (root / "activations" / "mlp.post" / "7").mkdir()
    (root / "activations" / "mlp.post" / "7" / "c.1.0").write_text("a layer that the lake does not have")
    report = verify(root)
    assert report.ok
    assert report.leftovers == [f"activations/mlp.post/{layer}/c.1.0" for layer in (0, 1)]
    assert report.unknown_files == ["activations/mlp.post/7/c.1.0"]


def test_the_quick_check_reads_all_metadata_and_compares_the_records(pristine: Path, tmp_path: Path) -> None:
    """What keeps a file's size and costs nothing to see is seen without --full."""
    cases = {
        "activations/mlp.post/1/zarr.json": (b'"layer": 1', b'"layer": 0', "mlp.post/1/zarr.json: xxh3"),
        "zarr.json": (b'"name": "synthetic"', b'"name": "synthesis"', "zarr.json: xxh3"),
    }
    for case, (path, (old, new, match)) in enumerate(cases.items()):
        root = tmp_path / f"{case}.lake"
        shutil.copytree(pristine, root)
        data = (root / path).read_bytes()
        assert data.count(old) == 1
        (root / path).write_bytes(data.replace(old, new))
        assert match in " ".join(verify(root).damage)
    root = tmp_path / "commits.lake"
    shutil.copytree(pristine, root)
    commit = read_commit(root, 0)
    forge_commit(root, dataclasses.replace(commit, files=(*commit.files[:-1], commit.files[0])))
    assert "lists 2 files, not 2 (first difference activations/mlp.post/1/c.0.0)" in " ".join(verify(root).damage)
    forge_commit(root, dataclasses.replace(commit, provenance={"lake": "0" * 64}))
    assert "commits/block-000000.json: is the record of a block of another lake" in verify(root).damage
    forge_commit(root, dataclasses.replace(commit, rows=commit.rows - 1))
    assert verify(root).ok
    assert f"has {commit.rows - 1} rows, the plan {commit.rows}" in " ".join(verify(root, full=True).damage)
    forge_commit(root, commit)
    assert verify(root, full=True).ok
    forge_commit(root, dataclasses.replace(commit, block=7))
    assert "commits/block-000007.json: the plan has only 2 blocks" in verify(root).damage


def test_a_lake_of_another_format_is_one_line(pristine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command that opens a lake, and every part of one that may come from another version."""
    for version in (0, 2):
        root = tmp_path / f"{version}.lake"
        create_lake(root, open_lake(pristine).spec)
        text = (root / "zarr.json").read_text()
        (root / "zarr.json").write_text(text.replace('"format_version": 1', f'"format_version": {version}'))
        for command in (["info"], ["verify"], ["verify", "--full", "--repair"], ["top", "L0.N0"]):
            assert main([command[0], str(root), *command[1:]]) == 2
            captured = capsys.readouterr()
            assert captured.err.count("\n") == 1
            assert f"is of lake format {version}, this neuronlake reads format 1" in captured.err
            assert captured.out == ""


def test_what_is_no_lake_is_left_alone_by_repair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("kept")
    cases = dict.fromkeys(("empty", "full", "full/thesis.txt"), "is not a lake") | {"missing": "not exist"}
    for name, message in cases.items():
        assert main(["verify", str(tmp_path / name), "--repair"]) == 2
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "full", "thesis.txt"]


def test_leftovers_of_dead_processes_are_removed(pristine: Path, tmp_path: Path) -> None:
    root = tmp_path / "a.lake"
    shutil.copytree(pristine, root)
    code = (
        "import sys, os; from pathlib import Path; from neuronlake.store.files import write_file\n"
        "def parts():\n    yield b'x'; os._exit(9)\n"
        f"write_file(Path({str(root)!r}), 'activations/mlp.post/0/c.0.0', parts())"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    report = verify(root, full=True)
    assert (len(report.leftovers), report.unknown_files) == (1, [])
    create_lake(root, open_lake(root).spec)
    assert verify(root, full=True).leftovers == []


def test_a_lake_with_other_settings_is_refused(pristine: Path) -> None:
    other = make_spec(layers=2, neurons=10, block_rows=32, chunk_neurons=4, encoding="float32")
    with pytest.raises(InputError, match=r"different plan \(block_rows: 64 in the lake, 32 now; encoding: .float16. in"):
        create_lake(pristine, other)
    assert verify(pristine, full=True).ok


def test_a_folder_that_is_no_lake_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not lose me")
    spec = make_spec(layers=1, neurons=4, block_rows=16, chunk_neurons=4, encoding="float32")
    with pytest.raises(InputError, match="exists and is not a lake"):
        create_lake(tmp_path, spec)
    with pytest.raises(InputError, match=r"not a lake: it has no zarr.json"):
        open_lake(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        open_lake(tmp_path / "nothing")
    assert (tmp_path / "thesis.txt").read_text() == "do not lose me"


def test_unfinished_plan_is_said(tmp_path: Path) -> None:
    create_lake(tmp_path / "a.lake", make_spec(layers=1, neurons=4, block_rows=16, chunk_neurons=4, encoding="float32"))
    with pytest.raises(InputError, match="plan is not finished"):
        open_lake(tmp_path / "a.lake")


def test_an_error_of_the_background_write_reaches_the_caller(tmp_path: Path) -> None:
    """A file stands where a layer's folder should be: the block is not committed and the caller hears of it."""
    root = tmp_path / "a.lake"
    rng = np.random.default_rng(0)
    spec = make_spec(layers=1, neurons=4, block_rows=16, chunk_neurons=4, encoding="float32")
    record, rows = plan_lake(root, spec, random_sentences(rng, 40, tags=("A",)))
    shutil.rmtree(root / "activations")
    (root / "activations").write_text("in the way")
    with pytest.raises(StorageError, match="could not write"):
        write_blocks(root, spec, record, rows, np.ones((1, 40, 4), dtype=np.float32))
    assert open_lake(root).blocks == ()


def test_full_disk(tmp_path: Path) -> None:
    """On a real 1 MB file system: a clear error, committed blocks stay valid, nothing half-written is left."""
    script = f"""
import sys; sys.path[:0] = {[str(Path(__file__).parent)]!r}
import numpy as np
from pathlib import Path
from lakes import make_spec, plan_lake, random_sentences, write_blocks
from neuronlake.store import StorageError, open_lake, verify
root = Path(sys.argv[1]) / "a.lake"
rng = np.random.default_rng(0)
spec = make_spec(layers=2, neurons=256, block_rows=128, chunk_neurons=64, encoding="float32")
record, rows = plan_lake(root, spec, random_sentences(rng, 800, tags=("A",)))
values = rng.standard_normal((2, 800, 256)).astype(np.float32)
try:
    write_blocks(root, spec, record, rows, values)
except StorageError as error:
    print(error)
report = verify(root, full=True)
assert report.ok and 0 < report.blocks_committed < report.blocks_planned, report
assert not list(root.rglob(".*.tmp"))
blocks = open_lake(root).blocks
mine = np.isin(rows // 128, blocks)
assert np.array_equal(open_lake(root).read(layer=1, rows=rows[mine]), values[1][mine])
"""
    (tmp_path / "disk").mkdir()
    mount = f'mount -t tmpfs -o size=1m none {tmp_path}/disk && exec {sys.executable} -c "$SCRIPT" {tmp_path}/disk'
    result = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount],
        env={**os.environ, "SCRIPT": script},
        capture_output=True,
        text=True,
        check=False,
    )
    if "Operation not permitted" in result.stderr or "unshare failed" in result.stderr:
        pytest.skip("this system does not let an ordinary process mount a small file system")
    assert result.returncode == 0, result.stderr
    assert "disk full" in result.stdout
    assert "committed blocks are safe" in result.stdout


def test_a_read_only_folder_says_so() -> None:
    error = storage_error(OSError(errno.EROFS, "Read-only file system"), Path("/x/y"), "write")
    assert "Read-only file system" in str(error)


def test_write_file_leaves_nothing_behind_on_failure(tmp_path: Path) -> None:
    def parts():  # type: ignore[no-untyped-def]
        yield b"half"
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(StorageError, match="Input/output error"):
        write_file(tmp_path, "folder/file", parts())
    assert list((tmp_path / "folder").iterdir()) == []


def test_exchanged_shards_are_found(tmp_path: Path) -> None:
    """Whole shards of the same size, each with checksums that fit: only the record of the whole file can tell."""
    root = tmp_path / "a.lake"
    values = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
    synthetic_lake(
        root, tokens=64, neurons=4, block_rows=64, encoding="float32", values=np.stack([values, -values])
    )  # a bit plane and its complement compress alike
    one, other = root / "activations/mlp.post/0/c.0.0", root / "activations/mlp.post/1/c.0.0"
    first, second = one.read_bytes(), other.read_bytes()
    assert first != second
    assert len(first) == len(second)
    one.write_bytes(second)
    other.write_bytes(first)
    assert verify(root).ok, "sizes alone cannot tell"
    damage = verify(root, full=True).damage
    assert [line.split(" ")[:2] for line in damage] == [
        ["activations/mlp.post/0/c.0.0:", "xxh3"],
        ["activations/mlp.post/1/c.0.0:", "xxh3"],
    ]
