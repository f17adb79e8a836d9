"""Attention of single positions, batched over the whole step, each as if it were alone.

Positions are cut into *items* of a few rows of one sequence. How an item is computed does not depend on how
many rows it has, on where among them a row stands, nor on the items beside it: by one of two ways, whichever
is cheaper for the type of the cache.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from turbo_runtime.engine.attention.fused import KEY_TILE, FusedItems
from turbo_runtime.engine.attention.items import Items, padded_queries
from turbo_runtime.engine.attention.pool import KVPool
from turbo_runtime.engine.attention.spans import Ints, Spans, ragged
from turbo_runtime.engine.attention.split_kv import KEY_CHUNK, SplitKVItems

# Rows of one item: one, one and its drafts, or a part of a prompt; few shapes, each is checked at start.
ROW_COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17, 32, 64)
SHORT = 17  # rows of a span up to which it shares a shape with all such
GROUP_BYTES = 4 << 20  # gathered at once: what a CPU's caches still hold when it is multiplied
READING = 8  # what gathering a chunk costs, in query rows of computing it


class RowAttention:
    """The single positions of one step, worked out once and used by every layer."""

    def __init__(self, pool: KVPool, spans: Spans, row_counts: tuple[int, ...], step_rows: int = 0) -> None:
        """`row_counts`: which of ROW_COUNTS may be used. `step_rows`: of the step, padding included, where
        these spans are all of it.
        """
        self._pool, self._fused = pool, is_fused(pool)
        self._groups: list[FusedItems | SplitKVItems] = []
        self.padded = 0  # rows of what `attend` returns
        pieces = spans.split_at(KEY_TILE) if self._fused else spans
        self._step_queries = step_rows * pool.group if len(pieces.count) == 1 else 0
        # whether what `attend` returns answers the step's queries as they stand, padding included
        self.in_order = False
        # (tokens, group): where each query of a token stands in it
        self.answers = np.zeros((int(spans.count.sum()), pool.group), np.int64)
        short = pieces.count <= SHORT
        for alike in (short, ~short):
            if alike.any():
                self.answers[np.repeat(alike, pieces.count)] = self._add(pieces.select(alike), row_counts)

    def attend(self, layer: int, queries: Tensor, scaling: float) -> Tensor:
        """Queries (KV heads, tokens * group, width) of the whole step -> (KV heads, padded, value width)."""
        parts = [group.attend(layer, queries, scaling) for group in self._groups]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _add(self, spans: Spans, row_counts: tuple[int, ...]) -> Ints:
        """Compute these spans too; their answers."""
        group = self._pool.group
        rows_each = _cheapest(spans, row_counts, group)
        pieces = spans.pieces(rows_each)
        each = padded_queries(rows_each, group)
        in_place = len(pieces.count) == 1 and each <= self._step_queries
        self.in_order = len(pieces.count) == 1 and each == self._step_queries
        order = np.argsort(_tiles(pieces), kind="stable")  # those of like length together
        ordered = pieces.select(order)
        for part in _parts(self._pool, ordered, alike=self._fused):
            items = Items.of(ordered.select(part), rows_each, group)
            if self._fused:
                self._groups.append(FusedItems(self._pool, items, in_place=in_place))
            else:
                self._groups.append(SplitKVItems(self._pool, items))
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        first = self.padded + np.repeat(place, pieces.count) * each + ragged(pieces.count) * group
        self.padded += len(order) * each
        return first[:, None] + np.arange(group)


def is_fused(pool: KVPool) -> bool:
    """Whether the fused kernel is the cheaper way. In bfloat16 it calls oneDNN for each item and head, which
    costs a batch a quarter more than products over all chunks at once; and where values are narrower than
    keys, another one takes its place that holds all scores.
    """
    return pool.dtype == torch.float32 and (pool.shape.latent or pool.key_width == pool.value_width)


def _tiles(spans: Spans) -> Ints:
    """Of keys that each span sees."""
    return -(-spans.end // KEY_TILE)


def _cheapest(spans: Spans, row_counts: tuple[int, ...], group: int) -> int:
    """The number of rows an item with which the spans cost least, in query rows times chunks."""
    items = -(-spans.count // np.array(row_counts)[:, None])
    rows = np.array([padded_queries(rows_each, group) for rows_each in row_counts])
    chunks = -(-spans.end // KEY_CHUNK)
    return row_counts[int(np.argmin((items * chunks).sum(1) * (READING + rows)))]


def _parts(pool: KVPool, ordered: Spans, *, alike: bool) -> Iterator[slice]:
    """Runs of items, ordered by length, whose gathered keys and values stay within GROUP_BYTES were all as
    long as the last, one item at least; all `alike` in tiles where wanted.
    """
    most = max(1, GROUP_BYTES // (KEY_TILE * pool.shape.elements * pool.dtype.itemsize))
    tiles = _tiles(ordered).tolist()
    begin = 0
    for index, count in enumerate(tiles):
        if index > begin and ((index + 1 - begin) * count > most or (alike and count != tiles[begin])):
            yield slice(begin, index)
            begin = index
    yield slice(begin, len(tiles))
