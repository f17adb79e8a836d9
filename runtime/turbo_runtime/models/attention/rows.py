"""Attention of single positions, batched over the whole step, each as if it were alone.

Positions are cut into *items* of a few rows of one sequence. A row's bits do not depend on the number of rows
in its item, on its place among them, nor on other items. The cheaper of two kernels for the cache computes
them (`kernels`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from turbo_runtime.kv_cache.block_pool import PROMPT_TILE
from turbo_runtime.models.attention.kernels import KEY_CHUNK, FusedItems, SplitKVItems
from turbo_runtime.models.attention.pool import KVPool
from turbo_runtime.models.attention.spans import Ints, Items, Spans, padded_queries, ragged

# Query rows of one item: one, or one and its drafts; few shapes, all checked at start.
ROW_COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17)
GROUP_BYTES = 4 << 20  # gathered at once: what a CPU's caches still hold when it is multiplied
READING = 8  # what gathering a chunk costs, in query rows of computing it


class RowAttention:
    """The single positions of one step, prepared once for all layers."""

    def __init__(self, pool: KVPool, spans: Spans, row_counts: tuple[int, ...], step_rows: int = 0) -> None:
        """`row_counts`: allowed ones of ROW_COUNTS. `step_rows`: if the spans are all of the step, padded."""
        fused, group = is_fused(pool), pool.group
        pieces = spans.split_at(PROMPT_TILE) if fused else spans
        rows_each = _cheapest(pieces, row_counts, group)
        pieces, item_rows = pieces.pieces(rows_each), padded_queries(rows_each, group)
        alone = len(pieces.count) == 1
        # whether `attend` returns the outputs in the order of the step's queries, padding included
        self.in_order = alone and item_rows == step_rows * group
        in_place = alone and item_rows <= step_rows * group
        order = np.argsort(_tiles(pieces), kind="stable")  # equal lengths together
        ordered = pieces.select(order)
        self._groups: list[FusedItems | SplitKVItems] = []
        for part in _parts(pool, ordered, alike=fused):
            items = Items.of(ordered.select(part), rows_each, group)
            self._groups.append(
                FusedItems(pool, items, in_place=in_place) if fused else SplitKVItems(pool, items)
            )
        self.padded = len(order) * item_rows  # rows of what `attend` returns
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        first = np.repeat(place, pieces.count) * item_rows + ragged(pieces.count) * group
        # (tokens, group): where each query of a token stands in it
        self.answers = first[:, None] + np.arange(group)

    def attend(self, layer: int, queries: Tensor, scaling: float) -> Tensor:
        """Queries (KV heads, tokens * group, width) of the whole step -> (KV heads, padded, value width)."""
        parts = [group.attend(layer, queries, scaling) for group in self._groups]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def is_fused(pool: KVPool) -> bool:
    """Whether the fused kernel is cheaper. In bfloat16 it calls oneDNN for each item and head, which is a
    quarter slower than products over all chunks; on a device a call for each length costs more; and where
    values are narrower than keys, torch uses a kernel that materializes all scores.
    """
    wide = pool.shape.latent or pool.key_width == pool.value_width
    return pool.device.type == "cpu" and pool.dtype == torch.float32 and wide


def items_together(pool: KVPool, keys: int) -> int:
    """The number of items with so many keys that are computed at once; at least 1."""
    return max(1, GROUP_BYTES // (keys * pool.shape.elements * pool.dtype.itemsize))


def _tiles(spans: Spans) -> Ints:
    """Tiles of keys that each span sees."""
    return -(-spans.end // PROMPT_TILE)


def _cheapest(spans: Spans, row_counts: tuple[int, ...], group: int) -> int:
    """The cheapest number of rows an item for the spans, in query rows times chunks."""
    items = -(-spans.count // np.array(row_counts)[:, None])
    rows = np.array([padded_queries(rows_each, group) for rows_each in row_counts])
    chunks = -(-spans.end // KEY_CHUNK)
    return row_counts[int(np.argmin((items * chunks).sum(1) * (READING + rows)))]


def _parts(pool: KVPool, ordered: Spans, *, alike: bool) -> Iterator[slice]:
    """Yield runs of items, ordered by length, that fit in GROUP_BYTES, or single ones; `alike` in length."""
    tiles = _tiles(ordered).tolist()
    begin = 0
    for index, count in enumerate(tiles):
        full = index + 1 - begin > items_together(pool, count * PROMPT_TILE)
        if index > begin and (full or (alike and count != tiles[begin])):
            yield slice(begin, index)
            begin = index
    yield slice(begin, len(tiles))
