"""The KV tensors: one slot per token and layer, in blocks that the scheduler's ledger numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from turbo_runtime.engine.blocks import BLOCK_SIZE


class KVPool:
    """Keys and values of all sequences, per layer (KV heads, slots, width)."""

    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        heads: int,
        key_width: int,
        value_width: int,
        blocks: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`blocks` of the ledger, and one more that no sequence has: padding is written there and read from
        there.
        """
        slots = (blocks + 1) * BLOCK_SIZE
        # zeros, since a masked slot is still multiplied by 0 and must not hold a NaN
        self.keys = [
            torch.zeros(kv_heads, slots, key_width, dtype=dtype, device=device) for _ in range(layers)
        ]
        self.values = [
            torch.zeros(kv_heads, slots, value_width, dtype=dtype, device=device) for _ in range(layers)
        ]
        self.kv_heads, self.group = kv_heads, heads // kv_heads
        self.key_width, self.value_width = key_width, value_width
        self.device, self.dtype = device, dtype
        self.blocks, self.scratch = blocks, blocks

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Store key (tokens, KV heads, width) and value at their slots."""
        self.keys[layer].index_copy_(1, slots, key.transpose(0, 1))
        self.values[layer].index_copy_(1, slots, value.transpose(0, 1))

    def gather(self, layer: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (KV heads, blocks * BLOCK_SIZE, width) of these blocks, in their order."""
        return _gather(self.keys[layer], blocks), _gather(self.values[layer], blocks)

    def clear(self, blocks: list[int]) -> None:
        """Zeros in all slots of these blocks; the memory is really there afterwards."""
        wanted = torch.tensor(blocks, device=self.device)
        for tensor in (*self.keys, *self.values):
            tensor.view(self.kv_heads, -1, BLOCK_SIZE * tensor.shape[2]).index_fill_(1, wanted, 0)


def _gather(slots: Tensor, blocks: Tensor) -> Tensor:
    kv_heads, _, width = slots.shape
    return slots.view(kv_heads, -1, BLOCK_SIZE * width).index_select(1, blocks).view(kv_heads, -1, width)
