"""Shows in each TurboBudget's status, and as gauges, what is taken of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from prometheus_client import Gauge

from turbo_operator.api import TurboBudgetStatus
from turbo_operator.commitments import Budget
from turbo_operator.controller.budgets.reservations import Reservations
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.controller.kube import GoneError, Kube, KubeError
from turbo_operator.resources import TURBOBUDGET
from turbo_operator.status.budget import budget_status

SECONDS = 5.0  # between two rounds

PER_HOUR = Gauge(
    "turbo_budget_per_hour",
    "US dollars per hour of a TurboBudget by state: limit, in_use or committed.",
    ["namespace", "name", "state"],
)
ACCELERATORS = Gauge(
    "turbo_budget_accelerators",
    "Accelerators of a TurboBudget by state: limit, in_use or committed.",
    ["namespace", "name", "state"],
)

log = logging.getLogger(__name__)


@dataclass(eq=False)
class BudgetStatusWriter:
    """Writes the statuses of TurboBudgets. `clock` gives seconds since the epoch."""

    cache: Cache
    reservations: Reservations
    api: Kube
    clock: Callable[[], float]
    _shown: set[Key] = field(default_factory=set, init=False)  # in the gauges
    # By budget, with its uid: what the API server has taken.
    _written: dict[Key, tuple[str, TurboBudgetStatus]] = field(default_factory=dict, init=False)

    async def run(self) -> None:
        """Write what has changed, until cancelled."""
        while True:
            await self.write()
            await asyncio.sleep(SECONDS)

    async def write(self) -> None:
        """Write what has changed since it was written last; what the API server does not take, again."""
        budgets = dict(self.cache.budgets.items())
        for key in self._shown - budgets.keys():
            self._written.pop(key, None)
            for gauge in (PER_HOUR, ACCELERATORS):
                gauge.remove_by_labels({"namespace": key.namespace, "name": key.name})
        self._shown = set(budgets)
        for key, budget in sorted(budgets.items()):
            status = self._status(key, budget)
            if self._written.get(key) == (budget.uid, status):
                continue
            identity = {"name": key.name, "namespace": key.namespace, "uid": budget.uid}
            try:
                await self.api.apply_status(TURBOBUDGET, {"metadata": identity, "status": status.dump()})
            except GoneError:  # deleted meanwhile: its event is on its way
                continue
            except KubeError as error:  # it may be a matter of this one
                log.warning("its status cannot be written: %s", error.message, extra={"object": str(key)})
                continue
            self._written[key] = budget.uid, status

    def _status(self, key: Key, budget: Budget) -> TurboBudgetStatus:
        """Build the status, and show the same in the gauges."""
        now, place = self.clock(), (key.namespace, key.name)
        commitments = self.reservations.commitments(key.namespace, now)
        held, committed = commitments.held, commitments.committed
        for state, amount in (("in_use", held), ("committed", committed)):
            PER_HOUR.labels(*place, state).set(float(amount.per_hour))
            ACCELERATORS.labels(*place, state).set(amount.total)
        for gauge, limit in ((PER_HOUR, budget.max_per_hour), (ACCELERATORS, budget.max_total)):
            if limit is not None:
                gauge.labels(*place, "limit").set(float(limit))
            else:
                gauge.remove(*place, "limit")
        entries = {each.name: entry for each, entry in commitments.entries.items()}
        return budget_status(budget, held, committed, entries, now)
