"""A merged lake holds what its parts hold, under new numbers."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import Faults
from hypothesis import given, settings
from hypothesis import strategies as st
from lakes import foreign_values
from moving import SITES, committed_values, kill_and_finish, label, text_lake, tree

import neuronlake.store.layout as layout
from neuronlake.analysis import compute_statistics, top_tokens
from neuronlake.cli.main import main
from neuronlake.store import InputError, Lake, complete_index, open_lake, verify
from neuronlake.store.commits import commit_bytes, read_commit
from neuronlake.store.copying import copy_lake
from neuronlake.store.merging import merge_lakes
from neuronlake.store.tables import PADDING


def check_joined(merged: Lake, parts: list[Lake]) -> None:
    """Compare with the parts, read by zarr-python and counted on by hand."""
    rows = blocks = documents = sentences = words = 0
    last: dict[str, int] = {}
    for part in parts:
        plan = part.tokens(labels=["upos", "form"]).to_pandas()
        found = merged.tokens(labels=["upos", "form"]).slice(rows, part.plan.blocks * 64).to_pandas()
        used = plan["flags"].to_numpy() != PADDING
        assert (found["row"] == plan["row"] + rows).all()
        for name, offset in (("document", documents), ("sentence", sentences), ("word", words)):
            np.testing.assert_array_equal(found[name][used], plan[name][used] + offset)
            np.testing.assert_array_equal(found[name][~used], plan[name][~used])
            assert found[name][used].min() > last.get(name, -1)  # none has a number of an earlier part
            last[name] = found[name][used].max()
        for name in ("position", "token_id", "subword", "is_last_subword", "char_start", "char_end", "flags"):
            assert found[name].equals(plan[name].set_axis(found.index)), name
        for name in ("upos", "form"):
            assert found[name].astype(object).where(used, "").tolist() == plan[name].astype(object).where(used, "").tolist()
        own = part.words(blocks=part.blocks).to_pylist()
        moved = merged.words(blocks=[block + blocks for block in part.blocks]).to_pylist()
        for before, after in zip(own, moved, strict=True):
            if "mood" not in after:  # not every part has that label set
                before.pop("mood", None)
            expected = {**before, "word": before["word"] + words, "sentence": before["sentence"] + sentences}
            assert {name: after[name] for name in before} == expected
            assert all(after[name] is None for name in after.keys() - before.keys())
        for site in SITES:
            for layer in merged.layers:
                theirs = foreign_values(part.path, layer, site)
                np.testing.assert_array_equal(foreign_values(merged.path, layer, site)[rows : rows + len(theirs)], theirs)
        rows += part.plan.blocks * 64
        blocks += part.plan.blocks
        documents += part.plan.counts["documents"]
        sentences += part.plan.counts["sentences"]
        words += part.plan.counts["words"]
    assert merged.plan.blocks == blocks
    assert merged.plan.counts["words"] == words


@settings(max_examples=2, deadline=None)
@given(
    tokens=st.lists(st.integers(1, 200), min_size=2, max_size=3),
    encoding=st.sampled_from(["float16", "int8a"]),
    seed=st.integers(0, 1000),
)
def test_texts_follow_each_other(tmp_path_factory: Any, tokens: list[int], encoding: str, seed: int) -> None:
    folder = tmp_path_factory.mktemp("texts")
    tags = (("ADJ", "NOUN"), ("NOUN", "VERB"), ("X",))
    with Faults(folder, sync=False):
        parts = [
            text_lake(folder / f"{place}.lake", seed + place, tokens=count, encoding=encoding, tags=tags[place])
            for place, count in enumerate(tokens)
        ]
        report = merge_lakes(folder / "all.lake", [part.path for part in parts])
    merged = open_lake(folder / "all.lake")
    assert report.copied == merged.blocks == tuple(range(sum(part.plan.blocks for part in parts)))
    assert verify(merged.path, full=True).ok
    check_joined(merged, parts)
    before = tree(merged.path)
    again = merge_lakes(folder / "all.lake", [part.path for part in parts])
    assert (again.copied, again.files) == ((), 0)
    assert tree(merged.path) == before
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Lake]:
    """Two texts with an index and a label set each."""
    folder = tmp_path_factory.mktemp("parts")
    made = [text_lake(folder / f"{seed}.lake", seed) for seed in (1, 2)]
    for part in made:
        complete_index(part)
        label(part.path)
    return [open_lake(part.path) for part in made]


def test_index_labels_and_statistics_are_those_of_both(parts: list[Lake], tmp_path: Path) -> None:
    report = merge_lakes(tmp_path / "all.lake", [part.path for part in parts])
    merged = open_lake(tmp_path / "all.lake")
    assert sorted(report.results) == ["index of mlp.post", "index of resid.post", "labels/mood"]
    assert verify(merged.path, full=True).ok  # compares the index with the activations
    for site in SITES:
        assert merged.at(site).index().blocks == merged.blocks
    values = np.concatenate([committed_values(part, "mlp.post") for part in parts], axis=1)
    order = np.argsort(-values[1, :, 4], kind="stable")[:5]
    tokens = top_tokens(merged, 1, 4, k=5)
    assert [entry["value"] for entry in tokens] == values[1, order, 4].tolist()
    moods = [mood for part in parts for mood in part.words(["mood"])["mood"].to_pylist()]
    assert merged.words(["mood"])["mood"].to_pylist() == moods
    tags = np.array([tag for part in parts for tag in part.words(["upos"])["upos"].to_pylist()])
    found = compute_statistics(merged, by="upos")
    for tag in ("ADJ", "NOUN", "VERB"):
        mine = values[:, tags == tag].astype(np.float64)
        assert int(found["count"].sel(tag=tag)) == mine.shape[1]
        np.testing.assert_allclose(found["mean"].sel(tag=tag), mine.mean(axis=1), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found["variance"].sel(tag=tag), mine.var(axis=1, ddof=1), rtol=1e-6)


def test_a_merged_lake_is_a_lake_and_can_be_merged_on(parts: list[Lake], tmp_path: Path) -> None:
    third = text_lake(tmp_path / "3.lake", 3)
    merge_lakes(tmp_path / "two.lake", [part.path for part in parts])
    report = merge_lakes(tmp_path / "three.lake", [tmp_path / "two.lake", third.path])
    assert report.left == ["labels/mood: only 1 of the 2 lakes have it"]
    check_joined(open_lake(tmp_path / "three.lake"), [*parts, third])
    copy_lake(tmp_path / "three.lake", tmp_path / "copy.lake")
    assert tree(tmp_path / "copy.lake") == tree(tmp_path / "three.lake")


def test_what_is_not_committed_yet_comes_with_the_next_run(tmp_path: Path) -> None:
    first = text_lake(tmp_path / "1.lake", 1, blocks=[0, 2])
    second = text_lake(tmp_path / "2.lake", 2)
    report = merge_lakes(tmp_path / "all.lake", [first.path, second.path])
    assert set(range(report.planned)) - set(open_lake(tmp_path / "all.lake").blocks) == {1}
    shutil.rmtree(first.path)
    whole = text_lake(first.path, 1)
    assert merge_lakes(tmp_path / "all.lake", [first.path, second.path]).copied == (1,)
    check_joined(open_lake(tmp_path / "all.lake"), [whole, second])
    assert verify(tmp_path / "all.lake", full=True).ok


def test_parts_of_one_plan_become_the_lake_of_one_run(tmp_path: Path) -> None:
    whole = text_lake(tmp_path / "whole.lake", 1)
    shards = [text_lake(tmp_path / f"{place}.lake", 1, blocks=[place]) for place in range(whole.plan.blocks)]
    report = merge_lakes(tmp_path / "all.lake", [shard.path for shard in shards])
    assert report.same_plan
    assert tree(tmp_path / "all.lake", results=False) == tree(whole.path, results=False)
    merged = open_lake(tmp_path / "all.lake")
    assert merged.index().blocks == merged.blocks
    assert verify(merged.path, full=True).ok
    # a block that two have, with the same bytes, is one block
    both = merge_lakes(tmp_path / "again.lake", [shards[0].path, whole.path])
    assert both.blocks == whole.blocks


def test_readers_of_a_merge_under_way_see_committed_blocks_only(parts: list[Lake], tmp_path: Path) -> None:
    expected = np.concatenate([foreign_values(part.path, 1) for part in parts])
    seen: list[int] = []

    def read(_done: int, _total: int) -> None:
        lake = open_lake(tmp_path / "all.lake")
        seen.append(len(lake.blocks))
        for block in lake.blocks:
            rows = slice(block * 64, (block + 1) * 64)
            np.testing.assert_array_equal(lake.read(layer=1, rows=rows), expected[rows])

    merge_lakes(tmp_path / "all.lake", [part.path for part in parts], progress=read)
    assert sorted(set(seen)) == list(range(sum(part.plan.blocks for part in parts)))


def test_kills_at_calls(parts: list[Lake], tmp_path: Path) -> None:
    sources = [part.path for part in parts]
    merge_lakes(tmp_path / "all.lake", sources)
    values = np.concatenate([committed_values(part, "mlp.post") for part in parts], axis=1)

    def check(root: Path) -> None:
        try:
            lake = open_lake(root)
        except InputError:
            return  # the plan was not there yet
        assert verify(root, full=True).ok
        if lake.blocks:
            found = committed_values(lake, "mlp.post")
            np.testing.assert_array_equal(found, values[:, : found.shape[1]])

    request = {"kind": "merge", "sources": list(map(str, sources))}
    kill_and_finish(tmp_path, request, check, tree(tmp_path / "all.lake"), kills=5)


def test_what_does_not_go_together_is_refused_in_one_line(
    parts: list[Lake], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (part.path for part in parts)
    other = text_lake(tmp_path / "model.lake", 5, model={"sha256": "another"}).path
    coded = text_lake(tmp_path / "coded.lake", 6, encoding="bfloat16").path
    longer = text_lake(tmp_path / "context.lake", 7, plan={"context": "document"}).path
    merged = tmp_path / "all.lake"
    merge_lakes(merged, [first, second])
    out = tmp_path / "out.lake"
    # the same block with other bytes, as another machine computes it
    odd = tmp_path / "odd.lake"
    copy_lake(first, odd, blocks=(0, 1))
    commit = read_commit(odd, 0)
    changed = dataclasses.replace(commit.files[0], xxh3="0" * 16)
    record = commit_bytes(dataclasses.replace(commit, files=(changed, *commit.files[1:])))
    (odd / layout.commit_path(0)).write_bytes(record)
    cases = [
        ((out, first, other), "do not go together (model.sha256: 0 and another)"),
        ((out, first, coded), "do not go together (encoding: float16 and bfloat16)"),
        ((out, first, longer), "do not go together (plan.context: sentence and document)"),
        ((out, first, first), "are the same lake"),
        ((out, first), "two lakes at least"),
        ((out, merged, first), "the lakes overlap: lake"),
        ((out, odd, first), "overlap: both have block 0"),
        ((first, second, other), "do not go together"),
        ((first, first, second), "are the same lake"),
        ((first / "x", first, second), "lies inside"),
        ((longer, first, second), "holds another lake"),
        ((out, first, tmp_path / "none"), "no lake at"),
    ]
    capsys.readouterr()
    for arguments, message in cases:
        assert main(["merge", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not out.exists()
    assert main(["merge", str(out), str(first), str(second), "--json", "--no-index"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["planned"] == len(found["blocks"])
    assert not (out / "index").exists()
