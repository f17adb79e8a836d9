"""Whom what is watched concerns: the ledger counts, the cache knows what is ours, and keys are woken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.inventory.store import KINDS, InventoryStore


class Feed:
    """Takes what watches and lists show of children, pods, nodes and quotas. `wake` has a key looked at."""

    def __init__(self, cache: Cache, ledger: InventoryStore, wake: Callable[[Key], None]) -> None:
        self._cache = cache
        self._ledger = ledger
        self._wake = wake

    def put(self, kind: str, body: Mapping[str, Any], /) -> None:
        """An object as it is now."""
        if kind in KINDS:
            self._ledger.put(kind, body)
        if kind == "Pod":
            self._wake_all(self._cache.pods.put(body))
        elif kind == "ReplicaSet":
            self._wake_all(self._cache.pods.put_replica_set(body))
        elif kind not in KINDS:
            self._wake_all(self._cache.put_child(body))

    def drop(self, kind: str, body: Mapping[str, Any], /) -> None:
        """It is gone."""
        if kind in KINDS:
            self._ledger.drop(kind, body)
        if kind == "Pod":
            self._wake_all(self._cache.pods.drop(body))
        elif kind == "ReplicaSet":
            self._wake_all(self._cache.pods.drop_replica_set(body))
        elif kind not in KINDS:
            self._wake_all(self._cache.drop_child(body))

    def keep_only(self, kind: str, uids: Set[str], version: str, namespace: str | None, /) -> None:
        """Drop what a full list of one namespace, or with None of all, does not show."""
        if kind in KINDS:
            self._ledger.keep_only(kind, uids, version, namespace)
        if kind in ("Pod", "ReplicaSet"):
            self._wake_all(self._cache.pods.keep_only(kind, uids, namespace))
        elif kind not in KINDS:
            self._wake_all(self._cache.keep_only(kind, uids, version, namespace))

    def _wake_all(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self._ledger.moved = True  # whose a pod is may have come to light
            self._wake(key)
