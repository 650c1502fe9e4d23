"""Vectors of 16 lanes for compiled kernels: a row's 16 neighbouring neurons, held in registers.

LLVM vectorises inner loops by itself, but not a loop over rows whose accumulators are to stay in registers. So kernels
say it: a vector is a numba type of its own, arithmetic on it becomes one LLVM instruction, which any target can do (16
float64 are two registers of 512 bits, four or eight elsewhere). Addresses are plain integers: the caller sees to it that
16 lanes are there, and that the array outlives its address.
"""

import operator
import sys
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import intrinsic, lower_builtin, models, register_model

LANES = 16
_IR = {"float32": ir.FloatType(), "float64": ir.DoubleType(), "int32": ir.IntType(32)}


class Vector(types.Type):
    """16 lanes of one kind."""

    def __init__(self, lane: str):
        self.lane = lane
        super().__init__(name=f"Vector({lane})")

    @property
    def llvm(self) -> Any:
        """Its type in LLVM."""
        return ir.VectorType(_IR[self.lane], LANES)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Vector):
        super().__init__(manager, kind, kind.llvm)


F32, F64, I32 = Vector("float32"), Vector("float64"), Vector("int32")


def _constant(kind: Vector, value: float) -> Any:
    return ir.Constant(kind.llvm, [value] * LANES)


def _operator(function: Any, of_floats: str, of_integers: str) -> None:
    @infer_global(function)
    class _Template(AbstractTemplate):  # type: ignore[misc]
        def generic(self, args: Any, kws: Any) -> Any:  # noqa: ARG002
            if len(args) == 2 and isinstance(args[0], Vector) and args[0] == args[1]:
                return args[0](*args)
            return None

    @lower_builtin(function, Vector, Vector)  # type: ignore[untyped-decorator]
    def _emit(_context: Any, builder: Any, signature: Any, args: Any) -> Any:
        name = of_integers if signature.args[0].lane == "int32" else of_floats
        return getattr(builder, name)(*args)


_operator(operator.add, "fadd", "add")
_operator(operator.sub, "fsub", "sub")
_operator(operator.mul, "fmul", "mul")
_operator(operator.truediv, "fdiv", "sdiv")


def _function(kinds: tuple[Any, ...], result: Any, emit: Callable[..., Any]) -> Any:
    """Return an intrinsic of so many arguments; `emit(builder, *args)` writes its instructions."""
    signature = result(*kinds)

    def body(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        found = emit(builder, *args)
        return ir.Constant(ir.IntType(8).as_pointer(), None) if found is None else found

    if len(kinds) == 1:
        return intrinsic(lambda typing_context, a: (signature, body))
    if len(kinds) == 2:
        return intrinsic(lambda typing_context, a, b: (signature, body))
    if len(kinds) == 3:
        return intrinsic(lambda typing_context, a, b, c: (signature, body))
    return intrinsic(lambda typing_context, a, b, c, d: (signature, body))


def _call(name: str, kind: Vector) -> Callable[..., Any]:
    """Emit a call of one of LLVM's own functions on vectors."""

    def emit(builder: Any, *args: Any) -> Any:
        full = f"llvm.{name}.v{LANES}{'f32' if kind.lane == 'float32' else 'f64'}"
        function_type = ir.FunctionType(kind.llvm, [kind.llvm] * len(args))
        module = builder.module
        function = module.globals.get(full) or ir.Function(module, function_type, full)
        return builder.call(function, args)

    return emit


def _loaded(kind: Any, bits: int) -> Callable[..., Any]:
    return lambda builder, address: builder.load(builder.inttoptr(address, kind.as_pointer()), align=bits // 8)


def _stored(bits: int) -> Callable[..., Any]:
    def emit(builder: Any, address: Any, value: Any) -> None:
        builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=bits // 8)

    return emit


def _prefetch(builder: Any, address: Any) -> None:
    pointer = ir.IntType(8).as_pointer()
    function_type = ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32])
    name = "llvm.prefetch.p0"
    function = builder.module.globals.get(name) or ir.Function(builder.module, function_type, name)
    builder.call(function, [builder.inttoptr(address, pointer), _I32(0), _I32(3), _I32(1)])  # to read, near, data


def _splat(kind: Vector) -> Callable[..., Any]:
    def emit(builder: Any, value: Any) -> Any:
        one = builder.insert_element(ir.Constant(kind.llvm, ir.Undefined), value, _I32(0))
        return builder.shuffle_vector(one, one, _constant(I32, 0))

    return emit


def _chosen(compare: str) -> Callable[..., Any]:
    # not LLVM's minnum and maxnum, whose care about NaN keeps it from one instruction
    return lambda builder, a, b: builder.select(builder.fcmp_ordered(compare, a, b), a, b)


def _load_bfloat16(builder: Any, address: Any) -> Any:
    wide = builder.zext(_loaded(_WORDS, 16)(builder, address), I32.llvm)
    return builder.bitcast(builder.shl(wide, _constant(I32, 16)), F32.llvm)


def _load_widened(builder: Any, address: Any) -> Any:
    # by halves: of all 16 at once LLVM makes a load and moves the upper half, which conversion straight from memory spares
    half, wide = ir.VectorType(ir.FloatType(), LANES // 2), ir.VectorType(ir.DoubleType(), LANES // 2)
    low, high = (
        builder.fpext(_loaded(half, 32)(builder, builder.add(address, ir.IntType(64)(place))), wide)
        for place in (0, 2 * LANES)
    )
    return builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(_I32, LANES), list(range(LANES))))


def _add_if_positive(builder: Any, total: Any, wide: Any, x: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", x, _constant(F32, 0.0)), builder.fadd(total, wide), total)


def _add_positive(builder: Any, count: Any, x: Any) -> Any:
    more = builder.add(count, _constant(I32, 1))
    return builder.select(builder.fcmp_ordered(">", x, _constant(F32, 0.0)), more, count)


def _any_less(builder: Any, a: Any, b: Any) -> Any:
    found = builder.bitcast(builder.fcmp_ordered("<", a, b), ir.IntType(LANES))
    return builder.icmp_unsigned("!=", found, ir.IntType(LANES)(0))


_I32, _HALVES = ir.IntType(32), ir.VectorType(ir.HalfType(), LANES)
_BYTES, _WORDS = ir.VectorType(ir.IntType(8), LANES), ir.VectorType(ir.IntType(16), LANES)
_AT = types.uint64

splat32 = _function((types.float32,), F32, _splat(F32))
"""The same float32 in all lanes."""
splat64 = _function((types.float64,), F64, _splat(F64))
splat_int = _function((types.int32,), I32, _splat(I32))
load32, store32 = _function((_AT,), F32, _loaded(F32.llvm, 32)), _function((_AT, F32), types.void, _stored(32))
load64, store64 = _function((_AT,), F64, _loaded(F64.llvm, 64)), _function((_AT, F64), types.void, _stored(64))
load_int, store_int = _function((_AT,), I32, _loaded(I32.llvm, 32)), _function((_AT, I32), types.void, _stored(32))
prefetch = _function((_AT,), types.void, _prefetch)
"""Ask for a cache line that is needed soon."""
load_row = _function((_AT,), types.uint32, _loaded(_I32, 32))
"""One row number."""
load_codes = _function((_AT,), F32, lambda builder, at: builder.sitofp(_loaded(_BYTES, 8)(builder, at), F32.llvm))
"""16 int8 as float32."""
load_float16 = _function((_AT,), F32, lambda builder, at: builder.fpext(_loaded(_HALVES, 16)(builder, at), F32.llvm))
load_bfloat16 = _function((_AT,), F32, _load_bfloat16)
store_bytes = _function(
    (_AT, I32), types.void, lambda builder, at, value: _stored(8)(builder, at, builder.trunc(value, _BYTES))
)
"""The lowest eight bits of every lane."""
smaller, larger = _function((F32, F32), F32, _chosen("<")), _function((F32, F32), F32, _chosen(">"))
absolute32, absolute64 = _function((F32,), F32, _call("fabs", F32)), _function((F64,), F64, _call("fabs", F64))
floor32 = _function((F32,), F32, _call("floor", F32))
with_sign = _function((F32, F32), F32, _call("copysign", F32))
multiply_add32 = _function((F32, F32, F32), F32, _call("fmuladd", F32))
multiply_add = _function((F64, F64, F64), F64, _call("fmuladd", F64))
"""a·b + c, in one instruction where there is one."""
load_widened = _function((_AT,), F64, _load_widened)
"""16 float32 as float64."""
half_rounded = _function((F32,), F32, lambda builder, x: builder.fpext(builder.fptrunc(x, _HALVES), F32.llvm))
"""To the nearest float16 and back."""
power_of_two = _function(
    (F32,), F32,
    lambda builder, e: builder.bitcast(
        builder.shl(builder.add(builder.fptosi(e, I32.llvm), _constant(I32, 127)), _constant(I32, 23)), F32.llvm
    ),
)  # fmt: skip
"""2**e of whole numbers."""
bits32 = _function((F32,), I32, lambda builder, x: builder.bitcast(x, I32.llvm))
shifted_right = _function((I32, I32), I32, lambda builder, x, by: builder.lshr(x, by))
add_positive = _function((I32, F32), I32, _add_positive)
"""One more in every lane whose float is above zero."""
add_less = _function(
    (I32, I32, I32), I32,
    lambda builder, n, a, b: builder.sub(n, builder.sext(builder.icmp_signed("<", a, b), I32.llvm)),
)  # fmt: skip
"""One more in every lane where the second is less than the third."""
if_less = _function(
    (I32, I32, I32, I32), I32,
    lambda builder, a, b, yes, no: builder.select(builder.icmp_signed("<", a, b), yes, no),
)  # fmt: skip
add_if_positive = _function((F64, F64, F32), F64, _add_if_positive)
"""a + b in every lane where the third is above zero, a elsewhere."""
if_positive = _function(
    (F32, I32, I32), I32,
    lambda builder, x, yes, no: builder.select(builder.fcmp_ordered(">", x, _constant(F32, 0.0)), yes, no),
)  # fmt: skip
if_positive32 = _function(
    (F32, F32, F32), F32,
    lambda builder, x, yes, no: builder.select(builder.fcmp_ordered(">", x, _constant(F32, 0.0)), yes, no),
)  # fmt: skip
if_zero = _function(
    (F32, I32, I32), I32,
    lambda builder, x, yes, no: builder.select(builder.fcmp_ordered("==", x, _constant(F32, 0.0)), yes, no),
)  # fmt: skip
any_less32, any_less64 = _function((F32, F32), types.boolean, _any_less), _function((F64, F64), types.boolean, _any_less)
"""Whether a < b in any lane."""


def _count_lanes(builder: Any, bins: Any, table: Any) -> None:
    # words of eight bins, not a vector: its lanes would have to be taken out one by one
    word, entry = ir.IntType(64), ir.IntType(16)
    for lane in range(LANES):
        if lane % 8 == 0:
            eight = builder.load(builder.inttoptr(builder.add(bins, word(lane)), word.as_pointer()), align=8)
        place = lane % 8 if sys.byteorder == "little" else 7 - lane % 8
        one = builder.and_(builder.lshr(eight, word(8 * place)), word(255))
        address = builder.add(builder.add(table, word(lane * 512)), builder.shl(one, word(1)))
        pointer = builder.inttoptr(address, entry.as_pointer())
        builder.store(builder.add(builder.load(pointer), entry(1)), pointer)


count_lanes = _function((_AT, _AT), types.void, _count_lanes)
"""Count 16 bins (uint8, at an address that is a multiple of 8) in 16 tables of 256 uint16 that follow each other."""
