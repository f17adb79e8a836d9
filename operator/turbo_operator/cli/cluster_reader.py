"""A cluster as the user's own rights show it: what the operator watches, listed once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from turbo_operator import api, resources
from turbo_operator.cli.manifests import BadInputError
from turbo_operator.controller import informer, kube
from turbo_operator.controller.budgets.reservations import Reservations
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.controller.snapshot_builder import build_snapshot
from turbo_operator.inventory.store import InventoryStore
from turbo_operator.snapshot import Accelerator, Presence, Snapshot

_IN_NAMESPACE = (
    *(resources.TURBODEPLOYMENT, resources.TURBODRAFT, resources.TURBOBUDGET, resources.QUOTA),
    *(resources.REPLICASET, *resources.EDITABLE, resources.LEADERWORKERSET, *resources.LABELED),
)
_IN_CLUSTER = (resources.TURBOACCELERATOR, resources.NODE, resources.POD)


@dataclass(frozen=True, slots=True)
class Cluster:
    """The lists. `namespace` is the context's own, `accelerators` the TurboAccelerators by name."""

    cache: Cache
    inventory: InventoryStore
    namespace: str
    accelerators: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def snapshot(
        self, key: Key, td: api.TurboDeployment, now: float, overlay: Mapping[str, Accelerator] | None = None
    ) -> Snapshot:
        """Build the operator's snapshot of `td` at `now` (epoch seconds), with the `overlay`."""
        accelerators = {**self.cache.accelerators_by_name(), **(overlay or {})}
        self.inventory.take_stock(accelerators, now)
        allowance = Reservations(self.cache).allowance(key, td.metadata.uid, now)
        observed = build_snapshot(self.cache, self.inventory, key, td, now)
        return replace(observed, accelerators=accelerators, allowance=allowance)


def read_cluster(context: str | None, namespaces: Iterable[str | None]) -> Cluster:
    """List what plans in these namespaces depend on (None: the context's own). Raises BadInputError."""
    if not informer.log.handlers:  # else what the operator logs and skips goes to stderr here
        informer.log.addHandler(logging.NullHandler())
    try:
        return asyncio.run(_read_cluster(context, frozenset(namespaces)))
    except kube.KubeError as error:
        raise BadInputError(f"{error.message.rstrip('.')}.") from error


async def _read_cluster(context: str | None, namespaces: frozenset[str | None]) -> Cluster:
    async with kube.connect(context) as server:
        for resource in resources.OWN:
            if not await server.serves(resource):
                raise BadInputError(
                    f"the cluster does not know {resource.kind}: install the chart, or its CRDs, first."
                )
        cache = Cache()
        cluster = Cluster(cache, InventoryStore(cache.owner_of), server.namespace)

        def show(accelerator: Mapping[str, Any]) -> None:
            cluster.accelerators[accelerator["metadata"]["name"]] = accelerator

        # Nobody is to be woken.
        handler = informer.ObjectHandler(cache, cluster.inventory, lambda _: None, lambda _: None, show)
        places = {name or server.namespace for name in namespaces}
        has_groups = await server.serves(resources.LEADERWORKERSET)
        groups = (resources.LEADERWORKERSET.kind, None)
        cache.presences[groups] = Presence.PRESENT if has_groups else Presence.ABSENT
        kinds = [each for each in _IN_NAMESPACE if has_groups or each is not resources.LEADERWORKERSET]
        kinds += [resources.STATEFULSET] if has_groups else []
        lists = [(resource, place) for place in places for resource in kinds]
        for resource, namespace in (*lists, *((resource, None) for resource in _IN_CLUSTER)):
            is_labeled = resource in (resources.REPLICASET, resources.STATEFULSET)
            selectors = informer.selectors_of(resource) if is_labeled else ()
            for body in await server.list_all(resource, namespace, selectors):
                handler.put(resource.kind, body)
        return cluster
