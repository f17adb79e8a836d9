"""Nodes, quotas and what every pod holds, as watches have shown them; and the inventory last taken of them.

A pod is kept as a few amounts (as a dictionary it is 43 KB), and one that has ended not at all. One reflector
per kind and namespace feeds it, first a list and then changes in their order, so what came last is newest.
Labels only claim whose a pod is: it is looked up as the inventory is taken. No method calls the API server.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

from turbo_operator.inventory.supply import ClusterInventory, Node, Owner, PodUsage, take_stock
from turbo_operator.inventory.usage import READERS
from turbo_operator.snapshot import Accelerator

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """An object that counts for nothing, kept so that it is logged once.

    A node without readable amounts has no room, and a pod holds nothing. A quota bounds no plan, which is
    safe: the API server enforces it, and its refusal is shown in the status. Taking it for a quota of 0 would
    take room from what serves already.
    """

    message: str


class InventoryStore:
    """Who holds what. `moved` is set by whatever may change the inventory, until it is taken again.

    `owner_of` says by uid whose a pod is, None for a stranger's.
    """

    def __init__(self, owner_of: Callable[[str], Owner | None]) -> None:
        self._owner_of = owner_of
        self.stock = ClusterInventory()
        self.moved = True
        # By kind and uid the namespace and what it comes to.
        self._objects: dict[str, dict[str, tuple[str | None, Any]]] = {kind: {} for kind in READERS}

    def put(self, kind: str, body: Mapping[str, Any], /) -> None:
        """Store a node, pod or quota as it is now."""
        uid, name, namespace = (body["metadata"].get(key) for key in ("uid", "name", "namespace"))
        try:
            value = READERS[kind](body)
        except ValueError as error:
            value = _Unreadable(str(error))
            if (namespace, value) != self._objects[kind].get(uid):
                details = {"object": f"{namespace}/{name}" if namespace else name}
                log.warning("%s is left out: %s", kind, error, extra=details)
        self._set(kind, uid, None if value is None else (namespace, value))

    def drop(self, kind: str, body: Mapping[str, Any], /) -> None:
        """Remove an object that is gone."""
        self._set(kind, body["metadata"]["uid"], None)

    def keep_only(self, kind: str, uids: Set[str], _version: str, namespace: str | None, /) -> None:
        """Drop what a full list of one namespace, or with None of all, does not show."""
        for uid, (where, _) in list(self._objects[kind].items()):
            if uid not in uids and namespace in (None, where):
                self._set(kind, uid, None)

    def take_stock(self, accelerators: Mapping[str, Accelerator], now: float) -> ClusterInventory:
        """Take the inventory anew; returns the one before. `now` is in seconds since the epoch."""
        before = self.stock
        self.moved = False
        quotas = self._readable("ResourceQuota")
        self.stock = take_stock(accelerators, self._readable("Node"), self._pods(), quotas, now)
        return before

    def stock_for(self, namespace: str, now: float) -> ClusterInventory:
        """Return the inventory with a namespace's quotas and pods as they are by now.

        A place in a quota that another one has taken since the count is not there to be taken again.
        """
        quotas = tuple(quota for quota in self._readable("ResourceQuota") if quota.namespace == namespace)
        charged = self._pods(namespace) if quotas else ()
        return replace(self.stock, quotas=quotas, charged=charged, time=now)

    def node(self, name: str) -> Node | None:
        """Return a node by its name; None where there is none that can be read."""
        return next((node for node in self._readable("Node") if node.name == name), None)

    def _readable(self, kind: str) -> list[Any]:
        return [value for _, value in self._objects[kind].values() if not isinstance(value, _Unreadable)]

    def _pods(self, namespace: str | None = None) -> list[PodUsage]:
        """Return what the pods of a namespace, or of all, hold, each with its owner."""
        return [
            replace(pod, owner=owner) if (owner := self._owner_of(uid)) != pod.owner else pod
            for uid, (where, pod) in self._objects["Pod"].items()
            if namespace in (None, where) and not isinstance(pod, _Unreadable)
        ]

    def _set(self, kind: str, uid: str, value: tuple[str | None, Any] | None) -> None:
        if value == self._objects[kind].get(uid):
            return
        self.moved = True
        if value is None:
            del self._objects[kind][uid]
        else:
            self._objects[kind][uid] = value
