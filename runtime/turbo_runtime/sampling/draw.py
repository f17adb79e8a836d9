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

    def forbid(self, rows: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Set the logit of a token (n,) of each row to -inf; where it was in flattened `values`, and what."""
        block = self.first_blocks(rows) + tokens // BLOCK
        flat = block * BLOCK + tokens % BLOCK
        before = self.values.view(-1)[flat]
        self.values.view(-1)[flat] = -torch.inf
        self.peaks[rows, tokens // BLOCK] = self.values.index_select(0, block).amax(1)
        return flat, before

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

    Branch and bound: no score of a block exceeds its highest logit with its highest noise. Only tokens that
    may exceed the score of the likeliest, or of the one with the highest noise of the block that promises
    most, need noise of their own.
    """
    peaks, firsts, num_blocks = logits.peaks_of(rows), logits.first_blocks(rows), logits.num_blocks
    minima, places = noise.block_minima(keys)
    highest = minima.log().neg_()
    bounds = peaks.double().div_(temperatures[:, None]).add_(highest)
    # two tokens of each row: the likeliest, and one of the block that promises most
    top, likeliest = peaks.max(1)
    promising = bounds.argmax(1)
    tried = torch.stack([likeliest, promising], 1)
    values = logits.values.index_select(0, (firsts[:, None] + tried).view(-1)).view(len(keys), 2, BLOCK)
    within = torch.stack([values[:, 0].argmax(1), places.gather(1, promising[:, None])[:, 0]], 1)
    # beyond the vocabulary logits are -inf, whatever the noise
    ids = (tried * BLOCK + within).clamp_(max=noise.vocabulary - 1).view(-1)
    pairs = keys.repeat_interleave(2)
    gumbel = noise.gumbel_within(
        pairs, ids, minima.gather(1, tried).view(-1), places.gather(1, tried).view(-1)
    ).view(len(keys), 2)
    scores = values.gather(2, within[:, :, None])[:, :, 0].double().div_(temperatures[:, None]).add_(gumbel)
    floor = scores.amax(1)
    floor = (floor - _SLACK * (1 + floor.abs())).clamp_(min=_MIN_SCORE)  # forbidden tokens stay below
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
    return torch.where(best.isfinite() & top.isfinite(), drawn, NOTHING)


def _rounded_down(values: Tensor) -> Tensor:
    """Round float64 down to float32, but not below the lowest finite logit."""
    return values.float().nextafter(values.new_tensor(-torch.inf).float()).clamp_(min=MIN_LOGIT)
