"""A cluster as the user's own rights show it: what the operator watches, listed once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from turbo_operator import api, resources
from turbo_operator.catalog import as_row
from turbo_operator.cli.manifests import BadInputError
from turbo_operator.controller import kube
from turbo_operator.controller.cache.projection import draft
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.controller.snapshot_builder import build_snapshot
from turbo_operator.inventory.store import InventoryStore
from turbo_operator.snapshot import Accelerator, Snapshot

Parsed = TypeVar("Parsed")


@dataclass(frozen=True, slots=True)
class Cluster:
    """The lists. `namespace` is the context's own, `accelerators` the TurboAccelerators by name."""

    cache: Cache
    ledger: InventoryStore
    namespace: str
    accelerators: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def snapshot(
        self, key: Key, td: api.TurboDeployment, now: float, overlay: Mapping[str, Accelerator] | None = None
    ) -> Snapshot:
        """Build the operator's snapshot of `td` at `now` (epoch seconds), with the `overlay`."""
        accelerators = {**self.cache.accelerators_by_name(), **(overlay or {})}
        self.ledger.take_stock(accelerators, now)
        return replace(build_snapshot(self.cache, self.ledger, key, td, now), accelerators=accelerators)


def read_cluster(context: str | None, namespaces: Iterable[str | None]) -> Cluster:
    """List what plans in these namespaces depend on (None: the context's own). Raises BadInputError."""
    try:
        return asyncio.run(_read_cluster(context, frozenset(namespaces)))
    except kube.KubeError as error:
        raise BadInputError(f"{error.message.rstrip('.')}.") from error


async def _read_cluster(context: str | None, namespaces: frozenset[str | None]) -> Cluster:
    async with kube.connect(context) as server:

        async def bodies(
            resource: resources.Resource, namespace: str | None = None, label: str | None = None
        ) -> list[dict[str, Any]]:
            return await server.list_all(resource, namespace, [("labelSelector", label)] if label else ())

        for resource in (resources.TURBODEPLOYMENT, resources.TURBOACCELERATOR, resources.TURBODRAFT):
            if not await server.serves(resource):
                raise BadInputError(
                    f"the cluster does not know {resource.kind}: install the chart, or its CRDs, first."
                )
        cache = Cache()
        cluster = Cluster(cache, InventoryStore(cache.owner_of), server.namespace)
        for namespace in {name or server.namespace for name in namespaces}:
            for body in await bodies(resources.TURBODEPLOYMENT, namespace):
                cache.put_deployment(body)
            for body in await bodies(resources.TURBODRAFT, namespace):
                cache.drafts.put(body, _parse(lambda body: draft(api.parse_draft(body)), body))
            for body in await bodies(resources.QUOTA, namespace):
                cluster.ledger.put(resources.QUOTA.kind, body)
            for resource in resources.CHILDREN.values():
                for body in await bodies(resource, namespace):
                    cache.put_child(body)
            for body in await bodies(resources.REPLICASET, namespace, api.LABEL_DEPLOYMENT):
                cache.pods.put_replica_set(body)
        for body in await bodies(resources.TURBOACCELERATOR):
            cluster.accelerators[body["metadata"]["name"]] = body
            cache.accelerators.put(body, _parse(lambda body: as_row(api.parse_accelerator(body)), body))
        for resource in (resources.NODE, resources.POD):
            for body in await bodies(resource):
                cluster.ledger.put(resource.kind, body)
                if resource is resources.POD:
                    cache.pods.put(body)
        return cluster


def _parse(parser: Callable[[dict[str, Any]], Parsed], body: dict[str, Any]) -> Parsed | None:
    """None for an object that was stored before a rule was: the operator skips it too, and logs it."""
    with suppress(api.InvalidObject):
        return parser(body)
    return None
