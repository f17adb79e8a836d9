"""Drafting from what was said before: in the request itself, and in recent answers of the same deployment.

Two suffix automata of bounded size hold recent answers, one more per live request its prompt and answer. The
longest suffix of the context that occurred before is followed by what followed it then; how often each
continuation was seen decides how many tokens are worth verifying.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from turbo_runtime.drafters.automaton import Cursor, SuffixAutomaton

RECENT_TOKENS = 16_384  # of one generation of recent answers; two generations are kept, about 25 MB together
PROMPT_TAIL = 8  # tokens of the prompt kept before an answer, so that its beginning is found too
LEAST_SURVIVAL = (
    0.25  # a token is drafted while the chance that all before it and itself are right seems at least this
)


@dataclass(slots=True)
class _Context:
    """A live request: how far its tokens were read, its own automaton, and where it stands in the recent
    ones.
    """

    read: int = 0
    own: SuffixAutomaton = field(default_factory=SuffixAutomaton)
    recent: dict[int, Cursor] = field(default_factory=dict)  # by generation


class SuffixDrafter:
    """Proposes continuations and learns from answers. Keyed by request id; `tokens` only ever grows."""

    def __init__(self, recent_tokens: int = RECENT_TOKENS) -> None:
        self._capacity = recent_tokens
        self._generations: dict[int, SuffixAutomaton] = {0: SuffixAutomaton()}
        self._newest = 0
        self._contexts: dict[str, _Context] = {}

    def propose(self, request_id: str, tokens: Sequence[int], limit: int) -> list[int]:
        """At most `limit` tokens that may follow `tokens` (prompt and answer so far); empty when nothing
        promises enough.
        """
        context = self._contexts.setdefault(request_id, _Context())
        self._read(context, tokens)
        candidates = [_follow(context.own, context.own.repeat(), limit)]
        candidates += [
            _follow(self._generations[number], cursor, limit) for number, cursor in context.recent.items()
        ]
        best, _ = max(candidates, key=lambda candidate: candidate[1])
        return best

    def observe(self, request_id: str, tokens: Sequence[int], prompt_length: int) -> None:
        """The request has ended with these tokens: remember its answer for others, forget the request."""
        self._contexts.pop(request_id, None)
        if len(self._generations[self._newest]) >= self._capacity:
            self._newest += 1
            self._generations[self._newest] = SuffixAutomaton()
            self._generations.pop(self._newest - 2, None)
        automaton = self._generations[self._newest]
        automaton.separate()
        for token in tokens[max(0, prompt_length - PROMPT_TAIL) : prompt_length + self._capacity]:
            automaton.append(token)

    def _read(self, context: _Context, tokens: Sequence[int]) -> None:
        fresh = tokens[context.read :]
        for token in fresh:
            context.own.append(token)
        context.read = len(tokens)
        for number in [n for n in context.recent if n not in self._generations]:
            del context.recent[number]
        for number, automaton in self._generations.items():
            cursor = context.recent.get(number)
            # a generation that is new to the request is met with the tail of its context
            unread = fresh if cursor else tokens[-64:]
            cursor = cursor or Cursor()
            for token in unread:
                cursor = automaton.advance(cursor, token)
            context.recent[number] = cursor


def _follow(automaton: SuffixAutomaton, cursor: Cursor, limit: int) -> tuple[list[int], float]:
    """The likeliest continuation from a match, and how many of its tokens are expected to be right."""
    drafted: list[int] = []
    survival, expected = 1.0, 0.0
    while len(drafted) < limit and cursor.length:
        best = automaton.likeliest(cursor)
        if best is None:
            break
        token, count, total = best
        # one sighting proves little after a short match: 1 / length stands for the sightings that we have not
        # had
        survival *= count / (total + 1.0 / cursor.length)
        if survival < LEAST_SURVIVAL:
            break
        drafted.append(token)
        expected += survival
        cursor = automaton.advance(cursor, token)
    return drafted, expected
