"""Statistics gathered while a lake is written are those of a pass over it."""

import pytest
from lakes import GrowingLake
from lakes import assert_close_statistics as assert_close

from neuronlake.analysis import StatisticsBuilder, compute_statistics
from neuronlake.store import InputError, open_lake
from neuronlake.store.reader import ShardReader

ENCODINGS = ("float16", "bfloat16", "float32", "int8a")


def assert_ready(root, expected, monkeypatch):
    """The answer is there and right, and no activation is read for it."""
    with monkeypatch.context() as patch:
        patch.setattr(ShardReader, "_read", lambda *_: pytest.fail("an activation was read"))
        found = compute_statistics(open_lake(root))
        folds = compute_statistics(open_lake(root), only_folds=[0, 1])
    assert_close(found, expected)
    assert_close(folds, compute_statistics(open_lake(root), only_folds=[0, 1], keep=False))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_equals_a_pass(tmp_path, monkeypatch, encoding):
    growing = GrowingLake(tmp_path / "a.lake", encoding)
    builder = StatisticsBuilder(growing.root, "upos")
    lake = growing.commit(*range(growing.record.blocks), tap=builder.add)
    builder.finish()
    assert builder.blocks == tuple(lake.blocks)
    assert_ready(lake.path, compute_statistics(lake, keep=False), monkeypatch)


@pytest.mark.parametrize("kept_before", [False, True])
def test_a_run_that_was_resumed(tmp_path, monkeypatch, kept_before):
    growing = GrowingLake(tmp_path / "a.lake")
    lake = growing.commit(0, 1)
    if kept_before:
        compute_statistics(lake)
    builder = StatisticsBuilder(growing.root, "upos")
    lake = growing.commit(2, 3, 4, tap=builder.add)
    read = []
    original = type(lake).read_chunks
    with monkeypatch.context() as patch:
        patch.setattr(type(lake), "read_chunks", lambda self, **at: read.append(at["block"]) or original(self, **at))
        builder.finish()
    assert set(read) == (set() if kept_before else {0, 1})
    assert_ready(lake.path, compute_statistics(lake, keep=False), monkeypatch)


@pytest.mark.parametrize("kept_before", [False, True])
def test_a_question_in_the_middle_spoils_nothing(tmp_path, monkeypatch, kept_before):
    growing = GrowingLake(tmp_path / "a.lake")
    if kept_before:
        compute_statistics(growing.commit(0))
    else:
        growing.commit(0)
    builder = StatisticsBuilder(growing.root, "upos")
    compute_statistics(growing.commit(1, 2, tap=builder.add))  # of the blocks that the builder has, too
    lake = growing.commit(3, 4, tap=builder.add)
    builder.finish()
    assert_ready(lake.path, compute_statistics(lake, keep=False), monkeypatch)


def test_what_the_blocks_say_about_nothing_new(tmp_path, monkeypatch):
    growing = GrowingLake(tmp_path / "a.lake")
    lake = growing.commit(*range(growing.record.blocks))
    builder = StatisticsBuilder(growing.root, "upos")  # everything is extracted already
    builder.finish()
    assert_ready(lake.path, compute_statistics(lake, keep=False), monkeypatch)


def test_what_cannot_be_gathered_is_refused_at_once(tmp_path):
    growing = GrowingLake(tmp_path / "a.lake")
    with pytest.raises(InputError, match=r"no label column 'upo': known are .*did you mean 'upos'"):
        StatisticsBuilder(growing.root, "upo")
    with pytest.raises(InputError, match=r"while extracting takes 0\.0 GB, at most 0\.0 GB may be used"):
        StatisticsBuilder(growing.root, "upos", max_bytes=1000)
    with pytest.raises(InputError, match="has 2 or more tokens"):
        StatisticsBuilder(growing.root, "CAST(row AS TEXT)")
