"""A neuron's description against scipy, scikit-learn and plain loops over the values."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lakes import synthetic_lake
from scipy import stats
from sklearn.metrics import roc_auc_score
from tiny import conllu, make_model, some_sentences

from neuronlake.analysis import compute_statistics, describe_neuron, score
from neuronlake.analysis.describe import QUANTILES, moments_of
from neuronlake.cli.main import main
from neuronlake.extractor import ConlluCorpus, ExtractSettings, extract, resolve_model
from neuronlake.store import InputError, Lake, open_lake, write_lake


@pytest.fixture(scope="module", params=["float32", "int8a"])
def lake(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Heavy tails, exact zeros, ties, and a constant neuron (L0.N9)."""
    root = tmp_path_factory.mktemp("lakes") / "a.lake"
    rng = np.random.default_rng(3)
    values = rng.standard_t(3, (2, 500, 10)).astype(np.float32)
    values[rng.random(values.shape) < 0.1] = 0
    values[0, :, 3] = np.round(values[0, :, 3])
    values[0, :, 9] = 0.5
    values[1, :, 9] = 0
    synthetic_lake(root, tokens=500, values=values, encoding=request.param)
    return open_lake(root)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def ordinary(lake: Lake, layer: int, neuron: int) -> tuple[np.ndarray, Any]:
    tokens = lake.tokens(labels=["upos"]).to_pandas()
    keep = (tokens["flags"].to_numpy() & 3) == 0
    return lake.read(layer=layer, neurons=[neuron])[keep, 0].astype(np.float64), tokens[keep]


@pytest.mark.parametrize("neuron", [0, 3])
def test_moments_are_those_of_scipy(lake: Lake, neuron: int) -> None:
    found = describe_neuron(lake, 0, neuron, k=1)["moments"]
    x, _ = ordinary(lake, 0, neuron)
    assert found["count"] == len(x) == 500
    expected = {
        "mean": np.mean(x),
        "standard_deviation": np.std(x, ddof=1),
        "skewness": stats.skew(x),
        "excess_kurtosis": stats.kurtosis(x),
        "mean_absolute": np.mean(np.abs(x)),
        "fraction_active": sum(value > 0 for value in x) / len(x),
        "fraction_zero": sum(value == 0 for value in x) / len(x),
        "minimum": min(x),
        "maximum": max(x),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-12, abs=1e-12), name
    assert found["fraction_zero"] > 0.05
    ascending = sorted(x)
    for share in QUANTILES:
        smallest = next(value for at, value in enumerate(ascending, 1) if at >= share * len(x) - 1e-9)
        assert found["quantiles"][str(share)] == smallest
    treves_rolls = sum(abs(x) / len(x)) ** 2 / sum(x**2 / len(x))
    assert found["sparsity"]["value"] == pytest.approx((1 - treves_rolls) / (1 - 1 / len(x)))
    assert "Treves–Rolls" in found["sparsity"]["measure"]


def test_the_profile_is_that_of_scikit_learn_and_of_the_statistics(lake: Lake) -> None:
    statistics = compute_statistics(lake, "upos", keep=False)
    cohen_d = score(statistics, "cohen_d")["cohen_d"]
    for neuron in (0, 3):
        found = describe_neuron(lake, 0, neuron, k=1)
        tags = found["tags"]
        assert (tags["by"], tags["subword"], tags["shift"], tags["labelled"]) == ("upos", "last", 0, 500)
        x, tokens = ordinary(lake, 0, neuron)
        for entry in tags["profile"]:
            mine = (tokens["upos"] == entry["tag"]).to_numpy()
            here = statistics.sel(tag=entry["tag"], layer=0, neuron=neuron)
            assert entry["count"] == mine.sum()
            assert entry["mean"] == pytest.approx(x[mine].mean())
            assert entry["fraction_active"] == pytest.approx((x[mine] > 0).mean())
            assert entry["auroc"] == pytest.approx(roc_auc_score(mine, x), abs=1e-12)
            assert entry["auroc_error"] == 0
            assert abs(entry["auroc"] - float(here["auroc"])) <= float(here["auroc_error"]) + 1e-12
            assert entry["cohen_d"] == pytest.approx(float(cohen_d.sel(tag=entry["tag"], layer=0, neuron=neuron)))
        away = [abs(entry["auroc"] - 0.5) for entry in tags["profile"]]
        assert away == sorted(away, reverse=True)
        best = found["strongest_tag"]
        assert best["tag"] == tags["profile"][0]["tag"]
        end = {"below": "lowest", "above": "highest"}[best["direction"]]
        assert best["sentence"] == f"{end} on {best['tag']} (AUROC {away[0] + 0.5:.3f}, from {best['direction']})"


def test_lists_of_tokens(lake: Lake) -> None:
    found = describe_neuron(lake, 1, 2, k=4)
    x, tokens = ordinary(lake, 1, 2)
    assert [entry["value"] for entry in found["top"]] == sorted(x)[:-5:-1]
    assert [entry["value"] for entry in found["bottom"]] == sorted(x)[:4]
    documents = [entry["document"] for entry in found["top_per_document"]]
    assert sorted(documents) == sorted(tokens["document"].unique())
    assert [entry["value"] for entry in found["bottom_per_document"]] == sorted(
        min(x[(tokens["document"] == document).to_numpy()]) for document in documents
    )
    assert found["top"][0]["labels"] == {"upos": tokens["upos"].to_numpy()[np.argmax(x)]}


def test_constant_neurons_have_no_shape(lake: Lake) -> None:
    for layer in (0, 1):
        found = describe_neuron(lake, layer, 9, k=1)
        moments = found["moments"]
        assert moments["skewness"] is moments["excess_kurtosis"] is None
        assert moments["standard_deviation"] == pytest.approx(0)
        assert moments["sparsity"]["value"] == (pytest.approx(0) if layer == 0 else None)
        assert all(entry["auroc"] == 0.5 for entry in found["tags"]["profile"])
        json.dumps(found, allow_nan=False)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40), st.integers(2, 2000))
def test_sparsity_is_a_share_and_the_rest_finite(values: list[float], silent: int) -> None:
    x = np.array(values, dtype=np.float32)
    found = moments_of(x)
    json.dumps(found, allow_nan=False)
    sparsity = found["sparsity"]["value"]
    assert sparsity is None or -1e-9 <= sparsity <= 1 + 1e-9
    one = np.zeros(silent, dtype=np.float32)
    one[0] = 3
    assert moments_of(one)["sparsity"]["value"] == pytest.approx(1)
    assert moments_of(np.where(np.arange(silent) % 2, one[0], -one[0]))["sparsity"]["value"] == pytest.approx(0)


def test_wrong_questions(lake: Lake) -> None:
    with pytest.raises(InputError, match=r"no neuron L0\.N10 .* valid are layers 0 to 1, neurons 0 to 9"):
        describe_neuron(lake, 0, 10)
    with pytest.raises(InputError, match="k must be at least 1"):
        describe_neuron(lake, 0, 1, k=0)
    with pytest.raises(InputError, match="Number"):
        describe_neuron(lake, 0, 1, by="Number")
    with pytest.raises(InputError, match="sub-word policy"):
        describe_neuron(lake, 0, 1, subword="middle")


def test_sql_labels_and_lakes_without_upos(lake: Lake, tmp_path: Path) -> None:
    found = describe_neuron(lake, 0, 0, by="CASE WHEN upos='NOUN' THEN 'noun' ELSE 'other' END", k=2)
    assert {entry["tag"] for entry in found["tags"]["profile"]} == {"noun", "other"}
    assert "labels" not in found["top"][0]
    single = describe_neuron(lake, 0, 0, by="CASE WHEN upos='NOUN' THEN 'noun' END", k=1)
    assert single["strongest_tag"] is None
    assert single["tags"]["profile"][0]["auroc"] is None
    assert single["tags"]["labelled"] < single["moments"]["count"] == 500  # of all tokens, labelled or not
    samples = np.random.default_rng(0).standard_normal((50, 4), dtype=np.float32)
    bare = write_lake(tmp_path / "eeg.lake", samples, name="EEG", encoding="float32")
    found = describe_neuron(bare, 0, 2, k=2)
    assert found["tags"] is found["strongest_tag"] is found["weights"] is None
    assert found["moments"]["mean"] == pytest.approx(samples[:, 2].mean(), rel=1e-6)


def test_special_tokens_are_left_out_and_weights_taken_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = resolve_model(str(make_model(tmp_path / "model")))
    (tmp_path / "a.conllu").write_text(conllu(some_sentences(30)), encoding="utf-8")
    root = tmp_path / "a.lake"
    extract(root, ConlluCorpus(paths=(tmp_path / "a.conllu",)), source, ExtractSettings(block_rows=256))
    lake = open_lake(root)
    assert lake.plan.counts["special"] == 30
    bare = describe_neuron(lake, 1, 5, k=3)
    assert bare["moments"]["count"] == lake.plan.counts["tokens"]
    assert bare["weights"] is None
    code, out, _ = run(capsys, "describe", root, "L1.N5", "-k", 3)
    assert code == 0
    assert f"neuronlake weights {root} --model" in out
    assert run(capsys, "weights", root, "--model", source.folder)[0] == 0
    code, out, _ = run(capsys, "describe", root, "L1.N5", "-k", 3, "--plot", tmp_path / "a.png", "--json")
    assert code == 0
    found = json.loads(out)
    weights = found["weights"]
    assert weights["contribution"] == pytest.approx(weights["norm"] * found["moments"]["mean_absolute"])
    assert [len(weights["vocabulary"][end]) for end in ("top", "bottom")] == [3, 3]
    assert {"activations", "top", "bottom"} == set(weights["textualization"])
    assert {**found, "weights": None, "plot": None} == {**json.loads(json.dumps(bare)), "plot": None}
    assert (tmp_path / "a.png").stat().st_size > 1000
    code, out, _ = run(capsys, "describe", root, "L1.N5", "-k", 3)
    assert code == 0
    assert "raises when positive" in out
    code, _, err = run(capsys, "describe", root, "L3.N5")
    assert (code, "valid are layers 0 to 2, neurons 0 to 87" in err) == (2, True)
    code, _, err = run(capsys, "describe", root, "L1.N5", "--plot", tmp_path / "a.gif")
    assert (code, ".png" in err) == (2, True)
