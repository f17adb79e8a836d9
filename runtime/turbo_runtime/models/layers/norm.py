"""Norms of rows and of heads."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class RMSNorm:
    """x / sqrt(mean(x²) + epsilon) * weight over the last dimension (Zhang, Sennrich, arXiv 1910.07467)."""

    def __init__(self, module: Any) -> None:
        self.weight: Tensor = module.weight.detach()
        self.epsilon = float(module.variance_epsilon)

    def __call__(self, x: Tensor) -> Tensor:
        """x (..., width) -> the same."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


class HeadNorm:
    """RMSNorm of each query and key head, in one go."""

    def __init__(self, query: Any, key: Any, heads: int, kv_heads: int) -> None:
        self.epsilon = float(query.variance_epsilon)
        self.weight = torch.cat([query.weight.expand(heads, -1), key.weight.expand(kv_heads, -1)]).detach()

    def __call__(self, x: Tensor) -> Tensor:
        """x (rows, query and key heads, width)."""
        return F.rms_norm(x, x.shape[-1:], None, self.epsilon) * self.weight
