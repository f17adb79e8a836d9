"""A product of a few rows with weights in panels, compiled at start for the processor at hand.

A panel is as many outputs as two vector registers hold: its weights one input after the other, and its
biases. The kernel reads each panel once, from beginning to end, and keeps the sums of all rows in registers:
up to a dozen rows cost little more than reading the weights does. A sum runs over the inputs in order, in
float32, whatever the number of rows: rows are bit-equal by construction.
`amx_kernel` does the same by Intel's AMX.

What is read is a unit of 32 bits at a time: one input in float32, a pair in bfloat16. Each number of rows has
code of its own. LLVM compiles it within a second, from what follows here.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Literal, NamedTuple

from llvmlite import binding, ir

from turbo_runtime.models.compiled import amx_kernel
from turbo_runtime.models.compiled.code import (
    COUNT,
    FLOAT,
    POINTER,
    UNIT,
    VOID,
    BFloat,
    Code,
    Compiled,
    compile_functions,
    declare,
    define,
    prefetch,
)

Kind = Literal["float32", "bfloat16"]

_VECTORS = 2  # registers of a panel


class Tile(NamedTuple):
    """What fits in the registers: the sums of `rows`, and the weights of a step's units."""

    kind: Kind
    lanes: int  # units of a register
    rows: int
    amx: bool = False
    step: int = 1  # units that are multiplied at once, of which a row has a multiple

    @property
    def panel(self) -> int:
        """Outputs of a panel."""
        return _VECTORS * self.lanes


# By what the processor must have, best first within a kind: AMX's tiles, 32 registers of 16 units, 16 of 8.
_TILES = (
    (
        amx_kernel.NEEDED,
        Tile("bfloat16", amx_kernel.LANES, amx_kernel.ROWS, amx=True, step=amx_kernel.UNITS),
    ),
    (("avx512f",), Tile("float32", 16, 14)),
    (("avx2", "fma"), Tile("float32", 8, 6)),
    (("avx512bf16",), Tile("bfloat16", 16, 14)),
)


class Arguments(ctypes.Structure):
    """What a product reads: addresses, counts, and distances between rows."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("panels", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("units", ctypes.c_int64),  # of a row of x
        ("x_stride", ctypes.c_int64),  # in units
        ("out_stride", ctypes.c_int64),  # in outputs
        ("num_panels", ctypes.c_int64),
        ("share", ctypes.c_int64),  # panels that a thread takes at a time
        ("taken", ctypes.c_int64),  # panels that threads have taken; 0 at first
    )


class PanelKernel(NamedTuple):
    """The compiled product."""

    tile: Tile
    multiply: Compiled  # several threads may share its arguments


@cache
def host_kernel(kind: Kind, units: int) -> PanelKernel:
    """The fastest of this processor for rows of so many units. Raises RuntimeError where there is none."""
    for tile in host_tiles():
        if tile.kind == kind and units % tile.step == 0:
            return compile_kernel(tile)
    raise RuntimeError(f"this processor has no instructions for panels of {kind}")


def host_tiles() -> list[Tile]:
    """Return the tiles that this processor can compute, the fastest first."""
    features = binding.get_host_cpu_features()
    tiles = [tile for needed, tile in _TILES if all(features.get(each) for each in needed)]
    return [tile for tile in tiles if not tile.amx or amx_kernel.request_permission()]


@cache
def compile_kernel(tile: Tile) -> PanelKernel:
    """Compile a tile for this processor."""
    optimized = tile.amx  # of the others, a loop's variables are in registers as it is written
    (multiply,) = compile_functions(build_module(tile), Arguments, "multiply", optimized=optimized)
    return PanelKernel(tile, multiply)


class _Arithmetic:
    """The operations of a tile on its vectors."""

    def __init__(self, module: ir.Module, tile: Tile) -> None:
        self.units, self.sums = ir.VectorType(UNIT, tile.lanes), ir.VectorType(FLOAT, tile.lanes)
        self._single = tile.kind == "float32"
        self.output = FLOAT if self._single else BFloat()
        self._factors = self.sums if self._single else ir.VectorType(self.output, 2 * tile.lanes)
        if self._single:
            name, parameters = f"llvm.fma.v{tile.lanes}f32", (self._factors, self._factors, self.sums)
        else:
            name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * tile.lanes}"
            parameters = (self.sums, self._factors, self._factors)
        self._operation = declare(module, name, self.sums, *parameters)

    def add_product(self, loop: ir.IRBuilder, total: ir.Value, x: ir.Value, weights: ir.Value) -> ir.Value:
        """Return total + x * weights, of sums and two vectors of units."""
        factors = loop.bitcast(x, self._factors), loop.bitcast(weights, self._factors)
        return loop.call(self._operation, (*factors, total) if self._single else (total, *factors))

    def rounded(self, end: ir.IRBuilder, total: ir.Value) -> ir.Value:
        """Return sums as outputs."""
        if self._single:
            return total
        return end.fptrunc(total, ir.VectorType(self.output, self.sums.count))


def build_module(tile: Tile) -> ir.Module:
    """Write the code for a tile."""
    module = ir.Module("panels")
    if tile.amx:
        _multiply(module, tile, BFloat(), amx_kernel.build_panel_function(module))
        return module
    arithmetic = _Arithmetic(module, tile)
    kernels = [_rows_kernel(module, arithmetic, rows) for rows in range(1, tile.rows + 1)]
    _multiply(module, tile, arithmetic.output, _panel_kernel(module, arithmetic, kernels))
    return module


def _rows_kernel(module: ir.Module, arithmetic: _Arithmetic, rows: int) -> ir.Function:
    """Of so many rows and one panel: x, x_stride, panel, units, out, out_stride."""
    kind = ir.FunctionType(VOID, (POINTER, COUNT, POINTER, COUNT, POINTER, COUNT))
    function = ir.Function(module, kind, f"rows_{rows}")
    function.linkage = "internal"
    x, x_stride, panel, units, out, out_stride = function.args
    start, loop, end = (ir.IRBuilder(function.append_basic_block()) for _ in range(3))
    lines = [start.gep(x, [start.mul(x_stride, COUNT(row))], source_etype=UNIT) for row in range(rows)]
    start.branch(loop.block)

    done, at = loop.phi(COUNT), loop.phi(POINTER)
    sums = [[loop.phi(arithmetic.sums) for _ in range(_VECTORS)] for _ in range(rows)]
    places = [loop.gep(at, [COUNT(part)], source_etype=arithmetic.units) for part in range(_VECTORS)]
    for place in places:
        prefetch(loop, place, rows)
    weights = [loop.load(place, typ=arithmetic.units, align=4) for place in places]
    totals = []
    for line, row_sums in zip(lines, sums, strict=True):
        unit = loop.load(loop.gep(line, [done], source_etype=UNIT), typ=UNIT, align=2)
        spread = _spread(loop, unit, arithmetic.units)
        parts = zip(row_sums, weights, strict=True)
        totals.append([arithmetic.add_product(loop, total, spread, part) for total, part in parts])
    following = loop.add(done, COUNT(1))
    behind = loop.gep(at, [COUNT(_VECTORS)], source_etype=arithmetic.units)
    loop.cbranch(loop.icmp_signed("<", following, units), loop.block, end.block)
    for phi, first, then in ((done, COUNT(0), following), (at, panel, behind)):
        phi.add_incoming(first, start.block)
        phi.add_incoming(then, loop.block)

    for row, (row_sums, row_totals) in enumerate(zip(sums, totals, strict=True)):
        line = end.gep(out, [end.mul(out_stride, COUNT(row))], source_etype=arithmetic.output)
        for part, (phi, total) in enumerate(zip(row_sums, row_totals, strict=True)):
            phi.add_incoming(ir.Constant(arithmetic.sums, None), start.block)
            phi.add_incoming(total, loop.block)
            place = end.gep(behind, [COUNT(part)], source_etype=arithmetic.sums)
            biased = end.fadd(total, end.load(place, typ=arithmetic.sums, align=4))
            to = end.gep(line, [COUNT(part * arithmetic.sums.count)], source_etype=arithmetic.output)
            end.store(arithmetic.rounded(end, biased), to, align=2)
    end.ret_void()
    return function


def _spread(builder: ir.IRBuilder, unit: ir.Value, vector: ir.VectorType) -> ir.Value:
    """A vector of equal units."""
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), unit, UNIT(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(UNIT, vector.count), None))


def _panel_kernel(module: ir.Module, arithmetic: _Arithmetic, kernels: list[ir.Function]) -> ir.Function:
    """Of any rows, at least one, and one panel: x, x_stride, panel, units, out, out_stride, rows."""
    kind = ir.FunctionType(VOID, (POINTER, COUNT, POINTER, COUNT, POINTER, COUNT, COUNT))
    function = ir.Function(module, kind, "panel")
    function.linkage = "internal"
    x, x_stride, panel, units, out, out_stride, rows = function.args
    start, loop, joined, end = (ir.IRBuilder(function.append_basic_block()) for _ in range(4))
    # as few passes as there can be, all of about as many rows
    passes = _quotient(start, rows, COUNT(len(kernels)))
    most = _quotient(start, rows, passes)
    start.branch(loop.block)

    first = loop.phi(COUNT)
    left = loop.sub(rows, first)
    count = loop.select(loop.icmp_signed("<", left, most), left, most)
    from_x = loop.gep(x, [loop.mul(first, x_stride)], source_etype=UNIT)
    to_out = loop.gep(out, [loop.mul(first, out_stride)], source_etype=arithmetic.output)
    choice = loop.switch(count, joined.block)
    for number, kernel in enumerate(kernels, 1):
        call = ir.IRBuilder(function.append_basic_block())
        call.call(kernel, [from_x, x_stride, panel, units, to_out, out_stride])
        call.branch(joined.block)
        choice.add_case(COUNT(number), call.block)
    following = joined.add(first, count)
    joined.cbranch(joined.icmp_signed("<", following, rows), loop.block, end.block)
    first.add_incoming(COUNT(0), start.block)
    first.add_incoming(following, joined.block)
    end.ret_void()
    return function


def _quotient(builder: ir.IRBuilder, value: ir.Value, divisor: ir.Value) -> ir.Value:
    """The quotient, rounded up."""
    return builder.sdiv(builder.sub(builder.add(value, divisor), COUNT(1)), divisor)


def _multiply(module: ir.Module, tile: Tile, output: ir.Type, panel_kernel: ir.Function) -> None:
    """`multiply(arguments)`: take shares of the panels until none is left."""
    code = Code(define(module, "multiply"), tile.lanes)
    its = code.arguments(Arguments)
    size = code.mul(code.add(its["units"], COUNT(1)), COUNT(tile.panel))  # with the biases
    with code.shares(its, its["num_panels"]) as number:
        panel = code.at(its["panels"], code.mul(number, size), UNIT)
        to_out = code.at(its["out"], code.mul(number, COUNT(tile.panel)), output)
        given = its["x"], its["x_stride"], panel, its["units"], to_out, its["out_stride"], its["rows"]
        code.call(panel_kernel, given)
    code.ret_void()
