"""A panel's product by Intel's AMX, for bfloat16.

Each of its eight tiles has 16 rows of 64 bytes. An instruction multiplies 32 inputs of each of 16 rows by
the weights of 16 outputs: it sums products at even positions and those at odd positions, each in order, and
adds both to the total, all in float32, with subnormal numbers as zeros (Intel 64 and IA-32 Architectures
Software Developer's Manual, TDPBF16PS). A row of inputs does not see the others, so rows are bit-equal
whatever their number, as those of `panel_kernel` are.
"""

from __future__ import annotations

import ctypes
from functools import cache

from llvmlite import ir

from turbo_runtime.models.compiled.code import COUNT, POINTER, UNIT, VOID, BFloat, Code, declare, prefetch

LANES = 16  # units, or sums, in a row of a tile
UNITS = 16  # of each row of inputs that one instruction multiplies
ROWS = 32  # multiplied while a panel's weights are in tiles
NEEDED = ("amx-tile", "amx-bf16", "avx512bf16")

_PANEL = 2 * LANES  # outputs
_TILE_ROWS, _TILE_ROW_BYTES = 16, 64
_BYTE = ir.IntType(8)
_UNIT_BYTES = 4
# tiles: sums of the upper and the lower 16 rows, the inputs of those rows, and a panel's weights
_UPPER_SUMS, _LOWER_SUMS, _UPPER, _LOWER, _WEIGHTS = (0, 1), (2, 3), 4, 5, (6, 7)
# what `ldtilecfg` reads: the palette, the bytes of each tile's rows (16 bits each), and how many rows it has
_ROW_BYTES_AT, _ROWS_AT = 16, 48
_TILE_CONFIG = [0] * 64
_TILE_CONFIG[0] = 1
_TILE_CONFIG[_ROW_BYTES_AT : _ROW_BYTES_AT + 16] = [_TILE_ROW_BYTES, 0] * 8
_TILE_CONFIG[_ROWS_AT : _ROWS_AT + 8] = [_TILE_ROWS] * 8
_TILE_CONFIG_KIND = ir.VectorType(_BYTE, len(_TILE_CONFIG))
_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18  # of Linux on x86-64


@cache
def request_permission() -> bool:
    """Ask Linux to let this process use AMX; return whether it does."""
    failed: int = ctypes.CDLL(None).syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA)
    return not failed


def build_panel_function(module: ir.Module) -> ir.Function:
    """Write the code of one or more rows and one panel: x, x_stride, panel, units, out, out_stride,
    rows. The units are a multiple of `UNITS`.
    """
    kind = ir.FunctionType(VOID, (POINTER, COUNT, POINTER, COUNT, POINTER, COUNT, COUNT))
    function = ir.Function(module, kind, "panel")
    function.linkage = "internal"
    x, x_stride, panel, units, out, out_stride, rows = function.args
    code = _AmxCode(function, LANES, bfloat16=True)
    config = code.variable(_TILE_CONFIG_KIND)
    sums = code.variable(code.floats, ROWS * 2)
    steps = code.sdiv(units, COUNT(UNITS))
    biases = code.at(panel, code.mul(units, COUNT(_PANEL)), UNIT)
    with code.loop(COUNT(0), code.sdiv(code.add(rows, COUNT(ROWS - 1)), COUNT(ROWS))) as number:
        first = code.mul(number, COUNT(ROWS))
        count = code.smaller(code.sub(rows, first), COUNT(ROWS))
        upper = code.smaller(count, COUNT(_TILE_ROWS))
        lower = code.sub(count, upper)
        code.configure(config, upper, code.select(code.has(lower), lower, COUNT(1)))
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


class _AmxCode(Code):
    """Writes what AMX does."""

    def operate(self, name: str, *arguments: ir.Value) -> None:
        """One instruction; tiles are numbers of 8 bits."""
        self.call(
            declare(self.module, f"llvm.x86.{name}", VOID, *[each.type for each in arguments]), arguments
        )

    def has(self, count: ir.Value) -> ir.Value:
        """Whether there is any."""
        return self.icmp_signed(">", count, COUNT(0))

    def smaller(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """The smaller of two counts."""
        return self.select(self.icmp_signed("<", x, y), x, y)

    def configure(self, place: ir.Value, upper: ir.Value, lower: ir.Value) -> None:
        """Set the number of rows of each tile, one or more, and all sums to zero. `place`: for the values."""
        config = ir.Constant(_TILE_CONFIG_KIND, _TILE_CONFIG)
        for count, tiles in ((upper, (*_UPPER_SUMS, _UPPER)), (lower, (*_LOWER_SUMS, _LOWER))):
            for tile in tiles:
                config = self.insert_element(config, self.trunc(count, _BYTE), UNIT(_ROWS_AT + tile))
        self.store(config, place)
        self.operate("ldtilecfg", place)

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
        """Sum the rows' products with a panel; `configure` has set all sums to zero. The first rows prefetch
        it.
        """
        stride = self.mul(x_stride, COUNT(_UNIT_BYTES))
        with self.loop(COUNT(0), steps) as step:
            at = self.at(panel, self.mul(step, COUNT(UNITS * _PANEL)), UNIT)
            with self.if_then(is_first):
                for line in range(2 * UNITS):
                    prefetch(self, self.at(at, line * LANES, UNIT), ROWS)
            for part, tile in enumerate(_WEIGHTS):
                self._load(tile, self.at(at, part * LANES, UNIT), COUNT(_PANEL * _UNIT_BYTES))
            upper = self.at(x, self.mul(step, COUNT(UNITS)), UNIT)
            self._add(_UPPER_SUMS, _UPPER, upper, stride)
            if is_lower_used:
                lower = self.at(upper, self.mul(x_stride, COUNT(_TILE_ROWS)), UNIT)
                self._add(_LOWER_SUMS, _LOWER, lower, stride)

    def store_sums(self, tiles: tuple[int, ...], sums: ir.Value) -> None:
        """Store tiles as rows of a panel's outputs."""
        for number, tile in enumerate(tiles):
            place = self.at(sums, number // 2 * _TILE_ROWS * 2 + number % 2, self.floats)
            self.operate("tilestored64", _BYTE(tile), place, COUNT(_PANEL * _UNIT_BYTES))

    def _add(self, sums: tuple[int, int], rows: int, place: ir.Value, stride: ir.Value) -> None:
        self._load(rows, place, stride)
        for total, weights in zip(sums, _WEIGHTS, strict=True):
            self.operate("tdpbf16ps", _BYTE(total), _BYTE(rows), _BYTE(weights))

    def _load(self, tile: int, place: ir.Value, stride: ir.Value) -> None:
        self.operate("tileloadd64", _BYTE(tile), place, stride)
