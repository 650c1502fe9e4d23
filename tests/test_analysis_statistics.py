"""The statistics dataset against a plain loop over the same rows."""

import json
import tracemalloc

import numpy as np
import pytest
from lakes import synthetic_lake
from memory_lake import MemoryLake
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

import neuronlake.analysis.column_pass as column_pass
import neuronlake.analysis.statistics_dataset as statistics_dataset
from neuronlake.analysis import compute_statistics, rank, refine, token_labels
from neuronlake.analysis.derived import QUANTILES
from neuronlake.analysis.exact import column_auroc
from neuronlake.analysis.groups import group_blocks
from neuronlake.analysis.labels import label_blocks
from neuronlake.store import open_lake
from neuronlake.store.errors import InputError

ENCODINGS = ("float16", "bfloat16", "float32")


def assert_matches(dataset, labels, stored):
    """`stored` maps a layer to its float32 (rows, neurons)."""
    assert dataset["tag"].to_numpy().tolist() == list(labels.tags)
    np.testing.assert_array_equal(dataset["count"], labels.counts)
    for layer in dataset["layer"].to_numpy():
        values = stored(int(layer)).astype(np.float64)
        for code, tag in enumerate(labels.tags):
            mine, rest = values[labels.codes == code], values[(labels.codes >= 0) & (labels.codes != code)]
            found = dataset.sel(tag=tag, layer=layer)
            np.testing.assert_allclose(found["mean"], mine.mean(axis=0), rtol=1e-10)
            np.testing.assert_allclose(found["variance"], mine.var(axis=0, ddof=1), rtol=1e-10)
            np.testing.assert_array_equal(found["fraction_active"], (mine > 0).mean(axis=0))
            if "auroc" in found:
                np.testing.assert_allclose(found["third_moment"], stats.moment(mine, 3), rtol=1e-9, atol=1e-12)
                np.testing.assert_allclose(found["fourth_moment"], stats.moment(mine, 4), rtol=1e-10)
                np.testing.assert_allclose(found["mean_absolute"], np.abs(mine).mean(axis=0), rtol=1e-10)
                np.testing.assert_array_equal(found["minimum"], mine.min(axis=0))
                np.testing.assert_array_equal(found["maximum"], mine.max(axis=0))
                truth = np.repeat([1, 0], [len(mine), len(rest)])
                both = np.concatenate([mine, rest])
                expected = [roc_auc_score(truth, both[:, neuron]) for neuron in range(both.shape[1])]
                assert np.all(np.abs(found["auroc"].to_numpy() - expected) <= found["auroc_error"].to_numpy() + 1e-12)
                for name, sign in (("average_precision", 1), ("average_precision_low", -1)):
                    exact = [average_precision_score(truth, sign * both[:, neuron]) for neuron in range(both.shape[1])]
                    bound = found[f"{name}_error"].to_numpy()
                    assert np.all(np.abs(found[name].to_numpy() - exact) <= bound + 1e-12)
                for name, share in QUANTILES.items():
                    if name in found:
                        exact = np.quantile(mine, share, axis=0, method="inverted_cdf")
                        assert np.all(np.abs(found[name].to_numpy() - exact) <= found[f"{name}_error"].to_numpy() + 1e-12)
                above = (mine > found["hit_threshold"].to_numpy()).sum(axis=0)
                assert np.all(np.abs(found["hits"].to_numpy() - above) <= 1)  # an edge is one float32 rounding wide


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_equals_a_plain_loop(encoding):
    lake = MemoryLake(encoding=encoding)
    dataset = compute_statistics(lake, "upos", also=["average_precision", "quantiles"])
    assert_matches(dataset, token_labels(lake, "upos"), lake.stored)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_lake_on_disk(tmp_path, encoding):
    synthetic_lake(tmp_path / "a.lake", tokens=300, encoding=encoding)
    lake = open_lake(tmp_path / "a.lake")

    def stored(layer):
        return np.concatenate([lake.read_block(layer=layer, block=block) for block in lake.blocks])

    found = compute_statistics(lake, "upos", also=["average_precision", "quantiles"])
    assert_matches(found, token_labels(lake, "upos"), stored)


def test_filters_are_applied_and_recorded():
    lake = MemoryLake()
    dataset = compute_statistics(lake, "upos", subword="first", shift=1, documents=[0, 2], layers=[2], basic=True)
    labels = token_labels(lake, "upos", subword="first", shift=1, keep_documents=[0, 2])
    assert_matches(dataset, labels, lake.stored)
    assert dataset["layer"].to_numpy().tolist() == [2]
    assert set(dataset.data_vars) == {"count", "mean", "variance", "fraction_active"}
    recorded = json.loads(json.dumps(dataset.attrs))
    assert recorded["lake"] == "memory"
    assert (recorded["by"], recorded["subword"], recorded["shift"]) == ("upos", "first", 1)
    assert (recorded["rows"], recorded["documents"]) == (labels.tokens, 2)
    assert recorded["encoding"] == "float16"
    assert recorded["blocks"] == list(lake.blocks)
    assert {"numpy", "numba", "dask"} <= set(recorded["versions"])
    assert all({"long_name", "units"} <= set(variable.attrs) for variable in dataset.data_vars.values())


def test_blocks_without_labelled_rows_are_not_read():
    lake = MemoryLake(block_rows=64)
    read = []
    original = lake.read_codes

    def watched(**kwargs):
        read.append(kwargs["block"])
        return original(**kwargs)

    lake.read_codes = watched
    compute_statistics(lake, "upos", documents=[0])
    wanted = set(np.flatnonzero(lake.column("document") == 0) // lake.block_rows)
    assert set(read) == wanted
    assert len(read) == len(wanted) * 3 * len(lake.layers)  # every chunk once, whatever is computed


def test_the_scheduler_changes_nothing():
    lake = MemoryLake()
    threads, alone = compute_statistics(lake), compute_statistics(lake, scheduler="synchronous")
    assert threads.identical(alone)


@pytest.mark.parametrize("scheduler", [None, "synchronous"])
def test_progress_counts_every_piece(scheduler):
    seen = []
    lake = MemoryLake(neurons=40)  # ten chunks, two pieces of a layer
    compute_statistics(lake, scheduler=scheduler, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 4) for done in range(1, 5)]


def test_an_error_in_a_column_comes_through():
    lake = MemoryLake()

    def broken(**_):
        raise OSError("disk on fire")

    lake.read_codes = broken
    with pytest.raises(OSError, match="disk on fire"):
        compute_statistics(lake)


def test_dropped_tags_are_reported():
    lake = MemoryLake()
    lake._words[3]["upos"] = "RARE"
    dataset = compute_statistics(lake)
    assert dataset.attrs["dropped"] == {"RARE": 1}
    assert not any(bool(variable.isnull().any()) for variable in dataset.data_vars.values())


def test_a_single_tag_has_moments_but_nothing_to_compare_with():
    dataset = compute_statistics(MemoryLake(tags=["NOUN"]))
    assert dataset.sizes["tag"] == 1
    assert "mean" in dataset
    assert "auroc" not in dataset
    with pytest.raises(InputError, match="compares tags"):
        rank(dataset, "auroc")


def test_folds_are_whole_documents_and_add_up():
    lake = MemoryLake(documents=7)
    documents = lake.column("document")
    for chosen in ([0], [1, 2], [0, 1, 2]):
        found = compute_statistics(lake, folds=3, only_folds=chosen)
        wanted = [document for document in range(7) if document % 3 in chosen]
        expected = compute_statistics(lake, documents=wanted)
        assert found.attrs["only_folds"] == chosen
        assert set(found.data_vars) == {"count", "mean", "variance", "mean_absolute", "fraction_active"}
        for name in found.data_vars:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-10)
    assert documents.max() == 6
    with pytest.raises(InputError, match="folds 0 to 2, got"):
        compute_statistics(lake, folds=3, only_folds=[3])
    with pytest.raises(InputError, match="folds must be at least 1"):
        compute_statistics(lake, folds=0)


def test_too_many_tags_for_histograms_get_exact_auroc(monkeypatch):
    monkeypatch.setattr(column_pass, "MAX_HISTOGRAM_TAGS", 2)
    lake = MemoryLake()
    found = compute_statistics(lake)
    monkeypatch.undo()
    np.testing.assert_array_equal(found["auroc_error"], 0)
    assert "hits" not in found
    exact = refine(lake, compute_statistics(lake), "auroc", top=1000)
    np.testing.assert_array_equal(found["auroc"], exact["auroc"])


def test_unknown_layers_and_too_large_results(monkeypatch):
    with pytest.raises(InputError, match="no layer 1: stored are 0, 2"):
        compute_statistics(MemoryLake(), layers=[1])
    with pytest.raises(InputError, match="no layer chosen"):
        compute_statistics(MemoryLake(), layers=[])
    monkeypatch.setattr(statistics_dataset, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match="3 tags × 2 layers × 10 neurons"):
        compute_statistics(MemoryLake())


class EndlessLake(MemoryLake):
    """Repeats the first block's values as often as asked."""

    def read_codes(self, **kwargs):
        return super().read_codes(**{**kwargs, "block": 0})


def test_memory_does_not_grow_with_blocks():
    lake = EndlessLake(block_rows=1024, chunk_neurons=8, neurons=8)
    labels = token_labels(lake, "upos")
    first, again = group_blocks(labels, folds=2)[0], label_blocks(labels)[0]

    def peak(blocks):
        tracemalloc.start()
        job = column_pass.Pass(
            source=lake,
            tags=labels.tags,
            kept=np.arange(3),
            folds=2,
            groups=[first] * blocks,
            basic=False,
            also=("average_precision",),
            earlier=(),
            labels=(),
            folder=None,
        )
        column_pass.piece_statistics([job], layer=0, first=0, stop=8)
        column_auroc(lake, [again] * blocks, layer=0, chunk=0, segment_bytes=100_000)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(40)  # compiles
    assert peak(160) < 1.05 * peak(40)


def test_other_processes_give_the_same(tmp_path):
    synthetic_lake(tmp_path / "a.lake", tokens=300, layers=3)
    lake = open_lake(tmp_path / "a.lake")
    expected = compute_statistics(lake, keep=False)
    assert compute_statistics(lake, keep=False, scheduler="processes").identical(expected)


def test_an_unknown_scheduler_is_refused():
    with pytest.raises(InputError, match="unknown scheduler 'thread'"):
        compute_statistics(MemoryLake(), scheduler="thread")
    with pytest.raises(InputError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1"):
        compute_statistics(MemoryLake(), scheduler="tcp://127.0.0.1:1")
