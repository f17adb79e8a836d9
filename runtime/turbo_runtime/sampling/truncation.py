"""Which tokens of a row may be drawn: `min_p`, then `top_k`, then `top_p`, each on what the others left."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from turbo_runtime.messages import SamplingParams
from turbo_runtime.sampling.ranking import head

_BINS = 4096
_BINS_PER_NAT = 64.0


def cuts(params: SamplingParams) -> bool:
    """Whether any token can be dropped from a row."""
    return params.min_p > 0.0 or params.top_k > 0 or params.top_p < 1.0


@torch.inference_mode()
def keep_candidates(logits: Tensor, params: SamplingParams) -> Tensor:
    """One row (vocabulary,) of processed logits with -inf for the tokens that are dropped; the temperature
    must be above 0.
    """
    peak = logits.max()
    if not peak.isfinite():
        return logits  # nothing is left to choose from
    if params.min_p > 0.0:
        # p / p_max >= min_p, said of the logits
        floor = peak.double() + params.temperature * math.log(params.min_p)
        logits = torch.where(logits.double() >= floor, logits, -torch.inf)
    if 0 < params.top_k < logits.numel():
        ids = head(logits, params.top_k)
        values = logits.index_select(0, ids)
        if params.top_p < 1.0:
            weights = values.double().sub_(values[0]).div_(params.temperature).exp_()
            kept = _begin(weights, params.top_p * weights.sum())
            ids, values = ids[:kept], values[:kept]
        return torch.full_like(logits, -torch.inf).index_copy_(0, ids, values)
    return _nucleus(logits, params.temperature, params.top_p) if params.top_p < 1.0 else logits


def _nucleus(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """The tokens before which the ranking holds less than `top_p` of the probability.

    Flat rows have nuclei of many thousands, so nothing is sorted but one bin: the probability is summed by
    bins of equal depth below the best token, and only in the bin where it reaches p are tokens ranked.
    """
    depth = logits.double().sub_(logits.max()).div_(-temperature)
    weights = depth.neg().exp_()
    bins = depth.mul_(_BINS_PER_NAT).clamp_(max=_BINS - 1).long()
    mass = torch.bincount(bins, weights, _BINS).cumsum(0)
    enough = top_p * mass[-1]
    edge = min(int((mass < enough).sum()), _BINS - 1)
    ids = (bins == edge).nonzero().squeeze(1)
    ids = ids.index_select(0, logits.index_select(0, ids).argsort(descending=True, stable=True))
    left = enough - mass[edge - 1] if edge else enough
    kept = bins < edge
    kept[ids[: _begin(weights.index_select(0, ids), left)]] = True
    return torch.where(kept, logits, -torch.inf)


def _begin(weights: Tensor, enough: Tensor) -> int:
    """How many of ranked `weights` come before the sum is `enough`, the one that makes it so included."""
    return 1 + int((weights.cumsum(0)[:-1] < enough).sum())
