"""Which part of every weight a rank has: heads and inner values, by output features where a product makes
them, by input features where one reads them (Shoeybi et al., arXiv 1909.08053).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from turbo_runtime.model_files.source import ModelError
from turbo_runtime.models.attention.pool import cache_shape
from turbo_runtime.shapes.parallel import describe_uncut


@dataclass(frozen=True, slots=True)
class Shard:
    """What rank `rank` of `size` has of a model."""

    rank: int
    size: int
    heads: range
    kv_heads: range
    inner: range  # values between the products of an MLP
    vocabulary: range  # as many on every rank: those of the last may lie beyond the model's own
    head_width: int

    @classmethod
    def of(cls, config: Any, rank: int, size: int) -> Shard:
        """Cut a model up by its transformers configuration. Raises ModelError where it cannot be."""
        shape, inner = cache_shape(config), int(getattr(config, "intermediate_size", 0))
        uncut = describe_uncut(
            (config.architectures or [config.model_type])[0],
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            mlp_width=inner,
            is_quantized=bool(getattr(config, "quantization_config", None)),
            size=size,
        )
        if uncut is not None:
            raise ModelError(f"--tensor-parallel-size={size}: {uncut}")
        if shape.kv_heads >= size:
            kv_heads = _part(shape.kv_heads, rank, size)
            heads = range(kv_heads.start * shape.group, kv_heads.stop * shape.group)
        else:
            copies = size // shape.kv_heads
            kv_heads = range(rank // copies, rank // copies + 1)
            heads = _part(shape.heads, rank, size)
        vocabulary = -(-int(config.vocab_size) // size)
        return cls(
            rank,
            size,
            heads,
            kv_heads,
            _part(inner, rank, size),
            range(rank * vocabulary, (rank + 1) * vocabulary),
            shape.key_width,
        )

    def configuration(self, config: Any) -> Any:
        """The configuration of a model that has this part alone."""
        local = copy.deepcopy(config)
        local.num_attention_heads, local.num_key_value_heads = len(self.heads), len(self.kv_heads)
        local.head_dim, local.intermediate_size = self.head_width, len(self.inner)
        local.vocab_size, local.pad_token_id = len(self.vocabulary), None
        return local

    def cut(self, name: str, stored: Any) -> Tensor:
        """Read this part of a parameter of the model. `stored` reads slices of it, as safetensors' does."""
        module, kind = name.split(".")[-2:]
        heads = {"q_proj": self.heads, "o_proj": self.heads, "k_proj": self.kv_heads, "v_proj": self.kv_heads}
        if module in heads:
            part = range(heads[module].start * self.head_width, heads[module].stop * self.head_width)
        elif module in ("gate_proj", "up_proj", "down_proj"):
            part = self.inner
        elif module in ("embed_tokens", "lm_head"):
            part = self.vocabulary
        else:
            return _read(stored[:])
        if module not in ("o_proj", "down_proj"):
            return _read(stored[part.start : part.stop], len(part))
        if kind == "weight":
            return _read(stored[:, part.start : part.stop])
        whole = _read(stored[:])
        return whole if self.rank == 0 else torch.zeros_like(whole)  # added once to the sum of all ranks


def _part(number: int, rank: int, size: int) -> range:
    """Of so many things those of a rank, as many as of any other, or one more."""
    each, rest = divmod(number, size)
    start = rank * each + min(rank, rest)
    return range(start, start + each + (rank < rest))


def _read(part: Tensor, rows: int | None = None) -> Tensor:
    """Copy, so that nothing of the file stays in memory; with zeros up to so many rows."""
    result = part.new_zeros(len(part) if rows is None else rows, *part.shape[1:])
    result[: len(part)] = part
    return result
