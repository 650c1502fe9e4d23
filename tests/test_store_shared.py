"""A block filled by several processes, each its slice of the neurons, in memory they share."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lakes import make_spec

from neuronlake.store import InputError
from neuronlake.store.buffer import BlockBuffer
from neuronlake.store.errors import StorageError

ROWS, NEURONS = 16, 21
SPEC = make_spec(layers=2, neurons=NEURONS, block_rows=ROWS, chunk_neurons=4, encoding="float32")

RANK = """
import json, sys
from pathlib import Path
import numpy as np
from neuronlake.store import LakeSpec
from neuronlake.store.buffer import BlockBuffer
path, rank, spec = sys.argv[1], int(sys.argv[2]), LakeSpec.from_dict(json.loads(sys.argv[3]), Path("lake"))
buffer = BlockBuffer(spec, ranks=2, memory=path)
rows = np.arange(10)
for site, layer in buffer.keys:
    first, last = buffer.columns(site, rank)
    values = (1000 * layer + 100 * rows[:, None] + np.arange(first, last)).astype(np.float32)
    buffer.put(site, layer, values, rows, rows, rank=rank)
"""


def values_of(buffer: BlockBuffer, layer: int) -> np.ndarray:
    """(rows, neurons) of a layer, from the tiles."""
    tiles = buffer.tiles("mlp.post", layer)
    return tiles.transpose(1, 0, 2).reshape(ROWS, -1)[:, :NEURONS]


def test_two_processes_fill_a_block() -> None:
    buffer = BlockBuffer(SPEC, ranks=2)
    buffer.reset(10)
    for rank in ("0", "1"):
        command = [sys.executable, "-c", RANK, buffer.shared_path, rank, json.dumps(SPEC.as_dict())]
        subprocess.run(command, check=True)
    buffer.check_complete()
    for layer in SPEC.layers:
        expected = 1000 * layer + 100 * np.arange(10)[:, None] + np.arange(NEURONS)
        np.testing.assert_array_equal(values_of(buffer, layer)[:10], expected)
        assert not values_of(buffer, layer)[10:].any()


def test_a_rank_that_wrote_nothing_is_named() -> None:
    buffer = BlockBuffer(SPEC, ranks=2)
    buffer.reset(3)
    rows = np.arange(3)
    for layer in SPEC.layers:
        buffer.put("mlp.post", layer, np.ones((3, 10), np.float32), rows, rows, rank=0)
    with pytest.raises(InputError, match="row 0 of the block was captured 0 times by rank 1 of 2"):
        buffer.check_complete()
    with pytest.raises(InputError, match="got 10 neurons, the lake has 11 for rank 1 of 2"):
        buffer.put("mlp.post", 0, np.ones((3, 10), np.float32), rows, rows, rank=1)


def test_the_neuron_of_a_slice_is_named() -> None:
    buffer = BlockBuffer(replace(SPEC, encoding="float16"), ranks=2)
    values = np.zeros((1, 11), np.float32)
    values[0, 3] = 1e6
    with pytest.raises(InputError, match=r"L1\.N13 \(site mlp\.post\) is 1e\+06, beyond float16's range"):
        buffer.put("mlp.post", 1, values, np.array([0]), np.array([0]), rank=1)


def test_memory_is_found_and_told_apart() -> None:
    buffer = BlockBuffer(SPEC, ranks=1)
    same, path = BlockBuffer(SPEC, ranks=1, memory=buffer.shared_path), buffer.shared_path
    assert same.shares(path)
    assert not same.shares(BlockBuffer(SPEC, ranks=1).shared_path)
    del buffer
    assert not same.shares(path)  # gone, though `same` still has the memory
    with pytest.raises(StorageError, match="cannot be opened"):
        BlockBuffer(SPEC, ranks=1, memory=path)
    with pytest.raises(InputError, match="belongs to one process"):
        _ = BlockBuffer(SPEC).shared_path


@given(neurons=st.integers(1, 40), width=st.sampled_from([1, 2, 8, 16]), ranks=st.integers(1, 5), seed=st.integers(0, 9))
def test_slices_join_anywhere_in_a_chunk(neurons: int, width: int, ranks: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    spec = make_spec(layers=1, neurons=neurons, block_rows=ROWS, chunk_neurons=width, encoding="float32")
    values = rng.standard_normal((7, neurons), dtype=np.float32)
    source, target = rng.permutation(7)[:5], rng.permutation(ROWS)[:5]
    buffer = BlockBuffer(spec, ranks=ranks)
    for rank in range(ranks):
        first, last = buffer.columns("mlp.post", rank)
        buffer.put("mlp.post", 0, np.ascontiguousarray(values[:, first:last]), source, target, rank=rank)
    got = buffer.tiles("mlp.post", 0).transpose(1, 0, 2).reshape(ROWS, -1)
    expected = np.zeros_like(got)
    expected[target, :neurons] = values[source]
    np.testing.assert_array_equal(got, expected)
