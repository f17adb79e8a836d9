"""A suffix automaton that grows token by token (Blumer et al., 1985), with the number of times each substring
was seen.

A state stands for all substrings that end at the same places; its link leads to the longest shorter one that
ends at more places. Appending is amortised constant time, and a text of n tokens has at most 2n states.
"""

from __future__ import annotations

from dataclasses import dataclass

_ROOT = 0
# A count is carried along the links to all suffixes of the text. Past this many, only very short suffixes are
# left, whose counts matter least, while in repetitive text the chain would be as long as the text.
_LINKS_COUNTED = 64


@dataclass(frozen=True, slots=True)
class Cursor:
    """The longest suffix of some context that occurs in the text: its state, and its length in tokens."""

    state: int = _ROOT
    length: int = 0


class SuffixAutomaton:
    """All substrings of the appended texts."""

    def __init__(self) -> None:
        self._next: list[dict[int, int]] = [{}]
        self._link: list[int] = [-1]
        self._longest: list[int] = [0]  # length of the longest substring of the state
        self._count: list[int] = [0]
        self._last = _ROOT
        self._tokens = 0

    def __len__(self) -> int:
        """Tokens appended."""
        return self._tokens

    def separate(self) -> None:
        """What is appended from here on is another text: no substring spans the two."""
        self._last = _ROOT

    def append(self, token: int) -> None:
        """Lengthen the current text by one token."""
        self._tokens += 1
        self._last = self._extend(token)
        state = self._last
        for _ in range(_LINKS_COUNTED):
            if state <= _ROOT:
                break
            self._count[state] += 1
            state = self._link[state]

    def repeat(self) -> Cursor:
        """The longest suffix of the current text that occurred before in it."""
        state = self._link[self._last]
        return Cursor() if state <= _ROOT else Cursor(state, self._longest[state])

    def advance(self, cursor: Cursor, token: int) -> Cursor:
        """The longest match after one more token of the context."""
        state, length = self._settle(cursor)
        while token not in self._next[state]:
            if state == _ROOT:
                return Cursor()
            state = self._link[state]
            length = self._longest[state]
        return Cursor(self._next[state][token], length + 1)

    def likeliest(self, cursor: Cursor) -> tuple[int, int, int] | None:
        """(token, its count, count of all) of what followed the match; of equal counts the one seen first.
        None at a text's end.
        """
        state, _ = self._settle(cursor)
        counts = self._count
        followers = self._next[state]
        if not followers:
            return None
        token = max(followers, key=lambda t: counts[followers[t]])
        return token, counts[followers[token]], sum(counts[s] for s in followers.values())

    def _settle(self, cursor: Cursor) -> tuple[int, int]:
        """The state of a cursor's substring now: a state may have been split since the cursor was set."""
        state = cursor.state
        while state != _ROOT and self._longest[self._link[state]] >= cursor.length:
            state = self._link[state]
        return state, cursor.length

    def _state(self, longest: int, link: int, transitions: dict[int, int], count: int) -> int:
        self._longest.append(longest)
        self._link.append(link)
        self._next.append(transitions)
        self._count.append(count)
        return len(self._link) - 1

    def _extend(self, token: int) -> int:
        """The state of the current text with the token behind it."""
        last = self._last
        known = self._next[last].get(token)
        if known is not None:  # only after `separate`: another text began alike
            return (
                known if self._longest[known] == self._longest[last] + 1 else self._split(last, token, known)
            )
        new = self._state(self._longest[last] + 1, _ROOT, {}, 0)
        while last != -1 and token not in self._next[last]:
            self._next[last][token] = new
            last = self._link[last]
        if last != -1:
            target = self._next[last][token]
            fits = self._longest[target] == self._longest[last] + 1
            self._link[new] = target if fits else self._split(last, token, target)
        return new

    def _split(self, state: int, token: int, target: int) -> int:
        """Part of `target` that follows `state` gets a state of its own, since it ends at one more place from
        now on.
        """
        clone = self._state(
            self._longest[state] + 1, self._link[target], dict(self._next[target]), self._count[target]
        )
        while state != -1 and self._next[state].get(token) == target:
            self._next[state][token] = clone
            state = self._link[state]
        self._link[target] = clone
        return clone
