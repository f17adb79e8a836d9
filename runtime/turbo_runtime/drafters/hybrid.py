"""The drafts of a batch out of several sources: for each position the more confident one's token."""

from __future__ import annotations

from collections.abc import Sequence

from turbo_runtime.drafters.interface import (
    Draft,
    Drafter,
    DraftRequest,
    LosingCandidate,
    TokenCandidate,
    TokenOrigin,
)

LEAST_SURVIVAL = 0.02  # whatever the caller says: with less there is no hope


def propose(
    sources: Sequence[Drafter], wants: Sequence[DraftRequest], least: float = LEAST_SURVIVAL
) -> list[Draft]:
    """One draft for each want. Every source goes on behind what was drafted so far, whoever drafted it; those
    that take time come last, and are told how sure the others are. A draft ends where the chance that all of
    it is accepted falls below `least`.
    """
    if not sources or not wants:
        return [Draft() for _ in wants]
    proposals = [source.begin(wants) for source in sources]
    growing = [_Growing(want.limit, max(least, LEAST_SURVIVAL)) for want in wants]
    while True:
        offers: list[list[TokenCandidate | None]] = []
        beside = [0.0] * len(wants)
        for proposal in proposals:
            offers.append(proposal.offers(beside))
            beside = [
                max(sure, offer.confidence) if offer else sure
                for sure, offer in zip(beside, offers[-1], strict=True)
            ]
        each = zip(*offers, strict=True)
        taken = [draft.take(sources, of_want) for draft, of_want in zip(growing, each, strict=True)]
        if all(token is None for token in taken):
            return [draft.done() for draft in growing]
        for proposal in proposals:
            proposal.advance(taken)


class _Growing:
    """The draft of one want so far."""

    __slots__ = ("_evidence", "_least", "_limit", "_survival", "_tokens", "_without")

    def __init__(self, limit: int, least: float) -> None:
        self._limit, self._least = limit, least
        self._tokens: list[int] = []
        self._survival: list[float] = []
        self._evidence: list[TokenOrigin] = []
        self._without = (
            1.0  # survival of the same tokens without sources that take time; 0: of others, or none
        )

    def take(self, sources: Sequence[Drafter], offers: Sequence[TokenCandidate | None]) -> int | None:
        """The most confident offer's token, now part of the draft; None where the draft ends."""
        if len(self._tokens) == self._limit:
            return None
        made = [
            (source, offer)
            for source, offer in zip(sources, offers, strict=True)
            if offer is not None and offer.confidence > 0  # not a number is above none
        ]
        if not made:
            return None
        surest, best = max(made, key=_confidence)
        survival = best.confidence * (self._survival[-1] if self._survival else 1.0)
        if survival < self._least:
            return None
        outbid = tuple(
            LosingCandidate(source.name, offer.cell, offer.token)
            for source, offer in made
            if offer is not best
        )
        self._tokens.append(best.token)
        self._survival.append(survival)
        self._evidence.append(TokenOrigin(surest.name, best.cell, self._instead(best.token, made), outbid))
        return best.token

    def _instead(self, taken: int, made: Sequence[tuple[Drafter, TokenCandidate]]) -> int | None:
        """What would have been drafted here without sources that take time."""
        free = [each for each in made if not each[0].takes_time]
        if not free or not self._without:
            self._without = 0.0
            return None
        _, best = max(free, key=_confidence)
        self._without *= best.confidence
        instead = best.token if self._without >= self._least else None
        if instead != taken:
            self._without = 0.0
        return instead

    def done(self) -> Draft:
        return Draft(tuple(self._tokens), tuple(self._survival), tuple(self._evidence))


def _confidence(made: tuple[Drafter, TokenCandidate]) -> float:
    return made[1].confidence
