"""Objects as watches and lists have shown them: the newest state wins, whatever order it arrives in.

Resource versions of one API server grow (KEP-5504), so the larger one is the newer one. A deletion that was
seen is remembered by uid until a later list: what was requested before it may be answered after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from turbo_operator.inventory.supply import Owner

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Namespace and name of an object; the namespace of a cluster-scoped one is empty."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def owner(self) -> Owner:
        """The same, for the inventory."""
        return Owner(self.namespace, self.name)


class Versioned(Protocol):
    """Whatever is cached at a resource version."""

    @property
    def resource_version(self) -> str:
        """The version as the API server gave it."""


@dataclass(frozen=True, slots=True)
class CachedObject(Generic[Value]):
    """One object as it was last seen, projected; `value` is None where it cannot be read."""

    resource_version: str
    uid: str
    value: Value | None


class Tombstones:
    """Uids whose deletion was seen, each until a list of its kind that is newer than the deletion."""

    def __init__(self) -> None:
        self._deletions: dict[str, tuple[str, str]] = {}  # kind, and resource version of the deletion

    def hides(self, meta: Mapping[str, Any]) -> bool:
        """Whether an object with this metadata is from before its deletion.

        A watch by label reports a deletion too when an object loses the label, at that very version; what is
        really deleted is never seen at this version or a newer one. So whatever is seen so is alive.
        """
        _, deletion = self._deletions.get(meta["uid"], (None, None))
        version = meta["resourceVersion"]
        return deletion is not None and version != deletion and not is_newer(version, deletion)

    def add(self, kind: str, uid: str, version: str) -> None:
        """Record a deletion as of a version."""
        self._deletions[uid] = kind, version

    def expire(self, kind: str, version: str) -> None:
        """Forget deletions that are older than a list of the kind: nothing older than it arrives any more."""
        for uid, (deleted_kind, deletion) in list(self._deletions.items()):
            if deleted_kind == kind and is_newer(version, deletion):
                del self._deletions[uid]


class ObjectStore(Generic[Value]):
    """All objects of one kind, by namespace and name. The tombstones may be shared between kinds."""

    def __init__(self, kind: str, tombstones: Tombstones) -> None:
        self._kind = kind
        self._tombstones = tombstones
        self._objects: dict[Key, CachedObject[Value]] = {}

    def __iter__(self) -> Iterator[Key]:
        return iter(self._objects)

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, key: Key) -> Value | None:
        """Return the value of an object; None where there is none, or none that can be read."""
        cached = self._objects.get(key)
        return None if cached is None else cached.value

    def items(self) -> Iterator[tuple[Key, Value]]:
        """Iterate over the objects that can be read."""
        return ((key, cached.value) for key, cached in self._objects.items() if cached.value is not None)

    def put(self, body: Mapping[str, Any], value: Value | None) -> bool:
        """Store an object as a watch, a list or a write shows it; whether its value is new."""
        meta, key = body["metadata"], key_of(body)
        cached = self._objects.get(key)
        if self._tombstones.hides(meta) or not supersedes(meta, cached):
            return False
        self._objects[key] = CachedObject(meta["resourceVersion"], meta["uid"], value)
        return value != (None if cached is None else cached.value)

    def drop(self, body: Mapping[str, Any]) -> bool:
        """Remove a deleted object, unless another one has its name; whether a readable one was lost."""
        meta, key = body["metadata"], key_of(body)
        self._tombstones.add(self._kind, meta["uid"], meta["resourceVersion"])
        cached = self._objects.get(key)
        if cached is None or cached.uid != meta["uid"]:
            return False
        del self._objects[key]
        return cached.value is not None

    def keep_only(self, uids: Iterable[str], version: str, namespace: str | None = None) -> set[Key]:
        """Drop what a full list of one namespace, or with None of all, does not show; what was lost.

        A watch that was cut off for long enough misses deletions. What is newer than the list stays.
        """
        listed = set(uids)
        self._tombstones.expire(self._kind, version)
        missing = [
            key
            for key, cached in self._objects.items()
            if namespace in (None, key.namespace)
            and cached.uid not in listed
            and not is_newer(cached.resource_version, version)
        ]
        lost = {key: self._objects.pop(key) for key in missing}
        for cached in lost.values():
            self._tombstones.add(self._kind, cached.uid, version)
        return {key for key, cached in lost.items() if cached.value is not None}


def key_of(body: Mapping[str, Any]) -> Key:
    """Return the key of an object."""
    return Key(body["metadata"].get("namespace") or "", body["metadata"]["name"])


def supersedes(meta: Mapping[str, Any], cached: Versioned | None) -> bool:
    """Whether an object with this metadata is newer than what is cached."""
    return cached is None or is_newer(meta["resourceVersion"], cached.resource_version)


def is_newer(version: str, than: str) -> bool:
    """Compare two resource versions."""
    try:
        return int(version) > int(than)
    except ValueError:  # an API server that does not count: the last to arrive is taken for the newest
        return True
