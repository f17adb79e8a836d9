"""Which tokens of a row may be drawn: `min_p`, then `top_k`, then `top_p`.

Each keeps a head of one ranking (by logit, equal ones by lower id first), so all that is to be found is how
long the head is. The vocabulary is never sorted.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from turbo_runtime.engine.request import SamplingParams

_HEADS = (64, 512, 4096)  # lengths tried before the whole vocabulary


def cuts(params: SamplingParams) -> bool:
    """Whether any token can be dropped from a row."""
    return params.min_p > 0.0 or params.top_k > 0 or params.top_p < 1.0


def keep_candidates(logits: Tensor, params: SamplingParams) -> Tensor:
    """One row (vocabulary,) of processed logits with -inf for the tokens that are dropped; the temperature
    must be above 0.
    """
    count = logits.numel()
    peak = float(logits.max())
    if params.min_p > 0.0:
        # p / p_max >= min_p, said of the logits
        count = max(1, int((logits.double() >= peak + params.temperature * math.log(params.min_p)).sum()))
    if params.top_k > 0:
        count = min(count, params.top_k)
    if params.top_p < 1.0:
        count = _nucleus(logits, count, peak, params)
    return logits if count == logits.numel() else _head(logits, count)


def _nucleus(logits: Tensor, count: int, peak: float, params: SamplingParams) -> int:
    """How many of the first `count` tokens of the ranking `top_p` keeps, at least one."""
    whole = count == logits.numel()
    support = _weights(logits if whole else logits.topk(count).values, peak, params.temperature)
    enough = params.top_p * float(support.sum())
    for length in (*(head for head in _HEADS if head < count), count):
        ranked = _weights(logits.topk(length).values, peak, params.temperature) if whole else support[:length]
        kept = 1 + int((ranked.cumsum(0)[:-1] < enough).sum())
        if kept < length:
            break
    return kept


def _weights(logits: Tensor, peak: float, temperature: float) -> Tensor:
    """Probabilities without their common factor, float64."""
    return logits.double().sub_(peak).div_(temperature).exp_()


def _head(logits: Tensor, count: int) -> Tensor:
    """The first `count` tokens of the ranking; -inf in place of the others."""
    least = logits.topk(count, sorted=False).values.min()
    kept = logits >= least
    surplus = int(kept.sum()) - count
    if surplus:  # of those equal to the last, the highest ids go
        edge = (logits == least).nonzero().squeeze(1)
        kept[edge[len(edge) - surplus :]] = False
    return torch.where(kept, logits, -torch.inf)
