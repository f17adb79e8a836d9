"""What the watches have shown, projected, our own writes folded in at once; read as one frozen `Snapshot`.

A child is ours by its owner reference, whatever its labels say. Watches lag behind our own writes: whatever a
write returned is put in here, and an older event does not undo it. No method calls the API server.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from turbo_operator.api import TURBODEPLOYMENT
from turbo_operator.commitments import Budget
from turbo_operator.controller.cache.groups import merge_groups
from turbo_operator.controller.cache.object_versions import Key, ObjectStore, is_newer, key_of
from turbo_operator.controller.cache.pods import Pods, Root
from turbo_operator.controller.cache.projection import child, controller, deployment, trains
from turbo_operator.controller.field_ownership import added_fields, owned_fields
from turbo_operator.inventory.supply import Owner
from turbo_operator.reference import Reference
from turbo_operator.resources import CHILDREN, WORKLOADS
from turbo_operator.snapshot import (
    Accelerator,
    ChildView,
    DraftView,
    FetchPod,
    PodView,
    Presence,
    Snapshot,
    TrainPod,
)

__all__ = ["Cache", "CachedChild", "Key"]

Place = tuple[str, str]  # kind and name of a child

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CachedChild:
    """A child and what decides whether it is written again."""

    key: Key  # of the TurboDeployment that controls it
    view: ChildView
    resource_version: str = field(compare=False)
    owner_uid: str  # of the TurboDeployment
    fields: Mapping[str, Any]  # that we own, as FieldsV1
    added: tuple[str, ...]  # fields of somebody else that have no place in it


class Cache:
    """All TurboDeployments, accelerators, drafts, children and pods that the operator knows."""

    def __init__(self) -> None:
        self.deployments: ObjectStore[Mapping[str, Any]] = ObjectStore()
        self.accelerators: ObjectStore[Accelerator] = ObjectStore()
        self.drafts: ObjectStore[DraftView] = ObjectStore()
        self.budgets: ObjectStore[Budget] = ObjectStore()
        self.pods = Pods()
        self.references: dict[Key, Reference] = {}  # Deployments that a plan is recommended for
        self._reference_pods: dict[str, Key] = {}  # by uid
        self.presences: dict[tuple[str, str | None], Presence] = {}  # by kind, and namespace or None for all
        self._stores: dict[str, ObjectStore[CachedChild]] = {kind: ObjectStore() for kind in CHILDREN}
        self._children: defaultdict[Key, dict[Place, CachedChild]] = defaultdict(dict)  # the same by owner

    def put_deployment(self, body: Mapping[str, Any]) -> bool:
        """Store a TurboDeployment as it was seen or written; whether it is new."""
        return self.deployments.put(body, deployment(body))

    def drafts_of(self, key: Key) -> tuple[DraftView, ...]:
        """Return the candidates of one TurboDeployment that can be read, oldest first."""
        own = [view for at, view in self.drafts.items() if Key(at.namespace, view.deployment or "") == key]
        return tuple(sorted(own, key=lambda draft: (draft.created, draft.name)))

    def budgets_of(self, namespace: str) -> tuple[Budget, ...]:
        """Return the TurboBudgets of a namespace by name."""
        return tuple(budget for key, budget in sorted(self.budgets.items()) if key.namespace == namespace)

    def keys(self, namespace: str) -> set[Key]:
        """Return the TurboDeployments of a namespace that there are, or that left children or pods."""
        known = (self.deployments, self._children, self.pods.keys())
        return {key for keys in known for key in keys if key.namespace == namespace}

    def owners_of(self, key: Key) -> set[str]:
        """Return the uids of the TurboDeployments of a name that have children or pods."""
        children = {cached.owner_uid for cached in self._children.get(key, {}).values()}
        return children | self.pods.owners_of(key)

    def accelerators_by_name(self) -> dict[str, Accelerator]:
        """Return the accelerators that can be planned with."""
        return {key.name: accelerator for key, accelerator in self.accelerators.items()}

    def owner_of(self, pod_uid: str) -> Owner | None:
        """Return whose place a pod takes; None for a stranger's, a router's, and one of an earlier object."""
        root = self.pods.root_of(pod_uid)
        if root is None and pod_uid in self._reference_pods:  # the plan is to take its place
            return self._reference_pods[pod_uid].owner
        if root is None or root.routes or self.deployments.get(root.key, root.owner_uid) is None:
            return None
        return root.owner

    def presence(self, kind: str, namespace: str) -> Presence:
        """Whether a kind that the cluster may lack can be used in a namespace."""
        everywhere = self.presences.get((kind, None), Presence.UNKNOWN)
        return self.presences.get((kind, namespace), everywhere)

    def put_reference(self, key: Key, reference: Reference, uids: Set[str]) -> bool:
        """Store the Deployment that a TurboDeployment names, with its pods; whether those are others."""
        before = {uid for uid, owner in self._reference_pods.items() if owner == key}
        self.references[key] = reference
        for uid in before - uids:
            del self._reference_pods[uid]
        for uid in uids:
            self._reference_pods.setdefault(uid, key)  # of two that name it, the first
        return before != {uid for uid in uids if self._reference_pods[uid] == key}

    def drop_reference(self, key: Key) -> None:
        """Forget the Deployment that a TurboDeployment named."""
        self.references.pop(key, None)
        self._reference_pods = {uid: owner for uid, owner in self._reference_pods.items() if owner != key}

    # Children

    def put_child(self, body: Mapping[str, Any]) -> set[Key]:
        """Store a child as a watch or a write shows it; the keys that this is news to. Skip strangers."""
        meta, owner, store = body["metadata"], controller(body), self._stores[body["kind"]]
        before = store.get(key_of(body))
        if not store.is_news(body):
            return set()
        if owner is None or owner["kind"] != TURBODEPLOYMENT:
            is_lost = store.discard(key_of(body), meta["uid"])
            return self._replace(before, None, disowned=True) if is_lost else set()
        new = CachedChild(
            key=Key(meta["namespace"], owner["name"]),
            view=child(body),
            resource_version=meta["resourceVersion"],
            owner_uid=owner["uid"],
            fields=owned_fields(meta.get("managedFields") or ()),
            added=added_fields(body["kind"], meta.get("managedFields") or ()),
        )
        is_new = store.put(body, new)
        moved = before is not None and before.view.uid == new.view.uid and before.key != new.key
        keys = self._replace(before, new, disowned=moved)
        return keys if is_new else set()

    def drop_child(self, body: Mapping[str, Any]) -> set[Key]:
        """Remove a child that was deleted, or lost the label that its watch goes by; the keys concerned."""
        meta, owner, store = body["metadata"], controller(body), self._stores[body["kind"]]
        cached = store.get(key_of(body), meta["uid"])
        if cached is not None and is_newer(cached.resource_version, meta["resourceVersion"]):
            return set()  # it got the label back since
        if cached is None and (owner is None or owner["kind"] != TURBODEPLOYMENT):
            return set()
        store.drop(body)
        if cached is None:
            return {Key(meta["namespace"], owner["name"])} if owner is not None else set()
        if cached.view.terminating:
            details = {"object": str(cached.key), "kind": cached.view.kind, "child": cached.view.name}
            log.info("removed", extra=details)
        return self._replace(cached, None)

    def mark_deleted(self, key: Key, view: ChildView) -> None:
        """Remove a child that we deleted; events of its last moments change nothing."""
        place, store = Key(key.namespace, view.name), self._stores[view.kind]
        cached = store.get(place, view.uid)
        if store.mark_deleted(place, view.uid):
            self._replace(cached, None)

    def keep_children(
        self, kind: str, uids: Iterable[str], resource_version: str, namespace: str | None = None
    ) -> set[Key]:
        """Drop older children of a kind that a full list does not show; the keys that lost."""
        missing = self._stores[kind].take_missing(uids, resource_version, namespace)
        return {key for cached in missing.values() for key in self._replace(cached.value, None)}

    def children(self, key: Key, uid: str) -> dict[Place, CachedChild]:
        """Return the children, by kind and name, that the TurboDeployment with this uid controls."""
        children = self._children.get(key, {})
        return {place: cached for place, cached in children.items() if cached.owner_uid == uid}

    def _replace(
        self, before: CachedChild | None, after: CachedChild | None, *, disowned: bool = False
    ) -> set[Key]:
        """Follow a change of a child: its TurboDeployments, and what their pods come from."""
        if before is not None:
            del self._children[before.key][before.view.kind, before.view.name]
            if not self._children[before.key]:
                del self._children[before.key]
            if after is None or after.view.uid != before.view.uid or disowned:
                self.pods.drop_root(before.view.uid, disowned=disowned)
        if after is not None:
            view = after.view
            self._children[after.key][view.kind, view.name] = after
            if view.kind in (*WORKLOADS, "Job"):
                is_training = view.kind == "Job" and trains(view.name)
                is_router = view.kind in WORKLOADS and view.plan_hash is None
                root = Root(after.key, after.owner_uid, view.plan_hash or "", is_training, is_router)
                self.pods.put_root(view.uid, root)
        return {cached.key for cached in (before, after) if cached is not None}

    def observe(self, key: Key, uid: str) -> Snapshot:
        """Return what one reconcile of the TurboDeployment with this uid reads, but for the model's facts."""
        children, pods = self.children(key, uid), self.pods.of(key, uid)
        return Snapshot(
            accelerators=self.accelerators_by_name(),
            children=tuple(children[place].view for place in sorted(children)),
            pods=merge_groups(pod for pod in pods if isinstance(pod, PodView) and pod.plan_hash),
            routers=tuple(pod for pod in pods if isinstance(pod, PodView) and not pod.plan_hash),
            fetching=tuple(pod for pod in pods if isinstance(pod, FetchPod)),
            trainings=tuple(pod for pod in pods if isinstance(pod, TrainPod)),
            releasing=self.pods.releasing(key, uid),
        )
