"""The tokens of rows on the host: the highest logit, or the highest perturbed one, independent of other rows.

Branch and bound: whatever draws reads the logits once, for the maxima of blocks, and then few blocks again.
In numpy, whose calls on small arrays cost a fraction of torch's.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from turbo_runtime.sampling.noise import BLOCK, Floats, Ints, Noise

NOTHING = -1  # in place of a token: the row has none with a finite logit
MIN_LOGIT = np.finfo(np.float32).min
_MIN_SCORE = np.finfo(np.float64).min
_SLACK = 1e-9  # relative, more than the rounding of a score: bounds so close to the best are searched
_SLACK_32 = 1e-6  # the same of a score in float32, whose noise may be `_MOST_NOISE`
_MOST_NOISE = 64.0


class BlockedLogits:
    """Logits (rows, vocabulary) on the host in blocks of `BLOCK` ids, with the maximum of each. Maxima of
    blocks are several times faster than torch's `argmax`.
    """

    def __init__(self, logits: Tensor) -> None:
        """A view, padded with -inf where the vocabulary ends within a block."""
        missing = -logits.shape[1] % BLOCK
        whole = F.pad(logits, (0, missing), value=-torch.inf) if missing else logits
        self.num_blocks = whole.shape[1] // BLOCK
        self.values: Floats = whole.view(-1, BLOCK).numpy()  # (rows x blocks, BLOCK)
        self.peaks: Floats = whole.view(len(logits), self.num_blocks, BLOCK).amax(2).numpy()  # (rows, blocks)

    def peaks_of(self, rows: Ints) -> Floats:
        """Return the maxima (n, blocks) of the blocks of `rows` (n,), which ascend."""
        return self.peaks if len(rows) == len(self.peaks) else self.peaks[rows]

    def block_values(self, rows: Ints, blocks: Ints) -> Floats:
        """Return the logits (n, BLOCK) of a block of each row."""
        values: Floats = self.values[rows * self.num_blocks + blocks]
        return values

    def of(self, rows: Ints, tokens: Ints) -> Floats:
        """Return the logit (n,) of a token of each row."""
        flat: Floats = self.values.reshape(-1)[rows * (self.num_blocks * BLOCK) + tokens]
        return flat


def greedy_tokens(logits: BlockedLogits, rows: Ints) -> Ints:
    """Return the token (n,) of each of the `rows` (n,); of equal ones the lowest id. `NOTHING` for a row
    without a finite logit or with NaN.
    """
    peaks = logits.peaks_of(rows)
    block = peaks.argmax(1)  # the first of equal ones
    within = logits.block_values(rows, block).argmax(1)
    return np.where(np.isfinite(_picked(peaks, block)), block * BLOCK + within, NOTHING)


@np.errstate(all="ignore")
def sampled_tokens(
    logits: BlockedLogits,
    rows: Ints,
    temperatures: Floats,
    keys: Ints,
    noise: Noise,
    above: Floats | None = None,
) -> Ints:
    """Return the token (n,) of each of the `rows` (n,) of float32 logits, for `temperatures` (n,) float64
    above 0 and `keys` (n,) int64, of those with a logit `above` (n,) float32; `NOTHING` as in
    `greedy_tokens`.

    No score of a block exceeds its highest logit with its highest noise. Only tokens that may exceed the
    score of the likeliest, or of the one with the highest noise of the block that promises most, need noise
    of their own.
    """
    peaks, num_blocks = logits.peaks_of(rows), logits.num_blocks
    bounds = noise.log_minima_bounds(keys)
    np.subtract(peaks / temperatures.astype(np.float32)[:, None], bounds, out=bounds)
    if above is not None:
        bounds[peaks <= above[:, None]] = -np.inf
    floor = _found_scores(logits, rows, temperatures, keys, noise, (peaks, bounds), above)
    floor = np.maximum(floor - _SLACK * (1 + np.abs(floor)), _MIN_SCORE)  # forbidden tokens stay below
    floor_32 = (floor - _SLACK_32 * (_MOST_NOISE + np.abs(floor))).astype(np.float32)
    flat = np.flatnonzero(bounds >= floor_32[:, None])  # blocks, counted through the rows
    row, block = np.divmod(flat, num_blocks)
    minima, places = noise.minima_at(keys[row], block)
    # of those blocks the tokens that may win
    low = (floor[row] + np.log(minima)) * temperatures[row]
    values = logits.block_values(rows[row], block)
    near = values >= _rounded_down(low)[:, None]
    if above is not None:
        near &= values > above[row][:, None]
    at = np.flatnonzero(near)
    place = at // BLOCK
    row, ids = row[place], block[place] * BLOCK + at % BLOCK
    gumbel = noise.gumbel_at(keys[row], ids, minima[place], places[place])
    scores = values.reshape(-1)[at] / temperatures[row] + gumbel
    best = np.full(len(rows), -np.inf)
    np.maximum.at(best, row, scores)
    drawn = np.full(len(rows), noise.vocabulary)
    won = scores == best[row]
    np.minimum.at(drawn, row[won], ids[won])
    # a block with a NaN has no bound and was not searched
    return np.where(np.isfinite(best) & np.isfinite(peaks.max(1)), drawn, NOTHING)


def _found_scores(
    logits: BlockedLogits,
    rows: Ints,
    temperatures: Floats,
    keys: Ints,
    noise: Noise,
    blocks: tuple[Floats, Floats],
    above: Floats | None,
) -> Floats:
    """The score (n,) of some good token of each row: of the likeliest, or of the one with the highest noise
    of the block that promises most.
    """
    peaks, bounds = blocks
    tried = np.stack([peaks.argmax(1), bounds.argmax(1)], 1).reshape(-1)
    twice = np.repeat(keys, 2)
    minima, places = noise.minima_at(twice, tried)
    values = logits.block_values(np.repeat(rows, 2), tried)
    within = np.where(np.arange(len(tried)) % 2, places, values.argmax(1))
    logit = _picked(values, within)
    if above is not None:
        logit = np.where(logit > np.repeat(above, 2), logit, -np.inf)
    # beyond the vocabulary logits are -inf, whatever the noise
    ids = np.minimum(tried * BLOCK + within, noise.vocabulary - 1)
    gumbel = noise.gumbel_at(twice, ids, minima, places)
    scores = logit / np.repeat(temperatures, 2) + gumbel
    best: Floats = scores.reshape(-1, 2).max(1)
    return best


def _picked(values: Floats, index: Ints) -> Floats:
    """One value (n,) of each row (n, m)."""
    return np.take_along_axis(values, index[:, None], 1)[:, 0]


def _rounded_down(values: Floats) -> Floats:
    """Round float64 down to float32, but not below the lowest finite logit."""
    return np.maximum(np.nextafter(values.astype(np.float32), np.float32(-np.inf)), MIN_LOGIT)
