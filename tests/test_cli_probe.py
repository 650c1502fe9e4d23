"""`neuronlake probe` as a user types it."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from lakes import make_spec, plan_lake, random_sentences, synthetic_lake, write_blocks

from neuronlake.cli.main import main
from neuronlake.store import open_lake


@pytest.fixture(scope="module")
def lakes(tmp_path_factory):
    """Two lakes of one model, L1.N3 of which fires on nouns."""
    import numpy as np

    folder = tmp_path_factory.mktemp("lakes")
    for number, name in enumerate(("a.lake", "b.lake")):
        rng = np.random.default_rng(number)
        spec = make_spec(layers=2, neurons=12, block_rows=64, chunk_neurons=4, encoding="float16")
        spec = dataclasses.replace(spec, plan={**spec.plan, "corpus": {"kind": "synthetic", "name": name}})
        sentences = random_sentences(rng, 900, tags=("ADJ", "NOUN", "VERB"), documents=12)
        record, rows = plan_lake(folder / name, spec, sentences)
        tags = [word.labels["upos"] for sequence in sentences for word in sequence.sentences[0].words]
        values = rng.standard_normal((2, 900, 12)).astype(np.float32)
        values[1, :, 3] += 3 * (np.array(tags) == "NOUN")
        values[1, :, 8] += 3 * (np.array(tags) == "VERB")
        write_blocks(folder / name, spec, record, rows, values)
    return folder


@pytest.fixture(autouse=True)
def inside(lakes, tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    for name in ("a.lake", "b.lake"):
        Path(name).symlink_to(lakes / name)


def run(capsys, *arguments):
    status = main(["probe", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_one_probe_with_everything_beside_it(capsys):
    status, out, err = run(capsys, "a.lake", "--layer", "1")
    assert status == 0, err
    for words in (
        "probe ", "majority", "most frequent tag per word", "control task", "selectivity 0.", "shuffled labels",
        "random neurons", "10 draws of 1", "NOUN", "held-out documents, seed 0",
    ):  # fmt: skip
        assert words in out, words
    found = json.loads(run(capsys, "a.lake", "--layer", "1", "--json")[1])
    assert found["accuracy"] > 0.85
    assert found["settings"]["classifier"] == "logistic"
    assert f"{found['accuracy']:.3f}" in out
    assert found["controls"]["shuffled_labels"]["accuracy"] < 0.6


def test_every_layer_with_table_and_figures(capsys):
    Path("pictures").mkdir()
    arguments = ("a.lake", "--layer", "each", "--classifier", "lda", "--out", "a.parquet", "--figures", "pictures")
    status, out, err = run(capsys, *arguments)
    assert status == 0, err
    lines = [line.split() for line in out.splitlines() if line[:1].isdigit()]
    assert [line[0] for line in lines] == ["0", "1"]
    assert float(lines[1][3]) > 0.85 > 0.6 > float(lines[0][3])
    assert sorted(path.name for path in Path("pictures").iterdir()) == [
        "accuracy-by-layer.png", "f1-by-layer.png", "selectivity-by-layer.png",
    ]  # fmt: skip
    assert "wrote a.parquet" in err
    table = pq.read_table("a.parquet").to_pylist()
    assert {row["layer"] for row in table} == {0, 1}
    assert (Path("a.lake") / "covariances").is_dir()
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert "a.parquet exists: choose another name" in err


@pytest.mark.parametrize(
    ("arguments", "figure"),
    [
        (("--k", "1", "2", "4"), "accuracy-by-neurons.svg"),
        (("--layer", "1", "--shift", "0", "1"), "accuracy-by-shift.svg"),
        (("--neurons", "L1.N3", "L1.N8"), "confusion.svg"),
    ],
)
def test_other_sweeps(capsys, arguments, figure):
    Path("pictures").mkdir()
    status, out, err = run(capsys, "a.lake", *arguments, "--figures", "pictures", "--format", "svg", "--classifier", "lda")
    assert status == 0, err
    assert [path.name for path in Path("pictures").iterdir()] == [figure]
    assert f"wrote {Path('pictures') / figure}" in err
    assert out


def test_transfer_tags_and_other_classifiers(capsys):
    found = json.loads(run(capsys, "a.lake", "--layer", "1", "--test", "b.lake", "--classifier", "ridge", "--json")[1])
    assert found["accuracy"] > 0.85
    assert found["settings"]["split"] is None
    assert "(another lake, seed 0)" in run(capsys, "a.lake", "--layer", "1", "--test", "b.lake")[1]
    found = json.loads(run(capsys, "a.lake", "--tags", "NOUN", "VERB", "--k", "2", "--json")[1])
    assert found["tags"] == ["NOUN", "VERB"]
    assert set(found["neurons"]) == {"L1.N3", "L1.N8"}
    found = json.loads(run(capsys, "a.lake", "--tag", "NOUN", "--layer", "1", "--classifier", "cav", "--json")[1])
    assert found["per_tag"]["NOUN"]["f1"] > 0.8
    net = ("a.lake", "--layer", "1", "--classifier", "elastic_net", "--penalty", "0.1")
    assert "neurons with a weight for any tag: 2 of 12" in run(capsys, *net)[1]
    stopped = run(capsys, *net, "--passes", "2", "--l1-ratio", "0")[1]
    assert "stopped after 2 passes, before convergence" in stopped
    assert "neurons with a weight for any tag: 12 of 12" in stopped


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--layer", "7"), "no layer 7: stored are 0, 1"),
        (("--layer", "each", "1"), "--layer takes layer numbers, or 'all', or 'each'"),
        (("--classifier", "forest"), "unknown classifier 'forest': known are lda, ridge"),
        (("--out", "a.txt"), "--out writes .parquet or .csv or .json"),
        (("--figures", "nowhere"), "no folder nowhere to draw in: create it first"),
        (("--test", "c.lake"), "c.lake"),
        (("--neurons", "L1.N3", "--layer", "1"), "give only one of them"),
        (("--shift", "50"), "50 words later"),
        (("--tag", "X"), "no token is labelled 'X'"),
        (("--l1-ratio", "2"), "l1_ratio must lie between 0 and 1, got 2"),
        (("--k", "100"), "k=100 neurons cannot be chosen from 24"),
    ],
)
def test_wrong_flags(capsys, arguments, message):
    status, out, err = run(capsys, "a.lake", *arguments)
    assert status == 2
    assert not out
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_probe_stopped_midway_leaves_nothing_behind(tmp_path):
    """Ctrl-C while covariances are gathered: one line, no staging folder, and the next run goes on."""
    synthetic_lake(tmp_path / "c.lake", tokens=4000, layers=6, neurons=400, block_rows=512, chunk_neurons=50)
    command = [sys.executable, "-m", "neuronlake.cli.main", "probe", str(tmp_path / "c.lake"), "--layer", "each"]
    command += ["--classifier", "lda", "--random-draws", "20", "--controls", "5"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "c.lake" / "covariances"
    deadline = time.monotonic() + 60
    while not folder.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    if process.returncode:  # it may have been done already
        assert process.returncode == 130
        assert len(err.strip().splitlines()) == 1
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert main(["probe", str(tmp_path / "c.lake"), "--layer", "0", "--classifier", "lda"]) == 0
    assert open_lake(tmp_path / "c.lake").complete
