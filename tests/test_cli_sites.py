"""Every question as a user types it, of a lake that has no ``mlp.post``, and of one with a second, narrower site."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from lakes import two_site_lake

from neuronlake.analysis import coactivation, output_vectors, vocabulary
from neuronlake.cli.main import main
from neuronlake.store import InputError, Lake, open_lake, verify
from neuronlake.store.compose import write_lake

Run = Callable[..., tuple[int, str, str]]
QUESTIONS = [
    ("stats", "--by", "upos"),
    ("rank", "--top", 2),
    ("rank", "--method", "cohen_d", "--permutations", 1, "--top", 1),
    ("top", "L1.N3", "-k", 3),
    ("top", "L1.N3", "-k", 3, "--where", "upos=NOUN", "--bottom"),
    ("top", "L1.N3*0.5", "L0.N6*-1", "-k", 3),
    ("describe", "L1.N3"),
    ("probe", "--layer", 1, "--classifier", "lda", "--random-draws", 1),
    ("tokens", "L1.N3", "--above", 1, "--limit", 3),
    ("tokens", "L1.N3", "--above", 1, "--count"),
    ("neurons", "--row", 5),
    ("neurons", "--where", "upos=NOUN"),
    ("neurons", "--where", "upos=NOUN", "--score", "hits"),
    ("column", "L1.N3", "--limit", 2),
    ("column", "L1.N3", "--out", "column.parquet"),
    ("rows", "--row", 5, "--out", "rows.npz"),
    ("coactivation", "L1.N3"),
    ("neighbours", "L1.N3", "-k", 2),
    ("neighbours", "--row", 5, "--layer", 1, "-k", 2),
    ("clusters", "--threshold", 0.3),
    ("plot", "--kind", "heatmap", "--out", "a.svg"),
    ("plot", "--kind", "histogram", "--neuron", "L1.N3", "--out", "b.svg"),
]
COMMANDS = sorted({str(question[0]) for question in QUESTIONS})


@pytest.fixture(scope="module")
def lakes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of units at resid.pre alone, as `import --site resid.pre` writes it, and one of two sites."""
    folder = tmp_path_factory.mktemp("lakes")
    _, rows, values = two_site_lake(folder / "two.lake", encoding="float32")
    tokens = open_lake(folder / "two.lake").tokens(labels=["upos", "form"]).take(rows)
    write_lake(
        folder / "one.lake",
        values["resid.post"],
        tokens=tokens.select(["form", "upos", "document"]),
        name="a model",
        site="resid.pre",
        encoding="float32",
        block_rows=64,
    )
    return {"resid.pre": folder / "one.lake", "resid.post": folder / "two.lake"}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


def sites_named(answer: Any) -> set[str]:
    """Every value of a ``site`` in an answer."""
    if isinstance(answer, dict):
        own = {answer["site"]} if "site" in answer else set()
        return own.union(*map(sites_named, answer.values()))
    return set().union(*map(sites_named, answer)) if isinstance(answer, list) else set()


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: " ".join(map(str, question)))
@pytest.mark.parametrize("site", ["resid.pre", "resid.post"])
def test_every_question_is_answered_at_the_site(run: Run, lakes: dict[str, Path], site: str, question: Any) -> None:
    command, *rest = question
    option = ["--site", site] if site == "resid.post" else []
    code, out, err = run(command, lakes[site], *rest, *option, "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert answer, "an empty answer would name no site"
    assert sites_named(answer) == {site}
    if "--out" not in rest:
        code, out, err = run(command, lakes[site], *rest, *option)
        assert code == 0, err
        assert out


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_site_is_refused_with_those_that_there_are(run: Run, lakes: dict[str, Path], command: str) -> None:
    rest = next(question[1:] for question in QUESTIONS if question[0] == command)
    code, out, err = run(command, lakes["resid.post"], *rest, "--site", "resid.mid")
    assert (code, out) == (2, "")
    assert err.endswith("two.lake: it has mlp.post, resid.post\n")
    assert err.count("\n") == 1


def test_answers_are_of_the_site_that_is_named(run: Run, lakes: dict[str, Path]) -> None:
    root = lakes["resid.post"]
    lake = open_lake(root)
    for here, option in [(lake, []), (lake, ["--site", "mlp.post"]), (lake.at("resid.post"), ["--site", "resid.post"])]:
        column = here.read(layer=1, neurons=[3])[:, 0]
        found = json.loads(run("top", root, "L1.N3", "-k", 5, "--json", *option)[1])
        assert [entry["value"] for entry in found] == np.sort(column)[::-1][:5].tolist()
        pairs = json.loads(run("coactivation", root, "L1.N3", "--top", 1, "--json", *option)[1])
        assert pairs[0]["correlation"] == pytest.approx(np.sort(np.abs(coactivation(here, (1, 3)).values.ravel()))[-2])
        shape = json.loads(run("rows", root, "--row", 5, "--out", f"{here.site}{len(option)}.npz", "--json", *option)[1])
        assert shape["shape"] == [1, 2, here.neurons]
    run("rank", root, "--top", 1, "--site", "resid.post", "--out", "rank.parquet")
    assert set(pq.read_table("rank.parquet").column("site").to_pylist()) == {"resid.post"}
    code, _, err = run("top", root, "L1.N7", "--site", "resid.post")
    assert code == 2
    assert "neurons 0 to 6" in err
    assert run("top", root, "L1.N7")[0] == 0


def test_info_lists_the_sites(run: Run, lakes: dict[str, Path]) -> None:
    root = lakes["resid.post"]
    record = json.loads(run("info", root, "--json")[1])
    assert record["sites"] == ["mlp.post", "resid.post"]
    assert record["widths"] == {"mlp.post": 10, "resid.post": 7}
    lake = open_lake(root)
    values = sum(2 * commit.rows * width for commit in lake.commits for width in record["widths"].values())
    assert record["bytes_per_value"] == record["bytes"] / values
    assert "2 layers × 10 neurons at mlp.post, 7 at resid.post\n" in run("info", root)[1]
    assert "2 layers × 7 neurons at resid.pre\n" in run("info", lakes["resid.pre"])[1]


def test_index_and_verify_are_of_all_sites(run: Run, tmp_path: Path) -> None:
    two_site_lake(tmp_path / "a.lake")
    blocks = len(open_lake(tmp_path / "a.lake").blocks)
    answer = json.loads(run("index", "a.lake", "--by", "upos", "--json")[1])
    assert answer["listed"] == {"upos": blocks}
    lake = open_lake("a.lake")
    assert [len(lake.at(site).index().tag_lists) for site in lake.sites] == [1, 1]
    assert json.loads(run("index", "a.lake", "--by", "upos", "--json")[1])["listed"] == {"upos": 0}
    assert run("verify", "a.lake", "--full")[0] == 0
    shard = tmp_path / "a.lake/activations/resid.post/0/c.1.0"
    shard.write_bytes(shard.read_bytes()[:-9])
    code, out, _ = run("verify", "a.lake")
    assert code == 1
    assert "resid.post" in out


def test_output_vectors_are_of_neurons_alone(lakes: dict[str, Path]) -> None:
    other: Lake = open_lake(lakes["resid.post"]).at("resid.post")
    for ask in (lambda: output_vectors(other), lambda: vocabulary(other, 0, 0)):
        with pytest.raises(InputError, match=r"of the neurons at mlp.post: the units at resid.post have none"):
            ask()
    assert verify(other.path, full=True).ok
