"""What an architecture's attention keeps of each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class KVCacheSpec:
    """Keys and values of one token in one layer, and the queries that read them.

    latent: all heads read one vector, and its leading `value_width` elements are the value too (multi-head
    latent attention: DeepSeek-V2, arXiv 2405.04434, section 2.1). Nothing but keys is stored then.
    """

    heads: int
    kv_heads: int
    key_width: int
    value_width: int
    latent: bool = False

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.heads // self.kv_heads

    @property
    def elements(self) -> int:
        """Stored of a token in a layer."""
        return self.kv_heads * (self.key_width + (0 if self.latent else self.value_width))


def cache_shape(config: Any) -> KVCacheSpec:
    """Of a transformers configuration."""
    heads = int(config.num_attention_heads)
    if rank := getattr(config, "kv_lora_rank", None):
        return KVCacheSpec(heads, 1, int(rank) + int(config.qk_rope_head_dim), int(rank), latent=True)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return KVCacheSpec(heads, int(config.num_key_value_heads), width, width)
