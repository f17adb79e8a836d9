"""What a step computes, as arrays: plain integers that the parts of `attention` cut up without a Python loop
per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbo_runtime.kv_cache.block_pool import BLOCK_SIZE

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of one sequence in a step."""

    start: int  # position of the first
    count: int
    table: list[int]  # the sequence's blocks, long enough for start + count tokens
    prompt_length: int  # tokens of the sequence's prompt


@dataclass(frozen=True, slots=True)
class Spans:
    """Spans as columns. `row` is where the first token of each stands in the step's flat batch."""

    start: Ints
    count: Ints
    row: Ints
    table: Ints  # where the span's blocks begin in `blocks`
    table_length: Ints
    blocks: Ints  # of all tables, one after the other

    @classmethod
    def of(cls, spans: list[Span]) -> Spans:
        """Columns of these spans, which lie one after the other in the flat batch."""
        count = _array([span.count for span in spans])
        lengths = _array([len(span.table) for span in spans])
        return cls(
            start=_array([span.start for span in spans]),
            count=count,
            row=np.cumsum(count) - count,
            table=np.cumsum(lengths) - lengths,
            table_length=lengths,
            blocks=np.fromiter(chain.from_iterable(span.table for span in spans), np.int64, lengths.sum()),
        )

    @property
    def end(self) -> Ints:
        """Position after the last token of each span."""
        return self.start + self.count

    def part(self, begin: Ints, end: Ints) -> Spans:
        """Of each span the positions from `begin` to before `end` that it has; spans without any are left
        out.
        """
        start, end = np.maximum(begin, self.start), np.minimum(end, self.end)
        kept = np.flatnonzero(start < end)
        return self._cut(kept, start[kept], end[kept])

    def pieces(self, size: int) -> Spans:
        """The spans cut after every `size` tokens."""
        cuts = -(-self.count // size)
        of = np.repeat(np.arange(len(cuts)), cuts)
        start = self.start[of] + ragged(cuts) * size
        return self._cut(of, start, np.minimum(start + size, self.end[of]))

    def split_at(self, size: int) -> Spans:
        """The spans cut at every multiple of `size` that lies within them."""
        first = self.start // size
        cuts = -(-self.end // size) - first
        of, begin = np.repeat(np.arange(len(cuts)), cuts), (np.repeat(first, cuts) + ragged(cuts)) * size
        return self._cut(of, np.maximum(begin, self.start[of]), np.minimum(begin + size, self.end[of]))

    def select(self, which: Any) -> Spans:
        """Some of the spans, by a slice or a mask."""
        return Spans(
            self.start[which],
            self.count[which],
            self.row[which],
            self.table[which],
            self.table_length[which],
            self.blocks,
        )

    def _cut(self, of: Ints, start: Ints, end: Ints) -> Spans:
        """Positions from `start` to before `end` of the spans with the numbers `of`."""
        return Spans(
            start=start,
            count=end - start,
            row=self.row[of] + start - self.start[of],
            table=self.table[of],
            table_length=self.table_length[of],
            blocks=self.blocks,
        )

    def block_at(self, span: Ints, logical: Ints, scratch: int) -> Ints:
        """Physical block of the logical one of each span; `scratch` beyond the end of its table."""
        inside = logical < self.table_length[span]
        return np.where(inside, self.blocks[np.where(inside, self.table[span] + logical, 0)], scratch)

    def positions(self) -> Ints:
        """Of every token."""
        return np.repeat(self.start, self.count) + ragged(self.count)

    def rows(self) -> Ints:
        """In the flat batch, of every token."""
        return np.repeat(self.row, self.count) + ragged(self.count)

    def slots(self, scratch: int) -> Ints:
        """In the pool, of every token. Raises IndexError for one beyond its sequence's blocks: `scratch` is
        read by everybody, so nobody may write it.
        """
        positions = self.positions()
        span = np.repeat(np.arange(len(self.count)), self.count)
        block = self.block_at(span, positions // BLOCK_SIZE, scratch)
        if (block == scratch).any():
            raise IndexError("a token lies beyond the blocks of its sequence")
        return block * BLOCK_SIZE + positions % BLOCK_SIZE


def ragged(counts: Ints) -> Ints:
    """0, 1, ... up to before each count, one run after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def _array(values: list[int]) -> Ints:
    return np.array(values, dtype=np.int64)
