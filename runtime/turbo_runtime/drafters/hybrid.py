"""The drafts of a batch from several drafters: at each position the most confident one's token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
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
    """Return one draft for each request, which ends where its cumulative acceptance is below
    `min_acceptance`. Every drafter continues the common draft; those that take time come last and see the
    others' confidence.
    """
    if not drafters or not requests:
        return [Draft() for _ in requests]
    for drafter in drafters:
        drafter.begin(requests)
    growing = [_GrowingDraft(request.limit, max(min_acceptance, MIN_ACCEPTANCE)) for request in requests]
    while True:
        candidates: list[list[TokenCandidate | None]] = []
        best_confidence = [0.0] * len(requests)
        for drafter in drafters:
            candidates.append(drafter.next_candidates(best_confidence))
            best_confidence = [
                max(best, candidate.confidence) if candidate else best
                for best, candidate in zip(best_confidence, candidates[-1], strict=True)
            ]
        by_draft = zip(*candidates, strict=True)
        taken = [draft.take(drafters, options) for draft, options in zip(growing, by_draft, strict=True)]
        if all(token is None for token in taken):
            return [Draft(tuple(d.tokens), tuple(d.acceptance), tuple(d.origins)) for d in growing]
        for drafter in drafters:
            drafter.advance(taken)


@dataclass(slots=True)
class _GrowingDraft:
    limit: int
    min_acceptance: float
    tokens: list[int] = field(default_factory=list)
    acceptance: list[float] = field(default_factory=list)  # cumulative
    origins: list[TokenOrigin] = field(default_factory=list)
    free_acceptance: float = 1.0  # of the same tokens by drafters that take no time; 0 if theirs differ

    def take(self, drafters: Sequence[Drafter], options: Sequence[TokenCandidate | None]) -> int | None:
        """Append the most confident candidate's token; None where the draft ends."""
        if len(self.tokens) == self.limit:
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
        if acceptance < self.min_acceptance:
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
        if not free or not self.free_acceptance:
            self.free_acceptance = 0.0
            return None
        _, best = max(free, key=_confidence)
        self.free_acceptance *= best.confidence
        fallback = best.token if self.free_acceptance >= self.min_acceptance else None
        if fallback != taken:
            self.free_acceptance = 0.0
        return fallback


def _confidence(candidate: _Candidate) -> float:
    return candidate[1].confidence
