"""The KV tensors: one slot per token and layer, in blocks that the scheduler's block pool numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from turbo_runtime.kv_cache.block_pool import BLOCK_SIZE
from turbo_runtime.models.transfer import upload


@dataclass(frozen=True, slots=True)
class KVCacheSpec:
    """Keys and values of one token in one layer, and the queries that read them.

    latent: all heads read one vector, whose leading `value_width` elements are the value too, so that only
    keys are stored (multi-head latent attention: DeepSeek-V2, arXiv 2405.04434, section 2.1).
    """

    heads: int
    kv_heads: int
    key_width: int
    value_width: int
    latent: bool = False
    windows: tuple[int, ...] = ()  # keys that each layer looks back, a row's own among them; 0: all
    sinks: bool = False  # each head has a score of its own beside those of the keys, and no value for it

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.heads // self.kv_heads

    @property
    def elements(self) -> int:
        """Numbers stored for a token in a layer."""
        return self.kv_heads * (self.key_width + (0 if self.latent else self.value_width))


def cache_shape(config: Any) -> KVCacheSpec:
    """Read the shape from a transformers configuration."""
    heads = int(config.num_attention_heads)
    if rank := getattr(config, "kv_lora_rank", None):
        return KVCacheSpec(heads, 1, int(rank) + int(config.qk_rope_head_dim), int(rank), latent=True)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    windows, sinks = layer_windows(config), config.model_type == "gpt_oss"
    return KVCacheSpec(heads, int(config.num_key_value_heads), width, width, False, windows, sinks)


def layer_windows(config: Any) -> tuple[int, ...]:
    """Read how far each layer looks back: `sliding_window`, in the sliding ones if the layers differ."""
    window = int(getattr(config, "sliding_window", None) or 0)
    kinds = getattr(config, "layer_types", None)
    if not window or not kinds or config.model_type == "mistral":  # where transformers reads no layer_types
        return (window,) * int(config.num_hidden_layers)
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)


class KVPool:
    """Keys and values of all sequences, per layer (KV heads, slots, width)."""

    def __init__(
        self,
        shape: KVCacheSpec,
        *,
        layers: int,
        blocks: int,
        dtype: torch.dtype,
        device: torch.device,
        block_size: int = BLOCK_SIZE,
    ) -> None:
        """Allocate `blocks`, and one for masked reads beyond a sequence's blocks, which is never written."""

        def allocate(width: int) -> list[Tensor]:
            # zeros: a masked slot is still multiplied by 0 and must never hold a NaN (`ModelRunner.forward`)
            size = self.size(blocks + 1, block_size, shape.kv_heads, width)
            return [torch.zeros(size, dtype=dtype, device=device) for _ in range(layers)]

        self.keys = allocate(shape.key_width)
        own_values = [] if shape.latent else allocate(shape.value_width)
        self.values = own_values or [keys[..., : shape.value_width] for keys in self.keys]
        self._stored = self.keys + own_values
        self.shape = shape
        self.kv_heads, self.group = shape.kv_heads, shape.group
        self.key_width, self.value_width = shape.key_width, shape.value_width
        self.device, self.dtype = device, dtype
        self.blocks, self.scratch = blocks, blocks
        self.block_size = block_size

    @staticmethod
    def size(blocks: int, block_size: int, kv_heads: int, width: int) -> tuple[int, ...]:
        """The size of a layer's tensor."""
        return kv_heads, blocks * block_size, width

    def tensor(self, values: NDArray[Any]) -> Tensor:
        """Put an array on the pool's device."""
        return upload(values, self.device)

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor | None) -> None:
        """Store key (tokens, KV heads, width) and value at their slots; no value where it is in the key."""
        assert (value is None) == self.shape.latent
        self.keys[layer].index_copy_(1, slots, key.transpose(0, 1))
        if value is not None:
            self.values[layer].index_copy_(1, slots, value.transpose(0, 1))

    def gather(self, layer: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Copy keys and values (KV heads, slots, width) of these blocks in order."""
        keys = self._gather(self.keys[layer], blocks)
        if self.shape.latent:
            return keys, keys[..., : self.value_width]
        return keys, self._gather(self.values[layer], blocks)

    def _gather(self, slots: Tensor, blocks: Tensor) -> Tensor:
        kv_heads, _, width = slots.shape
        whole = slots.view(kv_heads, -1, self.block_size * width)
        return whole.index_select(1, blocks).view(kv_heads, -1, width)

    def copy_blocks(self, sources: Tensor, targets: Tensor) -> None:
        """Copy blocks of all layers."""
        for tensor in self._stored:
            blocks = tensor.view(tensor.shape[0], -1, self.block_size * tensor.shape[2])
            blocks.index_copy_(1, targets, blocks.index_select(1, sources))

    def clear(self, slots: Tensor) -> None:
        """Write zeros to these slots of all layers, which also makes the system commit the memory."""
        for tensor in self._stored:
            tensor.index_fill_(1, slots, 0)
