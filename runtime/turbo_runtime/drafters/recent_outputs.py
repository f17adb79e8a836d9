"""Recent answers in bounded memory, separate for each scope: the timing of drafts reveals earlier text."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from typing import TypeAlias

from turbo_runtime.drafters.automaton import Cursor, SuffixAutomaton

Matches: TypeAlias = "dict[SuffixAutomaton, Cursor]"  # the longest match of a text's end in each

_TAIL = 64  # last tokens of a context, to look it up in an automaton that it has not followed


class History:
    """The newest texts of a stream, in two automata: a full one replaces the older one."""

    def __init__(self, max_tokens: int) -> None:
        self._half = max(1, max_tokens // 2)
        self.automata = [SuffixAutomaton()]  # the older first
        self._in_older = Cursor()  # where the current text stands in the older one

    @property
    def num_bytes(self) -> int:
        """Upper bound of the memory."""
        return sum(automaton.num_bytes for automaton in self.automata)

    def __len__(self) -> int:
        """Number of known tokens."""
        return sum(len(automaton) for automaton in self.automata)

    def separate(self) -> None:
        """Begin another text."""
        self.automata[-1].separate()
        self._in_older = Cursor()

    def append(self, token: int) -> None:
        """Append a token to the current text, which is cut in two where an automaton is full."""
        newest = self.automata[-1]
        if len(newest) >= self._half:
            self._in_older = newest.repeat()
            newest = SuffixAutomaton()
            self.automata = [self.automata[-1], newest]
        if len(self.automata) > 1:
            self._in_older = self.automata[0].advance(self._in_older, token)
        newest.append(token)

    def repeats(self) -> Matches:
        """Find earlier occurrences of the current text's end."""
        cursors = (self._in_older, self.automata[-1].repeat())[-len(self.automata) :]
        return dict(zip(self.automata, cursors, strict=True))

    def follow(self, before: Matches, context: Sequence[int], known: int) -> Matches:
        """Find another text's end, given the matches of its first `known` tokens, unless many are new."""
        if len(context) - known > _TAIL:
            before = {}
        return {
            automaton: reduce(automaton.advance, context[known:], before[automaton])
            if automaton in before
            else reduce(automaton.advance, context[-_TAIL:], Cursor())
            for automaton in self.automata
        }


RECENT_TOKENS = 1 << 16  # of one scope; about 8 MB
RECENT_BYTES = 64 << 20  # of all scopes
_PROMPT_TAIL = 8  # tokens of the prompt kept before an answer, so that its beginning matches too
_MAX_WAITING = 1 << 17  # tokens of finished answers that wait to be read; the oldest answers are dropped


@dataclass(slots=True)
class _Text:
    """An answer that waits to enter its scope's history."""

    scope: str
    tokens: Sequence[int]
    read: int = 0


class Memory:
    """A history for each scope, within a common bound of memory."""

    def __init__(self, *, max_tokens: int = RECENT_TOKENS, max_bytes: int = RECENT_BYTES) -> None:
        """`max_tokens` of one scope. Above `max_bytes` the least recently used scopes are dropped."""
        self._max_tokens, self._max_bytes = max_tokens, max_bytes
        self._scopes: OrderedDict[str, History] = OrderedDict()  # least recently used first
        self._booked: dict[str, int] = {}  # bytes of each history as they are in `num_bytes`
        self._texts: deque[_Text] = deque()  # oldest first
        self.waiting = 0  # tokens that are still to be read
        self.num_bytes = 0  # of all histories, at most

    def __len__(self) -> int:
        """Number of scopes."""
        return len(self._scopes)

    def of(self, scope: str) -> History | None:
        """Return the scope's history and count it as used; None if there is none."""
        history = self._scopes.get(scope)
        if history is None:
            return None
        self._scopes.move_to_end(scope)
        self._book(scope, history)  # lookups make it grow too
        return self._scopes.get(scope)

    def remember(self, scope: str, tokens: Sequence[int], prompt_length: int) -> None:
        """Keep an answer, the `tokens` after the prompt; it is known once `read` has reached its end."""
        if len(tokens) <= prompt_length:
            return
        text = _Text(scope, tokens[max(0, prompt_length - _PROMPT_TAIL) :])
        self._texts.append(text)
        self.waiting += len(text.tokens)
        while self.waiting > _MAX_WAITING:
            dropped = self._texts.popleft()
            self.waiting -= len(dropped.tokens) - dropped.read

    def read(self, max_tokens: int) -> int:
        """Read up to `max_tokens` of waiting answers, the oldest first; the number of tokens read."""
        budget = max_tokens
        while budget > 0 and self._texts:
            budget -= self._read(self._texts[0], budget)
        return max_tokens - budget

    def _read(self, text: _Text, max_tokens: int) -> int:
        history = self._scopes.setdefault(text.scope, History(self._max_tokens))
        self._scopes.move_to_end(text.scope)
        if not text.read:
            history.separate()
        count = min(max_tokens, len(text.tokens) - text.read)
        for token in islice(text.tokens, text.read, text.read + count):
            history.append(token)
        text.read += count
        self.waiting -= count
        if text.read == len(text.tokens):
            self._texts.popleft()
        self._book(text.scope, history)
        return count

    def _book(self, scope: str, history: History) -> None:
        now = history.num_bytes
        self.num_bytes += now - self._booked.get(scope, 0)
        self._booked[scope] = now
        while self.num_bytes > self._max_bytes:
            dropped, _ = self._scopes.popitem(last=False)
            self.num_bytes -= self._booked.pop(dropped)
