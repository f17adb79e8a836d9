"""The KV tensors: one slot per token and layer, in blocks that the scheduler's ledger numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from turbo_runtime.kv_cache.block_pool import BLOCK_SIZE
from turbo_runtime.models.attention.shape import KVCacheSpec


class KVPool:
    """Keys and values of all sequences, per layer (KV heads, slots, width)."""

    def __init__(
        self, shape: KVCacheSpec, *, layers: int, blocks: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """`blocks` of the ledger, and one more that no sequence has: it is read where a sequence has no block
        and nobody looks, and never written.
        """
        slots = (blocks + 1) * BLOCK_SIZE
        # zeros, since a masked slot is still multiplied by 0 and must not hold a NaN; nor does any later
        # (`PagedModel.forward`)
        self.keys = [
            torch.zeros(shape.kv_heads, slots, shape.key_width, dtype=dtype, device=device)
            for _ in range(layers)
        ]
        self.values = [_values(keys, shape) for keys in self.keys]
        self.shape = shape
        self.kv_heads, self.group = shape.kv_heads, shape.group
        self.key_width, self.value_width = shape.key_width, shape.value_width
        self.device, self.dtype = device, dtype
        self.blocks, self.scratch = blocks, blocks

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor | None) -> None:
        """Store key (tokens, KV heads, width) and value at their slots; no value where it is in the key."""
        assert (value is None) == self.shape.latent
        self.keys[layer].index_copy_(1, slots, key.transpose(0, 1))
        if value is not None:
            self.values[layer].index_copy_(1, slots, value.transpose(0, 1))

    def gather(self, layer: int, blocks: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Keys and values (KV heads, slots, width) of these blocks, in their order; of a slice of slots
        without a copy.
        """
        keys = _gather(self.keys[layer], blocks)
        if self.shape.latent:
            return keys, keys[..., : self.value_width]
        return keys, _gather(self.values[layer], blocks)

    def clear(self, blocks: list[int]) -> None:
        """Zeros in all slots of these blocks; the memory is really there afterwards."""
        wanted = torch.tensor(blocks, device=self.device)
        for tensor in self._stored():
            tensor.view(self.kv_heads, -1, BLOCK_SIZE * tensor.shape[2]).index_fill_(1, wanted, 0)

    def clear_slots(self, slots: Tensor) -> None:
        """Zeros in these slots of all layers."""
        for tensor in self._stored():
            tensor.index_fill_(1, slots, 0)

    def _stored(self) -> list[Tensor]:
        return self.keys if self.shape.latent else [*self.keys, *self.values]


def _values(keys: Tensor, shape: KVCacheSpec) -> Tensor:
    if shape.latent:
        return keys[..., : shape.value_width]
    return keys.new_zeros(*keys.shape[:2], shape.value_width)


def _gather(slots: Tensor, blocks: Tensor | slice) -> Tensor:
    if isinstance(blocks, slice):
        return slots[:, blocks]
    kv_heads, _, width = slots.shape
    return slots.view(kv_heads, -1, BLOCK_SIZE * width).index_select(1, blocks).view(kv_heads, -1, width)
