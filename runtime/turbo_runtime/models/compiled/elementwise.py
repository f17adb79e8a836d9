"""Norms, rotations and gates of rows on a CPU, each one call of compiled code."""

from __future__ import annotations

import torch
from torch import Tensor

from turbo_runtime.models.compiled import threads
from turbo_runtime.models.compiled.code import Compiled
from turbo_runtime.models.compiled.elementwise_kernel import Arguments, compile_elementwise

_OPERATIONS = 16  # for each element, about as many as a gate takes


def norm(x: Tensor, weight: Tensor, epsilon: float, residual: Tensor | None = None) -> Tensor:
    """RMSNorm of x (rows, width), after adding the residual (rows, width) to it, in place; `weight` (width)
    float32.
    """
    assert weight.dtype == torch.float32
    assert residual is None or residual.dtype == x.dtype
    out = torch.empty_like(x)
    its = Arguments(
        x=x.data_ptr(),
        out=out.data_ptr(),
        weight=weight.data_ptr(),
        rows=x.shape[0],
        width=x.shape[1],
        x_row=x.stride(0),
        out_row=out.stride(0),
        epsilon=epsilon,
    )
    compiled = compile_elementwise(x.dtype == torch.bfloat16)
    if residual is None:
        _run(compiled.norm, its)
    else:
        its.residual, its.residual_row = residual.data_ptr(), residual.stride(0)
        _run(compiled.add_norm, its)
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> Tensor:
    """Rotate the first elements of each head of x (rows, heads, width), in place, by the rows of `cos` and
    `sin` (positions, elements) at `positions` (rows); the halves of `cos` are equal, those of `sin` opposite.
    """
    # of which the code reads as many bytes
    assert positions.dtype == torch.int64
    assert x.dtype == cos.dtype == sin.dtype
    its = Arguments(
        x=x.data_ptr(),
        cos=cos.data_ptr(),
        sin=sin.data_ptr(),
        positions=positions.data_ptr(),
        rows=x.shape[0],
        width=x.shape[1] * cos.shape[1],
        x_row=x.stride(0),
        heads=x.shape[1],
        head_step=x.stride(1),
        turned=cos.shape[1],
        table_row=cos.stride(0),
    )
    _run(compile_elementwise(x.dtype == torch.bfloat16).rotate, its)
    return x


def gate(x: Tensor) -> Tensor:
    """SiLU of the first half of x (rows, 2 * width), times the second."""
    rows, width = x.shape[0], x.shape[1] // 2
    out = x.new_empty(rows, width)
    its = Arguments(
        x=x.data_ptr(), out=out.data_ptr(), rows=rows, width=width, x_row=x.stride(0), out_row=out.stride(0)
    )
    _run(compile_elementwise(x.dtype == torch.bfloat16).gate, its)
    return out


def _run(compiled: Compiled, its: Arguments) -> None:
    threads.run(compiled, its, its.rows, threads.count_for(its.rows * its.width * _OPERATIONS))
