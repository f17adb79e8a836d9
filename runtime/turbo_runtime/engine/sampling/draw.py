"""The token of a row: the highest logit, or the highest perturbed one. Many rows at once, each as alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from turbo_runtime.engine.sampling.noise import BLOCK, Noise

NOTHING = -1  # in place of a token: the row has none with a finite logit
_LEAST = torch.finfo(torch.float64).min
_SLACK = 1e-9  # more than the rounding of a score: a bound that much below the best is still looked into


def greedy_tokens(logits: Tensor) -> Tensor:
    """The token (rows,) int64 of each row of `logits` (rows, vocabulary), of equal ones the lowest id;
    `NOTHING` for a row without one.

    A maximum per block and one among those is several times faster than `argmax` over the row.
    """
    blocks = blocked(logits)
    peaks, block = blocks.amax(2).max(1)  # the first of equal ones
    within = blocks[torch.arange(len(blocks), device=logits.device), block].argmax(1)
    return torch.where(peaks.isfinite(), block * BLOCK + within, NOTHING)


def sampled_tokens(logits: Tensor, temperatures: Tensor, keys: Tensor, noise: Noise) -> Tensor:
    """The token (rows,) int64 of each row of `logits` (rows, vocabulary) float32 at its own of `temperatures`
    (rows,) float64 above 0 and of `keys` (rows,) int64; `NOTHING` for a row without one.

    Branch and bound: no score of a block exceeds its highest logit with its highest noise, and the token on
    which that noise falls has a score already. Only tokens that may exceed the best of those need noise of
    their own.
    """
    num_rows, per_row = len(logits), noise.num_blocks
    blocks = blocked(logits)
    minima, places = noise.block_minima(keys)
    highest = minima.log().neg_()
    scored = blocks.gather(2, places[:, :, None]).squeeze(2).double().div_(temperatures[:, None])
    floor = scored.add_(highest).amax(1).sub_(_SLACK).clamp_(min=_LEAST)  # what is forbidden stays below
    bounds = blocks.amax(2).double().div_(temperatures[:, None]).add_(highest)
    minima, places, highest = minima.view(-1), places.view(-1), highest.view(-1)  # by (row, block) from here

    block = (bounds >= floor[:, None]).view(-1).nonzero().squeeze(1)
    row = block // per_row
    scaled = blocks.view(-1, BLOCK).index_select(0, block).double()
    scaled = scaled.div_(temperatures.index_select(0, row)[:, None])
    reach = scaled + highest.index_select(0, block)[:, None]
    near = (reach >= floor.index_select(0, row)[:, None]).view(-1).nonzero().squeeze(1)

    block, row = block.index_select(0, near // BLOCK), row.index_select(0, near // BLOCK)
    ids = block % per_row * BLOCK + near % BLOCK
    gumbel = noise.gumbel_within(
        keys.index_select(0, row), ids, minima.index_select(0, block), places.index_select(0, block)
    )
    scores = scaled.view(-1).index_select(0, near).add_(gumbel)
    best = torch.full((num_rows,), -torch.inf, dtype=torch.float64, device=logits.device)
    best.scatter_reduce_(0, row, scores, "amax")
    ids = torch.where(scores == best.index_select(0, row), ids, noise.vocabulary)
    tokens = torch.full((num_rows,), noise.vocabulary, device=logits.device)
    tokens.scatter_reduce_(0, row, ids, "amin")
    return torch.where(best.isfinite(), tokens, NOTHING)


def blocked(logits: Tensor) -> Tensor:
    """(rows, vocabulary) as (rows, blocks, BLOCK), filled up with -inf."""
    missing = -logits.shape[1] % BLOCK
    whole = F.pad(logits, (0, missing), value=-torch.inf) if missing else logits
    return whole.view(len(logits), -1, BLOCK)
