"""The queue of waiting answers, fair between tenants.

Virtual token counters (Sheng et al., "Fairness in serving large language models", OSDI 2024): each tenant
with anything in the engine has a count of the service it got, and whoever got least is admitted next; within
a tenant, first come, first served. A tenant that has had nothing waiting starts level with those that have,
so that nobody saves up service by staying away.

What it promises: while tenants f and g both have answers waiting, the service they got in that time differs
by no more than a bound that does not grow (shown there: 2 max(longest prompt, answer weight times the
tokens that run)); and a tenant that comes new is admitted after at most one answer of each other tenant that
waits, whatever their number. Knows no clock.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from itertools import chain
from typing import Generic, TypeVar

ANSWER_WEIGHT = 2  # of a token of an answer, in tokens of a prompt

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Items that wait, each for a tenant, and the service of every tenant that has anything in the engine.

    An item is `enter`ed, taken (`pop`) or given up (`remove`), and its tenant is told (`leave`) when it is
    over.
    """

    def __init__(self) -> None:
        self._lines: dict[str, deque[Item]] = {}  # none is empty; who began to wait first stands first
        self._service: dict[str, int] = {}  # of the tenants in `_present`
        self._present: Counter[str] = Counter()  # items that wait or run

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[Item]:
        return chain.from_iterable(self._lines.values())

    def service(self, tenant: str) -> int:
        """What the tenant got, in tokens of a prompt; 0 for one that has nothing here."""
        return self._service.get(tenant, 0)

    def enter(self, tenant: str, item: Item) -> None:
        """Put an item at the end of its tenant's line."""
        if tenant not in self._lines:
            level = min((self._service[each] for each in self._lines), default=None)
            if level is None:  # nobody waits: whoever runs has no claim left
                level = max(self._service.values(), default=0)
            self._service[tenant] = max(self.service(tenant), level)
            self._lines[tenant] = deque()
        self._lines[tenant].append(item)
        self._present[tenant] += 1

    def first(self) -> Item | None:
        """Who is admitted next."""
        line = min(self._lines, key=self._service.__getitem__, default=None)
        return None if line is None else self._lines[line][0]

    def remove(self, tenant: str, item: Item) -> None:
        """Take an item out of its line, whether it is admitted or given up; ValueError if it does not
        wait.
        """
        line = self._lines[tenant]
        line.remove(item)
        if not line:
            del self._lines[tenant]

    def charge(self, tenant: str, tokens: int) -> None:
        """The tenant got this much service; an answer's token counts `ANSWER_WEIGHT`."""
        self._service[tenant] += tokens

    def leave(self, tenant: str) -> None:
        """An item of the tenant is over; with the last, what it got is forgotten."""
        self._present[tenant] -= 1
        if not self._present[tenant]:
            del self._present[tenant], self._service[tenant]
