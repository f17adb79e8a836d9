"""Attention of many positions at once: one call for a tile, against the keys up to its end.

Under `bitwise` a tile is aligned and computed whole, with a mask, whichever of its rows the step needs. So
each call has a fixed shape, and a position's arithmetic does not depend on how steps cut the prompt.
Unneeded rows hold some other row of the step; no product mixes rows.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from turbo_runtime.kv_cache.block_pool import PROMPT_TILE, blocks_for
from turbo_runtime.models.attention.fused import attend_fused
from turbo_runtime.models.attention.pool import KVPool
from turbo_runtime.models.attention.spans import Spans, first_key
from turbo_runtime.models.step_batch import Ints


class _Tile(NamedTuple):
    """The last `rows` of some positions, computed in one call against all of these."""

    rows: int
    first: int  # of the positions, among those that are read
    keys: int  # their number
    place: int  # of its first row in the output of `attend`, in tokens


class TileAttention:
    """The tiles of one step, prepared once for all layers."""

    def __init__(self, pool: KVPool, spans: Spans, *, aligned: bool, window: int = 0) -> None:
        """Tiles are aligned and whole, or begin and end with the span, which is one tile on a device."""
        self._pool = pool
        self._sources: list[tuple[Tensor, list[_Tile]]] = []  # blocks, and the tiles that read them
        queries: list[Ints] = []
        output_rows: list[Ints] = []
        place = 0
        for index in range(len(spans.count)):
            span = spans.select(slice(index, index + 1))
            start, end, row = int(span.start[0]), int(span.end[0]), int(span.row[0])
            size = PROMPT_TILE if aligned or pool.device.type == "cpu" else end - start
            begin, stop = (start // size * size, -(-end // size) * size) if aligned else (start, end)
            cuts = [*range(begin, stop, size), stop]
            seen = first_key(np.array(cuts), window, PROMPT_TILE).tolist()
            tiles = [
                _Tile(after - first, key - seen[0], after - key, place + first - begin)
                for (first, after), key in zip(pairwise(cuts), seen, strict=False)
            ]
            position = np.arange(begin, stop)
            queries.append(np.clip(position, start, end - 1) - start + row)
            output_rows.append(place + np.arange(start, end) - begin)
            logical = np.arange(seen[0] // pool.block_size, blocks_for(stop, pool.block_size))
            blocks = span.block_at(np.zeros_like(logical), logical, pool.scratch)
            self._sources.append((pool.tensor(blocks), tiles))
            place += len(position)
        group = np.arange(pool.group)
        indices = np.concatenate(queries)[:, None] * pool.group + group
        self._queries = pool.tensor(indices.ravel())
        self.padded = place * pool.group  # rows of what `attend` returns
        # (tokens, group): where each query of a token stands in it
        self.output_rows = np.concatenate(output_rows)[:, None] * pool.group + group
        # by tile rows; of equal ones the tile with most keys comes last
        max_keys = dict(sorted((tile.rows, tile.keys) for _, tiles in self._sources for tile in tiles))
        self._masks = {rows: causal_tail(rows, keys, pool, window) for rows, keys in max_keys.items()}

    def attend(self, layer: int, queries: Tensor, scaling: float, sinks: Tensor | None = None) -> Tensor:
        """Queries (KV heads, tokens * group, width) of the whole step, sinks (KV heads, group) -> (KV heads,
        padded, value width).
        """
        pool = self._pool
        query = queries.index_select(1, self._queries)[None]
        out = query.new_empty(1, pool.kv_heads, self.padded, pool.value_width)
        for blocks, tiles in self._sources:
            keys, values = pool.gather(layer, blocks)
            if pool.shape.latent:
                values = keys  # the fastest kernel needs values as wide as keys; the values lead the keys
            for tile in tiles:
                here = slice(tile.place * pool.group, (tile.place + tile.rows) * pool.group)
                own = slice(tile.first, tile.first + tile.keys)
                key, value = keys[None, :, own], values[None, :, own]
                mask = self._masks[tile.rows][:, -tile.keys :]
                tiled = attend_fused(query[:, :, here], key, value, mask, scaling, sinks)
                out[:, :, here] = tiled[..., : pool.value_width]
        return out[0]


def causal_tail(rows: int, keys: int, pool: KVPool, window: int = 0) -> Tensor:
    """(rows * group, keys): zeros, but -inf where a key comes after the row, one of the last `rows`, or
    before its window.
    """
    hidden = torch.ones(rows, keys, dtype=torch.bool, device=pool.device).triu_(keys - rows + 1)
    if window:
        hidden |= torch.ones_like(hidden).tril_(keys - rows - window)
    mask = torch.zeros(rows, keys, dtype=pool.dtype, device=pool.device).masked_fill_(hidden, float("-inf"))
    return mask.repeat_interleave(pool.group, dim=0)
