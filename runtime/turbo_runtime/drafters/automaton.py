"""A suffix automaton that grows token by token (Blumer et al., 1985), with the count of each substring and
its most frequent followers.

A state stands for all substrings that end at the same places; its link leads to the longest shorter one that
ends at more places. Appending is amortized constant time, and a text of n tokens has at most 2n states. Most
states have one successor, in two flat arrays; only the others have a dictionary.
"""

from __future__ import annotations

from array import array
from heapq import nlargest
from typing import NamedTuple

ROOT = 0
# Links along which a count goes to suffixes of the text. The rest are very short and matter least, while in
# repetitive text the chain would be as long as the text.
_COUNTED_LINKS = 32
_STALE = 1.25  # growth of a match's count at which its cached followers expire
_MAX_FOLLOWERS = 8  # different tokens returned after one match
_NONE, _MANY = -1, -2  # in place of a state's one token
_STATE_BYTES, _BRANCH_BYTES, _ENTRY_BYTES, _CACHED_BYTES = 23, 256, 96, 320


class Cursor(NamedTuple):
    """The longest suffix of some context that occurs in the text: its state, and its length in tokens."""

    state: int = ROOT
    length: int = 0


class SuffixAutomaton:
    """All substrings of the appended texts."""

    def __init__(self) -> None:
        self._link = array("i")
        self._max_lengths = array("i")  # length of the longest substring of the state
        self._count = array("i")
        self._token = array("i")  # of the one transition, or _NONE, or _MANY
        self._next = array("i")  # where it leads
        self._branches: dict[int, dict[int, int]] = {}  # of the states with several transitions
        self._entries = 0  # of all branches
        self._cached: dict[int, tuple[tuple[int, ...], int]] = {}  # followers, and the count then
        self._tokens = 0
        self._last = self._state(0, -1, 0)

    def __len__(self) -> int:
        """Tokens appended."""
        return self._tokens

    @property
    def num_bytes(self) -> int:
        """Upper bound of the memory."""
        return (
            _STATE_BYTES * len(self._link)
            + _BRANCH_BYTES * len(self._branches)
            + _ENTRY_BYTES * self._entries
            + _CACHED_BYTES * len(self._cached)
        )

    def separate(self) -> None:
        """Begin another text: no substring spans the two."""
        self._last = ROOT

    def append(self, token: int) -> None:
        """Append a token to the current text."""
        self._tokens += 1
        self._last = state = self._extend(token)
        count, link = self._count, self._link
        for _ in range(_COUNTED_LINKS):
            if state <= ROOT:
                break
            count[state] += 1
            state = link[state]

    def follow(self, state: int, token: int) -> int:
        """Return the state after one more token, or -1."""
        only = self._token[state]
        if only == token:
            return self._next[state]
        return self._branches[state].get(token, -1) if only == _MANY else -1

    def repeat(self) -> Cursor:
        """Find the longest suffix of the current text that occurred before."""
        state = self._link[self._last]
        return Cursor() if state <= ROOT else Cursor(state, self._max_lengths[state])

    def advance(self, cursor: Cursor, token: int) -> Cursor:
        """Find the longest match after one more token of the context."""
        state, length = self.settle(cursor), cursor.length
        while (following := self.follow(state, token)) < 0:
            if state == ROOT:
                return Cursor()
            state = self._link[state]
            length = self._max_lengths[state]
        return Cursor(following, length + 1)

    def settle(self, cursor: Cursor) -> int:
        """Find the current state of a cursor's substring: splits may have moved it."""
        state, length = cursor
        while state != ROOT and self._max_lengths[self._link[state]] >= length:
            state = self._link[state]
        return state

    def followers(self, cursor: Cursor) -> tuple[list[tuple[int, int]], int]:
        """([(token, its count)], the count of the match); the most frequent lately first, then the newest."""
        state = self.settle(cursor)
        count, token = self._count, self._token[state]
        if token == _NONE:
            return [], count[state]
        if token != _MANY:
            return [(token, count[self._next[state]])], count[state]
        branch = self._branches[state]
        tokens, count_then = self._cached.get(state, ((), 0))
        if count[state] > _STALE * count_then:
            newest_first = reversed(branch)
            tokens = tuple(nlargest(_MAX_FOLLOWERS, newest_first, key=lambda token: count[branch[token]]))
            self._cached[state] = tokens, count[state]
        return [(token, count[branch[token]]) for token in tokens], count[state]

    def _state(self, longest: int, link: int, count: int) -> int:
        self._max_lengths.append(longest)
        self._link.append(link)
        self._count.append(count)
        self._token.append(_NONE)
        self._next.append(_NONE)
        return len(self._link) - 1

    def _connect(self, state: int, token: int, target: int) -> None:
        """Add or replace a transition."""
        only = self._token[state]
        if only in (_NONE, token):
            self._token[state], self._next[state] = token, target
            return
        if only != _MANY:
            self._branches[state] = {only: self._next[state]}
            self._token[state] = _MANY
            self._entries += 1
        branch = self._branches[state]
        self._entries += token not in branch
        branch[token] = target

    def _extend(self, token: int) -> int:
        """Return the state of the current text with the token appended."""
        last, max_lengths, link = self._last, self._max_lengths, self._link
        known = self.follow(last, token)
        if known >= 0:  # only after `separate`: another text begins alike
            return known if max_lengths[known] == max_lengths[last] + 1 else self._split(last, token, known)
        new = self._state(max_lengths[last] + 1, ROOT, 0)
        while known < 0:
            self._connect(last, token, new)
            last = link[last]
            if last < 0:
                return new
            known = self.follow(last, token)
        link[new] = known if max_lengths[known] == max_lengths[last] + 1 else self._split(last, token, known)
        return new

    def _split(self, state: int, token: int, target: int) -> int:
        """Split off the part of `target` that follows `state`, which ends at one more place from now on."""
        clone = self._state(self._max_lengths[state] + 1, self._link[target], self._count[target])
        self._token[clone], self._next[clone] = self._token[target], self._next[target]
        if self._token[clone] == _MANY:
            self._branches[clone] = dict(self._branches[target])
            self._entries += len(self._branches[clone])
        while state != -1 and self.follow(state, token) == target:
            self._connect(state, token, clone)
            state = self._link[state]
        self._link[target] = clone
        return clone
