"""Pods, known by what controls them: Pod <- ReplicaSet <- Deployment, or Pod <- Job.

Labels say nothing of whose a pod is: a stranger's pod may bear ours. They only say which pods are worth
keeping in mind, since one that its ReplicaSet controls bears them as long as it does: a Deployment's
selector, which cannot be changed, asks for them. What a pod comes from stays known while the pod ends, after
its Deployment is gone. Each kind is fed by one watch in its order, so what came last is newest; between the
kinds any order will do. No method calls the API server.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from turbo_operator.api import LABEL_DEPLOYMENT
from turbo_operator.controller.cache.projection import InspectPod, controller, pod
from turbo_operator.drafts.training import spelled
from turbo_operator.inventory.supply import Owner
from turbo_operator.snapshot import LoadSample, PodView, TrainPod
from turbo_runtime.contract.load import Load
from turbo_runtime.contract.training import TrainingProgress

View = PodView | InspectPod | TrainPod


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Which TurboDeployment."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Root(NamedTuple):
    """The child of ours that pods come from."""

    key: Key
    owner_uid: str  # of the TurboDeployment
    plan_hash: str  # of a Deployment; "" of a Job
    trains: bool = False


@dataclass(frozen=True, slots=True)
class HeldPod:
    """A pod that may be ours."""

    namespace: str
    controller: str  # uid
    value: View
    root: Root | None  # None until what controls it is seen, and of a stranger's for ever


@dataclass(frozen=True, slots=True)
class ReplicaSet:
    """What is kept of one."""

    namespace: str
    controller: str


class Controlled(Protocol):
    """Whatever something controls."""

    @property
    def namespace(self) -> str:
        """Where it is."""

    @property
    def controller(self) -> str:
        """The uid of what controls it."""


_Controlled = TypeVar("_Controlled", bound=Controlled)


class Family(Generic[_Controlled]):
    """Objects by uid and by controller."""

    def __init__(self) -> None:
        self.by_uid: dict[str, _Controlled] = {}
        self._under: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self.by_uid) + len(self._under)

    def put(self, uid: str, new: _Controlled) -> None:
        """One as it is now."""
        self.drop(uid)
        self.by_uid[uid] = new
        self._under.setdefault(new.controller, set()).add(uid)

    def drop(self, uid: str) -> None:
        """One is gone."""
        old = self.by_uid.pop(uid, None)
        if old is not None:
            _discard(self._under, old.controller, uid)

    def under(self, controller: str) -> Set[str]:
        """The uids of what it controls."""
        return self._under.get(controller, set())

    def missing(self, uids: Set[str], namespace: str | None) -> list[str]:
        """The uids in one namespace, or with None in all, that are not among these."""
        return [
            uid
            for uid, held in self.by_uid.items()
            if uid not in uids and namespace in (None, held.namespace)
        ]


class Pods:
    """All pods that the operator knows, and whose they are."""

    def __init__(self) -> None:
        self._pods: Family[HeldPod] = Family()
        self._replica_sets: Family[ReplicaSet] = Family()
        self._roots: dict[str, Root] = {}  # by uid of the Deployment or Job
        self._by_key: dict[Key, set[str]] = {}

    def __len__(self) -> int:
        return len(self._pods) + len(self._replica_sets) + len(self._roots) + len(self._by_key)

    # Where pods come from

    def put_root(self, uid: str, root: Root) -> None:
        """A Deployment or Job of ours."""
        if self._roots.get(uid) != root:
            self._roots[uid] = root
            self._trace(uid, *self._replica_sets.under(uid))

    def drop_root(self, uid: str, *, disowned: bool = False) -> None:
        """It is gone, and its pods go after it; or it is there and no longer ours, nor are they."""
        if self._roots.pop(uid, None) is not None and disowned:
            self._trace(uid, *self._replica_sets.under(uid))

    def put_replica_set(self, body: Mapping[str, Any]) -> set[Key]:
        """A ReplicaSet as it is now; the keys that this is news to."""
        meta, owner = body["metadata"], controller(body)
        if owner is None:
            return self.drop_replica_set(body, disowned=True)
        new = ReplicaSet(meta["namespace"], owner["uid"])
        if self._replica_sets.by_uid.get(meta["uid"]) == new:
            return set()
        self._replica_sets.put(meta["uid"], new)
        return self._trace(meta["uid"])

    def drop_replica_set(self, body: Mapping[str, Any], *, disowned: bool = False) -> set[Key]:
        """One is gone, and its pods go after it; or it is no longer a Deployment's, nor are they."""
        uid = body["metadata"]["uid"]
        self._replica_sets.drop(uid)
        return self._trace(uid) if disowned else set()

    def owner_of(self, uid: str) -> Owner | None:
        """Whose a pod is; None for a stranger's."""
        held = self._pods.by_uid.get(uid)
        if held is None or held.root is None:
            return None
        owner = Owner(held.root.key.namespace, held.root.key.name)
        return owner.trainer if held.root.trains else owner

    # Pods

    def put(self, body: Mapping[str, Any]) -> set[Key]:
        """A pod as it is now; the keys that this is news to."""
        meta, owner = body["metadata"], controller(body)
        uid = meta["uid"]
        before = self._pods.by_uid.get(uid)
        is_labelled = LABEL_DEPLOYMENT in (meta.get("labels") or {})
        if owner is None or not (is_labelled or owner["uid"] in self._roots):
            return self.drop(body)
        root = self._root(owner["uid"])
        if root is None and before is not None and before.controller == owner["uid"]:
            root = before.root
        value = _rooted(pod(body), root)
        if before is not None:
            value = _with_what_it_said(value, before.value)
        new = HeldPod(meta["namespace"], owner["uid"], value, root)
        return set() if new == before else self._set(uid, new)

    def drop(self, body: Mapping[str, Any]) -> set[Key]:
        """A pod is gone; the keys that this is news to."""
        return self._set(body["metadata"]["uid"], None)

    def keep_only(self, kind: str, uids: Set[str], namespace: str | None) -> set[Key]:
        """Drop the pods or ReplicaSets that a full list does not show; the keys that lost."""
        if kind == "ReplicaSet":
            for uid in self._replica_sets.missing(uids, namespace):
                self._replica_sets.drop(uid)
            return set()
        missing = self._pods.missing(uids, namespace)
        return {key for uid in missing for key in self._set(uid, None)}

    def put_load(self, key: Key, name: str, at: float, load: Load) -> bool:
        """What a pod has said at `at` (epoch seconds); whether it is the first that tells its step times, or
        tells another draft than before.

        A pod that is gone meanwhile is passed over.
        """
        uid, view = self._named(key, name)
        if not isinstance(view, PodView):
            return False
        before = view.load
        self._set_view(uid, replace(view, load=LoadSample.after(before, at, load)))
        timed = load.step_times is not None and (before is None or before.load.step_times is None)
        return timed or _drafting(load) != (_drafting(before.load) if before else ("", ""))

    def put_progress(self, key: Key, name: str, progress: TrainingProgress) -> bool:
        """How far a pod has said to be; whether that is another stage, or another tenth of it."""
        uid, view = self._named(key, name)
        if not isinstance(view, TrainPod):
            return False
        before = view.progress
        self._set_view(uid, replace(view, progress=progress))
        return before is None or spelled(before) != spelled(progress)

    # Reading

    def of(self, key: Key, owner_uid: str | None = None) -> list[View]:
        """A TurboDeployment's pods by name; with a uid the pods of that very one."""
        held = [self._pods.by_uid[uid] for uid in self._by_key.get(key, ())]
        views = [each.value for each in held if each.root and owner_uid in (None, each.root.owner_uid)]
        return sorted(views, key=lambda view: view.name)

    def inspecting(self, key: Key) -> tuple[InspectPod, ...]:
        """The pods of inspect Jobs, by name."""
        return tuple(view for view in self.of(key) if isinstance(view, InspectPod))

    def answering(self) -> list[tuple[Key, PodView]]:
        """Every serving pod that says its load, of every TurboDeployment: it is ready, or it drains."""
        return [
            (key, view)
            for key in sorted(self._by_key)
            for view in self.of(key)
            if isinstance(view, PodView) and view.ip and (view.ready or (view.terminating and view.load))
        ]

    def training(self) -> list[tuple[Key, TrainPod]]:
        """Every pod that says how far a training is."""
        return [
            (key, view)
            for key in sorted(self._by_key)
            for view in self.of(key)
            if isinstance(view, TrainPod) and view.ip and view.runs
        ]

    def _root(self, controller_uid: str) -> Root | None:
        replica_set = self._replica_sets.by_uid.get(controller_uid)
        return self._roots.get(replica_set.controller if replica_set else controller_uid)

    def _trace(self, *controllers: str) -> set[Key]:
        """Find out anew where the pods of these come from; the keys that this is news to."""
        keys: set[Key] = set()
        for each in controllers:
            root = self._root(each)
            for uid in tuple(self._pods.under(each)):
                held = self._pods.by_uid[uid]
                if held.root != root:
                    keys |= self._set(uid, replace(held, value=_rooted(held.value, root), root=root))
        return keys

    def _set(self, uid: str, new: HeldPod | None) -> set[Key]:
        roots = [held.root for held in (self._pods.by_uid.get(uid), new) if held is not None and held.root]
        keys = {root.key for root in roots}
        for key in keys:
            _discard(self._by_key, key, uid)
        self._pods.drop(uid)
        if new is not None:
            self._pods.put(uid, new)
            if new.root is not None:
                self._by_key.setdefault(new.root.key, set()).add(uid)
        return keys

    def _named(self, key: Key, name: str) -> tuple[str, View | None]:
        for uid in self._by_key.get(key, ()):
            view = self._pods.by_uid[uid].value
            if view.name == name:
                return uid, view
        return "", None

    def _set_view(self, uid: str, view: View) -> None:
        self._pods.by_uid[uid] = replace(self._pods.by_uid[uid], value=view)


def _rooted(view: View, root: Root | None) -> View:
    """A serving pod runs the plan of its Deployment, whatever its labels say."""
    if isinstance(view, PodView) and root is not None and view.plan_hash != root.plan_hash:
        return replace(view, plan_hash=root.plan_hash)
    return view


def _with_what_it_said(view: View, before: View) -> View:
    """No watch knows it."""
    if isinstance(view, PodView) and isinstance(before, PodView):
        return replace(view, load=before.load)
    if isinstance(view, TrainPod) and isinstance(before, TrainPod):
        return replace(view, progress=before.progress)
    return view


def _drafting(load: Load) -> tuple[str, str]:
    """What it drafts with, and what is wrong with it."""
    return load.draft_version or "", load.draft_problem or ""


_Name = TypeVar("_Name")


def _discard(sets: dict[_Name, set[str]], name: _Name, uid: str) -> None:
    """Take one out, and with the last one the set: nothing is kept of what is gone."""
    names = sets.get(name, set())
    names.discard(uid)
    if not names:
        sets.pop(name, None)
