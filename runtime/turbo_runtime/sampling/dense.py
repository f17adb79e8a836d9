"""The tokens of rows by operations of fixed shapes, for a device that must not wait for the host.

The same draws as those of `draw` and `truncation`, which look at few tokens of a row and therefore ask, again
and again, which: on a device each such question would be a copy to the host. Here every token gets its noise
and its rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from turbo_runtime.models.transfer import upload
from turbo_runtime.sampling.draw import NOTHING
from turbo_runtime.sampling.noise import Noise
from turbo_runtime.sampling.rows import DrawnRows, RowKernels, SampledRows, column

_BYTES_AT_ONCE = 1 << 26  # of float64, for some rows of the vocabulary; a few such tensors exist together


@torch.inference_mode()
def draw(logits: Tensor, rows: DrawnRows, noise: Noise) -> Tensor:
    """`RowKernels.draw`."""
    device = logits.device
    drawn = torch.full((len(logits),), NOTHING, device=device)
    size = rows_at_once(logits.shape[1])
    for index in torch.split(rows.greedy_index(device), size) if rows.greedy else ():
        values = logits.index_select(0, index)
        drawn.index_copy_(0, index, torch.where(_some_left(values), _first_highest(values), NOTHING))
    for part, truncated in ((rows.plain, False), (rows.truncated, True)):
        for piece in _pieces(part, size):
            index, keys = piece.columns(device)
            values = logits.index_select(0, index)
            tokens = _drawn(values, piece, keys, noise, truncated=truncated)
            drawn.index_copy_(0, index, torch.where(_some_left(values), tokens, NOTHING))
    return drawn


@torch.inference_mode()
def likeliest(rows: Tensor, count: int) -> Tensor:
    """`RowKernels.likeliest`."""
    return rows.sort(dim=1, descending=True, stable=True).indices[:, :count]


def _pieces(rows: SampledRows, size: int) -> Iterator[SampledRows]:
    return (rows.part(slice(start, start + size)) for start in range(0, len(rows.rows), size))


def _drawn(logits: Tensor, rows: SampledRows, keys: Tensor, noise: Noise, *, truncated: bool) -> Tensor:
    """The first token (n,) with the highest perturbed score of each row (n, vocabulary)."""
    temperatures = rows.temperatures(logits.device)[:, None]
    scores = logits.double().div_(temperatures)
    if truncated:
        scores.masked_fill_(_dropped(logits, rows, temperatures), -torch.inf)
    return _first_highest(scores.add_(noise.gumbel_table(keys)))


def _dropped(logits: Tensor, rows: SampledRows, temperatures: Tensor) -> Tensor:
    """Return (n, vocabulary) whether `min_p`, then `top_k`, then `top_p` drop a token."""
    device, every = logits.device, rows.params
    log_min_p = column([math.log(p.min_p) if p.min_p > 0.0 else -math.inf for p in every], device)
    top_k = column([float(p.top_k) if p.top_k > 0 else math.inf for p in every], device)
    top_p = column([p.top_p if p.top_p < 1.0 else math.inf for p in every], device)
    ordered = logits.sort(dim=1, descending=True, stable=True)
    values = ordered.values.double()
    top = values[:, :1]
    kept = (values >= top + temperatures * log_min_p) & (torch.arange(logits.shape[1], device=device) < top_k)
    weights = torch.where(kept, (values - top).div_(temperatures).exp_(), 0.0)
    sums = weights.cumsum(1)
    kept &= F.pad(sums[:, :-1], (1, 0)) < top_p * sums[:, -1:]
    return torch.empty_like(kept).scatter_(1, ordered.indices, ~kept)


def _some_left(logits: Tensor) -> Tensor:
    return logits.amax(1).isfinite()  # NaN where any is


def _first_highest(values: Tensor) -> Tensor:
    """The first place (n,) int64 of each row's maximum: `argmax` may take any of equal ones on a device."""
    places = torch.arange(values.shape[1], device=values.device)
    highest = values.amax(1, keepdim=True)
    return torch.where(values == highest, places, values.shape[1]).amin(1).clamp_(max=values.shape[1] - 1)


@torch.inference_mode()
def forbid(logits: Tensor, rows: Sequence[int], forbidden: Tensor) -> None:
    """`RowKernels.forbid`, with three launches for many rows."""
    index = upload(np.array(rows, np.int64), logits.device)
    size = rows_at_once(logits.shape[1])
    for part, tokens in zip(torch.split(index, size), torch.split(forbidden, size), strict=True):
        logits.index_copy_(0, part, logits.index_select(0, part).masked_fill_(tokens, -torch.inf))


def rows_at_once(vocabulary: int) -> int:
    """`RowKernels.rows_at_once`: as many as memory allows, each launch being for all of them."""
    return max(1, _BYTES_AT_ONCE // (8 * vocabulary))


DENSE = RowKernels(draw, likeliest, forbid, rows_at_once)
