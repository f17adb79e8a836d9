"""Paged attention for transformers' models: the pool of keys and values, and the function behind
`attn_implementation="turbo_paged"`.

A step is one flat row of tokens of many sequences. The queries of a sequence are taken in aligned tiles of
`QUERY_TILE` positions, and each tile is one call of a fixed shape: all its rows, wanted or not, against the
keys up to the end of the tile's block, with a mask. So a position's arithmetic depends on the position alone:
not on how many rows of the tile are computed now (rows that are not wanted are zeros, and no product mixes
rows), not on batch mates, and not on whether the position is prompt, answer, draft or a recomputation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from turbo_runtime.engine.blocks import BLOCK_SIZE

# Positions of one call; divides BLOCK_SIZE. Larger tiles waste work in decoding, smaller ones in prefill.
QUERY_TILE = 8
IMPLEMENTATION = "turbo_paged"


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of one sequence in a step."""

    start: int  # position of the first
    count: int
    table: list[int]  # the sequence's blocks, long enough for start + count tokens


@dataclass(frozen=True, slots=True)
class _Tile:
    index: int  # in the step's padded queries
    keys: int  # tokens attended to, a multiple of BLOCK_SIZE
    odd: bool  # the second tile of its block


class KVPool:
    """Keys and values of all sequences, per layer (KV heads, slots, head size), and the masks."""

    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        heads: int,
        head_dim: int,
        blocks: int,
        max_length: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`max_length` in tokens bounds one sequence."""
        shape = (kv_heads, blocks * BLOCK_SIZE, head_dim)
        # zeros, since a masked slot is still multiplied by 0 and must not hold a NaN
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.kv_heads, self.group, self.head_dim = kv_heads, heads // kv_heads, head_dim
        self.device, self.dtype = device, dtype
        self.blocks, self.max_length = blocks, max_length
        columns = -(-max_length // BLOCK_SIZE) * BLOCK_SIZE
        self._masks = [
            _causal_tail(first, self.group, columns, dtype, device)
            for first in range(0, BLOCK_SIZE, QUERY_TILE)
        ]

    def clear(self, blocks: list[int]) -> None:
        """Zeros in all slots of these blocks; the memory is really there afterwards."""
        wanted = torch.tensor(blocks, device=self.device)
        for tensor in (*self.keys, *self.values):
            tensor.view(self.kv_heads, -1, BLOCK_SIZE * self.head_dim).index_fill_(1, wanted, 0)

    def mask(self, tile: _Tile) -> Tensor:
        """(tile rows, keys): what each query of the tile may not see is -inf."""
        masks = self._masks[tile.odd]
        return masks[:, masks.shape[1] - tile.keys :]


class PagedStep:
    """Where the tokens of one step live: worked out once, used by every layer."""

    def __init__(self, pool: KVPool, spans: list[Span]) -> None:
        self.pool = pool
        slots: list[int] = []
        tile_of: list[int] = []
        row_of: list[int] = []
        self._tiles: list[
            tuple[Tensor, list[_Tile]]
        ] = []  # per span: the blocks to gather, the tiles that read them
        count = 0
        for span in spans:
            end = span.start + span.count
            first_tile, last_tile = span.start // QUERY_TILE, (end - 1) // QUERY_TILE
            for position in range(span.start, end):
                slots.append(span.table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE)
                tile_of.append(count + position // QUERY_TILE - first_tile)
                row_of.append(position % QUERY_TILE)
            tiles: list[_Tile] = []
            for number in range(first_tile, last_tile + 1):
                block, within = divmod(number * QUERY_TILE, BLOCK_SIZE)
                tiles.append(_Tile(count, (block + 1) * BLOCK_SIZE, odd=within > 0))
                count += 1
            blocks = span.table[: tiles[-1].keys // BLOCK_SIZE]
            self._tiles.append((torch.tensor(blocks, device=pool.device), tiles))
        self._count = count
        self._slots = torch.tensor(slots, device=pool.device)
        self._tile_of = torch.tensor(tile_of, device=pool.device)
        self._row_of = torch.tensor(row_of, device=pool.device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Store the keys and values (KV heads, tokens, size), attend, and return (tokens, heads, size) of
        query (heads, tokens, size).
        """
        pool = self.pool
        pool.keys[layer].index_copy_(1, self._slots, key)
        pool.values[layer].index_copy_(1, self._slots, value)
        kv_heads, group, size = pool.kv_heads, pool.group, pool.head_dim
        tokens = query.shape[1]
        padded = query.new_zeros(self._count, kv_heads, QUERY_TILE, group, size)
        by_position = padded.permute(0, 2, 1, 3, 4)  # (tile, row, KV heads, group, size)
        by_position[self._tile_of, self._row_of] = query.transpose(0, 1).view(tokens, kv_heads, group, size)
        queries = padded.view(self._count, 1, kv_heads, QUERY_TILE * group, size)
        out = torch.empty_like(queries)
        for blocks, tiles in self._tiles:
            keys = _gather(pool.keys[layer], blocks)
            values = _gather(pool.values[layer], blocks)
            for tile in tiles:
                out[tile.index] = F.scaled_dot_product_attention(
                    queries[tile.index],
                    keys[:, :, : tile.keys],
                    values[:, :, : tile.keys],
                    attn_mask=pool.mask(tile),
                    scale=scaling,
                )
        answers = out.view(self._count, kv_heads, QUERY_TILE, group, size).permute(0, 2, 1, 3, 4)
        return answers[self._tile_of, self._row_of].view(tokens, kv_heads * group, size)


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001  transformers' interface; the step knows who sees what
    scaling: float,
    dropout: float = 0.0,  # noqa: ARG001  serving has none
    *,
    paged_step: PagedStep,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (1, heads, tokens, size), key and value (1, KV heads, tokens,
    size) -> (1, tokens, heads, size).
    """
    layer = module.layer_idx
    assert isinstance(layer, int)
    return paged_step.attend(layer, query[0], key[0], value[0], scaling)[None], None


def _no_mask(*_: Any, **__: Any) -> None:
    """No dense mask over a flat row of many sequences: it would be large and is not read."""


def register() -> None:
    """Make `attn_implementation="turbo_paged"` known to transformers."""
    AttentionInterface.register(IMPLEMENTATION, paged_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)


def _gather(pool: Tensor, blocks: Tensor) -> Tensor:
    """(1, KV heads, blocks * BLOCK_SIZE, size): a sequence's slots in order of position."""
    kv_heads, _, size = pool.shape
    return pool.view(kv_heads, -1, BLOCK_SIZE * size).index_select(1, blocks).view(1, kv_heads, -1, size)


def _causal_tail(first: int, group: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(QUERY_TILE * group, columns): zeros; in the last block row r sees no slot after `first` + r."""
    mask = torch.zeros(QUERY_TILE, columns, dtype=dtype, device=device)
    rows = torch.arange(first, first + QUERY_TILE, device=device)[:, None]
    later = torch.arange(BLOCK_SIZE, device=device)[None] > rows
    mask[:, columns - BLOCK_SIZE :].masked_fill_(later, float("-inf"))
    return mask.repeat_interleave(group, dim=0)
