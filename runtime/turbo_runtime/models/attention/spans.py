"""The work of a step as arrays of integers, which `attention` cuts up without a Python loop per token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from turbo_runtime.models.step_batch import Ints, StepBatch


@dataclass(frozen=True, slots=True)
class Spans:
    """Spans as columns."""

    start: Ints
    count: Ints
    row: Ints  # where the first token stands in the step's flat batch
    table: Ints  # where the span's blocks begin in `blocks`
    table_length: Ints
    blocks: Ints  # of all tables, one after the other

    @classmethod
    def of(cls, batch: StepBatch) -> Spans:
        """One span for each sequence of a step."""
        number, longest = batch.block_table.shape
        count = np.diff(batch.cu_seqlens_q)
        return cls(
            batch.seq_lens - count,
            count,
            batch.cu_seqlens_q[:-1],
            np.arange(number) * longest,
            batch.num_blocks,
            batch.block_table.ravel(),
        )

    @property
    def end(self) -> Ints:
        """Position after the last token of each span."""
        return self.start + self.count

    def part(self, begin: Ints, end: Ints) -> Spans:
        """Cut each span to the positions from `begin` to before `end`; drop spans without any."""
        start, end = np.maximum(begin, self.start), np.minimum(end, self.end)
        index = np.flatnonzero(start < end)
        return self._cut(index, start[index], end[index])

    def pieces(self, size: int) -> Spans:
        """Cut the spans after every `size` tokens."""
        cuts = -(-self.count // size)
        index = np.repeat(np.arange(len(cuts)), cuts)
        start = self.start[index] + ragged(cuts) * size
        return self._cut(index, start, np.minimum(start + size, self.end[index]))

    def select(self, which: Any) -> Spans:
        """Select spans by a slice, a mask or indices."""
        return self._cut(which, self.start[which], self.end[which])

    def _cut(self, index: Any, start: Ints, end: Ints) -> Spans:
        """The positions from `start` to before `end` of the spans at `index`."""
        row = self.row[index] + start - self.start[index]
        return Spans(start, end - start, row, self.table[index], self.table_length[index], self.blocks)

    def block_at(self, span: Ints, logical: Ints, scratch: int) -> Ints:
        """The physical block of each span's logical one; `scratch` beyond the end of its table."""
        inside = logical < self.table_length[span]
        return np.where(inside, self.blocks[np.where(inside, self.table[span] + logical, 0)], scratch)

    def item_rows(self, rows_each: int, group: int) -> tuple[Ints, Ints]:
        """(items, rows): where each row of the spans, of at most `rows_each` tokens, stands among the step's
        queries, `group` a KV head, and its position. Rows beyond an item's own repeat its last one.
        """
        query = np.minimum(np.arange(padded_queries(rows_each, group)), rows_each * group - 1)
        token = np.minimum(query // group, self.count[:, None] - 1)
        return (self.row[:, None] + token) * group + query % group, self.start[:, None] + token

    def rows(self) -> Ints:
        """The row of every token in the flat batch."""
        return np.repeat(self.row, self.count) + ragged(self.count)


def ragged(counts: Ints) -> Ints:
    """0, 1, ... up to before each count, one run after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def first_key(start: Ints, window: int, unit: int) -> Ints:
    """The first of the keys, in whole units of them, that any row from `start` on sees; 0 is no window."""
    return np.maximum(0, start - window + 1) // unit * unit if window else np.zeros_like(start)


def padded_queries(rows_each: int, group: int) -> int:
    """Rows of the products of one item: a multiple of 4, at which kernels keep rows apart."""
    return -(-rows_each * group // 4) * 4
