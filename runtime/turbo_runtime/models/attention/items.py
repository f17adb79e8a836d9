"""Items: a few consecutive positions of one sequence that attend together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from turbo_runtime.models.attention.spans import Ints, Spans


@dataclass(frozen=True, slots=True)
class Items:
    """Items of one number of rows. Rows beyond an item's own repeat its last one."""

    spans: Spans  # each of at most so many tokens
    queries: Ints  # (items, rows): where each stands among the step's queries
    positions: Ints  # (items, rows)

    @classmethod
    def of(cls, spans: Spans, rows_each: int, group: int) -> Items:
        """Spans of at most `rows_each` tokens, each with `group` queries a KV head."""
        query = np.minimum(np.arange(padded_queries(rows_each, group)), rows_each * group - 1)
        token = np.minimum(query // group, spans.count[:, None] - 1)
        return cls(spans, (spans.row[:, None] + token) * group + query % group, spans.start[:, None] + token)


def padded_queries(rows_each: int, group: int) -> int:
    """Rows of the products of one item: a multiple of 4, at which kernels keep rows apart."""
    return -(-rows_each * group // 4) * 4
