"""Products in which each attention head has a matrix of its own, under the row rule of `arithmetic.py`."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from turbo_runtime.models.matmul import COUNTS, BatchInvariantLinear, MatmulKernel


class HeadProduct(BatchInvariantLinear):
    """x (rows, heads * in) -> (rows, heads * out), all heads in one batched product."""

    forms: ClassVar[tuple[MatmulKernel, ...]] = (
        MatmulKernel("batched", "batched", COUNTS),
        MatmulKernel("batched, tiles of 4", "batched", (4,)),
        MatmulKernel("batched, tiles of 16", "batched", (16,)),
    )
    free_forms: ClassVar[tuple[MatmulKernel, ...]] = (MatmulKernel("batched, any rows", "batched", None),)

    def __init__(self, weight: Tensor) -> None:
        """`weight` (heads, out, in); copied."""
        self.heads = int(weight.shape[0])
        self.shape = (int(weight.shape[1]), int(weight.shape[2]))  # of one head
        self.dtype = weight.dtype
        self.bias = None
        self.form = self.free_forms[0]
        self._stored = weight.transpose(1, 2).contiguous()

    @property
    def name(self) -> str:
        """heads x out x in."""
        return f"{self.heads}x{super().name}"

    def like(self, weight: Tensor) -> HeadProduct:
        """The same number of heads, each with `weight` (out, in)."""
        return HeadProduct(weight.expand(self.heads, -1, -1))

    def use(self, form: MatmulKernel) -> None:
        """Change how rows are cut; the layout is the same in all forms."""
        self.form = form

    def _multiply(self, x: Tensor) -> Tensor:
        # a copy, so that the kernel sees the same strides whatever `x` was cut from
        by_head = x.reshape(x.shape[0], self.heads, -1).transpose(0, 1).contiguous()
        return torch.bmm(by_head, self._stored).transpose(0, 1).reshape(x.shape[0], -1)
