"""Attention of single positions, batched over the whole step, each as if it were alone.

The keys of a sequence are read in chunks at fixed places, `KEY_CHUNK` positions each. A chunk, with the few
query rows that one *item* of a sequence brings, is one element of a batched product: its bits depend on the
element's shape, not on how many elements there are. The largest score of a row is exact in any order, and
what the chunks give is added up by a tree over their places, so that more chunks, which hold nothing for the
row, change nothing. This is the split-KV softmax (Milakov, Gimelshein, arXiv 1805.02867; Flash-Decoding) with
the order of its sums fixed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from turbo_runtime.engine.attention.pool import KVPool
from turbo_runtime.engine.attention.spans import Ints, Spans, ragged
from turbo_runtime.engine.blocks import BLOCK_SIZE

KEY_CHUNK = 128  # keys of one product
# Query rows of one item: one, or one and its drafts; few shapes, each of which is checked at start.
ROW_COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 17)
GROUP_BYTES = 4 << 20  # gathered at once: what a CPU's caches still hold when it is multiplied
READING = 8  # what gathering a chunk costs, in query rows of computing it


class RowAttention:
    """The single positions of one step, worked out once and used by every layer."""

    def __init__(self, pool: KVPool, spans: Spans, row_counts: tuple[int, ...]) -> None:
        """`row_counts`: which of ROW_COUNTS may be used."""
        rows_each = _cheapest(spans, row_counts, pool.group)
        items = spans.pieces(rows_each)
        self._groups = [_Group(pool, items.select(part), rows_each) for part in _parts(pool, items)]
        each = _products_rows(rows_each, pool.group)
        self.padded = len(items.count) * each  # rows of what `attend` returns
        # (tokens, group): where each query of a token stands in it
        item, within = np.repeat(np.arange(len(items.count)), items.count), ragged(items.count)
        self.answers = (item * each + within * pool.group)[:, None] + np.arange(pool.group)

    def attend(self, layer: int, queries: Tensor, scaling: float) -> Tensor:
        """Queries (KV heads, tokens * group, width) of the whole step -> (KV heads, padded, value width)."""
        parts = [group.attend(layer, queries, scaling) for group in self._groups]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


class _Group:
    """Items that are computed together."""

    def __init__(self, pool: KVPool, items: Spans, rows_each: int) -> None:
        self._pool = pool
        group, device = pool.group, pool.device
        self._items = len(items.count)
        self._rows = rows = _products_rows(rows_each, group)
        chunks = _chunks(items)
        self._most = int(chunks.max())  # chunks of an item
        item, chunk = np.repeat(np.arange(self._items), chunks), ragged(chunks)
        self._uniform = len(item) == self._items * self._most
        self._place = torch.from_numpy(item * self._most + chunk).to(device)  # were all items of one length
        self._item = torch.from_numpy(item).to(device)
        # rows beyond the item's own repeat its last one
        query = np.minimum(np.arange(rows), rows_each * group - 1)
        row = np.minimum(query // group, items.count[:, None] - 1)  # (items, rows), within the item
        wanted = (items.row[:, None] + row) * group + query % group
        self._queries = torch.from_numpy(wanted[item].ravel()).to(device)
        per_chunk = KEY_CHUNK // BLOCK_SIZE
        logical = chunk[:, None] * per_chunk + np.arange(per_chunk)
        self._blocks = torch.from_numpy(items.block_at(item[:, None], logical, pool.scratch).ravel()).to(
            device
        )
        # only an item's last keys, of a chunk or two, come after a query
        tail = np.flatnonzero((chunk + 1) * KEY_CHUNK - 1 > items.start[item])
        self._tail = torch.from_numpy(tail).to(device)
        position = torch.from_numpy((items.start[:, None] + row)[item[tail]]).to(device)
        key = torch.from_numpy(chunk[tail] * KEY_CHUNK).to(device)[:, None]
        key = key + torch.arange(KEY_CHUNK, device=device)
        self._hidden = key[:, None, :] > position[:, :, None]  # (tail, rows, KEY_CHUNK)

    def attend(self, layer: int, queries: Tensor, scaling: float) -> Tensor:
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


def _products_rows(rows_each: int, group: int) -> int:
    """Rows of one element of the batched products: a multiple of 4, at which kernels keep rows apart."""
    return -(-rows_each * group // 4) * 4


def _chunks(items: Spans) -> Ints:
    """Of keys that each item sees."""
    return -(-items.end // KEY_CHUNK)


def _cheapest(spans: Spans, row_counts: tuple[int, ...], group: int) -> int:
    """The number of rows an item with which the spans cost least, in query rows times chunks."""
    items = -(-spans.count // np.array(row_counts)[:, None])
    rows = np.array([_products_rows(rows_each, group) for rows_each in row_counts])
    return row_counts[int(np.argmin((items * _chunks(spans)).sum(1) * (READING + rows)))]


def _parts(pool: KVPool, items: Spans) -> Iterator[slice]:
    """Runs of items whose gathered keys and values stay within GROUP_BYTES; one item at least."""
    most = max(1, GROUP_BYTES // (KEY_CHUNK * pool.shape.elements * pool.dtype.itemsize))
    begin, held = 0, 0
    for index, chunks in enumerate(_chunks(items).tolist()):
        if held and held + chunks > most:
            yield slice(begin, index)
            begin, held = index, 0
        held += chunks
    yield slice(begin, len(items.count))
