"""Attention of items in one call of the library's fused kernel.

The kernel goes through an item's keys in blocks, with products whose order of summation depends on how many
keys there are. So a position sees as many keys as there are up to the end of its tile of PROMPT_TILE
positions, those after it hidden by a mask: their number depends on the position alone, and is that of the
tile of a prompt that it may lie in (`tiles.py`). No item crosses a tile's end, and the items of one call see
equally many.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from turbo_runtime.kv_cache.block_pool import BLOCK_SIZE, PROMPT_TILE
from turbo_runtime.models.attention.items import Items
from turbo_runtime.models.attention.pool import KVPool
from turbo_runtime.models.attention.spans import Ints


class FusedItems:
    """Items that are computed together."""

    def __init__(self, pool: KVPool, items: Items, *, in_place: bool = False) -> None:
        """`in_place`: the item is all of the step, whose queries begin with its own; padding makes up its
        rows.
        """
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
        """Queries (KV heads, tokens * group, width) of the whole step -> (KV heads, items * rows, value
        width).
        """
        pool = self._pool
        keys, values = pool.gather(layer, self._blocks)
        if pool.shape.latent:
            # the kernel that never holds all scores wants values as wide as keys; they lead the keys
            values = keys
        if isinstance(self._queries, slice):
            query = queries[:, self._queries]
        else:
            query = queries.index_select(1, self._queries)
        query, keys, values = (
            tensor.view(pool.kv_heads, self._items, -1, tensor.shape[-1]).transpose(0, 1)
            for tensor in (query, keys, values)
        )
        found = F.scaled_dot_product_attention(
            query, keys, values, attn_mask=self._mask[:, None], scale=scaling
        )
        return found.transpose(0, 1).flatten(1, 2)[..., : pool.value_width]


def _in_a_row(blocks: Ints, pool: KVPool) -> slice | None:
    """The slots of the only sequence's blocks, where they follow each other and need no gathering.

    Beyond the end of its table there is then what others have. The mask hides it like the scratch block,
    since it is finite, and far from where a score overflows: were others in the step, they might have written
    what is no number a moment ago.
    """
    begin, count = int(blocks[0]), len(blocks)
    own = blocks[blocks != pool.scratch]
    if begin + count > pool.blocks + 1 or (own != np.arange(begin, begin + len(own))).any():
        return None
    return slice(begin * BLOCK_SIZE, (begin + count) * BLOCK_SIZE)
