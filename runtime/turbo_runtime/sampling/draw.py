"""The tokens of rows: the highest logit, or the highest perturbed one, independent of other rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from turbo_runtime.sampling.noise import BLOCK, Noise

NOTHING = -1  # in place of a token: the row has none with a finite logit
_MIN_SCORE = torch.finfo(torch.float64).min
_MIN_LOGIT = torch.finfo(torch.float32).min
_SLACK = 1e-9  # relative, more than the rounding of a score: bounds so close to the best are searched


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
