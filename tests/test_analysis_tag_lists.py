"""Lists per tag, against a full sort of the stored values; and top tokens through them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lakes import assign_documents, make_spec, plan_lake, random_sentences, write_blocks
from test_analysis_extremes import NEURONS, ROWS, brute

from neuronlake.analysis.extremes import find_extremes
from neuronlake.analysis.queries import find_top
from neuronlake.analysis.tag_building import TagListsBuilder, complete_tag_lists
from neuronlake.store import InputError, Lake, complete_index, open_lake, verify
from neuronlake.store.commits import commit_checksum
from neuronlake.store.kept import INDEX, RECORD, kept_record, kept_results, write_record
from neuronlake.store.repair import repair
from neuronlake.store.tag_lists import TAG_EXTREMES

TOKENS = 1100
_OF_THE_TAGS = ("ADJ", "NOUN", "NOUN", "NOUN", "VERB")  # NOUN fills its lists several times over, the others hardly


class Parts:
    """A lake whose blocks are written when asked for."""

    def __init__(self, root: Path, encoding: str, seed: int = 3):
        rng = np.random.default_rng(seed)
        self.root = root
        self.spec = make_spec(layers=2, neurons=NEURONS, block_rows=ROWS, chunk_neurons=64, encoding=encoding)
        sentences = random_sentences(rng, TOKENS - 90, tags=_OF_THE_TAGS) + random_sentences(rng, 90, tags=("ADJ", "X"))
        self.record, self.rows = plan_lake(root, self.spec, assign_documents(sentences, 6))
        values = rng.standard_normal((2, len(self.rows), NEURONS)).astype(np.float32)
        values[:, :, 1] = np.round(values[:, :, 1])
        values[:, :, 2] = 0
        values[0, ::2, 2] = -0.0
        values[:, :, 3] = np.arange(len(self.rows)) / 64  # every block is above those before it
        values[:, :, 4] = -values[:, :, 3]
        values[:, :, 5] = 1.5
        self.values = values

    def write(self, blocks: list[int] | None = None, tap=None) -> Lake:
        write_blocks(self.root, self.spec, self.record, self.rows, self.values, blocks, tap=tap)
        return open_lake(self.root)


def check_lists(lake: Lake) -> None:
    """Every list of every neuron is what sorting its tag's tokens gives."""
    (lists,) = lake.index().tag_lists
    table = lake.tokens(labels=["upos"], blocks=list(lists.blocks))
    upos, row = np.array(table.column("upos").to_pylist(), dtype=object), table.column("row").to_numpy()
    assert lists.count.tolist() == [int((upos == tag).sum()) for tag in lists.tags]
    assert set(upos[upos != None]) <= set(lists.tags)  # noqa: E711
    for place, layer in enumerate(lake.layers):
        values = np.concatenate([lake.read_block(layer=layer, block=block) for block in lists.blocks])
        for neuron in range(NEURONS):
            for bottom in (False, True):
                rows, found = lists.extremes(place, neuron, bottom=bottom)
                for at, tag in enumerate(lists.tags):
                    inside = np.flatnonzero(upos == tag)
                    column = values[inside, neuron]
                    best = np.lexsort((inside, column if bottom else -column))[:TAG_EXTREMES]
                    assert rows[at, : len(best)].tolist() == row[inside[best]].tolist(), (layer, neuron, bottom, tag)
                    np.testing.assert_array_equal(found[at, : len(best)], column[best])
                    assert not rows[at, len(best) :].any()
                    assert not found[at, len(best) :].any()
    np.testing.assert_array_equal(
        lists.row_tags(lists.blocks, ROWS), [-1 if tag is None else lists.tags.index(tag) for tag in upos]
    )


@pytest.mark.parametrize("encoding", ["float16", "bfloat16", "float32", "int8a"])
def test_lists_of_a_whole_lake(tmp_path, encoding):
    lake = Parts(tmp_path / "a.lake", encoding).write()
    assert complete_tag_lists(lake, "upos") == len(lake.blocks)
    lake = open_lake(lake.path)
    check_lists(lake)
    assert complete_tag_lists(lake, "upos") == 0


def test_blocks_are_added_in_any_order(tmp_path):
    """Ties go to the lower row also when the block with the lower rows comes last."""
    parts = Parts(tmp_path / "a.lake", "int8a")
    for blocks in ([4, 5], [0, 6], [3], [1, 2, 7, 8]):
        lake = parts.write([block for block in blocks if block < parts.record.blocks])
        complete_tag_lists(lake, "upos")
        lake = open_lake(lake.path)
        assert lake.index().tag_lists[0].blocks == lake.blocks
        assert len([name for name in kept_results(lake.path, kept=INDEX) if name.startswith("tags-")]) == 1
        check_lists(lake)


def test_gathered_while_writing(tmp_path):
    """The same files as from the finished lake, in one run or two."""
    whole = Parts(tmp_path / "whole.lake", "int8a").write()
    complete_tag_lists(whole, "upos")
    parts = Parts(tmp_path / "a.lake", "int8a")
    for blocks in ([1, 0, 3], [2, *range(4, parts.record.blocks)]):
        builder = TagListsBuilder(parts.root, "upos")
        parts.write(blocks, builder.add)
        builder.finish()
    (made,) = open_lake(whole.path).index().tag_lists
    (gathered,) = open_lake(parts.root).index().tag_lists
    assert made.record["files"] == gathered.record["files"]
    check_lists(open_lake(parts.root))


def test_too_little_memory_is_said_before_anything_is_read(tmp_path):
    parts = Parts(tmp_path / "a.lake", "int8a")
    with pytest.raises(InputError, match=r"takes 0\.\d GB, at most 0\.0 GB"):
        TagListsBuilder(parts.root, "upos", max_bytes=10)
    with pytest.raises(InputError, match="no label column 'nope'"):
        complete_tag_lists(parts.write(), "nope")


@pytest.fixture(scope="module", params=["float16", "int8a"])
def tagged(request, tmp_path_factory) -> list[Lake]:
    """A lake whose lists cover all blocks, one where they cover some, and one with lists of two labels."""
    folder = tmp_path_factory.mktemp("tagged")
    whole = Parts(folder / "whole.lake", request.param).write()
    partly = Parts(folder / "partly.lake", request.param)
    complete_tag_lists(partly.write([0, 2, 3, 5]), "upos")
    both = Parts(folder / "both.lake", request.param).write()
    for lake, by in ((whole, "upos"), (both, "upos"), (both, "CASE WHEN upos = 'NOUN' THEN form END")):
        complete_tag_lists(lake, by)
    return [open_lake(whole.path), partly.write([1, 4, *range(6, partly.record.blocks)]), open_lake(both.path)]


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_top_equals_brute_force(tagged, data):
    lake = data.draw(st.sampled_from(tagged))
    layer, neuron = data.draw(st.integers(0, 1)), data.draw(st.integers(0, 7) | st.integers(0, NEURONS - 1))
    k, bottom = data.draw(st.sampled_from([1, 20, TAG_EXTREMES, TAG_EXTREMES + 1, 10_000])), data.draw(st.booleans())
    cap = data.draw(st.none() | st.integers(1, 8))
    upos = np.array(lake.tokens(labels=["upos"]).column("upos").to_pylist(), dtype=object)
    chosen = data.draw(st.sets(st.sampled_from(["ADJ", "NOUN", "VERB", "X"])))
    share = data.draw(st.sampled_from([0.05, 0.5, 1.0]))
    mask = np.isin(upos, list(chosen)) & (np.random.default_rng(data.draw(st.integers(0, 9))).random(len(upos)) < share)
    expected = brute(lake, layer, neuron, mask, bottom=bottom, cap=cap)[:k]
    found = find_extremes(lake, layer, neuron, k, bottom=bottom, eligible=mask, per_document=cap)
    assert found.lines.tolist() == expected.tolist()


def test_a_tag_reads_no_chunk(tagged):
    whole, partly, both = tagged
    for lake in (whole, both):
        for layer, neuron in ((0, 3), (1, 4), (1, 9)):
            for where in (("upos", "NOUN"), "upos = 'NOUN'", ("upos", "VERB")):
                found = find_top(lake, layer, neuron, TAG_EXTREMES, where=where)
                assert (found.blocks_read, found.bytes_read) == ((), 0)
                assert find_top(lake, layer, neuron, TAG_EXTREMES, where=where, bottom=True).blocks_read == ()
    # without them a neuron that is highest in the last blocks needs those
    shutil.rmtree(whole.path / INDEX / whole.index().tag_lists[0].name)
    bare = open_lake(whole.path)
    assert find_top(bare, 0, 3, TAG_EXTREMES, where=("upos", "NOUN")).blocks_read
    complete_tag_lists(bare, "upos")
    # blocks that the lists do not cover are bounded by their own
    assert set(find_top(partly, 0, 4, 3, where=("upos", "NOUN")).blocks_read) <= set(partly.blocks)


def test_damaged_lists_cost_time_only(tmp_path):
    lake = Parts(tmp_path / "a.lake", "float16").write()
    complete_tag_lists(lake, "upos")
    expected = find_top(open_lake(lake.path), 1, 9, 40, where=("upos", "NOUN")).lines.tolist()
    for array in ("rows", "values", "tags"):
        (path,) = (lake.path / INDEX).glob(f"tags-*/{array}/c.1.*")
        data = path.read_bytes()
        path.write_bytes(data[:20] + bytes([data[20] ^ 4]) + data[21:])
        assert not verify(lake.path, full=True).ok
        assert find_top(open_lake(lake.path), 1, 9, 40, where=("upos", "NOUN")).lines.tolist() == expected
        assert complete_tag_lists(open_lake(lake.path), "upos") == len(lake.blocks)
        assert verify(lake.path, full=True).ok
        check_lists(open_lake(lake.path))


def test_lists_of_other_blocks_are_not_trusted(tmp_path):
    lake, other = (Parts(tmp_path / name, "float16", seed=seed).write() for name, seed in (("a.lake", 3), ("b.lake", 4)))
    complete_tag_lists(other, "upos")
    for name in kept_results(other.path, kept=INDEX):
        if name.startswith("tags-"):
            shutil.copytree(other.path / INDEX / name, lake.path / INDEX / name)
    assert open_lake(lake.path).index().tag_lists == []


def test_verify_compares_the_index_with_the_activations(tmp_path):
    """An index whose checksums are right, but that is of other values."""
    lake, other = (Parts(tmp_path / name, "float16", seed=seed).write() for name, seed in (("a.lake", 3), ("b.lake", 4)))
    checksums = {str(block): commit_checksum(lake.path, block) for block in lake.blocks}
    for part in (lake, other):
        complete_index(part)
        complete_tag_lists(part, "upos")
    assert verify(lake.path, full=True).ok
    shutil.rmtree(lake.path / INDEX)
    for name in kept_results(other.path, kept=INDEX):
        folder = lake.path / INDEX / name
        shutil.copytree(other.path / INDEX / name, folder)
        record = kept_record(lake.path, name, kept=INDEX)
        (folder / RECORD).unlink()
        write_record(folder, {**record, "blocks": checksums})
    report = verify(lake.path, full=True)
    assert len(report.damage) == 2
    assert all("of the activations; `neuronlake index`, or the same" in line for line in report.damage)
    assert verify(lake.path).ok  # quick
    repair(lake.path, full=True)
    assert verify(lake.path, full=True).ok
    assert kept_results(lake.path, kept=INDEX) == []
