"""The tokens of rows by looking at few of them: what is quickest on the host."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from turbo_runtime.sampling import dense
from turbo_runtime.sampling.draw import NOTHING, BlockedLogits, greedy_tokens, sampled_tokens
from turbo_runtime.sampling.noise import Noise
from turbo_runtime.sampling.rows import DrawnRows, RowKernels
from turbo_runtime.sampling.truncation import head, truncated_tokens


def draw(logits: Tensor, rows: DrawnRows, noise: Noise) -> Tensor:
    """`RowKernels.draw`."""
    blocks, device = BlockedLogits(logits), logits.device
    drawn = torch.full((len(logits),), NOTHING, device=device)
    if rows.greedy:
        index = rows.greedy_index(device)
        drawn.index_copy_(0, index, greedy_tokens(blocks, index))
    if (plain := rows.plain).rows:
        index, keys = plain.columns(device)
        drawn.index_copy_(0, index, sampled_tokens(blocks, plain.temperatures(device), keys, noise, index))
    if (truncated := rows.truncated).rows:
        index, keys = truncated.columns(device)
        drawn.index_copy_(0, index, truncated_tokens(blocks, truncated.params, keys, noise, index))
    return drawn


def likeliest(rows: Tensor, count: int) -> Tensor:
    """`RowKernels.likeliest`."""
    ids = [head(row, count) for row in rows]
    # a row of which fewer are finite is rare, or of no use
    return torch.stack(ids) if all(len(each) == count for each in ids) else dense.likeliest(rows, count)


def forbid(logits: Tensor, rows: Sequence[int], forbidden: Tensor) -> None:
    """`RowKernels.forbid`, with no copy of a row."""
    for row, tokens in zip(rows, forbidden, strict=True):
        logits[row].masked_fill_(tokens, -torch.inf)


def rows_at_once(_vocabulary: int) -> int:
    """`RowKernels.rows_at_once`: few stay in a cache, and a large vocabulary of float64 is a megabyte."""
    return 8


SEARCH = RowKernels(draw, likeliest, forbid, rows_at_once)
