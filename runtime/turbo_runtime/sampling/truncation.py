"""The tokens that may be drawn: `min_p`, then `top_k`, then `top_p`, each on what the others left. And
whether a token may be the drawn one of a row whose logits are inexact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from turbo_runtime.messages import SamplingParams
from turbo_runtime.sampling.draw import MIN_LOGIT, NOTHING, BlockedLogits, greedy_tokens, sampled_tokens
from turbo_runtime.sampling.noise import BLOCK, Noise

_BINS = 4096  # of depths below the best token
_BINS_PER_NAT = 64.0
_MAX_EXPONENT = 700.0  # of float64
_SEARCHED_NATS = 6.0  # below the best token: most of the probability


def truncates(params: SamplingParams) -> bool:
    """Whether any token may be dropped from a row."""
    return params.min_p > 0.0 or params.top_k > 0 or params.top_p < 1.0


@torch.inference_mode()
def truncated_tokens(
    logits: BlockedLogits, params: Sequence[SamplingParams], keys: Tensor, noise: Noise, rows: Tensor
) -> Tensor:
    """Return the token (n,) int64 of each of the `rows` (n,) among those that its `params` leave, as
    `sampled_tokens` does among all.

    The best of all tokens is the best of those left where it is one of them, which most often it is, and then
    nothing needs to be dropped.
    """
    temperatures = keys.new_tensor([p.temperature for p in params], dtype=torch.float64)
    drawn = sampled_tokens(logits, temperatures, keys, noise, rows)
    left = _are_left(logits, params, temperatures, rows, drawn)
    others = (~left).nonzero().squeeze(1)
    if len(others):
        vocabulary = noise.vocabulary
        whole = logits.values.view(len(logits.peaks), -1)
        kept = [truncate(whole[rows[i], :vocabulary], params[i]) for i in others.tolist()]
        again = sampled_tokens(BlockedLogits(torch.stack(kept)), temperatures[others], keys[others], noise)
        drawn = drawn.index_copy(0, others, again)
    return drawn


def _are_left(
    logits: BlockedLogits, params: Sequence[SamplingParams], temperatures: Tensor, rows: Tensor, drawn: Tensor
) -> Tensor:
    """Return (n,) whether the `drawn` token (n,) of each row is certainly left by truncation."""
    peaks, firsts, num_blocks = logits.peaks_of(rows), logits.first_blocks(rows), logits.num_blocks
    left = (drawn == greedy_tokens(logits, rows)) | (drawn == NOTHING)
    (asked,) = (~left).nonzero(as_tuple=True)
    if not len(asked):
        return left
    number = asked.tolist()

    def column(values: Sequence[float]) -> Tensor:
        return temperatures.new_tensor(values)

    heat, token, first = (each.index_select(0, asked) for each in (temperatures, drawn, firsts))
    top = peaks.index_select(0, asked).amax(1).double()
    own = logits.values.view(-1).take(first * BLOCK + token)
    ratios = column([math.log(params[i].min_p) if params[i].min_p > 0.0 else -math.inf for i in number])
    floor = top + heat * ratios
    deep = torch.minimum(own.double(), top - _SEARCHED_NATS * heat)

    block = (peaks.index_select(0, asked) >= deep[:, None]).view(-1).nonzero().squeeze(1)
    row = block // num_blocks
    values = logits.values.index_select(0, first.index_select(0, row) + block % num_blocks)
    within = torch.arange(BLOCK, device=values.device)
    ids = (block % num_blocks * BLOCK)[:, None] + within
    mine, wide = own.index_select(0, row)[:, None], values.double()
    before = (values > mine) | ((values == mine) & (ids < token.index_select(0, row)[:, None]))
    weights = (wide - top.index_select(0, row)[:, None]).div_(heat.index_select(0, row)[:, None]).exp_()
    weights = torch.where(wide >= floor.index_select(0, row)[:, None], weights, 0.0)

    def by_row(each: Tensor) -> Tensor:
        return each.new_zeros(len(asked)).index_add_(0, row, sum_rows(each)[:, 0])

    rank, mass = by_row(before.double()), by_row(torch.where(before, weights, 0.0))
    ranks = column([k if (k := params[i].top_k) > 0 else math.inf for i in number])
    nuclei = column([params[i].top_p for i in number])
    # `top_k` may leave none behind this one
    least = torch.where(ranks.isfinite(), mass + ((own.double() - top) / heat).exp(), by_row(weights))
    inside = (own.double() >= floor) & (rank < ranks) & ((nuclei >= 1.0) | (mass < nuclei * least))
    return left.index_copy(0, asked, inside)


def sum_rows(values: Tensor) -> Tensor:
    """Sum rows to (rows, 1) by halving: a library's order of summation may depend on the number of rows."""
    while (count := values.shape[1]) > 1:
        half = count // 2
        pairs = values[:, :half] + values[:, half : 2 * half]
        values = torch.cat([pairs, values[:, -1:]], 1) if count % 2 else pairs
    return values


def head(logits: Tensor, count: int) -> Tensor:
    """Return the first `count` finite token ids of one row (vocabulary,), by logit, then by lower id. They
    lie in the blocks with the highest `count` maxima: few, unless count is large.
    """
    blocks = BlockedLogits(logits[None])
    peaks = blocks.peaks[0]
    bounding = peaks if count <= len(peaks) else logits
    floor = bounding.topk(min(count, len(bounding)), sorted=False).values.min().clamp(min=MIN_LOGIT)
    block = (peaks >= floor).nonzero().squeeze(1)
    values = blocks.values.index_select(0, block).view(-1)
    near = (values >= floor).nonzero().squeeze(1)
    ids = block.index_select(0, near // BLOCK) * BLOCK + near % BLOCK
    order = values.index_select(0, near).argsort(descending=True, stable=True)[:count]
    return ids.index_select(0, order)


@torch.inference_mode()
def truncate(logits: Tensor, params: SamplingParams) -> Tensor:
    """Set dropped tokens of a row (vocabulary,) of processed logits to -inf; the temperature is above 0."""
    peak = logits.max()
    if not peak.isfinite():
        return logits  # no token is left
    if params.min_p > 0.0:
        # p / p_max >= min_p, as a bound of logits
        floor = peak.double() + params.temperature * math.log(params.min_p)
        logits = torch.where(logits.double() >= floor, logits, -torch.inf)
    if 0 < params.top_k < logits.numel():
        ids = head(logits, params.top_k)
        values = logits.index_select(0, ids)
        if params.top_p < 1.0:
            weights = values.double().sub_(values[0]).div_(params.temperature).exp_()
            nucleus = _begin(weights, params.top_p * weights.sum())
            ids, values = ids[:nucleus], values[:nucleus]
        return torch.full_like(logits, -torch.inf).index_copy_(0, ids, values)
    return _nucleus(logits, params.temperature, params.top_p) if params.top_p < 1.0 else logits


def _nucleus(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Keep the tokens before which the ranking holds less than `top_p` of the probability.

    Flat rows have nuclei of many thousands, so only one bin is sorted: bins of equal depth below the best
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
def excess(row: Tensor, token: int, params: SamplingParams, gumbel: Tensor | None, off: float) -> float:
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
        scores = scores + params.temperature * gumbel
    rivals = scores
    if gumbel is not None and truncates(params):
        if float(row[token]) < _lowest(row, params, off) - 2 * off:
            return math.inf
        rivals = scores[row.double() > _lowest(row, params, -off) + 2 * off]
    best = float(rivals.max()) if len(rivals) else -math.inf
    return max(best - float(scores[token]), 0.0) - 2 * off


def _lowest(row: Tensor, params: SamplingParams, off: float) -> float:
    """Return the lowest kept logit if probabilities are off in favor of many tokens; against them if `off` <
    0.

    Sorted, the logits of two such rows differ by at most `off` rank by rank, and a rank's share of the
    probability by the factor exp(2 off / T): `top_k` keeps the same ranks of both, the other two at most
    those that they keep with their bound moved by that factor.
    """
    factor = math.exp(max(-_MAX_EXPONENT, min(2 * off / params.temperature, _MAX_EXPONENT)))
    moved = replace(params, min_p=min(1.0, params.min_p / factor), top_p=min(1.0, params.top_p * factor))
    truncated = truncate(row, moved)
    return float(truncated[truncated.isfinite()].min())
