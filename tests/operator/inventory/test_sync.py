"""The cluster is counted whatever the API server does."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from turbo_dev.small_world import KEY, World
from turbo_dev.trainings import td
from turbo_operator.controller import inventory_sync
from turbo_operator.controller.cache.store import Cache
from turbo_operator.controller.inventory_sync import InventorySync
from turbo_operator.controller.snapshot_builder import build_snapshot
from turbo_operator.inventory.store import InventoryStore
from turbo_operator.snapshot import Accelerator


class Hanging:
    """An API server that takes a status, and never answers."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def apply_status(self, *_: Any) -> None:
        self.asked.set()
        await asyncio.Event().wait()


async def test_the_cluster_is_counted_while_the_api_server_takes_no_status(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Found in review: a dead node counted as room for as long as statuses took to write."""
    monkeypatch.setattr(inventory_sync, "SETTLE_SECONDS", 0.01)
    monkeypatch.setattr(inventory_sync, "STATUS_SECONDS", 0.01)
    cache, server = Cache(), Hanging()
    body = {"metadata": {"name": "cpu", "uid": "a", "resourceVersion": "1"}}
    cache.accelerators.put(body, Accelerator("cpu", "cpu", Decimal(1), 1))
    inventory = InventoryStore(cache.owner_of)
    api: Any = server
    sync, counted = InventorySync(inventory, cache, api, lambda _: [], lambda _: None), asyncio.Event()
    inventory.moved = True
    running = asyncio.create_task(sync.run())
    await asyncio.wait_for(server.asked.wait(), 30)
    monkeypatch.setattr(sync, "count", counted.set)
    inventory.moved = True
    await asyncio.wait_for(counted.wait(), 30)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def test_a_count_is_as_good_as_new_while_nothing_has_changed() -> None:
    """Found in review: in a quiet cluster a training's accelerator was taken twice, for hours."""
    world, it = World(), td()
    inventory = world.reconciler.inventory
    inventory.take_stock(world.cache.accelerators_by_name(), 5.0)
    assert build_snapshot(world.cache, inventory, KEY, it, 100.0).counted_time == 100.0
    inventory.moved = True
    assert build_snapshot(world.cache, inventory, KEY, it, 100.0).counted_time == 5.0
