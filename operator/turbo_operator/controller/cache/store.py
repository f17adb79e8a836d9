"""What the watches have shown, projected, what we wrote folded in at once; read as one frozen `Observed`.

A child is ours by its owner reference, whatever its labels say. Watches lag behind our own writes. Whatever a
write returned is put in here, and an older event does not undo it: resource versions of one API server grow
(KEP-5504), so the larger one is the newer one. A deletion that we asked for is remembered by uid until its
event comes or a list shows it, one that was seen until a later list: what was asked before it may be answered
after it. No method calls the API server.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from turbo_operator.api import TURBOACCELERATOR, TURBODEPLOYMENT
from turbo_operator.controller.cache.object_versions import (
    CachedObject,
    HeldDrafts,
    Tombstones,
    is_newer,
    supersedes,
)
from turbo_operator.controller.cache.pods import Key, Pods, Root
from turbo_operator.controller.cache.projection import child, controller, trains
from turbo_operator.controller.field_ownership import added_fields, owned_fields
from turbo_operator.snapshot import Accelerator, ChildView, PodView, Snapshot, TrainPod

__all__ = ["Cache", "HeldChild", "Key"]

_Place = tuple[str, str]  # kind and name

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HeldChild:
    """A child and what decides whether it is written again."""

    key: Key
    view: ChildView
    resource_version: str
    owner_uid: str  # of the TurboDeployment that controls it
    fields: Mapping[str, Any]  # that we own, as FieldsV1
    added: tuple[str, ...]  # fields of somebody else that have no place in it

    @property
    def place(self) -> _Place:
        """Where it is among the children."""
        return self.view.kind, self.view.name


class Cache:
    """All TurboDeployments, accelerators, children and pods that the operator knows."""

    def __init__(self) -> None:
        self._deployments: dict[Key, CachedObject] = {}
        self._accelerators: dict[str, CachedObject] = {}
        self._children: dict[Key, dict[_Place, HeldChild]] = {}
        self._by_uid: dict[str, HeldChild] = {}  # the same children
        self.pods = Pods()
        self._gone = Tombstones()
        self.drafts = HeldDrafts(self._gone)
        # By uid the kind and namespace of what we deleted, until its event comes or a list shows it gone.
        self._deleted: dict[str, tuple[str, str]] = {}

    # TurboDeployments

    def put_deployment(self, body: Mapping[str, Any]) -> set[Key]:
        """A TurboDeployment as a watch or a write delivers it; its key if that is news."""
        meta = body["metadata"]
        key = Key(meta["namespace"], meta["name"])
        held = self._deployments.get(key)
        if self._gone.hides(meta) or not supersedes(meta, held):
            return set()
        kept = {**body, "metadata": {name: meta[name] for name in meta if name != "managedFields"}}
        self._deployments[key] = CachedObject(meta["resourceVersion"], meta["uid"], kept)
        return {key}

    def drop_deployment(self, body: Mapping[str, Any]) -> Key | None:
        """A TurboDeployment is gone, its children follow by themselves; None when another bears its name."""
        meta = body["metadata"]
        key = Key(meta["namespace"], meta["name"])
        self._gone.add(TURBODEPLOYMENT, meta["uid"], meta["resourceVersion"])
        held = self._deployments.get(key)
        if held is not None and held.uid != meta["uid"]:
            return None
        self._deployments.pop(key, None)
        return key

    def deployment(self, key: Key) -> Mapping[str, Any] | None:
        """The object as the API server holds it, without managedFields; None when there is none."""
        held = self._deployments.get(key)
        return None if held is None else held.value

    def all_keys(self) -> list[Key]:
        """Every TurboDeployment."""
        return sorted(self._deployments)

    # Accelerators

    def put_accelerator(self, body: Mapping[str, Any], row: Accelerator | None) -> bool:
        """A TurboAccelerator as a watch or a list delivers it, `row` None if it cannot be planned with.

        Returns whether this changes anything that the planner sees.
        """
        meta = body["metadata"]
        held = self._accelerators.get(meta["name"])
        if self._gone.hides(meta) or not supersedes(meta, held):
            return False
        self._accelerators[meta["name"]] = CachedObject(meta["resourceVersion"], meta["uid"], row)
        return row != (None if held is None else held.value)

    def drop_accelerator(self, body: Mapping[str, Any]) -> bool:
        """A TurboAccelerator is gone; whether the planner saw it."""
        meta = body["metadata"]
        self._gone.add(TURBOACCELERATOR, meta["uid"], meta["resourceVersion"])
        held = self._accelerators.get(meta["name"])
        if held is None or held.uid != meta["uid"]:
            return False
        del self._accelerators[meta["name"]]
        return held.value is not None

    def keep_accelerators(self, uids: Iterable[str], resource_version: str) -> bool:
        """Drop what a full list, taken at `resource_version`, does not show; whether the planner saw any."""
        there = set(uids)
        self._gone.listed(TURBOACCELERATOR, resource_version)
        missing = [
            name
            for name, held in self._accelerators.items()
            if held.uid not in there and not is_newer(held.resource_version, resource_version)
        ]
        rows = [self._accelerators.pop(name).value for name in missing]
        return any(row is not None for row in rows)

    def accelerators(self) -> dict[str, Accelerator]:
        """Those that can be planned with, by name."""
        return {name: held.value for name, held in self._accelerators.items() if held.value is not None}

    # Children

    def put_child(self, body: Mapping[str, Any]) -> set[Key]:
        """A child as a watch or a write delivers it; the keys that this is news to. Strangers are passed
        over.
        """
        meta, owner = body["metadata"], controller(body)
        before = self._by_uid.get(meta["uid"])
        if not supersedes(meta, before) or meta["uid"] in self._deleted or self._gone.hides(meta):
            return set()
        if owner is None or owner["kind"] != TURBODEPLOYMENT:
            return self._forget(before, disowned=True)
        new = HeldChild(
            key=Key(meta["namespace"], owner["name"]),
            view=child(body),
            resource_version=meta["resourceVersion"],
            owner_uid=owner["uid"],
            fields=owned_fields(meta.get("managedFields") or ()),
            added=added_fields(body["kind"], meta.get("managedFields") or ()),
        )
        if before is not None and replace(before, resource_version=new.resource_version) == new:
            self._hold(new)
            return set()
        namesake = self._children.get(new.key, {}).get(new.place)
        if not supersedes(meta, namesake):
            return set()
        if namesake is not None and namesake.view.uid != new.view.uid:
            self._forget(namesake)
        lost = self._forget(before, disowned=True) if before and before.key != new.key else set()
        self._hold(new)
        return {new.key, *lost}

    def drop_child(self, body: Mapping[str, Any]) -> set[Key]:
        """A child is gone, says a watch, or has lost the label that the watch goes by; the keys concerned."""
        meta, owner = body["metadata"], controller(body)
        self._deleted.pop(meta["uid"], None)
        held = self._by_uid.get(meta["uid"])
        if held is not None and is_newer(held.resource_version, meta["resourceVersion"]):
            return set()  # it got the label back since
        if held is None and (owner is None or owner["kind"] != TURBODEPLOYMENT):
            return set()
        self._gone.add(body["kind"], meta["uid"], meta["resourceVersion"])
        if held is None:
            return {Key(meta["namespace"], owner["name"])} if owner is not None else set()
        if held.view.terminating:
            what = {"object": str(held.key), "kind": held.view.kind, "child": held.view.name}
            log.info("removed", extra=what)
        return self._forget(held)

    def deleted(self, key: Key, view: ChildView) -> None:
        """We deleted a child: forget it now; events of its last moments change nothing."""
        self._deleted[view.uid] = view.kind, key.namespace
        self._forget(self._by_uid.get(view.uid))

    def children(self, key: Key, uid: str) -> dict[_Place, HeldChild]:
        """The children, by kind and name, that the TurboDeployment with this uid controls."""
        children = self._children.get(key, {})
        return {place: held for place, held in children.items() if held.owner_uid == uid}

    def _hold(self, held: HeldChild) -> None:
        self._by_uid[held.view.uid] = held
        self._children.setdefault(held.key, {})[held.place] = held
        if held.view.kind in ("Deployment", "Job"):
            hash_, trains_ = held.view.plan_hash or "", held.view.kind == "Job" and trains(held.view.name)
            self.pods.put_root(held.view.uid, Root(held.key, held.owner_uid, hash_, trains_))

    def _forget(self, held: HeldChild | None, *, disowned: bool = False) -> set[Key]:
        """Take one out, and with the last one its TurboDeployment's entry; the key that lost."""
        if held is None or self._by_uid.pop(held.view.uid, None) is None:
            return set()
        children = self._children[held.key]
        del children[held.place]
        if not children:
            del self._children[held.key]
        self.pods.drop_root(held.view.uid, disowned=disowned)
        return {held.key}

    # Reading

    def observe(self, key: Key, uid: str) -> Snapshot:
        """All that one reconcile of the TurboDeployment with this uid looks at, save the model's facts."""
        children, pods = self.children(key, uid), self.pods.of(key, uid)
        return Snapshot(
            accelerators=self.accelerators(),
            children=tuple(children[place].view for place in sorted(children)),
            pods=tuple(pod for pod in pods if isinstance(pod, PodView)),
            trainings=tuple(pod for pod in pods if isinstance(pod, TrainPod)),
        )

    def keep_only(
        self, kind: str, uids: Iterable[str], resource_version: str, namespace: str | None = None
    ) -> set[Key]:
        """Drop what a full list of a kind, taken at `resource_version`, does not show; the keys that lost.

        The list is one namespace's, or with None everybody's.
        A watch that was cut off for long enough misses deletions. What is newer than the list stays.
        """
        there = set(uids)
        self._gone.listed(kind, resource_version)

        def gone(key: Key, uid: str, version: str) -> bool:
            listed = namespace is None or key.namespace == namespace
            return listed and uid not in there and not is_newer(version, resource_version)

        if kind == TURBODEPLOYMENT:
            held_deployments = list(self._deployments.items())
            lost = {key for key, held in held_deployments if gone(key, held.uid, held.resource_version)}
            for key in lost:
                self._gone.add(kind, self._deployments.pop(key).uid, resource_version)
            return lost
        for uid, (what, where) in list(self._deleted.items()):
            if what == kind and namespace in (None, where) and uid not in there:
                del self._deleted[uid]
                self._gone.add(kind, uid, resource_version)
        lost_children = [
            held
            for held in self._by_uid.values()
            if held.view.kind == kind and gone(held.key, held.view.uid, held.resource_version)
        ]
        return {key for held in lost_children for key in self._forget(held)}
