"""What the watches have shown, projected, what we wrote folded in at once; read as one frozen `Observed`.

Watches lag behind our own writes. Whatever a write returned is put in here, and an older event does not
undo it: resource versions of one API server grow (KEP-5504), so the larger one is the newer one. A deletion
that we asked for is remembered by uid until its event comes. No method calls the API server.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from turbo_operator.api import LABEL_DEPLOYMENT, TURBODEPLOYMENT
from turbo_operator.observed import Accelerator, ChildView, Observed, PodView
from turbo_operator.ownership import owned_fields
from turbo_operator.projection import InspectPod, child, inspect_pod, is_inspect_pod, serving_pod
from turbo_runtime.contract import Load


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Which TurboDeployment."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Seen(NamedTuple):
    """What putting an object in has come to."""

    key: Key | None  # the TurboDeployment it belongs to; None when it is none of ours
    changed: bool  # whether anything is different that a reconcile looks at


@dataclass(frozen=True, slots=True)
class HeldChild:
    """A child and what decides whether it is written again."""

    view: ChildView
    resource_version: str
    owner_uid: str | None  # of the TurboDeployment that controls it
    fields: Mapping[str, Any]  # that we own, as FieldsV1


@dataclass(frozen=True, slots=True)
class _Held:
    resource_version: str
    uid: str
    value: Any


class Cache:
    """All TurboDeployments, accelerators, children, pods and loads that the operator knows."""

    def __init__(self) -> None:
        self._deployments: dict[Key, _Held] = {}
        self._accelerators: dict[str, Accelerator] = {}
        self._children: defaultdict[Key, dict[tuple[str, str], HeldChild]] = defaultdict(dict)
        self._pods: defaultdict[Key, dict[str, _Held]] = defaultdict(dict)
        self._loads: dict[tuple[str, str], Load] = {}
        self._deleted: set[str] = set()  # uids, until their events come

    # TurboDeployments

    def put_deployment(self, body: Mapping[str, Any]) -> Seen:
        """A TurboDeployment as a watch or a write delivers it."""
        meta = body["metadata"]
        key = Key(meta["namespace"], meta["name"])
        held = self._deployments.get(key)
        if held is not None and not _is_newer(meta["resourceVersion"], held.resource_version):
            return Seen(key, False)
        kept = {**body, "metadata": {name: meta[name] for name in meta if name != "managedFields"}}
        self._deployments[key] = _Held(meta["resourceVersion"], meta["uid"], kept)
        return Seen(key, True)

    def drop_deployment(self, body: Mapping[str, Any]) -> Key:
        """A TurboDeployment is gone; its children follow by themselves."""
        meta = body["metadata"]
        key = Key(meta["namespace"], meta["name"])
        held = self._deployments.get(key)
        if held is not None and held.uid == meta["uid"]:
            del self._deployments[key]
        return key

    def deployment(self, key: Key) -> Mapping[str, Any] | None:
        """The object as the API server holds it, without managedFields; None when there is none."""
        held = self._deployments.get(key)
        return None if held is None else held.value

    def all_keys(self) -> list[Key]:
        """Every TurboDeployment."""
        return sorted(self._deployments)

    # Accelerators

    def put_accelerator(self, accelerator: Accelerator) -> bool:
        """Whether this changes anything that the planner sees."""
        changed = self._accelerators.get(accelerator.name) != accelerator
        self._accelerators[accelerator.name] = accelerator
        return changed

    def drop_accelerator(self, name: str) -> bool:
        """Whether there was one."""
        return self._accelerators.pop(name, None) is not None

    def keep_accelerators(self, there: Iterable[str]) -> bool:
        """Drop what a full list does not show; whether there was any."""
        missing = self._accelerators.keys() - set(there)
        for name in missing:
            del self._accelerators[name]
        return bool(missing)

    # Children and pods

    def put_child(self, body: Mapping[str, Any]) -> Seen:
        """A child as a watch or a write delivers it."""
        key, meta = key_of(body), body["metadata"]
        if key is None or meta["uid"] in self._deleted:
            return Seen(key, False)
        place = (body["kind"], meta["name"])
        held = self._children[key].get(place)
        if held is not None and not _is_newer(meta["resourceVersion"], held.resource_version):
            return Seen(key, False)
        new = self._children[key][place] = HeldChild(
            view=child(body),
            resource_version=meta["resourceVersion"],
            owner_uid=_owner_uid(body),
            fields=owned_fields(meta.get("managedFields") or ()),
        )
        return Seen(key, held is None or replace(held, resource_version=new.resource_version) != new)

    def drop_child(self, body: Mapping[str, Any]) -> Key | None:
        """A child is gone, says a watch."""
        key, meta = key_of(body), body["metadata"]
        self._deleted.discard(meta["uid"])
        if key is not None:
            held = self._children[key].get((body["kind"], meta["name"]))
            if held is not None and held.view.uid == meta["uid"]:
                del self._children[key][body["kind"], meta["name"]]
        return key

    def deleted(self, key: Key, view: ChildView) -> None:
        """We deleted a child: forget it now; events of its last moments change nothing."""
        self._deleted.add(view.uid)
        self._children[key].pop((view.kind, view.name), None)

    def children(self, key: Key, uid: str) -> dict[tuple[str, str], HeldChild]:
        """The children, by kind and name, that the TurboDeployment with this uid controls."""
        return {place: held for place, held in self._children[key].items() if held.owner_uid == uid}

    def put_pod(self, body: Mapping[str, Any]) -> Seen:
        """A pod as a watch delivers it."""
        key, meta = key_of(body), body["metadata"]
        if key is None:
            return Seen(None, False)
        value: PodView | InspectPod = inspect_pod(body) if is_inspect_pod(body) else serving_pod(body)
        held = self._pods[key].get(meta["name"])
        if held is not None and not _is_newer(meta["resourceVersion"], held.resource_version):
            return Seen(key, False)
        self._pods[key][meta["name"]] = _Held(meta["resourceVersion"], meta["uid"], value)
        return Seen(key, held is None or held.value != value)

    def drop_pod(self, body: Mapping[str, Any]) -> Key | None:
        """A pod is gone."""
        key, meta = key_of(body), body["metadata"]
        if key is not None:
            held = self._pods[key].get(meta["name"])
            if held is not None and held.uid == meta["uid"]:
                del self._pods[key][meta["name"]]
            self._loads.pop((key.namespace, meta["name"]), None)
        return key

    def inspect_pods(self, key: Key) -> tuple[InspectPod, ...]:
        """The pods of inspect Jobs, by name."""
        return tuple(pod for pod in self._values(key) if isinstance(pod, InspectPod))

    # Loads

    def put_load(self, namespace: str, pod: str, load: Load | None) -> None:
        """What a pod last said of itself; None when it did not answer, which is unknown and not zero."""
        if load is None:
            self._loads.pop((namespace, pod), None)
        else:
            self._loads[namespace, pod] = load

    # Reading

    def observe(self, key: Key, uid: str) -> Observed:
        """All that one reconcile of the TurboDeployment with this uid looks at, save the model's facts."""
        children = self.children(key, uid)
        pods = tuple(pod for pod in self._values(key) if isinstance(pod, PodView))
        return Observed(
            accelerators=dict(self._accelerators),
            children=tuple(children[place].view for place in sorted(children)),
            pods=pods,
            loads={
                pod.name: load
                for pod in pods
                if (load := self._loads.get((key.namespace, pod.name))) is not None
            },
        )

    def ready_pods(self) -> list[tuple[Key, PodView]]:
        """Every serving pod that is ready and has an address, of every TurboDeployment."""
        return [
            (key, pod)
            for key in sorted(self._pods)
            for pod in self._values(key)
            if isinstance(pod, PodView) and pod.ready and pod.ip and not pod.terminating
        ]

    def keep_only(
        self, kind: str, uids: Iterable[str], resource_version: str, namespace: str | None = None
    ) -> set[Key]:
        """Drop what a full list of a kind, taken at `resource_version`, does not show; the keys that lost.

        The list is one namespace's, or with None everybody's.
        A watch that was cut off for long enough misses deletions. What is newer than the list stays.
        """
        there = set(uids)

        def gone(key: Key, uid: str, version: str) -> bool:
            listed = namespace is None or key.namespace == namespace
            return listed and uid not in there and not _is_newer(version, resource_version)

        woken: set[Key] = set()
        if kind == TURBODEPLOYMENT:
            for key in [
                key for key, held in self._deployments.items() if gone(key, held.uid, held.resource_version)
            ]:
                del self._deployments[key]
                woken.add(key)
        elif kind == "Pod":
            for key, pods in self._pods.items():
                for name in [
                    name for name, held in pods.items() if gone(key, held.uid, held.resource_version)
                ]:
                    del pods[name]
                    self._loads.pop((key.namespace, name), None)
                    woken.add(key)
        else:
            for key, children in self._children.items():
                for place in [place for place, held in children.items() if place[0] == kind]:
                    if gone(key, children[place].view.uid, children[place].resource_version):
                        del children[place]
                        woken.add(key)
        return woken

    def _values(self, key: Key) -> list[PodView | InspectPod]:
        pods = self._pods.get(key, {})
        return [pods[name].value for name in sorted(pods)]


def key_of(body: Mapping[str, Any]) -> Key | None:
    """The TurboDeployment that a child or pod says it belongs to, by its label."""
    meta = body["metadata"]
    name = (meta.get("labels") or {}).get(LABEL_DEPLOYMENT)
    return Key(meta["namespace"], name) if name else None


def controller(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The owner reference of whatever controls an object, None when nothing does."""
    for owner in body["metadata"].get("ownerReferences") or ():
        if owner.get("controller"):
            found: Mapping[str, Any] = owner
            return found
    return None


def _owner_uid(body: Mapping[str, Any]) -> str | None:
    owner = controller(body)
    return owner["uid"] if owner is not None and owner["kind"] == TURBODEPLOYMENT else None


def _is_newer(version: str, than: str) -> bool:
    try:
        return int(version) > int(than)
    except ValueError:  # an API server that does not count: then the last to arrive is taken for the newest
        return True
