"""Takes stock when something has moved, wakes whom it concerns, and shows the counts on the accelerators.

A busy cluster moves all the time, so it is counted every few seconds at most, and only those
TurboDeployments are looked at again whose plan another count could change. Whoever is passed over wrongly is
looked at with the next resync.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from turbo_operator.api import API_VERSION, TURBOACCELERATOR
from turbo_operator.controller import deployment_metrics
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.controller.kube import GoneError, Kube, KubeError, RefusedError
from turbo_operator.inventory.impact import concerns, moved
from turbo_operator.inventory.store import InventoryStore
from turbo_operator.inventory.supply import Owner
from turbo_operator.plan import Plan
from turbo_operator.resources import TURBOACCELERATOR as ACCELERATORS

SETTLE_SECONDS = 2.0  # between two counts
STATUS_SECONDS = 10.0  # between two rounds of writing TurboAccelerators' statuses

log = logging.getLogger(__name__)


class Inventory:
    """Keeps `ledger.stock` fresh. `plans` gives the planner's last answers on a key, `wake` has a key looked
    at.
    """

    def __init__(
        self,
        ledger: InventoryStore,
        cache: Cache,
        api: Kube,
        plans: Callable[[Key], Sequence[Plan]],
        wake: Callable[[Key], None],
    ) -> None:
        self._ledger = ledger
        self._cache = cache
        self._api = api
        self._plans = plans
        self._wake = wake
        self._shown: dict[str, Mapping[str, Any]] = {}  # statuses as the API server holds them

    def shown(self, body: Mapping[str, Any]) -> None:
        """A TurboAccelerator as a watch or a list shows it."""
        self._shown[body["metadata"]["name"]] = body.get("status") or {}
        self._ledger.moved = True

    def count(self) -> None:
        """Take stock now, and wake whom the difference concerns."""
        before = self._ledger.take_stock(self._cache.accelerators())
        after = self._ledger.stock
        deployment_metrics.show_prices(before, after)
        change = moved(before, after)
        for key in self._cache.all_keys() if change else ():
            owner = Owner(key.namespace, key.name)
            if any(concerns(plan, owner, change, after) for plan in self._plans(key)):
                self._wake(key)

    async def run(self) -> None:
        """Count until cancelled."""
        written = -STATUS_SECONDS
        while True:
            if self._ledger.moved:
                self.count()
            if time.monotonic() - written >= STATUS_SECONDS:
                written = time.monotonic()
                await self._show()
            await asyncio.sleep(SETTLE_SECONDS)

    async def _show(self) -> None:
        """Write the counts that are not shown yet; what the API server does not take is tried again."""
        for name, nodes in self._ledger.stock.supply.items():
            status = {
                "nodes": len(nodes),
                "allocatable": sum(node.allocatable for node in nodes),
                "free": sum(node.free for node in nodes),
            }
            if self._shown.get(name) == status:
                continue
            wanted = {
                "apiVersion": API_VERSION,
                "kind": TURBOACCELERATOR,
                "metadata": {"name": name},
                "status": status,
            }
            try:
                await self._api.apply_status(ACCELERATORS, wanted)
            except GoneError:  # deleted meanwhile: its event is on its way
                continue
            except RefusedError as error:  # a matter of this one
                log.warning("its counts are refused: %s", error.message, extra={"object": name})
                continue
            except KubeError as error:
                log.warning("its counts cannot be written: %s", error.message, extra={"object": name})
                return
            self._shown[name] = status
