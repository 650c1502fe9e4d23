"""Top tokens through the index, against a full sort of the stored values."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lakes import make_spec, plan_lake, random_sentences, write_blocks

from neuronlake.analysis.extremes import find_extremes
from neuronlake.analysis.queries import find_top
from neuronlake.store import Lake, open_lake
from neuronlake.store.index import complete_index, index_block
from neuronlake.store.index_build import EXTREMES
from neuronlake.store.kept import INDEX, kept_results

ROWS = 128
NEURONS = 70  # a chunk of 64, which is compared at once, and a narrow one


def make_lake(root: Path, *, encoding: str, seed: int, tokens: int = 700, blocks: list[int] | None = None) -> Lake:
    """Blocks of 128 rows with ties, constants, bursts, and zeros of both signs."""
    rng = np.random.default_rng(seed)
    spec = make_spec(layers=2, neurons=NEURONS, block_rows=ROWS, chunk_neurons=64, encoding=encoding)
    sequences = random_sentences(rng, tokens, tags=("ADJ", "NOUN", "VERB"), documents=6)
    record, rows = plan_lake(root, spec, sequences)
    values = rng.standard_normal((2, len(rows), NEURONS)).astype(np.float32)
    values[:, :, 1] = np.round(values[:, :, 1])
    values[:, :, 2] = 0
    values[0, ::2, 2] = -0.0
    values[:, :, 3] = np.abs(values[:, :, 3])
    values[:, 40:110, 4] += 5
    values[:, :, 5] = 1.5
    write_blocks(root, spec, record, rows, values, blocks)
    return open_lake(root)


def brute(lake: Lake, layer: int, neuron: int, eligible: np.ndarray, *, bottom: bool, cap: int | None) -> np.ndarray:
    values = np.concatenate([lake.read_block(layer=layer, block=block)[:, neuron] for block in lake.blocks])
    lines = np.flatnonzero(eligible)
    lines = lines[np.lexsort((lines, values[lines] if bottom else -values[lines]))]
    if cap is None:
        return lines
    documents = lake.tokens().column("document").to_numpy()
    counts: dict[int, int] = {}
    kept = []
    for line in lines:
        counts[documents[line]] = counts.get(documents[line], 0) + 1
        if counts[documents[line]] <= cap:
            kept.append(line)
    return np.array(kept, dtype=np.int64)


@pytest.fixture(scope="module", params=["float16", "bfloat16", "float32", "int8a"])
def lakes(request, tmp_path_factory) -> list[Lake]:
    """One lake indexed by block, the same one merged, partly indexed, not indexed, and with blocks missing."""
    folder = tmp_path_factory.mktemp(request.param)
    by_block = make_lake(folder / "a.lake", encoding=request.param, seed=1)
    assert by_block.plan.blocks > 4
    merged, partly, bare = (folder / name for name in ("merged.lake", "partly.lake", "bare.lake"))
    for path in (merged, partly, bare):
        shutil.copytree(by_block.path, path)
    complete_index(open_lake(merged))
    assert len(kept_results(merged, kept=INDEX)) == 1
    for name in kept_results(partly, kept=INDEX)[::2]:
        shutil.rmtree(partly / INDEX / name)
    shutil.rmtree(bare / INDEX)
    some = make_lake(folder / "some.lake", encoding=request.param, seed=1, blocks=[1, 3, 4])
    return [by_block, open_lake(merged), open_lake(partly), open_lake(bare), some]


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_equals_brute_force(lakes, data):
    lake = data.draw(st.sampled_from(lakes))
    layer, neuron = data.draw(st.integers(0, 1)), data.draw(st.integers(0, 7) | st.integers(0, NEURONS - 1))
    k, bottom = data.draw(st.sampled_from([1, 2, 20, EXTREMES, EXTREMES + 1, 100, 10_000])), data.draw(st.booleans())
    cap = data.draw(st.none() | st.integers(1, 8))
    ordinary = lake.tokens().column("flags").to_numpy() == 0
    share = data.draw(st.sampled_from([None, 0.0, 0.01, 0.1, 0.5, 1.0]))
    mask = None
    if share is not None:
        mask = ordinary & (np.random.default_rng(data.draw(st.integers(0, 9))).random(len(ordinary)) < share)
    expected = brute(lake, layer, neuron, ordinary if mask is None else mask, bottom=bottom, cap=cap)[:k]
    found = find_extremes(lake, layer, neuron, k, bottom=bottom, eligible=mask, per_document=cap)
    assert found.lines.tolist() == expected.tolist()
    rows = expected // ROWS
    values = [
        lake.read_block(layer=layer, block=lake.blocks[b])[line % ROWS, neuron]
        for b, line in zip(rows, expected, strict=True)
    ]
    np.testing.assert_array_equal(found.values, np.array(values, dtype=np.float32))


def test_the_index_alone_answers(lakes):
    """No chunk is read for what the lists hold, and every chunk where there are none."""
    by_block, merged, _, bare, _ = lakes
    for lake in (by_block, merged):
        found = find_top(lake, 0, 7, 10)
        assert (found.blocks_read, found.bytes_read) == ((), 0)
    found = find_top(bare, 0, 7, 10)
    assert found.blocks_read == bare.blocks
    assert found.bytes_read == sum(bare.chunk_bytes(layer=0, block=block, neuron=7) for block in bare.blocks)


def test_a_segment_of_other_blocks_is_not_trusted(lakes, tmp_path):
    """A block that was extracted again with other values: its lists are of the old ones."""
    other = make_lake(tmp_path / "other.lake", encoding=lakes[0].encoding, seed=2)
    root = tmp_path / "a.lake"
    shutil.copytree(other.path, root)
    shutil.rmtree(root / INDEX)
    shutil.copytree(lakes[1].path / INDEX, root / INDEX)
    lake = open_lake(root)
    assert lake.index().blocks == ()
    assert find_top(lake, 1, 9, 5).lines.tolist() == find_top(other, 1, 9, 5).lines.tolist()
    complete_index(lake)
    assert len(kept_results(root, kept=INDEX)) == 1
    assert open_lake(root).index().blocks == lake.blocks


def test_a_damaged_list_costs_time_only(lakes, tmp_path):
    root = tmp_path / "a.lake"
    shutil.copytree(lakes[1].path, root)
    for path in (root / INDEX).glob("*/top/values/c.0.*"):
        data = bytearray(path.read_bytes())
        data[10] ^= 1
        path.write_bytes(data)
    lake = open_lake(root)
    found = find_top(lake, 0, 7, 10)
    assert found.lines.tolist() == find_top(lakes[1], 0, 7, 10).lines.tolist()
    assert found.blocks_read == lake.blocks


def test_the_index_of_a_block_is_the_same_from_memory_and_from_disk(lakes):
    by_block = lakes[0]
    for block in by_block.blocks:
        made = index_block(by_block, block)[by_block.site]
        (segment,) = [part for part in by_block.index().segments if part.blocks == (block,)]
        assert segment.ordinary.tolist() == [made.ordinary]
        for name, array in segment.arrays.items():
            parts = [array.read_part(place) for place in range(array.shape[0])]
            kept = parts[0] if name.startswith("tokens") else np.stack(parts)[:, :, 0]
            np.testing.assert_array_equal(kept, made.arrays[name])


def test_sums_and_strongest_neurons_are_numpys(lakes):
    lake = lakes[1]
    values = np.stack([lake.read_block(layer=layer, block=2) for layer in lake.layers])
    ordinary = lake.tokens(blocks=[2]).column("flags").to_numpy() == 0
    (segment,) = lake.index().segments
    for layer in range(2):
        sums = segment.arrays["sum"].read_part(layer)[:, segment.blocks.index(2)]
        np.testing.assert_allclose(sums, values[layer][ordinary].astype(np.float64).sum(axis=0), rtol=1e-12, atol=1e-9)
    flat = np.concatenate(list(values), axis=1)
    for row in np.flatnonzero(ordinary):
        neurons, found = lake.index().strongest(2, int(row))
        expected = np.argsort(-np.abs(flat[row]), kind="stable")[: len(neurons)]
        assert neurons.tolist() == expected.tolist()
        np.testing.assert_array_equal(found, flat[row][expected])
