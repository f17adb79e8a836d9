"""The tokens that may be drawn: `min_p`, then `top_k`, then `top_p`, each on what the others left. And
whether a token may be the drawn one of a row whose logits are inexact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from turbo_runtime.messages import SamplingParams
from turbo_runtime.sampling.draw import MIN_LOGIT, NOTHING, BlockedLogits, greedy_tokens, sampled_tokens
from turbo_runtime.sampling.noise import BLOCK, Noise

_BINS = 4096  # of depths below the best token
_BINS_PER_NAT = 64.0
_MAX_EXPONENT = 700.0  # of float64
_NEAR_NATS = 1.0  # below a drawn token: mostly enough of what comes after it
_FAR_NATS = 16.0  # below the likeliest token: all that matters
_SLACK = 1e-4  # relative, far more than the error of probabilities in float32
_TRIES = 4  # of the next best token, before a row is truncated: top_p may hold little


def truncates(params: SamplingParams) -> bool:
    """Whether any token may be dropped from a row."""
    return params.min_p > 0.0 or params.top_k > 0 or params.top_p < 1.0


@torch.inference_mode()
def truncated_tokens(
    logits: BlockedLogits, params: Sequence[SamplingParams], keys: Tensor, noise: Noise, rows: Tensor
) -> Tensor:
    """Return the token (n,) int64 of each of the `rows` (n,) among those that its `params` leave, as
    `sampled_tokens` does among all. Maxima of blocks may be lower in `logits` afterwards.

    The best of all tokens is the best of those left where it is one of them, which most often it is, and then
    nothing needs to be dropped. Otherwise the next best may be.
    """
    rules = _Rules(params, rows)
    drawn = sampled_tokens(logits, rules.temperatures, keys, noise, rows)
    # the likeliest is always left
    place = ((drawn != greedy_tokens(logits, rows)) & (drawn != NOTHING)).nonzero().squeeze(1)
    if len(place):
        place = place[~_certainly_left(logits, rules.part(place), drawn[place])]
    if not len(place):
        return drawn
    ranked = rules.top_k[place].isfinite()  # their probabilities need the ranking
    dense, place = [place[ranked]], place[~ranked]
    totals, gone = (
        drawn.new_full((len(drawn),), torch.nan, dtype=torch.float64),
        list[tuple[Tensor, Tensor]](),
    )
    for _ in range(_TRIES):
        left, dropped = _classify(logits, rules.part(place), drawn[place], totals, place)
        dense.append(place[~left & ~dropped])
        place = place[dropped]
        if not len(place):
            break
        gone.append(logits.forbid(rows[place], drawn[place]))
        own = rules.part(place)
        drawn[place] = sampled_tokens(logits, own.temperatures, keys[place], noise, own.rows)
    for flat, values in gone:
        logits.values.view(-1)[flat] = values
    rest = torch.cat([*dense, place])
    if len(rest):
        whole = logits.values.view(len(logits.peaks), -1)[:, : noise.vocabulary]
        kept = [truncate(whole[int(rows[i])], params[i]) for i in rest.tolist()]
        again = sampled_tokens(BlockedLogits(torch.stack(kept)), rules.temperatures[rest], keys[rest], noise)
        drawn[rest] = again
    return drawn


class _Rules:
    """What `rows` (n,) are truncated by, as columns (n,) float64."""

    def __init__(self, params: Sequence[SamplingParams], rows: Tensor) -> None:
        table = [
            (
                p.temperature,
                math.log(p.min_p) if p.min_p > 0.0 else -math.inf,
                float(p.top_k) if p.top_k > 0 else math.inf,
                p.top_p if p.top_p < 1.0 else math.inf,
            )
            for p in params
        ]
        self._set(rows, torch.tensor(table, dtype=torch.float64, device=rows.device).view(-1, 4).T)

    def _set(self, rows: Tensor, columns: Tensor) -> None:
        self.rows, self._columns = rows, columns
        self.temperatures, self.log_min_p, self.top_k, self.top_p = columns.contiguous()
        self.has_min_p = bool((self.log_min_p > -math.inf).any())

    def part(self, which: Tensor) -> _Rules:
        """Those of some rows."""
        part = _Rules((), which)
        part._set(self.rows.index_select(0, which), self._columns.index_select(1, which))
        return part

    def floors(self, top: Tensor) -> Tensor:
        """The lowest logits that `min_p` leaves, float32 rounded up; `top` (n,) are the highest."""
        exact = top.double() + self.temperatures * self.log_min_p
        rounded = exact.float()
        return torch.where(rounded.double() < exact, rounded.nextafter(rounded.new_tensor(math.inf)), rounded)


class _Sums(NamedTuple):
    """Sums (n,) float64 over the likelier blocks of rows: probabilities are float32, but for a factor."""

    total: Tensor
    above: Tensor  # of tokens with a higher logit than the row's own
    equal: Tensor  # of tokens with the same logit, itself included
    number: Tensor  # of both kinds of tokens


def _sums(logits: BlockedLogits, rules: _Rules, own: Tensor, deep: Tensor) -> _Sums:
    """Sum up the blocks with a logit of at least `deep` (n,); `own` (n,) is a logit of each row."""
    peaks, num_blocks = logits.peaks_of(rules.rows), logits.num_blocks
    top, temperatures = peaks.amax(1), rules.temperatures.float()
    block = (peaks >= deep[:, None]).view(-1).nonzero().squeeze(1)
    row = block // num_blocks
    values = logits.values.index_select(
        0, logits.first_blocks(rules.rows).index_select(0, row) + block % num_blocks
    )
    weights = (
        (values - top.index_select(0, row)[:, None]).div_(temperatures.index_select(0, row)[:, None]).exp_()
    )
    if rules.has_min_p:
        floors = rules.floors(top).index_select(0, row)
        weights = torch.where(values >= floors[:, None], weights, 0.0)
    mine = own.index_select(0, row)[:, None]

    def by_row(each: Tensor) -> Tensor:
        return top.new_zeros(len(top), dtype=torch.float64).index_add_(0, row, each.sum(1).double())

    above = (values > mine).float()
    equal = (values == mine).float()
    count = by_row(above) + by_row(equal)
    return _Sums(by_row(weights), by_row(above.mul_(weights)), by_row(equal.mul_(weights)), count)


def _logits_of(logits: BlockedLogits, rows: Tensor, tokens: Tensor) -> Tensor:
    flat: Tensor = logits.values.view(-1)
    return flat.index_select(0, logits.first_blocks(rows) * BLOCK + tokens)


def _certainly_left(logits: BlockedLogits, rules: _Rules, tokens: Tensor) -> Tensor:
    """Return (n,) whether each row's token is left for certain, by few other tokens."""
    own, top = _logits_of(logits, rules.rows, tokens), logits.peaks_of(rules.rows).amax(1)
    sums = _sums(logits, rules, own, own - _NEAR_NATS * rules.temperatures.float())
    weight = ((own - top).double() / rules.temperatures).exp()
    before = sums.above + sums.equal - weight  # as if all equal ones came before it
    # `top_k` may leave none behind this one
    least = torch.where(rules.top_k.isfinite(), before + weight, sums.total)
    in_nucleus = (rules.top_p > 1.0) | (before < rules.top_p * least * (1 - _SLACK))
    left: Tensor = (own >= rules.floors(top)) & (sums.number - 1 < rules.top_k) & in_nucleus
    return left


def _classify(
    logits: BlockedLogits, rules: _Rules, tokens: Tensor, totals: Tensor, place: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (n,) whether `min_p` and `top_p` certainly leave each row's token, and whether they certainly
    drop it. `totals` keeps the sums at `place` (n,) of before any token was gone.
    """
    none = tokens == NOTHING
    own, top = _logits_of(logits, rules.rows, tokens.clamp(min=0)), logits.peaks_of(rules.rows).amax(1)
    sums = _sums(logits, rules, own, top - _FAR_NATS * rules.temperatures.float())
    known = totals[place]
    total = totals[place] = torch.where(known.isnan(), sums.total, known)
    beyond = math.exp(-_FAR_NATS) * logits.num_blocks * BLOCK  # what lies deeper, at most
    floors, whole = rules.floors(top), rules.top_p > 1.0
    inside = whole | (sums.above + sums.equal + beyond < rules.top_p * total * (1 - _SLACK))
    outside = ~whole & (sums.above > rules.top_p * (total + beyond) * (1 + _SLACK))
    return none | ((own >= floors) & inside), ~none & ((own < floors) | outside)


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
    probability by the factor exp(2 off / T): `top_k` keeps the same top_k of both, the other two at most
    those that they keep with their bound moved by that factor.
    """
    factor = math.exp(max(-_MAX_EXPONENT, min(2 * off / params.temperature, _MAX_EXPONENT)))
    moved = replace(params, min_p=min(1.0, params.min_p / factor), top_p=min(1.0, params.top_p * factor))
    truncated = truncate(row, moved)
    return float(truncated[truncated.isfinite()].min())
