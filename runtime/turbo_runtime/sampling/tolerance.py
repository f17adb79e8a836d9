"""Whether a token may be the one of a row whose logits are known only nearly: near-ties fall either way."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from turbo_runtime.messages import SamplingParams
from turbo_runtime.sampling.truncation import cuts, keep_candidates

_MOST = 700.0  # an exponent that float64 holds


@torch.inference_mode()
def excess(row: Tensor, token: int, params: SamplingParams, gumbel: Tensor | None, off: float) -> float:
    """By how many logits `token` lies too far below the best of the processed `row` (vocabulary,); at most 0
    where it is the best one of some row that differs from this by at most `off` everywhere.

    `gumbel` (vocabulary,) is the position's noise, None for a greedy answer. Scores are l + T g, so a logit
    may lose `off` and its rival gain as much. Where tokens are dropped, only those are rivals that stay
    however the logits are off, and `token` may be any that stays for some of them.
    """
    if not (row[token].isfinite() and row.max().isfinite()):
        return math.inf
    scores = row.double()
    if gumbel is not None:
        scores = scores + params.temperature * gumbel
    rivals = scores
    if gumbel is not None and cuts(params):
        if float(row[token]) < _lowest(row, params, off) - 2 * off:
            return math.inf
        rivals = scores[row.double() > _lowest(row, params, -off) + 2 * off]
    best = float(rivals.max()) if len(rivals) else -math.inf
    return max(best - float(scores[token]), 0.0) - 2 * off


def _lowest(row: Tensor, params: SamplingParams, off: float) -> float:
    """The lowest logit that stays where probabilities are off in favour of the many; against them if `off` is
    negative.

    Sorted, the logits of two such rows differ by at most `off` rank by rank, and a rank's share of the
    probability by the factor exp(2 off / T): `top_k` keeps the same ranks of both, the other two at most
    those that they keep with their bound moved by that factor.
    """
    factor = math.exp(max(-_MOST, min(2 * off / params.temperature, _MOST)))
    moved = replace(params, min_p=min(1.0, params.min_p / factor), top_p=min(1.0, params.top_p * factor))
    kept = keep_candidates(row, moved)
    return float(kept[kept.isfinite()].min())
