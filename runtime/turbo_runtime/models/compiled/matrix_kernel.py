"""A panel's product on a matrix unit (Intel's AMX), for bfloat16.

Its eight registers hold 16 lines of 64 bytes each. An instruction multiplies 32 inputs of each of 16 rows by
the weights of 16 outputs: it adds up the products at even places and those at odd ones, each in order, and
adds what the two make to the sum, all in float32, with subnormal numbers as zeros (Intel 64 and IA-32
Architectures Software Developer's Manual, TDPBF16PS). A row does not see the others, so rows are bit-equal
whatever their number, as those of `panel_kernel` are.
"""

from __future__ import annotations

import ctypes
from functools import cache

from llvmlite import ir

from turbo_runtime.models.compiled.code import COUNT, POINTER, UNIT, VOID, BFloat, Code, declare, fetch_ahead

LANES = 16  # units of a line, and sums
UNITS = 16  # of a row that are multiplied at once
ROWS = 32  # multiplied while a panel's units are in registers
NEEDED = ("amx-tile", "amx-bf16", "avx512bf16")

_PANEL = 2 * LANES  # outputs
_LINES = 16  # of a register
_BYTE = ir.IntType(8)
_LINE_BYTES, _UNIT_BYTES = 64, 4
# registers: sums of the upper and the lower 16 rows, those rows, and a panel's weights
_UPPER_SUMS, _LOWER_SUMS, _UPPER, _LOWER, _WEIGHTS = (0, 1), (2, 3), 4, 5, (6, 7)
# what `ldtilecfg` reads: the palette, each register's bytes of a line (16 bits each), and its lines
_BYTES_AT, _LINES_AT = 16, 48
_SHAPES = [0] * 64
_SHAPES[0] = 1
_SHAPES[_BYTES_AT : _BYTES_AT + 16] = [_LINE_BYTES, 0] * 8
_SHAPES[_LINES_AT : _LINES_AT + 8] = [_LINES] * 8
_SYSCALL_ARCH_PRCTL, _REQUEST_PERMISSION, _MATRIX_REGISTERS = 158, 0x1023, 18  # of Linux on x86-64


@cache
def request() -> bool:
    """Request of Linux that this process may use the registers; whether it may."""
    system = ctypes.CDLL(None).syscall
    return bool(system(_SYSCALL_ARCH_PRCTL, _REQUEST_PERMISSION, _MATRIX_REGISTERS) == 0)


def build_panel_function(module: ir.Module) -> ir.Function:
    """Write the code of one or more rows and one panel: x, x_stride, panel, units, out, out_stride,
    rows. The units are a multiple of `UNITS`.
    """
    kind = ir.FunctionType(VOID, (POINTER, COUNT, POINTER, COUNT, POINTER, COUNT, COUNT))
    function = ir.Function(module, kind, "panel")
    function.linkage = "internal"
    x, x_stride, panel, units, out, out_stride, rows = function.args
    code = _MatrixCode(function, LANES)
    sums = code.variable(code.floats, ROWS * 2)
    steps = code.sdiv(units, COUNT(UNITS))
    biases = code.at(panel, code.mul(units, COUNT(_PANEL)), UNIT)
    with code.loop(COUNT(0), code.sdiv(code.add(rows, COUNT(ROWS - 1)), COUNT(ROWS))) as number:
        first = code.mul(number, COUNT(ROWS))
        count = code.smaller(code.sub(rows, first), COUNT(ROWS))
        upper = code.smaller(count, COUNT(_LINES))
        lower = code.sub(count, upper)
        code.configure(upper, code.select(code.has(lower), lower, COUNT(1)))
        from_x = code.at(x, code.mul(first, x_stride), UNIT)
        is_first = code.icmp_signed("==", number, COUNT(0))
        with code.if_else(code.has(lower)) as (two, one):
            with two:
                code.add_products(steps, from_x, x_stride, panel, is_first, is_lower_used=True)
                code.store_sums((*_UPPER_SUMS, *_LOWER_SUMS), sums)
            with one:
                code.add_products(steps, from_x, x_stride, panel, is_first, is_lower_used=False)
                code.store_sums(_UPPER_SUMS, sums)
        to_out = code.at(out, code.mul(first, out_stride), BFloat())
        with code.loop(COUNT(0), count) as row:
            line = code.at(to_out, code.mul(row, out_stride), BFloat())
            for part in range(2):
                total = code.read(sums, code.floats, code.add(code.mul(row, COUNT(2)), COUNT(part)))
                biased = code.fadd(total, code.read(biases, code.floats, part))
                code.store(code.rounded(biased), code.at(line, part * LANES, BFloat()), align=2)
    code.operate("tilerelease")
    code.ret_void()
    return function


class _MatrixCode(Code):
    """Writes what a matrix unit does."""

    def __init__(self, function: ir.Function, lanes: int) -> None:
        super().__init__(function, lanes, bfloat16=True)
        self._shapes_kind = ir.VectorType(_BYTE, len(_SHAPES))
        self._shapes = self.variable(self._shapes_kind)

    def operate(self, name: str, *arguments: ir.Value) -> None:
        """An instruction of the unit; registers are numbers of 8 bits."""
        self.call(
            declare(self.module, f"llvm.x86.{name}", VOID, *[each.type for each in arguments]), arguments
        )

    def has(self, count: ir.Value) -> ir.Value:
        """Whether there is any."""
        return self.icmp_signed(">", count, COUNT(0))

    def smaller(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """The smaller of two counts."""
        return self.select(self.icmp_signed("<", x, y), x, y)

    def configure(self, upper: ir.Value, lower: ir.Value) -> None:
        """Set the lines of each register, one or more, and all sums to zero."""
        shapes = ir.Constant(self._shapes_kind, _SHAPES)
        for count, registers in ((upper, (*_UPPER_SUMS, _UPPER)), (lower, (*_LOWER_SUMS, _LOWER))):
            for register in registers:
                lines = self.trunc(count, _BYTE)
                shapes = self.insert_element(shapes, lines, UNIT(_LINES_AT + register))
        self.store(shapes, self._shapes)
        self.operate("ldtilecfg", self._shapes)

    def add_products(
        self,
        steps: ir.Value,
        x: ir.Value,
        x_stride: ir.Value,
        panel: ir.Value,
        is_first: ir.Value,
        *,
        is_lower_used: bool,
    ) -> None:
        """Sum up the rows' products with a panel; `configure` has set all sums to zero. The first rows fetch
        it into the cache.
        """
        stride = self.mul(x_stride, COUNT(_UNIT_BYTES))
        with self.loop(COUNT(0), steps) as step:
            at = self.at(panel, self.mul(step, COUNT(UNITS * _PANEL)), UNIT)
            with self.if_then(is_first):
                for line in range(2 * UNITS):
                    fetch_ahead(self, self.at(at, line * LANES, UNIT))
            for part, register in enumerate(_WEIGHTS):
                self._load(register, self.at(at, part * LANES, UNIT), COUNT(_PANEL * _UNIT_BYTES))
            upper = self.at(x, self.mul(step, COUNT(UNITS)), UNIT)
            self._add(_UPPER_SUMS, _UPPER, upper, stride)
            if is_lower_used:
                lower = self.at(upper, self.mul(x_stride, COUNT(_LINES)), UNIT)
                self._add(_LOWER_SUMS, _LOWER, lower, stride)

    def store_sums(self, registers: tuple[int, ...], sums: ir.Value) -> None:
        """Store registers as rows of a panel's outputs."""
        for number, register in enumerate(registers):
            place = self.at(sums, number // 2 * _LINES * 2 + number % 2, self.floats)
            self.operate("tilestored64", _BYTE(register), place, COUNT(_PANEL * _UNIT_BYTES))

    def _add(self, sums: tuple[int, int], rows: int, place: ir.Value, stride: ir.Value) -> None:
        self._load(rows, place, stride)
        for total, weights in zip(sums, _WEIGHTS, strict=True):
            self.operate("tdpbf16ps", _BYTE(total), _BYTE(rows), _BYTE(weights))

    def _load(self, register: int, place: ir.Value, stride: ir.Value) -> None:
        self.operate("tileloadd64", _BYTE(register), place, stride)
