"""Statistics kept in a lake: asked again they read nothing, and whatever happens to them, answers stay right."""

import copy
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

import numpy as np
import pytest
from lakes import GrowingLake, synthetic_lake
from lakes import assert_close_statistics as assert_close

import neuronlake.analysis.statistics as statistics
import neuronlake.store.layout as layout
from neuronlake.analysis import compute_several, compute_statistics, refine
from neuronlake.analysis.execute import run_all
from neuronlake.analysis.kept_statistics import KeptStatistics
from neuronlake.store import open_lake, repair, verify
from neuronlake.store.errors import StorageError
from neuronlake.store.kept import staging
from neuronlake.store.lake import Lake
from neuronlake.store.reader import ShardReader

ALSO = ["average_precision", "mutual_information", "quantiles"]


def fresh(lake, **options):
    return compute_statistics(lake, keep=False, **options)


def results(root):
    return sorted(path.name for path in (root / "statistics").iterdir())


@pytest.fixture
def lake(tmp_path):
    synthetic_lake(tmp_path / "a.lake", tokens=300)
    return open_lake(tmp_path / "a.lake")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    growing = GrowingLake(tmp_path_factory.mktemp("lakes") / "a.lake")
    compute_statistics(growing.commit(0, 1, 2), also=["average_precision"])
    return growing


@pytest.fixture
def growing(original, tmp_path):
    """Three blocks, and a kept result of them."""
    copied = copy.copy(original)
    copied.root = shutil.copytree(original.root, tmp_path / "a.lake")
    return copied


@pytest.fixture
def no_activations(monkeypatch):
    """From here on, reading a shard fails."""

    def forbid():
        monkeypatch.setattr(ShardReader, "_read", lambda *_: pytest.fail("an activation was read"))

    return forbid


def test_a_second_question_reads_no_activation(lake, no_activations):
    first = compute_statistics(lake)
    parts = compute_statistics(lake, only_folds=[0, 2])
    alone = fresh(lake, basic=True)
    no_activations()
    again = open_lake(lake.path)
    assert compute_statistics(again).identical(first)
    assert compute_statistics(again, only_folds=[0, 2]).identical(parts)
    np.testing.assert_allclose(compute_statistics(again, basic=True)["variance"], alone["variance"], rtol=1e-10)
    assert set(compute_statistics(again, basic=True).data_vars) == set(alone.data_vars)
    assert compute_statistics(again, layers=[1])["auroc"].identical(first["auroc"].sel(layer=[1]))
    assert len(results(lake.path)) == 1


def test_what_is_asked_for_later_comes_from_kept_histograms(lake, no_activations, monkeypatch):
    expected = fresh(lake, also=ALSO)
    compute_statistics(lake)
    no_activations()
    found = compute_statistics(lake, also=ALSO)
    assert found.drop_attrs().identical(expected.drop_attrs())
    original = KeptStatistics.read

    def watched(self, name, *where):
        assert name != "histogram/counts"
        return original(self, name, *where)

    monkeypatch.setattr(KeptStatistics, "read", watched)
    assert compute_statistics(open_lake(lake.path), also=ALSO).identical(found)
    monkeypatch.undo()  # verify reads everything
    assert verify(lake.path, full=True).ok


def test_asked_for_at_once_is_the_same_as_asked_for_later(lake):
    at_once = compute_statistics(lake, also=ALSO)
    assert compute_statistics(lake, also=ALSO).identical(at_once)
    assert compute_statistics(lake).identical(at_once[list(compute_statistics(lake).data_vars)])


@pytest.mark.parametrize("encoding", ["float16", "int8a"])
@pytest.mark.parametrize("basic", [False, True])
def test_only_new_blocks_are_read(tmp_path, monkeypatch, encoding, basic):
    growing = GrowingLake(tmp_path / "a.lake", encoding)
    first = compute_statistics(growing.commit(0, 1, 2), basic=basic)
    assert first["tag"].to_numpy().tolist() == ["ADJ", "NOUN"]
    read = []
    original = Lake.read_chunks
    monkeypatch.setattr(Lake, "read_chunks", lambda self, **where: read.append(where["block"]) or original(self, **where))
    lake = growing.commit(3, 4)
    found = compute_statistics(lake, basic=basic)
    assert set(read) == {3, 4}
    assert found["tag"].to_numpy().tolist() == ["ADJ", "NOUN", "VERB"]
    assert_close(found, fresh(lake, basic=basic))
    folds = compute_statistics(lake, basic=basic, only_folds=[1, 3])
    assert_close(folds, fresh(lake, basic=basic, only_folds=[1, 3]))
    assert len(results(lake.path)) == 1  # the new one replaces the old


def test_a_block_that_was_replaced_is_read_again(tmp_path):
    growing = GrowingLake(tmp_path / "a.lake")
    before = compute_statistics(growing.commit(0, 1, 2))
    (growing.root / layout.commit_path(1)).unlink()
    growing.values += 1
    lake = growing.commit(1)
    after = compute_statistics(lake)
    assert_close(after, fresh(lake))
    assert not after["mean"].equals(before["mean"])


def test_a_block_that_is_gone_is_forgotten(tmp_path):
    growing = GrowingLake(tmp_path / "a.lake")
    compute_statistics(growing.commit(0, 1, 2))
    (growing.root / layout.commit_path(1)).unlink()
    lake = open_lake(growing.root)
    assert_close(compute_statistics(lake), fresh(lake))


def corrupt(path, at=-3):
    data = bytearray(path.read_bytes())
    data[at] ^= 0x55
    path.write_bytes(data)


DAMAGE = {
    "a moment's chunk": lambda folder: corrupt(folder / "pooled/mean/c/0/1/0"),
    "a histogram's chunk": lambda folder: corrupt(next((folder / "histogram/counts/c").rglob("[0-9]*/[0-9]*/[0-9]*/0"))),
    "a fold's chunk": lambda folder: corrupt(folder / "by_fold/mean/c/0/0/0"),
    "scales": lambda folder: corrupt(folder / "histogram/exponent/c/0/0"),
    "a missing chunk": lambda folder: (folder / "pooled/m2/c/0/0/0").unlink(),
    "a truncated chunk": lambda folder: os.truncate(folder / "derived/auroc/c/0/0/0", 20),
    "an array's metadata": lambda folder: corrupt(folder / "derived/auroc/zarr.json", 20),
    "the record": lambda folder: corrupt(folder / "record.json", 30),
    "on request": lambda folder: corrupt(folder / "average_precision/average_precision/c/0/0/0"),
    "metadata of what is on request": lambda folder: (folder / "average_precision/average_precision/zarr.json").unlink(),
}


@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize("more", [False, True])
def test_a_damaged_result_is_computed_again(growing, what, more):
    lake = open_lake(growing.root)
    DAMAGE[what](lake.path / "statistics" / results(lake.path)[0])
    if more:
        lake = growing.commit(3, 4)
    for folds in ([0, 1], None):
        options = {"only_folds": folds} if folds else {"also": ["average_precision"]}
        assert_close(compute_statistics(open_lake(lake.path), **options), fresh(lake, **options))
    assert len(results(lake.path)) == 1
    if more or what not in ("a histogram's chunk", "scales"):  # which nobody has read
        assert verify(lake.path, full=True).ok
    again = compute_statistics(open_lake(lake.path), also=["average_precision"])
    assert_close(again, fresh(lake, also=["average_precision"]))


def test_damaged_exact_values_are_computed_again(lake):
    found = compute_statistics(lake)
    exact = refine(lake, found, "auroc", top=3)
    path = next((lake.path / "statistics").rglob("exact-auroc-*.parquet"))
    for at in range(8, path.stat().st_size - 8, 97):
        good = path.read_bytes()
        corrupt(path, at)
        assert refine(lake, found, "auroc", top=3)["auroc"].identical(exact["auroc"])
        path.write_bytes(good)
    path = next((lake.path / "statistics").rglob("exact-auroc-*.parquet"))
    os.truncate(path, 50)
    assert refine(lake, found, "auroc", top=3)["auroc"].identical(exact["auroc"])


def test_a_lake_that_cannot_be_written_to_answers(lake, monkeypatch):
    def refuse(*_):
        raise StorageError("could not make a folder: Read-only file system")

    expected = fresh(lake)
    monkeypatch.setattr(statistics, "staging", refuse)
    found = compute_statistics(lake)
    assert found.attrs["kept"] == "no: could not make a folder: Read-only file system"
    assert found.drop_attrs().identical(expected.drop_attrs())
    assert not (lake.path / "statistics").exists()
    assert refine(lake, found, "auroc", top=2)["auroc_error"].min() == 0


def test_the_same_question_at_once(lake):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: compute_statistics(open_lake(lake.path), scheduler="synchronous"), range(4)))
    expected = fresh(lake).drop_attrs()
    assert all(each.drop_attrs().identical(expected) for each in found)
    assert len(results(lake.path)) == 1
    assert compute_statistics(lake).drop_attrs().identical(expected)


def test_verify_reports_a_damaged_result_and_repair_removes_it(lake):
    compute_statistics(lake)
    assert verify(lake.path, full=True).ok
    name = results(lake.path)[0]
    corrupt(lake.path / "statistics" / name / "pooled/mean/c/0/1/0")
    report = verify(lake.path, full=True)
    assert not report.ok
    assert name in str(report.damage)
    repair(lake.path, full=True)
    assert results(lake.path) == []
    assert verify(lake.path, full=True).ok


def test_settings_are_kept_apart(lake):
    options = [{}, {"subword": "first"}, {"shift": 1}, {"where": "form <> 'w1'"}, {"folds": 2}, {"by": "form"}]
    for setting in options:
        assert_close(compute_statistics(lake, **setting), fresh(lake, **setting))
    assert len(results(lake.path)) == len(options)
    for setting in options:
        assert_close(compute_statistics(lake, **setting), fresh(lake, **setting))


def test_basic_statistics_do_not_stand_for_all(lake):
    basic = compute_statistics(lake, basic=True)
    full = compute_statistics(lake)
    assert full.drop_attrs().identical(fresh(lake).drop_attrs())
    assert_close(compute_statistics(lake, basic=True), basic)
    assert len(results(lake.path)) == 2


def test_several_of_which_some_are_kept(tmp_path):
    growing = GrowingLake(tmp_path / "a.lake")
    compute_statistics(growing.commit(0, 1, 2))
    lake = growing.commit(3, 4)
    compute_statistics(lake, "document_name")
    for _ in range(2):
        for found in compute_several(lake, ["upos", "document_name", "form"]):
            assert_close(found, fresh(lake, by=found.attrs["by"]))
    assert len(results(lake.path)) == 3


def use_dots(path):
    """One flipped bit: the chunks are looked for elsewhere, and a missing chunk is all zeros for Zarr."""
    text = path.read_text()
    assert '"separator": "/"' in text
    path.write_text(text.replace('"separator": "/"', '"separator": "."'))


@pytest.mark.parametrize("name", ["by_fold/m2", "derived/auroc", "histogram/counts"])
def test_metadata_that_would_give_zeros_is_noticed(growing, name):
    metadata = growing.root / "statistics" / results(growing.root)[0] / name / "zarr.json"
    use_dots(metadata)
    assert not verify(growing.root).ok
    lake = growing.commit(3)
    for folds in (None, [0, 1]):
        assert_close(compute_statistics(lake, only_folds=folds), fresh(lake, only_folds=folds))
    assert verify(growing.root, full=True).ok


LATER = {
    "a missing chunk": lambda folder: (folder / "average_precision/c/0/1/0").unlink(),
    "a flipped bit": lambda folder: corrupt(folder / "average_precision_low/c/0/0/0"),
    "metadata": lambda folder: use_dots(folder / "average_precision/zarr.json"),
    "the record": lambda folder: corrupt(folder / "record.json", 30),
}


@pytest.mark.parametrize("what", LATER)
def test_damage_to_what_was_asked_for_later(lake, what):
    compute_statistics(lake)
    also = ["average_precision"]
    expected = compute_statistics(lake, also=also)
    LATER[what](lake.path / "statistics" / results(lake.path)[0] / "average_precision")
    assert not verify(lake.path, full=True).ok
    assert compute_statistics(open_lake(lake.path), also=also).identical(expected)
    assert verify(lake.path, full=True).ok
    assert len(results(lake.path)) == 1


def test_a_flipped_bit_anywhere(lake, tmp_path):
    """In a moment, a count, a scale, metadata, the record: the answer is right, whichever way it is asked."""
    compute_statistics(lake)
    compute_statistics(lake, also=["average_precision"])
    expected = fresh(lake, also=["average_precision"])
    rng = np.random.default_rng(0)
    name = results(lake.path)[0]
    files = sorted(path.relative_to(lake.path) for path in (lake.path / "statistics").rglob("*") if path.is_file())
    for number in range(8):
        root = tmp_path / f"{number}.lake"
        shutil.copytree(lake.path, root)
        path = root / files[rng.integers(len(files))]
        data = bytearray(path.read_bytes())
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        assert not verify(root, full=True).ok, path
        assert_close(compute_statistics(open_lake(root), also=["average_precision"]), expected)
        assert results(root) == [name]


@contextmanager
def largest_file(size):
    """Files cannot grow beyond `size` bytes: writing fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [100, 4000])  # while counting, at the end
def test_a_full_disk_answers(lake, size):
    expected = fresh(lake).drop_attrs()
    with largest_file(size):
        found = compute_statistics(lake)
    assert found.attrs["kept"].startswith("no: ")
    assert "File too large" in found.attrs["kept"]
    assert found.drop_attrs().identical(expected)
    assert results(lake.path) == []
    assert compute_statistics(lake).attrs["kept"] == results(lake.path)[0]


def test_a_full_disk_answers_what_is_asked_for_later(lake):
    compute_statistics(lake)
    before = results(lake.path)
    with largest_file(100):
        found = compute_statistics(lake, also=ALSO)
    assert found.drop_attrs().identical(fresh(lake, also=ALSO).drop_attrs())
    assert results(lake.path) == before
    assert verify(lake.path, full=True).ok


def test_the_same_question_from_two_processes(lake):
    code = (
        "import sys\nfrom neuronlake.analysis import compute_statistics\nfrom neuronlake.store import open_lake\n"
        "lake = open_lake(sys.argv[1])\ncompute_statistics(lake, keep=False)\nprint('ready', flush=True)\ninput()\n"
        "print(repr(float(compute_statistics(lake)['auroc'].sum())))"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(lake.path)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60) for process in processes]
    expected = fresh(lake)
    assert outputs == [(f"{float(expected['auroc'].sum())!r}\n", "")] * 2
    assert len(results(lake.path)) == 1
    assert verify(lake.path, full=True).ok
    assert compute_statistics(lake).drop_attrs().identical(expected.drop_attrs())


def test_when_a_piece_fails_the_others_have_ended():
    """What they write to is removed then."""
    started, ended = Event(), Event()

    def work(*, fail):
        if fail:
            assert started.wait(5)
            raise ValueError("this piece")
        started.set()
        time.sleep(0.2)
        ended.set()

    with pytest.raises(ValueError, match="this piece"):
        run_all(work, [{"fail": False}, {"fail": True}])
    assert ended.is_set()


def test_what_somebody_is_writing_is_left_alone(lake):
    compute_statistics(lake)
    kept = results(lake.path)
    host = socket.gethostname().replace(".", "-")
    parent, dead = (lake.path / f"statistics/.x.{host}.{pid}.abc.tmp" for pid in (os.getppid(), 999999999))
    with staging(lake.path, "x") as mine:
        for folder in (mine, parent, dead):
            (folder / "pooled").mkdir(parents=True)
            (folder / "pooled/zarr.json").write_text("half")
        report = verify(lake.path, full=True)
        assert report.ok
        assert report.unknown_files == []
        assert report.leftovers == [f"statistics/{dead.name}/pooled/zarr.json"]
        repair(lake.path, full=True)
        assert (mine / "pooled/zarr.json").exists()
        assert (parent / "pooled/zarr.json").exists()
        assert not dead.exists()
    assert results(lake.path) == sorted([*kept, parent.name])
