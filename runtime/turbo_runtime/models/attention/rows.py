"""Attention of single positions on a device, batched over the whole step, each as if it were alone.

Positions are cut into *items* of a few rows of one sequence. A row's bits do not depend on the number of rows
in its item, on its place among them, nor on other items.

Batched products read keys in chunks at fixed places, `KEY_CHUNK` positions each. A chunk and the query rows
of an item are one element of a product, whose bits depend on the element's shape, not on the number of
elements. The largest score of a row is exact in any order, and a tree over the places of the chunks adds them
up, so that empty chunks change nothing. This is the split-KV softmax (Milakov, Gimelshein, arXiv 1805.02867;
Flash-Decoding) with a fixed order of sums.

Through a window, a position sees the keys from the start of the chunk in which its window begins; a mask
hides those before it. The places of chunks are taken modulo a number that the window decides, so that the
tree depends on the position alone there, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

import numpy as np
import torch
from torch import Tensor

from turbo_runtime.models.attention.fused import sinks_of_rows
from turbo_runtime.models.attention.pool import KVPool
from turbo_runtime.models.attention.spans import Spans, first_key, padded_queries, ragged
from turbo_runtime.models.step_batch import Ints

# Query rows of one item: one, or one and its drafts; few shapes, all checked at start.
ROW_COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16, 17)
GROUP_BYTES = 4 << 20  # gathered at once
KEY_CHUNK = 128  # keys of one product
READING = 8  # what gathering a chunk costs, in query rows of computing it


class RowAttention:
    """The single positions of one step, prepared once for all layers."""

    def __init__(self, pool: KVPool, spans: Spans, row_counts: tuple[int, ...], window: int = 0) -> None:
        """`row_counts`: allowed ones of ROW_COUNTS."""
        group = pool.group
        rows_each = _cheapest(spans, row_counts, group, window)
        pieces, item_rows = spans.pieces(rows_each), padded_queries(rows_each, group)
        order = np.argsort(_chunks(pieces, window), kind="stable")  # equal lengths together
        ordered = pieces.select(order)
        chunks = _chunks(ordered, window).tolist()
        groups = [ordered.select(part) for part in _parts(pool, chunks)]
        self._groups = [
            SplitKVItems(pool, items, *items.item_rows(rows_each, group), window) for items in groups
        ]
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        first = np.repeat(place, pieces.count) * item_rows + ragged(pieces.count) * group
        # (tokens, group): where each query of a token stands in it
        self.output_rows = first[:, None] + np.arange(group)

    def attend(self, layer: int, queries: Tensor, scaling: float, sinks: Tensor | None = None) -> Tensor:
        """Queries (KV heads, tokens * group, width) of the whole step, sinks (KV heads, group) -> (KV heads,
        padded, value width).
        """
        parts = [group.attend(layer, queries, scaling, sinks) for group in self._groups]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def items_together(pool: KVPool, keys: int) -> int:
    """The number of items with so many keys that are computed at once; at least 1."""
    return max(1, GROUP_BYTES // (keys * pool.shape.elements * torch.float32.itemsize))


def _chunks(spans: Spans, window: int) -> Ints:
    """Chunks of keys that each span sees."""
    return -(-spans.end // KEY_CHUNK) - first_key(spans.start, window, KEY_CHUNK) // KEY_CHUNK


def _cheapest(spans: Spans, row_counts: tuple[int, ...], group: int, window: int) -> int:
    """The cheapest number of rows an item for the spans, in query rows times chunks."""
    items = -(-spans.count // np.array(row_counts)[:, None])
    rows = np.array([padded_queries(rows_each, group) for rows_each in row_counts])
    chunks = _chunks(spans, window)
    return row_counts[int(np.argmin((items * chunks).sum(1) * (READING + rows)))]


def _parts(pool: KVPool, chunks: list[int]) -> Iterator[slice]:
    """Yield runs of items, ordered by `chunks` of keys, that fit in GROUP_BYTES, or single ones."""
    begin = 0
    for index, count in enumerate(chunks):
        if index > begin and index + 1 - begin > items_together(pool, count * KEY_CHUNK):
            yield slice(begin, index)
            begin = index
    yield slice(begin, len(chunks))


class SplitKVItems:
    """Items in batched products over chunks of their keys."""

    def __init__(self, pool: KVPool, items: Spans, queries: Ints, positions: Ints, window: int) -> None:
        self._pool = pool
        first = first_key(items.start, window, KEY_CHUNK) // KEY_CHUNK
        chunks = -(-items.end // KEY_CHUNK) - first
        self._items, self._rows = queries.shape
        # of an item: as many as it has chunks, or as any has through the window, wherever it is
        self._places = (window + ROW_COUNTS[-1]) // KEY_CHUNK + 2 if window else int(chunks.max())
        item = np.repeat(np.arange(self._items), chunks)
        chunk = first[item] + ragged(chunks)
        place = item * self._places + chunk % self._places  # were all items of one length
        self._uniform = np.array_equal(place, np.arange(self._items * self._places))
        self._place = pool.tensor(place)
        self._item = pool.tensor(item)
        self._queries = pool.tensor(queries[item].ravel())
        per_chunk = KEY_CHUNK // pool.block_size
        logical = chunk[:, None] * per_chunk + np.arange(per_chunk)
        self._blocks = pool.tensor(items.block_at(item[:, None], logical, pool.scratch).ravel())
        # only an item's last keys, of a chunk or two, come after a query, and the first precede its window
        is_edge = (chunk + 1) * KEY_CHUNK - 1 > items.start[item]
        if window:
            is_edge |= chunk * KEY_CHUNK < items.end[item] - window
        edge = np.flatnonzero(is_edge)
        self._edge = pool.tensor(edge)
        key = chunk[edge, None, None] * KEY_CHUNK + np.arange(KEY_CHUNK)
        last = positions[item[edge]][:, :, None]
        # (edge, rows, KEY_CHUNK)
        self._hidden = pool.tensor((key > last) | (key <= last - window) if window else key > last)

    def attend(self, layer: int, queries: Tensor, scaling: float, sinks: Tensor | None) -> Tensor:
        """Queries (KV heads, tokens * group, width) of the step -> (KV heads, items * rows, value width)."""
        kv_heads, chunks, rows = self._pool.kv_heads, len(self._item), self._rows
        keys, values = self._pool.gather(layer, self._blocks)
        query = queries.index_select(1, self._queries).view(kv_heads * chunks, rows, -1)
        products = torch.bmm(query, keys.view(kv_heads * chunks, KEY_CHUNK, -1).transpose(1, 2))
        # scores and sums in float32, like everywhere
        scores = products.float().mul_(scaling).view(kv_heads, chunks, rows, KEY_CHUNK)
        self._hide(scores)
        largest = scores.amax(-1)
        top = (
            largest if self._places == 1 else self._per_item(largest, -inf).amax(2)
        )  # (KV heads, items, rows)
        scores.sub_((top if self._places == 1 else top.index_select(1, self._item))[..., None]).exp_()
        weights = scores.to(values.dtype).view(kv_heads * chunks, rows, KEY_CHUNK)
        sums = self._tree(scores.sum(-1, keepdim=True))
        if sinks is not None:
            sums = sums + (sinks_of_rows(sinks, rows)[:, None] - top).exp()[..., None]
        mixtures = torch.bmm(weights, values.view(kv_heads * chunks, KEY_CHUNK, -1))
        total = self._tree(mixtures.view(kv_heads, chunks, rows, -1).float())
        return (total / sums).to(values.dtype).view(kv_heads, self._items * rows, -1)

    def _hide(self, scores: Tensor) -> None:
        """Set scores to -inf, in place, where the key comes after the query or before its window."""
        if len(self._edge) == len(self._item):
            scores.masked_fill_(self._hidden, -inf)
            return
        edge = scores.index_select(1, self._edge).masked_fill_(self._hidden, -inf)
        scores.index_copy_(1, self._edge, edge)

    def _tree(self, parts: Tensor) -> Tensor:
        """Sum over the chunks of an item: (KV heads, chunks, rows, n) -> (KV heads, items, rows, n)."""
        parts = self._per_item(parts, 0.0)
        while (count := parts.shape[2]) > 1:
            pairs = parts[:, :, 0 : count - 1 : 2] + parts[:, :, 1::2]
            # one without a partner goes on as it is, as if its partner were zero
            parts = torch.cat([pairs, parts[:, :, -1:]], 2) if count % 2 else pairs
        return parts[:, :, 0]

    def _per_item(self, parts: Tensor, absent: float) -> Tensor:
        """(KV heads, chunks, ...) -> (KV heads, items, places, ...)."""
        if not self._uniform:
            shape = (parts.shape[0], self._items * self._places, *parts.shape[2:])
            parts = parts.new_full(shape, absent).index_copy_(1, self._place, parts)
        return parts.view(parts.shape[0], self._items, self._places, *parts.shape[2:])
