"""A cluster as the user's own rights show it: what the operator watches, listed once and seen alike."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from turbo_operator import api, resources
from turbo_operator.catalog import as_row
from turbo_operator.cli.errors import BadInputError
from turbo_operator.controller import kube
from turbo_operator.controller.cache.projection import draft
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.controller.kube import Kube
from turbo_operator.controller.snapshot_builder import build_snapshot
from turbo_operator.inventory.store import InventoryStore
from turbo_operator.snapshot import Accelerator, DraftView, Snapshot


@dataclass(frozen=True, slots=True)
class Cluster:
    """What was listed. `namespace` is the context's own, `accelerators` the TurboAccelerators by name."""

    cache: Cache
    ledger: InventoryStore
    namespace: str
    accelerators: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def look(
        self, key: Key, td: api.TurboDeployment, now: float, overlay: Mapping[str, Accelerator] | None = None
    ) -> Snapshot:
        """What the operator sees of `td` at `now` (epoch seconds), with the accelerators of `overlay`."""
        accelerators = {**self.cache.accelerators_by_name(), **(overlay or {})}
        self.ledger.take_stock(accelerators)
        return replace(build_snapshot(self.cache, self.ledger, key, td, now), accelerators=accelerators)


def listed(context: str | None, namespaces: Iterable[str | None]) -> Cluster:
    """Everything that plans in these namespaces depend on, None being the context's own.

    BadInputError with the API server's own words, or what else stands in the way, in a sentence.
    """
    try:
        return asyncio.run(_listed(context, frozenset(namespaces)))
    except kube.KubeError as error:
        raise BadInputError(f"{error.message.rstrip('.')}.") from error


async def _listed(context: str | None, namespaces: frozenset[str | None]) -> Cluster:
    async with kube.connect(context) as server:
        for resource in (resources.TURBODEPLOYMENT, resources.TURBOACCELERATOR, resources.TURBODRAFT):
            if not await server.serves(resource):
                raise BadInputError(
                    f"the cluster does not know {resource.kind}: install the chart, or its CRDs, first."
                )
        cache = Cache()
        cluster = Cluster(cache, InventoryStore(cache.pods.owner_of), server.namespace)
        for namespace in {each or server.namespace for each in namespaces}:
            await _read_namespace(server, cluster, namespace)
        await _read_all(server, cluster)
        return cluster


async def _read_all(server: Kube, cluster: Cluster) -> None:
    """What is the same for everybody: accelerators, nodes, and what every pod holds."""
    for body in await _list(server, resources.TURBOACCELERATOR, None):
        cluster.accelerators[body["metadata"]["name"]] = body
        cluster.cache.accelerators.put(body, _row(body))
    for resource in (resources.NODE, resources.POD):
        for body in await _list(server, resource, None):
            cluster.ledger.put(resource.kind, body)
            if resource is resources.POD:
                cluster.cache.pods.put(body)


async def _read_namespace(server: Kube, cluster: Cluster, namespace: str) -> None:
    for body in await _list(server, resources.TURBODEPLOYMENT, namespace):
        cluster.cache.put_deployment(body)
    for body in await _list(server, resources.TURBODRAFT, namespace):
        cluster.cache.drafts.put(body, _draft(body))
    for body in await _list(server, resources.QUOTA, namespace):
        cluster.ledger.put(resources.QUOTA.kind, body)
    for resource in resources.CHILDREN.values():
        for body in await _list(server, resource, namespace):
            cluster.cache.put_child(body)
    for body in await _list(server, resources.REPLICASET, namespace, api.LABEL_DEPLOYMENT):
        cluster.cache.pods.put_replica_set(body)


async def _list(
    server: Kube, resource: resources.Resource, namespace: str | None, label: str | None = None
) -> list[dict[str, Any]]:
    items, _ = await server.list_all(resource, namespace, label)
    return items


def _row(body: Mapping[str, Any]) -> Accelerator | None:
    try:
        return as_row(api.parse_accelerator(body))
    except api.InvalidObject:  # stored before a rule was: the operator passes it over too, and logs it
        return None


def _draft(body: Mapping[str, Any]) -> DraftView | None:
    try:
        return draft(api.parse_draft(body))
    except api.InvalidObject:  # likewise
        return None
