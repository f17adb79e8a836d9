"""Counts what the cluster has when something has moved, wakes whom that concerns, and writes the counts to
the TurboAccelerators.

A busy cluster moves all the time, so it is counted every few seconds at most, and only those TurboDeployments
are looked at again whose plan another count could change. Whoever is passed over wrongly is looked at with
the next resync.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from turbo_operator.controller import deployment_metrics
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.controller.kube import GoneError, Kube, KubeError, RefusedError
from turbo_operator.inventory.impact import compare, concerns
from turbo_operator.inventory.store import InventoryStore
from turbo_operator.plan import Plan
from turbo_operator.resources import TURBOACCELERATOR

SETTLE_SECONDS = 2.0  # between two counts
STATUS_SECONDS = 10.0  # between two rounds of writing TurboAccelerators' statuses

log = logging.getLogger(__name__)


@dataclass(eq=False)
class InventorySync:
    """Keeps `inventory.stock` fresh. `plans_of` gives the last plans of a key, `wake` has a key looked at."""

    inventory: InventoryStore
    cache: Cache
    api: Kube
    plans_of: Callable[[Key], Sequence[Plan]]
    wake: Callable[[Key], None]
    # Statuses as the API server holds them.
    _shown: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def show(self, body: Mapping[str, Any]) -> None:
        """Remember the status of a TurboAccelerator as a watch or a list shows it."""
        self._shown[body["metadata"]["name"]] = body.get("status") or {}
        self.inventory.moved = True

    def count(self) -> None:
        """Count now, and wake whom the difference concerns."""
        before = self.inventory.take_stock(self.cache.accelerators_by_name(), time.time())
        after = self.inventory.stock
        deployment_metrics.show_prices(before, after)
        change = compare(before, after)
        for key in sorted(self.cache.deployments) if change else ():
            if any(concerns(plan, key.owner, change, after) for plan in self.plans_of(key)):
                self.wake(key)

    async def run(self) -> None:
        """Count, and write the counts, until cancelled; a slow API server delays no count."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._count_forever())
            while True:
                await self._write_counts()
                await asyncio.sleep(STATUS_SECONDS)

    async def _count_forever(self) -> None:
        while True:
            if self.inventory.moved:
                self.count()
            await asyncio.sleep(SETTLE_SECONDS)

    async def _write_counts(self) -> None:
        """Write the counts that are not shown yet; what the API server does not take is tried again."""
        for name in self._shown.keys() - self.inventory.stock.supply.keys():
            del self._shown[name]
        for name, nodes in self.inventory.stock.supply.items():
            status = {
                "nodes": len(nodes),
                "allocatable": sum(node.allocatable for node in nodes),
                "available": sum(node.free for node in nodes),
            }
            if self._shown.get(name) == status:
                continue
            try:
                await self.api.apply_status(TURBOACCELERATOR, {"metadata": {"name": name}, "status": status})
            except GoneError:  # deleted meanwhile: its event is on its way
                continue
            except RefusedError as error:  # a matter of this one
                log.warning("its counts are refused: %s", error.message, extra={"object": name})
                continue
            except KubeError as error:
                log.warning("its counts cannot be written: %s", error.message, extra={"object": name})
                return
            self._shown[name] = status
