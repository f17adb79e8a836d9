"""The input of a step as plain arrays, in vLLM's names: what runners and all kinds of attention read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Chunk(NamedTuple):
    """One sequence's tokens of a step: committed ones that are not computed yet, then drafts."""

    tokens: Sequence[int]
    start: int  # position of the first
    table: list[int]  # blocks for start + len(tokens) tokens
    logit_rows: int  # last tokens that need logits
    prompt_length: int
    lora_id: int = 0  # number of its adapter; 0: none


@dataclass(frozen=True, slots=True)
class StepBatch:
    """The chunks' tokens one after the other: T tokens of N sequences."""

    tokens: Ints  # (T,)
    positions: Ints  # (T,)
    sequence: Ints  # (T,): whose token it is
    slot_mapping: Ints  # (T,): where its key and value go
    block_table: Ints  # (N, blocks of the longest), padded with a block that nobody writes
    num_blocks: Ints  # (N,): the length of each table
    cu_seqlens_q: Ints  # (N + 1,): where each sequence's tokens begin and end
    seq_lens: Ints  # (N,): keys of each sequence, those of this step included
    prompt_lens: Ints  # (N,)
    logits_indices: Ints  # (rows,): tokens that need logits
    token_lora_mapping: Ints  # (T,): number of each token's adapter; 0: none

    @property
    def max_queries(self) -> int:
        """Tokens of the sequence that has most."""
        return int(np.diff(self.cu_seqlens_q).max())

    @classmethod
    def join(cls, chunks: Sequence[Chunk], block_size: int, scratch: int) -> StepBatch:
        """Lay the chunks out; `scratch`: the block that nobody writes. Raises IndexError for a token beyond
        the blocks of its sequence.
        """
        count = _column(len(chunk.tokens) for chunk in chunks)
        num_blocks = _column(len(chunk.table) for chunk in chunks)
        ends = np.cumsum(count)
        sequence = np.repeat(np.arange(len(chunks)), count)
        start = _column(chunk.start for chunk in chunks)
        positions = np.arange(len(sequence)) + (start - ends + count)[sequence]
        block_table = np.full((len(chunks), num_blocks.max()), scratch)
        inside = np.arange(block_table.shape[1]) < num_blocks[:, None]
        block_table[inside] = _column(chain.from_iterable(chunk.table for chunk in chunks))
        logical = positions // block_size
        if (logical >= num_blocks[sequence]).any():
            raise IndexError("a token lies beyond the blocks of its sequence")
        slots = block_table[sequence, logical] * block_size + positions % block_size
        first = ends - _column(chunk.logit_rows for chunk in chunks)
        return cls(
            _column(chain.from_iterable(chunk.tokens for chunk in chunks)),
            positions,
            sequence,
            slots,
            block_table,
            num_blocks,
            np.concatenate([[0], ends]),
            start + count,
            _column(chunk.prompt_length for chunk in chunks),
            np.flatnonzero(np.arange(len(sequence)) >= first[sequence]),
            _column(chunk.lora_id for chunk in chunks)[sequence],
        )


def padded(values: NDArray[Any], length: int, filler: int = 0) -> NDArray[Any]:
    """Lengthen a column to `length`."""
    return np.concatenate([values, np.full(length - len(values), filler, values.dtype)])


def _column(values: Any) -> Ints:
    return np.fromiter(values, np.int64)
