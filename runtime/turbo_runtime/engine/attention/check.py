"""Which shapes of batched products give a query row the same bits, found out on this machine."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from turbo_runtime.engine.attention.pool import KVPool
from turbo_runtime.engine.attention.rows import ROW_COUNTS, RowAttention
from turbo_runtime.engine.attention.spans import Span, Spans
from turbo_runtime.engine.attention.tiles import TileAttention
from turbo_runtime.engine.blocks import BLOCK_SIZE, PROMPT_TILE, blocks_for

# Tokens of the sequences that are tried: few chunks of keys and many, the last of them partly filled.
LENGTHS = (100, 300, 700)
MATES = (0, 1, 6, 30)  # short sequences beside it
TILES = 8  # whole tiles of the prompt that is tried


def row_counts_that_hold(pool: KVPool) -> tuple[int, ...]:
    """Of ROW_COUNTS those at which every row gets the bits that it gets alone, whatever stands beside it.
    Empty where even a row by itself does not.
    """
    holding: tuple[int, ...] = ROW_COUNTS
    for length in LENGTHS:
        trial = _Trial(pool, length)
        alone = trial.rows(1, trial.most)
        holding = tuple(rows for rows in holding if trial.holds(rows, alone))
    return holding if 1 in holding else ()


def tiles_hold(pool: KVPool) -> bool:
    """Whether the last tile of a prompt of several gets the same bits at once and in parts, alone and beside
    another.
    """
    trial = _Trial(pool, TILES * PROMPT_TILE)
    at_once = trial.tile([0, PROMPT_TILE], mate=False)
    return all(
        torch.equal(trial.tile(cuts, mate), at_once)
        for cuts, mate in (([0, PROMPT_TILE], True), ([0, 1, PROMPT_TILE - 5, PROMPT_TILE], False))
    )


def tiles_are_rows(pool: KVPool) -> bool:
    """Whether tiles that hold have the bits that their positions would get as rows."""
    trials = [_Trial(pool, tiles * PROMPT_TILE) for tiles in (1, 2, TILES)]
    return all(
        torch.equal(trial.tile([0, PROMPT_TILE], mate=False), trial.rows(1, PROMPT_TILE)) for trial in trials
    )


class _Trial:
    """The last positions of one sequence, computed in several ways on a pool of its own, of the shape of the
    model's.
    """

    def __init__(self, pool: KVPool, length: int) -> None:
        blocks = blocks_for(length)
        self._pool = KVPool(pool.shape, layers=1, blocks=blocks, dtype=pool.dtype, device=pool.device)
        generator = torch.Generator().manual_seed(0)

        def cancelling(*shape: int) -> Tensor:
            # numbers of many sizes and both signs: another order of summation shows in the last bits
            sizes = torch.exp2(torch.randint(-4, 4, shape, generator=generator).float())
            return (torch.randn(shape, generator=generator) * sizes).to(pool.dtype)

        self._pool.keys[0].copy_(cancelling(*self._pool.keys[0].shape))
        if not pool.shape.latent:
            self._pool.values[0].copy_(cancelling(*self._pool.values[0].shape))
        self.most = max(ROW_COUNTS) + 1  # more than one item at every count
        self._queries = cancelling(pool.kv_heads, self.most * pool.group, pool.key_width)
        self._length = length
        self._table = list(range(blocks))

    def holds(self, rows_each: int, alone: Tensor) -> bool:
        """Whether the last rows, so many an item, are as they were `alone`, (KV heads, rows * group,
        width).
        """
        wanted = alone[:, -(rows_each + 1) * self._pool.group :]
        if not all(torch.equal(self.rows(rows_each, rows_each + 1, mates), wanted) for mates in MATES):
            return False
        return torch.equal(self.in_place(rows_each), wanted[:, self._pool.group :])

    def rows(self, rows_each: int, count: int, mates: int = 0) -> Tensor:
        """(KV heads, count * group, value width) of the last rows, between `mates` other sequences."""
        mate = Span(0, 1, self._table[: blocks_for(BLOCK_SIZE)], 0)
        tried = Span(self._length - count, count, self._table, 0)
        before = mates // 2
        spans = Spans.of([mate] * before + [tried] + [mate] * (mates - before))
        attention = RowAttention(self._pool, spans, (rows_each,))
        group = self._pool.group
        idle, own = self._queries[:, :group], self._queries[:, -count * group :]
        queries = torch.cat([*[idle] * before, own, *[idle] * (mates - before)], 1)
        found = attention.attend(0, queries, self._pool.key_width**-0.5)
        wanted = attention.answers[before : before + count].ravel()
        return found.index_select(1, torch.from_numpy(wanted))

    def in_place(self, count: int) -> Tensor:
        """The last rows as one item that is all of the step."""
        spans = Spans.of([Span(self._length - count, count, self._table, 0)])
        attention = RowAttention(self._pool, spans, (count,), step_rows=count)
        queries = self._queries[:, -count * self._pool.group :].contiguous()
        found = attention.attend(0, queries, self._pool.key_width**-0.5)
        return found.index_select(1, torch.from_numpy(attention.answers.ravel()))

    def tile(self, cuts: list[int], mate: bool) -> Tensor:
        """(KV heads, PROMPT_TILE * group, value width) of the last tile, a step from each of `cuts` to the
        next, each behind another tile or not.
        """
        group, first = self._pool.group, self._length - PROMPT_TILE
        before = [Span(0, PROMPT_TILE, self._table, PROMPT_TILE)] if mate else []
        own = self._queries[:, -PROMPT_TILE * group :]
        parts = []
        for start, end in pairwise(cuts):
            spans = Spans.of([*before, Span(first + start, end - start, self._table, self._length)])
            attention = TileAttention(self._pool, spans, aligned=True)
            queries = own[:, start * group : end * group]
            if mate:
                queries = torch.cat([own, queries], 1)
            found = attention.attend(0, queries, self._pool.key_width**-0.5)
            wanted = attention.answers[len(before) * PROMPT_TILE :].ravel()
            parts.append(found.index_select(1, torch.from_numpy(wanted)))
        return torch.cat(parts, 1)
