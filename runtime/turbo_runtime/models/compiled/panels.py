"""Weights in panels, and products with them, on processors that `panel_kernel` has a tile for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from turbo_runtime.models.compiled import threads
from turbo_runtime.models.compiled.panel_kernel import Arguments, Kind, PanelKernel, host_kernel

_ALIASED = 512  # units: rows a multiple of that apart push each other out of a processor's first cache
_LINE = 16  # units of a line of that cache
_READING = 8  # rows that are multiplied while their weights are read
_KINDS: dict[torch.dtype, Kind] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def to_panels(weight: Tensor, bias: Tensor | None) -> Tensor:
    """Copy weights (out, in) and biases (out) to panels (n, units + 1, outputs of a panel) int32, zeros
    behind the last output. Raises RuntimeError where they cannot be multiplied.
    """
    threads.check()
    per_unit = _per_unit(weight.dtype)
    outputs, inputs = weight.shape
    if inputs % per_unit:
        raise RuntimeError(f"{inputs} inputs of {weight.dtype} are no whole units")
    panel = _kernel(weight.dtype, inputs // per_unit).tile.panel
    padding = (0, -outputs % panel)
    units = F.pad(weight.contiguous(), (0, 0, *padding)).view(torch.int32).view(-1, panel, inputs // per_unit)
    biases = weight.new_zeros(outputs) if bias is None else bias
    biases = F.pad(biases.float(), padding).view(torch.int32).view(-1, 1, panel)
    return torch.cat([units.transpose(1, 2), biases], 1)


def to_rows(panels: Tensor, outputs: int, dtype: torch.dtype) -> Tensor:
    """Return the weights (outputs, in) of `to_panels`."""
    units = panels[:, :-1].transpose(1, 2).clone(memory_format=torch.contiguous_format)
    return units.view(-1, units.shape[2])[:outputs].view(dtype)


def multiply(x: Tensor, panels: Tensor, outputs: int) -> Tensor:
    """x (rows, in) -> (rows, outputs); a row has the same bits whatever the others are."""
    number, units, panel = panels.shape
    rows, per_unit = x.shape[0], _per_unit(x.dtype)
    out = x.new_empty(rows, number * panel)
    # the code reads as many bytes of each row
    assert x.shape[1] == (units - 1) * per_unit
    if rows:
        x = _readable(x, per_unit)
        sizes = rows, units - 1, x.stride(0) // per_unit, out.stride(0), number
        arguments = Arguments(x.data_ptr(), panels.data_ptr(), out.data_ptr(), *sizes)
        count = threads.count_for(max(rows, _READING) * panels.numel())
        threads.run(_kernel(x.dtype, units - 1).multiply, arguments, number, count)
    return out if out.shape[1] == outputs else out[:, :outputs].contiguous()


def _kernel(dtype: torch.dtype, units: int) -> PanelKernel:
    if dtype not in _KINDS:
        raise RuntimeError(f"there are no panels of {dtype}")
    return host_kernel(_KINDS[dtype], units)


def _per_unit(dtype: torch.dtype) -> int:
    """Inputs of a unit of 32 bits."""
    return 4 // dtype.itemsize


def _readable(x: Tensor, per_unit: int) -> Tensor:
    """The same rows, each without a gap, at distances that suit the cache."""
    rows, inputs = x.shape
    stride = x.stride(0)
    if x.stride(1) == 1 and (rows == 1 or (stride % per_unit == 0 and stride % (_ALIASED * per_unit))):
        return x
    return x.new_empty(rows, inputs + _LINE * per_unit)[:, :inputs].copy_(x)
