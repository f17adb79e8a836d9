"""The tokens of rows by looking at few of them: what is quickest on the host."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor

from turbo_runtime.sampling import dense
from turbo_runtime.sampling.draw import NOTHING, BlockedLogits, greedy_tokens, sampled_tokens
from turbo_runtime.sampling.noise import Floats, Ints, Noise
from turbo_runtime.sampling.row_threads import share_out
from turbo_runtime.sampling.rows import DrawnRows, Masks, RowKernels
from turbo_runtime.sampling.truncation import likely_tokens, ranked_token, top_tokens


@torch.inference_mode()
def draw(logits: Tensor, rows: DrawnRows, noise: Noise) -> Tensor:
    """`RowKernels.draw`."""
    blocks = BlockedLogits(logits)
    tokens = torch.full((len(logits),), NOTHING)
    drawn, greedy = tokens.numpy(), np.array(rows.greedy, np.int64)
    unsure = list[Ints]()  # rows whose whole ranking is needed

    def draw_greedy(part: slice) -> None:
        drawn[greedy[part]] = greedy_tokens(blocks, greedy[part])

    def draw_plain(part: slice) -> None:
        some = rows.plain.part(part)
        index = some.index()
        drawn[index] = sampled_tokens(blocks, index, some.temperatures(), some.position_keys(), noise)

    def draw_truncated(part: slice) -> None:
        some = rows.truncated.part(part)
        index = some.index()
        drawn[index], places = likely_tokens(blocks, index, some.params, some.position_keys(), noise)
        unsure.append(places + part.start)

    if rows.greedy:
        share_out(len(greedy), draw_greedy)
    if rows.plain.rows:
        share_out(len(rows.plain.rows), draw_plain)
    if rows.truncated.rows:
        share_out(len(rows.truncated.rows), draw_truncated)
        for place in np.concatenate(unsure).tolist():
            one = rows.truncated.part(slice(place, place + 1))
            drawn[one.rows] = ranked_token(blocks, one.rows[0], one.params[0], one.position_keys(), noise)
    return tokens


def likeliest(rows: Tensor, count: int) -> Tensor:
    """`RowKernels.likeliest`."""
    ids = [top_tokens(row, count) for row in rows]
    # a row of which fewer are finite is rare, or of no use
    return torch.stack(ids) if all(len(each) == count for each in ids) else dense.likeliest(rows, count)


def forbid(logits: Tensor, rows: Sequence[int], masks: Masks) -> None:
    """`RowKernels.forbid`: each byte of a mask looks up the limits of eight logits, once for rows that have
    the same mask, as those of one grammar often do.
    """
    values, equal = logits.numpy(), sorted(zip(rows, map(bytes, masks), strict=True), key=itemgetter(1))

    def forbid_some(part: slice) -> None:
        limits, applied = np.empty((masks.shape[1], 8), np.float32), b""
        flat = limits.reshape(-1)[: values.shape[1]]
        for row, mask in equal[part]:
            if mask != applied:
                np.take(_LIMITS, np.frombuffer(mask, np.uint8), axis=0, out=limits, mode="clip")
                applied = mask
            np.fmin(values[row], flat, out=values[row])

    share_out(len(equal), forbid_some)


def rows_at_once(_vocabulary: int) -> int:
    """`RowKernels.rows_at_once`: few stay in a cache, and a large vocabulary of float64 is a megabyte."""
    return 8


_LIMITS: Floats = np.where(
    dense.forbidden_tokens(torch.arange(256, dtype=torch.uint8)[:, None]), -np.inf, np.inf
)
_LIMITS = _LIMITS.astype(np.float32)

SEARCH = RowKernels(draw, likeliest, forbid, rows_at_once)


def kernels_of(device: torch.device) -> RowKernels:
    """Return those that are quickest for logits on `device`."""
    return SEARCH if device.type == "cpu" else dense.DENSE
