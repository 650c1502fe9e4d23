"""A lake in an object store is the lake in a folder: the same bytes, the same answers, and it heals the same way."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from lakes import synthetic_lake
from object_server import empty_bucket, make_bucket, settings
from tiny_world import World, make_world

from neuronlake.cli.main import main
from neuronlake.store import open_lake, verify
from neuronlake.store.commits import Commit, read_commit, write_commit
from neuronlake.store.errors import StorageError
from neuronlake.store.files import sizes_below
from neuronlake.store.objects import LakePath, ObjectPath, lake_path
from neuronlake.store.repair import repair


@dataclass(frozen=True, kw_only=True)
class Twins:
    """The same lake in a folder and in a bucket, of which tests add to both alike."""

    world: World
    remote: ObjectPath


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory, object_store: str) -> "Twins":
    patch = pytest.MonkeyPatch()
    for name, value in settings(object_store).items():
        patch.setenv(name, value)
    bucket = make_bucket(object_store)
    world = make_world(tmp_path_factory.mktemp("world"))
    remote = lake_path(f"s3://{bucket}/some/where/a.lake")
    assert isinstance(remote, ObjectPath)
    world.extract(remote)
    yield Twins(world=world, remote=remote)
    empty_bucket(object_store, bucket)
    patch.undo()


def contents(root: LakePath) -> dict[str, bytes]:
    return {path: (root / path).read_bytes() for path in sizes_below(root)}


QUESTIONS = {
    "info": ["info"],
    "verify": ["verify", "--full"],
    "statistics": ["stats", "--by", "upos"],
    "again": ["stats", "--by", "upos"],
    "statistics asked for later": ["rank", "--by", "upos", "--method", "mutual_information", "--top", "4"],
    "rank": ["rank", "--by", "upos", "--method", "auroc", "--top", "5"],
    "top": ["top", "L1.N5", "-k", "4"],
    "top of the activations": ["top", "L1.N5", "-k", "4", "--where", "upos='VERB' AND form<>'x'"],
    "column": ["column", "L0.N3", "L1.N80", "--labels", "upos"],
    "tokens": ["tokens", "L1.N5", "--above", "0.01"],
    "probe": ["probe", "--by", "upos", "--layer", "1"],
    "closed form": ["probe", "--by", "upos", "--classifier", "ridge", "--layer", "0"],
    "index": ["index", "--by", "deprel"],
    "top of a tag": ["top", "L1.N5", "-k", "4", "--where", "deprel=dep"],
    "neurons alike": ["neighbours", "L1.N5"],
    "tokens alike": ["neighbours", "--row", "5", "--layer", "1"],
    "label": ["label", "--parquet", "{labels}", "--name", "größe"],
    "added": ["stats", "--by", "length"],
    "labels": ["label", "--list"],
    "removed": ["label", "--remove", "größe"],
    "whole": ["verify", "--full"],
}


def answer(capsys: pytest.CaptureFixture[str], root: LakePath, question: list[str], labels: Path) -> str:
    command, *rest = [part.format(labels=labels) for part in question]
    capsys.readouterr()
    assert main([command, str(root), *rest, "--json"]) == 0
    return capsys.readouterr().out.replace(str(root), "LAKE")


def test_every_command_gives_the_same_answer(twins: Twins, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = tmp_path / "labels.csv"
    words = open_lake(twins.world.lake).words(["word", "form"]).to_pylist()
    labels.write_text("word,length\n" + "".join(f"{word['word']},{len(word['form'])}\n" for word in words))
    for name, question in QUESTIONS.items():
        local, remote = (answer(capsys, root, question, labels) for root in (twins.world.lake, twins.remote))
        assert local == remote, name
    assert contents(twins.world.lake) == contents(twins.remote)


def test_values_are_the_same_however_they_are_read(twins: Twins) -> None:
    local, remote = open_lake(twins.world.lake), open_lake(twins.remote)
    rng = np.random.default_rng(0)
    for layer in local.layers:
        rows, neurons = rng.integers(0, local.block_rows * 2, 30), rng.integers(0, local.neurons, 9)
        assert np.array_equal(
            local.read(layer=layer, rows=rows, neurons=neurons), remote.read(layer=layer, rows=rows, neurons=neurons)
        )
        assert np.array_equal(local.read_block(layer=layer, block=1), remote.read_block(layer=layer, block=1))
        assert np.array_equal(local.dask(layer=layer).compute(), remote.dask(layer=layer).compute())
    sums = [[float(each) for each in lake.scan(lambda tile: tile.values.sum())] for lake in (local, remote)]
    assert sums[0] == sums[1]
    assert local.tokens(["upos"]).equals(remote.tokens(["upos"]))


def test_a_notebook_shows_it_without_asking_the_store(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = open_lake(twins.remote)
    local = open_lake(twins.world.lake)._repr_html_()
    with monkeypatch.context() as patch:
        for name, value in settings("http://127.0.0.1:1").items():  # nobody listens there
            patch.setenv(name, value)
        for name in ("read_bytes", "exists", "is_file", "is_dir", "iterdir", "sizes"):
            patch.setattr(ObjectPath, name, None)
        html = lake._repr_html_()
        assert str(twins.remote) in repr(lake)
    for line in ("text", "neurons", "blocks", "labels"):
        (row,) = re.findall(f'<tr><th scope="row">{line}</th>.*?</tr>', html)
        assert row in local
    assert "stored" not in html
    assert "⚠" not in html
    assert lake.commits
    assert "stored" in lake._repr_html_()


def test_damage_is_found_dropped_and_made_again(twins: Twins, bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = lake_path(f"s3://{bucket}/b.lake")
    twins.world.extract(root)
    whole = contents(root)
    shard, commit = root / "activations/mlp.post/1/c.1.0", root / "commits/block-000002.json"
    shard.unlink()
    (root / "statistics/of-a-killed-run/pooled/c/0").write_bytes(b"x")
    data = bytearray((root / "activations/mlp.post/0/c.2.0").read_bytes())
    data[5] ^= 1
    (root / "activations/mlp.post/0/c.2.0").write_bytes(bytes(data))
    assert main(["verify", str(root), "--full", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert any("mlp.post/1/c.1.0: missing" in line for line in report["damage"])
    assert any("mlp.post/0/c.2.0: xxh3" in line for line in report["damage"])
    assert report["leftovers"] == ["statistics/of-a-killed-run/pooled/c/0"]
    assert repair(root, full=True).redo == [1, 2]
    assert not commit.exists()
    assert twins.world.extract(root) == (1, 2)
    assert contents(root) == whole
    for lost in ("zarr.json", "plan/plan.json", "words/block-000001.parquet"):
        (root / lost).unlink()
        assert not verify(root).ok if lost != "plan/plan.json" else True
        repair(root)
        twins.world.extract(root)
        assert contents(root) == whole, lost


def test_two_write_one_lake(bucket: str, tmp_path: Path) -> None:
    root = lake_path(f"s3://{bucket}/c.lake")
    spec, rows, values = synthetic_lake(tmp_path / "c.lake", encoding="int8a")
    synthetic_lake(root, encoding="int8a")
    whole = contents(root)
    assert whole == contents(tmp_path / "c.lake")
    synthetic_lake(root, encoding="int8a")  # everything once more: the same bytes
    assert contents(root) == whole
    with pytest.raises(StorageError, match="holds other bytes"):
        synthetic_lake(root, encoding="int8a", values=values + 1)
    assert contents(root) == whole
    commit = read_commit(root, 0)
    write_commit(root, Commit(block=0, rows=commit.rows, provenance={"by": "another machine"}, files=commit.files))
    assert not write_commit(root, Commit(block=0, rows=commit.rows, provenance={}, files=commit.files[1:]))
    assert contents(root) == whole
    del spec, rows
