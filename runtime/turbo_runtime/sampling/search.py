"""The tokens of rows by looking at few of them: what is quickest on the host."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from turbo_runtime.models.compiled import threads
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
    drawn = _draw(logits, places, table, keys, rows.mask_table() if rows.masks else None)
    for number in np.flatnonzero(drawn == UNSURE).tolist():  # few
        kept = truncate(logits[rows.rows[number]], rows.rules[number])[None]
        plain = np.array([Rule(rows.rules[number].temperature)])
        drawn[number] = _draw(kept, np.zeros(1, np.int64), plain, keys[number : number + 1])[0]
    tokens.numpy()[places] = drawn
    return tokens


def _draw(
    logits: Tensor, places: Ints, table: Floats, keys: Ints, masked: tuple[Ints, Masks] | None = None
) -> Ints:
    """Draw rows (n,) at `places` of the logits, by a table (n, 4) of rules, keys (n,) of their noise, and
    `DrawnRows.mask_table`.
    """
    assert logits.is_contiguous()
    assert logits.dtype == torch.float32
    drawn, mask_of = np.empty(len(places), np.int64), np.full(len(logits), NOTHING)
    its = Arguments(logits=logits.data_ptr(), rows=len(places), vocabulary=logits.shape[1])
    if masked is not None:
        numbers, masks = masked
        assert 8 * masks.shape[1] >= logits.shape[1]  # the code reads a bit for each
        mask_of[numbers] = np.arange(len(numbers))
        its.masks, its.mask_bytes = _address(masks), masks.shape[1]
    mask_of = mask_of[places]
    its.tokens, its.places, its.mask_of = _address(drawn), _address(places), _address(mask_of)
    its.rules, its.keys = _address(table), _address(keys)
    threads.run(compile_draw(), its, its.rows, threads.count_for(its.rows * its.vocabulary))
    return drawn


def likeliest(rows: Tensor, count: int) -> Tensor:
    """`RowKernels.likeliest`."""
    ids = [top_tokens(row, count) for row in rows]
    # a row of which fewer are finite is rare, or of no use
    return torch.stack(ids) if all(len(each) == count for each in ids) else dense.likeliest(rows, count)


def _address(array: Array) -> int:
    """Where an array begins; `array.ctypes` takes longer where a pass has left nothing in the caches."""
    return torch.from_numpy(array).data_ptr()


def rows_at_once(_vocabulary: int) -> int:
    """`RowKernels.rows_at_once`: few stay in a cache, and a large vocabulary of float64 is a megabyte."""
    return 8


SEARCH = RowKernels(draw, likeliest, rows_at_once, host_arrays)


def kernels_of(device: torch.device) -> RowKernels:
    """Return those that are quickest for logits on `device`."""
    return SEARCH if device.type == "cpu" else dense.DENSE
