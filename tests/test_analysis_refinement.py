"""Refined values equal scikit-learn's, and a refined ranking is the exact one."""

import numpy as np
import pytest
from lakes import GrowingLake, synthetic_lake
from memory_lake import MemoryLake
from sklearn.metrics import average_precision_score, roc_auc_score

import neuronlake.analysis.refinement as refinement
from neuronlake.analysis import compute_statistics, rank, refine, token_labels
from neuronlake.store import open_lake
from neuronlake.store.errors import InputError
from neuronlake.store.reader import ShardReader


def exact_values(lake, stored, method):
    """Brute force: score (tags, layers, neurons), whatever its direction."""
    labels = token_labels(lake, "upos")
    here = labels.codes >= 0
    found = []
    for code in range(len(labels.tags)):
        truth = labels.codes[here] == code
        by_layer = []
        for layer in lake.layers:
            x = stored(layer)[here].astype(np.float64).T
            if method == "auroc":
                area = np.array([roc_auc_score(truth, each) for each in x])
                by_layer.append(np.maximum(area, 1 - area))
            else:
                by_layer.append([max(average_precision_score(truth, s * each) for s in (1, -1)) for each in x])
        found.append(by_layer)
    return np.array(found)


def stored_values(lake):
    return lambda layer: np.concatenate([lake.read_block(layer=layer, block=block) for block in lake.blocks])


def assert_best_are_exact(lake, method, top, *, tolerance=1e-12):
    dataset = compute_statistics(lake, "upos", also=["average_precision"])
    refined = refine(lake, dataset, method, top=top)
    exact = exact_values(lake, stored_values(lake), method)
    entries = rank(refined, method, top=top)
    for place, tag in enumerate(refined["tag"].to_numpy()):
        mine = [entry for entry in entries if entry["tag"] == tag]
        best = np.sort(exact[place].ravel())[::-1][: len(mine)]
        np.testing.assert_allclose([entry["score"] for entry in mine], best, atol=tolerance, rtol=0)
        for entry in mine:
            at = list(lake.layers).index(entry["layer"])
            assert abs(exact[place, at, entry["neuron"]] - entry["score"]) <= tolerance
    names = ["auroc"] if method == "auroc" else ["average_precision", "average_precision_low"]
    for name in names:
        assert (refined[f"{name}_error"] <= dataset[f"{name}_error"]).all()


@pytest.mark.parametrize("method", ["auroc", "average_precision"])
@pytest.mark.parametrize("top", [1, 3, 1000])
@pytest.mark.parametrize("encoding", ["float16", "bfloat16"])
def test_the_best_are_exact(monkeypatch, encoding, top, method):
    monkeypatch.setattr(refinement, "_SPARE", 1)
    assert_best_are_exact(MemoryLake(encoding=encoding, neurons=30), method, top)


@pytest.mark.parametrize("method", ["auroc", "average_precision"])
def test_ties_zeros_constants_and_skew(monkeypatch, method):
    monkeypatch.setattr(refinement, "_SPARE", 1)
    lake = MemoryLake(neurons=12)
    for values in lake.values.values():
        values[:, 0] = 0
        values[:, 1] = 7
        values[:, 2] = np.round(values[:, 2])
        values[:, 3] = np.where(values[:, 3] > 1.5, values[:, 3], 0)
        values[:, 4] = np.exp(4 * values[:, 4]).clip(max=60_000)
        values[:, 5] = 1000 + values[:, 5] * 1e-3
    assert_best_are_exact(lake, method, 4)


@pytest.mark.parametrize("method", ["auroc", "average_precision"])
def test_a_tag_of_two_tokens(method):
    lake = MemoryLake(neurons=12)
    for word in (3, 40):
        lake._words[word]["upos"] = "RARE"
    assert_best_are_exact(lake, method, 2)


def test_a_quantised_lake(tmp_path):
    synthetic_lake(tmp_path / "a.lake", tokens=300, encoding="int8a", neurons=24)
    lake = open_lake(tmp_path / "a.lake")
    for method in ("auroc", "average_precision"):
        assert_best_are_exact(lake, method, 2)


def test_float32_is_exact_to_its_upper_half():
    lake = MemoryLake(encoding="float32", neurons=30)
    dataset = compute_statistics(lake, "upos")
    refined = refine(lake, dataset, "auroc", top=1000)
    error = refined["auroc_error"].to_numpy()
    exact = exact_values(lake, stored_values(lake), "auroc")
    area = refined["auroc"].to_numpy()
    assert np.all(np.abs(np.maximum(area, 1 - area) - exact) <= error + 1e-12)
    assert np.median(error) < 0.2 * np.median(dataset["auroc_error"])
    assert_best_are_exact(lake, "average_precision", 3)


def test_far_neurons_are_not_read(monkeypatch):
    monkeypatch.setattr(refinement, "_SPARE", 1)
    lake = MemoryLake(neurons=40)  # ten columns
    labels = token_labels(lake, "upos")
    lake.values[0][:, 13] += 2.0 * labels.codes  # the best for every tag but the middle one
    lake.values[0][:, 14] += 2.0 * (labels.codes == 1)
    dataset = compute_statistics(lake, "upos")
    read = set()
    original = lake.read_codes
    lake.read_codes = lambda **at: read.add((at["layer"], at["chunk"])) or original(**at)
    refine(lake, dataset, "auroc", top=1)
    assert (0, 13 // 4) in read
    assert len(read) <= 2


def test_exact_values_are_kept(tmp_path, monkeypatch):
    synthetic_lake(tmp_path / "a.lake", tokens=300)
    lake = open_lake(tmp_path / "a.lake")
    also = ["average_precision"]
    dataset = compute_statistics(lake, also=also)
    refined = {method: refine(lake, dataset, method, top=3) for method in ("auroc", "average_precision")}
    monkeypatch.setattr(ShardReader, "_read", lambda *_: pytest.fail("an activation was read"))
    for method, expected in refined.items():
        again = refine(open_lake(lake.path), compute_statistics(open_lake(lake.path), also=also), method, top=3)
        assert again.identical(expected)


def test_statistics_of_fewer_blocks_are_refused(tmp_path):
    growing = GrowingLake(tmp_path / "a.lake")
    dataset = compute_statistics(growing.commit(0, 1))
    lake = growing.commit(2)
    with pytest.raises(InputError, match="blocks were committed since"):
        refine(lake, dataset, "auroc", top=1)


def test_methods_without_approximations_are_left_alone():
    lake = MemoryLake()
    dataset = compute_statistics(lake)
    assert refine(lake, dataset, "cohen_d", top=1) is dataset
