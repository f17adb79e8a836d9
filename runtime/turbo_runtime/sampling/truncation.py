"""The tokens that may be drawn: `min_p`, then `top_k`, then `top_p`, each on what the others left. And
whether a token may be the drawn one of a row whose logits are inexact.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from turbo_runtime.sampling.noise import BLOCK
from turbo_runtime.sampling.rows import Rule

_BINS = 4096  # of depths below the best token
_BINS_PER_NAT = 64.0
_MAX_EXPONENT = 700.0  # of float64
_MIN_LOGIT = float(np.finfo(np.float32).min)


def sum_rows(values: Tensor) -> Tensor:
    """Sum rows to (rows, 1) by halving: a library's order of summation may depend on the number of rows."""
    while (count := values.shape[1]) > 1:
        half = count // 2
        pairs = values[:, :half] + values[:, half : 2 * half]
        values = torch.cat([pairs, values[:, -1:]], 1) if count % 2 else pairs
    return values


def top_tokens(logits: Tensor, count: int) -> Tensor:
    """Return the first `count` finite token ids of one row (vocabulary,), by logit, then by lower id. They
    lie in the blocks with the highest `count` maxima: few, unless count is large.
    """
    missing = -len(logits) % BLOCK
    blocks = (F.pad(logits, (0, missing), value=-torch.inf) if missing else logits).view(-1, BLOCK)
    peaks = blocks.amax(1).numpy()
    bounding = peaks if count <= len(peaks) else logits.numpy()
    count = min(count, len(bounding))
    floor = max(np.partition(bounding, -count)[-count], _MIN_LOGIT)
    block = np.flatnonzero(peaks >= floor)
    values = blocks.numpy()[block].reshape(-1)
    near = np.flatnonzero(values >= floor)
    near = near[np.argsort(-values[near], kind="stable")[:count]]
    return torch.from_numpy(block[near // BLOCK] * BLOCK + near % BLOCK)


@torch.inference_mode()
def truncate(logits: Tensor, rule: Rule) -> Tensor:
    """Set dropped tokens of a row (vocabulary,) of processed logits to -inf; the temperature is above 0."""
    peak = logits.max()
    if not peak.isfinite():
        return logits  # no token is left
    if rule.log_min_p > -math.inf:
        # p / p_max >= min_p, as a bound of logits
        floor = peak.double() + rule.temperature * rule.log_min_p
        logits = torch.where(logits.double() >= floor, logits, -torch.inf)
    if rule.top_k < logits.numel():
        ids = top_tokens(logits, int(rule.top_k))
        values = logits.index_select(0, ids)
        if rule.top_p < math.inf:
            weights = values.double().sub_(values[0]).div_(rule.temperature).exp_()
            nucleus = _begin(weights, rule.top_p * weights.sum())
            ids, values = ids[:nucleus], values[:nucleus]
        return torch.full_like(logits, -torch.inf).index_copy_(0, ids, values)
    return _nucleus(logits, rule.temperature, rule.top_p) if rule.top_p < math.inf else logits


def _nucleus(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Keep the tokens before which the ranking holds less than `top_p` of the probability.

    Flat rows have top_p of many thousands, so only one bin is sorted: bins of equal depth below the best
    token sum the probability, and tokens are ranked only in the bin where it reaches `top_p`.
    """
    depth = logits.double().sub_(logits.max()).div_(-temperature)
    weights = depth.neg().exp_()
    bins = depth.mul_(_BINS_PER_NAT).clamp_(max=_BINS - 1).long()
    mass = torch.bincount(bins, weights, _BINS).cumsum(0)
    enough = top_p * mass[-1]
    edge = min(int((mass < enough).sum()), _BINS - 1)
    ids = (bins == edge).nonzero().squeeze(1)
    ids = ids.index_select(0, logits.index_select(0, ids).argsort(descending=True, stable=True))
    remaining = enough - mass[edge - 1] if edge else enough
    mask = bins < edge
    mask[ids[: _begin(weights.index_select(0, ids), remaining)]] = True
    return torch.where(mask, logits, -torch.inf)


def _begin(weights: Tensor, enough: Tensor) -> int:
    """Count the ranked `weights` until their sum is `enough`."""
    return 1 + int((weights.cumsum(0)[:-1] < enough).sum())


@torch.inference_mode()
def excess(row: Tensor, token: int, rule: Rule, gumbel: Tensor | None, off: float) -> float:
    """Return by how many logits `token` lies too far below the best of the processed `row` (vocabulary,); at
    most 0 if it is the best one of some row that differs from this by at most `off` everywhere.

    `gumbel` (vocabulary,) is the position's noise, None for a greedy answer. Scores are l + T g, so a logit
    may lose `off` and its rival gain as much. With truncation, only tokens that stay in all such rows are
    rivals, and `token` may be any that stays in one.
    """
    if not (row[token].isfinite() and row.max().isfinite()):
        return math.inf
    scores = row.double()
    if gumbel is not None:
        scores = scores + rule.temperature * gumbel
    rivals = scores
    if gumbel is not None and rule.truncates:
        if float(row[token]) < _lowest(row, rule, off) - 2 * off:
            return math.inf
        rivals = scores[row.double() > _lowest(row, rule, -off) + 2 * off]
    best = float(rivals.max()) if len(rivals) else -math.inf
    return max(best - float(scores[token]), 0.0) - 2 * off


def _lowest(row: Tensor, rule: Rule, off: float) -> float:
    """Return the lowest kept logit if probabilities are off in favor of many tokens; against them if `off` <
    0.

    Sorted, the logits of two such rows differ by at most `off` rank by rank, and a rank's share of the
    probability by the factor exp(2 off / T): `top_k` keeps the same top_k of both, the other two at most
    those that they keep with their bound moved by that factor.
    """
    moved_by = max(-_MAX_EXPONENT, min(2 * off / rule.temperature, _MAX_EXPONENT))
    top_p = rule.top_p * math.exp(moved_by)
    moved = rule._replace(
        log_min_p=min(0.0, rule.log_min_p - moved_by), top_p=top_p if top_p < 1.0 else math.inf
    )
    truncated = truncate(row, moved)
    return float(truncated[truncated.isfinite()].min())
