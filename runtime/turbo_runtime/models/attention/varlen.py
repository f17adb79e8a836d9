"""Paged attention by torch's own op for sequences of many lengths, `torch.nn.attention.varlen`: one call a
layer, whatever the step mixes, with no gathering and no mask.

The built-in backend is FlashAttention 2, for GPUs from Ampere on: float16 and bfloat16, heads of up to 256
elements, pages of a multiple of 256 slots. Two of its arguments are the same under every guarantee:

- `num_splits=1`. A sequence's output then does not depend on what else is in the batch, by the op's
  documentation. With more, by its source, the kernel that puts the splits together finds a sequence's rows by
  a stride that is 0 where `cu_seq_q` says where they begin: of several, all would write to the first one's.
- a longest query of at least 2. With 1, and without a causal window, grouped heads are computed in another
  shape, and the result goes to a copy of `out`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn_out

from turbo_runtime.models.attention.pool import KVCacheSpec, KVPool
from turbo_runtime.models.step_batch import StepBatch, padded
from turbo_runtime.models.transfer import upload

PAGE_SIZE = 256
MAX_HEAD_WIDTH = 256
MIN_MAX_Q = 2

VarlenAttention = Callable[..., Any]  # with the signature of this one:
DEFAULT_OP: VarlenAttention = varlen_attn_out


def is_available(device: torch.device) -> bool:
    """Whether the built-in backend runs on this device: a GPU from Ampere on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def supports(shape: KVCacheSpec, dtype: torch.dtype) -> bool:
    """Whether the built-in backend computes attention of this shape and type."""
    width = shape.key_width
    fits = width == shape.value_width and width <= MAX_HEAD_WIDTH and width % 8 == 0 and not shape.latent
    return fits and not shape.sinks and dtype in (torch.float16, torch.bfloat16)


class PagedKVPool(KVPool):
    """Keys and values of all sequences, per layer (pages, page size, KV heads, width). What lies beyond the
    pages of the scheduler takes the keys and values of padding, and nobody reads it.
    """

    @staticmethod
    def size(blocks: int, block_size: int, kv_heads: int, width: int) -> tuple[int, ...]:
        """The size of a layer's tensor."""
        return blocks, block_size, kv_heads, width

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor | None) -> None:
        """Store key and value (tokens, KV heads, width) at their slots."""
        assert value is not None
        for cached, new in ((self.keys[layer], key), (self.values[layer], value)):
            cached.flatten(0, 1).index_copy_(0, slots, new)

    def copy_blocks(self, sources: Tensor, targets: Tensor) -> None:
        """Copy pages of all layers."""
        for layer in (*self.keys, *self.values):
            layer.index_copy_(0, targets, layer.index_select(0, sources))

    def clear(self, slots: Tensor) -> None:
        """Write zeros to these slots of all layers, which also makes the system commit the memory."""
        for layer in (*self.keys, *self.values):
            layer.flatten(0, 1).index_fill_(0, slots, 0)


@dataclass(frozen=True, slots=True)
class StepSize:
    """The size of what a step reads: a captured graph has one, whatever it is filled with."""

    rows: int  # tokens, padding included
    sequences: int
    pages: int  # of a sequence, at most
    queries: int  # of a sequence, at most

    @classmethod
    def of(cls, batch: StepBatch, rows: int) -> StepSize:
        """The size of a step whose tokens are padded to `rows`."""
        sequences, pages = batch.block_table.shape
        return cls(rows, sequences, pages, batch.max_queries)

    def fits(self, other: StepSize) -> bool:
        """Whether a step of this size can be filled up to the other."""
        fewer_rows = self.rows <= other.rows and self.sequences <= other.sequences
        return fewer_rows and self.pages <= other.pages and self.queries <= other.queries

    @property
    def lengths(self) -> list[int]:
        """Numbers of each column of a packed step, but for the table of pages."""
        return [self.rows] * 5 + [self.sequences + 1] * 2 + [self.sequences]


class VarlenMetadata:
    """A step whose columns lie in one tensor of int32."""

    def __init__(
        self,
        pool: PagedKVPool,
        columns: Tensor,
        table: Tensor,
        size: StepSize,
        tokens: int,
        op: VarlenAttention,
    ) -> None:
        """`columns` and `table` (sequences, pages) as `pack` lays them out, on the pool's device; `tokens` of
        the rows are not padding. No sequence has more queries or keys than `size` has room for.
        """
        parts = torch.split(columns, size.lengths)
        self.ids, self.positions, self.sequence, self.picked, slots, *rest = parts
        self._cu_q, self._cu_k, self._seq_lens = rest
        self.tokens = tokens
        self._slots = slots.long()
        self._table = table
        self._pool, self._op = pool, op
        self._max_q, self._max_k = max(size.queries, MIN_MAX_Q), size.pages * pool.block_size
        self._out: Tensor | None = None

    @classmethod
    def upload(
        cls, batch: StepBatch, size: StepSize, pool: PagedKVPool, tokens: int, op: VarlenAttention
    ) -> VarlenMetadata:
        """Prepare a step of its own size, in one copy to the device."""
        packed, length = upload(pack(batch, size, pool), pool.device), sum(size.lengths)
        table = packed[length:].view(size.sequences, size.pages)
        return cls(pool, packed[:length], table, size, tokens, op)

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor | None,
        scaling: float,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Store key and value (rows, KV heads, width); query (rows, heads, width) -> outputs alike."""
        assert sinks is None  # `supports`
        pool = self._pool
        window = pool.shape.windows[layer] if pool.shape.windows else 0
        pool.write(layer, self._slots, key, value)
        if self._out is None:
            self._out = torch.zeros_like(query)  # once for all layers; padding has no query and stays zero
        self._op(
            self._out,
            query,
            pool.keys[layer],
            pool.values[layer],
            self._cu_q,
            self._cu_k,
            self._max_q,
            self._max_k,
            scale=scaling,
            window_size=(window - 1, 0),  # keys before a row's own; -1: all
            enable_gqa=True,
            seqused_k=self._seq_lens,
            block_table=self._table,
            num_splits=1,
        )
        return self._out


def pack(batch: StepBatch, size: StepSize, pool: PagedKVPool) -> NDArray[np.int32]:
    """Lay a step out for `VarlenMetadata`: its columns padded to `size`, then its table of pages as it is.
    Padding is token 0 at position 0, whose key goes to the page that nobody reads; its sequences are empty.
    """
    rows, sequences = size.rows, size.sequences
    seq_lens = padded(batch.seq_lens, sequences)
    columns = (
        padded(batch.tokens, rows),
        padded(batch.positions, rows),
        padded(batch.sequence, rows, sequences),
        padded(batch.logits_indices, rows),
        padded(batch.slot_mapping, rows, pool.scratch * pool.block_size),
        padded(batch.cu_seqlens_q, sequences + 1, len(batch.tokens)),
        np.concatenate([[0], np.cumsum(seq_lens)]),
        seq_lens,
        batch.block_table.ravel(),
    )
    return np.concatenate(columns).astype(np.int32)
