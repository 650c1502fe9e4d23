"""`neuronlake label` as a user types it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from lakes import synthetic_lake

from neuronlake.cli.main import main
from neuronlake.store import open_lake


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lakes") / "a.lake"
    synthetic_lake(root, tokens=200)
    return root


@pytest.fixture
def lake(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "a.lake"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "frequency.csv"
    path.write_text("word,frequency,band\n" + "".join(f"{n},{n % 5},b{n % 2}\n" for n in range(0, 200, 2)))
    return path


def test_add_list_question_remove(run: Any, lake: Path, words: Path) -> None:
    code, out, err = run("label", lake, "--parquet", words)
    assert (code, err) == (0, "")
    assert "frequency" in out
    assert "label set frequency: 2 columns for the 200 words of" in out
    code, out, _ = run("label", lake, "--list")
    assert [line.split()[:4] for line in out.splitlines()[1:]] == [
        ["frequency", "band", "100", "words"],
        ["frequency", "100", "words", "50.0%"],
    ]
    assert "frequency.csv" in out
    ((listed),) = json.loads(run("label", lake, "--list", "--json")[1])
    assert (listed["name"], listed["columns"], listed["labelled"]) == (
        "frequency",
        ["band", "frequency"],
        {"band": 100, "frequency": 100},
    )
    assert json.loads(run("info", lake, "--json")[1])["label_sets"] == {"frequency": ["band", "frequency"]}
    assert "added       frequency\n" in run("info", lake)[1]
    code, out, _ = run("rank", lake, "--by", "frequency", "--where", "upos <> 'ADJ'", "--method", "cohen_d", "--json")
    assert {entry["tag"] for entry in json.loads(out)} <= {"0", "1", "2", "3", "4"}
    assert any((lake / "statistics").iterdir())
    code, out, _ = run("label", lake, "--remove", "frequency")
    assert (code, out) == (0, "label set frequency removed, and 1 kept result of its columns\n")
    assert not any((lake / "statistics").iterdir())
    assert run("label", lake, "--list")[1] == f"no labels were added to {lake}\n"
    code, _, err = run("rank", lake, "--by", "frequency")
    assert code == 2
    assert "no label column 'frequency'" in err


def test_json_says_what_was_added_and_removed(run: Any, lake: Path, words: Path) -> None:
    options = ("--name", "mine", "--prefix", "my_", "--columns", "band", "--json")
    added = json.loads(run("label", lake, "--parquet", words, *options)[1])
    assert (added["name"], added["of"], added["columns"], added["lines"]) == ("mine", "words", ["my_band"], 200)
    assert added["source"]["files"][0]["name"] == "frequency.csv"
    assert added["lake"] == str(lake)
    removed = json.loads(run("label", lake, "--remove", "mine", "--json")[1])
    assert removed == {"lake": str(lake), "removed": "mine", "results": []}


def test_conllu_by_the_command(run: Any, lake: Path, tmp_path: Path) -> None:
    sentences: dict[int, list[dict[str, Any]]] = {}
    for word in open_lake(lake).words().to_pylist():
        sentences.setdefault(word["sentence"], []).append(word)
    rest = "\t_" * 6
    lines = [
        [f"{place}\t{word['form']}\t_\t{word['upos']}{rest}\n" for place, word in enumerate(words, 1)]
        for words in sentences.values()
    ]
    text = "".join("".join(sentence) + "\n" for sentence in lines)
    (tmp_path / "same.conllu").write_text(text)
    (tmp_path / "other.conllu").write_text(text.replace("\tw", "\tv", 1))
    code, _, err = run("label", lake, "--conllu", tmp_path / "other.conllu", "--prefix", "c_")
    assert code == 2
    assert err.count("\n") == 1
    assert "other.conllu:1: sentence" in err
    assert "nothing was added" in err
    assert run("label", lake, "--conllu", tmp_path / "same.conllu")[0] == 2  # upos is there already
    code, out, _ = run("label", lake, "--conllu", tmp_path / "same.conllu", "--prefix", "c_")
    assert code == 0
    assert "label set same: 1 column for the 200 words" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "one of the arguments --spacy --conllu --parquet --list --remove is required"),
        (("--list", "--prefix", "x_"), "--prefix has no effect with --list"),
        (("--remove", "x", "--name", "y"), "--name has no effect with --remove"),
        (("--remove", "x"), "no label set 'x' in"),
        (("--spacy", "no_such_pipeline"), "'no_such_pipeline' cannot be loaded"),
        (("--spacy", "x", "--limit-sentences", "3"), "--limit-sentences has no effect without --conllu"),
        (("--conllu", "missing.conllu"), "missing.conllu: no such file or folder"),
        (("--parquet", "missing.parquet"), "missing.parquet does not exist"),
        (("--parquet", "missing.txt"), "unknown kind of token table"),
        (("--conllu", "x", "--parquet", "y"), "not allowed with argument"),
        (("--parquet", "x.csv", "--name", "../x"), "cannot be the name of a label set"),
    ],
)
def test_wrong_use_is_one_line(run: Any, lake: Path, arguments: tuple[str, ...], message: str) -> None:
    code, out, err = run("label", lake, *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err


def test_no_lake_is_made(run: Any, tmp_path: Path, words: Path) -> None:
    for options in (("--parquet", words), ("--list",), ("--remove", "x")):
        code, _, err = run("label", tmp_path / "none.lake", *options)
        assert code == 2
        assert "no lake at" in err
    assert not (tmp_path / "none.lake").exists()
