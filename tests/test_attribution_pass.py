"""The pass over a lake: which predictions, what is counted, interruption, damage, refusals."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attribution_reference import OnePosition, load_plain
from tiny import conllu, make_model, some_sentences

from neuronlake.analysis import read_attribution, token_labels
from neuronlake.cli.main import main
from neuronlake.extractor import (
    AttributionSettings,
    ConlluCorpus,
    ExtractSettings,
    ModelSource,
    attribute,
    extract,
    resolve_model,
)
from neuronlake.extractor.attribution_targets import choose_targets, make_batches
from neuronlake.store import InputError, Lake, open_lake, repair, verify
from neuronlake.store.kept import ATTRIBUTION, kept_results

LAYERS, NEURONS = 3, 88


def upos(lake: Lake) -> Any:
    return token_labels(lake, "upos", subword="first", min_tokens=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelSource]:
    """A lake of 40 sentences in several blocks, two of them to a sequence's document, and its model."""
    folder = tmp_path_factory.mktemp("made")
    source = resolve_model(str(make_model(folder / "model")))
    (folder / "corpus.conllu").write_text(conllu(some_sentences(40)), encoding="utf-8")
    extract(folder / "a.lake", ConlluCorpus(paths=(folder / "corpus.conllu",)), source, ExtractSettings(block_rows=64))
    return folder / "a.lake", source


@pytest.fixture
def lake(made: tuple[Path, ModelSource], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[0], tmp_path / "a.lake"))


def expected_targets(lake: Lake) -> list[dict[str, Any]]:
    """Every first token of a word that has one before it, by Python alone."""
    lines = lake.tokens(labels=["upos"]).to_pylist()
    return [
        {"row": line["row"], "tag": line["upos"], "line": place}
        for place, line in enumerate(lines)
        if line["position"] > 0 and line["word"] >= 0 and line["subword"] == 0
    ]


def test_targets_are_first_tokens_of_words(made: tuple[Path, ModelSource]) -> None:
    lake = open_lake(made[0])
    table, expected = lake.tokens(), expected_targets(lake)
    every = choose_targets(upos(lake), table, per_tag=None, seed=0)
    assert every.row.tolist() == [target["row"] for target in expected]
    assert [every.tags[tag] for tag in every.tag] == [target["tag"] for target in expected]
    some = choose_targets(upos(lake), table, per_tag=7, seed=3)
    assert some.samples.tolist() == [7, 7, 7]
    assert some.available.tolist() == every.samples.tolist() == every.available.tolist()
    assert set(some.row) <= set(every.row)
    only = choose_targets(upos(lake), table, per_tag=7, seed=3, tags=["VERB"])
    assert only.row.tolist() == some.row[some.tag == some.tags.index("VERB")].tolist()  # whatever the other tags
    assert choose_targets(upos(lake), table, per_tag=7, seed=4).row.tolist() != some.row.tolist()


@pytest.mark.parametrize("batch_targets", [1, 3, 16, 1000])
def test_batches_hold_every_target_once(made: tuple[Path, ModelSource], batch_targets: int) -> None:
    lake = open_lake(made[0])
    table = lake.tokens()
    targets = choose_targets(upos(lake), table, per_tag=None, seed=0)
    lines, seen = table.to_pylist(), []
    for batch in make_batches(targets, table, batch_targets=batch_targets):
        assert batch.target.size <= batch_targets
        for place, column in np.argwhere(batch.target >= 0):
            line = int(targets.line[batch.target[place, column]])
            position = int(batch.positions[place, column])
            assert position == lines[line]["position"] - 1
            assert batch.following[place, column] == lines[line]["token_id"]
            before = [entry["token_id"] for entry in lines[line - position - 1 : line]]
            assert batch.ids[place, : position + 1].tolist() == before
        seen += batch.target[batch.target >= 0].tolist()
    assert sorted(seen) == list(range(len(targets.line)))


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        (AttributionSettings(method="gradient", per_tag=6), 1.0),
        (AttributionSettings(method="gradient", per_tag=6, within="layer", share=0.1, quantity="probability"), 1.0),
        (AttributionSettings(steps=1, tolerance=None, per_tag=6), 0.5),
    ],
)
def test_counts_are_those_of_brute_force(
    made: tuple[Path, ModelSource], lake: Path, settings: AttributionSettings, scale: float
) -> None:
    report = attribute(lake, made[1], upos, settings)
    assert report.made
    opened = open_lake(lake)
    dataset = read_attribution(opened)
    targets = choose_targets(upos(opened), opened.tokens(), per_tag=6, seed=0)
    plain, ids = load_plain(made[1].folder), opened.tokens().column("token_id").to_numpy()
    positions = opened.tokens().column("position").to_numpy()
    hits = np.zeros((len(targets.tags), LAYERS, NEURONS), dtype=int)
    total = np.zeros(hits.shape)
    for line, tag in zip(targets.line, targets.tag, strict=True):
        position = int(positions[line]) - 1
        sequence = torch.from_numpy(ids[line - position - 1 : line + 1].astype(np.int64))
        single = OnePosition(plain, [layer.mlp.down_proj for layer in plain.model.layers], sequence, position)
        factor = float(single.value.exp()) if settings.quantity == "probability" else 1.0
        here = np.stack([(single.clean[layer] * single.gradient(layer, scale)).numpy() * factor for layer in range(LAYERS)])
        total[tag] += here
        for scope in here[:, None] if settings.within == "layer" else [here]:
            edge = np.sort(scope, axis=None)[-round(settings.share * scope.size)]
            hits[tag] += (here >= edge) & (here > 0) & np.isin(here, scope)
    np.testing.assert_array_equal(dataset["hits"], hits)
    mean = total / targets.samples[:, None, None]
    np.testing.assert_allclose(dataset["attribution"], mean, atol=1e-5 * np.abs(mean).max())
    assert dataset["samples"].to_numpy().tolist() == targets.samples.tolist()
    again = attribute(lake, made[1], upos, settings)
    assert not again.made
    assert again.attribution.name == report.attribution.name


def test_completeness_is_reported(made: tuple[Path, ModelSource], lake: Path) -> None:
    report = attribute(lake, made[1], upos, AttributionSettings(steps=8, per_tag=4))
    dataset = read_attribution(open_lake(lake))
    assert report.completeness == pytest.approx(float(dataset["completeness_error"].mean()))
    assert report.completeness < 1e-3
    attribute(lake, made[1], upos, AttributionSettings(method="gradient", per_tag=4))
    with pytest.raises(InputError, match=r"holds 2 attributions of 'upos': choose one by its name: .*method gradient"):
        read_attribution(open_lake(lake))
    gradient = read_attribution(open_lake(lake), method="gradient")
    assert np.isnan(gradient["completeness_error"]).all()
    assert read_attribution(open_lake(lake), name=dataset.attrs["name"]).identical(dataset)
    with pytest.raises(InputError, match="holds no such attributions of 'deprel'; it has upos-gradient-"):
        read_attribution(open_lake(lake), "deprel")


def test_a_planted_neuron_comes_first(tmp_path: Path) -> None:
    """One neuron writes the direction in which the unembedding of the nouns' first tokens lies."""
    nouns, others = ["Anna", "Berlin", "Kyoto"], ["the", "old", "streets", "running", "fox", "jump"]
    rng = np.random.default_rng(0)
    sentences = [
        [(word, "NOUN" if word in nouns else "X") for word in rng.choice(nouns + others, size=8)] for _ in range(30)
    ]
    folder = make_model(tmp_path / "model", tie_word_embeddings=False)
    (tmp_path / "c.conllu").write_text(conllu(sentences), encoding="utf-8")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    firsts = sorted({tokenizer.encode(before + noun, add_special_tokens=False)[0] for noun in nouns for before in ("", " ")})
    direction = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(1)), dim=0)
    with torch.no_grad():
        model.lm_head.weight[firsts] += 3 * direction
        mlp = model.model.layers[1].mlp
        mlp.down_proj.weight[:, 17] = 4 * direction
        mlp.gate_proj.weight[17] *= 3
        # where it is on, it is positive: its gate is its up projection
        mlp.up_proj.weight[17] = mlp.gate_proj.weight[17]
    for path in folder.glob("*.safetensors"):
        path.unlink()
    model.save_pretrained(folder)
    source = resolve_model(str(folder))
    extract(tmp_path / "a.lake", ConlluCorpus(paths=(tmp_path / "c.conllu",)), source, ExtractSettings(block_rows=128))
    for method in ("ig", "gradient"):
        attribute(tmp_path / "a.lake", source, upos, AttributionSettings(method=method, per_tag=40))
        found = read_attribution(open_lake(tmp_path / "a.lake"), method=method).sel(tag="NOUN")
        for name in ("hits", "attribution"):
            flat = int(np.argmax(found[name].to_numpy()))
            assert divmod(flat, NEURONS) == (1, 17), (method, name)


def files(root: Path) -> dict[str, bytes]:
    folder = root / ATTRIBUTION
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


RUN = """
import sys
import torch
from neuronlake.analysis import token_labels
from neuronlake.extractor import AttributionSettings, attribute, resolve_model
torch.set_num_threads(int(sys.argv[3]))
settings = AttributionSettings(per_tag=None, batch_targets=8, device="cpu")
labels = lambda lake: token_labels(lake, "upos", subword="first", min_tokens=1)
attribute(sys.argv[1], resolve_model(sys.argv[2]), labels, settings, keep_s=0.0)
"""


def test_a_killed_pass_goes_on(made: tuple[Path, ModelSource], tmp_path: Path) -> None:
    whole, killed = (Path(shutil.copytree(made[0], tmp_path / name)) for name in ("whole.lake", "killed.lake"))
    threads = str(torch.get_num_threads())
    process = subprocess.Popen([sys.executable, "-c", RUN, str(killed), str(made[1].folder), threads])
    while not any("-at-0" in name for name in kept_results(killed, kept=ATTRIBUTION)):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(InputError, match="holds no attributions"):
        read_attribution(open_lake(killed))
    assert verify(killed, full=True).ok
    settings = AttributionSettings(per_tag=None, batch_targets=8, device="cpu")
    resumed, fresh = (attribute(lake, made[1], upos, settings).resumed for lake in (killed, whole))
    assert resumed >= 8
    assert fresh == 0
    assert files(killed) == files(whole)


def test_damage_is_found_and_computed_again(made: tuple[Path, ModelSource], lake: Path) -> None:
    settings = AttributionSettings(method="gradient", per_tag=5)
    report = attribute(lake, made[1], upos, settings)
    before = files(lake)
    path = next((lake / ATTRIBUTION / report.attribution.name / "total").glob("c.*"))
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    assert "`neuronlake attribute` makes it again" in verify(lake, full=True).damage[0]
    assert attribute(lake, made[1], upos, settings).made
    assert files(lake) == before
    path.unlink()
    repair(lake)
    assert kept_results(lake, kept=ATTRIBUTION) == []
    assert verify(lake, full=True).ok


def test_the_command(made: tuple[Path, ModelSource], lake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(made[1].folder)
    arguments = ["attribute", str(lake), "--model", model, "--per-tag", "3", "--steps", "2", "--device", "cpu"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "completeness" in text
    assert re.search(r"NOUN +3 +\d+ +-\d+\.\d+ +L\d\.N\d+ \(\d+%\)", text)
    assert main([*arguments, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["made"], record["samples"], record["finished"]) == (False, [3, 3, 3], True)
    assert record["key"]["steps"] == 2


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--tags", "NOUN", "XYZ"], "no word has upos 'XYZ': known are DET, NOUN, VERB"),
        (["--by", "uposs"], "no label column 'uposs'"),
        (["--steps", "0"], "steps must be at least 1"),
        (["--share", "1.5"], "share must be between 0 and 1"),
        (["--per-tag", "0"], "per_tag must be at least 1"),
        (["--per-tag", "some"], "expected a number or all"),
        (["--dtype", "int8"], "unknown dtype"),
    ],
)
def test_wrong_use(
    made: tuple[Path, ModelSource], extra: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["attribute", str(made[0]), "--model", str(made[1].folder), "--device", "cpu", *extra])
    except SystemExit as error:
        code = int(error.code or 0)
    assert code == 2
    captured = capsys.readouterr().err
    assert message in captured
    assert not (made[0] / ATTRIBUTION).exists()


def test_another_model_is_refused(
    made: tuple[Path, ModelSource], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_model(tmp_path / "other", seed=7)
    assert main(["attribute", str(made[0]), "--model", str(other)]) == 2
    assert "give --model the weights it was made with" in capsys.readouterr().err
