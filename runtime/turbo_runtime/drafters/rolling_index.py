"""The newest texts of a stream, in bounded memory, and where a context stands in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from turbo_runtime.drafters.automaton import Cursor, SuffixAutomaton

Match: TypeAlias = "tuple[SuffixAutomaton, Cursor]"

_TAIL = 64  # tokens of a context with which it is looked up in what it has not followed from the start


class History:
    """Two automata in turn: when the newer one is full, it becomes the older one and the old one is dropped,
    so that the newest `most_tokens` / 2 to `most_tokens` tokens are known.
    """

    def __init__(self, most_tokens: int) -> None:
        self._half = max(1, most_tokens // 2)
        self.automata = [SuffixAutomaton()]  # the older first
        self._in_older = Cursor()  # where the current text stands in the older one

    @property
    def num_bytes(self) -> int:
        """Memory of the automata, at most."""
        return sum(automaton.num_bytes for automaton in self.automata)

    def __len__(self) -> int:
        """Tokens known."""
        return sum(len(automaton) for automaton in self.automata)

    def separate(self) -> None:
        """What is appended from here on is another text."""
        self.automata[-1].separate()
        self._in_older = Cursor()

    def append(self, token: int) -> None:
        """Lengthen the current text; it is cut in two where an automaton is full."""
        newest = self.automata[-1]
        if len(newest) >= self._half:
            self._in_older = newest.repeat()
            newest = SuffixAutomaton()
            self.automata = [self.automata[-1], newest]
        if len(self.automata) > 1:
            self._in_older = self.automata[0].advance(self._in_older, token)
        newest.append(token)

    def repeats(self) -> list[Match]:
        """Where the end of the current text occurred before."""
        cursors = (self._in_older, self.automata[-1].repeat())[-len(self.automata) :]
        return list(zip(self.automata, cursors, strict=True))


class Reader:
    """Follows one growing context through a history: for each automaton the longest match of its end."""

    def __init__(self) -> None:
        self._cursors: dict[SuffixAutomaton, Cursor] = {}

    def read(self, history: History, context: Sequence[int], known: int) -> None:
        """Go on behind the first `known` tokens of the context to its end; where that is far, begin anew."""
        before = self._cursors if len(context) - known <= _TAIL else {}
        self._cursors = {}
        for automaton in history.automata:
            cursor = before.get(automaton)
            fresh = context[-_TAIL:] if cursor is None else context[known:]
            self._cursors[automaton] = automaton.advance_all(cursor or Cursor(), fresh)

    def matches(self) -> list[Match]:
        """Where the context stands."""
        return list(self._cursors.items())
