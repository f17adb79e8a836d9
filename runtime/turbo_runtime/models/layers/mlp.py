"""The feed-forward part of a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from turbo_runtime.models.layers.linear import fused
from turbo_runtime.models.layers.rowwise import RowWise
from turbo_runtime.models.matmul import BatchInvariantLinear


class GatedMLP:
    """down(act(gate(x)) * up(x)) (Shazeer, arXiv 2002.05202)."""

    def __init__(
        self,
        gate_up: BatchInvariantLinear,
        down: BatchInvariantLinear,
        activation: Callable[[Tensor], Tensor],
    ) -> None:
        """`gate_up` gives both gate and up, side by side."""
        self.gate_up, self.down, self.activation = gate_up, down, activation

    @classmethod
    def of(cls, module: Any) -> GatedMLP:
        """With the weights of a transformers module."""
        return cls(fused(module.gate_proj, module.up_proj), fused(module.down_proj), module.act_fn)

    def products(self) -> Iterable[BatchInvariantLinear]:
        """Every product with weights."""
        return self.gate_up, self.down

    def row_wise(self) -> Iterable[RowWise]:
        """Every other operation that could mix rows."""
        yield RowWise("the gated activation", self.gate_up.shape[0], self.gated)

    def gated(self, gate_up: Tensor) -> Tensor:
        """(rows, 2 * inner) -> (rows, inner)."""
        gate, up = gate_up.chunk(2, -1)
        return self.activation(gate) * up

    def __call__(self, x: Tensor) -> Tensor:
        """x (rows, width) -> the same."""
        return self.down(self.gated(self.gate_up(x)))
