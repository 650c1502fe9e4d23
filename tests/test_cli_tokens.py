"""`tokens`, `neurons`, `column`, `rows` and weighted `top` as a user types them."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from query_lakes import flags, make_lake, stored
from rich.text import Text

from neuronlake.analysis import (
    choose_tokens,
    column_table,
    firing_neurons,
    tokens_above,
    top_tokens,
    top_tokens_weighted,
)
from neuronlake.cli.analyse import context
from neuronlake.cli.main import main


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make_lake(tmp_path_factory.mktemp("lakes") / "a.lake", encoding="float16", seed=2).path


@pytest.fixture
def lake(original, tmp_path, monkeypatch):
    from neuronlake.store import open_lake

    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return open_lake(shutil.copytree(original, tmp_path / "a.lake"))


@pytest.fixture
def run(capsys, lake):
    def call(command, *arguments):
        try:
            code = main([command, str(lake.path), *(str(argument) for argument in arguments)])
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


def test_tokens(run, run_json, lake):
    found = run_json("tokens", "L0.N11", "--above", "1.5", "--labels", "upos")
    values = stored(lake, 0)[:, 11]
    expected = np.flatnonzero((values > 1.5) & (flags(lake) == 0))
    assert sorted(entry["row"] for entry in found) == expected.tolist()
    assert [entry["value"] for entry in found] == sorted(values[expected].tolist(), reverse=True)
    assert set(found[0]["labels"]) == {"upos"}
    assert [entry["row"] for entry in run_json("tokens", "L0.N11", "--above", "1.5", "--by-row")] == expected.tolist()
    assert run_json("tokens", "L0.N11", "--above", "1.5", "--count")["tokens"] == len(expected)
    code, out, err = run("tokens", "L0.N11", "--above", "1.5", "--limit", "3")
    assert (code, out.count("«")) == (0, 3)
    assert f"3 of {len(expected)} tokens: --limit N shows more" in err
    assert run("tokens", "L0.N11", "--above", "1.5", "--count")[1] == f"{len(expected)} tokens\n"
    code, out, _ = run("tokens", "L0.N11", "--above", "1e9")
    assert (code, out) == (0, f"no token: the highest value is {top_tokens(lake, 0, 11, 1)[0]['value']:.3f}\n")
    assert run_json("tokens", "L0.N11", "--above", "1e9") == []
    nouns = run_json("tokens", "L0.N11", "--below", "-0.5", "--where", "upos=NOUN", "--per-document", "2")
    assert [entry["row"] for entry in nouns] == tokens_above(
        lake, 0, 11, below=-0.5, where=("upos", "NOUN"), per_document=2
    ).rows.tolist()


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_tokens_as_a_file(run_json, monkeypatch, suffix):
    import pyarrow.csv

    monkeypatch.setattr("neuronlake.cli.tokens._LINES", 7)
    written = run_json("tokens", "L0.N11", "--above", "0", "--labels", "upos", "--special", "--out", f"t.{suffix}")
    table = pq.read_table("t.parquet") if suffix == "parquet" else pyarrow.csv.read_csv("t.csv")
    expected = run_json("tokens", "L0.N11", "--above", "0", "--labels", "upos", "--special")
    assert written["tokens"] == table.num_rows == len(expected) > 7
    assert table.column("row").to_pylist() == [entry["row"] for entry in expected]
    assert table.column("context").to_pylist() == [entry["context"] for entry in expected]
    assert [tag or None for tag in table.column("upos").to_pylist()] == [entry["labels"]["upos"] for entry in expected]
    np.testing.assert_allclose(table.column("value").to_numpy(), [entry["value"] for entry in expected], rtol=1e-6)


def test_neurons(run, run_json, lake):
    tokens = choose_tokens(lake, form="w7")
    row = int(tokens.rows[1])
    one = run_json("neurons", "--row", row, "--top", "5")
    flat = np.concatenate([stored(lake, layer)[row] for layer in (0, 1)])
    assert [entry["value"] for entry in one["neurons"]] == flat[np.argsort(-np.abs(flat), kind="stable")[:5]].tolist()
    assert (one["tokens"], one["score"], one["examples"][0]["row"]) == (1, "strongest", row)
    for score in ("difference", "hits"):
        found = run_json("neurons", "--form", "w7", "--score", score, "--top", "4", "--layer", "1")
        assert found["neurons"] == firing_neurons(lake, tokens, 4, score=score, layers=[1])
        assert found["tokens"] == tokens.count
        code, out, _ = run("neurons", "--form", "w7", "--score", score, "--top", "4", "--layer", "1")
        assert code == 0
        assert f"… {tokens.count} tokens in all" in out
        assert re.findall(r"^L1\.N\d+", out, re.MULTILINE) == [entry["name"] for entry in found["neurons"]]
    assert any((lake.path / "statistics").iterdir())
    assert run_json("neurons", "--form", "w7")["score"] == "difference"
    code, out, _ = run("neurons", "--row", row)
    assert "«" in out
    assert run_json("neurons", "--row", row, row + 1)["score"] == "difference"
    assert run_json("neurons", "--sentence", "3", "--score", "hits")["tokens"] == choose_tokens(lake, sentence=3).count


def test_no_keep_writes_nothing(run, lake):
    assert run("neurons", "--form", "w7", "--no-keep")[0] == 0
    assert not (lake.path / "statistics").exists()


def test_column(run, run_json, lake):
    values = stored(lake, 1)[flags(lake) == 0][:, [9, 2]].astype(np.float64)
    found = run_json("column", "L1.N9", "L1.N2", "--labels", "upos", "--limit", "3")
    for entry, column in zip(found["neurons"], values.T, strict=True):
        assert entry["tokens"] == len(values)
        assert (entry["least"], entry["greatest"]) == (column.min(), column.max())
        np.testing.assert_allclose([entry["mean"], entry["deviation"]], [column.mean(), column.std(ddof=1)], atol=1e-12)
    table = column_table(lake, [(1, 9), (1, 2)], labels=["upos"])
    assert found["first"] == table.slice(0, 3).to_pylist()
    code, out, _ = run("column", "L1.N9", "--limit", "2", "--where", "upos=NOUN")
    assert (code, len(out.splitlines())) == (0, 6)
    assert run_json("column", "L1.N9", "L1.N2", "--labels", "upos", "--out", "c.parquet")["tokens"] == table.num_rows
    assert pq.read_table("c.parquet").to_pylist() == table.to_pylist()
    assert run("column", "L1.N9", "--out", "c.npy")[1] == f"{len(values)} tokens × 1 neurons written to c.npy\n"
    np.testing.assert_array_equal(np.load("c.npy")[:, 0], values[:, 0])


def test_rows(run, run_json, lake):
    tokens = choose_tokens(lake, form="w7", subword="all")
    record = run_json("rows", "--form", "w7", "--subword", "all", "--layers", "1", "--out", "r.npy")
    assert record == {"out": "r.npy", "shape": [tokens.count, 1, 70], "layers": [1], "site": "mlp.post"}
    np.testing.assert_array_equal(np.load("r.npy")[:, 0], stored(lake, 1)[tokens.rows])
    assert np.load("r.rows.npy").tolist() == tokens.rows.tolist()
    code, out, _ = run("rows", "--row", "3", "4", "--out", "r.zarr")
    assert (code, out) == (0, "2 tokens × 2 layers × 70 neurons (1.1 kB) written to r.zarr\n")


def test_top_of_a_weighted_set(run, run_json, lake):
    found = run_json("top", "L0.N11*0.7", "L1.N3*-2e-1", "L0.N4", "-k", "6", "--where", "upos=VERB", "--bottom")
    weights = {(0, 11): 0.7, (1, 3): -0.2, (0, 4): 1.0}
    expected = top_tokens_weighted(lake, weights, 6, bottom=True, where=("upos", "VERB"))
    assert found == [{**entry, "site": "mlp.post"} for entry in expected]
    assert run_json("top", "L0.N11*1") == run_json("top", "L0.N11")
    assert run("top", "L0.N11*2", "-k", "3", "--labels", "upos")[1].count("«") == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tokens", "L0.N1"), "no threshold given: say above, below or both"),
        (("tokens", "L0.N1", "--above", "x"), "invalid float value: 'x'"),
        (("tokens", "L0.N1", "--above", "nan"), "above must be a number, got nan"),
        (("tokens", "L5.N1", "--above", "1"), r"no neuron L5\.N1 in this lake: valid are layers 0 to 1, neurons 0 to 69"),
        (("tokens", "L0.N1", "--above", "1", "--labels", "upso"), "no label column 'upso': known are upos"),
        (("tokens", "L0.N1", "--above", "1", "--count", "--out", "t.csv"), "--count writes no file"),
        (
            ("tokens", "L0.N1", "--above", "1", "--out", "t.npy"),
            r"--out writes \.parquet or \.csv: expected",
        ),
        (("tokens", "L0.N1", "--above", "1", "--limit", "0"), "limit must be at least 1, got 0"),
        (("tokens", "L0.N1", "--above", "1", "--where", "upos=FOO"), "no tag 'FOO' of 'upos'"),
        (("neurons",), "one of the arguments --row --sentence --form --where is required"),
        (("neurons", "--row", "1", "--form", "w1"), "not allowed with argument --row"),
        (("neurons", "--row", "99999"), r"no row 99999 in .*: it has rows 0 to \d+"),
        (("neurons", "--row", "1", "2", "--score", "strongest"), "--score strongest is of one token, got 2"),
        (("neurons", "--row", "1", "--top", "0"), "the number of neurons must be at least 1, got 0"),
        (("neurons", "--row", "1", "--layer", "7"), "no layer 7: stored are 0, 1"),
        (("neurons", "--sentence", "12345"), r"no token of a sentence 12345 in .*: committed are sentences 0 to \d+"),
        (("neurons", "--form", "w99"), "no token of a word 'w99'"),
        (("neurons", "--where", "form='nowhere'"), "is true of none of the tokens"),
        (("column", "L0.N1", "L0.N1"), r"two columns 'L0\.N1'"),
        (("column", "L0.N1", "--limit", "-1"), "limit must be at least 0, got -1"),
        (("column", "L0.N1", "--labels", "upos", "--out", "c.npy"), r"\.npy holds values alone, no labels"),
        (("column", "L0.N1", "--out", "nowhere/c.csv"), r"no folder nowhere to write c\.csv in"),
        (("rows", "--form", "w1"), "the following arguments are required: --out"),
        (("rows", "--form", "w1", "--out", "r.csv"), r"--out writes \.npy or"),
        (("rows", "--form", "w1", "--layers", "9", "--out", "r.npy"), "no layer 9"),
        (("top", "L0.N1*x"), r"'L0\.N1\*x' is no weighted neuron: write it as L12\.N345\*0\.7"),
        (("top", "L0.N1*nan"), r"weight of L0\.N1 must be a finite number, got nan"),
        (("top", "L0.N1", "L0.N1*2"), r"L0\.N1 is given twice"),
        (("top", "L0.N1*0"), "no neuron has a weight other than zero"),
    ],
)
def test_whatever_is_wrong_is_said_once(run, arguments, said):
    code, out, err = run(*arguments)
    assert code == 2
    assert re.search(said, err), err
    assert err.startswith("neuronlake: ")
    assert err.count("\n") == 1
    assert not out
    assert list(Path().iterdir()) == [], "bad input leaves nothing behind"


def test_an_existing_file_is_left_alone(run):
    Path("t.csv").write_text("mine")
    for arguments in (("tokens", "L0.N1", "--above", "1"), ("column", "L0.N1")):
        code, _, err = run(*arguments, "--out", "t.csv")
        assert (code, "exists: choose another name" in err) == (2, True)
    assert Path("t.csv").read_text() == "mine"


@pytest.mark.parametrize("command", ["tokens", "neurons", "column", "rows"])
def test_help_has_examples(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"neuronlake {command} my.lake" in out


def test_a_sentence_with_guillemets_of_its_own_is_marked_at_the_token():
    entry = {"context": "il dit «oui»« et» part", "token": " et", "start": 12}
    assert Text.from_markup(context(entry)).plain == "il dit «oui» «et» part"
