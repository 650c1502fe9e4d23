"""Tensors on their way from a forward pass into a block's buffer."""

import threading

import numpy as np
import pytest
import torch
from lakes import make_spec

from neuronlake.extractor.drain import Drain, Ring, make_drain
from neuronlake.store import ENCODINGS, ActivationError, BlockBuffer

ROWS, NEURONS = 64, 20


def make_buffer(encoding: str) -> BlockBuffer:
    buffer = BlockBuffer(make_spec(layers=2, neurons=NEURONS, block_rows=ROWS, chunk_neurons=8, encoding=encoding))
    buffer.reset(ROWS)
    return buffer


def stored(buffer: BlockBuffer, layer: int) -> np.ndarray:
    """Patterns of a layer, (rows, neurons)."""
    return np.concatenate(list(buffer.tiles("mlp.post", layer)), axis=1)[:, :NEURONS]


def patterns(values: torch.Tensor, encoding: str) -> np.ndarray:
    """The same by torch's own casts."""
    kind = ENCODINGS[encoding].values
    cast = values.to(getattr(torch, kind))
    return (cast if kind == "float32" else cast.view(torch.uint16)).numpy()


def drains() -> list[Drain]:
    cpu = torch.device("cpu")
    # one row a slot, rows larger than a slot, everything in one
    return [make_drain(cpu), Ring(cpu, slots=2, slot_bytes=80), Ring(cpu, slots=1, slot_bytes=7), Ring(cpu)]


@pytest.mark.parametrize("encoding", list(ENCODINGS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_drain_stores_the_same_patterns(encoding: str, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    for drain in drains():
        buffer = make_buffer(encoding)
        for layer in range(2):
            values = torch.from_numpy(rng.standard_normal((2 * ROWS, NEURONS)) * 100).to(dtype)
            source, target = rng.permutation(2 * ROWS)[:ROWS], rng.permutation(ROWS)
            for part in np.array_split(np.arange(ROWS), 3):
                given = values.clone()
                drain.put(buffer, "mlp.post", layer, given, source[part], target[part])
                given.fill_(7)  # the model reuses the memory of a tensor after the hook
            drain.finish()
            expected = np.empty_like(stored(buffer, layer))
            expected[target] = patterns(values[source], encoding)
            np.testing.assert_array_equal(stored(buffer, layer), expected)
        buffer.check_complete()
        drain.close()


def put_all(drain: Drain, values: torch.Tensor) -> None:
    drain.put(make_buffer("float16"), "mlp.post", 1, values, np.arange(ROWS), np.arange(ROWS))
    drain.finish()


def test_what_cannot_be_stored_is_refused_and_the_ring_goes_on() -> None:
    values = torch.ones(ROWS, NEURONS)
    values[5, 3] = 1e5
    rows = np.arange(ROWS)
    for drain in drains():
        with pytest.raises(ActivationError, match=r"L1\.N3 .* (beyond|is inf)") as refusal:
            put_all(drain, values)
        assert refusal.value.row == 5
        buffer = make_buffer("float16")
        for layer in range(2):
            drain.put(buffer, "mlp.post", layer, torch.ones(ROWS, NEURONS), rows, rows)
        drain.finish()
        buffer.check_complete()
        drain.close()


def test_a_full_ring_makes_the_model_wait() -> None:
    started, go_on = threading.Event(), threading.Event()

    class SlowBuffer(BlockBuffer):
        def put(self, *arguments: object, **options: object) -> None:
            started.set()
            assert go_on.wait(30)
            super().put(*arguments, **options)  # type: ignore[arg-type]

    spec = make_spec(layers=2, neurons=NEURONS, block_rows=ROWS, chunk_neurons=8, encoding="float16")
    buffer, drain = SlowBuffer(spec), Ring(torch.device("cpu"), slots=1)
    buffer.reset(ROWS)
    rows, done = np.arange(ROWS), []

    def model() -> None:
        for layer in range(2):
            drain.put(buffer, "mlp.post", layer, torch.ones(ROWS, NEURONS), rows, rows)
            done.append(layer)

    thread = threading.Thread(target=model)
    thread.start()
    assert started.wait(30)
    thread.join(0.2)
    assert done == [0]  # the second layer has no slot
    go_on.set()
    thread.join(30)
    drain.finish()
    buffer.check_complete()
    drain.close()
