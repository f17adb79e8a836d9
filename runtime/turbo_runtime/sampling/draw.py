"""The tokens of rows: the highest logit, or the highest perturbed one, independent of other rows. Before that
the tokens that may be drawn: `min_p`, then `top_k`, then `top_p`, each on what the others left. And whether a
token may be the drawn one of a row whose logits are inexact.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from turbo_runtime.messages import SamplingParams
from turbo_runtime.sampling.noise import BLOCK, Noise

NOTHING = -1  # in place of a token: the row has none with a finite logit
_MIN_SCORE = torch.finfo(torch.float64).min
_MIN_LOGIT = torch.finfo(torch.float32).min
_SLACK = 1e-9  # relative, more than the rounding of a score: bounds so close to the best are searched
_BINS = 4096  # of depths below the best token
_BINS_PER_NAT = 64.0
_MAX_EXPONENT = 700.0  # of float64


def greedy_tokens(logits: Tensor) -> Tensor:
    """Return the token (rows,) int64 of each row of `logits` (rows, vocabulary), of equal ones the lowest id;
    `NOTHING` for a row without a finite logit or with NaN. Maxima of blocks are several times faster than
    `argmax`.
    """
    blocks = blocked(logits)
    peaks, block = blocks.amax(2).max(1)  # the first of equal ones
    within = blocks[torch.arange(len(blocks), device=logits.device), block].argmax(1)
    return torch.where(peaks.isfinite(), block * BLOCK + within, NOTHING)


@torch.inference_mode()
def sampled_tokens(logits: Tensor, temperatures: Tensor, keys: Tensor, noise: Noise) -> Tensor:
    """Return the token (rows,) int64 of each row of `logits` (rows, vocabulary) float32, for `temperatures`
    (rows,) float64 above 0 and `keys` (rows,) int64; `NOTHING` as in `greedy_tokens`.

    Branch and bound: no score of a block exceeds its highest logit with its highest noise, and the token with
    that noise has a score already. Only tokens that may exceed the best of those need noise of their own.
    """
    blocks = blocked(logits)
    minima, places = noise.block_minima(keys)
    highest = minima.log().neg_()
    scored = blocks.gather(2, places[:, :, None]).squeeze(2).double().div_(temperatures[:, None])
    floor = scored.add_(highest).amax(1)
    floor = (floor - _SLACK * (1 + floor.abs())).clamp_(min=_MIN_SCORE)  # forbidden tokens stay below
    peaks = blocks.amax(2)
    bounds = peaks.double().div_(temperatures[:, None]).add_(highest)
    block = (bounds >= floor[:, None]).view(-1).nonzero().squeeze(1)  # blocks, counted through the rows
    row = block // noise.num_blocks

    high, heat = highest.view(-1).index_select(0, block), temperatures.index_select(0, row)
    min_logits = _rounded_down((floor.index_select(0, row) - high) * heat)
    values = blocks.view(-1, BLOCK).index_select(0, block)
    near = (values >= min_logits[:, None]).view(-1).nonzero().squeeze(1)  # tokens, through those blocks
    block, row, heat = (column.index_select(0, near // BLOCK) for column in (block, row, heat))

    ids = block % noise.num_blocks * BLOCK + near % BLOCK
    minima, places = minima.view(-1).index_select(0, block), places.view(-1).index_select(0, block)
    gumbel = noise.gumbel_within(keys.index_select(0, row), ids, minima, places)
    scores = values.view(-1).index_select(0, near).double().div_(heat).add_(gumbel)
    best = logits.new_full((len(logits),), -torch.inf, dtype=torch.float64)
    best.scatter_reduce_(0, row, scores, "amax")
    ids = torch.where(scores == best.index_select(0, row), ids, noise.vocabulary)
    drawn = torch.full_like(keys, noise.vocabulary).scatter_reduce_(0, row, ids, "amin")
    # a block with a NaN has no bound and was not searched
    return torch.where(best.isfinite() & peaks.amax(1).isfinite(), drawn, NOTHING)


def _rounded_down(values: Tensor) -> Tensor:
    """Round float64 down to float32, but not below the lowest finite logit."""
    return values.float().nextafter(values.new_tensor(-torch.inf).float()).clamp_(min=_MIN_LOGIT)


def blocked(logits: Tensor) -> Tensor:
    """Reshape (rows, vocabulary) to (rows, blocks, BLOCK), padded with -inf."""
    missing = -logits.shape[1] % BLOCK
    whole = F.pad(logits, (0, missing), value=-torch.inf) if missing else logits
    return whole.view(len(logits), -1, BLOCK)


def head(logits: Tensor, count: int) -> Tensor:
    """Return the first `count` finite token ids of one row (vocabulary,), by logit, then by lower id. They
    lie in the blocks with the highest `count` maxima: few, unless count is large.
    """
    blocks = blocked(logits[None])[0]
    peaks = blocks.amax(1)
    bounding = peaks if count <= len(peaks) else logits
    floor = bounding.topk(min(count, len(bounding)), sorted=False).values.min().clamp(min=_MIN_LOGIT)
    block = (peaks >= floor).nonzero().squeeze(1)
    values = blocks.index_select(0, block).view(-1)
    near = (values >= floor).nonzero().squeeze(1)
    ids = block.index_select(0, near // BLOCK) * BLOCK + near % BLOCK
    order = values.index_select(0, near).argsort(descending=True, stable=True)[:count]
    return ids.index_select(0, order)


def truncates(params: SamplingParams) -> bool:
    """Whether any token may be dropped from a row."""
    return params.min_p > 0.0 or params.top_k > 0 or params.top_p < 1.0


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
