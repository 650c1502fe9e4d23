"""What probes are made of, against NumPy, scikit-learn and plain loops."""

import numpy as np
import pytest
from lakes import GrowingLake, synthetic_lake
from memory_lake import MemoryLake
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import neuronlake.analysis.probing.survey as survey_module
from neuronlake.analysis import probe, token_labels
from neuronlake.analysis.labels import counted_rows
from neuronlake.analysis.probing.closed_form import standard_of_scatter
from neuronlake.analysis.probing.features import chosen_neurons, whole_layers
from neuronlake.analysis.probing.kept_scatter import scatter_of_rows
from neuronlake.analysis.probing.linear import Problem, predict
from neuronlake.analysis.probing.matrix import ArrayMatrix, LakeMatrix, _Tiles, stream
from neuronlake.analysis.probing.scatter import centre_of, gather_scatter, gather_sums
from neuronlake.analysis.probing.selection import select_forward
from neuronlake.analysis.probing.streaming import fit_streaming
from neuronlake.analysis.probing.survey import survey
from neuronlake.store import open_lake, verify
from neuronlake.store.kept import COVARIANCES, kept_results


def correlated(rng, n, size, tags, *, dtype=np.float64, spread=True):
    """Features that share directions, of scales far apart, and tags that depend on them."""
    mixed = rng.normal(size=(n, size)) @ rng.normal(size=(size, size)) / np.sqrt(size) + 0.3 * rng.normal(size=(n, size))
    scores = mixed @ rng.normal(size=(size, tags)) + rng.gumbel(size=(n, tags))
    scales = 10.0 ** rng.uniform(-3, 3, size=size) if spread else np.ones(size)
    return (mixed * scales + 5 * scales).astype(dtype), scores.argmax(axis=1).astype(np.int16)


def test_a_lake_matrix_reads_rows_and_neurons_in_order():
    lake = MemoryLake(documents=5, encoding="float32")
    rng = np.random.default_rng(0)
    rows = rng.random(len(lake.blocks) * lake.block_rows) < 0.3
    features = chosen_neurons(lake, ["L0.N7", "L2.N1", "L2.N8"])
    centre, factor = rng.normal(size=3), rng.random(3)
    matrix = LakeMatrix(lake, features, rows).scaled(centre, factor)
    expected = np.stack([lake.stored(layer)[rows, neuron] for layer, neuron in ((0, 7), (2, 1), (2, 8))], axis=1)
    found = np.full(matrix.shape, np.nan)
    order = rng.permutation(len(matrix.tiles))
    for tile, values in stream(matrix, order):
        found[tile] = values
    np.testing.assert_allclose(found, (expected - centre) * factor, rtol=1e-5, atol=1e-6)
    assert [part.stop - part.start for part in matrix.parts] == [1, 2]
    whole = LakeMatrix(lake, whole_layers(lake, None), rows)
    assert whole.shape == (rows.sum(), 20)
    seen = np.concatenate([values.copy() for _, values in stream(whole)])
    np.testing.assert_array_equal(seen, np.concatenate([lake.stored(layer)[rows] for layer in (0, 2)], axis=1))


def test_tiles_are_kept_within_a_common_budget_which_is_given_back(monkeypatch):
    lake = MemoryLake(documents=5, encoding="float32")
    rows = np.random.default_rng(0).random(len(lake.blocks) * lake.block_rows) < 0.3
    features = chosen_neurons(lake, ["L0.N7", "L2.N1", "L2.N8"])
    read, reads = lake.read_block, []
    monkeypatch.setattr(lake, "read_block", lambda **what: reads.append(what["block"]) or read(**what), raising=False)
    sizes = [4 * 3 * (tile.stop - tile.start) for tile in LakeMatrix(lake, features, rows).tiles]
    monkeypatch.setattr(_Tiles, "_free", sum(sizes[:2]))  # of more tiles than two
    assert len(sizes) > 2
    matrix = LakeMatrix(lake, features, rows, keep=True)
    first = np.asarray(matrix)
    assert len(reads) == 2 * len(sizes)  # two layers
    again = np.asarray(matrix.scaled(np.full(3, 2.0), np.full(3, 0.5)))
    assert len(reads) == 2 * len(sizes) + 2 * (len(sizes) - 2)
    np.testing.assert_array_equal(again, (first - np.float32(2)) * np.float32(0.5))
    assert _Tiles._free < min(sizes)
    other = LakeMatrix(lake, features, rows, keep=True)
    np.testing.assert_array_equal(np.asarray(other), first)
    np.testing.assert_array_equal(np.asarray(other[np.arange(5)]), first[:5])  # other rows are other tiles
    del other
    matrix.scaled(np.zeros(3), np.ones(3)).forget()
    assert _Tiles._free == sum(sizes[:2])
    np.testing.assert_array_equal(np.asarray(matrix), first)
    assert _Tiles._free < min(sizes)
    del matrix
    assert _Tiles._free == sum(sizes[:2])


@pytest.mark.parametrize("classifier", ["logistic", "svm", "elastic_net"])
def test_a_fitted_probe_keeps_no_tiles(classifier):
    free = _Tiles._free
    probe(MemoryLake(documents=8, encoding="float32"), "upos", layer=0, classifier=classifier, keep=False)
    assert _Tiles._free == free


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
def test_scatter_of_some_rows(tmp_path, keep, share):
    """From what is kept of all rows less the others, or gathered: the same as NumPy's."""
    synthetic_lake(tmp_path / "a.lake", tokens=500)
    lake = open_lake(tmp_path / "a.lake")
    counted = counted_rows(lake, "last")
    rows = counted & (np.random.default_rng(1).random(len(counted)) < max(share, 0.01))
    found = scatter_of_rows(lake, whole_layers(lake, [1]), rows, subword="last", keep=keep)
    values = lake.read(layer=1, rows=np.flatnonzero(rows)).astype(np.float64) - found.centre
    assert found.rows == rows.sum()
    # values minus the centre are rounded to float32, products are not
    np.testing.assert_allclose(found.total, values.sum(axis=0), atol=1e-5)
    np.testing.assert_allclose(found.gram, values.T @ values, rtol=1e-7, atol=1e-5)
    assert bool(kept_results(lake.path, kept=COVARIANCES)) == (keep and rows.sum() * 2 >= counted.sum())


def test_kept_scatter_is_read_again_and_added_to(tmp_path, monkeypatch):
    growing = GrowingLake(tmp_path / "a.lake")
    lake = growing.commit(0, 1, 2)
    everything = {"subword": "last", "keep": True}
    features = whole_layers(lake, [1])
    scatter_of_rows(lake, features, counted_rows(lake, "last"), **everything)
    (first,) = kept_results(lake.path, kept=COVARIANCES)
    lake = growing.commit(4, 3, 5)
    read = []
    plain = lake.reader.shard
    monkeypatch.setattr(lake.reader, "shard", lambda layer, block, *more: read.append(block) or plain(layer, block, *more))
    found = scatter_of_rows(lake, features, counted_rows(lake, "last"), **everything)
    assert set(read) == {3, 4, 5}
    (second,) = kept_results(lake.path, kept=COVARIANCES)
    assert second != first
    values = lake.read(layer=1, rows=np.flatnonzero(counted_rows(lake, "last"))).astype(np.float64) - found.centre
    np.testing.assert_allclose(found.gram, values.T @ values, rtol=1e-7, atol=1e-5)
    read.clear()
    again = scatter_of_rows(lake, features, counted_rows(lake, "last"), **everything)
    assert not read
    np.testing.assert_array_equal(again.gram, found.gram)


def test_damaged_covariances_are_found_and_gathered_again(tmp_path):
    synthetic_lake(tmp_path / "a.lake", tokens=500)
    lake = open_lake(tmp_path / "a.lake")
    fine = probe(lake, layer=1, classifier="lda")
    (name,) = kept_results(lake.path, kept=COVARIANCES)
    (file,) = (path for path in (lake.path / COVARIANCES / name / "gram").rglob("*") if path.name == "0")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    damage = verify(lake.path, full=True).damage
    assert len(damage) == 1
    assert damage[0].startswith(f"covariances/{name}: ")
    assert "the same probe gathers it again" in damage[0]
    again = probe(lake, layer=1, classifier="lda")
    assert again.to_dict() == fine.to_dict()
    assert not verify(lake.path, full=True).damage


def test_covariances_serve_other_seeds_labels_and_settings(tmp_path):
    synthetic_lake(tmp_path / "a.lake", tokens=600)
    lake = open_lake(tmp_path / "a.lake")
    for settings in ({}, {"seed": 3}, {"shrinkage": 0.5}, {"by": "substr(upos, 1, 1)"}, {"classifier": "ridge"}):
        settings = {"classifier": "lda", **settings}
        kept = probe(lake, layer=0, **settings)
        fresh = probe(lake, layer=0, keep=False, **settings)
        assert kept.accuracy == fresh.accuracy
        np.testing.assert_array_equal(kept.confusion, fresh.confusion)
    assert len(kept_results(lake.path, kept=COVARIANCES)) == 1


def test_forward_selection_is_stepwise_least_squares():
    rng = np.random.default_rng(2)
    x, y = correlated(rng, 300, 12, 4)
    x[:, 3] = 7  # constant
    x[:, 9] = 2 * x[:, 5] - x[:, 1]  # nothing new once both are chosen
    scatter = gather_scatter(ArrayMatrix(x), centre_of(ArrayMatrix(x)))
    (sums,) = gather_sums(ArrayMatrix(x), scatter.centre, [y], 4)
    found = select_forward(scatter, sums, standard_of_scatter(scatter, x.dtype), 12)
    targets = np.eye(4)[y]
    chosen: list[int] = []
    while len(chosen) < len(found):
        best = {}
        for j in sorted(set(range(12)) - set(chosen) - {3}):
            design = np.column_stack([np.ones(300), x[:, [*chosen, j]]])
            best[j] = ((targets - design @ np.linalg.lstsq(design, targets)[0]) ** 2).sum()
        chosen.append(min(best, key=best.get))
    assert found.tolist() == chosen
    assert len(found) == 10


def test_streamed_problems_reach_the_optimum_together():
    """Two labellings and a subset of the features in the same passes: each as scipy finds it alone."""
    rng = np.random.default_rng(3)
    x, y = correlated(rng, 700, 9, 3)
    other = rng.permutation(y)
    columns = np.array([1, 4, 8])
    problems = [Problem(name="task"), Problem(name="shuffled", labelling=1), Problem(name="few", columns=columns)]
    matrix = ArrayMatrix(x)
    seen = survey(matrix, seed=0)
    found = fit_streaming(
        matrix, [y, other], problems, seen, tags=3, loss="logistic", penalty=0.01, epochs=2, max_passes=500, tolerance=1e-13,
        seed=0,
    )  # fmt: skip
    assert found.converged
    z = StandardScaler().fit_transform(x)
    total = 0.0
    for problem, classifier in zip(problems, found.classifiers, strict=True):
        mine, codes = (z if problem.columns is None else z[:, columns]), (y, other)[problem.labelling]

        def objective(vector, mine=mine, codes=codes):
            weights, bias = vector[:-3].reshape(-1, 3), vector[-3:]
            return -log_softmax(mine @ weights + bias, axis=1)[np.arange(700), codes].mean() + 0.005 * (weights**2).sum()

        oracle = minimize(objective, np.zeros((mine.shape[1] + 1) * 3), tol=1e-12)
        weights = oracle.x[:-3].reshape(-1, 3)
        np.testing.assert_allclose(classifier.weights, weights, atol=1e-4)
        total += oracle.fun
    assert found.objective == pytest.approx(total, abs=1e-8)


@pytest.mark.parametrize(("dense", "quick_agreement"), [(4096, 0.96), (10, 0.8)])
def test_mini_batches_then_full_passes_equal_scikit_learn(dense, quick_agreement, monkeypatch):
    """On rows enough for mini-batches; the second time with covariances of parts only, as of many layers."""
    monkeypatch.setattr(survey_module, "DENSE", dense)
    rng = np.random.default_rng(4)
    x, y = correlated(rng, 9000, 24, 4, dtype=np.float32, spread=False)
    matrix = ArrayMatrix(x)
    matrix.parts = [slice(0, 8), slice(8, 16), slice(16, 24)]
    scaled = matrix.scaled
    matrix.scaled = lambda centre, factor: with_parts(scaled(centre, factor), matrix.parts)
    seen = survey(matrix, seed=0)
    assert len(seen.parts) == (1 if dense > 24 else 3)
    settings = {"tags": 4, "loss": "logistic", "penalty": 1e-3, "tolerance": 1e-10, "seed": 0}
    quick = fit_streaming(matrix, [y], [Problem(name="task")], seen, epochs=4, max_passes=0, **settings)
    found = fit_streaming(matrix, [y], [Problem(name="task")], seen, epochs=2, max_passes=300, **settings)
    oracle = LogisticRegression(C=1 / (1e-3 * len(x)), tol=1e-8, max_iter=2000).fit(StandardScaler().fit_transform(x), y)
    assert found.converged
    weights = found.classifiers[0].weights
    weights = weights - weights.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(weights.T, oracle.coef_ - oracle.coef_.mean(axis=0), atol=1e-2)
    predicted = oracle.predict(StandardScaler().fit_transform(x))
    for fit, least in ((found, 0.999), (quick, quick_agreement)):
        (mine,) = predict(matrix, seen.standard, fit.classifiers)
        assert (mine == predicted).mean() >= least


def with_parts(matrix, parts):
    matrix.parts = parts
    return matrix


def test_features_whose_variance_is_rounding_are_constant():
    lake = MemoryLake(documents=8, encoding="float32")
    lake.values[0][:, 2] = 0.1
    lake.values[0][:, 3] = 1e7
    lake.values[0][::2, 3] += 1  # the next float32: nothing but rounding
    for classifier in ("lda", "logistic"):
        assert probe(lake, layer=0, classifier=classifier).counts["n_constant_features"] == 2


def test_counted_rows_are_those_that_any_label_can_have():
    lake = MemoryLake(documents=4)
    for subword in ("last", "first", "all"):
        labelled = token_labels(lake, "form", subword=subword, min_tokens=1).codes >= 0
        np.testing.assert_array_equal(counted_rows(lake, subword), labelled)
