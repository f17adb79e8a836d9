"""How attention computes on this machine: which ways give a position the same bits in every step."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from math import inf

import torch
from torch import Tensor

from turbo_runtime.kv_cache.block_pool import PROMPT_TILE, blocks_for
from turbo_runtime.models.attention.host import HostKVPool, HostMetadata
from turbo_runtime.models.attention.metadata import Rule
from turbo_runtime.models.attention.pool import KVPool
from turbo_runtime.models.attention.rows import ROW_COUNTS, RowAttention, items_together
from turbo_runtime.models.attention.spans import Spans
from turbo_runtime.models.attention.tiles import TileAttention
from turbo_runtime.models.step_batch import Chunk, StepBatch

SPLIT_LENGTHS = (100, 300)  # tokens of attention's probes: one chunk of keys and three, partly filled
HOST_LENGTHS, HOST_ROWS = (1, 70, 200, 1100), 40  # of compiled attention; rows that are also computed alone
# The rest of the batch: (sequences, whether they are as long, so that they are computed together)
BATCHES = ((0, False), (1, False), (30, False), (1, True), (6, True), (30, True))
TILES = 8  # whole tiles of the probe prompt
FIRST_BLOCK = 3  # of the probes: it does not begin where the cache does


class NotProvenError(Exception):
    """Rows depend on their number, or time is up; the text says which."""


def require_time(deadline: float) -> None:
    """Raise NotProvenError after `deadline` (monotonic)."""
    if time.monotonic() > deadline:
        raise NotProvenError("the start-up check took too long")


def find_host_rule(pool: HostKVPool, deadline: float) -> Rule:
    """Find that every position is computed alike on this machine. Raises NotProvenError."""
    windows = [(window + 2 * PROMPT_TILE, window) for window in sorted({*pool.shape.windows}) if window]
    for length, window in (*((length, 0) for length in HOST_LENGTHS), *windows):
        require_time(deadline)
        if not _is_host_invariant(pool, length, window):
            raise NotProvenError("a row's attention depends on how many others there are")
    return Rule(uniform=True)


def _is_host_invariant(pool: HostKVPool, length: int, window: int) -> bool:
    """Whether the last rows of a sequence are the same at once, alone, and beside another sequence."""
    shape, number = replace(pool.shape, windows=(window,)), blocks_for(length)
    probed = HostKVPool(shape, layers=1, blocks=2 * number, dtype=pool.dtype)
    generator = torch.Generator().manual_seed(0)
    size = length, shape.heads + 2 * shape.kv_heads, max(shape.key_width, shape.value_width)
    drawn = torch.randn(size, generator=generator).to(pool.dtype)
    query, key, value = drawn.tensor_split((shape.heads, shape.heads + shape.kv_heads), 1)
    columns = query[..., : shape.key_width], key[..., : shape.key_width], value[..., : shape.value_width]
    sinks = torch.randn(shape.heads, generator=generator) if shape.sinks else None

    def attend(*parts: tuple[int, int, int]) -> Tensor:
        """Positions from `start` to before `end` of the sequence in a place, of all parts."""
        tables = [list(range(place, 2 * number, 2)) for place, _, _ in parts]
        chunks = [
            Chunk([0] * (end - start), start, table, 0, length)
            for table, (_, start, end) in zip(tables, parts, strict=True)
        ]
        batch = StepBatch.join(chunks, probed.block_size, probed.scratch)
        rows = [torch.cat([column[start:end] for _, start, end in parts]) for column in columns]
        step = HostMetadata(probed, batch, len(batch.tokens))
        value = None if shape.latent else rows[2]
        return step.attend(0, rows[0], rows[1], value, pool.key_width**-0.5, sinks).clone()

    first = max(0, length - HOST_ROWS)
    at_once = attend((0, 0, length))[first:]
    attend((1, 0, length))  # the same keys and values
    alone = torch.cat([attend((1, place, place + 1)) for place in range(first, length)])
    together = attend((0, length - 1, length), (1, first, length))[1:]
    return torch.equal(alone, at_once) and torch.equal(together, at_once)


def find_rule(pool: KVPool, deadline: float, optional_deadline: float) -> Rule:
    """Find how positions are computed so that each is the same in every step. Raises NotProvenError."""
    row_counts = find_invariant_row_counts(pool, deadline, optional_deadline)
    if not row_counts:
        raise NotProvenError("a row's attention depends on how many others there are")
    if not are_tiles_invariant(pool):
        raise NotProvenError("attention in a prompt depends on how the prompt is cut")
    return Rule(row_counts=row_counts)


def find_invariant_row_counts(
    pool: KVPool, deadline: float = inf, optional_deadline: float = inf
) -> tuple[int, ...]:
    """Of ROW_COUNTS those at which every row gets the bits that it gets alone, in any batch; empty where even
    a single row does not. Raises NotProvenError if single rows are not tried by `deadline`; leaves out counts
    that are not tried by `optional_deadline`.
    """
    probes = [*(_Probe(pool, length) for length in SPLIT_LENGTHS), *_windowed(pool)]
    for probe in probes:
        require_time(deadline)
        if not probe.is_invariant(1):
            return ()
    return 1, *(
        rows
        for rows in ROW_COUNTS
        if rows > 1
        and all(time.monotonic() <= optional_deadline and probe.is_invariant(rows) for probe in probes)
    )


def are_tiles_invariant(pool: KVPool) -> bool:
    """Whether the last tile of a prompt gets the same bits at once and in parts, alone and after another."""
    return all(
        torch.equal(probe.tile(cuts, preceded), probe.tile([0, PROMPT_TILE], preceded=False))
        for probe in (_Probe(pool, TILES * PROMPT_TILE), *_windowed(pool))
        for cuts, preceded in (([0, PROMPT_TILE], True), ([0, 1, PROMPT_TILE - 5, PROMPT_TILE], False))
    )


def _windowed(pool: KVPool) -> list[_Probe]:
    """Build a probe of each window, in the third tile of keys behind those that its first row sees."""
    windows = sorted({window for window in pool.shape.windows if window})
    return [_Probe(pool, (window // PROMPT_TILE + 3) * PROMPT_TILE, window) for window in windows]


class _Probe:
    """The last positions of one sequence, computed in several ways on a pool of the shape of the model's."""

    def __init__(self, pool: KVPool, length: int, window: int = 0) -> None:
        size = pool.block_size
        blocks = FIRST_BLOCK + blocks_for(length, size)
        self._pool = KVPool(
            pool.shape, layers=1, blocks=blocks, dtype=pool.dtype, device=pool.device, block_size=size
        )
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            # numbers of many sizes and both signs: another order of summation shows in the last bits
            sizes = torch.exp2(torch.randint(-4, 4, shape, generator=generator).float())
            return (torch.randn(shape, generator=generator) * sizes).to(pool.dtype)

        self._pool.keys[0].copy_(draw(*self._pool.keys[0].shape))
        if not pool.shape.latent:
            self._pool.values[0].copy_(draw(*self._pool.values[0].shape))
        self._queries = draw(pool.kv_heads, PROMPT_TILE * pool.group, pool.key_width).to(pool.device)
        self._length, self._window = length, window
        self._sinks = draw(pool.kv_heads, pool.group).float() if pool.shape.sinks else None
        self._table = list(range(FIRST_BLOCK, blocks))

    @cached_property
    def alone(self) -> Tensor:
        """(KV heads, rows * group, width) of the last rows, one an item: more than an item of any count."""
        return self.rows(1, max(ROW_COUNTS) + 1)

    def is_invariant(self, rows_each: int) -> bool:
        """Whether the last rows, `rows_each` an item, equal those `alone`."""
        group = self._pool.group
        expected = self.alone[:, -(rows_each + 1) * group :]
        return all(
            torch.equal(self.rows(rows_each, rows_each + 1, *rest), expected) for rest in self.batches()
        )

    def batches(self) -> set[tuple[int, bool]]:
        """Those of BATCHES that teach something: no more long sequences than a call has room for."""
        if self._window:
            return {(0, False)}
        together = items_together(self._pool, self._length)
        return {(min(number, together) if long else number, long) for number, long in BATCHES}

    def rows(self, rows_each: int, count: int, others: int = 0, long: bool = False) -> Tensor:
        """(KV heads, count * group, value width) of the last rows, between `others` other sequences."""
        other = self._part(self._length - 1 if long else 0, 1, 0)
        probed = self._part(self._length - count, count, 0)
        before = others // 2
        spans = self._spans([other] * before + [probed] + [other] * (others - before))
        attention = RowAttention(self._pool, spans, (rows_each,), self._window)
        group = self._pool.group
        idle, own = self._queries[:, :group], self._queries[:, -count * group :]
        queries = torch.cat([*[idle] * before, own, *[idle] * (others - before)], 1)
        return self._attend(attention, queries, before, before + count)

    def tile(self, cuts: list[int], preceded: bool) -> Tensor:
        """(KV heads, PROMPT_TILE * group, value width) of the last tile, a step between any two `cuts`."""
        group, first = self._pool.group, self._length - PROMPT_TILE
        before = [self._part(0, PROMPT_TILE, PROMPT_TILE)] if preceded else []
        own = self._queries[:, -PROMPT_TILE * group :]
        parts = []
        for start, end in pairwise(cuts):
            spans = self._spans([*before, self._part(first + start, end - start, self._length)])
            attention = TileAttention(self._pool, spans, aligned=True, window=self._window)
            queries = own[:, start * group : end * group]
            if preceded:
                queries = torch.cat([own, queries], 1)
            parts.append(self._attend(attention, queries, len(before) * PROMPT_TILE, None))
        return torch.cat(parts, 1)

    def _part(self, start: int, count: int, prompt_length: int) -> Chunk:
        return Chunk([0] * count, start, self._table, 0, prompt_length)

    def _spans(self, parts: list[Chunk]) -> Spans:
        return Spans.of(StepBatch.join(parts, self._pool.block_size, self._pool.scratch))

    def _attend(
        self, attention: RowAttention | TileAttention, queries: Tensor, start: int, end: int | None
    ) -> Tensor:
        """The outputs of the tokens from `start` to before `end` of the step."""
        outputs = attention.attend(0, queries, self._pool.key_width**-0.5, self._sinks)
        return outputs.index_select(1, self._pool.tensor(attention.output_rows[start:end].ravel()))
