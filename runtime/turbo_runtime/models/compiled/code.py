"""What kernels are written with: LLVM's types and operations, loops, and the way to the processor."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from llvmlite import binding, ir

VOID, FLOAT, HALF_UNIT, UNIT, COUNT = (
    ir.VoidType(),
    ir.FloatType(),
    ir.IntType(16),
    ir.IntType(32),
    ir.IntType(64),
)
POINTER = ir.PointerType()
_ZEN_4 = ("znver4", "znver5")  # AMD's with AVX-512; measured was the first
_FEW_ROWS = 10  # of inputs, with which Zen 4's own prefetcher keeps up with the weights


class BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloat)

    def __hash__(self) -> int:
        return hash(BFloat)


class Compiled(NamedTuple):
    """A function in memory."""

    run: Callable[[Any], None]  # of a reference to its arguments
    address: int
    engine: Any  # owns the code


def compile_functions(
    module: ir.Module, arguments: type[ctypes.Structure], *names: str, optimized: bool = True
) -> list[Compiled]:
    """Compile functions of a module for this processor, each of a pointer to `arguments`. `optimized`: its
    variables become registers; a loop that keeps all registers busy is better left as it is written.
    """
    machine = machine_of(binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten())
    parsed = parse(module, machine, optimized=optimized)
    engine = binding.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    kind = ctypes.CFUNCTYPE(None, ctypes.POINTER(arguments))
    addresses = [engine.get_function_address(name) for name in names]
    return [Compiled(kind(address), address, engine) for address in addresses]


def machine_of(processor: str, features: str = "") -> binding.TargetMachine:
    """Return a processor, of this one's architecture, to generate code for."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding.Target.from_default_triple().create_target_machine(processor, features, opt=3)


def parse(module: ir.Module, machine: binding.TargetMachine, *, optimized: bool) -> binding.ModuleRef:
    """Parse and verify a module, and optimize it for a processor. Raises RuntimeError."""
    parsed = binding.parse_assembly(str(module))
    parsed.verify()
    if optimized:
        builder = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=2))
        builder.getModulePassManager().run(parsed, builder)
    return parsed


def declare(module: ir.Module, name: str, result: ir.Type, *parameters: ir.Type) -> ir.Function:
    """Return an operation of LLVM's own."""
    declared = module.globals.get(name)
    return declared or ir.Function(module, ir.FunctionType(result, parameters), name)


def prefetch(builder: ir.IRBuilder, place: ir.Value, rows: int) -> None:
    """Prefetch into the L2 cache the line that lies some way ahead of a place: on AMD's Zen 4 4 KiB, and only
    in code that reads many `rows` of other inputs in the same loop; on all others, as measured on an Intel
    Xeon, 8 KiB. The queue of reads into the L1 cache is shorter.
    """
    is_zen = binding.get_host_cpu_name() in _ZEN_4
    if is_zen and rows <= _FEW_ROWS:
        return
    operation = declare(builder.module, "llvm.prefetch.p0", VOID, POINTER, *[UNIT] * 3)
    ahead = builder.gep(place, [COUNT(1024 if is_zen else 2048)], source_etype=UNIT)
    builder.call(operation, [ahead, UNIT(0), UNIT(2), UNIT(1)])  # to read; into the L2 cache; data


_KINDS: dict[Any, ir.Type] = {ctypes.c_void_p: POINTER, ctypes.c_int64: COUNT, ctypes.c_float: FLOAT}


def define(module: ir.Module, name: str) -> ir.Function:
    """Begin a function of a pointer to its arguments."""
    return ir.Function(module, ir.FunctionType(VOID, (POINTER,)), name)


class Code(ir.IRBuilder):  # type: ignore[misc]
    """Writes a function on vectors of so many lanes; elements in memory are float32 or bfloat16."""

    def __init__(self, function: ir.Function, lanes: int, *, bfloat16: bool = False) -> None:
        super().__init__(function.append_basic_block())
        self.lanes = lanes
        self.floats, self.units = ir.VectorType(FLOAT, lanes), ir.VectorType(UNIT, lanes)
        self.element = HALF_UNIT if bfloat16 else FLOAT
        self.elements = ir.VectorType(self.element, lanes)

    def arguments(self, kind: type[ctypes.Structure]) -> dict[str, ir.Value]:
        """Load all that the function is given; of `taken` the place, which threads share."""
        types = [_KINDS[each[1]] for each in kind._fields_]
        layout, loaded = ir.LiteralStructType(types), dict[str, ir.Value]()
        for number, (each, type_) in enumerate(zip(kind._fields_, types, strict=True)):
            place = self.gep(self.function.args[0], [UNIT(0), UNIT(number)], source_etype=layout)
            loaded[each[0]] = place if each[0] == "taken" else self.load(place, typ=type_)
        return loaded

    @contextmanager
    def shares(self, its: dict[str, ir.Value], parts: ir.Value) -> Iterator[ir.Value]:
        """Write the body for each part, of which a thread takes a `share` at a time until none is left."""
        take, begin, end = (self.append_basic_block() for _ in range(3))
        self.branch(take)
        self.position_at_end(take)
        first = self.atomic_rmw("add", its["taken"], its["share"], "monotonic")
        self.cbranch(self.icmp_signed("<", first, parts), begin, end)
        self.position_at_end(begin)
        limit = self.add(first, its["share"])
        with self.loop(first, self.select(self.icmp_signed("<", limit, parts), limit, parts)) as number:
            yield number
        self.branch(take)
        self.position_at_end(end)

    def widened(self, stored: ir.Value) -> ir.Value:
        """Return an element, or a vector of them, as floats."""
        if self.element == FLOAT:
            return stored
        if stored.type == self.element:
            return self.bitcast(self.shl(self.zext(stored, UNIT), UNIT(16)), FLOAT)
        return self.bitcast(self.shl(self.zext(stored, self.units), self.integers(16)), self.floats)

    def rounded(self, floats: ir.Value) -> ir.Value:
        """Return a vector of floats as elements."""
        if self.element == FLOAT:
            return floats
        return self.bitcast(self.fptrunc(floats, ir.VectorType(BFloat(), self.lanes)), self.elements)

    @contextmanager
    def loop(self, start: ir.Value, stop: ir.Value) -> Iterator[ir.Value]:
        """Write the body for each number from `start` to before `stop`."""
        head, body, end = (self.append_basic_block() for _ in range(3))
        index = self.variable(COUNT)
        self.store(start, index)
        self.branch(head)
        self.position_at_end(head)
        number = self.load(index, typ=COUNT)
        self.cbranch(self.icmp_signed("<", number, stop), body, end)
        self.position_at_end(body)
        yield number
        self.store(self.add(number, COUNT(1)), index)
        self.branch(head)
        self.position_at_end(end)

    def variable(self, kind: ir.Type, number: int = 1) -> ir.Value:
        """Make room on the stack, or, where the places are known, in registers."""
        with self.goto_entry_block():
            return self.alloca(kind, COUNT(number))

    def at(self, pointer: ir.Value, index: ir.Value | int, kind: ir.Type) -> ir.Value:
        """Return the place of an element of an array."""
        return self.gep(pointer, [COUNT(index) if isinstance(index, int) else index], source_etype=kind)

    def read(self, pointer: ir.Value, kind: ir.Type, index: ir.Value | int = 0, align: int = 1) -> ir.Value:
        """Load an element of an array."""
        return self.load(self.at(pointer, index, kind), typ=kind, align=align)

    def masked_load(
        self, kind: ir.VectorType, place: ir.Value, mask: ir.Value, rest: ir.Value | None = None
    ) -> ir.Value:
        """Load the lanes of a vector that a mask sets; the others are `rest`, or zeros."""
        name = f"llvm.masked.load.v{self.lanes}{_suffix(kind)}.p0"
        load = declare(self.module, name, kind, POINTER, UNIT, mask.type, kind)
        return self.call(load, [place, UNIT(1), mask, ir.Constant(kind, None) if rest is None else rest])

    def masked_store(self, vector: ir.Value, place: ir.Value, mask: ir.Value) -> None:
        """Store the lanes of a vector that a mask sets."""
        name = f"llvm.masked.store.v{self.lanes}{_suffix(vector.type)}.p0"
        store = declare(self.module, name, VOID, vector.type, POINTER, UNIT, mask.type)
        self.call(store, [vector, place, UNIT(1), mask])

    def splat(self, value: ir.Value) -> ir.Value:
        """Return a vector of equal elements."""
        kind = ir.VectorType(value.type, self.lanes)
        first = self.insert_element(ir.Constant(kind, ir.Undefined), value, UNIT(0))
        return self.shuffle_vector(first, first, ir.Constant(self.units, None))

    def constant(self, value: float) -> ir.Value:
        """Return a vector of a number."""
        return ir.Constant(self.floats, [FLOAT(value)] * self.lanes)

    def integers(self, *values: int) -> ir.Value:
        """Return a vector of integers; of one, all equal."""
        each = values * self.lanes if len(values) == 1 else values
        return ir.Constant(ir.VectorType(UNIT, len(each)), [UNIT(value) for value in each])

    def multiply_add(self, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        """x * y + z, rounded once."""
        return self._operation("fma", x, y, z)

    def larger(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """The larger of each two elements."""
        return self._operation("maxnum", x, y)

    def exponential(self, x: ir.Value) -> ir.Value:
        """e to the power of elements up to 0, to within two units in the last place; 0 below -87."""
        lowest = -87.0
        clipped = self.larger(x, self.constant(lowest))
        power = self._operation("roundeven", self.fmul(clipped, self.constant(1 / math.log(2))))
        # what is left of it after ln 2 in two parts (Cody and Waite, 1980)
        rest = self.multiply_add(power, self.constant(-0.693359375), clipped)
        rest = self.multiply_add(power, self.constant(2.12194440e-4), rest)
        series = self.constant(_SERIES[0])
        for coefficient in _SERIES[1:]:
            series = self.multiply_add(series, rest, self.constant(coefficient))
        square = self.fmul(rest, rest)
        whole = self.multiply_add(series, square, self.fadd(rest, self.constant(1.0)))
        exponent = self.shl(self.add(self.fptosi(power, self.units), self.integers(127)), self.integers(23))
        found = self.fmul(whole, self.bitcast(exponent, self.floats))
        return self.select(self.fcmp_ordered("<", x, self.constant(lowest)), self.constant(0.0), found)

    def reduce(self, vector: ir.Value, join: Callable[[ir.Value, ir.Value], ir.Value]) -> ir.Value:
        """Join all elements by halves."""
        half = self.lanes // 2
        while half:
            order = [index + half if index < half else index for index in range(self.lanes)]
            vector = join(vector, self.shuffle_vector(vector, vector, self.integers(*order)))
            half //= 2
        return self.extract_element(vector, UNIT(0))

    def transposed(self, rows: list[ir.Value]) -> list[ir.Value]:
        """Transpose as many vectors as each has lanes."""
        size = 1
        while size < self.lanes:
            low = [i if not i & size else self.lanes + i - size for i in range(self.lanes)]
            high = [i + size if not i & size else self.lanes + i for i in range(self.lanes)]
            pairs = [(row, row + size) for row in range(self.lanes) if not row & size]
            for first, second in pairs:
                both = rows[first], rows[second]
                rows[first] = self.shuffle_vector(*both, self.integers(*low))
                rows[second] = self.shuffle_vector(*both, self.integers(*high))
            size *= 2
        return rows

    def _operation(self, name: str, *arguments: ir.Value) -> ir.Value:
        kinds = [argument.type for argument in arguments]
        return self.call(declare(self.module, f"llvm.{name}.v{self.lanes}f32", kinds[0], *kinds), arguments)


def _suffix(kind: ir.VectorType) -> str:
    return "f32" if kind.element == FLOAT else "i16"


# of e**x behind 1 + x, for x within half of ln 2 (Cephes)
_SERIES = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
