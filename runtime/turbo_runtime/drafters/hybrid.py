"""The drafts of a batch out of several sources: for each position the more confident one's token."""

from __future__ import annotations

from collections.abc import Sequence

from turbo_runtime.drafters.draft import Draft, Evidence, Offer, Source, Want

LEAST_SURVIVAL = 0.02  # whatever the caller says: with less there is no hope


def propose(sources: Sequence[Source], wants: Sequence[Want], least: float = LEAST_SURVIVAL) -> list[Draft]:
    """One draft for each want. Every source goes on behind what was drafted so far, whoever drafted it; those
    that take time come last, and are told how sure the others are. A draft ends where the chance that all of
    it is accepted falls below `least`.
    """
    if not sources or not wants:
        return [Draft() for _ in wants]
    names = [source.name for source in sources]
    proposals = [source.begin(wants) for source in sources]
    growing = [_Growing(want.limit, max(least, LEAST_SURVIVAL)) for want in wants]
    while True:
        offers: list[list[Offer | None]] = []
        beside = [0.0] * len(wants)
        for proposal in proposals:
            offers.append(proposal.offers(beside))
            beside = [
                max(sure, offer.confidence) if offer else sure
                for sure, offer in zip(beside, offers[-1], strict=True)
            ]
        each = zip(*offers, strict=True)
        taken = [draft.take(names, of_want) for draft, of_want in zip(growing, each, strict=True)]
        if all(token is None for token in taken):
            return [draft.done() for draft in growing]
        for proposal in proposals:
            proposal.advance(taken)


class _Growing:
    """The draft of one want so far."""

    __slots__ = ("_evidence", "_least", "_limit", "_survival", "_tokens")

    def __init__(self, limit: int, least: float) -> None:
        self._limit, self._least = limit, least
        self._tokens: list[int] = []
        self._survival: list[float] = []
        self._evidence: list[Evidence] = []

    def take(self, names: Sequence[str], offers: Sequence[Offer | None]) -> int | None:
        """The most confident offer's token, now part of the draft; None where the draft ends."""
        if len(self._tokens) == self._limit:
            return None
        best, source, confidence, next_best = None, "", 0.0, 0.0
        for name, offer in zip(names, offers, strict=True):  # not a number is above none
            if offer is not None and offer.confidence > confidence:
                best, source, confidence, next_best = offer, name, offer.confidence, confidence
            elif offer is not None and offer.confidence > next_best:
                next_best = offer.confidence
        if best is None:
            return None
        survival = confidence * (self._survival[-1] if self._survival else 1.0)
        if survival < self._least:
            return None
        self._tokens.append(best.token)
        self._survival.append(survival)
        self._evidence.append(Evidence(source, best.cell, 1.0 - next_best / confidence))
        return best.token

    def done(self) -> Draft:
        return Draft(tuple(self._tokens), tuple(self._survival), tuple(self._evidence))
