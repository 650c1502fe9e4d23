"""The index of a block against NumPy: from values and from quantised codes, whatever they are."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from neuronlake.store.encodings import get_encoding
from neuronlake.store.index_build import EXTREMES, BlockIndex, BlockIndexer
from neuronlake.store.quantise import expand, quantise
from neuronlake.store.spec import LakeSpec
from neuronlake.store.tables import PADDING, SPECIAL
from neuronlake.store.token_kernels import NOBODY, STRONGEST

SITE = "mlp.post"


def spec_of(encoding: str, rows: int, neurons: int, width: int, layers: int) -> LakeSpec:
    return LakeSpec(
        model={},
        capture={},
        plan={},
        sites=(SITE,),
        layers=tuple(range(layers)),
        neurons=neurons,
        block_rows=rows,
        chunk_neurons=width,
        encoding=encoding,
    )


def index_of(
    spec: LakeSpec, flags: NDArray[np.uint8], chunks: dict[tuple[int, int], tuple[Any, Any]], order: Any
) -> BlockIndex:
    indexer = BlockIndexer(spec, flags)
    for layer, chunk in order:
        indexer.add(SITE, layer, chunk, *chunks[layer, chunk])
    return indexer.finish()[SITE]


def check(found: BlockIndex, values: NDArray[Any], flags: NDArray[np.uint8]) -> None:
    """Compare with values (layers, rows, neurons)."""
    ordinary = np.flatnonzero((flags & (SPECIAL | PADDING)) == 0)
    layers, _, neurons = values.shape
    size = min(EXTREMES, len(ordinary))
    for layer in range(layers):
        for neuron in range(neurons):
            column = values[layer, ordinary, neuron].astype(np.float64)
            np.testing.assert_array_equal(found.arrays["sum"][layer, neuron], column.sum())
            for name, sign in (("top", 1), ("bottom", -1)):
                best = np.argsort(-sign * column, kind="stable")[:size]
                np.testing.assert_array_equal(found.arrays[f"{name}/rows"][layer, neuron, :size], ordinary[best])
                np.testing.assert_array_equal(found.arrays[f"{name}/values"][layer, neuron, :size], column[best])
    flat = np.concatenate(list(values), axis=1)
    length = min(STRONGEST, layers * neurons)
    assert (found.arrays["tokens/neurons"][np.setdiff1d(np.arange(len(flags)), ordinary)] == NOBODY).all()
    for row in ordinary:
        best = np.argsort(-np.abs(flat[row].astype(np.float64)), kind="stable")[:length]
        np.testing.assert_array_equal(found.arrays["tokens/neurons"][row, :length], best)
        np.testing.assert_array_equal(found.arrays["tokens/values"][row, :length], flat[row, best])
        assert (found.arrays["tokens/neurons"][row, length:] == NOBODY).all()


KINDS = {
    "smooth": lambda rng, shape: rng.laplace(size=shape) * 10 ** rng.uniform(-2, 1, shape[-1]),
    "coarse": lambda rng, shape: rng.integers(-3, 4, shape).astype(float),
    "mostly zero": lambda rng, shape: np.maximum(rng.standard_normal(shape) - 1.5, 0),
    "constant": lambda rng, shape: np.broadcast_to(rng.standard_normal(shape[-1]), shape).copy(),
    "massive": lambda rng, shape: np.where(rng.random(shape) < 0.01, rng.uniform(200, 4000, shape), rng.laplace(size=shape)),
    "tiny": lambda rng, shape: rng.laplace(size=shape) * 2e-7,
}


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_index_equals_numpy(kind: str, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    encoding = data.draw(st.sampled_from(["int8a", "int8a", "float16", "float32", "bfloat16"]))
    rows, layers = data.draw(st.sampled_from([(16, 1), (128, 2), (1024, 1)]))
    neurons, width = data.draw(st.sampled_from([(7, 8), (64, 64), (100, 64), (130, 64), (70, 128)]))
    flags = rng.choice(np.array([0, 0, 0, SPECIAL, PADDING], dtype=np.uint8), rows)
    spec = spec_of(encoding, rows, neurons, width, layers)
    chunks: dict[tuple[int, int], tuple[Any, Any]] = {}
    values = np.zeros((layers, rows, spec.geometry(SITE).chunks * width), dtype=np.float32)
    for layer in range(layers):
        for chunk in range(spec.geometry(SITE).chunks):
            here = np.zeros((rows, width))
            used = min(width, neurons - chunk * width)
            here[:, :used] = KINDS[kind](rng, (rows, used))
            stored, scales = here.astype(np.float32), None
            if encoding == "bfloat16":
                stored = (stored.view(np.uint32) >> 16).astype(np.uint16)
                decoded = (stored.astype(np.uint32) << 16).view(np.float32)
            elif encoding == "float32":
                decoded = stored
            else:
                stored = here.astype(np.float16).view(np.uint16)
                if get_encoding(encoding).quantised:
                    codes, patterns = np.empty(stored.shape, dtype=np.int8), np.empty_like(stored)
                    scales = quantise(stored, rows, codes)
                    expand(codes, scales, patterns)
                    stored, decoded = codes, patterns.view(np.float16)
                else:
                    decoded = stored.view(np.float16)
            chunks[layer, chunk] = stored, scales
            values[layer, :, chunk * width : (chunk + 1) * width] = decoded
    order = list(chunks)
    rng.shuffle(order)
    check(index_of(spec, flags, chunks, order), values[..., :neurons], flags)


def test_codes_that_stand_for_one_value_are_mixed_by_row() -> None:
    """A unit far below float16's smallest number, as another writer might choose."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-20, 21, (256, 64)).astype(np.int8)
    scales = np.tile(np.float32([3e-10, 127]), (64, 1))
    patterns = np.empty(codes.shape, dtype=np.uint16)
    expand(codes, scales, patterns)
    values = patterns.view(np.float16)
    assert len(np.unique(values)) < len(np.unique(codes))
    flags = np.zeros(256, dtype=np.uint8)
    found = index_of(spec_of("int8a", 256, 64, 64, 1), flags, {(0, 0): (codes, scales)}, [(0, 0)])
    check(found, values[None].astype(np.float32), flags)
