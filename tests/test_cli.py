"""Every command as a user types it: results, JSON, exit codes, one clear line for bad input."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lakes import synthetic_lake
from tiny import conllu, make_model, some_sentences

from neuronlake.cli.main import main


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Neuron L1.N3 is high on VERB; everything else is noise."""
    root = tmp_path_factory.mktemp("lakes") / "a.lake"
    tokens = 400
    synthetic_lake(root, tokens=tokens)  # only to learn the tags that the seed gives
    from neuronlake.store import open_lake

    labelled = open_lake(root).tokens(labels=["upos"]).to_pandas()
    upos = labelled.loc[labelled["word"] >= 0, "upos"].to_numpy()
    values = np.random.default_rng(1).standard_normal((2, tokens, 10)).astype(np.float32)
    values[1, :, 3] += 3 * (upos == "VERB")
    root = tmp_path_factory.mktemp("lakes") / "b.lake"
    synthetic_lake(root, tokens=tokens, values=values)
    return root


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> object:
    code, out, _ = run(capsys, *arguments, "--json")
    assert code == 0
    return json.loads(out)


def test_info(capsys: pytest.CaptureFixture[str], lake: Path) -> None:
    code, out, _ = run(capsys, "info", lake)
    assert code == 0
    assert "2 layers × 10 neurons at mlp.post\n" in out
    record = run_json(capsys, "info", lake)
    assert isinstance(record, dict)
    assert record["complete"] is True
    assert record["counts"]["tokens"] == 400
    assert "upos" in record["labels"]


def test_verify_finds_damage_and_says_where(capsys: pytest.CaptureFixture[str], lake: Path, tmp_path: Path) -> None:
    assert run(capsys, "verify", lake, "--full")[0] == 0
    broken = tmp_path / "broken.lake"
    shutil.copytree(lake, broken)
    shard = broken / "activations/mlp.post/1/c.2.0"
    data = bytearray(shard.read_bytes())
    data[40] ^= 4
    shard.write_bytes(data)
    code, out, _ = run(capsys, "verify", broken, "--full")
    assert code == 1
    assert "activations/mlp.post/1/c.2.0: xxh3" in out
    code, _, err = run(capsys, "rank", broken)
    assert code == 1
    assert "checksum" in err


def test_rank(capsys: pytest.CaptureFixture[str], lake: Path) -> None:
    ranking = run_json(capsys, "rank", lake, "--by", "upos", "--method", "auroc", "--top", 2)
    assert isinstance(ranking, list)
    assert len(ranking) == 6
    best = next(entry for entry in ranking if entry["tag"] == "VERB")
    assert (best["layer"], best["neuron"], best["name"]) == (1, 3, "L1.N3")
    assert best["score"] > 0.95
    assert {"tag", "layer", "neuron", "score", "sign", "q"} <= set(best)
    for method in ("mean_difference", "cohen_d", "welch_t"):
        code, out, _ = run(capsys, "rank", lake, "--method", method, "--tags", "VERB", "--top", 1)
        assert code == 0
        assert "L1.N3" in out


def test_an_unfinished_lake_is_said(capsys: pytest.CaptureFixture[str], lake: Path, tmp_path: Path) -> None:
    part = tmp_path / "part.lake"
    shutil.copytree(lake, part)
    (part / "commits" / "block-000001.json").unlink()
    code, out, err = run(capsys, "top", part, "L0.N0", "-k", 1, "--json")
    assert code == 0
    assert "6 of 7 blocks are extracted" in err
    assert json.loads(out)


def test_top(capsys: pytest.CaptureFixture[str], lake: Path) -> None:
    found = run_json(capsys, "top", lake, "L1.N3", "-k", 5, "--labels", "upos")
    assert isinstance(found, list)
    assert [entry["labels"]["upos"] for entry in found] == ["VERB"] * 5
    assert {"row", "value", "token", "context"} <= set(found[0])
    code, out, _ = run(capsys, "top", lake, "L1.N3", "-k", 5, "--where", "upos=NOUN")
    assert code == 0
    assert out.count("«") == 5


def test_stats_and_their_file(capsys: pytest.CaptureFixture[str], lake: Path, tmp_path: Path) -> None:
    import xarray

    record = run_json(capsys, "stats", lake, "--out", tmp_path / "s.zarr")
    assert isinstance(record, dict)
    assert sum(row["count"] for row in record["tags"]) == 400
    kept = xarray.open_zarr(tmp_path / "s.zarr", consolidated=False)
    assert dict(kept.sizes) == {"tag": 3, "layer": 2, "neuron": 10}
    code, _, err = run(capsys, "stats", lake, "--out", tmp_path / "s.zarr")
    assert (code, "exists: choose another name" in err) == (2, True)


def test_probe_beside_its_baselines(capsys: pytest.CaptureFixture[str], lake: Path) -> None:
    record = run_json(capsys, "probe", lake, "--by", "upos", "--layer", 1)
    assert isinstance(record, dict)
    assert set(record["baselines"]) == {"majority", "most_frequent_tag_per_word"}
    code, out, _ = run(capsys, "probe", lake, "--top-k", 2)
    assert code == 0
    assert "most frequent tag per word" in out


def test_plot(capsys: pytest.CaptureFixture[str], lake: Path, tmp_path: Path) -> None:
    assert run(capsys, "plot", lake, "--out", tmp_path / "p.png")[0] == 0
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("info", "nowhere.lake"), "no lake at nowhere.lake: the folder does not exist"),
        (("rank", "LAKE", "--by", "upso"), "no label column 'upso'|unknown label"),
        (("rank", "LAKE", "--method", "magic"), "unknown method 'magic': known are"),
        (("rank", "LAKE", "--tags", "QUX"), "QUX"),
        (("top", "LAKE", "L9.N1"), "layer"),
        (("top", "LAKE", "twelve"), "L12.N345"),
        (("top", "LAKE", "L0.N1", "-k", "0"), "k must be at least 1"),
        (("top", "LAKE", "L0.N1", "--where", "upos=QUX"), "no tag 'QUX' of 'upos'"),
        (("top", "LAKE", "L0.N1", "--per-document", "0"), "per_document must be at least 1"),
        (("index", "nowhere.lake"), "no lake at nowhere.lake"),
        (("probe", "LAKE", "--layer", "x"), "expected a layer number, 'all' or 'each'"),
        (("probe", "LAKE", "--layer", "7"), "layer"),
        (("plot", "LAKE", "--out", "p.gif"), "known suffixes"),
        (("stats", "LAKE", "--out", "s.csv"), "expected a name ending so"),
        (("frobnicate",), "invalid choice"),
        (("extract", "x.lake", "--model", "m"), "one of the arguments --conllu --text --table --audio is required"),
        (("extract", "x.lake", "--model", "m", "--conllu", "c", "--blocks", "3"), "expected FIRST:LAST"),
        (("extract", "x.lake", "--model", "m", "--conllu", "c", "--batch-tokens", "0"), "at least 1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str],
    lake: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    match: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *(lake if argument == "LAKE" else argument for argument in arguments))
    assert code == 2
    assert out == ""
    assert err.startswith("neuronlake: ")
    assert err.count("\n") == 1
    assert re.search(match, err), err
    assert list(tmp_path.iterdir()) == [], "bad input leaves nothing behind"


def test_bad_corpora_are_refused_before_anything_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = make_model(tmp_path / "model")
    capsys.readouterr()  # transformers' own remarks on saving the model
    good = conllu(some_sentences(3))
    cases = {
        "columns.conllu": (good.replace("\tdep\t_\t_", "\tdep\t_", 1).encode(), r"columns.conllu:\d+"),
        "text.conllu": (good.replace("# text = ", "# text = XX", 1).encode(), r"text.conllu:\d+"),
        "utf8.conllu": (good.encode().replace(b"the", b"th\xff", 1) + b"\xff", r"utf8.conllu.*UTF-8"),
        "empty.conllu": (b"\n", "corpus is empty"),
    }
    for name, (data, match) in cases.items():
        (tmp_path / name).write_bytes(data)
        code, _, err = run(capsys, "extract", "x.lake", "--model", model, "--conllu", name)
        assert code == 2, err
        lines = [line for line in err.splitlines() if not line.endswith("…")]
        assert len(lines) == 1
        assert re.search(match, lines[0]), lines
        assert not (tmp_path / "x.lake").exists()
    code, _, err = run(capsys, "extract", "x.lake", "--model", model, "--conllu", "missing.conllu")
    assert code == 2
    assert "missing.conllu" in err


def test_extract_reports_and_resumes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    (tmp_path / "t.conllu").write_text(conllu(some_sentences(30)), encoding="utf-8")
    command = ("extract", tmp_path / "x.lake", "--model", model, "--conllu", tmp_path / "t.conllu", "--block-rows", 256)
    code, out, _ = run(capsys, *command)
    assert code == 0
    assert "0 words reached by no token" in out
    report = run_json(capsys, *command)
    assert isinstance(report, dict)
    assert report["extracted"] == []
    assert report["committed"] == report["blocks"]
    code, _, err = run(capsys, *command, "--encoding", "float32")
    assert code == 2
    assert "different plan (encoding: " in err


@pytest.mark.parametrize("command", ["extract", "info", "verify", "stats", "rank", "top", "probe", "plot", "demo"])
def test_every_command_has_help_with_examples(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert f"examples:\n  neuronlake {command}" in out
    assert "--json" in out


def test_ctrl_c_while_libraries_are_imported_is_one_line():
    code = (
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'neuronlake.cli.main':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "from neuronlake.cli.entry import run\n"
        "run()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "neuronlake: interrupted\n")
