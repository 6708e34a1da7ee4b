"""Several fp32 numbers at a time in functions that Numba compiles, of which loops over patches and pixels are made.

Numba's own vectorizer leaves sums over patches of 8x8 at a quarter of the rate that these reach.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, event, types
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable
from torch import Tensor
from torch.nn import functional as F

from ugsp_net import cpu

_FAST = ("reassoc", "contract", "nsz")
_OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": set(_FAST), "error_model": "numpy"}


class _Announcer(event.Listener):
    def on_start(self, event: Any) -> None:
        while cpu.before_compiling:
            cpu.before_compiling.pop()()

    def on_end(self, event: Any) -> None:
        pass


event.register("numba:compile", _Announcer())


def inlined(function: Callable[..., Any]) -> Any:
    """The function as part of what calls it. It can make no arrays."""
    return numba.njit(forceinline=True, _nrt=False, **_OPTIONS)(function)


def compiled(function: Callable[..., Any]) -> Any:
    """The function as machine code, made when it is first called and kept for later runs where a folder can be
    written. It lets other threads of Python run meanwhile. Sums may be taken in any order. It can make no arrays, so
    nobody counts who uses which: to try a flow took half as long again where each call of a function counted.

    What is kept knows its own file's date alone: constants of other files belong among the arguments.
    """
    return _kept(function, _nrt=False)


def allocating(function: Callable[..., Any]) -> Any:
    """The same of a function that makes arrays."""
    return _kept(function)


def _kept(function: Callable[..., Any], **options: Any) -> Any:
    try:
        return numba.njit(cache=True, **options, **_OPTIONS)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return numba.njit(**options, **_OPTIONS)(function)


def plain(values: Tensor) -> Any:
    """A tensor as an array whose elements lie one behind the other: functions are compiled anew for every layout, and
    are slow where rows are not of one piece."""
    return values.contiguous().numpy()


def as_array(values: Tensor) -> Any:
    """A tensor as an array of the same layout. NumPy has no bf16: such becomes int16 of the same bits, which ``load``
    and ``store`` know."""
    return (values.view(torch.int16) if values.dtype == torch.bfloat16 else values).numpy()


def by_eight(feature: Tensor) -> Tensor:
    """A map [B, C, H, W] whose channels lie one behind the other, with zeros up to a multiple of eight of them; itself
    where it is like that."""
    if feature.stride(1) == 1 and feature.shape[1] % 8 == 0:
        return feature
    return F.pad(feature.permute(0, 2, 3, 1), (0, -feature.shape[1] % 8)).contiguous().permute(0, 3, 1, 2)


def flat(planes: Tensor) -> tuple[Any, int, int]:
    """Planes [C, H, W] as one line of numbers [1, N], as ``as_array`` has them, and how many numbers lie from plane to
    plane and from row to row: one kind of array for whole pictures and parts of them, since each kind takes seconds to
    compile. A copy where rows are not of one piece, so what is to be written to must have such."""
    planes = planes if planes.stride(2) == 1 else planes.contiguous()
    plane, row = planes.stride(0), planes.stride(1)
    length = (len(planes) - 1) * plane + (planes.shape[1] - 1) * row + planes.shape[2]
    return as_array(planes.as_strided((1, length), (length, 1))), plane, row


class _Vector(types.Type):
    """So many fp32 numbers."""

    def __init__(self, lanes: int) -> None:
        super().__init__(name=f"float32x{lanes}")
        self.lanes = lanes
        self.ir = ir.VectorType(ir.FloatType(), lanes)


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    """In one register, where the processor has such."""

    def __init__(self, manager: Any, kind: _Vector) -> None:
        super().__init__(manager, kind, kind.ir)


def _loads(vector: _Vector) -> Any:
    whole = ir.VectorType(ir.IntType(32), vector.lanes)

    @intrinsic
    def load(_context: Any, source: Any, row: Any, column: Any) -> Any:
        """Neighbours in a row of an array [H, W], the first at (row, column): fp32, or bf16 where the array is one of
        int16. Nothing is checked."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = _place(context, builder, signature.args[0], arguments[0], arguments[1:])
            halves = signature.args[0].dtype == types.int16
            kind = ir.VectorType(ir.IntType(16), vector.lanes) if halves else vector.ir
            found = builder.load(builder.bitcast(place, kind.as_pointer()))
            found.align = 2 if halves else 4
            if not halves:
                return found
            # A bf16 is the upper half of an fp32.
            wide = builder.shl(builder.zext(found, whole), ir.Constant(whole, [16] * vector.lanes))
            return builder.bitcast(wide, vector.ir)

        return vector(source, types.intp, types.intp), generate

    return load


def _repeats(vector: _Vector) -> Any:
    @intrinsic
    def same(_context: Any, _value: Any) -> Any:
        """One number in every lane."""

        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return _repeated(builder, arguments[0], vector)

        return vector(types.float32), generate

    return same


def _repeated(builder: Any, value: Any, vector: _Vector) -> Any:
    undefined, index = ir.Constant(vector.ir, ir.Undefined), ir.IntType(32)
    one = builder.insert_element(undefined, value, ir.Constant(index, 0))
    lanes = ir.Constant(ir.VectorType(index, vector.lanes), [0] * vector.lanes)
    return builder.shuffle_vector(one, undefined, lanes)


@intrinsic
def pack(_context: Any, _a: Any, _b: Any, _c: Any, _d: Any, _e: Any, _f: Any, _g: Any, _h: Any) -> Any:
    """Eight numbers in the lanes of a vector."""
    return _EIGHT(*8 * [types.float32]), _packed(_EIGHT)


@intrinsic
def pack4(_context: Any, _a: Any, _b: Any, _c: Any, _d: Any) -> Any:
    """Four numbers in the lanes of a vector."""
    return _FOUR(*4 * [types.float32]), _packed(_FOUR)


def _packed(vector: _Vector) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        made = ir.Constant(vector.ir, ir.Undefined)
        for lane, value in enumerate(arguments):
            made = builder.insert_element(made, value, ir.Constant(ir.IntType(32), lane))
        return made

    return generate


def _same_loads(vector: _Vector) -> Any:
    @intrinsic
    def load_same(_context: Any, source: Any, row: Any, column: Any) -> Any:
        """The number at (row, column) of an fp32 array [H, W] in every lane. Nothing is checked: an index of an array
        that may be negative costs more than what is done with it."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = _place(context, builder, signature.args[0], arguments[0], arguments[1:])
            return _repeated(builder, builder.load(place), vector)

        return vector(source, types.intp, types.intp), generate

    return load_same


@intrinsic
def number(_context: Any, source: Any, row: Any, column: Any) -> Any:
    """The number at (row, column) of an array [H, W], as ``load`` reads it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        found = builder.load(_place(context, builder, signature.args[0], arguments[0], arguments[1:]))
        if signature.args[0].dtype != types.int16:
            return found
        whole = ir.IntType(32)
        return builder.bitcast(builder.shl(builder.zext(found, whole), ir.Constant(whole, 16)), ir.FloatType())

    return types.float32(source, types.intp, types.intp), generate


_SIXTEEN, _EIGHT, _FOUR = _Vector(16), _Vector(8), _Vector(4)
load16, load, load4 = _loads(_SIXTEEN), _loads(_EIGHT), _loads(_FOUR)
same16, same, same4 = _repeats(_SIXTEEN), _repeats(_EIGHT), _repeats(_FOUR)
load_same16, load_same = _same_loads(_SIXTEEN), _same_loads(_EIGHT)


def _place(context: Any, builder: Any, kind: Any, array: Any, indices: Any) -> Any:
    return cgutils.get_item_pointer(
        context, builder, kind, context.make_array(kind)(context, builder, array), list(indices)
    )


@intrinsic
def store(_context: Any, vector: Any, target: Any, row: Any, column: Any) -> Any:
    """Write neighbours in a row of an array [H, W], the first at (row, column), or one number: as fp32, or rounded to
    bf16 where the array is one of int16. Nothing is checked."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place, made = _place(context, builder, signature.args[1], arguments[1], arguments[2:]), arguments[0]
        align = 4
        if signature.args[1].dtype == types.int16:
            made, align = _halved(builder, made), 2
        builder.store(made, builder.bitcast(place, made.type.as_pointer())).align = align
        return context.get_dummy_value()

    return types.void(vector, target, types.intp, types.intp), generate


def _halved(builder: Any, made: Any) -> Any:
    """fp32 numbers as bf16, the nearest or, of two, the even one. What is no number stays one while its upper half has
    any bit to tell so, as those that arithmetic makes have."""

    lanes = made.type.count if isinstance(made.type, ir.VectorType) else 0

    def of(bits: int) -> Any:
        return ir.VectorType(ir.IntType(bits), lanes) if lanes else ir.IntType(bits)

    def like(kind: Any, value: int) -> Any:
        return ir.Constant(kind, [value] * lanes if lanes else value)

    whole = of(32)
    bits = builder.bitcast(made, whole)
    odd = builder.and_(builder.lshr(bits, like(whole, 16)), like(whole, 1))
    rounded = builder.add(bits, builder.add(odd, like(whole, 0x7FFF)))
    kept = builder.select(builder.fcmp_unordered("uno", made, made), bits, rounded)
    return builder.trunc(builder.lshr(kept, like(whole, 16)), of(16))


@intrinsic
def load_pairs(_context: Any, source: Any, start: Any, places: Any, row: Any, column: Any) -> Any:
    """Of a line of an fp32 array [1, N], at eight places after ``start``, the numbers there and those after them. The
    places are neighbours in a row of an int32 array, the first at (row, column). Nothing is checked.

    Both numbers of a place are read at once, which takes a third of the time of a gather of each."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zero = ir.Constant(ir.IntType(64), 0)
        begin = _place(context, builder, signature.args[0], arguments[0], (zero, arguments[1]))
        first = _place(context, builder, signature.args[2], arguments[2], arguments[3:])
        both = ir.VectorType(ir.DoubleType(), 4)
        halves = []
        # In an order in which no number has to change the half of its register.
        for order in ((0, 1, 4, 5), (2, 3, 6, 7)):
            read = ir.Constant(both, ir.Undefined)
            for lane, number in enumerate(order):
                offset = builder.load(builder.gep(first, [ir.Constant(ir.IntType(32), number)]))
                place = builder.gep(begin, [builder.sext(offset, ir.IntType(64))])
                pair = builder.load(builder.bitcast(place, ir.DoubleType().as_pointer()))
                pair.align = 4
                read = builder.insert_element(read, pair, ir.Constant(ir.IntType(32), lane))
            halves.append(builder.bitcast(read, _EIGHT.ir))
        made = []
        for odd in (0, 1):
            lanes = [odd, odd + 2, odd + 8, odd + 10, odd + 4, odd + 6, odd + 12, odd + 14]
            made.append(builder.shuffle_vector(*halves, ir.Constant(ir.VectorType(ir.IntType(32), 8), lanes)))
        return context.make_tuple(builder, signature.return_type, made)

    return types.UniTuple(_EIGHT, 2)(source, types.intp, places, types.intp, types.intp), generate


@intrinsic
def every_second(_context: Any, _vector: Any) -> Any:
    """The first, the third, the fifth and the seventh of eight numbers."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), 4), [0, 2, 4, 6])
        return builder.shuffle_vector(arguments[0], arguments[0], lanes)

    return _FOUR(_EIGHT), generate


@intrinsic
def fetch(_context: Any, source: Any, column: Any) -> Any:
    """Bring a number of a line of an fp32 array [1, N] into the cache. Nothing is checked, nor has it to be there."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zero = ir.Constant(ir.IntType(64), 0)
        place = _place(context, builder, signature.args[0], arguments[0], (zero, arguments[1]))
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        of = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, of, "llvm.prefetch.p0")
        how = [ir.Constant(number, value) for value in (0, 3, 1)]
        builder.call(function, [builder.bitcast(place, byte), *how])
        return context.get_dummy_value()

    return types.void(source, types.intp), generate


@intrinsic
def total(_context: Any, vector: Any) -> Any:
    """The sum of the lanes, fp32."""

    def generate(_context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0]
        of = ir.FunctionType(ir.FloatType(), [ir.FloatType(), kind.ir])
        reduce = cgutils.get_or_insert_function(builder.module, of, f"llvm.vector.reduce.fadd.v{kind.lanes}f32")
        return builder.call(reduce, [ir.Constant(ir.FloatType(), 0.0), arguments[0]], fastmath=("reassoc",))

    return types.float32(vector), generate


@intrinsic
def totals(_context: Any, _vectors: Any) -> Any:
    """The sums of the lanes of eight vectors, in as many lanes: a third of the instructions of eight ``total``."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        vectors = cgutils.unpack_tuple(builder, arguments[0], 8)

        def added(one: Any, other: Any, lanes: list[int], more: list[int]) -> Any:
            kind = ir.VectorType(ir.IntType(32), 8)
            halves = (builder.shuffle_vector(one, other, ir.Constant(kind, some)) for some in (lanes, more))
            return builder.fadd(*halves, flags=_FAST)

        for lanes, more in (
            ([0, 8, 2, 10, 4, 12, 6, 14], [1, 9, 3, 11, 5, 13, 7, 15]),
            ([0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]),
            ([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]),
        ):
            vectors = [added(*pair, lanes, more) for pair in zip(vectors[::2], vectors[1::2], strict=True)]
        return vectors[0]

    return _EIGHT(types.UniTuple(_EIGHT, 8)), generate


@intrinsic
def lane(_context: Any, vector: Any, _index: Any) -> Any:
    """One of the numbers of a vector."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.extract_element(*arguments)

    return types.float32(vector, types.intp), generate


@inlined
def exp(x: float) -> Any:
    """e to the power of x, -87 to 87, within 2e-7 of it: Numba's own is a call for each number."""
    times = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    rest = x - times * np.float32(0.693359375) + times * np.float32(2.12194440e-4)
    power = np.float32(1.9875691500e-4)
    power = power * rest + np.float32(1.3981999507e-3)
    power = power * rest + np.float32(8.3334519073e-3)
    power = power * rest + np.float32(4.1665795894e-2)
    power = power * rest + np.float32(1.6666665459e-1)
    power = power * rest + np.float32(5.0000001201e-1)
    power = power * rest * rest + rest + np.float32(1)
    return power * np.int32((np.int32(times) + np.int32(127)) << np.int32(23)).view(np.float32)


@intrinsic
def largest(_context: Any, vector: Any, _other: Any) -> Any:
    """The larger of two, lane by lane."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *arguments, flags=_FAST), *arguments)

    return vector(vector, vector), generate


def _arithmetic(operation: Any, instruction: str) -> None:
    """The operator between two vectors of as many lanes."""

    def typer(_context: Any) -> Any:
        def of(left: Any, right: Any) -> Any:
            return left if isinstance(left, _Vector) and left == right else None

        return of

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return getattr(builder, instruction)(*arguments, flags=_FAST)

    type_callable(operation)(typer)
    for vector in (_SIXTEEN, _EIGHT, _FOUR):
        lower_builtin(operation, vector, vector)(generate)


for _operation, _in_place, _instruction in (
    (operator.add, operator.iadd, "fadd"),
    (operator.sub, operator.isub, "fsub"),
    (operator.mul, operator.imul, "fmul"),
    (operator.truediv, operator.itruediv, "fdiv"),
):
    _arithmetic(_operation, _instruction)
    _arithmetic(_in_place, _instruction)
