"""What is held of an object that a watch has shown, and which of two sightings is the newer one.

Resource versions of one API server grow (KEP-5504), so the larger one is the newer one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from turbo_operator.api import TURBODRAFT
from turbo_operator.snapshot import DraftView


class Versioned(Protocol):
    """Whatever is held at a version."""

    @property
    def resource_version(self) -> str:
        """As the API server gave it."""


@dataclass(frozen=True, slots=True)
class CachedObject:
    """One object as it was last seen, projected."""

    resource_version: str
    uid: str
    value: Any


class Tombstones:
    """Uids whose deletion was seen, each until a list of its kind that is newer than the deletion."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, str]] = {}  # kind, and resource version of the deletion

    def hides(self, meta: Mapping[str, Any]) -> bool:
        """Whether an object with this metadata is from before its deletion.

        A watch by label calls it a deletion too when an object loses the label, at that very version; what is
        deleted in truth is never seen at this version or a newer one. So whatever is lives.
        """
        _, at = self._seen.get(meta["uid"], (None, None))
        version = meta["resourceVersion"]
        return at is not None and version != at and not is_newer(version, at)

    def add(self, kind: str, uid: str, version: str) -> None:
        """One is gone, as of a version."""
        self._seen[uid] = kind, version

    def listed(self, kind: str, version: str) -> None:
        """A list of the kind was taken at a version: what was gone before it comes no more."""
        old = [uid for uid, (what, at) in self._seen.items() if what == kind and is_newer(version, at)]
        for uid in old:
            del self._seen[uid]


class HeldDrafts:
    """All TurboDrafts, by namespace and name."""

    def __init__(self, gone: Tombstones) -> None:
        """`gone`: uids whose deletion was seen, of any kind."""
        self._gone = gone
        self._held: dict[tuple[str, str], CachedObject] = {}

    def put(self, body: Mapping[str, Any], view: DraftView | None) -> bool:
        """A TurboDraft as a watch or a list delivers it, `view` None if it cannot be read; whether that is
        news.
        """
        meta = body["metadata"]
        place = (meta["namespace"], meta["name"])
        held = self._held.get(place)
        if self._gone.hides(meta) or not supersedes(meta, held):
            return False
        self._held[place] = CachedObject(meta["resourceVersion"], meta["uid"], view)
        return view != (None if held is None else held.value)

    def drop(self, body: Mapping[str, Any]) -> bool:
        """A TurboDraft is gone; whether it was known."""
        meta = body["metadata"]
        place = (meta["namespace"], meta["name"])
        self._gone.add(TURBODRAFT, meta["uid"], meta["resourceVersion"])
        held = self._held.get(place)
        if held is None or held.uid != meta["uid"]:
            return False
        del self._held[place]
        return True

    def keep(self, uids: Iterable[str], resource_version: str, namespace: str | None) -> set[str]:
        """Drop what a full list does not show; the namespaces that lost one."""
        there = set(uids)
        self._gone.listed(TURBODRAFT, resource_version)
        missing = [
            place
            for place, held in self._held.items()
            if namespace in (None, place[0])
            and held.uid not in there
            and not is_newer(held.resource_version, resource_version)
        ]
        for place in missing:
            del self._held[place]
        return {place[0] for place in missing}

    def get(self, namespace: str, name: str) -> DraftView | None:
        """One that can be read."""
        held = self._held.get((namespace, name))
        return None if held is None else held.value

    def of(self, namespace: str, deployment: str) -> tuple[DraftView, ...]:
        """The candidates of one TurboDeployment that can be read, oldest first."""
        views: list[DraftView] = [
            held.value for (where, _), held in self._held.items() if where == namespace and held.value
        ]
        own = [view for view in views if view.deployment == deployment]
        return tuple(sorted(own, key=lambda view: (view.created, view.name)))


def supersedes(meta: Mapping[str, Any], held: Versioned | None) -> bool:
    """Whether an object with this metadata is newer than what is held."""
    return held is None or is_newer(meta["resourceVersion"], held.resource_version)


def is_newer(version: str, than: str) -> bool:
    """Of two resource versions."""
    try:
        return int(version) > int(than)
    except ValueError:  # an API server that does not count: then the last to arrive is taken for the newest
        return True
