"""A drafter whose failure is reported once and ends its drafts, and nothing else: drafts are never needed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from turbo_runtime.drafters.interface import CandidateStream, Drafter, DraftRequest, TokenCandidate

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class Guarded:
    """A drafter until it fails; then one without candidates."""

    def __init__(self, source: Drafter, draft: str = "") -> None:
        """`draft`: its name among several, for messages."""
        self.source = source
        self.name, self.takes_time = source.name, source.takes_time
        self._who = f"{source.name} of the draft {draft}" if draft else source.name
        self.problem = ""  # why it gives no drafts any more; else empty
        self.seconds = 0.0  # of all its drafting

    def begin(self, wants: Sequence[DraftRequest]) -> CandidateStream:
        """Read the new tokens of each request."""
        stream = self.attempt_timed(lambda: self.source.begin(wants), None)
        return _GuardedStream(self, stream, len(wants))

    def learn(self, cell: Hashable, accepted: bool) -> None:
        """Learn the result of a candidate."""
        self.attempt(lambda: self.source.learn(cell, accepted), None)

    def finish(self, request_id: str, tokens: Sequence[int], prompt_length: int, scope: str) -> None:
        """Release the state of an ended request, even after a failure."""
        self.attempt(lambda: self.source.finish(request_id, tokens, prompt_length, scope), None, always=True)

    def attempt_timed(self, call: Callable[[], Result], default: Result) -> Result:
        """`attempt`, and count its time."""
        start_time = time.perf_counter()
        result = self.attempt(call, default)
        self.seconds += time.perf_counter() - start_time
        return result

    def attempt(self, call: Callable[[], Result], default: Result, *, always: bool = False) -> Result:
        """Call the drafter; return `default` if it fails or has failed. `always`: call it even then."""
        if self.problem and not always:
            return default
        try:
            return call()
        except Exception as error:  # no reason to stop serving
            if not self.problem:
                log.exception("the drafter %s failed and gives no drafts from now on", self._who)
                self.problem = f"the drafter {self._who} failed: {type(error).__name__}: {error}"
            return default


class _GuardedStream:
    def __init__(self, guard: Guarded, stream: CandidateStream | None, num_drafts: int) -> None:
        self._guard, self._stream = guard, stream
        self._nothing: list[TokenCandidate | None] = [None] * num_drafts

    def next_candidates(self, best_confidence: Sequence[float]) -> list[TokenCandidate | None]:
        stream = self._stream
        if stream is None:
            return self._nothing
        return self._guard.attempt_timed(lambda: stream.next_candidates(best_confidence), self._nothing)

    def advance(self, tokens: Sequence[int | None]) -> None:
        stream = self._stream
        if stream is not None:
            self._guard.attempt_timed(lambda: stream.advance(tokens), None)
