"""What the code that draws tokens is written with: rows of logits in blocks, and the noise of `noise.py`."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from contextlib import contextmanager

from llvmlite import ir

from turbo_runtime.models.compiled.code import COUNT, FLOAT, HALF_UNIT, POINTER, UNIT, Code, declare
from turbo_runtime.sampling.noise import BLOCK, GOLDEN, MIX_1, MIX_2, UNIFORM_BITS, signed

LANES = 16
VECTORS = BLOCK // LANES  # of a block
BIT, BYTE, DOUBLE = ir.IntType(1), ir.IntType(8), ir.DoubleType()


class Arguments(ctypes.Structure):
    """Addresses and counts: of logits (any, vocabulary), and of columns (rows,)."""

    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("tokens", ctypes.c_void_p),  # int64, the result
        ("places", ctypes.c_void_p),  # int64, of the rows among the logits
        ("keys", ctypes.c_void_p),  # int64, of the positions' noise
        ("rules", ctypes.c_void_p),  # (rows, 4) float64: temperature, log of min_p, top_k, top_p
        ("mask_of", ctypes.c_void_p),  # int64, which of the masks, or `NOTHING`
        ("masks", ctypes.c_void_p),  # (any, mask_bytes)
        ("mask_bytes", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("vocabulary", ctypes.c_int64),
        ("share", ctypes.c_int64),
        ("taken", ctypes.c_int64),
    )


class RowCode(Code):
    """Writes a function of rows of logits."""

    def __init__(self, function: ir.Function) -> None:
        super().__init__(function, LANES)
        self.vocabulary: ir.Value = None

    def begin(self) -> None:
        """Load the arguments, and make room for the highest logits of a row's blocks."""
        self.its = self.arguments(Arguments)
        self.vocabulary = self.its["vocabulary"]
        self.num_blocks = self.udiv(self.add(self.vocabulary, COUNT(BLOCK - 1)), COUNT(BLOCK))
        groups = self.udiv(self.add(self.num_blocks, COUNT(LANES - 1)), COUNT(LANES))
        self.groups = groups
        self.peaks = self.inttoptr(self.ptrtoint(self.alloca(self.floats, groups), COUNT), POINTER)

    def logits(self, number: ir.Value) -> ir.Value:
        """Return where a row of the logits begins."""
        place = self.read(self.its["places"], COUNT, number)
        return self.at(self.its["logits"], self.mul(place, self.vocabulary), FLOAT)

    def inside(self, first: ir.Value) -> ir.Value:
        """Which lanes of the vector of ids from `first` on lie within the vocabulary."""
        left = self.sub(self.vocabulary, first)
        most = self.select(self.icmp_signed("<", left, COUNT(LANES)), left, COUNT(LANES))
        return self.icmp_signed("<", self.integers(*range(LANES)), self.splat(self.trunc(most, UNIT)))

    def values(self, logits: ir.Value, first: ir.Value) -> ir.Value:
        """Load the logits of a vector of ids; those beyond the vocabulary are -inf."""
        place, beyond = self.at(logits, first, FLOAT), self.constant(-math.inf)
        return self.masked_load(self.floats, place, self.inside(first), beyond)

    @contextmanager
    def set_lanes(self, mask: ir.Value) -> Iterator[ir.Value]:
        """Write the body for each lane that is set."""
        head, body, end = (self.append_basic_block() for _ in range(3))
        left = self.variable(HALF_UNIT)
        self.store(self.bitcast(mask, HALF_UNIT), left)
        self.branch(head)
        self.position_at_end(head)
        bits = self.load(left, typ=HALF_UNIT)
        self.cbranch(self.icmp_unsigned("!=", bits, HALF_UNIT(0)), body, end)
        self.position_at_end(body)
        yield self.zext(self.cttz(bits, BIT(1)), COUNT)
        self.store(self.and_(bits, self.sub(bits, HALF_UNIT(1))), left)
        self.branch(head)
        self.position_at_end(end)

    def count(self, mask: ir.Value, number: ir.Value) -> None:
        """Add the number of set lanes to a variable."""
        ones = self.zext(self.ctpop(self.bitcast(mask, HALF_UNIT)), COUNT)
        self.store(self.add(self.load(number, typ=COUNT), ones), number)

    def mixed(self, bits: ir.Value) -> ir.Value:
        """`noise.mix64` of a number, or of each of a vector."""

        def like(value: int) -> ir.Value:
            if bits.type == COUNT:
                return COUNT(value)
            return ir.Constant(bits.type, [COUNT(value)] * bits.type.count)

        for shift, factor in ((30, MIX_1), (27, MIX_2)):
            bits = self.mul(self.xor(bits, self.lshr(bits, like(shift))), like(signed(factor)))
        return self.xor(bits, self.lshr(bits, like(31)))

    def stepped(self, key: ir.Value, number: ir.Value, sign: int) -> ir.Value:
        """Mixed bits of the state that is so many steps behind the key."""
        steps = self.mul(self.add(number, COUNT(1)), COUNT(signed(sign * GOLDEN)))
        return self.mixed(self.add(key, steps))

    def log(self, value: ir.Value) -> ir.Value:
        """Natural logarithm in float64."""
        return self.call(declare(self.module, "llvm.log.f64", DOUBLE, DOUBLE), [value])

    def exponential_of(self, bits: ir.Value) -> ir.Value:
        """Standard exponential noise of random bits."""
        high = self.lshr(bits, COUNT(64 - UNIFORM_BITS))
        positive = self.select(self.icmp_unsigned("==", high, COUNT(0)), COUNT(1), high)
        uniform = self.fmul(self.uitofp(positive, DOUBLE), DOUBLE(2.0**-UNIFORM_BITS))
        return self.fneg(self.log(uniform))

    def minimum_of(self, block_bits: ir.Value) -> ir.Value:
        """The minimum of a block's exponentials."""
        return self.fmul(self.exponential_of(block_bits), DOUBLE(1.0 / BLOCK))

    def magnitude(self, value: ir.Value) -> ir.Value:
        """|value|, float64."""
        return self.call(declare(self.module, "llvm.fabs.f64", DOUBLE, DOUBLE), [value])


def gumbel_of(module: ir.Module) -> ir.Function:
    """Gumbel noise of a token at a position: of key and id."""
    function = ir.Function(module, ir.FunctionType(DOUBLE, (COUNT, COUNT)), "gumbel")
    function.linkage = "internal"
    code, (key, token) = RowCode(function), function.args
    bits = code.stepped(key, code.udiv(token, COUNT(BLOCK)), -1)
    minimum = code.minimum_of(bits)
    inside = code.and_(code.xor(bits, token), COUNT(BLOCK - 1))
    noise = code.variable(DOUBLE)
    code.store(minimum, noise)
    with code.if_then(code.icmp_unsigned("!=", inside, COUNT(0))):
        code.store(code.fadd(minimum, code.exponential_of(code.stepped(key, token, 1))), noise)
    code.ret(code.fneg(code.log(code.load(noise, typ=DOUBLE))))
    return function


_TALLY = ir.LiteralStructType((DOUBLE, DOUBLE))


def tally_of(module: ir.Module) -> ir.Function:
    """The sum of the probabilities of a row's tokens with a logit above a bound, the likeliest token's being
    1, and their number.
    """
    kinds = (POINTER, POINTER, COUNT, COUNT, FLOAT, FLOAT, FLOAT)
    function = ir.Function(module, ir.FunctionType(_TALLY, kinds), "tally")
    function.linkage = "internal"
    code = RowCode(function)
    logits, peaks, code.vocabulary, num_blocks, top, temperature, bound = function.args
    total, above = code.variable(DOUBLE), code.variable(COUNT)
    code.store(DOUBLE(0.0), total)
    code.store(COUNT(0), above)
    bounds, tops = code.splat(bound), code.splat(top)
    scale = code.splat(code.fdiv(FLOAT(1.0), temperature))
    with (
        code.loop(COUNT(0), num_blocks) as block,
        code.if_then(code.fcmp_ordered(">", code.read(peaks, FLOAT, block), bound)),
    ):
        start, some = code.mul(block, COUNT(BLOCK)), code.constant(0.0)
        for number in range(VECTORS):
            values = code.values(logits, code.add(start, COUNT(number * LANES)))
            higher = code.fcmp_ordered(">", values, bounds)
            chances = code.exponential(code.fmul(code.fsub(values, tops), scale))
            some = code.fadd(some, code.select(higher, chances, code.constant(0.0)))
            code.count(higher, above)
        more = code.fpext(code.reduce(some, code.fadd), DOUBLE)
        code.store(code.fadd(code.load(total, typ=DOUBLE), more), total)
    result = ir.Constant(_TALLY, ir.Undefined)
    result = code.insert_value(result, code.load(total, typ=DOUBLE), 0)
    code.ret(code.insert_value(result, code.sitofp(code.load(above, typ=COUNT), DOUBLE), 1))
    return function
