"""What the TurboDeployments of a namespace hold or are about to, and what TurboBudgets leave one. Pure.

Money is in US dollars per hour. A budget never takes away what runs: it refuses what would be more than that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Generic, TypeVar

from turbo_operator.api import Condition, WithinBudgetReason

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Amount:
    """Accelerators by TurboAccelerator, and what they cost for an hour."""

    per_hour: Decimal = Decimal(0)  # of those with a price
    accelerators: Counter[str] = field(default_factory=Counter)
    unpriced: Counter[str] = field(default_factory=Counter)  # of them, those without
    total: int = 0  # accelerators of all kinds

    @classmethod
    def of(cls, name: str, accelerators: int, per_hour: Decimal | None) -> Amount:
        """Return accelerators of one kind; without a price, `per_hour` is None."""
        held = Counter({name: accelerators})
        if per_hour is None:
            return cls(Decimal(0), held, held, accelerators)
        return cls(per_hour, held, Counter(), accelerators)

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.per_hour + other.per_hour,
            self.accelerators + other.accelerators,
            self.unpriced + other.unpriced,
            self.total + other.total,
        )

    def __sub__(self, other: Amount) -> Amount:
        return Amount(
            self.per_hour - other.per_hour,
            self.accelerators - other.accelerators,
            self.unpriced - other.unpriced,
            self.total - other.total,
        )

    def __or__(self, other: Amount) -> Amount:
        """Return the most of what is one at one time and the other at another."""
        return Amount(
            max(self.per_hour, other.per_hour),
            self.accelerators | other.accelerators,
            self.unpriced | other.unpriced,
            max(self.total, other.total),
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
        grows = wanted.per_hour > held.per_hour or wanted.unpriced - held.unpriced
        if self.max_per_hour is None or not grows:
            return None
        if unpriced := sorted(wanted.unpriced):
            return f"TurboBudget {self.name} has maxPerHour, and {unpriced[0]} has no price"
        if unpriced := sorted(others.unpriced):
            return (
                f"TurboBudget {self.name} has maxPerHour, and {unpriced[0]}, which others have, has no price"
            )
        if wanted.per_hour + others.per_hour > self.max_per_hour:
            return f"TurboBudget {self.name} has maxPerHour {self.max_per_hour}{_taken(others.per_hour)}"
        return None

    def check(self, amount: Amount) -> tuple[WithinBudgetReason, str]:
        """Say whether so much is within all limits, with a clause where it is not, or is not known to be."""
        clause = self.refuses(amount, NOTHING, NOTHING)
        if not self.is_readable:
            return WithinBudgetReason.BUDGET_UNREADABLE, f"TurboBudget {self.name} cannot be read"
        if clause is None:
            return WithinBudgetReason.WITHIN_BUDGET, ""
        of_money = self.max_per_hour is not None and amount.unpriced
        if of_money and replace(self, max_per_hour=None).refuses(amount, NOTHING, NOTHING) is None:
            return WithinBudgetReason.PRICE_UNKNOWN, clause
        return WithinBudgetReason.BUDGET_EXCEEDED, clause


def _taken(amount: Decimal | int) -> str:
    """Say what others have of a limit, without zeros at the end."""
    return f", of which others have {round(Decimal(amount), 4).normalize():f}" if amount else ""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What budgets leave one TurboDeployment."""

    budgets: tuple[Budget, ...] = ()
    held: Amount = NOTHING  # by it now, or before what gives way for something else
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
    def broken(self) -> tuple[WithinBudgetReason, str] | None:
        """What is wrong with the first budget that all together are not known to be within; None: nothing."""
        checked = (budget.check(self.held + self.others) for budget in self.budgets)
        return next((found for found in checked if found[0] != WithinBudgetReason.WITHIN_BUDGET), None)

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

    def change(self, change: Callable[[Name, Entry], Entry]) -> None:
        """Write all of them anew."""
        for name, entry in list(self._entries.items()):
            self.enter(name, change(name, entry))

    def others(self, name: Name) -> Amount:
        """Sum what all but one are committed to."""
        own = self._entries.get(name)
        return self.committed if own is None else self.committed - own.committed
