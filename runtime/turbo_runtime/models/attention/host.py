"""A step on a CPU: its keys and values go to the cache, and each position attends by itself, in compiled
code.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from turbo_runtime.models.attention.pool import KVCacheSpec, KVPool
from turbo_runtime.models.attention.spans import ragged
from turbo_runtime.models.compiled import threads
from turbo_runtime.models.compiled.attention_kernel import (
    ITEM_FIELDS,
    LANES,
    NO_WINDOW,
    PIECE,
    Arguments,
    Shape,
    compile_attention,
)
from turbo_runtime.models.step_batch import Ints, StepBatch, padded


class HostKVPool(KVPool):
    """Keys and values of all sequences on the host, per layer: keys (KV heads, blocks, width, tokens of a
    block), transposed within it, and values (KV heads, slots, width), in whole vectors.
    """

    def __init__(self, shape: KVCacheSpec, *, layers: int, blocks: int, dtype: torch.dtype) -> None:
        """Allocate `blocks`, and one for masked reads beyond a sequence's tokens, which is never written."""
        value_room = -(-shape.value_width // LANES) * LANES
        key_room = max(shape.key_width, value_room) if shape.latent else shape.key_width
        rooms = replace(shape, key_width=key_room, value_width=value_room)
        super().__init__(rooms, layers=layers, blocks=blocks, dtype=dtype, device=torch.device("cpu"))
        self.shape = shape
        self.key_width, self.value_width = shape.key_width, shape.value_width
        assert self.block_size == LANES
        widths = shape.key_width, key_room, shape.value_width, value_room
        self.layout = Shape(dtype == torch.bfloat16, *widths, shape.group, shape.latent, shape.sinks)
        self.kernel = compile_attention(self.layout)  # no step waits for it, that of a draft's cache neither

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor | None) -> None:
        """Store key (tokens, KV heads, width) and value at their slots; no value where it is in the key."""
        self._by_block(self.keys[layer])[:, slots // LANES, : self.key_width, slots % LANES] = key
        if value is not None:
            self.values[layer][:, slots, : self.value_width] = value.transpose(0, 1)

    def clear(self, slots: Tensor) -> None:
        """Write zeros to these slots of all layers, which also makes the system commit the memory."""
        for keys in self.keys:
            self._by_block(keys)[:, slots // LANES, :, slots % LANES] = 0
        if not self.shape.latent:
            for values in self.values:
                values.index_fill_(1, slots, 0)

    def _by_block(self, keys: Tensor) -> Tensor:
        return keys.view(self.kv_heads, -1, self.layout.key_room, LANES)


class HostMetadata:
    """One flat batch, prepared once for all layers."""

    def __init__(self, pool: HostKVPool, batch: StepBatch, rows: int) -> None:
        """The batch's tokens, then padding up to `rows`."""
        self._pool, self._kernel = pool, pool.kernel
        self.tokens = len(batch.tokens)  # rows that are not padding
        self.positions = torch.from_numpy(padded(batch.positions, rows))
        pieces = -(-int(batch.seq_lens.max()) // (PIECE * LANES))
        # Arrays that the code reads, kept for as long as it does. Pieces are read whole: what is behind a
        # sequence's end is masked, and read from one block that stays in the cache.
        self._table = np.full((len(batch.seq_lens), pieces * PIECE), pool.scratch)
        block_table = batch.block_table[:, : pieces * PIECE]
        is_filled = np.arange(block_table.shape[1]) < -(-batch.seq_lens // LANES)[:, None]
        np.copyto(self._table[:, : block_table.shape[1]], block_table, where=is_filled)
        self._items = _items(batch, self._table.shape[1], pool, self._kernel.queries)
        self._slots = torch.from_numpy(batch.slot_mapping)
        # of all layers one after the other: what padding has in it stays zero
        self._out = torch.zeros(rows, pool.shape.heads, pool.layout.value_room, dtype=pool.dtype)
        pairs = int(np.diff(batch.cu_seqlens_q) @ batch.seq_lens)  # of positions and keys, at most
        elements = pool.shape.heads * (pool.key_width + pool.value_width)
        self._threads = threads.count_for(pairs * elements)
        self._arguments = Arguments(
            out=self._out.data_ptr(),
            table=self._table.ctypes.data,
            items=self._items.ctypes.data,
            slots=self._slots.data_ptr(),
            out_row=self._out.stride(0),
            key_head=pool.keys[0].stride(0),
            value_head=pool.values[0].stride(0),
            num_items=len(self._items),
            tokens=self.tokens,
            kv_heads=pool.kv_heads,
        )

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor | None,
        scaling: float,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Store key and value (rows, KV heads, width); query (rows, heads, width), sinks (heads) float32 ->
        outputs like queries, which the next layer's replace.
        """
        pool, its = self._pool, self._arguments
        assert query.dtype == key.dtype == pool.dtype  # of which the code reads as many bytes
        query, key = _readable(query), _readable(key)
        its.query, its.query_row, its.query_head = query.data_ptr(), query.stride(0), query.stride(1)
        its.new_keys, its.key_row, its.key_step = key.data_ptr(), key.stride(0), key.stride(1)
        its.keys, its.values = pool.keys[layer].data_ptr(), pool.values[layer].data_ptr()
        if value is not None:
            value = _readable(value)
            its.new_values, its.value_row = value.data_ptr(), value.stride(0)
            its.value_step = value.stride(1)
        if sinks is not None:
            its.sinks = sinks.data_ptr()
        windows = pool.shape.windows
        its.window = (windows[layer] if windows else 0) or NO_WINDOW
        its.scaling = scaling
        self._kernel.store.run(its)
        threads.run(self._kernel.attend, its, len(self._items), self._threads)
        width = pool.value_width
        return self._out if width == self._out.shape[2] else self._out[..., :width]


def _items(batch: StepBatch, table: int, pool: HostKVPool, most: int) -> Ints:
    """(items, ITEM_FIELDS): the queries of each sequence and KV head, `most` in each item but the last;
    `table` is the length of a sequence's row in the table of blocks.
    """
    count = np.diff(batch.cu_seqlens_q)
    queries = count * pool.group
    cuts = -(-queries // most)
    index = np.repeat(np.arange(len(count)), cuts)
    first = ragged(cuts) * most
    number = np.minimum(most, queries[index] - first)
    start, row = (batch.seq_lens - count)[index], batch.cu_seqlens_q[:-1][index]
    of_head = np.stack([index * table, np.zeros_like(index), first, number, row, start], 1)
    items = np.tile(of_head, (pool.kv_heads, 1, 1))
    items[:, :, 1] = np.arange(pool.kv_heads)[:, None]
    return items.reshape(-1, ITEM_FIELDS)


def _readable(x: Tensor) -> Tensor:
    """The same with elements one after the other."""
    return x if x.stride(2) == 1 else x.contiguous()
