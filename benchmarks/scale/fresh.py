"""What an operator that has just started would write to a cluster as it is."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from turbo_operator.cli.cluster_reader import Cluster, read_cluster
from turbo_operator.controller.budgets.reservations import Reservations
from turbo_operator.controller.kube import Kube, KubeError, RefusedError, connect
from turbo_operator.controller.reconciler import Reconciler
from turbo_operator.resources import Resource
from turbo_operator.settings import Settings


class OnlyLooks(Kube):
    """Reads, and notes what it would write to children."""

    def __init__(self, other: Kube) -> None:
        super().__init__(other._client, other.namespace)
        self.writes: list[str] = []

    async def _request(
        self, method: str, resource: Resource, path: str, query: Any = (), **rest: Any
    ) -> dict[str, Any]:
        if method == "GET":
            return await super()._request(method, resource, path, query, **rest)
        if path.endswith("/status"):  # what it has yet to measure is not in a first status
            raise KubeError(0, "OnlyLooks", "this operator only looks")
        self.writes.append(f"{method} {path}")
        raise RefusedError(403, "OnlyLooks", "this operator only looks")


def writes_of_a_fresh_operator(kubeconfig: Path, namespace: str, settings: Settings) -> list[str]:
    """Return the writes to children that it would begin with; none where all is as it would make it."""
    os.environ["KUBECONFIG"] = str(kubeconfig)
    cluster = read_cluster(None, [namespace])
    return asyncio.run(_reconcile_all(cluster, settings))


async def _reconcile_all(cluster: Cluster, settings: Settings) -> list[str]:
    cache, inventory = cluster.cache, cluster.inventory
    inventory.take_stock(cache.accelerators_by_name(), time.time())
    async with connect() as server:
        api = OnlyLooks(server)
        reconciler = Reconciler(cache, inventory, api, settings, time.time, Reservations(cache))
        for key in sorted(cache.deployments):
            try:
                await reconciler.reconcile(key)
            except KubeError as error:
                if error.reason != "OnlyLooks":
                    raise
    return api.writes


def is_settled(body: Mapping[str, Any]) -> bool:
    """Whether a status is of the present generation, and all replicas are ready, or those within budget."""
    status = body.get("status") or {}
    if status.get("observedGeneration") != body["metadata"]["generation"]:
        return False
    replicas, ready = status.get("replicas", 0), status.get("readyReplicas", 0)
    if replicas != ready:
        return False
    said = " ".join(each["message"] for each in status.get("conditions", ()))
    is_short = "TurboBudget team has" in said
    return bool(ready == body["spec"]["replicas"] or (is_short and ready < body["spec"]["replicas"]))
