"""`neuronlake plot`: every kind of picture from a lake, and wrong combinations refused before anything is read."""

import argparse
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from lakes import synthetic_lake

from neuronlake.analysis import compute_statistics
from neuronlake.analysis.figure_volcano import volcano
from neuronlake.analysis.figures import layer_tag_heatmap, tag_bars
from neuronlake.cli.plot import add_commands
from neuronlake.store import open_lake
from neuronlake.store.errors import InputError


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Neuron L1.N3 is low on VERB; everything else is noise."""
    root = tmp_path_factory.mktemp("lakes")
    synthetic_lake(root / "a.lake", tokens=400)  # only to learn the tags that the seed gives
    labelled = open_lake(root / "a.lake").tokens(labels=["upos"]).to_pandas()
    upos = labelled.loc[labelled["word"] >= 0, "upos"].to_numpy()
    values = np.random.default_rng(1).standard_normal((2, 400, 10)).astype(np.float32)
    values[1, :, 3] -= 4 * (upos == "VERB")
    synthetic_lake(root / "b.lake", tokens=400, values=values)
    return root / "b.lake"


def plot(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers())
    options = parser.parse_args(["plot", *map(str, arguments)])
    return int(options.run(options))


def texts(path: Path) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def test_heatmap(lake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.svg"
    assert plot(lake, "--out", out) == 0
    assert capsys.readouterr().out == f"written to {out}\n"
    expected = layer_tag_heatmap(compute_statistics(open_lake(lake)), "auroc", tmp_path / "b.svg")
    assert out.read_bytes() == expected.read_bytes()


def test_bars(lake: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.svg"
    options = ("--method", "cohen_d", "--tags", "VERB", "NOUN", "--top", 2)
    assert plot(lake, "--kind", "bars", "--out", out, *options) == 0
    assert any(text.startswith("▼ L1.N3 ") for text in texts(out))
    statistics = compute_statistics(open_lake(lake))
    expected = tag_bars(statistics, "cohen_d", tmp_path / "b.svg", tags=["VERB", "NOUN"], top=2)
    assert out.read_bytes() == expected.read_bytes()


def test_bars_of_approximate_scores_are_exact(lake: Path, tmp_path: Path) -> None:
    assert plot(lake, "--kind", "bars", "--out", tmp_path / "a.svg") == 0
    verb = next(text for text in texts(tmp_path / "a.svg") if text.startswith("▼ L1.N3 "))
    opened = open_lake(lake)
    table = opened.tokens(labels=["upos"]).to_pandas()
    rows = np.flatnonzero(table["word"] >= 0)
    blocks = [opened.read_block(layer=1, block=block, neurons=[3])[:, 0] for block in opened.blocks]
    x = np.concatenate(blocks)[rows]
    positive = table["upos"].to_numpy()[rows] == "VERB"
    wins = (x[positive][:, None] < x[~positive][None]).mean() + (x[positive][:, None] == x[~positive][None]).mean() / 2
    assert verb == f"▼ L1.N3  {wins:.3f}"


def test_volcano(lake: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.svg"
    assert plot(lake, "--kind", "volcano", "--tag", "VERB", "--top", 3, "--out", out) == 0
    assert "L1.N3" in texts(out)
    expected = volcano(compute_statistics(open_lake(lake)), tmp_path / "b.svg", "VERB", top=3)
    assert out.read_bytes() == expected.read_bytes()


def test_histogram_reports_as_json(lake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.svg"
    options = ("--kind", "histogram", "--neuron", "L1.N3", "--tags", "VERB", "ADJ", "--subword", "all", "--json")
    assert plot(lake, "--out", out, *options) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"kind": "histogram", "by": "upos", "method": None, "site": "mlp.post", "out": str(out)}
    table = open_lake(lake).tokens(labels=["upos"]).to_pandas()
    sizes = table.loc[table["word"] >= 0, "upos"].value_counts()
    shown = texts(out)
    assert "Values of neuron L1.N3 by upos" in shown
    assert {f"{tag} ({sizes[tag]})" for tag in ("VERB", "ADJ")} <= set(shown)


def test_where_and_shift_reach_the_picture(lake: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.svg"
    options = ("--where", "upos != 'ADJ'", "--shift", 0)
    assert plot(lake, "--kind", "histogram", "--neuron", "l0.n1", "--out", out, *options) == 0
    shown = texts(out)
    assert any(text.endswith("where upos != 'ADJ'") for text in shown)
    assert not any(text.startswith("ADJ (") for text in shown)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--kind", "pie"), "unknown kind of picture 'pie': known are heatmap, bars, volcano, histogram"),
        (("--kind", "histogram"), "a histogram is of one neuron: add for example --neuron L12.N345"),
        (("--kind", "volcano"), "a volcano is of one tag: add for example --tag NOUN"),
        (("--tag", "NOUN"), "--tag means nothing to a heatmap: it is for volcano"),
        (("--neuron", "L0.N1"), "--neuron means nothing to a heatmap: it is for histogram"),
        (("--kind", "histogram", "--neuron", "L0.N1", "--method", "auroc"), "--method means nothing to a histogram"),
        (("--kind", "volcano", "--tag", "X", "--tags", "X"), "--tags means nothing to a volcano: it is for bars, histogram"),
        (("--kind", "bars", "--top", "0"), "top must be at least 1, got 0"),
        (("--kind", "volcano", "--tag", "X", "--top", "25"), "a volcano names 0 to 24 neurons, got top=25"),
        (("--method", "magic"), "unknown method 'magic'"),
    ],
)
def test_wrong_combinations_are_said_before_the_lake_is_opened(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError) as raised:
        plot(tmp_path / "none.lake", "--out", tmp_path / "a.png", *arguments)
    assert message in str(raised.value)


@pytest.mark.parametrize(("out", "message"), [("a.jpg", r"known suffixes are \.png"), ("none/a.png", "create it first")])
def test_wrong_files_are_said_before_the_lake_is_opened(tmp_path: Path, out: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plot(tmp_path / "none.lake", "--out", tmp_path / out)


def test_wrong_neurons_and_tags(lake: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no neuron L7\.N1 in this lake: valid are layers 0 to 1"):
        plot(lake, "--kind", "histogram", "--neuron", "L7.N1", "--out", tmp_path / "a.png")
    with pytest.raises(InputError, match="unknown tag 'NONE': known are ADJ, NOUN, VERB"):
        plot(lake, "--kind", "histogram", "--neuron", "L1.N1", "--tags", "NONE", "--out", tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
