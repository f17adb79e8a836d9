"""Feeds what watches and lists show to the cache and the inventory, and wakes the keys that it concerns."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, TypeVar

from turbo_operator.api import (
    TURBOACCELERATOR,
    TURBODEPLOYMENT,
    TURBODRAFT,
    InvalidObject,
    parse_accelerator,
    parse_draft,
)
from turbo_operator.catalog import as_row
from turbo_operator.controller.cache.object_versions import key_of
from turbo_operator.controller.cache.projection import draft as as_view
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.controller.workqueue import WorkQueue
from turbo_operator.inventory.store import KINDS, InventoryStore

Body = Mapping[str, Any]
_View = TypeVar("_View")

log = logging.getLogger(__name__)


class Feed:
    """Takes objects of every kind that is watched. `show` is called with each TurboAccelerator."""

    def __init__(
        self, cache: Cache, inventory: InventoryStore, queue: WorkQueue[Key], show: Callable[[Body], None]
    ) -> None:
        self._cache = cache
        self._inventory = inventory
        self._queue = queue
        self._show = show

    def put(self, kind: str, body: Body, /) -> None:
        """Store an object as it is now."""
        if kind in KINDS:
            self._inventory.put(kind, body)
        if kind == TURBODEPLOYMENT:
            if self._cache.put_deployment(body):
                self._queue.add(key_of(body))
        elif kind == TURBOACCELERATOR:
            self._show(body)
            if self._cache.accelerators.put(body, _read(kind, body, lambda: as_row(parse_accelerator(body)))):
                self._wake_all()
        elif kind == TURBODRAFT:
            if self._cache.drafts.put(body, _read(kind, body, lambda: as_view(parse_draft(body)))):
                self._wake_all(body["metadata"]["namespace"])
        elif kind == "Pod":
            self._wake(self._cache.pods.put(body))
        elif kind == "ReplicaSet":
            self._wake(self._cache.pods.put_replica_set(body))
        elif kind not in KINDS:
            self._wake(self._cache.put_child(body))

    def drop(self, kind: str, body: Body, /) -> None:
        """Remove an object that is gone."""
        if kind in KINDS:
            self._inventory.drop(kind, body)
        if kind == TURBODEPLOYMENT:
            key = key_of(body)
            self._cache.deployments.drop(body)
            if key not in self._cache.deployments:  # else another one bears its name
                self._queue.forget(key)
                self._queue.add(key)  # so that nothing is kept of it; its children follow by themselves
        elif kind == TURBOACCELERATOR:
            if self._cache.accelerators.drop(body):
                self._wake_all()
        elif kind == TURBODRAFT:
            if self._cache.drafts.drop(body):
                self._wake_all(body["metadata"]["namespace"])
        elif kind == "Pod":
            self._wake(self._cache.pods.drop(body))
        elif kind == "ReplicaSet":
            self._wake(self._cache.pods.drop_replica_set(body))
        elif kind not in KINDS:
            self._wake(self._cache.drop_child(body))

    def keep_only(self, kind: str, uids: Set[str], version: str, namespace: str | None, /) -> None:
        """Drop what a full list of one namespace, or with None of all, does not show."""
        if kind in KINDS:
            self._inventory.keep_only(kind, uids, version, namespace)
        if kind == TURBODEPLOYMENT:
            for key in self._cache.deployments.keep_only(uids, version, namespace):
                self._queue.add(key)
        elif kind == TURBOACCELERATOR:
            if self._cache.accelerators.keep_only(uids, version):
                self._wake_all()
        elif kind == TURBODRAFT:
            for place in {key.namespace for key in self._cache.drafts.keep_only(uids, version, namespace)}:
                self._wake_all(place)
        elif kind in ("Pod", "ReplicaSet"):
            self._wake(self._cache.pods.keep_only(kind, uids, namespace))
        elif kind not in KINDS:
            self._wake(self._cache.keep_children(kind, uids, version, namespace))

    def _wake(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self._inventory.moved = True  # whose a pod is may have come to light
            self._queue.add(key)

    def _wake_all(self, namespace: str | None = None) -> None:
        for key in sorted(self._cache.deployments):
            if namespace in (None, key.namespace):
                self._queue.add(key)


def _read(kind: str, body: Body, read: Callable[[], _View]) -> _View | None:
    """Read an object; None, and a line in the log, where it was stored before a rule of the API was."""
    try:
        return read()
    except InvalidObject as error:
        log.warning("%s is left out: %s", kind, error, extra={"object": body["metadata"]["name"]})
        return None
