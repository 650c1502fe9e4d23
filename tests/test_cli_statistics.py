"""`stats` and `rank` as a user types them: filters, files, and one clear message for whatever is wrong."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import xarray as xr
from lakes import GrowingLake, synthetic_lake

from neuronlake.analysis import RANKERS
from neuronlake.cli.main import main


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    root = tmp_path_factory.mktemp("lakes") / "a.lake"
    synthetic_lake(root, tokens=400)
    return root


@pytest.fixture
def lake(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "a.lake"))


@pytest.fixture
def run(capsys):
    def call(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def run_json(run):
    def call(*arguments):
        code, out, err = run(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return call


def test_stats_table_and_several_labels(run, run_json, lake):
    code, out, _ = run("stats", lake)
    assert code == 0
    assert re.search(r"NOUN +1\d\d ", out)
    several = run_json("stats", lake, "--by", "upos", "form")
    assert [record["by"] for record in several] == ["upos", "form"]
    assert several[0] == run_json("stats", lake, "--by", "upos")
    assert {row["tag"] for row in several[0]["tags"]} == {"ADJ", "NOUN", "VERB"}


def test_the_files_hold_everything(run_json, lake, tmp_path):
    run_json("stats", lake, "--out", tmp_path / "s.zarr")
    run_json("stats", lake, "--out", tmp_path / "s.parquet")
    dataset = xr.open_zarr(tmp_path / "s.zarr", consolidated=False).load()
    table = pq.read_table(tmp_path / "s.parquet")
    assert {"mean", "auroc", "average_precision", "mutual_information", "median"} <= set(dataset.data_vars)
    assert table.num_rows == 3 * 2 * 10
    assert set(table.column_names) >= set(dataset.data_vars)
    for name in dataset.data_vars:
        values = table.column(name).to_numpy()
        assert np.isfinite(values).all(), name
        if dataset[name].dims == ("tag", "layer", "neuron"):
            np.testing.assert_array_equal(values, dataset[name].to_numpy().ravel())
    assert json.loads(table.schema.metadata[b"neuronlake"])["by"] == "upos"


def test_a_ranking_as_parquet(run_json, lake, tmp_path):
    ranking = run_json("rank", lake, "--method", "average_precision", "--top", "2", "--out", tmp_path / "r.parquet")
    assert pq.read_table(tmp_path / "r.parquet").to_pylist() == ranking
    assert len(ranking) == 6


@pytest.mark.parametrize("method", ["auroc", "lape", "mutual_information", "chi_squared", "localizer"])
def test_any_method_ranks(run_json, lake, method):
    for entry in run_json("rank", lake, "--method", method, "--top", "3"):
        assert all(value is None or isinstance(value, str) or np.isfinite(value) for value in entry.values())


def test_filters_and_derived_labels(run_json, lake):
    def tags(*arguments):
        return {row["tag"]: row["count"] for row in run_json("stats", lake, *arguments)["tags"]}

    everything = tags()
    assert tags("--where", "upos='NOUN' OR upos='VERB'") == {tag: everything[tag] for tag in ("NOUN", "VERB")}
    case = tags("--by", "CASE WHEN upos='NOUN' THEN 'noun' ELSE 'other' END")
    assert case == {"noun": everything["NOUN"], "other": everything["ADJ"] + everything["VERB"]}
    assert set(tags("--by", "upos×document_name")) <= {f"{tag}×d{n}" for tag in everything for n in range(4)}
    assert sum(tags("--shift", "1").values()) < sum(everything.values())
    assert tags("--subword", "all") == everything  # a token is a word here


def test_no_keep_writes_nothing(run, lake):
    before = sorted(lake.rglob("*"))
    assert run("stats", lake, "--no-keep")[0] == 0
    assert run("rank", lake, "--no-keep", "--scheduler", "synchronous")[0] == 0
    assert sorted(lake.rglob("*")) == before


def test_permutations(run, run_json, lake):
    ranking = run_json("rank", lake, "--method", "lape", "--top", "1", "--permutations", "5", "--seed", "1")
    assert all(entry["p_permutation"] >= 1 / 6 for entry in ranking)
    assert all(entry["p_family_permutation"] >= entry["p_permutation"] for entry in ranking)
    assert "all neurons permuted" in run("rank", lake, "--permutations", "1")[1]


def test_methods_are_listed(run):
    code, out, _ = run("rank", "--methods")
    assert code == 0
    assert set(RANKERS) <= set(out.splitlines())
    assert "Mann" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--by", "upo"), r"no label column 'upo': known are .*upos.*did you mean 'upos'"),
        (("--by", "CAST(row AS TEXT)"), "has 2 or more tokens among the 400 labelled ones"),
        (("--where", "upos='FOO'"), "is true of none of the 400 tokens"),
        (("--where", "upos='NOUN' AND (form='w1'"), r"where: syntax error[^\n]*\n  upos='NOUN' AND \(form='w1'\n +\^"),
        (("--where", "upoz='NOUN'"), r"where: no column 'upoz': known are .*\n  upoz='NOUN'\n  \^"),
        (("--method", "aurok"), "unknown method 'aurok': known are mean_difference"),
        (("--method", "sparse_probe"), "needs? a probe|by a probe"),
        (("--top", "0"), "top must be at least 1, got 0"),
        (("--permutations", "0"), "permutations must be at least 1, got 0"),
        (("--tags", "NUON"), "unknown tag 'NUON': known are ADJ, NOUN, VERB"),
        (("--out", "r.csv"), r"--out writes \.parquet: expected a name ending so, got r\.csv"),
        (("--out", "nowhere/r.parquet"), "no folder nowhere to write r.parquet in"),
        (("--scheduler", "thread"), "unknown scheduler 'thread'"),
        (("--scheduler", "tcp://127.0.0.1:1"), "no Dask scheduler answers at tcp://127.0.0.1:1"),
    ],
)
def test_whatever_is_wrong_is_said_once(run, lake, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("rank", lake, *arguments)
    assert code == 2
    assert re.search(said, err, re.DOTALL), err
    assert "Traceback" not in err
    assert not out


def test_an_existing_file_is_left_alone(run, lake, tmp_path):
    (tmp_path / "r.parquet").write_text("mine")
    code, _, err = run("rank", lake, "--out", tmp_path / "r.parquet")
    assert code == 2
    assert "exists: choose another name" in err
    assert (tmp_path / "r.parquet").read_text() == "mine"


def test_a_lake_that_is_being_written(run, tmp_path):
    growing = GrowingLake(tmp_path / "a.lake")
    code, _, err = run("rank", growing.root)
    assert code == 2
    assert "no committed block yet" in err
    growing.commit(0, 1)
    code, out, err = run("rank", growing.root)
    assert code == 0
    assert "2 of 6 blocks are extracted; the answer is of these" in err
    assert "nan" not in out


@pytest.mark.parametrize("chunk", [0, 2])
def test_a_damaged_lake_gives_no_table(run, lake, chunk):
    shard = lake / "activations/mlp.post/1/c.2.0"
    data = bytearray(shard.read_bytes())
    data[len(data) * chunk // 4 + 20] ^= 4
    shard.write_bytes(data)
    code, out, err = run("stats", lake)
    assert code == 1
    assert "activations/mlp.post/1/c.2.0" in err
    assert "neuronlake verify" in err
    assert not out
    assert not any((lake / "statistics").glob("*"))
