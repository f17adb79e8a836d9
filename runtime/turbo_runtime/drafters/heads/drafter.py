"""Drafting with Turbo heads: a pass of each head for the whole batch, as far as its drafts grow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import isfinite

import torch
import torch.nn.functional as F
from torch import Tensor

from turbo_runtime.drafters.heads.checkpoint import CERTAIN, Heads
from turbo_runtime.drafters.interface import Drafter, DraftRequest, TokenCandidate
from turbo_runtime.models.matmul import FREE_FORMS, BatchInvariantLinear
from turbo_runtime.sampling.noise import BLOCK, Noise, position_key

# Likeliest tokens that get noise: a colder one wins seldom, and then the draft is wrong.
_HOTTEST = 64
_SURE = 0.9  # confidence of others from which heads keep silent: they are seldom surer


class HeadsDrafter(Drafter):
    """The drafter `heads`. Keeps no state of a request; one without a hidden row gets no draft.

    The heads are packed: on a CPU that is three to five times as fast at 1 to 16 rows. The confidences'
    weights are rows below those of the LM head and of the Markov term, so they need no product of their own.
    What is drafted may differ in its last bits from training: it is a guess anyway.
    """

    name = "heads"
    takes_time = True

    @torch.inference_mode()
    def __init__(self, heads: Heads, noise: Noise, version: str = "") -> None:
        """`version`: of the checkpoint."""
        super().__init__()
        self.noise, self.version = noise, version
        self.heads = heads.heads
        self.dtype = heads.block.dtype
        self.vocabulary: list[int] = heads.vocabulary.tolist()
        self.ids = heads.vocabulary
        width, rank = heads.block.shape[2], heads.markov_in.shape[1]
        self._block = [_product(heads.block[j], heads.block_bias[j]) for j in range(self.heads)]
        self._output = _product(torch.cat([heads.output, heads.confidence[:, :width]]))
        below = torch.zeros(self.heads, self.heads, rank, dtype=self.dtype, device=heads.block.device)
        for j in range(self.heads):
            below[j, j] = heads.confidence[j, width : width + rank]
        self._markov = [_product(torch.cat([heads.markov_out[j].T, below[j]])) for j in range(self.heads)]
        self._table = heads.embedding.to(self.dtype) @ heads.markov_in  # m, by the token before
        self._odds = heads.confidence[:, -1].tolist()
        self._bias = heads.confidence_bias.tolist()

    @torch.inference_mode()
    def begin(self, requests: Sequence[DraftRequest]) -> None:
        """Stack the hidden rows of the requests that have one."""
        self._requests, self._depth = requests, 0
        self._rows = [i for i, request in enumerate(requests) if request.hidden is not None]  # still growing
        self._place = {index: place for place, index in enumerate(self._rows)}  # in the hidden rows
        self._before = {index: requests[index].tokens[-1] for index in self._rows}
        hidden = [request.hidden for request in requests if request.hidden is not None]
        self._hidden = torch.stack(hidden).to(self.dtype) if hidden else torch.empty(0)

    @torch.inference_mode()
    def next_candidates(self, best_confidence: Sequence[float]) -> list[TokenCandidate | None]:
        """Return guesses of the next head, a pass for all drafts that others are not sure of."""
        candidates: list[TokenCandidate | None] = [None] * len(self._requests)
        rows = [index for index in self._rows if best_confidence[index] < _SURE]
        if not rows or self._depth >= self.heads:
            return candidates
        depth, hidden = self._depth, self._hidden
        if len(rows) < len(hidden):
            hidden = hidden[[self._place[index] for index in rows]]
        before = [self._before[index] for index in rows]
        logits, likeliest, confidences = self._guess(hidden, before, depth)
        requests = [self._requests[index] for index in rows]
        if any(request.temperature > 0 for request in requests):
            likeliest = self._draw(logits, requests)
        for index, place, chance in zip(rows, likeliest, confidences, strict=True):
            if not isfinite(chance):  # finite weights may overflow
                continue
            cell = (self._requests[index].temperature > 0, depth, int(10 * chance))
            candidates[index] = TokenCandidate(self.vocabulary[place], self.confidence(cell, chance), cell)
        return candidates

    def advance(self, tokens: Sequence[int | None]) -> None:
        """Go on to the next head."""
        self._depth += 1
        self._before = {index: token for index in self._rows if (token := tokens[index]) is not None}
        self._rows = list(self._before)

    def _guess(self, hidden: Tensor, before: list[int], head: int) -> tuple[Tensor, list[int], list[float]]:
        """One head's logits (rows, V), likeliest places in its vocabulary, and confidences, perhaps NaN."""
        states = hidden + F.silu(self._block[head](hidden))
        m = self._table[torch.tensor(before, device=hidden.device)]
        outputs = (self._output(states) + self._markov[head](m)).float()
        logits = outputs[:, : -self.heads]
        likeliest, places = logits.max(-1)
        logs = (likeliest - logits.logsumexp(-1)).tolist()
        linear = outputs[:, head - self.heads].tolist()
        confidences = [
            _sigmoid(clue + self._odds[head] * _log_odds(log) + self._bias[head])
            for clue, log in zip(linear, logs, strict=True)
        ]
        return logits, places.tolist(), confidences

    def _draw(self, logits: Tensor, requests: Sequence[DraftRequest]) -> list[int]:
        """Places in the vocabulary: the engine's own draws from these logits, or the likeliest tokens."""
        temperatures = torch.tensor(
            [request.temperature for request in requests], dtype=torch.float64, device=logits.device
        )
        hottest, places = logits.topk(min(_HOTTEST, logits.shape[1]))
        keys = torch.tensor(
            [position_key(request.key, len(request.tokens) + self._depth) for request in requests],
            device=logits.device,
        )
        minima, falls = self.noise.block_minima(keys)
        ids = self.ids[places]
        blocks = ids // BLOCK
        gumbel = self.noise.gumbel_within(
            keys.repeat_interleave(ids.shape[1]),
            ids.flatten(),
            minima.gather(1, blocks).flatten(),
            falls.gather(1, blocks).flatten(),
        ).view_as(ids)
        scores = hottest.double() / temperatures.clamp(min=1e-6)[:, None] + gumbel
        drawn = places.gather(1, scores.argmax(1, keepdim=True)).squeeze(1)
        indices: list[int] = torch.where(temperatures > 0, drawn, places[:, 0]).tolist()
        return indices


def _log_odds(log: float) -> float:
    """The log-odds of a probability that is given as its logarithm."""
    return log - math.log1p(-min(math.exp(log), CERTAIN))


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-max(logit, -700.0)))


def _product(weight: Tensor, bias: Tensor | None = None) -> BatchInvariantLinear:
    """Use the first kernel that this build and this processor support."""
    product = BatchInvariantLinear(weight.detach(), None if bias is None else bias.detach())
    if weight.device.type == "cpu":
        product.adopt_first(FREE_FORMS)
    return product
