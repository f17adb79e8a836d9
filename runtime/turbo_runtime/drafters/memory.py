"""Recent answers, apart for each tenant: drafts show in their timing what was said before, so nobody's may
show to another.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from turbo_runtime.drafters.history import History

RECENT_TOKENS = 1 << 16  # of one tenant; about 8 MB
RECENT_BYTES = 64 << 20  # of all tenants
_PROMPT_TAIL = 8  # tokens of the prompt kept before an answer, so that its beginning is found too


class Memory:
    """A history for each tenant, all together within a bound of bytes."""

    def __init__(self, *, most_tokens: int = RECENT_TOKENS, most_bytes: int = RECENT_BYTES) -> None:
        """`most_tokens` of one tenant. Past `most_bytes` the least recently used tenants are dropped, the
        last one too if it alone is above.
        """
        self._most_tokens, self._most_bytes = most_tokens, most_bytes
        self._tenants: OrderedDict[str, History] = OrderedDict()  # least recently used first
        self.num_bytes = 0  # of all histories, at most

    def __len__(self) -> int:
        """Tenants remembered."""
        return len(self._tenants)

    def of(self, tenant: str) -> History | None:
        """The tenant's history, which counts as used now; None where there is none yet."""
        history = self._tenants.get(tenant)
        if history is not None:
            self._tenants.move_to_end(tenant)
        return history

    def remember(self, tenant: str, tokens: Sequence[int], prompt_length: int) -> None:
        """Keep an answer: `tokens` behind the prompt."""
        if len(tokens) <= prompt_length:
            return
        history = self.of(tenant)
        if history is None:
            history = self._tenants[tenant] = History(self._most_tokens)
        else:
            self.num_bytes -= history.num_bytes
        history.separate()
        for token in tokens[max(0, prompt_length - _PROMPT_TAIL) :]:
            history.append(token)
        self.num_bytes += history.num_bytes
        while self.num_bytes > self._most_bytes:
            _, dropped = self._tenants.popitem(last=False)
            self.num_bytes -= dropped.num_bytes
