"""Objects as watches and lists have shown them: the newest state wins, whatever order it arrives in.

Resource versions of one API server grow (KEP-5504), so the larger one is the newer one. A deletion that was
seen is remembered by uid until a later list: what was requested before it may be answered after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

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


@dataclass(frozen=True, slots=True)
class CachedObject(Generic[Value]):
    """One object as it was last seen, projected; `value` is None where it cannot be read."""

    resource_version: str
    uid: str
    value: Value | None


class ObjectStore(Generic[Value]):
    """All objects of one kind, by namespace and name."""

    def __init__(self) -> None:
        self._objects: dict[Key, CachedObject[Value]] = {}
        # By uid the namespace and resource version of deletions, each until a newer list. Of what we deleted
        # ourselves the version is None until its event comes or a list shows it gone.
        self._deletions: dict[str, tuple[str, str | None]] = {}

    def __iter__(self) -> Iterator[Key]:
        return iter(self._objects)

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, key: Key, uid: str | None = None) -> Value | None:
        """Return the value of an object, with a uid of that very one; None where none can be read."""
        cached = self._objects.get(key)
        return cached.value if cached is not None and uid in (None, cached.uid) else None

    def items(self) -> Iterator[tuple[Key, Value]]:
        """Iterate over the objects that can be read."""
        return ((key, cached.value) for key, cached in self._objects.items() if cached.value is not None)

    def put(self, body: Mapping[str, Any], value: Value | None) -> bool:
        """Store an object as a watch, a list or a write shows it; whether its value is new."""
        if not self.is_news(body):
            return False
        meta, key = body["metadata"], key_of(body)
        before = self.get(key)
        self._objects[key] = CachedObject(meta["resourceVersion"], meta["uid"], value)
        return value != before

    def is_news(self, body: Mapping[str, Any]) -> bool:
        """Whether an object is newer than what has its name here, and was not deleted since.

        A watch by label reports a deletion too when an object loses the label, at that very version; what is
        really deleted is never seen at this version or a newer one. So whatever is seen so is alive.
        """
        version, uid = body["metadata"]["resourceVersion"], body["metadata"]["uid"]
        cached = self._objects.get(key_of(body))
        if cached is not None and not is_newer(version, cached.resource_version):
            return False
        _, deletion = self._deletions.get(uid, ("", version))
        return deletion is not None and (version == deletion or is_newer(version, deletion))

    def drop(self, body: Mapping[str, Any]) -> bool:
        """Remove a deleted object, unless another one has its name; whether a readable one was lost."""
        return self.mark_deleted(key_of(body), body["metadata"]["uid"], body["metadata"]["resourceVersion"])

    def mark_deleted(self, key: Key, uid: str, version: str | None = None) -> bool:
        """Remove an object that was deleted at a version, or with None by ourselves; whether it was lost."""
        self._deletions[uid] = key.namespace, version
        return self.discard(key, uid)

    def discard(self, key: Key, uid: str) -> bool:
        """Remove an object that may come back; whether a readable one was lost."""
        if key not in self._objects or self._objects[key].uid != uid:
            return False
        return self._objects.pop(key).value is not None

    def keep_only(self, uids: Iterable[str], version: str, namespace: str | None = None) -> set[Key]:
        """Drop what a full list of one namespace, or with None of all, does not show; what was lost."""
        lost = self.take_missing(uids, version, namespace)
        for key, cached in lost.items():
            self._deletions[cached.uid] = key.namespace, version
        return {key for key, cached in lost.items() if cached.value is not None}

    def take_missing(
        self, uids: Iterable[str], version: str, namespace: str | None
    ) -> dict[Key, CachedObject[Value]]:
        """Remove what a full list does not show, which may come back.

        A watch that was cut off for long enough misses deletions. What is newer than the list stays.
        """
        listed = set(uids)
        for uid, (where, deletion) in list(self._deletions.items()):
            if deletion is None and namespace in (None, where) and uid not in listed:
                self._deletions[uid] = where, version
            elif deletion is not None and is_newer(version, deletion):  # nothing older arrives any more
                del self._deletions[uid]
        missing = {
            key: cached
            for key, cached in self._objects.items()
            if namespace in (None, key.namespace)
            and cached.uid not in listed
            and not is_newer(cached.resource_version, version)
        }
        self._objects = {key: cached for key, cached in self._objects.items() if key not in missing}
        return missing


def key_of(body: Mapping[str, Any]) -> Key:
    """Return the key of an object."""
    return Key(body["metadata"].get("namespace") or "", body["metadata"]["name"])


def is_newer(version: str, than: str) -> bool:
    """Compare two resource versions."""
    try:
        return int(version) > int(than)
    except ValueError:  # an API server that does not count: the last to arrive is taken for the newest
        return True
