"""Drafting with Turbo heads: one pass for the whole batch, then a chain along the Markov term."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import isfinite

import torch
from torch import Tensor

from turbo_runtime.drafters.calibration import Calibration
from turbo_runtime.drafters.draft import Offer, Proposal, Want
from turbo_runtime.drafters.heads.module import Heads
from turbo_runtime.engine.sampling.noise import BLOCK, Noise, position_key

# Noise is drawn for so many of the likeliest tokens: a colder one wins seldom, and then the draft is wrong.
_HOTTEST = 64


class HeadsSource:
    """The source `heads`. Keeps nothing of a request; a want without a hidden row gets nothing."""

    name = "heads"

    def __init__(self, heads: Heads, noise: Noise) -> None:
        self._heads, self._noise = heads, noise
        self._calibration = Calibration()

    @torch.inference_mode()
    def begin(self, wants: Sequence[Want]) -> Proposal:
        """All heads of all wants in one pass."""
        return _HeadsProposal(wants, self._heads, self._noise, self._calibration)

    def learn(self, cell: Hashable, accepted: bool) -> None:
        """What became of a token offered."""
        self._calibration.learn(cell, accepted)

    def finish(self, request_id: str, tokens: Sequence[int], prompt_length: int, scope: str) -> None:
        """Nothing is held of a request."""


class _HeadsProposal:
    def __init__(self, wants: Sequence[Want], heads: Heads, noise: Noise, calibration: Calibration) -> None:
        self._wants, self._heads, self._noise, self._calibration = wants, heads, noise, calibration
        self._depth = 0
        self._rows = [index for index, want in enumerate(wants) if want.hidden is not None]
        self._kept: Tensor | None = None  # of the rows at the beginning those that still grow; None: all
        self._before = [wants[index].tokens[-1] for index in self._rows]
        if self._rows:
            hidden = torch.stack([want.hidden for want in wants if want.hidden is not None])
            self._states = heads.states(hidden.to(heads.block.dtype))
            self._shared = self._states @ heads.output.T
            temperatures = [wants[index].coupling.temperature for index in self._rows]
            self._temperatures = torch.tensor(temperatures, dtype=torch.float64, device=hidden.device)

    @torch.inference_mode()
    def offers(self) -> list[Offer | None]:
        offers: list[Offer | None] = [None] * len(self._wants)
        if not self._rows or self._depth >= self._heads.heads:
            return offers
        depth, heads = self._depth, self._heads
        m = heads.markov(torch.tensor(self._before, device=heads.output.device))
        shared, states = self._shared[depth], self._states[depth]
        if self._kept is not None:
            shared, states = shared.index_select(0, self._kept), states.index_select(0, self._kept)
        logits = heads.logits(shared, depth, m)
        chances = heads.certainty(heads.clues(states, m, logits), depth).sigmoid().tolist()
        tokens = heads.vocabulary[self._draw(logits)].tolist()
        for index, token, chance in zip(self._rows, tokens, chances, strict=True):
            if not isfinite(chance):  # weights that are finite may overflow
                continue
            cell = (self._wants[index].coupling.temperature > 0, depth, int(10 * chance))
            offers[index] = Offer(token, self._calibration.confidence(cell, chance), cell)
        return offers

    @torch.inference_mode()
    def advance(self, tokens: Sequence[int | None]) -> None:
        kept = [place for place, index in enumerate(self._rows) if tokens[index] is not None]
        self._depth += 1
        if len(kept) < len(self._rows):
            self._rows = [self._rows[place] for place in kept]
            chosen = torch.tensor(kept, dtype=torch.int64, device=self._heads.output.device)
            self._kept = chosen if self._kept is None else self._kept[chosen]
            self._temperatures = self._temperatures[chosen]
        self._before = [token for index in self._rows if (token := tokens[index]) is not None]

    def _draw(self, logits: Tensor) -> Tensor:
        """Places (rows,) in the heads' vocabulary: the likeliest token of a greedy row, and of a sampled one
        the engine's own draw, were these logits the target's.
        """
        sampled = self._temperatures > 0
        if not bool(sampled.any()):
            return logits.argmax(-1)
        hottest, places = logits.topk(min(_HOTTEST, logits.shape[1]))
        wants = [self._wants[index] for index in self._rows]
        keys = torch.tensor(
            [position_key(want.coupling.key, len(want.tokens) + self._depth) for want in wants],
            device=logits.device,
        )
        minima, falls = self._noise.block_minima(keys)
        ids = self._heads.vocabulary[places]
        blocks = ids // BLOCK
        gumbel = self._noise.gumbel_within(
            keys.repeat_interleave(ids.shape[1]),
            ids.flatten(),
            minima.gather(1, blocks).flatten(),
            falls.gather(1, blocks).flatten(),
        ).view_as(ids)
        scores = hottest.double() / self._temperatures.clamp(min=1e-6)[:, None] + gumbel
        drawn = places.gather(1, scores.argmax(1, keepdim=True)).squeeze(1)
        return torch.where(sampled, drawn, places[:, 0])
