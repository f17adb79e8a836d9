"""The queue of waiting answers, fair between tenants by virtual token counters (Sheng et al., OSDI 2024).

Each tenant with requests in the engine has a count of its service, and the one with the least is admitted
next; within a tenant, first come, first served. A tenant without waiting requests starts level with those
that have some, so that nobody saves up service by staying away. While two tenants both have waiting answers,
their service differs by a constant bound (2 max(longest prompt, answer weight times the running tokens)), and
a new tenant is admitted after at most one answer of each other waiting tenant. Knows no clock.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Generic, TypeVar

ANSWER_WEIGHT = 2  # of a token of an answer, in tokens of a prompt

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Waiting items by tenant, and the service of every tenant with items that wait or run."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[Item]] = {}  # none is empty; in order of the longest wait
        self._service: dict[str, int] = {}  # by the tenants in `_present`
        self._present: Counter[str] = Counter()  # items that wait or run

    def __iter__(self) -> Iterator[Item]:
        return chain.from_iterable(self._lines.values())

    def service(self, tenant: str) -> int:
        """Return the tenant's service in prompt tokens; 0 for one without items."""
        return self._service.get(tenant, 0)

    def enter(self, tenant: str, item: Item) -> None:
        """Put an item at the end of its tenant's line."""
        if tenant not in self._lines:
            level = min((self._service[waiting] for waiting in self._lines), default=None)
            if level is None:  # nobody waits: running tenants have no claim left
                level = max(self._service.values(), default=0)
            self._service[tenant] = max(self.service(tenant), level)
            self._lines[tenant] = deque()
        self._lines[tenant].append(item)
        self._present[tenant] += 1

    def first(self, may_start: Callable[[Item], bool] = lambda _: True) -> Item | None:
        """Return the next item to admit, of those that may start now."""
        lines = sorted(self._lines, key=self._service.__getitem__)
        return next((item for line in lines for item in self._lines[line] if may_start(item)), None)

    def remove(self, tenant: str, item: Item) -> None:
        """Take an admitted or canceled item out of its line; ValueError if it does not wait."""
        line = self._lines[tenant]
        line.remove(item)
        if not line:
            del self._lines[tenant]

    def charge(self, tenant: str, tokens: int) -> None:
        """Add service to a tenant; an answer's token counts `ANSWER_WEIGHT`."""
        self._service[tenant] += tokens

    def leave(self, tenant: str) -> None:
        """End an item of the tenant; the last one ends its account."""
        self._present[tenant] -= 1
        if not self._present[tenant]:
            del self._present[tenant], self._service[tenant]
