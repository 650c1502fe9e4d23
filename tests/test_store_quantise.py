"""`int8a`: decoding against NumPy, fidelity against scipy, on distributions like those of activations and on others."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.stats import spearmanr

from neuronlake.store import ENCODINGS
from neuronlake.store.quantise import (
    TARGET_L2,
    TARGET_RHO,
    expand,
    gather_codes,
    quantise,
    unpack_codes,
)


def store(values: NDArray[np.float16], rows: int | None = None) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantise a chunk (rows, neurons): its codes and scales."""
    patterns = np.ascontiguousarray(values).view(np.uint16)
    codes = np.empty(values.shape, dtype=np.int8)
    scales = quantise(patterns, len(values) if rows is None else rows, codes)
    return codes, scales


def restore(codes: NDArray[np.int8], scales: NDArray[np.float32]) -> NDArray[np.float16]:
    patterns = np.empty(codes.shape, dtype=np.uint16)
    expand(codes, scales, patterns)
    return patterns.view(np.float16)


def formula(codes: NDArray[np.int8], scales: NDArray[np.float32]) -> NDArray[np.float16]:
    """The decoding as docs/format.md states it."""
    unit, knee = scales.T
    return np.asarray(eval(ENCODINGS["int8a"].decode_formula, {"a": codes, "unit": unit, "knee": knee, "numpy": np}))


def gated(rng: np.random.Generator, rows: int, neurons: int) -> NDArray[np.float64]:
    """Products of a SiLU gate and a linear unit, with gains over two decades."""
    gate, up = rng.standard_normal((2, rows, neurons))
    gate = gate * rng.uniform(0.3, 3, neurons) + rng.uniform(-2, 0.5, neurons)
    values: NDArray[np.float64] = gate / (1 + np.exp(-gate)) * up * 10 ** rng.uniform(-2, 0.5, neurons)
    return values


DISTRIBUTIONS: dict[str, Callable[[np.random.Generator, int, int], NDArray[np.float64]]] = {
    "gated": gated,
    "normal": lambda rng, rows, neurons: rng.standard_normal((rows, neurons)),
    "laplace": lambda rng, rows, neurons: rng.laplace(size=(rows, neurons)),
    "massive first tokens": lambda rng, rows, neurons: np.where(
        rng.random((rows, 1)) < 0.01, rng.uniform(200, 400, (rows, neurons)), 0.3 * rng.laplace(size=(rows, neurons))
    ),
    "half of it zero, as after ReLU": lambda rng, rows, neurons: np.maximum(rng.standard_normal((rows, neurons)), 0),
    "nine tenths zero": lambda rng, rows, neurons: np.maximum(rng.standard_normal((rows, neurons)) - 1.28, 0),
    "uniform": lambda rng, rows, neurons: rng.uniform(-1, 1, (rows, neurons)),
}


@pytest.mark.parametrize("rows", [2048, 8192])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_both_promises_are_kept(name: str, rows: int) -> None:
    """To within the accuracy of a sample and of high-resolution formulas: 1 − ρ by 30 %, the relative error by 25 %."""
    truth = DISTRIBUTIONS[name](np.random.default_rng(0), rows, 32).astype(np.float16)
    stored = restore(*store(truth)).astype(np.float64)
    for neuron in range(truth.shape[1]):
        rho = spearmanr(truth[:, neuron], stored[:, neuron]).statistic
        assert 1 - rho <= 1.3 * (1 - TARGET_RHO), f"neuron {neuron}: rho {rho}"
    error = np.linalg.norm(stored - truth, axis=0) / np.linalg.norm(truth.astype(np.float64), axis=0)
    assert error.max() <= 1.25 * TARGET_L2


def test_values_crowding_far_from_zero_get_what_eight_bits_allow() -> None:
    """Ten deviations from zero: 127 codes on one side of it cannot keep the promise, but come near."""
    truth = (3 + 0.3 * np.random.default_rng(0).standard_normal((8192, 32))).astype(np.float16)
    stored = restore(*store(truth)).astype(np.float64)
    assert min(spearmanr(truth[:, neuron], stored[:, neuron]).statistic for neuron in range(32)) > 0.9985


def test_the_peak_is_exact_and_signs_are_kept() -> None:
    truth = gated(np.random.default_rng(1), 2000, 64).astype(np.float16)
    stored = restore(*store(truth))
    np.testing.assert_array_equal(np.abs(stored).max(axis=0), np.abs(truth).max(axis=0))
    np.testing.assert_array_equal(np.sign(stored), np.sign(truth))


def test_larger_values_never_get_smaller_codes() -> None:
    truth = np.sort(gated(np.random.default_rng(2), 4096, 8).astype(np.float16), axis=0)
    assert (np.diff(store(truth)[0].astype(int), axis=0) >= 0).all()


@given(
    arrays(
        np.float16,
        st.tuples(st.integers(1, 40), st.integers(1, 9)),
        elements=st.floats(width=16, allow_nan=False, allow_infinity=False),
    )
)
def test_any_finite_values(truth: NDArray[np.float16]) -> None:
    """Subnormals, −0, extremes, constants: decoding is the documented formula, to the bit, and errors are bounded."""
    codes, scales = store(truth)
    stored = restore(codes, scales)
    np.testing.assert_array_equal(stored, formula(codes, scales))
    out = np.full((len(truth), truth.shape[1] + 2), np.nan, dtype=np.float32)
    unpack_codes(codes, scales, truth.shape[1], out, 1)
    np.testing.assert_array_equal(out[:, 1:-1], stored.astype(np.float32))
    some = np.arange(len(truth))[::-1].copy()
    columns = np.arange(truth.shape[1])
    picked = np.empty(truth.shape, dtype=np.float32)
    gather_codes(codes, scales, some, columns, picked, some, columns)
    np.testing.assert_array_equal(picked, stored.astype(np.float32))
    assert np.abs(codes.astype(int)).max() <= 127
    peak = np.abs(truth.astype(np.float64)).max(axis=0)
    # the widest step there is: 127 codes on a straight line from the lowest knee, or the peak itself
    bound = np.where(peak > 0, np.maximum(peak / 4, 2.0**-24), 0)
    assert (np.abs(stored.astype(np.float64) - truth) <= bound).all()


@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, -6e-8, 65504.0])
def test_constant_neurons_are_exact(value: float) -> None:
    truth = np.full((300, 3), value, dtype=np.float16)
    np.testing.assert_array_equal(restore(*store(truth)), truth)


def test_padding_does_not_count() -> None:
    rng = np.random.default_rng(3)
    truth = np.zeros((1024, 5), dtype=np.float16)
    truth[:200] = gated(rng, 200, 5)
    whole = store(truth, rows=200)
    alone = store(truth[:200])
    np.testing.assert_array_equal(whole[1], alone[1])
    np.testing.assert_array_equal(whole[0][:200], alone[0])
