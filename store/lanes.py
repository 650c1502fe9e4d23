"""LLVM intrinsics for numba kernels that compare 64 numbers at once and then look only at the set bits of the answer."""

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

LANES = 64


def load(builder: Any, address: Any, lane: Any) -> Any:
    """Emit a load of 64 numbers of an LLVM integer type from an address."""
    pointer = builder.inttoptr(address, ir.PointerType(ir.VectorType(lane, LANES)))
    return builder.load(pointer, align=lane.width // 8)


def all_lanes(builder: Any, number: Any) -> Any:
    """Emit a vector that holds a number 64 times."""
    vector = ir.VectorType(number.type, LANES)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.IntType(32)(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


@intrinsic  # type: ignore[untyped-decorator]
def trailing_zeros(typing_context: Any, value: Any) -> Any:  # noqa: ARG001  (numba's signature)
    """uint64, not 0 → zero bits below its lowest set bit."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.IntType(1)(1))

    return types.uint64(types.uint64), emit
