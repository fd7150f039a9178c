"""Vector registers as values inside Numba functions.

A kernel reads `total = total + load_i8(rows, at)` and LLVM keeps `total` in a register: 64 bytes
wide where the processor has AVX-512, two halves or four quarters under AVX2, SSE and NEON. Nothing
here multiplies. Numbers wrap around as two's complement does.
"""

# mypy: disable-error-code="no-untyped-def"

import operator
import platform
from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import config, types
from numba.extending import intrinsic, models, overload, register_model


class Vector(types.Type):
    """A register of numbers: `lanes` of `bits` each, whole or `real`."""

    def __init__(self, bits: int, lanes: int, *, real: bool = False) -> None:
        self.bits = bits
        self.lanes = lanes
        self.real = real
        super().__init__(name=f"{'f' if real else 'i'}{bits}x{lanes}")

    @property
    def key(self) -> tuple[int, int, bool]:
        """What makes two vector types the same."""
        return self.bits, self.lanes, self.real

    @property
    def ir(self) -> Any:
        """The type as LLVM knows it."""
        if self.real:
            return ir.VectorType(ir.FloatType() if self.bits == 32 else ir.DoubleType(), self.lanes)
        return ir.VectorType(ir.IntType(self.bits), self.lanes)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, vector.ir)


I8 = Vector(8, 64)
I16 = Vector(16, 32)
I32 = Vector(32, 16)
I16X16 = Vector(16, 16)
"""A short one, for short lists."""
I64 = Vector(64, 8)
I64X4 = Vector(64, 4)
"""Four words: the four steps of 64 channels."""
# Of real numbers four registers at a time, or what the processor has instead of them.
F32 = Vector(32, 64, real=True)
F64 = Vector(64, 32, real=True)


def has_compress() -> bool:
    """Return whether the processor packs the marked lanes of a vector in one instruction."""
    features = config.CPU_FEATURES
    if features is None:
        return bool(binding.get_host_cpu_features().get("avx512vbmi2", False))
    return "+avx512vbmi2" in features


def has_shift_each() -> bool:
    """Return whether every lane can be shifted by its own number of places in one instruction.

    Old x86 processors can not, and would multiply by a power of two instead.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i686", "x86"):
        return True
    features = config.CPU_FEATURES
    if features is None:
        return bool(binding.get_host_cpu_features().get("avx2", False))
    return "+avx2" in features


# ------------------------------------------------------------------------------ memory


def _address(context, builder, array_type, array, index, vector):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.ir.as_pointer())


def _load(vector: Vector) -> Callable[..., Any]:
    @intrinsic
    def load(_typing, array, index):
        def codegen(context, builder, signature, args):
            address = _address(context, builder, signature.args[0], *args, vector)
            return builder.load(address, align=1)

        return vector(array, types.intp), codegen

    return load


load_i8, load_i16, load_i32, load_i16x16 = _load(I8), _load(I16), _load(I32), _load(I16X16)
load_i64, load_i64x4 = _load(I64), _load(I64X4)
"""(array, index) -> the elements that start at a flat index of a contiguous array."""


@intrinsic
def load_real(_typing, array, index):
    """Return the 256 bytes of float32 or float64 numbers that start at a flat index."""
    vector = _real(array)

    def codegen(context, builder, signature, args):
        address = _address(context, builder, signature.args[0], *args, vector)
        return builder.load(address, align=1)

    return vector(array, types.intp), codegen


@intrinsic
def load_first(_typing, array, index, count):
    """Return what `load_real` does for the first `count` numbers, which alone are read; else 0."""
    vector = _real(array)

    def codegen(context, builder, signature, args):
        address = _address(context, builder, signature.args[0], *args[:2], vector)
        mask = _first(builder, vector, args[2])
        name, line = f"llvm.masked.load.{_name(vector)}.p0", ir.IntType(32)(1)
        kind = ir.FunctionType(vector.ir, [address.type, line.type, mask.type, vector.ir])
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        return builder.call(function, [address, line, mask, ir.Constant(vector.ir, None)])

    return vector(array, types.intp, types.intp), codegen


@intrinsic
def store_first(_typing, array, index, x, count):
    """Write the first `count` numbers of a real vector from a flat index on, and no others."""

    def codegen(context, builder, signature, args):
        address = _address(context, builder, signature.args[0], args[0], args[1], x)
        mask = _first(builder, x, args[3])
        name, line = f"llvm.masked.store.{_name(x)}.p0", ir.IntType(32)(1)
        kind = ir.FunctionType(ir.VoidType(), [x.ir, address.type, line.type, mask.type])
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        builder.call(function, [args[2], address, line, mask])
        return context.get_dummy_value()

    return types.void(array, types.intp, x, types.intp), codegen


def _real(array):
    return F32 if array.dtype == types.float32 else F64


def _name(vector: Vector) -> str:
    return f"v{vector.lanes}f{vector.bits}"


def _first(builder, vector, count):
    numbers = ir.VectorType(ir.IntType(64), vector.lanes)
    places = ir.Constant(numbers, list(range(vector.lanes)))
    empty = ir.Constant(numbers, ir.Undefined)
    nowhere = ir.Constant(ir.VectorType(ir.IntType(32), vector.lanes), [0] * vector.lanes)
    counted = builder.insert_element(empty, count, ir.IntType(32)(0))
    return builder.icmp_signed("<", places, builder.shuffle_vector(counted, empty, nowhere))


@intrinsic
def peek_word(_typing, array, index):
    """Return the 64 bits at a flat index that is known not to be negative."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load(builder.gep(data, [args[1]]))

    return types.uint64(array, types.intp), codegen


@intrinsic
def poke(_typing, array, index, x):
    """Write a number at a flat index that is known not to be negative."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        address = builder.gep(data, [args[1]])
        size = address.type.pointee.width
        number = args[2]
        if number.type.width > size:
            number = builder.trunc(number, ir.IntType(size))
        builder.store(number, address)
        return context.get_dummy_value()

    return types.void(array, types.intp, x), codegen


@intrinsic
def load_four(_typing, array, index):
    """Return four 16-bit numbers from a flat index on, the first in the lowest bits; see `peek`."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        address = builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(64).as_pointer())
        return builder.load(address, align=2)

    return types.int64(array, types.intp), codegen


@intrinsic
def peek(_typing, array, index):
    """Return the number at a flat index that is known not to be negative.

    `array[index]` would first look whether the index counts from the end, which in a short loop
    costs as much as the rest of it.
    """
    signed = array.dtype.signed

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        number = builder.load(builder.gep(data, [args[1]]))
        return (builder.sext if signed else builder.zext)(number, ir.IntType(64))

    return types.int64(array, types.intp), codegen


@intrinsic
def prefetch(_typing, array, index):
    """Ask for the cache line of a flat index to be brought near; do not wait for it."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        address = builder.bitcast(builder.gep(data, [args[1]]), byte)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        # For reading; of middling use, which is the second-level cache; as data.
        builder.call(function, [address, number(0), number(2), number(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic
def store(_typing, array, index, x):
    """Write a vector to the elements that start at a flat index of a contiguous array."""

    def codegen(context, builder, signature, args):
        address = _address(context, builder, signature.args[0], args[0], args[1], x)
        builder.store(args[2], address, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, x), codegen


# ------------------------------------------------------------------------------ arithmetic


def _binary(name: str) -> Callable[..., Any]:
    @intrinsic
    def apply(_typing, x, y):
        return x(x, y), lambda _context, builder, _signature, args: getattr(builder, name)(*args)

    return apply


def _shift(name: str) -> Callable[..., Any]:
    @intrinsic
    def apply(_typing, x, places):
        def codegen(_context, builder, _signature, args):
            count = builder.trunc(args[1], ir.IntType(x.bits))
            return getattr(builder, name)(args[0], _spread(builder, x, count))

        return x(x, types.intp), codegen

    return apply


def _spread(builder, vector, scalar):
    empty = ir.Constant(vector.ir, ir.Undefined)
    first = builder.insert_element(empty, scalar, ir.IntType(32)(0))
    nowhere = ir.Constant(ir.VectorType(ir.IntType(32), vector.lanes), [0] * vector.lanes)
    return builder.shuffle_vector(first, empty, nowhere)


_add, _add_real, _sub = _binary("add"), _binary("fadd"), _binary("sub")
both = _binary("and_")
"""(x, y) -> x AND y, bit by bit."""
either = _binary("or_")
"""(x, y) -> x OR y, bit by bit."""
differ = _binary("xor")
"""(x, y) -> the bits in which x and y differ."""
shift_left, shift_right = _shift("shl"), _shift("ashr")
"""(x, places) -> every lane shifted by the same number of places; right keeps the sign."""
shift_left_each = _binary("shl")
"""(x, places) -> every lane shifted by its own number of places; see `has_shift_each`."""


@overload(operator.add)
def _overload_add(x, y):
    if isinstance(x, Vector) and x == y:
        return (lambda x, y: _add_real(x, y)) if x.real else (lambda x, y: _add(x, y))
    return None


@overload(operator.sub)
def _overload_sub(x, y):
    if isinstance(x, Vector) and x == y:
        return lambda x, y: _sub(x, y)
    return None


def _splat(vector: Vector) -> Callable[..., Any]:
    @intrinsic
    def splat(_typing, x):
        def codegen(_context, builder, _signature, args):
            return _spread(builder, vector, builder.trunc(args[0], ir.IntType(vector.bits)))

        return vector(types.int64), codegen

    return splat


splat_i16, splat_i32, splat_i16x16 = _splat(I16), _splat(I32), _splat(I16X16)
splat_i64, splat_i64x4 = _splat(I64), _splat(I64X4)
"""x -> a vector with x in every lane."""


# ------------------------------------------------------------------------------ shapes


@intrinsic
def as_i16(_typing, x):
    """Read 64 bytes as 32 numbers of 16 bits: the odd bytes become the upper halves."""
    return I16(x), lambda _context, builder, _signature, args: builder.bitcast(args[0], I16.ir)


@intrinsic
def as_i32(_typing, x):
    """Read 32 numbers of 16 bits as 16 of 32: the odd ones become the upper halves."""
    return I32(x), lambda _context, builder, _signature, args: builder.bitcast(args[0], I32.ir)


def _widened(half: int) -> Callable[..., Any]:
    @intrinsic
    def widen(_typing, x):
        def codegen(_context, builder, _signature, args):
            lanes = list(range(16 * half, 16 * half + 16))
            chosen = ir.Constant(ir.VectorType(ir.IntType(32), 16), lanes)
            return builder.sext(builder.shuffle_vector(args[0], args[0], chosen), I32.ir)

        return I32(x), codegen

    return widen


low_half, high_half = _widened(0), _widened(1)
"""32 numbers of 16 bits -> the first or the last 16 of them, in 32 bits."""


# ------------------------------------------------------------------------------ comparisons


@intrinsic
def at_least(_typing, x, y):
    """Return x >= y, lane by lane: a vector of single bits."""
    mask = Vector(1, x.lanes)
    return mask(x, y), lambda _context, builder, _signature, args: builder.icmp_signed(">=", *args)


@intrinsic
def positive(_typing, x):
    """Return x > 0, lane by lane, for real x: a vector of single bits."""
    mask = Vector(1, x.lanes)

    def codegen(_context, builder, _signature, args):
        return builder.fcmp_ordered(">", args[0], ir.Constant(x.ir, None))

    return mask(x), codegen


@intrinsic
def equal(_typing, x, y):
    """Return x == y, lane by lane: a vector of single bits."""
    mask = Vector(1, x.lanes)
    return mask(x, y), lambda _context, builder, _signature, args: builder.icmp_signed("==", *args)


@intrinsic
def select(_typing, mask, x, y):
    """Return x where the mask is set, elsewhere y."""
    return x(mask, x, y), lambda _context, builder, _signature, args: builder.select(*args)


@intrinsic
def bits_of(_typing, mask):
    """Return up to 64 single bits as one number; lane 0 is its lowest bit."""

    def codegen(_context, builder, _signature, args):
        number = builder.bitcast(args[0], ir.IntType(mask.lanes))
        return number if mask.lanes == 64 else builder.zext(number, ir.IntType(64))

    return types.uint64(mask), codegen


@intrinsic
def mask_32(_typing, bits):
    """Return the lower 32 bits of a number as a vector of single bits."""
    mask = Vector(1, 32)

    def codegen(_context, builder, _signature, args):
        return builder.bitcast(builder.trunc(args[0], ir.IntType(32)), mask.ir)

    return mask(types.uint64), codegen


@intrinsic
def compress(_typing, x, mask):
    """Move the marked lanes of x to its front; what follows them is undefined."""

    def codegen(_context, builder, _signature, args):
        name = f"llvm.experimental.vector.compress.v{x.lanes}i{x.bits}"
        single = ir.VectorType(ir.IntType(1), x.lanes)
        function = builder.module.globals.get(name) or ir.Function(
            builder.module, ir.FunctionType(x.ir, [x.ir, single, x.ir]), name
        )
        return builder.call(function, [*args, ir.Constant(x.ir, ir.Undefined)])

    return x(x, mask), codegen


# ------------------------------------------------------------------------------ single numbers


@intrinsic
def count_bits(_typing, x):
    """Return how many bits of a 64-bit number are set."""
    return types.int64(types.uint64), lambda _context, builder, _signature, args: builder.ctpop(
        args[0]
    )


@intrinsic
def lowest_bit(_typing, x):
    """Return the place of the lowest set bit; the number must not be zero."""

    def codegen(_context, builder, _signature, args):
        return builder.cttz(args[0], ir.IntType(1)(1))

    return types.int64(types.uint64), codegen
