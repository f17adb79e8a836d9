"""Attention of single positions, batched over the whole step, each as if it were alone.

Positions are cut into *items* of a few rows of one sequence. A row's bits do not depend on the number of rows
in its item, on its place among them, nor on other items. The cheaper of two kernels for the cache computes
them: the library's fused one, or batched products over chunks of keys.

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

Through a window, a position sees the keys from the start of the tile, or chunk, in which its window begins; a
mask hides those before it. The places of chunks are taken modulo a number that the window decides, so that
the tree depends on the position alone there, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import inf

import numpy as np
import torch
from torch import Tensor

from turbo_runtime.kv_cache.block_pool import PROMPT_TILE
from turbo_runtime.models.attention.fused import attend_fused, sinks_of_rows
from turbo_runtime.models.attention.pool import KVPool
from turbo_runtime.models.attention.spans import Spans, first_key, padded_queries, ragged
from turbo_runtime.models.step_batch import Ints

# Query rows of one item: one, or one and its drafts; few shapes, all checked at start.
ROW_COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16, 17)
GROUP_BYTES = 4 << 20  # gathered at once: what a CPU's caches still hold when it is multiplied
KEY_CHUNK = 128  # keys of one product
READING = 8  # what gathering a chunk costs, in query rows of computing it


class RowAttention:
    """The single positions of one step, prepared once for all layers."""

    def __init__(
        self,
        pool: KVPool,
        spans: Spans,
        row_counts: tuple[int, ...],
        window: int = 0,
        *,
        whole_step: bool = False,
    ) -> None:
        """`row_counts`: allowed ones of ROW_COUNTS. `whole_step`: the spans are all of the step."""
        fused, group = is_fused(pool), pool.group
        pieces = spans.pieces(PROMPT_TILE, aligned=True) if fused else spans
        rows_each = _cheapest(pieces, row_counts, group, window)
        pieces, item_rows = pieces.pieces(rows_each), padded_queries(rows_each, group)
        # the step is one item: its queries, and what `attend` returns, are in order with padding behind
        self.in_place = whole_step and len(pieces.count) == 1
        self.item_rows = item_rows
        order = np.argsort(_tiles(pieces, window), kind="stable")  # equal lengths together
        ordered = pieces.select(order)
        build = partial(FusedItems, in_place=self.in_place) if fused else SplitKVItems
        tiles = _tiles(ordered, window).tolist()
        groups = [ordered.select(part) for part in _parts(pool, tiles, alike=fused)]
        self._groups = [build(pool, items, *items.item_rows(rows_each, group), window) for items in groups]
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        first = np.repeat(place, pieces.count) * item_rows + ragged(pieces.count) * group
        # (tokens, group): where each query of a token stands in it
        self.output_rows = first[:, None] + np.arange(group)

    def attend(self, layer: int, queries: Tensor, scaling: float, sinks: Tensor | None = None) -> Tensor:
        """Queries (KV heads, tokens * group, width) of the whole step, at least `item_rows` where they are
        `in_place`, sinks (KV heads, group) -> (KV heads, padded, value width).
        """
        parts = [group.attend(layer, queries, scaling, sinks) for group in self._groups]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def is_fused(pool: KVPool) -> bool:
    """Whether the fused kernel is cheaper. On a device a call for each length costs more; and where values
    are narrower than keys, torch uses a kernel that materializes all scores.
    """
    wide = pool.shape.latent or pool.key_width == pool.value_width
    return pool.device.type == "cpu" and wide


def items_together(pool: KVPool, keys: int) -> int:
    """The number of items with so many keys that are computed at once; at least 1."""
    return max(1, GROUP_BYTES // (keys * pool.shape.elements * torch.float32.itemsize))


def _tiles(spans: Spans, window: int) -> Ints:
    """Tiles of keys that each span sees."""
    return -(-spans.end // PROMPT_TILE) - _first_of_tile(spans, window) // PROMPT_TILE


def _first_of_tile(spans: Spans, window: int) -> Ints:
    """The first key that the tile of each span sees."""
    return first_key(spans.start // PROMPT_TILE * PROMPT_TILE, window, PROMPT_TILE)


def _cheapest(spans: Spans, row_counts: tuple[int, ...], group: int, window: int) -> int:
    """The cheapest number of rows an item for the spans, in query rows times chunks."""
    items = -(-spans.count // np.array(row_counts)[:, None])
    rows = np.array([padded_queries(rows_each, group) for rows_each in row_counts])
    chunks = -(-spans.end // KEY_CHUNK) - first_key(spans.start, window, KEY_CHUNK) // KEY_CHUNK
    return row_counts[int(np.argmin((items * chunks).sum(1) * (READING + rows)))]


def _parts(pool: KVPool, tiles: list[int], *, alike: bool) -> Iterator[slice]:
    """Yield runs of items, ordered by `tiles` of keys, that fit in GROUP_BYTES, or single ones; `alike` in
    their number.
    """
    begin = 0
    for index, count in enumerate(tiles):
        full = index + 1 - begin > items_together(pool, count * PROMPT_TILE)
        if index > begin and (full or (alike and count != tiles[begin])):
            yield slice(begin, index)
            begin = index
    yield slice(begin, len(tiles))


class FusedItems:
    """Items in one call of the fused kernel, in float32 whatever the cache holds: for bfloat16 the kernel
    calls oneDNN for each item and head, which for an item's few rows costs more than turning its keys and
    values into float32.
    """

    def __init__(
        self, pool: KVPool, items: Spans, queries: Ints, positions: Ints, window: int, *, in_place: bool
    ) -> None:
        """`in_place`: the only item is all of the step, so its queries come first and padding follows."""
        self._pool = pool
        number, keys = len(queries), int(_tiles(items, window)[0]) * PROMPT_TILE
        key = _first_of_tile(items, window)[:, None, None] + np.arange(keys)
        logical = key[:, 0, :: pool.block_size] // pool.block_size
        blocks = items.block_at(np.arange(number)[:, None], logical, pool.scratch).ravel()
        in_a_row = _in_a_row(blocks, pool) if in_place else None
        self._items = number
        self._blocks = pool.tensor(blocks) if in_a_row is None else in_a_row
        self._queries = slice(queries.size) if in_place else pool.tensor(queries.ravel())
        # (items, rows, keys); all that can come after a row lies in its own tile, and all that its window has
        # passed in the first two
        self._mask = torch.zeros(*queries.shape, keys, device=pool.device)
        last = positions[:, :, None]
        self._mask[..., -PROMPT_TILE:].masked_fill_(pool.tensor(key[..., -PROMPT_TILE:] > last), -inf)
        if window:
            passed = key[..., : 2 * PROMPT_TILE] <= last - window
            self._mask[..., : 2 * PROMPT_TILE].masked_fill_(pool.tensor(passed), -inf)
        self._mask = self._mask[:, None]

    def attend(self, layer: int, queries: Tensor, scaling: float, sinks: Tensor | None) -> Tensor:
        """Queries (KV heads, tokens * group, width) of the step -> (KV heads, items * rows, value width)."""
        pool = self._pool
        keys, values = pool.gather(layer, self._blocks)
        keys = keys.float()
        # the fastest kernel needs values as wide as keys; latent values lead the keys
        values = keys if pool.shape.latent else values.float()
        own = self._queries
        query = (queries[:, own] if isinstance(own, slice) else queries.index_select(1, own)).float()
        if self._items == 1:
            by_item = query[None], keys[None], values[None]
            outputs = attend_fused(*by_item, self._mask, scaling, sinks)[0]
        else:
            query, keys, values = (
                tensor.view(pool.kv_heads, self._items, -1, tensor.shape[-1]).transpose(0, 1)
                for tensor in (query, keys, values)
            )
            outputs = attend_fused(query, keys, values, self._mask, scaling, sinks)
            outputs = outputs.transpose(0, 1).flatten(1, 2)
        outputs = outputs.to(pool.dtype)
        return outputs[..., : pool.value_width] if pool.shape.latent else outputs


def _in_a_row(blocks: Ints, pool: KVPool) -> slice | None:
    """The slots of the only sequence's blocks if they are contiguous and need no gathering. Beyond its table
    the slice reads other sequences' slots. The mask hides them like the scratch block, since they are finite:
    other sequences in the step might have just written NaN, but there are none.
    """
    begin, count = int(blocks[0]), len(blocks)
    own = blocks[blocks != pool.scratch]
    if begin + count > pool.blocks + 1 or (own != np.arange(begin, begin + len(own))).any():
        return None
    return slice(begin * pool.block_size, (begin + count) * pool.block_size)


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
