"""`neuronlake lesion` as a user types it: tables, files, figures, and one clear line for whatever is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lakes import synthetic_lake
from tiny import make_model
from tiny_world import World, make_world

from neuronlake.analysis import rank, token_labels
from neuronlake.analysis.key_sets import choose_sets
from neuronlake.analysis.statistics import compute_statistics
from neuronlake.cli.main import main
from neuronlake.extractor.lesion_model import LesionModel
from neuronlake.store import open_lake

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def run(world: World, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object, lake: Path = world.lake) -> tuple[int, str, str]:
        given = ["lesion", str(lake), *map(str, arguments)]
        if "--model" not in given:
            given += ["--model", str(world.source.folder)]
        capsys.readouterr()  # what transformers said while a test's model was saved
        try:
            code = main(given)
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "neurons.json"
    path.write_text(json.dumps({"NOUN": [[0, 3], [1, 4], [1, 9]], "VERB": [[1, 0], [0, 7], [0, 8]]}))
    return path


def test_from_ranking_to_files(run: Run, world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("-k", 6, "--doses", "2,4", "--random", 4, "--dose-random", 2, "--tokens", 60, "--least", 5, "--out", out,
                 "--format", "svg")  # fmt: skip
    code, table, err = run(*arguments)
    assert code == 0, err
    assert "lesions hurt its own tag more" in table
    assert all(f"{tag} " in table for tag in ("DET", "NOUN", "VERB"))
    for name in ("matrix.svg", "effects.svg", "doses.svg"):
        assert "neurons" in (out / name).read_text()
    result = json.loads((out / "lesions.json").read_text())
    assert [entry["tag"] for entry in result["lesions"]] == ["DET", "NOUN", "VERB"]
    assert all(len(entry["random"]) == 4 and entry["neurons"] == 6 for entry in result["lesions"])
    assert [(entry["dose"], len(entry["random"])) for entry in result["doses"]] == [(2, 2)] * 3 + [(4, 2)] * 3
    lake = open_lake(world.lake)
    assert result["lake_fingerprint"] == lake.fingerprint
    assert result["model"]["sha256"] == world.source.sha256
    # half of the documents chose the neurons, none of them is predicted
    labels = token_labels(lake, "upos", subword="first", min_tokens=1)
    with np.load(out / "sums.npz") as sums:
        measured = set(sums["documents"].tolist())
        assert sums["log_loss"].shape[0] == 1 + result["cost"]["lesions"]
        assert sums["targets"].sum() == result["text"]["targets"] >= 60
    assert 0 < len(measured) <= len(set(labels.documents.tolist())) / 2 + 1
    rest = np.setdiff1d(labels.documents, list(measured))
    chosen = json.loads((out / "neurons.json").read_text())
    assert set(chosen) == {"DET", "NOUN", "VERB"}
    assert all(len(pairs) == 6 for pairs in chosen.values())
    assert len(rest)
    # the same command again computes nothing but the clean run; another one does not mix with it
    again = json.loads(run(*arguments, "--json")[1])
    assert again["cost"]["passes"] == 1
    assert again["lesions"] == result["lesions"]
    code, _, err = run(*arguments, "--do", "mean")
    assert code == 2
    assert "holds another result (settings differ)" in err
    # what was written can be read again
    code, text, err = run("--neurons", out / "neurons.json", "--tokens", 60, "--random", 2, "--json", "--tags", "NOUN")
    assert code == 0, err
    assert [entry["neurons"] for entry in json.loads(text)["lesions"]] == [6]


def test_a_file_another_text_and_every_kind(run: Run, world: World, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.lake"
    world.extract(other, context="document", on_long="split")
    for done in (("--do", "mean"), ("--do", "clamp", "--value", 0.5), ()):
        code, text, err = run("--neurons", file, "--on", other, "--random", 2, "--tokens", 50, "--json", *done)
        assert code == 0, err
        result = json.loads(text)
        assert result["on_fingerprint"] == open_lake(other).fingerprint != result["lake_fingerprint"]
        assert [entry["layers"] for entry in result["lesions"]] == [{"0": 1, "1": 2}, {"0": 2, "1": 1}]
    code, text, _ = run("--neurons", file, "--random", 0, "--tokens", 50, "-k", 1, "--tags", "VERB")
    assert code == 0
    assert "VERB" in text
    assert "NOUN" not in text


def test_per_layer_sets_are_the_best_of_every_layer(world: World, run: Run) -> None:
    lake = open_lake(world.lake)
    statistics = compute_statistics(lake, "upos", shift=1, keep=False)
    for each in choose_sets(lake, "upos", method="cohen_d", k=3, per_layer=True):
        for layer in (0, 1):
            best = rank(statistics.sel(layer=[layer]), "cohen_d", top=3, tags=[each.tag])
            assert each.neurons[each.layers == layer].tolist() == [entry["neuron"] for entry in best]
        assert {layer for layer, _ in each.best(2).pairs()} == {0, 1}
    code, text, err = run("-k", 3, "--per-layer", "--method", "cohen_d", "--random", 3, "--tokens", 50, "--json")
    assert code == 0, err
    result = json.loads(text)
    assert [entry["layers"] for entry in result["lesions"]] == [{"0": 3, "1": 3}] * 3
    assert result["cost"]["lesions"] == 3 + 3  # the random sets are shared by all tags


def test_what_cannot_be_measured_is_refused(run: Run, file: Path, tmp_path: Path) -> None:
    synthetic_lake(tmp_path / "synthetic.lake")
    foreign = tmp_path / "foreign.json"
    foreign.write_text('{"NOUN": [[0, 3], [2, 1]]}')
    wide = tmp_path / "wide.json"
    wide.write_text(json.dumps({"NOUN": [[0, neuron] for neuron in range(60)]}))
    unknown = tmp_path / "unknown.json"
    unknown.write_text('{"FOO": [[0, 3]]}')
    used = tmp_path / "used"
    used.mkdir()
    (used / "lesions.json").write_text("{}")
    cases: list[tuple[tuple[Any, ...], str]] = [
        (("--neurons", foreign), "no L2.N1 (of tag NOUN): these neurons are of another model"),
        (("--neurons", unknown), "tag 'FOO' has no word to predict"),
        (("--neurons", wide), "60 of the 88 neurons of layer 0 are key neurons, which leaves too few"),
        (("--neurons", tmp_path / "nowhere.json"), "could not read"),
        (("--neurons", file, "--tags", "DET"), "has no neurons of 'DET': it has those of NOUN, VERB"),
        (("--neurons", file, "--method", "auroc"), "--method ranks neurons, but --neurons names them"),
        (("--neurons", file, "--per-layer"), "--per-layer chooses neurons"),
        (("--neurons", file, "--doses", "2,4"), "4 neurons of NOUN asked for, but there are 3"),
        (("-k", 200, "--per-layer"), "a layer of this model has 88 neurons, choose 1 to 88"),
        (("-k", 177), "2 layers of this model has 176 neurons"),
        (("-k", 0), "-k must be at least 1"),
        (("--tags", "ADJ"), "unknown tag 'ADJ': known are DET, NOUN, VERB"),
        (("--by", "nonsense"), "nonsense"),
        (("--method", "nonsense"), "unknown method 'nonsense'"),
        (("--where", "upos='NOUN'", "--tags", "VERB"), "tag 'VERB' has no word to predict"),
        (("--do", "shred"), "known are zero, mean, clamp"),
        (("--do", "clamp"), "--value 0.5"),
        (("--value", 3), "--value is for --do clamp"),
        (("--random", -1), "--random must be at least 0"),
        (("--tokens", 0), "--tokens must be at least 1"),
        (("--doses", "1,x"), "expected numbers such as"),
        (("-k", 5, "--device", "tpu"), "device"),
        (("-k", 5, "--dtype", "int3"), "unknown dtype"),
        (("--on", tmp_path / "synthetic.lake"), "was made by synthetic"),
        (("--neurons", file, "--out", tmp_path / "no" / "out"), "no folder"),
        (("--neurons", file, "--out", used), "holds another result"),
        (("--model", tmp_path / "nowhere"), "no model at"),
        (("--model", make_model(tmp_path / "other", seed=1)), "was made by model"),
    ]
    for arguments, message in cases:
        code, _, err = run(*arguments)
        lines = [line for line in err.splitlines() if not line.endswith("…")]
        assert (code, len(lines)) == (2, 1), (arguments, err)
        assert message in lines[0], (arguments, lines)


def test_an_interrupted_run_goes_on(run: Run, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--neurons", file, "--random", 2, "--tokens", 50, "--json")
    whole = json.loads(run(*arguments)[1])
    original, calls = LesionModel.run, 0

    def stopping(self: LesionModel, lesion: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return original(self, lesion)

    monkeypatch.setattr(LesionModel, "run", stopping)
    out = tmp_path / "out"
    code, _, err = run(*arguments, "--out", out)
    assert code == 130
    assert f"finished runs are kept in {out}" in err
    code, text, err = run(*arguments, "--out", out)
    assert code == 0, err
    result = json.loads(text)
    assert result["cost"]["reused"] == 3
    assert result["lesions"] == whole["lesions"]


def test_a_lake_without_neurons_has_none_to_lesion(run: Run, world: World, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(world.lake, tmp_path / "bare.lake"))
    shutil.rmtree(bare / "commits")
    code, _, err = run(lake=bare)
    assert code == 2
    assert "no committed block" in err
    world.extract(tmp_path / "resid.lake", sites=("resid.post",))
    code, _, err = run(lake=tmp_path / "resid.lake")
    assert code == 2
    assert "no site 'mlp.post'" in err
