"""Drafting with Turbo heads: a pass of each head for the whole batch, as far as its drafts grow."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from math import isfinite
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from turbo_runtime.drafters.calibration import Calibration
from turbo_runtime.drafters.heads.module import CERTAIN, Heads
from turbo_runtime.drafters.interface import CandidateStream, DraftRequest, TokenCandidate
from turbo_runtime.models.matmul import FREE_FORMS, BatchInvariantLinear
from turbo_runtime.sampling.noise import BLOCK, Noise, position_key


class Guesses(NamedTuple):
    """The guesses of one head, a row for each draft."""

    logits: Tensor  # (rows, V)
    places: list[int]  # of the likeliest tokens in the vocabulary
    confidences: list[float]  # of those, given all before them accepted; may be NaN


class LaidOut:
    """All heads, packed. The confidences' weights are rows below those of the LM head and of the Markov term,
    so that they need no product of their own.

    On a CPU a packed weight is three to five times as fast as the plain one at 1 to 16 rows. What is drafted
    may differ in its last bits from training: it is a guess anyway.
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
        outputs = (self._output(states) + self._markov[head](m)).float()
        logits = outputs[:, : -self.heads]
        likeliest, places = logits.max(-1)
        logs = (likeliest - logits.logsumexp(-1)).tolist()
        linear = outputs[:, head - self.heads].tolist()
        confidences = [
            _sigmoid(clue + self._odds[head] * _log_odds(log) + self._bias[head])
            for clue, log in zip(linear, logs, strict=True)
        ]
        return Guesses(logits, places.tolist(), confidences)


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


# Likeliest tokens that get noise: a colder one wins seldom, and then the draft is wrong.
_HOTTEST = 64
_SURE = 0.9  # confidence of others from which heads keep silent: they are seldom surer


class HeadsDrafter:
    """The drafter `heads`. Keeps no state of a request; one without a hidden row gets no draft."""

    name = "heads"
    takes_time = True

    @torch.inference_mode()
    def __init__(self, heads: Heads, noise: Noise) -> None:
        self.noise = noise
        self.calibration = Calibration()
        self.laid_out = LaidOut(heads)
        self.dtype = heads.block.dtype
        self.vocabulary: list[int] = heads.vocabulary.tolist()
        self.ids = heads.vocabulary

    @torch.inference_mode()
    def begin(self, wants: Sequence[DraftRequest]) -> CandidateStream:
        """Begin a pass of each head for all requests, as far as their drafts grow."""
        return _HeadsProposal(wants, self)

    def learn(self, cell: Hashable, accepted: bool) -> None:
        """Calibrate by the result of a candidate."""
        self.calibration.learn(cell, accepted)

    def finish(self, request_id: str, tokens: Sequence[int], prompt_length: int, scope: str) -> None:
        """Do nothing: there is no state of a request."""


class _HeadsProposal:
    def __init__(self, wants: Sequence[DraftRequest], source: HeadsDrafter) -> None:
        self._wants, self._source = wants, source
        self._depth = 0
        self._rows = [index for index, want in enumerate(wants) if want.hidden is not None]  # that still grow
        self._place = {index: place for place, index in enumerate(self._rows)}  # in the hidden rows
        self._before = {index: wants[index].tokens[-1] for index in self._rows}
        hidden = [want.hidden for want in wants if want.hidden is not None]
        self._hidden = torch.stack(hidden).to(source.dtype) if hidden else torch.empty(0)

    @torch.inference_mode()
    def next_candidates(self, best_confidence: Sequence[float]) -> list[TokenCandidate | None]:
        candidates: list[TokenCandidate | None] = [None] * len(self._wants)
        rows = [index for index in self._rows if best_confidence[index] < _SURE]
        if not rows or self._depth >= self._source.laid_out.heads:
            return candidates
        depth = self._depth
        hidden = self._hidden
        if len(rows) < len(hidden):
            hidden = hidden[[self._place[index] for index in rows]]
        guessed = self._source.laid_out.guess(hidden, [self._before[index] for index in rows], depth)
        places = self._draw(guessed, rows)
        for index, place, chance in zip(rows, places, guessed.confidences, strict=True):
            if not isfinite(chance):  # finite weights may overflow
                continue
            cell = (self._wants[index].coupling.temperature > 0, depth, int(10 * chance))
            candidates[index] = TokenCandidate(
                self._source.vocabulary[place], self._source.calibration.confidence(cell, chance), cell
            )
        return candidates

    def advance(self, tokens: Sequence[int | None]) -> None:
        self._depth += 1
        self._before = {index: token for index in self._rows if (token := tokens[index]) is not None}
        self._rows = list(self._before)

    def _draw(self, guessed: Guesses, rows: Sequence[int]) -> list[int]:
        """Indices in the heads' vocabulary: the likeliest tokens, or the engine's own draws from these
        logits.
        """
        wants = [self._wants[index] for index in rows]
        if not any(want.coupling.temperature > 0 for want in wants):
            return guessed.places
        logits = guessed.logits
        temperatures = torch.tensor(
            [want.coupling.temperature for want in wants], dtype=torch.float64, device=logits.device
        )
        hottest, places = logits.topk(min(_HOTTEST, logits.shape[1]))
        keys = torch.tensor(
            [position_key(want.coupling.key, len(want.tokens) + self._depth) for want in wants],
            device=logits.device,
        )
        minima, falls = self._source.noise.block_minima(keys)
        ids = self._source.ids[places]
        blocks = ids // BLOCK
        gumbel = self._source.noise.gumbel_within(
            keys.repeat_interleave(ids.shape[1]),
            ids.flatten(),
            minima.gather(1, blocks).flatten(),
            falls.gather(1, blocks).flatten(),
        ).view_as(ids)
        scores = hottest.double() / temperatures.clamp(min=1e-6)[:, None] + gumbel
        drawn = places.gather(1, scores.argmax(1, keepdim=True)).squeeze(1)
        indices: list[int] = torch.where(temperatures > 0, drawn, places[:, 0]).tolist()
        return indices
