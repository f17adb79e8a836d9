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
from turbo_runtime.sampling.rows import DrawnRows, Masks, RowKernels, SampledRows

_BYTES_AT_ONCE = 1 << 26  # of float64, for some rows of the vocabulary; a few such tensors exist together


@torch.inference_mode()
def draw(logits: Tensor, rows: DrawnRows, noise: Noise) -> Tensor:
    """`RowKernels.draw`."""
    device = logits.device
    drawn = torch.full((len(logits),), NOTHING, device=device)
    size = rows_at_once(logits.shape[1])
    greedy = upload(np.array(rows.greedy, np.int64), device)
    for index in torch.split(greedy, size) if rows.greedy else ():
        values = logits.index_select(0, index)
        drawn.index_copy_(0, index, torch.where(_some_left(values), _first_highest(values), NOTHING))
    for part, truncated in ((rows.plain, False), (rows.truncated, True)):
        for piece in _pieces(part, size):
            index, keys = upload(piece.index(), device), upload(piece.position_keys(), device)
            values = logits.index_select(0, index)
            tokens = _highest_perturbed(values, piece, keys, noise, truncated=truncated)
            drawn.index_copy_(0, index, torch.where(_some_left(values), tokens, NOTHING))
    return drawn


@torch.inference_mode()
def likeliest(rows: Tensor, count: int) -> Tensor:
    """`RowKernels.likeliest`."""
    return rows.sort(dim=1, descending=True, stable=True).indices[:, :count]


def _pieces(rows: SampledRows, size: int) -> Iterator[SampledRows]:
    return (rows.part(slice(start, start + size)) for start in range(0, len(rows.rows), size))


def _highest_perturbed(
    logits: Tensor, rows: SampledRows, keys: Tensor, noise: Noise, *, truncated: bool
) -> Tensor:
    """The first token (n,) with the highest perturbed score of each row (n, vocabulary)."""
    temperatures = upload(rows.temperatures(), logits.device)[:, None]
    scores = logits.double().div_(temperatures)
    if truncated:
        scores.masked_fill_(_dropped(logits, rows, temperatures), -torch.inf)
    return _first_highest(scores.add_(noise.gumbel_table(keys)))


def _dropped(logits: Tensor, rows: SampledRows, temperatures: Tensor) -> Tensor:
    """Return (n, vocabulary) whether `min_p`, then `top_k`, then `top_p` drop a token."""
    device, every = logits.device, rows.params
    log_min_p = _column([math.log(p.min_p) if p.min_p > 0.0 else -math.inf for p in every], device)
    top_k = _column([float(p.top_k) if p.top_k > 0 else math.inf for p in every], device)
    top_p = _column([p.top_p if p.top_p < 1.0 else math.inf for p in every], device)
    ordered = logits.sort(dim=1, descending=True, stable=True)
    values = ordered.values.double()
    top = values[:, :1]
    kept = (values >= top + temperatures * log_min_p) & (torch.arange(logits.shape[1], device=device) < top_k)
    weights = torch.where(kept, (values - top).div_(temperatures).exp_(), 0.0)
    sums = weights.cumsum(1)
    kept &= F.pad(sums[:, :-1], (1, 0)) < top_p * sums[:, -1:]
    return torch.empty_like(kept).scatter_(1, ordered.indices, ~kept)


def _column(values: list[float], device: torch.device) -> Tensor:
    """Put numbers (n,) on `device` as (n, 1) float64."""
    return upload(np.array(values, np.float64), device)[:, None]


def _some_left(logits: Tensor) -> Tensor:
    return logits.amax(1).isfinite()  # NaN where any is


def _first_highest(values: Tensor) -> Tensor:
    """The first place (n,) int64 of each row's maximum: `argmax` may take any of equal ones on a device."""
    places = torch.arange(values.shape[1], device=values.device)
    highest = values.amax(1, keepdim=True)
    return torch.where(values == highest, places, values.shape[1]).amin(1).clamp_(max=values.shape[1] - 1)


@torch.inference_mode()
def forbid(logits: Tensor, rows: Sequence[int], masks: Masks) -> None:
    """`RowKernels.forbid`, with few launches for many rows."""
    index, packed = upload(np.array(rows, np.int64), logits.device), upload(masks, logits.device)
    size = rows_at_once(logits.shape[1])
    for part, some in zip(torch.split(index, size), torch.split(packed, size), strict=True):
        tokens = forbidden_tokens(some)[:, : logits.shape[1]]
        logits.index_copy_(0, part, logits.index_select(0, part).masked_fill_(tokens, -torch.inf))


def forbidden_tokens(masks: Tensor) -> Tensor:
    """Return what masks (n, bytes) leave out, as (n, 8 x bytes) bool."""
    bits = torch.arange(8, dtype=torch.uint8, device=masks.device)
    return (masks[:, :, None].bitwise_right_shift(bits) & 1 == 0).flatten(1)


def rows_at_once(vocabulary: int) -> int:
    """`RowKernels.rows_at_once`: as many as memory allows, each launch being for all of them."""
    return max(1, _BYTES_AT_ONCE // (8 * vocabulary))


DENSE = RowKernels(draw, likeliest, forbid, rows_at_once)
