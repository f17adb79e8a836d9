"""The tokens of rows by looking at few of them: what is quickest on the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from turbo_runtime.models.compiled import threads
from turbo_runtime.models.compiled.code import Compiled
from turbo_runtime.models.transfer import Array, host_arrays
from turbo_runtime.sampling import dense
from turbo_runtime.sampling.draw_kernel import UNSURE, compile_draw
from turbo_runtime.sampling.noise import Floats, Ints, Noise
from turbo_runtime.sampling.row_code import Arguments
from turbo_runtime.sampling.rows import NOTHING, DrawnRows, Masks, RowKernels, Rule
from turbo_runtime.sampling.truncation import top_tokens, truncate


@torch.inference_mode()
def draw(logits: Tensor, rows: DrawnRows, noise: Noise) -> Tensor:
    """`RowKernels.draw`."""
    assert logits.shape[1] == noise.vocabulary
    tokens = torch.full((len(logits),), NOTHING)
    if not rows.rows:
        return tokens
    places, table, keys = rows.index(), rows.table(), rows.position_keys()
    drawn = _draw(logits, places, table, keys)
    for number in np.flatnonzero(drawn == UNSURE).tolist():  # few
        kept = truncate(logits[rows.rows[number]], rows.rules[number])[None]
        plain = np.array([Rule(rows.rules[number].temperature)])
        drawn[number] = _draw(kept, np.zeros(1, np.int64), plain, keys[number : number + 1])[0]
    tokens.numpy()[places] = drawn
    return tokens


def _draw(logits: Tensor, places: Ints, table: Floats, keys: Ints) -> Ints:
    """Draw rows (n,) at `places` of the logits, by a table (n, 4) of rules and keys (n,) of their noise."""
    drawn = np.empty(len(places), np.int64)
    its = Arguments(tokens=_address(drawn), rules=_address(table), keys=_address(keys))
    _run(compile_draw().draw, its, logits, places)
    return drawn


def likeliest(rows: Tensor, count: int) -> Tensor:
    """`RowKernels.likeliest`."""
    ids = [top_tokens(row, count) for row in rows]
    # a row of which fewer are finite is rare, or of no use
    return torch.stack(ids) if all(len(each) == count for each in ids) else dense.likeliest(rows, count)


def forbid(logits: Tensor, rows: Sequence[int], masks: Masks) -> None:
    """`RowKernels.forbid`."""
    masks = np.ascontiguousarray(masks)
    assert 8 * masks.shape[1] >= logits.shape[1]  # the code reads a bit for each
    its = Arguments(masks=_address(masks), mask_bytes=masks.shape[1])
    _run(compile_draw().forbid, its, logits, np.array(rows, np.int64))


def _address(array: Array) -> int:
    """Where an array begins; `array.ctypes` takes longer where a pass has left nothing in the caches."""
    return torch.from_numpy(array).data_ptr()


def _run(compiled: Compiled, its: Arguments, logits: Tensor, places: Ints) -> None:
    """Run it for the rows at `places`."""
    assert logits.is_contiguous()
    assert logits.dtype == torch.float32
    its.logits, its.places = logits.data_ptr(), _address(places)
    its.rows, its.vocabulary = len(places), logits.shape[1]
    threads.run(compiled, its, its.rows, threads.count_for(its.rows * its.vocabulary))


def rows_at_once(_vocabulary: int) -> int:
    """`RowKernels.rows_at_once`: few stay in a cache, and a large vocabulary of float64 is a megabyte."""
    return 8


SEARCH = RowKernels(draw, likeliest, forbid, rows_at_once, host_arrays)


def kernels_of(device: torch.device) -> RowKernels:
    """Return those that are quickest for logits on `device`."""
    return SEARCH if device.type == "cpu" else dense.DENSE
