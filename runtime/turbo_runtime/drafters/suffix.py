"""Drafting from what was said before: in the request itself, and in recent answers of the same scope.

The longest suffix of the context that occurred before goes on as it went on then. What that is worth is
learnt from what became of drafts: by the length of the match, how often it was seen and how often it went on
in the most frequent way. Where the request and the recent answers disagree, the surer one is believed.

A greedy request is proposed what followed most often; a sampled one argmax(log count + g), with its own noise
g at that position: what the engine draws if the counts are the model's law. Counts are taken as they are,
whatever the temperature: they were drawn at one already. Confidence does not look at the noise. Measured on
SmolLM2-135M, 24 answers each of text-to-JSON, support and maths at temperature 0.8 (1.0), tokens in the time
of one without drafts, a drafted row for a tenth of it: 1.21 (1.09) by the most frequent, 1.23 (1.10) so. With
counts to the power of 1/T it was 1.22; a confidence that follows the noise brought 0.005 more, and where
it also chose among the matches 0.03 less, since the luckiest one then wins.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from turbo_runtime.drafters.automaton import Cursor, SuffixAutomaton
from turbo_runtime.drafters.calibration import Calibration
from turbo_runtime.drafters.interface import CandidateStream, Coupling, DraftRequest, TokenCandidate
from turbo_runtime.drafters.recent_outputs import Memory
from turbo_runtime.drafters.rolling_index import History, Reader
from turbo_runtime.sampling.noise import position_key, token_exponential

REQUEST_TOKENS = 1 << 14  # of a live request that are known, its newest; about 2 MB
_UNSEEN = 3.5  # sightings of something else that we have not had, after a match of one token; longer: fewer
_READ_AT_ONCE = 256  # tokens of a request while drafts are waited for; of more, `read` has to come first

_Found: TypeAlias = "tuple[SuffixAutomaton, Cursor, bool]"  # the last: in the request itself


@dataclass(slots=True)
class _Request:
    """A live request: its own history, and where it stands in the scope's."""

    own: History = field(default_factory=lambda: History(REQUEST_TOKENS))
    in_recent: Reader = field(default_factory=Reader)
    read: int = 0  # tokens of it that are in `own`
    seen: int = 0  # tokens it had at the last call

    def read_on(self, tokens: Sequence[int], most: int) -> int:
        """Read at most so many of its tokens; how many it were."""
        fresh = tokens[self.read : self.read + most]
        for token in fresh:
            self.own.append(token)
        self.read += len(fresh)
        return len(fresh)

    def matches(self) -> list[_Found]:
        """Where the end of what was read occurred in it."""
        return [(automaton, cursor, True) for automaton, cursor in self.own.repeats()]


class SuffixDrafter:
    """The source `suffix`."""

    name = "suffix"
    takes_time = False

    def __init__(self, memory: Memory | None = None) -> None:
        self.memory = Memory() if memory is None else memory
        self._calibration = Calibration()
        self._requests: dict[str, _Request] = {}
        self._unread: dict[
            str, Sequence[int]
        ] = {}  # texts of requests that `read` goes on with, oldest first

    @property
    def num_bytes(self) -> int:
        """Memory of all histories, those of live requests included."""
        return self.memory.num_bytes + sum(r.own.num_bytes for r in self._requests.values())

    def begin(self, wants: Sequence[DraftRequest]) -> CandidateStream:
        """Read what is new in each want, and find where its end occurred."""
        return _SuffixProposal([self._walk(want) for want in wants])

    def learn(self, cell: Hashable, accepted: bool) -> None:
        """What became of a token offered."""
        self._calibration.learn(cell, accepted)

    def finish(self, request_id: str, tokens: Sequence[int], prompt_length: int, scope: str) -> None:
        """Remember the answer for the scope's next ones, forget the request."""
        self._requests.pop(request_id, None)
        self._unread.pop(request_id, None)
        self.memory.remember(scope, tokens, prompt_length)

    def expect(self, request_id: str, tokens: Sequence[int]) -> None:
        """Drafts will be wanted for a request, whose prompt is to be read before."""
        if request_id not in self._requests:
            self._request(request_id, tokens)
            self._unread[request_id] = tokens

    @property
    def waiting(self) -> bool:
        """Whether there is something to `read`."""
        return bool(self._unread or self.memory.waiting)

    def read(self, most: int) -> int:
        """Read at most so many tokens of what nobody waits for just now: of prompts, then of finished
        answers. How many it were.
        """
        left = most
        for request_id, tokens in list(self._unread.items()):
            request = self._requests[request_id]
            left -= request.read_on(tokens, left)
            if request.read >= len(tokens):
                del self._unread[request_id]
            if left <= 0:
                return most
        return most - left + self.memory.read(left)

    def _request(self, request_id: str, tokens: Sequence[int]) -> _Request:
        request = self._requests.get(request_id)
        if request is None:
            request = self._requests[request_id] = _Request(read=max(0, len(tokens) - REQUEST_TOKENS))
        return request

    def _walk(self, want: DraftRequest) -> _Walk:
        request, tokens = self._request(want.request_id, want.tokens), want.tokens
        matches: list[_Found] = []
        if (
            len(tokens) - request.read > _READ_AT_ONCE
        ):  # what was not read to its end has no end to go on from
            self._unread[want.request_id] = tokens
        else:
            request.read_on(tokens, _READ_AT_ONCE)
            self._unread.pop(want.request_id, None)
            matches = request.matches()
        recent = self.memory.of(want.scope)
        if recent is not None:
            request.in_recent.read(recent, tokens, request.seen)
            matches += [(automaton, cursor, False) for automaton, cursor in request.in_recent.matches()]
        request.seen = len(tokens)
        return _Walk(matches, self._calibration, want.coupling, len(tokens))


class _SuffixProposal:
    def __init__(self, walks: Sequence[_Walk]) -> None:
        self._walks: list[_Walk | None] = [*walks]

    def offers(self, _beside: Sequence[float]) -> list[TokenCandidate | None]:
        return [None if walk is None else walk.offer() for walk in self._walks]

    def advance(self, tokens: Sequence[int | None]) -> None:
        for index, (walk, token) in enumerate(zip(self._walks, tokens, strict=True)):
            if token is None:
                self._walks[index] = None
            elif walk is not None:
                walk.advance(token)


class _Walk:
    """A draft of one want as it grows: the matches of its end."""

    __slots__ = ("_calibration", "_coupling", "_matches", "_position")

    def __init__(
        self, matches: list[_Found], calibration: Calibration, coupling: Coupling, position: int
    ) -> None:
        self._matches, self._calibration = matches, calibration
        self._coupling, self._position = coupling, position

    def offer(self) -> TokenCandidate | None:
        sampled = self._coupling.temperature > 0
        best: list[tuple[int, int]] = []
        confidence, cell = 0.0, None
        for automaton, cursor, own in self._matches:
            length = cursor.length
            if not length:
                continue
            followers, total = automaton.followers(cursor)
            if not followers:
                continue
            count = followers[0][1]
            claim = count / (total + _UNSEEN / length)
            found = (
                sampled,
                own,
                min(length, 31).bit_length(),
                min(total, 127).bit_length(),
                4 * count // total,
            )
            chance = self._calibration.confidence(found, claim)
            if chance > confidence:
                best, confidence, cell = followers, chance, found
        if not best:
            return None
        token = self._draw(best) if sampled and len(best) > 1 else best[0][0]
        return TokenCandidate(token, confidence, cell)

    def advance(self, token: int) -> None:
        # a match that has just come to nothing may begin again with the next token
        self._matches = [
            (automaton, automaton.advance(cursor, token), own) for automaton, cursor, own in self._matches
        ]
        self._position += 1

    def _draw(self, followers: list[tuple[int, int]]) -> int:
        """argmax(log count + g), as the first in the race of e / count."""
        key = position_key(self._coupling.key, self._position)
        return min(followers, key=lambda one: token_exponential(key, one[0]) / one[1])[0]
