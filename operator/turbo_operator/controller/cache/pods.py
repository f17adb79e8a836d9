"""Pods, known by what controls them: Pod <- ReplicaSet <- Deployment, or Pod <- Job.

Labels do not prove whose a pod is: a stranger's pod may carry ours. They only say which pods are worth
caching, since one that its ReplicaSet controls carries them as long as it does: a Deployment's selector,
which cannot be changed, requires them. What a pod comes from stays known while the pod ends, after its
Deployment is gone. Each kind is fed by one watch in its order, so what came last is newest; between the kinds
any order will do. No method calls the API server.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

from turbo_operator.api import LABEL_DEPLOYMENT
from turbo_operator.controller.cache.object_versions import Key
from turbo_operator.controller.cache.projection import InspectPod, controller, pod
from turbo_operator.drafts.training import format_progress
from turbo_operator.inventory.supply import Owner
from turbo_operator.snapshot import LoadSample, PodView, TrainPod
from turbo_runtime.contract.load import Load
from turbo_runtime.contract.training import TrainingProgress

View = PodView | InspectPod | TrainPod


class Root(NamedTuple):
    """The child of ours that pods come from."""

    key: Key
    owner_uid: str  # of the TurboDeployment
    plan_hash: str  # of a Deployment; "" of a Job
    trains: bool = False


@dataclass(frozen=True, slots=True)
class Controlled:
    """A ReplicaSet, or what a pod has in common with it."""

    namespace: str
    controller: str  # uid


@dataclass(frozen=True, slots=True)
class CachedPod(Controlled):
    """A pod that may be ours."""

    view: View
    root: Root | None  # None until what controls it is seen, and for ever of a stranger's


_Controlled = TypeVar("_Controlled", bound=Controlled)


class ControllerIndex(Generic[_Controlled]):
    """Objects by uid and by controller."""

    def __init__(self) -> None:
        self.by_uid: dict[str, _Controlled] = {}
        self._under: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self.by_uid) + len(self._under)

    def put(self, uid: str, new: _Controlled) -> None:
        """Store an object as it is now."""
        self.drop(uid)
        self.by_uid[uid] = new
        self._under.setdefault(new.controller, set()).add(uid)

    def drop(self, uid: str) -> None:
        """Remove an object."""
        old = self.by_uid.pop(uid, None)
        if old is not None:
            _discard(self._under, old.controller, uid)

    def under(self, controller: str) -> Set[str]:
        """Return the uids of what a controller controls."""
        return self._under.get(controller, set())

    def missing(self, uids: Set[str], namespace: str | None) -> list[str]:
        """Return the uids in one namespace, or with None in all, that are not among these."""
        return [
            uid
            for uid, cached in self.by_uid.items()
            if uid not in uids and namespace in (None, cached.namespace)
        ]


class Pods:
    """All pods that the operator knows, and whose they are."""

    def __init__(self) -> None:
        self._pods: ControllerIndex[CachedPod] = ControllerIndex()
        self._replica_sets: ControllerIndex[Controlled] = ControllerIndex()
        self._roots: dict[str, Root] = {}  # by uid of the Deployment or Job
        self._by_key: dict[Key, set[str]] = {}

    def __len__(self) -> int:
        return len(self._pods) + len(self._replica_sets) + len(self._roots) + len(self._by_key)

    # Where pods come from

    def put_root(self, uid: str, root: Root) -> None:
        """Store a Deployment or Job of ours."""
        if self._roots.get(uid) != root:
            self._roots[uid] = root
            self._trace(uid, *self._replica_sets.under(uid))

    def drop_root(self, uid: str, *, disowned: bool = False) -> None:
        """Remove one that is gone, its pods go after it; or one that is no longer ours, nor are they."""
        if self._roots.pop(uid, None) is not None and disowned:
            self._trace(uid, *self._replica_sets.under(uid))

    def put_replica_set(self, body: Mapping[str, Any]) -> set[Key]:
        """Store a ReplicaSet as it is now; the keys that this is news to."""
        meta, owner = body["metadata"], controller(body)
        if owner is None:
            return self.drop_replica_set(body, disowned=True)
        new = Controlled(meta["namespace"], owner["uid"])
        if self._replica_sets.by_uid.get(meta["uid"]) == new:
            return set()
        self._replica_sets.put(meta["uid"], new)
        return self._trace(meta["uid"])

    def drop_replica_set(self, body: Mapping[str, Any], *, disowned: bool = False) -> set[Key]:
        """Remove one that is gone, its pods go after it; or one that no Deployment owns, nor its pods."""
        uid = body["metadata"]["uid"]
        self._replica_sets.drop(uid)
        return self._trace(uid) if disowned else set()

    def owner_of(self, uid: str) -> Owner | None:
        """Return whose a pod is; None for a stranger's."""
        cached = self._pods.by_uid.get(uid)
        if cached is None or cached.root is None:
            return None
        owner = cached.root.key.owner
        return owner.trainer if cached.root.trains else owner

    # Pods

    def put(self, body: Mapping[str, Any]) -> set[Key]:
        """Store a pod as it is now; the keys that this is news to."""
        meta, owner = body["metadata"], controller(body)
        uid = meta["uid"]
        before = self._pods.by_uid.get(uid)
        is_labeled = LABEL_DEPLOYMENT in (meta.get("labels") or {})
        if owner is None or not (is_labeled or owner["uid"] in self._roots):
            return self.drop(body)
        root = self._root(owner["uid"])
        if root is None and before is not None and before.controller == owner["uid"]:
            root = before.root
        view = _with_root(pod(body), root)
        if before is not None:
            view = _with_reports(view, before.view)
        new = CachedPod(meta["namespace"], owner["uid"], view, root)
        return set() if new == before else self._set(uid, new)

    def drop(self, body: Mapping[str, Any]) -> set[Key]:
        """Remove a pod; the keys that this is news to."""
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
        """Store a report; whether it is the first one of step times, or of another draft."""
        uid, view = self._find(key, name)
        if not isinstance(view, PodView):
            return False
        before = view.load
        self._set_view(uid, replace(view, load=LoadSample.after(before, at, load)))
        is_timed = load.step_times is not None and (before is None or before.load.step_times is None)
        return is_timed or _draft_state(load) != (_draft_state(before.load) if before else ("", ""))

    def put_progress(self, key: Key, name: str, progress: TrainingProgress) -> bool:
        """Store how far a pod reports to be; whether that is another stage, or another tenth of it."""
        uid, view = self._find(key, name)
        if not isinstance(view, TrainPod):
            return False
        before = view.progress
        self._set_view(uid, replace(view, progress=progress))
        return before is None or format_progress(before) != format_progress(progress)

    # Reading

    def of(self, key: Key, owner_uid: str | None = None) -> list[View]:
        """Return a TurboDeployment's pods by name; with a uid the pods of that very one."""
        pods = [self._pods.by_uid[uid] for uid in self._by_key.get(key, ())]
        views = [cached.view for cached in pods if cached.root and owner_uid in (None, cached.root.owner_uid)]
        return sorted(views, key=lambda view: view.name)

    def inspecting(self, key: Key) -> tuple[InspectPod, ...]:
        """Return the pods of inspect Jobs, by name."""
        return tuple(view for view in self.of(key) if isinstance(view, InspectPod))

    def serving(self) -> list[tuple[Key, PodView]]:
        """Return every pod that reports its load, of every TurboDeployment: it is ready, or it drains."""
        return [
            (key, view)
            for key in sorted(self._by_key)
            for view in self.of(key)
            if isinstance(view, PodView) and view.ip and (view.ready or (view.terminating and view.load))
        ]

    def training(self) -> list[tuple[Key, TrainPod]]:
        """Return every pod that reports how far a training is."""
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
        for controller_uid in controllers:
            root = self._root(controller_uid)
            for uid in tuple(self._pods.under(controller_uid)):
                cached = self._pods.by_uid[uid]
                if cached.root != root:
                    keys |= self._set(uid, replace(cached, view=_with_root(cached.view, root), root=root))
        return keys

    def _set(self, uid: str, new: CachedPod | None) -> set[Key]:
        keys = {pod.root.key for pod in (self._pods.by_uid.get(uid), new) if pod is not None and pod.root}
        for key in keys:
            _discard(self._by_key, key, uid)
        self._pods.drop(uid)
        if new is not None:
            self._pods.put(uid, new)
            if new.root is not None:
                self._by_key.setdefault(new.root.key, set()).add(uid)
        return keys

    def _find(self, key: Key, name: str) -> tuple[str, View | None]:
        pods = ((uid, self._pods.by_uid[uid].view) for uid in self._by_key.get(key, ()))
        return next(((uid, view) for uid, view in pods if view.name == name), ("", None))

    def _set_view(self, uid: str, view: View) -> None:
        self._pods.by_uid[uid] = replace(self._pods.by_uid[uid], view=view)


def _with_root(view: View, root: Root | None) -> View:
    """Give a serving pod the plan of its Deployment, whatever its labels say."""
    if isinstance(view, PodView) and root is not None and view.plan_hash != root.plan_hash:
        return replace(view, plan_hash=root.plan_hash)
    return view


def _with_reports(view: View, before: View) -> View:
    """Keep what a pod reported itself: no watch knows it."""
    if isinstance(view, PodView) and isinstance(before, PodView):
        return replace(view, load=before.load)
    if isinstance(view, TrainPod) and isinstance(before, TrainPod):
        return replace(view, progress=before.progress)
    return view


def _draft_state(load: Load) -> tuple[str, str]:
    """Return what a pod drafts with, and what is wrong with it."""
    return load.draft_version or "", load.draft_error or ""


_Name = TypeVar("_Name")


def _discard(sets: dict[_Name, set[str]], name: _Name, uid: str) -> None:
    """Remove one uid, and with the last one the set: nothing is kept of what is gone."""
    uids = sets.get(name, set())
    uids.discard(uid)
    if not uids:
        sets.pop(name, None)
