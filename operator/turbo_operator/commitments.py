"""What the TurboDeployments of a namespace hold or are about to, and what TurboBudgets leave one. Pure.

Money is in US dollars per hour. A budget never takes away what runs: it refuses what would be more than that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Generic, TypeVar

from turbo_operator.api import Condition

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Amount:
    """Accelerators by TurboAccelerator, and what they cost for an hour."""

    per_hour: Decimal = Decimal(0)  # of those with a price
    accelerators: Counter[str] = field(default_factory=Counter)
    unpriced: Counter[str] = field(default_factory=Counter)  # of them, those without

    @property
    def total(self) -> int:
        """All accelerators."""
        return self.accelerators.total()

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.per_hour + other.per_hour,
            self.accelerators + other.accelerators,
            self.unpriced + other.unpriced,
        )

    def __sub__(self, other: Amount) -> Amount:
        return Amount(
            self.per_hour - other.per_hour,
            self.accelerators - other.accelerators,
            self.unpriced - other.unpriced,
        )

    def __or__(self, other: Amount) -> Amount:
        """Return at least both."""
        return Amount(
            max(self.per_hour, other.per_hour),
            self.accelerators | other.accelerators,
            self.unpriced | other.unpriced,
        )


NOTHING = Amount()


@dataclass(frozen=True, slots=True)
class Budget:
    """The limits of one TurboBudget; None is no limit."""

    name: str
    max_per_hour: Decimal | None = None
    max_total: int | None = None  # accelerators
    allowed: frozenset[str] | None = None  # TurboAccelerators
    is_readable: bool = True
    uid: str = ""
    generation: int = 0
    conditions: tuple[Condition, ...] = ()  # as they stand in its status

    def refuses(self, wanted: Amount, held: Amount, others: Amount) -> str | None:
        """Say as a clause why `wanted` may not be where `held` is and others have theirs; None: it may."""
        more = wanted.accelerators - held.accelerators
        if not self.is_readable:
            return f"TurboBudget {self.name} cannot be read" if more else None
        if self.allowed is not None and (barred := sorted(more.keys() - self.allowed)):
            return f"TurboBudget {self.name} does not allow {barred[0]}"
        total = wanted.total + others.total
        if self.max_total is not None and wanted.total > held.total and total > self.max_total:
            return f"TurboBudget {self.name} has accelerators.maxTotal {self.max_total}{_taken(others.total)}"
        if self.max_per_hour is None:
            return None
        if unpriced := sorted(wanted.unpriced - held.unpriced):
            return f"TurboBudget {self.name} has maxPerHour, and {unpriced[0]} has no price"
        if wanted.per_hour <= held.per_hour:
            return None
        if others.unpriced:
            name = min(others.unpriced)
            return f"TurboBudget {self.name} has maxPerHour, and {name}, which others hold, has no price"
        if wanted.per_hour + others.per_hour > self.max_per_hour:
            return f"TurboBudget {self.name} has maxPerHour {self.max_per_hour}{_taken(others.per_hour)}"
        return None

    def breaks(self, amount: Amount) -> str | None:
        """Say as a clause which limit so much is above; None: it is within all of them."""
        return self.refuses(amount, NOTHING, NOTHING)


def _taken(amount: Decimal | int) -> str:
    """Say what others have of a limit, without zeros at the end."""
    return f", of which others have {round(Decimal(amount), 4).normalize():f}" if amount else ""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What budgets leave one TurboDeployment."""

    budgets: tuple[Budget, ...] = ()
    held: Amount = NOTHING  # by it now
    trainings: Amount = NOTHING  # of that
    earlier: Amount = NOTHING  # of that, what an object that had its name has left
    others: Amount = NOTHING  # what the other TurboDeployments of the namespace hold or are about to

    def refuses(self, replicas: Amount) -> str | None:
        """Say as a clause why it may not have these replicas; None: it may."""
        if not self.budgets:
            return None
        wanted = replicas + self.trainings + self.earlier
        clauses = (budget.refuses(wanted, self.held, self.others) for budget in self.budgets)
        return next((clause for clause in clauses if clause), None)

    @property
    def broken(self) -> str | None:
        """The first budget that all together are above, like `TurboBudget team`; None: none is."""
        both = self.held + self.others
        budgets = (budget for budget in self.budgets if budget.is_readable and budget.breaks(both))
        return next((f"TurboBudget {budget.name}" for budget in budgets), None)

    @property
    def allowed(self) -> frozenset[str] | None:
        """The TurboAccelerators that all budgets allow; None: any."""
        lists = [budget.allowed for budget in self.budgets if budget.allowed is not None]
        return frozenset.intersection(*lists) if lists else None


NO_BUDGET = Allowance()


@dataclass(frozen=True, slots=True)
class Entry:
    """What one TurboDeployment holds, and the most that it may come to by what was decided last."""

    held: Amount
    committed: Amount


class Commitments(Generic[Name]):
    """The entries of one namespace, and their sums."""

    def __init__(self) -> None:
        self._entries: dict[Name, Entry] = {}
        self.held, self.committed = NOTHING, NOTHING

    @property
    def entries(self) -> Mapping[Name, Entry]:
        """By TurboDeployment."""
        return self._entries

    def enter(self, name: Name, entry: Entry) -> None:
        """Write one in place of what it was."""
        self.remove(name)
        self._entries[name] = entry
        self.held, self.committed = self.held + entry.held, self.committed + entry.committed

    def remove(self, name: Name) -> None:
        """Remove what is gone."""
        if (old := self._entries.pop(name, None)) is not None:
            self.held, self.committed = self.held - old.held, self.committed - old.committed

    def others(self, name: Name) -> Amount:
        """Sum what all but one are committed to."""
        own = self._entries.get(name)
        return self.committed if own is None else self.committed - own.committed
