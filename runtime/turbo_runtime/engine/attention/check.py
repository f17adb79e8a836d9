"""Which shapes of batched products give a query row the same bits, found out on this machine."""

from __future__ import annotations

import torch
from torch import Tensor

from turbo_runtime.engine.attention.pool import KVPool
from turbo_runtime.engine.attention.rows import ROW_COUNTS, RowAttention
from turbo_runtime.engine.attention.spans import Span, Spans
from turbo_runtime.engine.blocks import BLOCK_SIZE, blocks_for

LENGTH = 300  # tokens of the sequence that is tried: three chunks of keys, the last of them partly filled
MATES = (0, 1, 6, 30)  # short sequences beside it


def row_counts_that_hold(pool: KVPool) -> tuple[int, ...]:
    """Of ROW_COUNTS those at which every row gets the bits that it gets alone, whatever stands beside it.
    Empty where even a row by itself does not.
    """
    trial = _Trial(pool)
    alone = trial.answers(1, mates=0)
    holding = tuple(
        rows for rows in ROW_COUNTS if all(torch.equal(trial.answers(rows, mates), alone) for mates in MATES)
    )
    return holding if 1 in holding else ()


class _Trial:
    """The last rows of one sequence, computed in several ways on a pool of its own, of the shape of the
    model's.
    """

    def __init__(self, pool: KVPool) -> None:
        blocks = blocks_for(LENGTH)
        self._pool = KVPool(pool.shape, layers=1, blocks=blocks, dtype=pool.dtype, device=pool.device)
        generator = torch.Generator().manual_seed(0)

        def cancelling(*shape: int) -> Tensor:
            # numbers of many sizes and both signs: another order of summation shows in the last bits
            sizes = torch.exp2(torch.randint(-4, 4, shape, generator=generator).float())
            return (torch.randn(shape, generator=generator) * sizes).to(pool.dtype)

        self._pool.keys[0].copy_(cancelling(*self._pool.keys[0].shape))
        if not pool.shape.latent:
            self._pool.values[0].copy_(cancelling(*self._pool.values[0].shape))
        self._rows = max(ROW_COUNTS) + 1  # more than one item at every count
        self._queries = cancelling(pool.kv_heads, self._rows * pool.group, pool.key_width)
        self._table = list(range(blocks))

    def answers(self, rows_each: int, mates: int) -> Tensor:
        """(KV heads, rows * group, value width), computed between `mates` other sequences."""
        mate = Span(0, 1, self._table[: blocks_for(BLOCK_SIZE)], 0)
        tried = Span(LENGTH - self._rows, self._rows, self._table, 0)
        before = mates // 2
        spans = Spans.of([mate] * before + [tried] + [mate] * (mates - before))
        attention = RowAttention(self._pool, spans, (rows_each,))
        group = self._pool.group
        idle = self._queries[:, :group]
        queries = torch.cat([*[idle] * before, self._queries, *[idle] * (mates - before)], 1)
        found = attention.attend(0, queries, self._pool.key_width**-0.5)
        wanted = attention.answers[before : before + self._rows].ravel()
        return found.index_select(1, torch.from_numpy(wanted))
