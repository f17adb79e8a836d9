"""The tokens that may be drawn: `min_p`, then `top_k`, then `top_p`, each on what the others left. And
whether a token may be the drawn one of a row whose logits are inexact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from turbo_runtime.messages import SamplingParams
from turbo_runtime.sampling.draw import MIN_LOGIT, NOTHING, BlockedLogits, greedy_tokens, sampled_tokens
from turbo_runtime.sampling.noise import BLOCK, Floats, Ints, Noise

_BINS = 4096  # of depths below the best token
_BINS_PER_NAT = 64.0
_MAX_EXPONENT = 700.0  # of float64
_DEPTHS = (1.0, 4.0, 16.0)  # nats below a drawn token: mostly enough of what comes after it; more; nearly all
_SLACK = 1e-4  # relative, far more than the error of probabilities in float32
_TRIES = 6  # of likelier tokens, before a row is truncated: top_p may hold little
_FIRST_ROW = np.zeros(1, np.int64)


def truncates(params: SamplingParams) -> bool:
    """Whether any token may be dropped from a row."""
    return params.min_p > 0.0 or params.top_k > 0 or params.top_p < 1.0


@np.errstate(all="ignore")
def likely_tokens(
    logits: BlockedLogits, rows: Ints, params: Sequence[SamplingParams], keys: Ints, noise: Noise
) -> tuple[Ints, Ints]:
    """Return the token (n,) of each of the `rows` (n,) among those that its `params` leave, as
    `sampled_tokens` does among all; and the places of rows that need `ranked_token`.

    The best of all tokens is the best of those left where it is one of them, which most often it is, and then
    nothing needs to be dropped. Otherwise none is left that is as unlikely, and the best of the likelier ones
    may be.
    """
    rules = _Rules(params)
    likeliest = greedy_tokens(logits, rows)  # always left
    floors = rules.min_p_floors(logits.peaks_of(rows).max(1))
    above = np.nextafter(floors, np.float32(-np.inf))
    drawn = sampled_tokens(logits, rows, rules.temperatures, keys, noise, above if rules.has_min_p else None)
    unsure = np.flatnonzero((drawn != likeliest) & (drawn != NOTHING))
    ranked = [np.empty(0, np.int64)]  # places of rows whose whole ranking is needed
    for _ in range(_TRIES):
        dropped = [np.empty(0, np.int64)]
        for depth in _DEPTHS:
            if not len(unsure):
                break
            left, out = _classify(logits, rules, rows, drawn, floors, unsure, depth)
            dropped.append(unsure[out])
            unsure = unsure[~left & ~out]
        ranked.append(unsure)
        unsure = again = np.sort(np.concatenate(dropped))
        if not len(again):
            break
        above[again] = logits.of(rows[again], drawn[again])
        drawn[again] = sampled_tokens(
            logits, rows[again], rules.temperatures[again], keys[again], noise, above[again]
        )
        unsure = again[drawn[again] != likeliest[again]]
    return drawn, np.concatenate([*ranked, unsure])


def ranked_token(logits: BlockedLogits, row: int, params: SamplingParams, key: Ints, noise: Noise) -> Ints:
    """Return the same (1,) of one row, by the ranking of all its tokens."""
    values = torch.from_numpy(logits.values.reshape(len(logits.peaks), -1)[row, : noise.vocabulary])
    kept, temperature = BlockedLogits(truncate(values, params)[None]), np.array([params.temperature])
    return sampled_tokens(kept, _FIRST_ROW, temperature, key, noise)


class _Rules:
    """What rows (n,) are truncated by, as columns (n,) float64."""

    def __init__(self, params: Sequence[SamplingParams]) -> None:
        table = np.array([(p.temperature, p.min_p, p.top_k, p.top_p) for p in params], np.float64)
        self.temperatures, min_p, top_k, top_p = table.T.copy()
        self._min_p, self.has_min_p = min_p, bool(min_p.any())
        self.top_k = np.where(top_k > 0, top_k, np.inf)
        self.top_p = np.where(top_p < 1.0, top_p, np.inf)

    def min_p_floors(self, top: Floats) -> Floats:
        """The lowest logits (n,) float32 that `min_p` leaves, rounded up; `top` (n,) are the highest."""
        if not self.has_min_p:
            return np.full(len(top), -np.inf, np.float32)
        exact: Floats = top + self.temperatures * np.log(self._min_p)
        rounded = exact.astype(np.float32)
        return np.where(rounded < exact, np.nextafter(rounded, np.float32(np.inf)), rounded)


def _classify(
    logits: BlockedLogits, rules: _Rules, rows: Ints, tokens: Ints, floors: Floats, some: Ints, depth: float
) -> tuple[Floats, Floats]:
    """Return (n,) whether the tokens at `some` (n,) of the rows are certainly left by `top_k` and `top_p`,
    and whether they are certainly dropped, by the blocks with a logit at most `depth` nats below the token's
    own. Probabilities are float32, but for a factor.
    """
    rows, temperatures, floors = rows[some], rules.temperatures[some].astype(np.float32), floors[some]
    top_k, top_p = rules.top_k[some], rules.top_p[some]
    logit, peaks = logits.of(rows, tokens[some]), logits.peaks_of(rows)
    top = peaks.max(1)
    inside = peaks >= np.maximum(logit - np.float32(depth) * temperatures, floors)[:, None]
    row, block = np.divmod(np.flatnonzero(inside), logits.num_blocks)
    values = logits.block_values(rows[row], block)
    weights = np.exp((values - top[row][:, None]) / temperatures[row][:, None])
    if rules.has_min_p:
        weights[values < floors[row][:, None]] = 0.0
    high = np.flatnonzero(values >= logit[row][:, None])  # few tokens
    row_of = row[high // BLOCK]
    higher = values.reshape(-1)[high] > logit[row_of]

    def sums(of: Ints, each: Floats | None = None) -> Floats:
        return np.bincount(of, each, len(rows))

    likelier = weights.reshape(-1)[high]
    above, upto = sums(row_of[higher], likelier[higher]), sums(row_of, likelier)
    total = sums(row, weights.sum(1))
    before = upto - np.exp((logit - top) / temperatures)  # as if all equal ones came before it
    beyond = np.exp((peaks - top[:, None]) / temperatures[:, None])
    beyond[inside | (peaks < floors[:, None])] = 0.0
    most = total + BLOCK * beyond.sum(1)
    least = np.where(np.isfinite(top_k), upto, total)  # `top_k` may leave none behind this one
    left = np.isinf(top_p) | (before < top_p * least * (1 - _SLACK))
    dropped = (above > top_p * most * (1 + _SLACK)) | (sums(row_of[higher]) >= top_k)
    return left & (sums(row_of) <= top_k), dropped


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
    blocks = BlockedLogits(logits[None])
    peaks = blocks.peaks[0]
    bounding = peaks if count <= len(peaks) else logits.numpy()
    count = min(count, len(bounding))
    floor = max(np.partition(bounding, -count)[-count], MIN_LOGIT)
    block = np.flatnonzero(peaks >= floor)
    values = blocks.values[block].reshape(-1)
    near = np.flatnonzero(values >= floor)
    near = near[np.argsort(-values[near], kind="stable")[:count]]
    return torch.from_numpy(block[near // BLOCK] * BLOCK + near % BLOCK)


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
        ids = top_tokens(logits, params.top_k)
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
