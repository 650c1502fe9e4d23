"""Neighbours and clusters, against correlations, distances and cosines of NumPy."""

import json
import shutil

import numpy as np
import pytest
from lakes import GrowingLake, synthetic_lake

import neuronlake.analysis.token_neighbours as token_neighbours
from neuronlake.analysis import compute_statistics, neighbours, redundancy_clusters, similar_tokens
from neuronlake.analysis.sketch import PLACES, deal, sketch_neurons
from neuronlake.cli.main import main
from neuronlake.store import InputError, Lake, open_lake, verify
from neuronlake.store.kept import INDEX, kept_results

NEURONS = 70


def correlated(tokens: int, seed: int = 0) -> np.ndarray:
    """Groups of neurons that share a source: (2, tokens, NEURONS)."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((2, tokens, NEURONS))
    shared = rng.standard_normal((tokens, 3))
    for layer, neuron, source, weight in (
        (0, 3, 0, 5),
        (0, 9, 0, 4),
        (1, 3, 0, -6),
        (1, 40, 0, 0.7),
        (0, 20, 1, 9),
        (0, 21, 1, 9),
        (1, 69, 2, 3),
        (0, 69, 2, -3),
    ):
        values[layer, :, neuron] += weight * shared[:, source]
    values[1, :, 8] = 2.5
    values[0, :, 50] = 1e4 + values[0, :, 50] * 10
    return values.astype(np.float32)


@pytest.fixture(scope="module", params=["float32", "int8a"])
def lake(request, tmp_path_factory) -> Lake:
    root = tmp_path_factory.mktemp(request.param) / "a.lake"
    options = {"layers": 2, "neurons": NEURONS, "block_rows": 512, "chunk_neurons": 64, "encoding": request.param}
    synthetic_lake(root, tokens=2000, values=correlated(2000), **options)
    return open_lake(root)


def columns(lake: Lake) -> np.ndarray:
    """All neurons over the ordinary tokens: float64 (tokens, layers × neurons)."""
    ordinary = lake.tokens().column("flags").to_numpy() == 0
    parts = [[lake.read_block(layer=layer, block=block) for block in lake.blocks] for layer in lake.layers]
    return np.concatenate([np.concatenate(part)[ordinary] for part in parts], axis=1).astype(np.float64)


def test_sketches_estimate_correlations(lake):
    values = columns(lake)
    sketch = sketch_neurons(lake)
    vectors = np.concatenate([sketch.unit_vectors(place) for place in range(2)])
    varies = np.flatnonzero(values.std(axis=0) > 0)
    error = (vectors @ vectors.T)[np.ix_(varies, varies)] - np.corrcoef(values[:, varies], rowvar=False)
    assert not vectors[NEURONS + 8].any()  # the constant one
    assert np.sqrt(np.mean(error**2)) < 1.2 / np.sqrt(PLACES)
    assert np.abs(error).max() < 5 / np.sqrt(PLACES)
    moments = np.concatenate([sketch.arrays["moments"].read_part(place) for place in range(2)])
    np.testing.assert_allclose(moments[:, 0], values.mean(axis=0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(moments[:, 1], ((values - values.mean(axis=0)) ** 2).sum(axis=0), rtol=1e-9, atol=1e-12)


def test_rows_are_dealt_evenly():
    places, signs = deal(np.arange(1 << 20))
    counts = np.bincount(places, minlength=PLACES)
    assert (counts.min(), counts.max()) > (180, 330)
    assert abs(signs.sum()) < 5000
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.01


def test_neighbours_by_activation_are_numpys(lake):
    values = columns(lake)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.nan_to_num(np.corrcoef(values, rowvar=False))
    for layer, neuron in ((0, 3), (1, 69), (0, 50), (1, 17)):
        own = layer * NEURONS + neuron
        # all neurons are candidates: nothing can be missed
        found = neighbours(lake, layer, neuron, 12, candidates=2 * NEURONS)
        others = np.delete(np.arange(2 * NEURONS), own)
        expected = others[np.argsort(-np.abs(r[own, others]), kind="stable")][:12]
        assert [entry["layer"] * NEURONS + entry["neuron"] for entry in found] == expected.tolist()
        np.testing.assert_allclose([entry["correlation"] for entry in found], r[own, expected], atol=1e-9)
        assert [entry["rank"] for entry in found] == list(range(1, 13))
    assert {entry["name"] for entry in neighbours(lake, 0, 3, 3, candidates=6)} == {"L0.N9", "L1.N3", "L1.N40"}
    assert len(neighbours(lake, 0, 3, 1000)) == 2 * NEURONS - 1


def test_neighbours_by_profile_are_numpys(lake):
    area = compute_statistics(lake, "upos")["auroc"].transpose("layer", "neuron", "tag").to_numpy().reshape(2 * NEURONS, -1)
    distance = np.sqrt(np.mean((2 * area - 2 * area[77]) ** 2, axis=1))
    found = neighbours(lake, 1, 7, 6, by="profile")
    expected = np.argsort(distance, kind="stable")[1:7]
    assert [entry["layer"] * NEURONS + entry["neuron"] for entry in found] == expected.tolist()
    np.testing.assert_allclose([entry["distance"] for entry in found], distance[expected], atol=1e-5)


def test_clusters_are_those_of_the_correlations(lake):
    found = redundancy_clusters(lake, 0.7)
    assert [set(cluster["neurons"]) for cluster in found] == [
        {"L0.N3", "L0.N9", "L1.N3"},
        {"L0.N20", "L0.N21"},
        {"L0.N69", "L1.N69"},
    ]
    r = np.abs(np.corrcoef(columns(lake)[:, [3, 9, NEURONS + 3]], rowvar=False))[np.triu_indices(3, 1)]
    assert found[0]["least"] == pytest.approx(r.min(), abs=1e-9)
    assert found[0]["mean"] == pytest.approx(r.mean(), abs=1e-9)
    assert found[0]["layers"] == [0, 1]
    assert redundancy_clusters(lake, 1.0) == []


def test_sketches_grow_with_the_lake(tmp_path):
    growing, whole = GrowingLake(tmp_path / "a.lake"), GrowingLake(tmp_path / "b.lake")
    whole.commit(*range(6))
    for blocks in ([1, 2], [0, 4], [3, 5]):
        growing.commit(*blocks)
        part = sketch_neurons(open_lake(growing.root))
    at_once = sketch_neurons(open_lake(whole.root))
    assert part.blocks == at_once.blocks == tuple(range(6))
    assert part.record["signs"] == at_once.record["signs"]
    for place in range(2):
        cosines = (part.unit_vectors(place) * at_once.unit_vectors(place)).sum(axis=1)
        assert cosines.min() > 0.999
        np.testing.assert_allclose(
            part.arrays["moments"].read_part(place)[:, :2], at_once.arrays["moments"].read_part(place)[:, :2], rtol=1e-9
        )
    assert len([name for name in kept_results(growing.root, kept=INDEX) if name.startswith("sketch-")]) == 1
    (path,) = (growing.root / INDEX).glob("sketch-*/codes/c.0.*")
    path.write_bytes(path.read_bytes()[:-1])
    assert not verify(growing.root).ok
    assert sketch_neurons(open_lake(growing.root)).blocks == part.blocks
    assert verify(growing.root, full=True).ok


@pytest.fixture
def indexed(monkeypatch):
    """Small lakes too are asked through the index."""
    monkeypatch.setattr(token_neighbours, "INDEXED", 100)


@pytest.mark.usefixtures("indexed")
def test_similar_tokens_are_numpys(lake):
    values = columns(lake)[:, NEURONS:]
    z = values - values.mean(axis=0)
    z /= np.where(z.std(axis=0) > 0, z.std(axis=0), 1)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    rows = lake.tokens().column("row").to_numpy()[lake.tokens().column("flags").to_numpy() == 0]
    hits = 0
    for line in (0, 500, 1999):
        cosine = z @ z[line]
        expected = np.argsort(-cosine, kind="stable")[1:11]
        exact = similar_tokens(lake, int(rows[line]), 1, exact=True)
        assert [entry["row"] for entry in exact] == rows[expected].tolist()
        np.testing.assert_allclose([entry["similarity"] for entry in exact], cosine[expected], atol=1e-5)
        assert exact[0]["context"].count("«") == 1
        indexed_rows = [entry["row"] for entry in similar_tokens(lake, int(rows[line]), 1)]
        hits += len(set(indexed_rows) & {entry["row"] for entry in exact})
    assert hits >= 28  # seven dimensions more than tokens' worth of noise: the index is nearly exact


@pytest.mark.usefixtures("indexed")
def test_the_index_of_tokens_grows_and_is_checked(tmp_path):
    growing = GrowingLake(tmp_path / "a.lake")
    for blocks in ([1, 2, 5], [0, 4], [3]):
        growing.commit(*blocks)
        lake = open_lake(growing.root)
        rows = lake.tokens().column("row").to_numpy()[lake.tokens().column("flags").to_numpy() == 0]
        for row in rows[[3, -4]]:
            found, exact = (similar_tokens(lake, int(row), 0, 5, exact=way) for way in (False, True))
            assert len({entry["row"] for entry in found} & {entry["row"] for entry in exact}) >= 4
    (name,) = [name for name in kept_results(growing.root, kept=INDEX) if name.startswith("vectors-")]
    path = growing.root / INDEX / name / "faiss.index"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)
    assert not verify(growing.root, full=True).ok
    assert similar_tokens(open_lake(growing.root), int(rows[3]), 0, 5)
    assert verify(growing.root, full=True).ok


def test_refusals(lake):
    for ask, message in (
        (lambda: neighbours(lake, 2, 0), "no neuron L2.N0 in this lake: valid are layers 0 to 1, neurons 0 to 69"),
        (lambda: neighbours(lake, 1, 8), "L1.N8 has the same value on all tokens: it correlates with nothing"),
        (lambda: neighbours(lake, 0, 0, 0), "k must be at least 1, got 0"),
        (lambda: neighbours(lake, 0, 0, candidates=0), "candidates must be at least 1, got 0"),
        (lambda: neighbours(lake, 0, 0, by="x"), "unknown signature 'x': known are activation, profile, weights"),
        (lambda: neighbours(lake, 0, 0, by="weights"), "neuronlake weights"),
        (lambda: neighbours(lake, 0, 0, by="profile", label="nope"), "no label column 'nope'"),
        (lambda: redundancy_clusters(lake, 0.1), "threshold must be from 0.3 to 1, got 0.1"),
        (lambda: similar_tokens(lake, 10**6, 0), "no row 1000000 in .*: it has rows 0 to 2047"),
        (lambda: similar_tokens(lake, -1, 0), "no row -1 in"),
        (lambda: similar_tokens(lake, 2047, 0), "row 2047 of .* is padding"),
        (lambda: similar_tokens(lake, 0, 7), "no layer 7"),
        (lambda: similar_tokens(lake, 0, 0, 0), "k must be at least 1"),
    ):
        with pytest.raises(InputError, match=message):
            ask()


def test_commands(lake, tmp_path, capsys):
    root = tmp_path / "a.lake"
    shutil.copytree(lake.path, root)
    assert main(["neighbours", str(root), "L0.N3", "-k", "2", "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == ["L1.N3", "L0.N9"]
    assert main(["neighbours", str(root), "L0.N3"]) == 0
    assert "L1.N3" in capsys.readouterr().out
    assert main(["neighbours", str(root), "--row", "5", "--layer", "1", "--labels", "upos"]) == 0
    assert "«" in capsys.readouterr().out
    assert main(["clusters", str(root), "--threshold", "0.7"]) == 0
    assert "L0.N20, L0.N21" in capsys.readouterr().out
    for arguments, message in (
        ([], "give a neuron, as in L12.N345, or a token by --row and --layer"),
        (["L0.N1", "--row", "1"], "give a neuron, as in L12.N345, or a token by --row and --layer"),
        (["L0.N1", "--layer", "1"], "--layer is for the neighbours of a token"),
        (["--row", "1"], "--row needs --layer"),
        (["--row", "1", "--layer", "0", "--by", "profile"], "--by is for the neighbours of a neuron"),
        (["L0.N1", "--label", "upos"], "--label is of the profile: add --by profile"),
        (["L0.N1", "--by", "weights", "--candidates", "9"], "--candidates is of --by activation"),
    ):
        assert main(["neighbours", str(root), *arguments]) == 2
        assert message in capsys.readouterr().err
