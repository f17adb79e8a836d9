"""What the watches have shown, projected, what we wrote folded in at once; read as one frozen `Observed`.

Watches lag behind our own writes. Whatever a write returned is put in here, and an older event does not
undo it: resource versions of one API server grow (KEP-5504), so the larger one is the newer one. A deletion
that we asked for is remembered by uid until its event comes or a list shows it, one that was seen until a
later list: what was asked before it may be answered after it. No method calls the API server.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from turbo_operator.api import LABEL_DEPLOYMENT, TURBOACCELERATOR, TURBODEPLOYMENT
from turbo_operator.held import Gone, Held, HeldDrafts, is_newer, supersedes
from turbo_operator.observed import Accelerator, ChildView, LoadSample, Observed, PodView, TrainPod
from turbo_operator.ownership import owned_fields
from turbo_operator.projection import InspectPod, child, pod
from turbo_operator.training import spelled
from turbo_runtime.contract import Load
from turbo_runtime.training_contract import TrainingProgress

_Place = TypeVar("_Place")
_Value = TypeVar("_Value")


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


class Cache:
    """All TurboDeployments, accelerators, children and pods that the operator knows."""

    def __init__(self) -> None:
        self._deployments: dict[Key, Held] = {}
        self._accelerators: dict[str, Held] = {}
        self._children: dict[Key, dict[tuple[str, str], HeldChild]] = {}
        self._pods: dict[Key, dict[str, Held]] = {}
        self._gone = Gone()
        self.drafts = HeldDrafts(self._gone)
        # By uid the kind and namespace of what we deleted, until its event comes or a list shows it gone.
        self._deleted: dict[str, tuple[str, str]] = {}

    # TurboDeployments

    def put_deployment(self, body: Mapping[str, Any]) -> Seen:
        """A TurboDeployment as a watch or a write delivers it."""
        meta = body["metadata"]
        key = Key(meta["namespace"], meta["name"])
        held = self._deployments.get(key)
        if meta["uid"] in self._gone or not supersedes(meta, held):
            return Seen(key, False)
        kept = {**body, "metadata": {name: meta[name] for name in meta if name != "managedFields"}}
        self._deployments[key] = Held(meta["resourceVersion"], meta["uid"], kept)
        return Seen(key, True)

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
        if meta["uid"] in self._gone or not supersedes(meta, held):
            return False
        self._accelerators[meta["name"]] = Held(meta["resourceVersion"], meta["uid"], row)
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

    # Children and pods

    def put_child(self, body: Mapping[str, Any]) -> Seen:
        """A child as a watch or a write delivers it."""
        key, meta = key_of(body), body["metadata"]
        if key is None or meta["uid"] in self._deleted or meta["uid"] in self._gone:
            return Seen(key, False)
        place = (body["kind"], meta["name"])
        children = self._children.setdefault(key, {})
        held = children.get(place)
        if not supersedes(meta, held):
            return Seen(key, False)
        new = children[place] = HeldChild(
            view=child(body),
            resource_version=meta["resourceVersion"],
            owner_uid=_owner_uid(body),
            fields=owned_fields(meta.get("managedFields") or ()),
        )
        return Seen(key, held is None or replace(held, resource_version=new.resource_version) != new)

    def drop_child(self, body: Mapping[str, Any]) -> Key | None:
        """A child is gone, says a watch."""
        key, meta = key_of(body), body["metadata"]
        self._deleted.pop(meta["uid"], None)
        if key is not None:
            self._gone.add(body["kind"], meta["uid"], meta["resourceVersion"])
            held = self._children.get(key, {}).get((body["kind"], meta["name"]))
            if held is not None and held.view.uid == meta["uid"]:
                _remove(self._children, key, (body["kind"], meta["name"]))
        return key

    def deleted(self, key: Key, view: ChildView) -> None:
        """We deleted a child: forget it now; events of its last moments change nothing."""
        self._deleted[view.uid] = view.kind, key.namespace
        _remove(self._children, key, (view.kind, view.name))

    def children(self, key: Key, uid: str) -> dict[tuple[str, str], HeldChild]:
        """The children, by kind and name, that the TurboDeployment with this uid controls."""
        children = self._children.get(key, {})
        return {place: held for place, held in children.items() if held.owner_uid == uid}

    def put_pod(self, body: Mapping[str, Any]) -> Seen:
        """A pod as a watch delivers it."""
        key, meta = key_of(body), body["metadata"]
        if key is None or meta["uid"] in self._gone:
            return Seen(key, False)
        value = pod(body)
        pods = self._pods.setdefault(key, {})
        held = pods.get(meta["name"])
        if not supersedes(meta, held):
            return Seen(key, False)
        if held is not None and held.uid == meta["uid"] and isinstance(value, PodView):
            value = replace(value, load=held.value.load)  # no watch knows it
        elif held is not None and held.uid == meta["uid"] and isinstance(value, TrainPod):
            value = replace(value, progress=held.value.progress)
        pods[meta["name"]] = Held(meta["resourceVersion"], meta["uid"], value)
        return Seen(key, held is None or held.value != value)

    def put_load(self, key: Key, name: str, at: float, load: Load) -> bool:
        """What a pod has said at `at` (epoch seconds); whether it is the first that tells its step times, or
        tells another draft than before.

        A pod that is gone meanwhile is passed over.
        """
        held = self._pods.get(key, {}).get(name)
        if held is None or not isinstance(held.value, PodView):
            return False
        before = held.value.load
        sample = LoadSample.after(before, at, load)
        self._pods[key][name] = replace(held, value=replace(held.value, load=sample))
        timed = load.step_times is not None and (before is None or before.load.step_times is None)
        return timed or _drafting(load) != (_drafting(before.load) if before else ("", ""))

    def put_progress(self, key: Key, name: str, progress: TrainingProgress) -> bool:
        """How far a pod has said to be; whether that is another stage, or another tenth of it."""
        held = self._pods.get(key, {}).get(name)
        if held is None or not isinstance(held.value, TrainPod):
            return False
        before = held.value.progress
        self._pods[key][name] = replace(held, value=replace(held.value, progress=progress))
        return before is None or spelled(before) != spelled(progress)

    def drop_pod(self, body: Mapping[str, Any]) -> Key | None:
        """A pod is gone."""
        key, meta = key_of(body), body["metadata"]
        if key is not None:
            self._gone.add("Pod", meta["uid"], meta["resourceVersion"])
            held = self._pods.get(key, {}).get(meta["name"])
            if held is not None and held.uid == meta["uid"]:
                _remove(self._pods, key, meta["name"])
        return key

    def inspect_pods(self, key: Key) -> tuple[InspectPod, ...]:
        """The pods of inspect Jobs, by name."""
        return tuple(pod for pod in self._values(key) if isinstance(pod, InspectPod))

    # Reading

    def observe(self, key: Key, uid: str) -> Observed:
        """All that one reconcile of the TurboDeployment with this uid looks at, save the model's facts."""
        children = self.children(key, uid)
        return Observed(
            accelerators=self.accelerators(),
            children=tuple(children[place].view for place in sorted(children)),
            pods=tuple(pod for pod in self._values(key) if isinstance(pod, PodView)),
            trainings=tuple(pod for pod in self._values(key) if isinstance(pod, TrainPod)),
        )

    def answering_pods(self) -> list[tuple[Key, PodView]]:
        """Every serving pod that says its load, of every TurboDeployment: it is ready, or it drains."""
        return [
            (key, pod)
            for key in sorted(self._pods)
            for pod in self._values(key)
            if isinstance(pod, PodView) and pod.ip and (pod.ready or (pod.terminating and pod.load))
        ]

    def training_pods(self) -> list[tuple[Key, TrainPod]]:
        """Every pod that says how far a training is."""
        return [
            (key, pod)
            for key in sorted(self._pods)
            for pod in self._values(key)
            if isinstance(pod, TrainPod) and pod.ip and pod.runs
        ]

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
        if kind == "Pod":
            pods = [
                (key, name)
                for key, held_pods in self._pods.items()
                for name, held in held_pods.items()
                if gone(key, held.uid, held.resource_version)
            ]
            for key, name in pods:
                _remove(self._pods, key, name)
            return {key for key, _ in pods}
        for uid, (what, where) in list(self._deleted.items()):
            if what == kind and namespace in (None, where) and uid not in there:
                del self._deleted[uid]
                self._gone.add(kind, uid, resource_version)
        children = [
            (key, place)
            for key, held_children in self._children.items()
            for place, held_child in held_children.items()
            if place[0] == kind and gone(key, held_child.view.uid, held_child.resource_version)
        ]
        for key, place in children:
            _remove(self._children, key, place)
        return {key for key, _ in children}

    def _values(self, key: Key) -> list[PodView | InspectPod | TrainPod]:
        pods = self._pods.get(key, {})
        return [pods[name].value for name in sorted(pods)]


def _drafting(load: Load) -> tuple[str, str]:
    """What it drafts with, and what is wrong with it."""
    return load.draft_version or "", load.draft_problem or ""


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


def _remove(held: dict[Key, dict[_Place, _Value]], key: Key, place: _Place) -> None:
    """Take one out, and with the last one the TurboDeployment's entry: nothing is kept of what is gone."""
    places = held.get(key, {})
    places.pop(place, None)
    if not places:
        held.pop(key, None)
