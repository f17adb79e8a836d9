"""The head of the one ranking of tokens: by logit, equal ones by lower id first."""

from __future__ import annotations

import torch
from torch import Tensor

from turbo_runtime.sampling.draw import blocked
from turbo_runtime.sampling.noise import BLOCK

_LEAST = torch.finfo(torch.float32).min


def head(logits: Tensor, count: int) -> Tensor:
    """The ids of the first `count` tokens of one row (vocabulary,), best first; fewer where fewer are finite.

    The tokens sought lie in the blocks whose maxima are the highest `count`: few, unless count is large.
    """
    blocks = blocked(logits[None])[0]
    peaks = blocks.amax(1)
    floor = peaks.topk(min(count, len(peaks))).values[-1].clamp(min=_LEAST)
    if count > len(peaks):
        floor = logits.topk(min(count, len(logits)), sorted=False).values.min().clamp(min=_LEAST)
    block = (peaks >= floor).nonzero().squeeze(1)
    values = blocks.index_select(0, block).view(-1)
    near = (values >= floor).nonzero().squeeze(1)
    ids = block.index_select(0, near // BLOCK) * BLOCK + near % BLOCK
    order = values.index_select(0, near).argsort(descending=True, stable=True)[:count]
    return ids.index_select(0, order)
