"""Drafting with Turbo heads: a pass of each head for the whole batch, as far as its drafts grow."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import isfinite

import torch

from turbo_runtime.drafters.calibration import Calibration
from turbo_runtime.drafters.heads.module import Heads
from turbo_runtime.drafters.heads.packed import Guesses, LaidOut
from turbo_runtime.drafters.interface import CandidateStream, DraftRequest, TokenCandidate
from turbo_runtime.sampling.noise import BLOCK, Noise, position_key

# Noise is drawn for so many of the likeliest tokens: a colder one wins seldom, and then the draft is wrong.
_HOTTEST = 64
_SURE = 0.9  # another source's confidence from which heads are not asked: they are seldom surer


class HeadsDrafter:
    """The source `heads`. Keeps nothing of a request; a want without a hidden row gets nothing."""

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
        """A pass of each head for all wants, as far as drafts grow."""
        return _HeadsProposal(wants, self)

    def learn(self, cell: Hashable, accepted: bool) -> None:
        """What became of a token offered."""
        self.calibration.learn(cell, accepted)

    def finish(self, request_id: str, tokens: Sequence[int], prompt_length: int, scope: str) -> None:
        """Nothing is held of a request."""


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
    def offers(self, beside: Sequence[float]) -> list[TokenCandidate | None]:
        offers: list[TokenCandidate | None] = [None] * len(self._wants)
        rows = [index for index in self._rows if beside[index] < _SURE]
        if not rows or self._depth >= self._source.laid_out.heads:
            return offers
        depth = self._depth
        hidden = (
            self._hidden if len(rows) == len(self._hidden) else self._hidden[[self._place[r] for r in rows]]
        )
        guessed = self._source.laid_out.guess(hidden, [self._before[index] for index in rows], depth)
        places = self._drawn(guessed, rows)
        for index, place, chance in zip(rows, places, guessed.confidences, strict=True):
            if not isfinite(chance):  # weights that are finite may overflow
                continue
            cell = (self._wants[index].coupling.temperature > 0, depth, int(10 * chance))
            offers[index] = TokenCandidate(
                self._source.vocabulary[place], self._source.calibration.confidence(cell, chance), cell
            )
        return offers

    def advance(self, tokens: Sequence[int | None]) -> None:
        self._depth += 1
        self._before = {index: token for index in self._rows if (token := tokens[index]) is not None}
        self._rows = list(self._before)

    def _drawn(self, guessed: Guesses, rows: Sequence[int]) -> list[int]:
        """Places in the heads' vocabulary: the likeliest token of a greedy row, and of a sampled one the
        engine's own draw, were these logits the target's.
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
        found: list[int] = torch.where(temperatures > 0, drawn, places[:, 0]).tolist()
        return found
