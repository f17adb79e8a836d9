"""A source of drafts whose failure is told once and ends its drafts, and nothing else: drafts are never
needed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from turbo_runtime.drafters.interface import CandidateStream, Drafter, DraftRequest, TokenCandidate

log = logging.getLogger(__name__)

Said = TypeVar("Said")


class Guarded:
    """The same source until it fails; from then on one that knows nothing."""

    def __init__(self, source: Drafter, draft: str = "") -> None:
        """`draft`: which of several, for the sentence that tells of its failure."""
        self.source = source
        self.name, self.takes_time = source.name, source.takes_time
        self._who = f"{source.name} of the draft {draft}" if draft else source.name
        self.problem = ""  # why it gives no drafts any more; empty while it does
        self.seconds = 0.0  # that it was asked for drafts, in all

    def begin(self, wants: Sequence[DraftRequest]) -> CandidateStream:
        """Read what is new in each want."""
        nothing: CandidateStream = _Nothing(len(wants))
        begun = self.timed(lambda: self.source.begin(wants), nothing)
        return nothing if self.problem else _GuardedProposal(self, begun, len(wants))

    def learn(self, cell: Hashable, accepted: bool) -> None:
        """What became of a token offered."""
        self.attempt(lambda: self.source.learn(cell, accepted), None)

    def finish(self, request_id: str, tokens: Sequence[int], prompt_length: int, scope: str) -> None:
        """The request ended: what it held is let go, though the source has failed."""
        self.attempt(lambda: self.source.finish(request_id, tokens, prompt_length, scope), None, always=True)

    def timed(self, ask: Callable[[], Said], otherwise: Said) -> Said:
        """As `attempt`, its time counted."""
        began = time.perf_counter()
        said = self.attempt(ask, otherwise)
        self.seconds += time.perf_counter() - began
        return said

    def attempt(self, ask: Callable[[], Said], otherwise: Said, *, always: bool = False) -> Said:
        """What the source says, and `otherwise` where it has failed. `always`: ask even then."""
        if self.problem and not always:
            return otherwise
        try:
            return ask()
        except Exception as error:  # whatever it is, it is no reason to stop serving
            if not self.problem:
                log.exception("the drafter %s failed and gives no drafts from now on", self._who)
                self.problem = f"the drafter {self._who} failed: {type(error).__name__}: {error}"
            return otherwise


class _GuardedProposal:
    def __init__(self, guard: Guarded, proposal: CandidateStream, wants: int) -> None:
        self._guard, self._proposal, self._wants = guard, proposal, wants

    def offers(self, beside: Sequence[float]) -> list[TokenCandidate | None]:
        return self._guard.timed(lambda: self._proposal.offers(beside), [None] * self._wants)

    def advance(self, tokens: Sequence[int | None]) -> None:
        self._guard.timed(lambda: self._proposal.advance(tokens), None)


class _Nothing:
    def __init__(self, wants: int) -> None:
        self._wants = wants

    def offers(self, _beside: Sequence[float]) -> list[TokenCandidate | None]:
        return [None] * self._wants

    def advance(self, tokens: Sequence[int | None]) -> None:
        """There is nothing to go on behind."""
