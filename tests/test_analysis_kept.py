"""Statistics kept in a lake: asked again they read nothing, and whatever happens to them, answers stay right."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from lakes import GrowingLake, synthetic_lake
from lakes import assert_close_statistics as assert_close

import neuronlake.analysis.statistics as statistics
import neuronlake.store.layout as layout
from neuronlake.analysis import compute_statistics, refine
from neuronlake.analysis.kept_statistics import KeptStatistics
from neuronlake.store import open_lake, repair, verify
from neuronlake.store.errors import StorageError
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
def test_a_damaged_result_is_computed_again(tmp_path, what, more):
    growing = GrowingLake(tmp_path / "a.lake")
    lake = growing.commit(0, 1, 2)
    compute_statistics(lake, also=["average_precision"])
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
