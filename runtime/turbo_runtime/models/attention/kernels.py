"""Attention of items: by the library's fused kernel, or by batched products over chunks of keys.

The fused kernel goes through an item's keys in blocks, with products whose order of summation depends on the
number of keys. So a position sees as many keys as there are up to the end of its tile of PROMPT_TILE
positions, and a mask hides those after it: their number depends on the position alone, and equals that of the
tile of a prompt that the position may lie in (`tiles`). No item crosses a tile's end, and all items of a call
see equally many keys.

The batched products read keys in chunks at fixed places, `KEY_CHUNK` positions each. A chunk and the query
rows of an item are one element of a product, whose bits depend on the element's shape, not on the number of
elements. The largest score of a row is exact in any order, and a tree over the places of the chunks adds them
up, so that empty chunks change nothing. This is the split-KV softmax (Milakov, Gimelshein, arXiv 1805.02867;
Flash-Decoding) with a fixed order of sums.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from turbo_runtime.kv_cache.block_pool import BLOCK_SIZE, PROMPT_TILE
from turbo_runtime.models.attention.pool import KVPool
from turbo_runtime.models.attention.spans import Ints, Items, ragged


class FusedItems:
    """Items in one call of the fused kernel."""

    def __init__(self, pool: KVPool, items: Items, *, in_place: bool = False) -> None:
        """`in_place`: the only item is all of the step, so its queries come first and padding follows."""
        self._pool = pool
        number, keys = len(items.queries), -(-int(items.spans.end[0]) // PROMPT_TILE) * PROMPT_TILE
        blocks = items.spans.block_at(
            np.arange(number)[:, None], np.arange(keys // BLOCK_SIZE), pool.scratch
        ).ravel()
        in_a_row = _in_a_row(blocks, pool) if in_place else None
        self._items = number
        self._blocks = torch.from_numpy(blocks).to(pool.device) if in_a_row is None else in_a_row
        self._queries: Tensor | slice = slice(items.queries.size)
        if not in_place:
            self._queries = torch.from_numpy(items.queries.ravel()).to(pool.device)
        # (items, rows, keys); all that can come after a row lies in its own tile
        self._mask = torch.zeros(*items.queries.shape, keys, dtype=pool.dtype, device=pool.device)
        later = np.arange(keys - PROMPT_TILE, keys) > items.positions[:, :, None]
        self._mask[..., -PROMPT_TILE:].masked_fill_(torch.from_numpy(later).to(pool.device), float("-inf"))

    def attend(self, layer: int, queries: Tensor, scaling: float) -> Tensor:
        """Queries (KV heads, tokens * group, width) of the step -> (KV heads, items * rows, value width)."""
        pool = self._pool
        keys, values = pool.gather(layer, self._blocks)
        if pool.shape.latent:
            values = keys  # the fastest kernel needs values as wide as keys; the values lead the keys
        if isinstance(self._queries, slice):
            query = queries[:, self._queries]
        else:
            query = queries.index_select(1, self._queries)
        query, keys, values = (
            tensor.view(pool.kv_heads, self._items, -1, tensor.shape[-1]).transpose(0, 1)
            for tensor in (query, keys, values)
        )
        outputs = F.scaled_dot_product_attention(
            query, keys, values, attn_mask=self._mask[:, None], scale=scaling
        )
        return outputs.transpose(0, 1).flatten(1, 2)[..., : pool.value_width]


def _in_a_row(blocks: Ints, pool: KVPool) -> slice | None:
    """The slots of the only sequence's blocks if they are contiguous and need no gathering.

    Beyond its table the slice reads other sequences' slots. The mask hides them like the scratch block, since
    they are finite: other sequences in the step might have just written NaN, but there are none.
    """
    begin, count = int(blocks[0]), len(blocks)
    own = blocks[blocks != pool.scratch]
    if begin + count > pool.blocks + 1 or (own != np.arange(begin, begin + len(own))).any():
        return None
    return slice(begin * BLOCK_SIZE, (begin + count) * BLOCK_SIZE)


KEY_CHUNK = 128  # keys of one product


class SplitKVItems:
    """Items in batched products over chunks of their keys."""

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
        """Queries (KV heads, tokens * group, width) of the step -> (KV heads, items * rows, value width)."""
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
        """Set scores to -inf, in place, where the key comes after the query."""
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
