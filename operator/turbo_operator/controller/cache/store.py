"""What the watches have shown, projected, our own writes folded in at once; read as one frozen `Snapshot`.

A child is ours by its owner reference, whatever its labels say. Watches lag behind our own writes: whatever a
write returned is put in here, and an older event does not undo it. A deletion that we requested is remembered
by uid until its event comes or a list shows it. No method calls the API server.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from turbo_operator.api import TURBOACCELERATOR, TURBODEPLOYMENT, TURBODRAFT
from turbo_operator.controller.cache.object_versions import (
    Key,
    ObjectStore,
    Tombstones,
    is_newer,
    supersedes,
)
from turbo_operator.controller.cache.pods import Pods, Root
from turbo_operator.controller.cache.projection import child, controller, trains
from turbo_operator.controller.field_ownership import added_fields, owned_fields
from turbo_operator.snapshot import Accelerator, ChildView, DraftView, PodView, Snapshot, TrainPod

__all__ = ["Cache", "CachedChild", "Key"]

Place = tuple[str, str]  # kind and name of a child

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CachedChild:
    """A child and what decides whether it is written again."""

    key: Key
    view: ChildView
    resource_version: str
    owner_uid: str  # of the TurboDeployment that controls it
    fields: Mapping[str, Any]  # that we own, as FieldsV1
    added: tuple[str, ...]  # fields of somebody else that have no place in it

    @property
    def place(self) -> Place:
        """Kind and name."""
        return self.view.kind, self.view.name


class Cache:
    """All TurboDeployments, accelerators, drafts, children and pods that the operator knows."""

    def __init__(self) -> None:
        self._tombstones = Tombstones()
        self.deployments: ObjectStore[Mapping[str, Any]] = ObjectStore(TURBODEPLOYMENT, self._tombstones)
        self.accelerators: ObjectStore[Accelerator] = ObjectStore(TURBOACCELERATOR, self._tombstones)
        self.drafts: ObjectStore[DraftView] = ObjectStore(TURBODRAFT, self._tombstones)
        self.pods = Pods()
        self._children: dict[Key, dict[Place, CachedChild]] = {}
        self._by_uid: dict[str, CachedChild] = {}  # the same children
        # By uid the kind and namespace of what we deleted, until its event comes or a list shows it gone.
        self._deleted: dict[str, tuple[str, str]] = {}

    def put_deployment(self, body: Mapping[str, Any]) -> bool:
        """Store a TurboDeployment, without managedFields, as it was seen or written; whether it is new."""
        meta = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
        return self.deployments.put(body, {**body, "metadata": meta})

    def drafts_of(self, key: Key) -> tuple[DraftView, ...]:
        """Return the candidates of one TurboDeployment that can be read, oldest first."""
        own = [
            draft
            for place, draft in self.drafts.items()
            if (place.namespace, draft.deployment) == (key.namespace, key.name)
        ]
        return tuple(sorted(own, key=lambda draft: (draft.created, draft.name)))

    def accelerators_by_name(self) -> dict[str, Accelerator]:
        """Return the accelerators that can be planned with."""
        return {key.name: accelerator for key, accelerator in self.accelerators.items()}

    # Children

    def put_child(self, body: Mapping[str, Any]) -> set[Key]:
        """Store a child as a watch or a write shows it; the keys that this is news to. Skip strangers."""
        meta, owner = body["metadata"], controller(body)
        before = self._by_uid.get(meta["uid"])
        if not supersedes(meta, before) or meta["uid"] in self._deleted or self._tombstones.hides(meta):
            return set()
        if owner is None or owner["kind"] != TURBODEPLOYMENT:
            return self._remove_child(before, disowned=True)
        new = CachedChild(
            key=Key(meta["namespace"], owner["name"]),
            view=child(body),
            resource_version=meta["resourceVersion"],
            owner_uid=owner["uid"],
            fields=owned_fields(meta.get("managedFields") or ()),
            added=added_fields(body["kind"], meta.get("managedFields") or ()),
        )
        if before is not None and replace(before, resource_version=new.resource_version) == new:
            self._add_child(new)
            return set()
        namesake = self._children.get(new.key, {}).get(new.place)
        if not supersedes(meta, namesake):
            return set()
        if namesake is not None and namesake.view.uid != new.view.uid:
            self._remove_child(namesake)
        lost = self._remove_child(before, disowned=True) if before and before.key != new.key else set()
        self._add_child(new)
        return {new.key, *lost}

    def drop_child(self, body: Mapping[str, Any]) -> set[Key]:
        """Remove a child that was deleted, or lost the label that its watch goes by; the keys concerned."""
        meta, owner = body["metadata"], controller(body)
        self._deleted.pop(meta["uid"], None)
        cached = self._by_uid.get(meta["uid"])
        if cached is not None and is_newer(cached.resource_version, meta["resourceVersion"]):
            return set()  # it got the label back since
        if cached is None and (owner is None or owner["kind"] != TURBODEPLOYMENT):
            return set()
        self._tombstones.add(body["kind"], meta["uid"], meta["resourceVersion"])
        if cached is None:
            return {Key(meta["namespace"], owner["name"])} if owner is not None else set()
        if cached.view.terminating:
            details = {"object": str(cached.key), "kind": cached.view.kind, "child": cached.view.name}
            log.info("removed", extra=details)
        return self._remove_child(cached)

    def mark_deleted(self, key: Key, view: ChildView) -> None:
        """Remove a child that we deleted; events of its last moments change nothing."""
        self._deleted[view.uid] = view.kind, key.namespace
        self._remove_child(self._by_uid.get(view.uid))

    def keep_children(
        self, kind: str, uids: Iterable[str], resource_version: str, namespace: str | None = None
    ) -> set[Key]:
        """Drop older children of a kind that a full list does not show; the keys that lost."""
        listed = set(uids)
        self._tombstones.expire(kind, resource_version)
        for uid, (deleted_kind, where) in list(self._deleted.items()):
            if deleted_kind == kind and namespace in (None, where) and uid not in listed:
                del self._deleted[uid]
                self._tombstones.add(kind, uid, resource_version)
        missing = [
            cached
            for uid, cached in self._by_uid.items()
            if cached.view.kind == kind
            and namespace in (None, cached.key.namespace)
            and uid not in listed
            and not is_newer(cached.resource_version, resource_version)
        ]
        return {key for cached in missing for key in self._remove_child(cached)}

    def children(self, key: Key, uid: str) -> dict[Place, CachedChild]:
        """Return the children, by kind and name, that the TurboDeployment with this uid controls."""
        children = self._children.get(key, {})
        return {place: cached for place, cached in children.items() if cached.owner_uid == uid}

    def _add_child(self, new: CachedChild) -> None:
        view = new.view
        self._by_uid[view.uid] = new
        self._children.setdefault(new.key, {})[new.place] = new
        if view.kind in ("Deployment", "Job"):
            is_training = view.kind == "Job" and trains(view.name)
            self.pods.put_root(view.uid, Root(new.key, new.owner_uid, view.plan_hash or "", is_training))

    def _remove_child(self, cached: CachedChild | None, *, disowned: bool = False) -> set[Key]:
        """Remove a child, and with the last one its TurboDeployment's entry; the key that lost."""
        if cached is None or self._by_uid.pop(cached.view.uid, None) is None:
            return set()
        children = self._children[cached.key]
        del children[cached.place]
        if not children:
            del self._children[cached.key]
        self.pods.drop_root(cached.view.uid, disowned=disowned)
        return {cached.key}

    def observe(self, key: Key, uid: str) -> Snapshot:
        """Return what one reconcile of the TurboDeployment with this uid reads, but for the model's facts."""
        children, pods = self.children(key, uid), self.pods.of(key, uid)
        return Snapshot(
            accelerators=self.accelerators_by_name(),
            children=tuple(children[place].view for place in sorted(children)),
            pods=tuple(pod for pod in pods if isinstance(pod, PodView)),
            trainings=tuple(pod for pod in pods if isinstance(pod, TrainPod)),
        )
