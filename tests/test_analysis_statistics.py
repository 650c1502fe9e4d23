"""The statistics dataset against a plain loop over the same rows."""

import json
import tracemalloc

import numpy as np
import pytest
from lakes import synthetic_lake
from memory_lake import MemoryLake
from sklearn.metrics import roc_auc_score

import neuronlake.analysis.statistics as statistics
from neuronlake.analysis import compute_statistics, token_labels
from neuronlake.analysis.column import column_statistics
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
                truth = np.repeat([1, 0], [len(mine), len(rest)])
                both = np.concatenate([mine, rest])
                expected = [roc_auc_score(truth, both[:, neuron]) for neuron in range(both.shape[1])]
                bound = found["auroc_error"].to_numpy() if "auroc_error" in found else 0
                assert np.all(np.abs(found["auroc"].to_numpy() - expected) <= bound + 1e-12)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("segment_bytes", [1 << 20, 500])
def test_equals_a_plain_loop(encoding, segment_bytes, monkeypatch):
    monkeypatch.setattr(statistics, "SEGMENT_BYTES", segment_bytes)
    lake = MemoryLake(encoding=encoding)
    dataset = compute_statistics(lake, "upos")
    assert_matches(dataset, token_labels(lake, "upos"), lake.stored)
    assert ("auroc_error" in dataset) == (encoding == "float32")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_lake_on_disk(tmp_path, encoding):
    synthetic_lake(tmp_path / "a.lake", tokens=300, encoding=encoding)
    lake = open_lake(tmp_path / "a.lake")

    def stored(layer):
        return np.concatenate([lake.read_block(layer=layer, block=block) for block in lake.blocks])

    assert_matches(compute_statistics(lake, "upos"), token_labels(lake, "upos"), stored)


def test_filters_are_applied_and_recorded():
    lake = MemoryLake()
    dataset = compute_statistics(lake, "upos", subword="first", shift=1, documents=[0, 2], layers=[2], auroc=False)
    labels = token_labels(lake, "upos", subword="first", shift=1, keep_documents=[0, 2])
    assert_matches(dataset, labels, lake.stored)
    assert dataset["layer"].to_numpy().tolist() == [2]
    assert "auroc" not in dataset
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
    assert len(read) == len(wanted) * 3 * len(lake.layers)  # every chunk once, moments and ranks together


def test_the_scheduler_changes_nothing():
    lake = MemoryLake()
    threads, alone = compute_statistics(lake), compute_statistics(lake, scheduler="synchronous")
    assert threads.identical(alone)


@pytest.mark.parametrize("scheduler", [None, "synchronous"])
def test_progress_counts_every_column(scheduler):
    seen = []
    compute_statistics(MemoryLake(), scheduler=scheduler, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 6) for done in range(1, 7)]


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


def test_a_single_tag_has_moments_but_no_auroc():
    lake = MemoryLake(tags=["NOUN"])
    assert compute_statistics(lake, auroc=False).sizes["tag"] == 1
    with pytest.raises(InputError, match="leave AUROC out"):
        compute_statistics(lake)


def test_unknown_layers_and_too_large_results(monkeypatch):
    with pytest.raises(InputError, match="no layer 1: stored are 0, 2"):
        compute_statistics(MemoryLake(), layers=[1])
    with pytest.raises(InputError, match="no layer chosen"):
        compute_statistics(MemoryLake(), layers=[])
    monkeypatch.setattr(statistics, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match="3 tags × 2 layers × 10 neurons"):
        compute_statistics(MemoryLake())


class EndlessLake(MemoryLake):
    """Repeats the first block's values as often as asked."""

    def read_codes(self, **kwargs):
        return super().read_codes(**{**kwargs, "block": 0})


@pytest.mark.parametrize("auroc", [False, True])
def test_memory_does_not_grow_with_blocks(auroc):
    lake = EndlessLake(block_rows=1024, chunk_neurons=8, neurons=8)
    first = label_blocks(token_labels(lake, "upos"))[0]

    def peak(blocks):
        tracemalloc.start()
        column_statistics(lake, [first] * blocks, layer=0, chunk=0, site="mlp.post", auroc=auroc, segment_bytes=100_000)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(40)  # compiles
    assert peak(160) < 1.05 * peak(40)
