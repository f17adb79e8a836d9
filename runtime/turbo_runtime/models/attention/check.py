"""Which shapes of attention give a query row the same bits, found out on this machine."""

from __future__ import annotations

import time
from itertools import pairwise
from math import inf

import torch
from torch import Tensor

from turbo_runtime.kv_cache.block_pool import PROMPT_TILE, blocks_for
from turbo_runtime.models.attention.items import padded_queries
from turbo_runtime.models.attention.pool import KVPool
from turbo_runtime.models.attention.rows import ROW_COUNTS, RowAttention, is_fused, items_together
from turbo_runtime.models.attention.spans import Span, Spans
from turbo_runtime.models.attention.tiles import TileAttention

SPLIT_LENGTHS = (100, 300)  # tokens of the sequences tried: one chunk of keys and three, partly filled;
# by the fused kernel all numbers of keys within its block of 512 and one beyond, beside others,
FUSED_LENGTHS = tuple(PROMPT_TILE * tiles for tiles in range(1, 10))
# and alone a second block of several sizes and a third.
FAR_LENGTHS = (832, 1024, 1088)
# Sequences beside it: (how many, whether they are as long as it is, so that they are computed together)
MATES = ((0, False), (1, False), (30, False), (1, True), (6, True), (30, True))
TILES = 8  # whole tiles of the prompt that is tried
FIRST_BLOCK = 3  # of the sequence that is tried: it does not begin where the cache does


def row_counts_that_hold(pool: KVPool, deadline: float = inf, further: float = inf) -> tuple[int, ...]:
    """Of ROW_COUNTS those at which every row gets the bits that it gets alone, whatever stands beside it.
    Empty where even a row by itself does not. One row an item is tried until `deadline` (monotonic), then
    TimeoutError; the other counts until `further`, and those that come too late are left out.
    """
    lengths = (*FUSED_LENGTHS, *FAR_LENGTHS) if is_fused(pool) else SPLIT_LENGTHS
    trials: list[tuple[_Trial, Tensor]] = []
    for length in lengths:
        trial = _Trial(pool, length)
        trials.append((trial, trial.rows(1, trial.most)))
        if time.monotonic() > deadline:
            raise TimeoutError
        if not trial.holds(1, trials[-1][1]):
            return ()
    return 1, *(
        rows
        for rows in ROW_COUNTS
        if rows > 1
        and all(time.monotonic() <= further and trial.holds(rows, alone) for trial, alone in trials)
    )


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


def tiles_are_rows(pool: KVPool, deadline: float = inf) -> bool:
    """Whether tiles that hold have the bits that their positions would get as rows, as is found by `deadline`
    (monotonic). Only the fused kernel adds up in the same order.
    """
    return is_fused(pool) and all(
        time.monotonic() <= deadline
        and torch.equal(trial.tile([0, PROMPT_TILE], mate=False), trial.rows(1, PROMPT_TILE))
        for trial in (_Trial(pool, length) for length in (*FUSED_LENGTHS, *FAR_LENGTHS))
    )


class _Trial:
    """The last positions of one sequence, computed in several ways on a pool of its own, of the shape of the
    model's.
    """

    def __init__(self, pool: KVPool, length: int) -> None:
        blocks = FIRST_BLOCK + blocks_for(length)
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
        self._queries = cancelling(pool.kv_heads, PROMPT_TILE * pool.group, pool.key_width)
        self._length = length
        self._table = list(range(FIRST_BLOCK, blocks))

    def holds(self, rows_each: int, alone: Tensor) -> bool:
        """Whether the last rows, so many an item, are as they were `alone`, (KV heads, rows * group,
        width).
        """
        group = self._pool.group
        wanted = alone[:, -(rows_each + 1) * group :]
        if not all(
            torch.equal(self.rows(rows_each, rows_each + 1, *mates), wanted) for mates in self.mates()
        ):
            return False
        step = padded_queries(rows_each, 1)
        return all(
            torch.equal(self.in_place(rows_each, rows), wanted[:, group:]) for rows in (step, step + 4)
        )

    def mates(self) -> set[tuple[int, bool]]:
        """Those of MATES that teach something: no more long ones than a call has room for."""
        if self._length in FAR_LENGTHS:
            return {(0, False)}
        together = items_together(self._pool, self._length)
        return {(min(number, together) if long else number, long) for number, long in MATES}

    def rows(self, rows_each: int, count: int, mates: int = 0, long: bool = False) -> Tensor:
        """(KV heads, count * group, value width) of the last rows, between `mates` other sequences."""
        mate = Span(self._length - 1 if long else 0, 1, self._table, 0)
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

    def in_place(self, count: int, step_rows: int) -> Tensor:
        """The last rows as all of a step, which is padded up to `step_rows`."""
        group = self._pool.group
        spans = Spans.of([Span(self._length - count, count, self._table, 0)])
        attention = RowAttention(self._pool, spans, (count,), step_rows)
        padding = self._queries[:, : (step_rows - count) * group]
        queries = torch.cat([self._queries[:, -count * group :], padding], 1)
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
