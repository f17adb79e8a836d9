"""Attention of a few items by batched products over chunks of their keys.

The keys of a sequence are read in chunks at fixed places, `KEY_CHUNK` positions each. A chunk, with the few
query rows that one *item* of a sequence brings, is one element of a batched product: its bits depend on the
element's shape, not on how many elements there are. The largest score of a row is exact in any order, and
what the chunks give is added up by a tree over their places, so that more chunks, which hold nothing for the
row, change nothing. This is the split-KV softmax (Milakov, Gimelshein, arXiv 1805.02867; Flash-Decoding) with
the order of its sums fixed.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from turbo_runtime.kv_cache.block_pool import BLOCK_SIZE
from turbo_runtime.models.attention.items import Items
from turbo_runtime.models.attention.pool import KVPool
from turbo_runtime.models.attention.spans import ragged

KEY_CHUNK = 128  # keys of one product


class SplitKVItems:
    """Items that are computed together."""

    def __init__(self, pool: KVPool, items: Items) -> None:
        self._pool = pool
        device, chunks = pool.device, -(-items.spans.end // KEY_CHUNK)
        self._items, self._rows = items.queries.shape
        self._most = int(chunks.max())  # chunks of an item
        item, chunk = np.repeat(np.arange(self._items), chunks), ragged(chunks)
        self._uniform = len(item) == self._items * self._most
        self._place = torch.from_numpy(item * self._most + chunk).to(device)  # were all items of one length
        self._item = torch.from_numpy(item).to(device)
        self._queries = torch.from_numpy(items.queries[item].ravel()).to(device)
        per_chunk = KEY_CHUNK // BLOCK_SIZE
        logical = chunk[:, None] * per_chunk + np.arange(per_chunk)
        blocks = items.spans.block_at(item[:, None], logical, pool.scratch)
        self._blocks = torch.from_numpy(blocks.ravel()).to(device)
        # only an item's last keys, of a chunk or two, come after a query
        tail = np.flatnonzero((chunk + 1) * KEY_CHUNK - 1 > items.spans.start[item])
        self._tail = torch.from_numpy(tail).to(device)
        position = torch.from_numpy(items.positions[item[tail]]).to(device)
        key = torch.from_numpy(chunk[tail] * KEY_CHUNK).to(device)[:, None]
        key = key + torch.arange(KEY_CHUNK, device=device)
        self._hidden = key[:, None, :] > position[:, :, None]  # (tail, rows, KEY_CHUNK)

    def attend(self, layer: int, queries: Tensor, scaling: float) -> Tensor:
        """Queries (KV heads, tokens * group, width) of the whole step -> (KV heads, items * rows, value
        width).
        """
        kv_heads, chunks, rows = self._pool.kv_heads, len(self._item), self._rows
        keys, values = self._pool.gather(layer, self._blocks)
        query = queries.index_select(1, self._queries).view(kv_heads * chunks, rows, -1)
        products = torch.bmm(query, keys.view(kv_heads * chunks, KEY_CHUNK, -1).transpose(1, 2))
        # scores and sums in float32, like everywhere
        scores = products.float().mul_(scaling).view(kv_heads, chunks, rows, KEY_CHUNK)
        self._hide(scores)
        scores.sub_(self._top(scores.amax(-1))[..., None]).exp_()
        weights = scores.to(values.dtype).view(kv_heads * chunks, rows, KEY_CHUNK)
        sums = self._tree(scores.sum(-1, keepdim=True))
        answers = torch.bmm(weights, values.view(kv_heads * chunks, KEY_CHUNK, -1))
        total = self._tree(answers.view(kv_heads, chunks, rows, -1).float())
        return (total / sums).to(values.dtype).view(kv_heads, self._items * rows, -1)

    def _hide(self, scores: Tensor) -> None:
        """-inf, in place, where the key comes after the query."""
        if len(self._tail) == len(self._item):
            scores.masked_fill_(self._hidden, float("-inf"))
            return
        tail = scores.index_select(1, self._tail).masked_fill_(self._hidden, float("-inf"))
        scores.index_copy_(1, self._tail, tail)

    def _top(self, largest: Tensor) -> Tensor:
        """Largest score of each row over all chunks of its item, at every chunk: (KV heads, chunks, rows)."""
        if self._most == 1:
            return largest
        return self._per_item(largest, float("-inf")).amax(2).index_select(1, self._item)

    def _tree(self, parts: Tensor) -> Tensor:
        """Sum over the chunks of an item: (KV heads, chunks, rows, n) -> (KV heads, items, rows, n)."""
        parts = self._per_item(parts, 0.0)
        while (count := parts.shape[2]) > 1:
            pairs = parts[:, :, 0 : count - 1 : 2] + parts[:, :, 1::2]
            # one without a partner goes on as it is, as if its partner were zero
            parts = torch.cat([pairs, parts[:, :, -1:]], 2) if count % 2 else pairs
        return parts[:, :, 0]

    def _per_item(self, parts: Tensor, absent: float) -> Tensor:
        """(KV heads, chunks, ...) -> (KV heads, items, chunks of the longest item, ...)."""
        if not self._uniform:
            shape = (parts.shape[0], self._items * self._most, *parts.shape[2:])
            parts = parts.new_full(shape, absent).index_copy_(1, self._place, parts)
        return parts.view(parts.shape[0], self._items, self._most, *parts.shape[2:])
