"""Half-precision conversions for numba kernels, at hardware speed.

numba has no float16 on the CPU, NumPy's own conversion is a scalar table walk (0.3 Gvalues/s). These intrinsics emit
LLVM's `fptrunc`/`fpext` to `half`, which become one vectorised F16C or NEON instruction: 2 Gvalues/s when packing with a
gather, 9 Gvalues/s when unpacking from cache. Rounding is to nearest even, as in IEEE 754.
"""

from typing import Any

import numba
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic


@intrinsic  # type: ignore[untyped-decorator]
def f32_to_f16bits(typing_context: Any, value: Any) -> Any:  # noqa: ARG001  (numba's signature)
    """float32 -> uint16 holding the bits of the nearest float16; overflow gives ±inf."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), emit


@intrinsic  # type: ignore[untyped-decorator]
def f16bits_to_f32(typing_context: Any, bits: Any) -> Any:  # noqa: ARG001
    """uint16 holding a float16 -> the same value as float32, exactly."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), emit


@intrinsic  # type: ignore[untyped-decorator]
def f32_bits(typing_context: Any, value: Any) -> Any:  # noqa: ARG001
    """float32 -> its bit pattern as uint32."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), emit


@intrinsic  # type: ignore[untyped-decorator]
def bits_to_f32(typing_context: Any, bits: Any) -> Any:  # noqa: ARG001
    """uint32 bit pattern -> float32."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), emit


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def f32_to_bf16bits(value: Any) -> Any:
    """float32 -> uint16 holding the nearest bfloat16 (its upper half, rounded to even). NaN stays NaN."""
    bits = f32_bits(value)
    if (bits & numba.uint32(0x7FFFFFFF)) > numba.uint32(0x7F800000):
        return numba.uint16((bits >> numba.uint32(16)) | numba.uint32(0x40))
    rounding = numba.uint32(0x7FFF) + ((bits >> numba.uint32(16)) & numba.uint32(1))
    return numba.uint16((bits + rounding) >> numba.uint32(16))


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def bf16bits_to_f32(bits: Any) -> Any:
    """uint16 holding a bfloat16 -> the same value as float32, exactly."""
    return bits_to_f32(numba.uint32(bits) << numba.uint32(16))
