"""The drafts of a batch from several drafters: at each position the most confident one's token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from turbo_runtime.drafters.interface import (
    Draft,
    Drafter,
    DraftRequest,
    LosingCandidate,
    TokenCandidate,
    TokenOrigin,
)

MIN_ACCEPTANCE = 0.02  # a lower bound for whatever the caller says

_Candidate: TypeAlias = "tuple[Drafter, TokenCandidate]"


def propose(
    drafters: Sequence[Drafter], requests: Sequence[DraftRequest], min_acceptance: float = MIN_ACCEPTANCE
) -> list[Draft]:
    """Return one draft for each request. Every drafter continues the common draft; those that take time come
    last and see the confidence of the others. A draft ends where its cumulative acceptance falls below
    `min_acceptance`.
    """
    if not drafters or not requests:
        return [Draft() for _ in requests]
    streams = [drafter.begin(requests) for drafter in drafters]
    growing = [_GrowingDraft(request.limit, max(min_acceptance, MIN_ACCEPTANCE)) for request in requests]
    while True:
        candidates: list[list[TokenCandidate | None]] = []
        best_confidence = [0.0] * len(requests)
        for stream in streams:
            candidates.append(stream.next_candidates(best_confidence))
            best_confidence = [
                max(best, candidate.confidence) if candidate else best
                for best, candidate in zip(best_confidence, candidates[-1], strict=True)
            ]
        by_draft = zip(*candidates, strict=True)
        taken = [draft.take(drafters, options) for draft, options in zip(growing, by_draft, strict=True)]
        if all(token is None for token in taken):
            return [Draft(tuple(d.tokens), tuple(d.acceptance), tuple(d.origins)) for d in growing]
        for stream in streams:
            stream.advance(taken)


class _GrowingDraft:
    __slots__ = ("_free_acceptance", "_limit", "_min_acceptance", "acceptance", "origins", "tokens")

    def __init__(self, limit: int, min_acceptance: float) -> None:
        self._limit, self._min_acceptance = limit, min_acceptance
        self.tokens: list[int] = []
        self.acceptance: list[float] = []  # cumulative
        self.origins: list[TokenOrigin] = []
        self._free_acceptance = 1.0  # of the same tokens by drafters that take no time; 0 if theirs differ

    def take(self, drafters: Sequence[Drafter], options: Sequence[TokenCandidate | None]) -> int | None:
        """Append the most confident candidate's token; None where the draft ends."""
        if len(self.tokens) == self._limit:
            return None
        candidates = [
            (drafter, candidate)
            for drafter, candidate in zip(drafters, options, strict=True)
            if candidate is not None and candidate.confidence > 0  # False for NaN
        ]
        if not candidates:
            return None
        winner, best = max(candidates, key=_confidence)
        acceptance = best.confidence * (self.acceptance[-1] if self.acceptance else 1.0)
        if acceptance < self._min_acceptance:
            return None
        losers = tuple(
            LosingCandidate(drafter.name, candidate.cell, candidate.token)
            for drafter, candidate in candidates
            if candidate is not best
        )
        self.tokens.append(best.token)
        self.acceptance.append(acceptance)
        fallback = self._find_fallback(best.token, candidates)
        self.origins.append(TokenOrigin(winner.name, best.cell, fallback, losers))
        return best.token

    def _find_fallback(self, taken: int, candidates: Sequence[_Candidate]) -> int | None:
        """The token that would be drafted here without drafters that take time."""
        free = [candidate for candidate in candidates if not candidate[0].takes_time]
        if not free or not self._free_acceptance:
            self._free_acceptance = 0.0
            return None
        _, best = max(free, key=_confidence)
        self._free_acceptance *= best.confidence
        fallback = best.token if self._free_acceptance >= self._min_acceptance else None
        if fallback != taken:
            self._free_acceptance = 0.0
        return fallback


def _confidence(candidate: _Candidate) -> float:
    return candidate[1].confidence
