"""The operations that kernels are written with."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from turbo_runtime.models.compiled.code import COUNT, FLOAT, POINTER, VOID, Code, compile_functions

LANES = 16


class Arguments(ctypes.Structure):
    _fields_ = (("data", ctypes.c_float * (LANES * LANES)),)


def run(write: Callable[[Code, ir.Value], None], values: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a function that `write` writes makes of up to 256 floats in place."""
    module = ir.Module("test")
    function = ir.Function(module, ir.FunctionType(VOID, (POINTER,)), "change")
    code = Code(function, LANES)
    write(code, function.args[0])
    code.ret_void()
    (change,) = compile_functions(module, Arguments, "change")
    arguments = Arguments()
    arguments.data[: values.size] = values.ravel().tolist()
    change.run(ctypes.byref(arguments))
    return np.array(arguments.data[: values.size], np.float32).reshape(values.shape)


def test_the_exponential_is_within_two_units_in_the_last_place() -> None:
    values = np.concatenate([-np.logspace(-6, 1.9, 255), [0.0]]).astype(np.float32)
    assert values.min() > -87

    def each(code: Code, data: ir.Value) -> None:
        with code.loop(COUNT(0), COUNT(LANES)) as row:
            place = code.at(data, row, code.floats)
            code.store(code.exponential(code.read(place, code.floats)), place, align=4)

    exact = np.exp(values.astype(np.float64))
    assert (np.abs(run(each, values) - exact) <= 2 * np.spacing(exact.astype(np.float32))).all()


def test_the_exponential_of_what_is_far_below_is_zero() -> None:
    values = np.array([-np.inf, -1e30, -88.0, -87.0] * 4, np.float32)

    def first(code: Code, data: ir.Value) -> None:
        code.store(code.exponential(code.read(data, code.floats)), data, align=4)

    found = run(first, values).reshape(4, 4)
    assert (found[:, :3] == 0).all()
    assert (found[:, 3] > 0).all()


def test_vectors_are_transposed() -> None:
    def all_rows(code: Code, data: ir.Value) -> None:
        rows = [code.read(data, code.floats, row) for row in range(LANES)]
        for row, vector in enumerate(code.transposed(rows)):
            code.store(vector, code.at(data, row, code.floats), align=4)

    values = np.arange(LANES * LANES, dtype=np.float32).reshape(LANES, LANES)
    assert (run(all_rows, values) == values.T).all()


def test_the_elements_of_a_vector_are_joined() -> None:
    def first(code: Code, data: ir.Value) -> None:
        vector = code.read(data, code.floats)
        code.store(code.reduce(vector, code.fadd), code.at(data, 0, FLOAT))
        code.store(code.reduce(vector, code.larger), code.at(data, 1, FLOAT))

    found = run(first, np.arange(LANES, dtype=np.float32))
    assert found[:2].tolist() == [120.0, 15.0]
