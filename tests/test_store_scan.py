"""Scanning visits every value once, in order, on any number of threads, and never returns a damaged one."""

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lakes import foreign_values, synthetic_lake

from neuronlake.store import ENCODINGS, DamageError, InputError, Lake, Tile, open_lake
from neuronlake.store.parallel import map_ordered
from neuronlake.store.quantise import expand
from neuronlake.store.scan import plan_parts

SHAPE = {"tokens": 150, "layers": 3, "neurons": 21, "block_rows": 64, "chunk_neurons": 4}


@pytest.fixture(scope="module", params=list(ENCODINGS))
def lake(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    root = tmp_path_factory.mktemp("scan") / "a.lake"
    synthetic_lake(root, encoding=request.param, **SHAPE)
    return open_lake(root)


def copied(tile: Tile) -> tuple[Tile, np.ndarray]:
    return tile, tile.values.copy()


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_every_value_once_and_in_order(lake: Lake, threads: int | None) -> None:
    seen = {layer: np.full((lake.plan.blocks * 64, lake.neurons), np.nan, np.float32) for layer in lake.layers}
    places = []
    for tile, values in lake.scan(copied, threads=threads):
        places.append((tile.layer, tile.block, tile.first_neuron))
        target = seen[tile.layer][tile.first_row :, tile.first_neuron :][: values.shape[0], : values.shape[1]]
        assert np.isnan(target).all(), "visited twice"
        target[:] = values
    assert places == sorted(places)
    used = np.concatenate([np.arange(commit.rows) + 64 * commit.block for commit in lake.commits])
    for layer in lake.layers:
        np.testing.assert_array_equal(seen[layer][used], foreign_values(lake.path, layer)[used])
        assert np.isnan(np.delete(seen[layer], used, axis=0)).all(), "padding is no value"


def test_stored_patterns_are_those_of_the_values(lake: Lake) -> None:
    kind = {"float32": np.float32, "float16": np.float16}
    values = ENCODINGS[lake.encoding].values
    for (tile, patterns), (_, decoded) in zip(lake.scan(copied, values="stored"), lake.scan(copied), strict=True):
        if values == "bfloat16":
            np.testing.assert_array_equal((patterns.astype(np.uint32) << 16).view(np.float32), decoded)
        else:
            np.testing.assert_array_equal(patterns.view(kind[values]).astype(np.float32), decoded)
        assert tile.values.shape == decoded.shape


def test_codes_and_scales_make_the_values(lake: Lake) -> None:
    encoding = ENCODINGS[lake.encoding]
    for (tile, codes), (_, patterns) in zip(
        lake.scan(copied, values="codes"), lake.scan(copied, values="stored"), strict=True
    ):
        assert codes.dtype == encoding.codes
        if encoding.quantised:
            assert tile.scales is not None
            found = np.empty(codes.shape, dtype=np.uint16)
            expand(codes, tile.scales, found)
            np.testing.assert_array_equal(found, patterns)
        else:
            assert tile.scales is None
            np.testing.assert_array_equal(codes, patterns)


def test_layers_and_blocks_are_chosen(lake: Lake) -> None:
    found = list(lake.scan(lambda tile: (tile.layer, tile.block), layers=[2, 0], blocks=[1]))
    assert found == [(2, 1)] * 6 + [(0, 1)] * 6
    with pytest.raises(InputError, match="no layer 3"):
        lake.scan(copied, layers=[3])
    with pytest.raises(InputError, match="no block 99"):
        lake.scan(copied, blocks=[99])
    with pytest.raises(InputError, match=r"values must be one of 'float32', 'stored', 'codes', got 'float64'"):
        next(lake.scan(copied, values="float64"))
    with pytest.raises(InputError, match="threads must be at least 1, got 0"):
        next(lake.scan(copied, threads=0))


def test_a_kernel_may_read_the_lake(lake: Lake) -> None:
    def kernel(tile: Tile) -> bool:
        rows = tile.first_row + np.arange(len(tile.values))
        neurons = tile.first_neuron + np.arange(tile.values.shape[1])
        return bool((lake.read(layer=tile.layer, rows=rows, neurons=neurons) == tile.values).all())

    assert all(lake.scan(kernel))


def test_an_error_of_the_kernel_is_raised(lake: Lake) -> None:
    def kernel(tile: Tile) -> int:
        if (tile.layer, tile.block) == (1, 0):
            raise ZeroDivisionError("mine")
        return tile.layer

    with pytest.raises(ZeroDivisionError, match="mine"):
        list(lake.scan(kernel))


def test_damage_is_raised_not_scanned(tmp_path: Path) -> None:
    for encoding in ENCODINGS:
        root = tmp_path / encoding
        synthetic_lake(root, encoding=encoding, **SHAPE)
        shards = ["activations/mlp.post/1/c.1.0"] + ["scales/mlp.post/c.0.1.0.0"] * ENCODINGS[encoding].quantised
        for name in shards:
            path = root / name
            before = path.read_bytes()
            path.write_bytes(bytes([before[0] ^ 1]) + before[1:])
            with pytest.raises(DamageError, match="checksum"):
                list(open_lake(root).scan(copied))
            path.write_bytes(before[:-1])
            with pytest.raises(DamageError):
                list(open_lake(root).scan(copied))
            path.unlink()
            with pytest.raises(DamageError, match="missing though its block is committed"):
                list(open_lake(root).scan(copied))
            path.write_bytes(before)
        assert len(list(open_lake(root).scan(copied)))


def test_results_wait_only_a_few_at_a_time() -> None:
    begun: list[int] = []
    results = map_ordered(lambda item: begun.append(item) or item, range(1000), threads=2, ahead=2)
    assert [next(results) for _ in range(10)] == list(range(10))
    assert len(begun) <= 10 + 2 * 2 + 1
    results.close()


def test_work_within_work_runs_in_place() -> None:
    def outer(item: int) -> tuple[int, bool]:
        inner = list(map_ordered(lambda _: threading.get_ident(), range(3), threads=2))
        return item, set(inner) == {threading.get_ident()}

    assert list(map_ordered(outer, range(8), threads=2)) == [(item, True) for item in range(8)]


@given(layers=st.integers(0, 4), blocks=st.integers(0, 9), chunks=st.integers(1, 30), threads=st.integers(1, 16))
def test_parts_cover_everything_once(layers: int, blocks: int, chunks: int, threads: int) -> None:
    parts = list(plan_parts(layers=range(layers), blocks=range(blocks), chunks=chunks, threads=threads))
    covered = [(part.layer, part.block, chunk) for part in parts for chunk in part.chunks]
    assert covered == [(a, b, c) for a in range(layers) for b in range(blocks) for c in range(chunks)]
    if layers and blocks:
        assert len(parts) >= min(threads, layers * blocks * chunks)
