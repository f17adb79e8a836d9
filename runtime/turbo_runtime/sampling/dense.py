"""The tokens of rows by operations of fixed shapes, for a device that must not wait for the host.

The same draws as those of `search`, which looks at few tokens of a row and therefore asks, again
and again, which: on a device each such question would be a copy to the host. Here every token gets its noise
and its rank.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from turbo_runtime.models.transfer import download, upload
from turbo_runtime.sampling.noise import Floats, Ints, Noise
from turbo_runtime.sampling.rows import NOTHING, DrawnRows, RowKernels, Rule

_BYTES_AT_ONCE = 1 << 26  # of float64, for some rows of the vocabulary; a few such tensors exist together


@torch.inference_mode()
def draw(logits: Tensor, rows: DrawnRows, noise: Noise) -> Tensor:
    """`RowKernels.draw`."""
    forbid(logits, rows)
    drawn = torch.full((len(logits),), NOTHING, device=logits.device)
    places, keys, table = rows.index(), rows.position_keys(), rows.table()
    sampled = table[:, 0] > 0.0
    truncated = sampled & (table[:, 1:] != Rule()[1:]).any(1)
    size = rows_at_once(logits.shape[1])
    for kind, perturbed, truncates in (
        (~sampled, False, False),
        (sampled & ~truncated, True, False),
        (truncated, True, True),
    ):
        numbers = np.flatnonzero(kind)
        for some in (numbers[start : start + size] for start in range(0, len(numbers), size)):
            index = upload(places[some], logits.device)
            values = logits.index_select(0, index)
            scores = _scores(values, table[some], keys[some], noise, truncates) if perturbed else values
            drawn.index_copy_(0, index, torch.where(_some_left(values), _first_highest(scores), NOTHING))
    return drawn


@torch.inference_mode()
def likeliest(rows: Tensor, count: int) -> Tensor:
    """`RowKernels.likeliest`."""
    return rows.sort(dim=1, descending=True, stable=True).indices[:, :count]


def _scores(logits: Tensor, table: Floats, keys: Ints, noise: Noise, truncates: bool) -> Tensor:
    """The perturbed scores of rows (n, vocabulary), float64, by a table (n, 4) of their rules."""
    rules = upload(table, logits.device)
    # as `search` computes them: what is left of a quotient of large logits would not resolve the noise
    scores = logits.double().sub_(logits.amax(1, keepdim=True)).div_(rules[:, :1])
    if truncates:
        scores.masked_fill_(_dropped(logits, *rules[:, :, None].unbind(1)), -torch.inf)
    return scores.add_(noise.gumbel_table(upload(keys, logits.device)))


def _dropped(logits: Tensor, temperatures: Tensor, log_min_p: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Return (n, vocabulary) whether `min_p`, then `top_k`, then `top_p` drop a token; each is (n, 1)."""
    ordered = logits.sort(dim=1, descending=True, stable=True)
    values = ordered.values.double()
    top = values[:, :1]
    places = torch.arange(logits.shape[1], device=logits.device)
    kept = (values >= top + temperatures * log_min_p) & (places < top_k)
    weights = torch.where(kept, (values - top).div_(temperatures).exp_(), 0.0)
    sums = weights.cumsum(1)
    kept &= F.pad(sums[:, :-1], (1, 0)) < top_p * sums[:, -1:]
    return torch.empty_like(kept).scatter_(1, ordered.indices, ~kept)


def _some_left(logits: Tensor) -> Tensor:
    return logits.amax(1).isfinite()  # NaN where any is


def _first_highest(values: Tensor) -> Tensor:
    """The first place (n,) int64 of each row's maximum: `argmax` may take any of equal ones on a device."""
    places = torch.arange(values.shape[1], device=values.device)
    highest = values.amax(1, keepdim=True)
    return torch.where(values == highest, places, values.shape[1]).amin(1).clamp_(max=values.shape[1] - 1)


@torch.inference_mode()
def forbid(logits: Tensor, rows: DrawnRows) -> None:
    """Lay the masks on the logits (rows, vocabulary), with few launches for many rows."""
    if not rows.masks:
        return
    index, packed = (upload(each, logits.device) for each in rows.mask_table())
    size = rows_at_once(logits.shape[1])
    for part, some in zip(torch.split(index, size), torch.split(packed, size), strict=True):
        tokens = forbidden_tokens(some)[:, : logits.shape[1]]
        logits.index_copy_(0, part, logits.index_select(0, part).masked_fill_(tokens, -torch.inf))


def forbidden_tokens(masks: Tensor) -> Tensor:
    """Return what masks (n, bytes) leave out, as (n, 8 x bytes) bool."""
    bits = torch.arange(8, dtype=torch.uint8, device=masks.device)
    return (masks[:, :, None].bitwise_right_shift(bits) & 1 == 0).flatten(1)


def rows_at_once(vocabulary: int) -> int:
    """`RowKernels.rows_at_once`: as many as memory allows, each launch being for all of them."""
    return max(1, _BYTES_AT_ONCE // (8 * vocabulary))


DENSE = RowKernels(draw, likeliest, rows_at_once, download)
