"""From the linear layers that transformers built to products under the row rule."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from turbo_runtime.models.matmul import BatchInvariantLinear


class Affine(NamedTuple):
    """The weights of a linear layer."""

    weight: Tensor  # (out, in)
    bias: Tensor | None  # (out)

    @classmethod
    def of(cls, linear: nn.Linear) -> Affine:
        """As a transformers module has them."""
        return cls(linear.weight.detach(), None if linear.bias is None else linear.bias.detach())

    def reordered(self, order: Tensor) -> Affine:
        """With its outputs in another order (out)."""
        order = order.to(self.weight.device)
        return Affine(self.weight[order], None if self.bias is None else self.bias[order])


def fused(*layers: nn.Linear | Affine) -> BatchInvariantLinear:
    """One product that gives the outputs of all these layers side by side."""
    parts = [layer if isinstance(layer, Affine) else Affine.of(layer) for layer in layers]
    weight = parts[0].weight if len(parts) == 1 else torch.cat([part.weight for part in parts])
    if all(part.bias is None for part in parts):
        return BatchInvariantLinear(weight)
    none = weight.new_zeros
    return BatchInvariantLinear(
        weight, torch.cat([none(len(part.weight)) if part.bias is None else part.bias for part in parts])
    )
