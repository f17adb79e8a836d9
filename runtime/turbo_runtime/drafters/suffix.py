"""Drafting from what was said before: in the request itself, and in recent answers of the same tenant.

The longest suffix of the context that occurred before is followed by what followed it then most often. What
that is worth is learnt from what became of drafts: by the length of the match, how often it was seen and how
often it went on like this. Where the request and the recent answers disagree, the surer one is believed.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from turbo_runtime.drafters.automaton import Cursor, SuffixAutomaton
from turbo_runtime.drafters.calibration import Calibration
from turbo_runtime.drafters.draft import Offer, Proposal, Want
from turbo_runtime.drafters.history import History, Reader
from turbo_runtime.drafters.memory import Memory

REQUEST_TOKENS = 1 << 14  # of a live request that are known, its newest; about 2 MB
_UNSEEN = 3.5  # sightings of something else that we have not had, after a match of one token; longer: fewer
_READ_AT_ONCE = 1024  # tokens of a prompt, so that a long one does not hold up a step

_Found: TypeAlias = "tuple[SuffixAutomaton, Cursor, bool]"  # the last: in the request itself


@dataclass(slots=True)
class _Request:
    """A live request: its own history, and where it stands in the tenant's."""

    own: History = field(default_factory=lambda: History(REQUEST_TOKENS))
    in_recent: Reader = field(default_factory=Reader)
    read: int = 0  # tokens of it that are in `own`
    seen: int = 0  # tokens it had at the last call

    def matches(self, tokens: Sequence[int]) -> list[_Found]:
        """Where the context occurred in itself; nowhere while its prompt is not read to the end."""
        fresh = tokens[self.read : self.read + _READ_AT_ONCE]
        for token in fresh:
            self.own.append(token)
        self.read += len(fresh)
        if self.read < len(tokens):
            return []
        return [(automaton, cursor, True) for automaton, cursor in self.own.repeats()]


class Suffix:
    """The source `suffix`."""

    name = "suffix"

    def __init__(self, memory: Memory | None = None) -> None:
        self.memory = Memory() if memory is None else memory
        self._calibration = Calibration()
        self._requests: dict[str, _Request] = {}

    @property
    def num_bytes(self) -> int:
        """Memory of all histories, those of live requests included."""
        return self.memory.num_bytes + sum(r.own.num_bytes for r in self._requests.values())

    def begin(self, wants: Sequence[Want]) -> Proposal:
        """Read what is new in each want, and find where its end occurred."""
        return _SuffixProposal([self._walk(want) for want in wants])

    def learn(self, cell: Hashable, accepted: bool) -> None:
        """What became of a token offered."""
        self._calibration.learn(cell, accepted)

    def finish(self, request_id: str, tokens: Sequence[int], prompt_length: int, tenant: str) -> None:
        """Remember the answer for the tenant's next ones, forget the request."""
        self._requests.pop(request_id, None)
        self.memory.remember(tenant, tokens, prompt_length)

    def _walk(self, want: Want) -> _Walk:
        request = self._requests.get(want.request_id)
        if request is None:
            request = self._requests[want.request_id] = _Request(
                read=max(0, len(want.tokens) - REQUEST_TOKENS)
            )
        matches = request.matches(want.tokens)
        recent = self.memory.of(want.tenant)
        if recent is not None:
            request.in_recent.read(recent, want.tokens, request.seen)
            matches += [(automaton, cursor, False) for automaton, cursor in request.in_recent.matches()]
        request.seen = len(want.tokens)
        return _Walk(matches, self._calibration, want.coupling.temperature > 0)


class _SuffixProposal:
    def __init__(self, walks: Sequence[_Walk]) -> None:
        self._walks: list[_Walk | None] = [*walks]

    def offers(self) -> list[Offer | None]:
        return [None if walk is None else walk.offer() for walk in self._walks]

    def advance(self, tokens: Sequence[int | None]) -> None:
        for index, (walk, token) in enumerate(zip(self._walks, tokens, strict=True)):
            if token is None:
                self._walks[index] = None
            elif walk is not None:
                walk.advance(token)


class _Walk:
    """A draft of one want as it grows: the matches of its end."""

    __slots__ = ("_calibration", "_matches", "_sampled")

    def __init__(self, matches: list[_Found], calibration: Calibration, sampled: bool) -> None:
        self._matches, self._calibration, self._sampled = matches, calibration, sampled

    def offer(self) -> Offer | None:
        best = None
        for automaton, cursor, own in self._matches:
            found = automaton.likeliest(cursor) if cursor.length else None
            if found is None:
                continue
            token, count, total = found
            length = cursor.length
            claim = count / (total + _UNSEEN / length)
            cell = (
                self._sampled,
                own,
                min(length, 31).bit_length(),
                min(total, 127).bit_length(),
                4 * count // total,
            )
            confidence = self._calibration.confidence(cell, claim)
            if best is None or confidence > best.confidence:
                best = Offer(token, confidence, cell)
        return best

    def advance(self, token: int) -> None:
        # a match that has just come to nothing may begin again with the next token
        self._matches = [
            (automaton, automaton.advance(cursor, token), own) for automaton, cursor, own in self._matches
        ]
