"""Recent answers, apart for each scope: drafts show in their timing what was said before, so nobody's may
show to another.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from turbo_runtime.drafters.rolling_index import History

RECENT_TOKENS = 1 << 16  # of one scope; about 8 MB
RECENT_BYTES = 64 << 20  # of all scopes
_PROMPT_TAIL = 8  # tokens of the prompt kept before an answer, so that its beginning is found too
_MOST_WAITING = 1 << 17  # tokens of finished answers that are not read yet; the oldest answers are let go


@dataclass(slots=True)
class _Text:
    """An answer on its way into its scope's history."""

    scope: str
    tokens: Sequence[int]
    read: int = 0


class Memory:
    """A history for each scope, all together within a bound of bytes."""

    def __init__(self, *, most_tokens: int = RECENT_TOKENS, most_bytes: int = RECENT_BYTES) -> None:
        """`most_tokens` of one scope. Past `most_bytes` the least recently used scopes are dropped, the
        last one too if it alone is above.
        """
        self._most_tokens, self._most_bytes = most_tokens, most_bytes
        self._scopes: OrderedDict[str, History] = OrderedDict()  # least recently used first
        self._booked: dict[str, int] = {}  # bytes of each history as they are in `num_bytes`
        self._texts: deque[_Text] = deque()  # oldest first
        self.waiting = 0  # tokens that are still to be read
        self.num_bytes = 0  # of all histories, at most

    def __len__(self) -> int:
        """Tenants remembered."""
        return len(self._scopes)

    def of(self, scope: str) -> History | None:
        """The scope's history, which counts as used now; None where there is none yet."""
        history = self._scopes.get(scope)
        if history is None:
            return None
        self._scopes.move_to_end(scope)
        self._book(scope, history)  # asking makes it grow too
        return self._scopes.get(scope)

    def remember(self, scope: str, tokens: Sequence[int], prompt_length: int) -> None:
        """Keep an answer, the `tokens` behind the prompt: it is known once `read` has come to its end."""
        if len(tokens) <= prompt_length:
            return
        text = _Text(scope, tokens[max(0, prompt_length - _PROMPT_TAIL) :])
        self._texts.append(text)
        self.waiting += len(text.tokens)
        while self.waiting > _MOST_WAITING:
            dropped = self._texts.popleft()
            self.waiting -= len(dropped.tokens) - dropped.read

    def read(self, most: int) -> int:
        """Read at most so many tokens of what is to be remembered, the oldest first; how many it were."""
        left = most
        while left > 0 and self._texts:
            left -= self._read(self._texts[0], left)
        return most - left

    def _read(self, text: _Text, most: int) -> int:
        history = self._scopes.get(text.scope)
        if history is None:
            history = self._scopes[text.scope] = History(self._most_tokens)
        self._scopes.move_to_end(text.scope)
        if not text.read:
            history.separate()
        count = min(most, len(text.tokens) - text.read)
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
        while self.num_bytes > self._most_bytes:
            dropped, _ = self._scopes.popitem(last=False)
            self.num_bytes -= self._booked.pop(dropped)
