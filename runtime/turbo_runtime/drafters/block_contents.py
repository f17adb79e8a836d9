"""What the blocks of a drafter's own KV cache hold.

A drafter's cache has the blocks of the model's, so whatever the scheduler decides about those holds for it:
allocation, sharing, rollback, preemption. But it may lag behind: a block may come from the prefix cache
without the drafter ever having computed it, or belong to another sequence by now. So each block is marked
with its content, and a sequence trusts only blocks with its own. A wrong mark would cost acceptance, never an
error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbo_runtime.kv_cache.block_pool import blocks_for

_NOTHING = 0
_numbers = count(1)


@dataclass(slots=True, eq=False)
class CachedSequence:
    """A sequence as a drafter knows it."""

    scope: str  # sequences of other scopes must not profit, or time would tell what they say
    computed: int = 0  # leading committed tokens that the drafter has computed
    drafted: list[int] = field(default_factory=list)  # drafted tokens that it has computed behind those
    keys: list[int] = field(
        default_factory=list
    )  # of the full blocks of committed tokens, each of all so far
    own: int = field(default_factory=lambda: next(_numbers) << 32)  # marks blocks that are not full, by index

    def accept(self, tokens: Sequence[int], end: int) -> None:
        """Count drafted tokens that were committed as computed; forget the others."""
        for token in self.drafted:
            if self.computed >= end or tokens[self.computed] != token:
                break
            self.computed += 1
        self.drafted.clear()

    def keys_of(self, tokens: Sequence[int], full: int, block_size: int) -> list[int]:
        """Return the keys of the first `full` blocks."""
        for index in range(len(self.keys), full):
            before = self.keys[-1] if self.keys else hash(self.scope)
            self.keys.append(hash((before, *tokens[index * block_size : (index + 1) * block_size])))
        return self.keys[:full]


class BlockContents:
    """The marks of all blocks."""

    def __init__(self, blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self._marks = np.full(blocks, _NOTHING, np.int64)

    def computed(
        self, sequence: CachedSequence, tokens: Sequence[int], end: int, table: Sequence[int]
    ) -> int:
        """Count the leading tokens before `end` whose keys and values are in the cache."""
        known = self._known(sequence, tokens, end, table)
        own = self._own(sequence, table, len(known)) | known
        return max(
            self.block_size * _leading(known), min(self.block_size * _leading(own), sequence.computed, end)
        )

    def window(
        self, sequence: CachedSequence, tokens: Sequence[int], end: int, table: Sequence[int]
    ) -> tuple[int, int]:
        """Find the first block from which on everything before `end` is in the cache, and the position from
        which on to compute more: `end`, or the beginning of its block if what is before it there is missing.
        """
        held = self._known(sequence, tokens, end, table)
        last = np.minimum(self.block_size * np.arange(1, len(held) + 1), end)
        held |= self._own(sequence, table, len(held)) & (last <= sequence.computed)
        if len(held) and not held[-1]:
            first = end // self.block_size
            return first, first * self.block_size
        return len(held) - _leading(held[::-1]), end

    def forget(self, blocks: Sequence[int]) -> None:
        """Note that these blocks hold nothing of use."""
        self._marks[np.array(blocks, np.int64)] = _NOTHING

    def mark(
        self,
        sequence: CachedSequence,
        tokens: Sequence[int],
        span: range,
        table: Sequence[int],
        reach: int,
    ) -> None:
        """Note that the positions of `span` are computed, and that others up to `reach` may be written."""
        size = self.block_size
        first, full, end = span.start // size, span.stop // size, blocks_for(reach, size)
        own = sequence.own + np.arange(max(first, full), end)
        keys = sequence.keys_of(tokens, full, self.block_size)[first:]
        self._marks[np.array(table[first:end], np.int64)] = [*keys, *own]

    def _known(
        self, sequence: CachedSequence, tokens: Sequence[int], end: int, table: Sequence[int]
    ) -> NDArray[np.bool_]:
        """Whether each block before `end` is full of the sequence's tokens."""
        keys = sequence.keys_of(tokens, end // self.block_size, self.block_size)
        known = np.zeros(blocks_for(end, self.block_size), np.bool_)
        known[: len(keys)] = self._at(table, len(keys)) == np.array(keys, np.int64)
        return known

    def _own(self, sequence: CachedSequence, table: Sequence[int], blocks: int) -> NDArray[np.bool_]:
        """Whether the sequence wrote these blocks last."""
        own: NDArray[np.bool_] = self._at(table, blocks) == sequence.own + np.arange(blocks)
        return own

    def _at(self, table: Sequence[int], blocks: int) -> NDArray[Any]:
        return self._marks[np.array(table[:blocks], np.int64)]


def _leading(flags: NDArray[np.bool_]) -> int:
    """Count those before the first False."""
    return len(flags) if flags.all() else int(flags.argmin())
