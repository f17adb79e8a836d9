"""The tokens of rows by looking at few of them: what is quickest on the host."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor

from turbo_runtime.sampling import dense
from turbo_runtime.sampling.draw import NOTHING, BlockedLogits, greedy_tokens, sampled_tokens
from turbo_runtime.sampling.noise import Floats, Noise
from turbo_runtime.sampling.rows import DrawnRows, Masks, RowKernels
from turbo_runtime.sampling.truncation import top_tokens, truncated_tokens


@torch.inference_mode()
def draw(logits: Tensor, rows: DrawnRows, noise: Noise) -> Tensor:
    """`RowKernels.draw`."""
    blocks = BlockedLogits(logits)
    tokens = torch.full((len(logits),), NOTHING)
    drawn = tokens.numpy()
    if rows.greedy:
        index = np.array(rows.greedy, np.int64)
        drawn[index] = greedy_tokens(blocks, index)
    if (plain := rows.plain).rows:
        index, keys = plain.index(), plain.position_keys()
        drawn[index] = sampled_tokens(blocks, index, plain.temperatures(), keys, noise)
    if (truncated := rows.truncated).rows:
        index, keys = truncated.index(), truncated.position_keys()
        drawn[index] = truncated_tokens(blocks, index, truncated.params, keys, noise)
    return tokens


def likeliest(rows: Tensor, count: int) -> Tensor:
    """`RowKernels.likeliest`."""
    ids = [top_tokens(row, count) for row in rows]
    # a row of which fewer are finite is rare, or of no use
    return torch.stack(ids) if all(len(each) == count for each in ids) else dense.likeliest(rows, count)


def forbid(logits: Tensor, rows: Sequence[int], masks: Masks) -> None:
    """`RowKernels.forbid`: each byte of a mask looks up the limits of eight logits, once for rows that have
    the same mask, as those of one grammar often do.
    """
    values, limits = logits.numpy(), np.empty((masks.shape[1], 8), np.float32)
    flat, applied = limits.reshape(-1)[: values.shape[1]], b""
    for row, mask in sorted(zip(rows, map(bytes, masks), strict=True), key=itemgetter(1)):
        if mask != applied:
            np.take(_LIMITS, np.frombuffer(mask, np.uint8), axis=0, out=limits, mode="clip")
            applied = mask
        np.fmin(values[row], flat, out=values[row])


def rows_at_once(_vocabulary: int) -> int:
    """`RowKernels.rows_at_once`: few stay in a cache, and a large vocabulary of float64 is a megabyte."""
    return 8


_LIMITS: Floats = np.where(
    dense.forbidden_tokens(torch.arange(256, dtype=torch.uint8)[:, None]), -np.inf, np.inf
)
_LIMITS = _LIMITS.astype(np.float32)

SEARCH = RowKernels(draw, likeliest, forbid, rows_at_once)


def kernels_of(device: torch.device) -> RowKernels:
    """Return those that are quickest for logits on `device`."""
    return SEARCH if device.type == "cpu" else dense.DENSE
