"""The tools that the start-up checks share: a deadline, a verdict, and inputs in which rounding shows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from turbo_runtime.kv_cache.block_pool import blocks_for
from turbo_runtime.models.runner import Chunk, ModelRunner


class NotProvenError(Exception):
    """Rows depend on their number, or time is up; the text says which."""


def require_time(deadline: float) -> None:
    """Raise NotProvenError after `deadline` (monotonic)."""
    if time.monotonic() > deadline:
        raise NotProvenError("the start-up check took too long")


def is_batch_invariant(
    product: Callable[[Tensor], Tensor], row: Tensor, counts: Iterable[int], deadline: float
) -> bool:
    """Whether `product` gives the row (1, in) the same bits at every position of every row count."""
    reference: Tensor | None = None
    for count in counts:
        require_time(deadline)
        out = product(row.expand(count, -1).contiguous())
        reference = out[:1].clone() if reference is None else reference
        if not torch.equal(out, reference.expand(count, -1)):
            return False
    return True


def build_cancelling(out: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weights (out, width) and a row (1, width) whose exact product is zero, at scattered places.

    The computed product then is nothing but the rounding of its partial sums, so another order of summation
    shows in nearly every output. With plain random numbers the rounding of the output would hide it, in
    bfloat16 most of all.
    """
    generator = torch.Generator().manual_seed(0)
    half = width // 2
    places = torch.randperm(width, generator=generator)
    scale = torch.exp2(torch.randint(0, 12, (1, half), generator=generator).float())
    terms = torch.randn(1, half, generator=generator) * scale
    # repeated below: only the number of the outputs matters, not their values
    few = torch.randn(min(out, 64), half, generator=generator)
    row, weight = torch.zeros(1, width), torch.zeros(len(few), width)
    row[:, places[:half]], row[:, places[half : 2 * half]] = terms, terms
    weight[:, places[:half]], weight[:, places[half : 2 * half]] = few, -few
    return weight.to(dtype).repeat(-(-out // len(few)), 1)[:out].contiguous(), row.to(dtype)


def probe_tokens(model: ModelRunner, count: int) -> list[int]:
    """Fixed token ids of the model's vocabulary."""
    return [(17 + 31 * i) % model.vocabulary for i in range(count)]


class Probe:
    """A fixed sequence of a prompt and an answer, computed in two places of the cache."""

    def __init__(self, model: ModelRunner, count: int, prompt_length: int) -> None:
        self._model, self._prompt_length = model, prompt_length
        self._tokens = probe_tokens(model, count)
        blocks = blocks_for(count)
        self._tables = list(range(blocks)), list(range(blocks, 2 * blocks))
        self.fits = 2 * blocks <= model.pool.blocks

    def chunk(self, start: int, count: int, rows: int, place: int) -> Chunk:
        """The `count` tokens from `start` on in one of the places; the last `rows` get logits."""
        tokens = self._tokens[start : start + count]
        return Chunk(tokens, start, self._tables[place], rows, self._prompt_length)

    def require_equal(self, logits: Tensor, expected: Tensor) -> None:
        """Raise NotProvenError unless both computations gave the same bits."""
        if not torch.equal(logits, expected):
            raise NotProvenError("the model's logits depend on the number of rows")
