"""What a layer does to each row between its products: norms, rotations and gates, each one call.

Every row is computed by itself, a vector at a time, its end behind a mask: rows are bit-equal by
construction. All arithmetic is in float32; results are rounded once to the type of the model.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from llvmlite import ir

from turbo_runtime.models.compiled.code import (
    COUNT,
    FLOAT,
    UNIT,
    Code,
    Compiled,
    compile_functions,
    declare,
    define,
)

LANES = 16
_POINTERS = ("x", "residual", "out", "weight", "cos", "sin", "positions")
_COUNTS = (
    *("rows", "width", "x_row", "residual_row", "out_row", "heads", "head_step", "turned", "table_row"),
    *("share", "taken"),
)


class Arguments(ctypes.Structure):
    """Addresses, counts, and distances in elements."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _COUNTS),
        ("epsilon", ctypes.c_float),
    )


class Elementwise(NamedTuple):
    """Compiled for a type of elements."""

    norm: Compiled  # out = RMSNorm(x)
    add_norm: Compiled  # x += residual; out = RMSNorm(x)
    rotate: Compiled  # of the first `turned` elements of each head, in place
    gate: Compiled  # out = SiLU(x[:width]) * x[width:]


@cache
def compile_elementwise(bfloat16: bool) -> Elementwise:
    """Compile them for float32 or bfloat16."""
    module = ir.Module("elementwise")
    for name, body in (("norm", _norm), ("add_norm", _add_norm), ("rotate", _rotate), ("gate", _gate)):
        _write(module, bfloat16, name, body)
    return Elementwise(*compile_functions(module, Arguments, *Elementwise._fields))


class _Row(Code):
    """Writes a function of rows."""

    def __init__(self, function: ir.Function, bfloat16: bool) -> None:
        super().__init__(function, LANES, bfloat16=bfloat16)
        self.its = self.arguments(Arguments)

    def row(self, name: str, number: ir.Value) -> ir.Value:
        """Return where a row of an array begins."""
        return self.at(self.its[name], self.mul(number, self.its[f"{name}_row"]), self.element)

    def vectors(self, width: ir.Value) -> ir.Value:
        """How many vectors hold so many elements."""
        return self.udiv(self.add(width, COUNT(LANES - 1)), COUNT(LANES))

    def masked(self, number: ir.Value, width: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Where a vector begins among so many elements, and which of its lanes lie within them."""
        first = self.mul(number, COUNT(LANES))
        left = self.splat(self.trunc(self.sub(width, first), UNIT))
        return first, self.icmp_signed("<", self.integers(*range(LANES)), left)

    def get(self, row: ir.Value, index: ir.Value, mask: ir.Value) -> ir.Value:
        """Load a vector as floats; zeros behind its end."""
        return self.widened(self.masked_load(self.elements, self.at(row, index, self.element), mask))

    def put(self, floats: ir.Value, row: ir.Value, index: ir.Value, mask: ir.Value) -> ir.Value:
        """Store a vector up to its end; the same as it was rounded."""
        rounded = self.rounded(floats)
        self.masked_store(rounded, self.at(row, index, self.element), mask)
        return self.widened(rounded)

    def get_floats(self, pointer: ir.Value, index: ir.Value, mask: ir.Value) -> ir.Value:
        """Load a vector of float32."""
        return self.masked_load(self.floats, self.at(pointer, index, FLOAT), mask)


def _write(module: ir.Module, bfloat16: bool, name: str, body: Callable[[_Row, ir.Value], None]) -> None:
    """A function that takes shares of the rows until none is left."""
    code = _Row(define(module, name), bfloat16)
    with code.shares(code.its, code.its["rows"]) as row:
        body(code, row)
    code.ret_void()


def _norm(code: _Row, row: ir.Value) -> None:
    _normalize(code, row, added=False)


def _add_norm(code: _Row, row: ir.Value) -> None:
    _normalize(code, row, added=True)


def _normalize(code: _Row, row: ir.Value, *, added: bool) -> None:
    """x / sqrt(mean(x²) + epsilon) * weight, after adding the residual to x."""
    its, width = code.its, code.its["width"]
    x, out = code.row("x", row), code.row("out", row)
    residual = code.row("residual", row) if added else None
    squares = code.variable(code.floats)
    code.store(code.constant(0.0), squares)
    with code.loop(COUNT(0), code.vectors(width)) as number:
        index, mask = code.masked(number, width)
        values = code.get(x, index, mask)
        if residual is not None:
            values = code.put(code.fadd(values, code.get(residual, index, mask)), x, index, mask)
        total = code.load(squares, typ=code.floats)
        code.store(code.multiply_add(values, values, total), squares)
    total = code.reduce(code.load(squares, typ=code.floats), code.fadd)
    mean = code.fadd(code.fdiv(total, code.sitofp(width, FLOAT)), its["epsilon"])
    root = code.call(declare(code.module, "llvm.sqrt.f32", FLOAT, FLOAT), [mean])
    scale = code.splat(code.fdiv(FLOAT(1.0), root))
    with code.loop(COUNT(0), code.vectors(width)) as number:
        index, mask = code.masked(number, width)
        scaled = code.fmul(code.get(x, index, mask), scale)
        code.put(code.fmul(scaled, code.get_floats(its["weight"], index, mask)), out, index, mask)


def _rotate(code: _Row, row: ir.Value) -> None:
    """Rotate pairs half of `turned` apart, by the row of the tables that is its position."""
    its = code.its
    half = code.udiv(its["turned"], COUNT(2))
    offset = code.mul(code.read(its["positions"], COUNT, row), its["table_row"])
    cos, sin = (code.at(its[name], offset, code.element) for name in ("cos", "sin"))
    with code.loop(COUNT(0), its["heads"]) as head:
        x = code.at(code.row("x", row), code.mul(head, its["head_step"]), code.element)
        with code.loop(COUNT(0), code.vectors(half)) as number:
            index, mask = code.masked(number, half)
            other = code.add(index, half)
            first, second = code.get(x, index, mask), code.get(x, other, mask)
            c, s = code.get(cos, index, mask), code.get(sin, other, mask)
            turned = code.fsub(code.fmul(first, c), code.fmul(second, s))
            code.put(code.fadd(code.fmul(second, c), code.fmul(first, s)), x, other, mask)
            code.put(turned, x, index, mask)


def _gate(code: _Row, row: ir.Value) -> None:
    """x * sigmoid(x) of the first half, times the second."""
    width = code.its["width"]
    x, out = code.row("x", row), code.row("out", row)
    one = code.constant(1.0)
    with code.loop(COUNT(0), code.vectors(width)) as number:
        index, mask = code.masked(number, width)
        gate, up = code.get(x, index, mask), code.get(x, code.add(index, width), mask)
        positive = code.fcmp_ordered(">", gate, code.constant(0.0))
        small = code.exponential(code.select(positive, code.fsub(code.constant(0.0), gate), gate))
        share = code.fdiv(code.select(positive, one, small), code.fadd(one, small))
        code.put(code.fmul(code.fmul(gate, share), up), out, index, mask)
