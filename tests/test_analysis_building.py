"""Statistics gathered while a lake is written are those of a pass over it."""

import dataclasses
import shutil

import numpy as np
import pytest
import zarr
from lakes import GrowingLake, assign_documents, make_sentence, make_spec, plan_lake, random_sentences, write_blocks
from lakes import assert_close_statistics as assert_close
from tiny import conllu, make_model, some_sentences

import neuronlake.analysis.building as building
from neuronlake.analysis import StatisticsBuilder, compute_statistics
from neuronlake.extractor import ConlluCorpus, ExtractSettings, Observer, extract, resolve_model
from neuronlake.store import InputError, open_lake, verify
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


def kept(root):
    """The one result that a lake keeps."""
    (folder,) = (root / "statistics").iterdir()
    return folder


@pytest.mark.parametrize("encoding", ["float16", "int8a"])
def test_the_histograms_are_those_of_a_pass(tmp_path, encoding):
    """The first block chooses the bins either way, so that every count is the same."""
    growing = GrowingLake(tmp_path / "a.lake", encoding)
    builder = StatisticsBuilder(growing.root, "upos")
    growing.commit(*range(growing.record.blocks), tap=builder.add)
    shutil.copytree(growing.root, tmp_path / "b.lake")
    builder.finish()
    compute_statistics(open_lake(tmp_path / "b.lake"))
    for name in ("exponent", "counts"):
        gathered, passed = (
            zarr.open_array(kept(root) / "histogram" / name)[:] for root in (growing.root, tmp_path / "b.lake")
        )
        assert gathered.any()
        np.testing.assert_array_equal(gathered, passed, err_msg=name)


@pytest.mark.parametrize("kept_before", [False, True])
def test_several_pieces_of_some_layers(tmp_path, monkeypatch, kept_before):
    spec = make_spec(layers=4, neurons=70, block_rows=64, chunk_neurons=4, encoding="float16")
    spec = dataclasses.replace(spec, layers=(1, 3))
    rng = np.random.default_rng(2)
    root = tmp_path / "a.lake"
    record, rows = plan_lake(root, spec, random_sentences(rng, 300, tags=("ADJ", "NOUN")))
    values = rng.standard_normal((4, 300, 70)).astype(np.float32) * np.geomspace(1e-3, 1e3, 70, dtype=np.float32)
    if kept_before:
        write_blocks(root, spec, record, rows, values, blocks=(1,))
        compute_statistics(open_lake(root))
    builder = StatisticsBuilder(root, "upos")
    write_blocks(root, spec, record, rows, values, blocks=(3, 0, 2), tap=builder.add)  # in whatever order
    builder.finish()
    assert_ready(root, compute_statistics(open_lake(root), keep=False), monkeypatch)


def test_blocks_without_a_label(tmp_path, monkeypatch):
    spec = make_spec(layers=2, neurons=10, block_rows=32, chunk_neurons=4, encoding="float16")
    rng = np.random.default_rng(3)
    silent = [make_sentence(["w"] * 8, [{}] * 8, name=f"n{number}", document="?") for number in range(8)]
    root = tmp_path / "a.lake"
    record, rows = plan_lake(root, spec, assign_documents(silent + random_sentences(rng, 100, tags=("ADJ", "NOUN")), 3))
    values = rng.standard_normal((2, 164, 10)).astype(np.float32)
    write_blocks(root, spec, record, rows, values, blocks=range(2, record.blocks))
    builder = StatisticsBuilder(root, "upos")
    write_blocks(root, spec, record, rows, values, blocks=(0, 1), tap=builder.add)
    builder.finish()
    assert_ready(root, compute_statistics(open_lake(root), keep=False), monkeypatch)


@pytest.mark.parametrize(("when", "name"), [("before", "histogram/exponent"), ("meanwhile", "histogram/counts")])
def test_a_damaged_result_to_add_to(tmp_path, monkeypatch, when, name):
    growing = GrowingLake(tmp_path / "a.lake")
    compute_statistics(growing.commit(0, 1))

    def damage():
        chunk = next(path for path in sorted((kept(growing.root) / name / "c").rglob("0")) if path.is_file())
        data = bytearray(chunk.read_bytes())
        data[-3] ^= 0x55
        chunk.write_bytes(data)

    if when == "before":
        damage()
    builder = StatisticsBuilder(growing.root, "upos")
    lake = growing.commit(2, 3, 4, tap=builder.add)
    if when == "meanwhile":
        damage()
    builder.finish()
    assert_ready(lake.path, compute_statistics(lake, keep=False), monkeypatch)
    assert verify(lake.path, full=True).ok
    kept(lake.path)


@pytest.mark.parametrize("asked", [False, True])
def test_an_extraction_that_was_stopped_and_resumed(tmp_path, monkeypatch, asked):
    treebank = tmp_path / "t.conllu"
    treebank.write_text(conllu(some_sentences(80)), encoding="utf-8")
    source = resolve_model(str(make_model(tmp_path / "model", num_hidden_layers=2)))
    settings = ExtractSettings(encoding="float16", block_rows=256, batch_tokens=96)
    root = tmp_path / "a.lake"
    builders = []

    def run(advance=lambda *_: None):
        def start(lake):
            builders.append(StatisticsBuilder(lake, "upos"))
            return builders[-1].add

        extract(root, ConlluCorpus(paths=(treebank,)), source, settings, Observer(tap=start, advance=advance))

    def stop(*_):
        if len(list((root / "commits").glob("*.json"))) >= 2:  # they may come two at a time
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(stop)
    done = open_lake(root).blocks
    if asked:
        compute_statistics(open_lake(root))
    run()
    lake = open_lake(root)
    assert lake.complete
    assert set(builders[-1].blocks) == set(lake.blocks) - set(done) > set()
    builders[-1].finish()
    assert_ready(root, compute_statistics(lake, keep=False), monkeypatch)


def test_what_was_added_must_be_committed(tmp_path):
    growing = GrowingLake(tmp_path / "a.lake")
    builder = StatisticsBuilder(growing.root, "upos")
    growing.commit(0, 1, tap=builder.add)
    growing.root.joinpath("commits/block-000001.json").unlink()
    with pytest.raises(AssertionError, match="block 1 was added but not committed"):
        builder.finish()
    assert not (growing.root / "statistics").exists()


def test_too_many_tags_are_refused(tmp_path, monkeypatch):
    growing = GrowingLake(tmp_path / "a.lake")
    monkeypatch.setattr(building, "MAX_HISTOGRAM_TAGS", 2)
    with pytest.raises(InputError, match="'upos' has 3 values, too many to gather statistics of while extracting"):
        StatisticsBuilder(growing.root, "upos")
