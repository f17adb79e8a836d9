"""Attention of any positions over a paged cache, each by itself, compiled for the shape of a model's cache.

Keys lie transposed in their blocks of 16, (width, 16): so a vector holds one element of 16 keys, and scores
of 16 keys are sums of products in the order of the elements, with no sum across a vector. Values lie as they
are given. A few queries of one KV head go through the keys together, 64 at a time, with the softmax corrected
as larger scores come (Milakov, Gimelshein, arXiv 1805.02867).

What a query is computed with depends on its position alone: pieces of 64 keys begin at multiples of 64, and a
key that it must not see has the weight 0, which changes no sum. So rows are bit-equal by construction:
drafts, single rows and prompts alike.
"""

from __future__ import annotations

import ctypes
import math
from functools import cache
from typing import NamedTuple

from llvmlite import binding, ir

from turbo_runtime.models.compiled.code import (
    COUNT,
    FLOAT,
    POINTER,
    UNIT,
    VOID,
    Code,
    Compiled,
    compile_functions,
    define,
)

LANES = 16  # keys of a block
PIECE = 4  # blocks of keys between two corrections
NO_WINDOW = 1 << 30  # of keys; more than any sequence has
_TOGETHER = 4  # vectors of values, whose sums lie in registers
_LOWEST = -1e30  # below every score, and finite: the difference of two is a number
_POINTERS = ("query", "out", "keys", "values", "table", "items", "slots", "new_keys", "new_values", "sinks")
_COUNTS = (
    *("query_row", "query_head", "out_row", "key_head", "value_head", "window", "num_items", "share"),
    *("tokens", "key_row", "key_step", "value_row", "value_step", "kv_heads", "taken"),
)
ITEM_FIELDS = 6  # of an item: place in the table, KV head, first query, queries, row, position


class Arguments(ctypes.Structure):
    """What a step of one layer reads: addresses, and distances in elements."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _COUNTS),
        ("scaling", ctypes.c_float),
    )


class Shape(NamedTuple):
    """The shape of a cache."""

    bfloat16: bool  # else float32
    key_width: int
    key_room: int  # elements of a key in the cache, at least as many
    value_width: int
    value_room: int  # the same of a value, whole vectors
    group: int  # queries of a token and a KV head
    latent: bool  # values are what keys begin with
    sinks: bool


class AttentionKernel(NamedTuple):
    """Compiled for a shape."""

    queries: int  # that go through the keys together, at most
    store: Compiled  # writes the new keys and values
    attend: Compiled


@cache
def compile_attention(shape: Shape) -> AttentionKernel:
    """Compile both functions; takes half a second."""
    module = ir.Module("attention")
    # numbers of queries that have code of their own; the sums of most fill the registers
    sizes = (1, 3, 6) if binding.get_host_cpu_features().get("avx512f") else (1, 3)
    _write_store(module, shape)
    _write_attend(module, shape, {size: _write_queries(module, shape, size) for size in sizes})
    return AttentionKernel(sizes[-1], *compile_functions(module, Arguments, "store", "attend"))


class _Code(Code):
    """With the elements of a cache."""

    def __init__(self, function: ir.Function, shape: Shape) -> None:
        super().__init__(function, LANES, bfloat16=shape.bfloat16)

    def load_elements(self, pointer: ir.Value, index: ir.Value | int) -> ir.Value:
        """Return a vector of elements as floats."""
        return self.widened(self.read(self.at(pointer, index, self.element), self.elements))

    def load_element(self, pointer: ir.Value, index: ir.Value) -> ir.Value:
        """Return an element as a float."""
        return self.widened(self.read(pointer, self.element, index))

    def store_elements(self, floats: ir.Value, pointer: ir.Value, index: int) -> None:
        """Store a vector."""
        self.store(self.rounded(floats), self.at(pointer, index, self.element), align=1)


def _write_store(module: ir.Module, shape: Shape) -> None:
    """`store(arguments)`: the keys and values of all tokens to their slots."""
    code = _Code(define(module, "store"), shape)
    its = code.arguments(Arguments)
    with code.loop(COUNT(0), its["tokens"]) as token, code.loop(COUNT(0), its["kv_heads"]) as head:
        slot = code.read(its["slots"], COUNT, token)
        block, lane = code.udiv(slot, COUNT(LANES)), code.urem(slot, COUNT(LANES))

        def place(row: str, step: str, base: str) -> ir.Value:
            distance = code.add(code.mul(token, its[row]), code.mul(head, its[step]))
            return code.at(its[base], distance, code.element)

        def slots_of(base: str, distance: str, offset: ir.Value) -> ir.Value:
            return code.at(its[base], code.add(code.mul(head, its[distance]), offset), code.element)

        start = code.add(code.mul(block, COUNT(shape.key_room * LANES)), lane)
        new, cached = place("key_row", "key_step", "new_keys"), slots_of("keys", "key_head", start)
        with code.loop(COUNT(0), COUNT(shape.key_width)) as index:
            element = code.read(new, code.element, index)
            code.store(element, code.at(cached, code.mul(index, COUNT(LANES)), code.element), align=1)
        if not shape.latent:
            start = code.mul(slot, COUNT(shape.value_room))
            new, cached = (
                place("value_row", "value_step", "new_values"),
                slots_of("values", "value_head", start),
            )
            with code.loop(COUNT(0), COUNT(shape.value_width)) as index:
                element = code.read(new, code.element, index)
                code.store(element, code.at(cached, index, code.element), align=1)
    code.ret_void()


def _write_queries(module: ir.Module, shape: Shape, number: int) -> ir.Function:
    """So many queries of a KV head through all keys that they see."""
    kinds = (*[POINTER] * 7, COUNT, COUNT, COUNT, FLOAT)
    function = ir.Function(module, ir.FunctionType(VOID, kinds), f"queries_{number}")
    function.linkage = "internal"
    code = _Code(function, shape)
    queries, outs, positions, sinks, keys, values, table, first, last, window, scaling = function.args
    vectors = shape.value_room // LANES
    scores = code.variable(code.floats, number * PIECE)
    mixtures = code.variable(code.floats, number * vectors)
    sums, tops = (code.variable(kind, number) for kind in (code.floats, FLOAT))
    zero = code.constant(0.0)
    query = [code.read(queries, POINTER, n) for n in range(number)]
    position = [code.splat(code.trunc(code.read(positions, COUNT, n), UNIT)) for n in range(number)]
    unseen = [code.sub(each, code.splat(code.trunc(window, UNIT))) for each in position]
    lanes, scale = code.integers(*range(LANES)), code.splat(scaling)
    for n in range(number):
        code.store(FLOAT(_LOWEST), code.at(tops, n, FLOAT))
        code.store(zero, code.at(sums, n, code.floats))
        for part in range(vectors):
            code.store(zero, code.at(mixtures, n * vectors + part, code.floats))

    with code.loop(first, last) as piece:
        blocks = code.at(table, code.mul(piece, COUNT(PIECE)), COUNT)
        with code.loop(COUNT(0), COUNT(PIECE)) as part:
            place = code.read(blocks, COUNT, part)
            cached = code.at(keys, code.mul(place, COUNT(shape.key_room * LANES)), code.element)
            products = [code.variable(code.floats) for _ in range(number)]
            for product in products:
                code.store(zero, product)
            with code.loop(COUNT(0), COUNT(shape.key_width)) as index:
                elements = code.load_elements(cached, code.mul(index, COUNT(LANES)))
                for each, product in zip(query, products, strict=True):
                    spread = code.splat(code.load_element(each, index))
                    total = code.load(product, typ=code.floats)
                    code.store(code.multiply_add(spread, elements, total), product)
            block = code.add(code.mul(piece, COUNT(PIECE)), part)
            key = code.add(code.splat(code.trunc(code.mul(block, COUNT(LANES)), UNIT)), lanes)
            for n, product in enumerate(products):
                seen = code.and_(
                    code.icmp_signed("<=", key, position[n]), code.icmp_signed(">", key, unseen[n])
                )
                score = code.fmul(code.load(product, typ=code.floats), scale)
                score = code.select(seen, score, code.constant(-math.inf))
                code.store(score, code.at(scores, code.add(COUNT(n * PIECE), part), code.floats))
        for n in range(number):
            _weigh(code, shape, n, scores, tops, sums, mixtures)
        if shape.latent:
            _mix_latents(code, shape, number, scores, mixtures, keys, blocks)
        else:
            for start in range(0, vectors, _TOGETHER):
                parts = range(start, min(start + _TOGETHER, vectors))
                _mix(code, shape, number, parts, scores, mixtures, values, blocks)

    for n in range(number):
        _finish(code, shape, n, code.read(outs, POINTER, n), sinks, tops, sums, mixtures)
    code.ret_void()
    return function


def _weigh(
    code: _Code, shape: Shape, n: int, scores: ir.Value, tops: ir.Value, sums: ir.Value, mixtures: ir.Value
) -> None:
    """Turn a query's scores of a piece into weights, after correcting what came before by the largest one."""
    of_piece = [code.read(scores, code.floats, n * PIECE + part, 64) for part in range(PIECE)]
    largest = of_piece[0]
    for other in of_piece[1:]:
        largest = code.larger(largest, other)
    highest, before = code.reduce(largest, code.larger), code.read(tops, FLOAT, n, 4)
    top = code.select(code.fcmp_ordered(">", highest, before), highest, before)
    code.store(top, code.at(tops, n, FLOAT))
    top = code.splat(top)
    correction = code.exponential(code.fsub(code.splat(before), top))
    total = code.fmul(code.read(sums, code.floats, n, 64), correction)
    for part, score in enumerate(of_piece):
        weight = code.exponential(code.fsub(score, top))
        code.store(weight, code.at(scores, n * PIECE + part, code.floats))
        total = code.fadd(total, weight)
    code.store(total, code.at(sums, n, code.floats))
    vectors = shape.value_room // LANES
    for part in range(vectors):
        place = code.at(mixtures, n * vectors + part, code.floats)
        code.store(code.fmul(code.load(place, typ=code.floats), correction), place)


def _mix(
    code: _Code,
    shape: Shape,
    number: int,
    parts: range,
    scores: ir.Value,
    mixtures: ir.Value,
    values: ir.Value,
    blocks: ir.Value,
) -> None:
    """Add the weighted values of a piece, some vectors of each, to those of all queries."""
    vectors = shape.value_room // LANES
    sums = [[code.variable(code.floats) for _ in parts] for _ in range(number)]
    for n in range(number):
        for column, part in enumerate(parts):
            code.store(code.read(mixtures, code.floats, n * vectors + part, 64), sums[n][column])
    with code.loop(COUNT(0), COUNT(PIECE)) as block:
        place = code.read(blocks, COUNT, block)
        cached = code.at(values, code.mul(place, COUNT(shape.value_room * LANES)), code.element)
        with code.loop(COUNT(0), COUNT(LANES)) as key:
            row = code.at(cached, code.mul(key, COUNT(shape.value_room)), code.element)
            elements = [code.load_elements(row, part * LANES) for part in parts]
            for n in range(number):
                weights = code.at(scores, code.add(COUNT(n * PIECE), block), code.floats)
                weight = code.splat(code.read(weights, FLOAT, key, 4))
                for column, each in enumerate(elements):
                    total = code.load(sums[n][column], typ=code.floats)
                    code.store(code.multiply_add(weight, each, total), sums[n][column])
    for n in range(number):
        for column, part in enumerate(parts):
            total = code.load(sums[n][column], typ=code.floats)
            code.store(total, code.at(mixtures, n * vectors + part, code.floats))


def _mix_latents(
    code: _Code,
    shape: Shape,
    number: int,
    scores: ir.Value,
    mixtures: ir.Value,
    keys: ir.Value,
    blocks: ir.Value,
) -> None:
    """The same of values that are what keys begin with, which lie transposed."""
    vectors = shape.value_room // LANES
    with code.loop(COUNT(0), COUNT(PIECE)) as block:
        place = code.read(blocks, COUNT, block)
        cached = code.at(keys, code.mul(place, COUNT(shape.key_room * LANES)), code.element)
        with code.loop(COUNT(0), COUNT(vectors)) as part:
            first = code.mul(part, COUNT(LANES))
            rows = [code.mul(code.add(first, COUNT(index)), COUNT(LANES)) for index in range(LANES)]
            elements = code.transposed([code.load_elements(cached, row) for row in rows])
            for n in range(number):
                mixture = code.at(mixtures, code.add(COUNT(n * vectors), part), code.floats)
                total = code.load(mixture, typ=code.floats)
                weights = code.at(scores, code.add(COUNT(n * PIECE), block), code.floats)
                for key, each in enumerate(elements):
                    total = code.multiply_add(code.splat(code.read(weights, FLOAT, key, 4)), each, total)
                code.store(total, mixture)


def _finish(
    code: _Code,
    shape: Shape,
    n: int,
    out: ir.Value,
    sinks: ir.Value,
    tops: ir.Value,
    sums: ir.Value,
    mixtures: ir.Value,
) -> None:
    """Divide what a query has mixed by the sum of its weights, to which a sink adds."""
    total = code.splat(code.reduce(code.read(sums, code.floats, n, 64), code.fadd))
    scale = code.constant(1.0)
    if shape.sinks:
        top, sink = (code.splat(code.read(each, FLOAT, n, 4)) for each in (tops, sinks))
        highest = code.larger(top, sink)
        scale = code.exponential(code.fsub(top, highest))
        sink = code.exponential(code.fsub(sink, highest))
        total = code.fadd(code.fmul(total, scale), sink)
    scale = code.fdiv(scale, total)
    vectors = shape.value_room // LANES
    for part in range(vectors):
        mixture = code.read(mixtures, code.floats, n * vectors + part, 64)
        code.store_elements(code.fmul(mixture, scale), out, part * LANES)


def _write_attend(module: ir.Module, shape: Shape, kernels: dict[int, ir.Function]) -> None:
    """`attend(arguments)`: take shares of the items until none is left."""
    code = _Code(define(module, "attend"), shape)
    its = code.arguments(Arguments)
    most = max(kernels)
    queries, outs = code.variable(POINTER, most), code.variable(POINTER, most)
    positions, sinks = code.variable(COUNT, most), code.variable(FLOAT, most)
    with code.shares(its, its["num_items"]) as number:
        item = code.at(its["items"], code.mul(number, COUNT(ITEM_FIELDS)), COUNT)
        place, kv_head, query, count, row, position = (
            code.read(item, COUNT, index) for index in range(ITEM_FIELDS)
        )
        last = code.sub(count, COUNT(1))
        with code.loop(COUNT(0), COUNT(most)) as index:  # the last one fills what is left of the code's
            own = code.add(query, code.select(code.icmp_signed("<", index, last), index, last))
            token, of_group = code.udiv(own, COUNT(shape.group)), code.urem(own, COUNT(shape.group))
            head = code.add(code.mul(kv_head, COUNT(shape.group)), of_group)
            at_row = code.add(row, token)
            from_query = code.add(code.mul(at_row, its["query_row"]), code.mul(head, its["query_head"]))
            to_out = code.add(code.mul(at_row, its["out_row"]), code.mul(head, COUNT(shape.value_room)))
            code.store(code.at(its["query"], from_query, code.element), code.at(queries, index, POINTER))
            code.store(code.at(its["out"], to_out, code.element), code.at(outs, index, POINTER))
            code.store(code.add(position, token), code.at(positions, index, COUNT))
            if shape.sinks:
                code.store(code.read(its["sinks"], FLOAT, head), code.at(sinks, index, FLOAT))
        piece = COUNT(PIECE * LANES)
        earliest = code.read(positions, COUNT, 0)
        latest = code.read(positions, COUNT, last)
        begins = code.add(code.sub(earliest, its["window"]), COUNT(1))
        begins = code.select(code.icmp_signed(">", begins, COUNT(0)), begins, COUNT(0))
        pieces = code.udiv(begins, piece), code.add(code.udiv(latest, piece), COUNT(1))
        keys = code.at(its["keys"], code.mul(kv_head, its["key_head"]), code.element)
        values = code.at(its["values"], code.mul(kv_head, its["value_head"]), code.element)
        table = code.at(its["table"], place, COUNT)
        pointers = (queries, outs, positions, sinks, keys, values, table)
        done = code.append_basic_block()
        for size, kernel in kernels.items():
            call, larger = code.append_basic_block(), code.append_basic_block()
            code.cbranch(code.icmp_signed("<=", count, COUNT(size)), call, larger)
            code.position_at_end(call)
            code.call(kernel, [*pointers, *pieces, its["window"], its["scaling"]])
            code.branch(done)
            code.position_at_end(larger)
        code.branch(done)
        code.position_at_end(done)
    code.ret_void()
