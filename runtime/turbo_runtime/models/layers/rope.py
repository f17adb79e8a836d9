"""Rotary position embeddings (Su et al., arXiv 2104.09864), as transformers scales them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Rotation:
    """cos and sin (rows, 1, width) for the positions of a step."""

    cos: Tensor
    sin: Tensor  # its first half negated

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate x (rows, heads, width)."""
        half = x.shape[-1] // 2
        swapped = torch.cat([x[..., half:], x[..., :half]], -1)
        # products and a sum: a fused multiply-add would round by where a row happens to stand
        return x * self.cos + swapped * self.sin


class Rope:
    """The rotations of all positions, worked out once: so none depends on the batch it is looked up in."""

    def __init__(self, rotary: nn.Module, longest: int, like: Tensor) -> None:
        """`rotary` is a transformers module; positions from 0 to before `longest`; dtype and device of
        `like`.
        """
        positions = torch.arange(longest, device=like.device)[None]
        found = rotary(like.new_empty(1, 1, 1), positions)
        if isinstance(found, Tensor):  # DeepSeek-V2's has one complex number for each pair
            found = tuple(torch.cat([part, part], -1).to(like.dtype) for part in (found.real, found.imag))
        cos, sin = found
        half = sin.shape[-1] // 2
        self._cos = cos[0]
        self._sin = torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)

    def at(self, positions: Tensor) -> Rotation:
        """The rotation of each row, by its position (rows)."""
        return Rotation(self._cos[positions][:, None], self._sin[positions][:, None])
