"""The heads as drafting needs them: one at a time, of few rows, in as few operations as can be.

On a CPU a packed weight is three to five times as fast as the plain one at 1 to 16 rows, and every operation
costs as much as some rows. What is drafted may differ in its last bits from what training saw: it is a guess
all the same.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from turbo_runtime.drafters.heads.module import CERTAIN, Heads
from turbo_runtime.models.matmul import FREE_FORMS, BatchInvariantLinear


class Guesses(NamedTuple):
    """Of one head, a row for each draft."""

    logits: Tensor  # (rows, V)
    places: list[int]  # of the likeliest tokens in the vocabulary
    confidences: list[float]  # that those are accepted, all before them being so; perhaps not a number


class LaidOut:
    """All heads. The confidences' weights stand as rows of their own below the LM head's and the Markov
    term's, so that no product is made for them alone.
    """

    def __init__(self, heads: Heads) -> None:
        width, rank = heads.block.shape[2], heads.markov_in.shape[1]
        self.heads = heads.heads
        self._block = [_product(heads.block[j], heads.block_bias[j]) for j in range(self.heads)]
        self._output = _product(torch.cat([heads.output, heads.confidence[:, :width]]))
        below = torch.zeros(self.heads, self.heads, rank, dtype=heads.block.dtype, device=heads.block.device)
        for j in range(self.heads):
            below[j, j] = heads.confidence[j, width : width + rank]
        self._markov = [_product(torch.cat([heads.markov_out[j].T, below[j]])) for j in range(self.heads)]
        self._table = heads.embedding.to(heads.block.dtype) @ heads.markov_in  # m, by the token before
        self._odds = heads.confidence[:, -1].tolist()
        self._bias = heads.confidence_bias.tolist()

    def guess(self, hidden: Tensor, before: list[int], head: int) -> Guesses:
        """`hidden` (rows, width), `before` the ids of the tokens before those to guess."""
        states = hidden + F.silu(self._block[head](hidden))
        m = self._table[torch.tensor(before, device=hidden.device)]
        told = (self._output(states) + self._markov[head](m)).float()
        logits = told[:, : -self.heads]
        likeliest, places = logits.max(-1)
        logs = (likeliest - logits.logsumexp(-1)).tolist()
        linear = told[:, head - self.heads].tolist()
        confidences = [
            _sigmoid(clue + self._odds[head] * _log_odds(log) + self._bias[head])
            for clue, log in zip(linear, logs, strict=True)
        ]
        return Guesses(logits, places.tolist(), confidences)


def _log_odds(log: float) -> float:
    """Of a probability that is given as its logarithm."""
    return log - math.log1p(-min(math.exp(log), CERTAIN))


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-max(logit, -700.0)))


def _product(weight: Tensor, bias: Tensor | None = None) -> BatchInvariantLinear:
    """By the first form that this build and this processor know."""
    product = BatchInvariantLinear(weight.detach(), None if bias is None else bias.detach())
    if weight.device.type == "cpu":
        for form in FREE_FORMS:
            try:
                product.use(form)
                product(weight.new_zeros(1, weight.shape[1]))
            except (RuntimeError, AttributeError):
                continue
            break
    return product
