"""The tokens of rows: the highest logit, or the highest perturbed one, independent of other rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from turbo_runtime.sampling.noise import BLOCK, Noise

NOTHING = -1  # in place of a token: the row has none with a finite logit
MIN_LOGIT = torch.finfo(torch.float32).min
_MIN_SCORE = torch.finfo(torch.float64).min
_SLACK = 1e-9  # relative, more than the rounding of a score: bounds so close to the best are searched


class BlockedLogits:
    """Logits (rows, vocabulary) in blocks of `BLOCK` ids with the maximum of each: whatever draws from rows
    reads them once, and then few blocks again. Maxima of blocks are several times faster than `argmax`.
    """

    def __init__(self, logits: Tensor) -> None:
        """A view, padded with -inf where the vocabulary ends within a block."""
        missing = -logits.shape[1] % BLOCK
        whole = F.pad(logits, (0, missing), value=-torch.inf) if missing else logits
        self.num_blocks = whole.shape[1] // BLOCK
        self.values = whole.view(-1, BLOCK)  # (rows x blocks, BLOCK)
        self.peaks = whole.view(len(logits), self.num_blocks, BLOCK).amax(2)  # (rows, blocks)

    def peaks_of(self, rows: Tensor | None) -> Tensor:
        """Return the maxima of the blocks of these rows, by default of all."""
        return self.peaks if rows is None else self.peaks.index_select(0, rows)

    def first_blocks(self, rows: Tensor | None) -> Tensor:
        """Return the place of each row's first block in `values`."""
        if rows is None:
            rows = torch.arange(len(self.peaks), device=self.peaks.device)
        return rows * self.num_blocks


def greedy_tokens(logits: BlockedLogits, rows: Tensor | None = None) -> Tensor:
    """Return the token int64 of each of the `rows` (n,), by default of all; of equal ones the lowest id.
    `NOTHING` for a row without a finite logit or with NaN.
    """
    peaks, block = logits.peaks_of(rows).max(1)  # the first of equal ones
    within = logits.values.index_select(0, logits.first_blocks(rows) + block).argmax(1)
    return torch.where(peaks.isfinite(), block * BLOCK + within, NOTHING)


@torch.inference_mode()
def sampled_tokens(
    logits: BlockedLogits, temperatures: Tensor, keys: Tensor, noise: Noise, rows: Tensor | None = None
) -> Tensor:
    """Return the token int64 of each of the `rows` (n,), by default of all, of float32 logits, for
    `temperatures` (n,) float64 above 0 and `keys` (n,) int64; `NOTHING` as in `greedy_tokens`.

    Branch and bound: no score of a block exceeds its highest logit with its highest noise, and the token with
    that noise has a score already. Only tokens that may exceed the best of those need noise of their own.
    """
    peaks, firsts, num_blocks = logits.peaks_of(rows), logits.first_blocks(rows), logits.num_blocks
    minima, places = noise.block_minima(keys)
    highest = minima.log().neg_()
    every = torch.arange(num_blocks, device=keys.device)
    scored = logits.values.view(-1).take((firsts[:, None] + every).mul_(BLOCK).add_(places))
    scored = scored.double().div_(temperatures[:, None])
    floor = scored.add_(highest).amax(1)
    floor = (floor - _SLACK * (1 + floor.abs())).clamp_(min=_MIN_SCORE)  # forbidden tokens stay below
    bounds = peaks.double().div_(temperatures[:, None]).add_(highest)
    block = (bounds >= floor[:, None]).view(-1).nonzero().squeeze(1)  # blocks, counted through the rows
    row = block // num_blocks

    high, heat = highest.view(-1).index_select(0, block), temperatures.index_select(0, row)
    min_logits = _rounded_down((floor.index_select(0, row) - high) * heat)
    values = logits.values.index_select(0, firsts.index_select(0, row) + block % num_blocks)
    near = (values >= min_logits[:, None]).view(-1).nonzero().squeeze(1)  # tokens, through those blocks
    block, row, heat = (column.index_select(0, near // BLOCK) for column in (block, row, heat))

    ids = block % num_blocks * BLOCK + near % BLOCK
    minima, places = minima.view(-1).index_select(0, block), places.view(-1).index_select(0, block)
    gumbel = noise.gumbel_within(keys.index_select(0, row), ids, minima, places)
    scores = values.view(-1).index_select(0, near).double().div_(heat).add_(gumbel)
    best = scores.new_full((len(keys),), -torch.inf)
    best.scatter_reduce_(0, row, scores, "amax")
    ids = torch.where(scores == best.index_select(0, row), ids, noise.vocabulary)
    drawn = torch.full_like(keys, noise.vocabulary).scatter_reduce_(0, row, ids, "amin")
    # a block with a NaN has no bound and was not searched
    return torch.where(best.isfinite() & peaks.amax(1).isfinite(), drawn, NOTHING)


def _rounded_down(values: Tensor) -> Tensor:
    """Round float64 down to float32, but not below the lowest finite logit."""
    return values.float().nextafter(values.new_tensor(-torch.inf).float()).clamp_(min=MIN_LOGIT)
