"""Pods, known by what controls them: Pod <- ReplicaSet <- Deployment, Pod <- Job, or for a replica on several
nodes worker Pod <- StatefulSet <- leader Pod <- StatefulSet <- LeaderWorkerSet.

Labels do not prove whose a pod is: a stranger's pod may carry ours. They only say which pods are worth
caching, since one that its ReplicaSet controls carries them as long as it does: a Deployment's selector,
which cannot be changed, requires them. Only of an orphan, a ReplicaSet or a pod that nothing controls, do
labels and name say it: what is made again adopts it. What a pod comes from stays known while the pod
ends, after its Deployment is gone. Each kind is fed by one watch in its order, so what came last is newest;
between the kinds any order will do. No method calls the API server.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Set, Sized
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from turbo_operator.activator.report import Traffic
from turbo_operator.api import LABEL_DEPLOYMENT, LABEL_OWNER_UID, LABEL_PLAN_HASH, LABEL_ROLE, ROLE_SERVING
from turbo_operator.controller.cache.object_versions import Key
from turbo_operator.controller.cache.projection import controller, pod
from turbo_operator.drafts.training import format_progress
from turbo_operator.inventory.supply import Owner
from turbo_operator.snapshot import JobPod, LoadSample, PodView, ReportingPod, TrafficSample
from turbo_runtime.contract.documents import JobProgress, Load

View = PodView | JobPod

# From a LeaderWorkerSet to a worker. Somebody may have a thousand ReplicaSets control one another.
MAX_DEPTH = 4
_GENERATED_NAME = 58  # of which Kubernetes makes the names of pods
LABEL_TEMPLATE_HASH = "pod-template-hash"  # the Deployment controller's


class Root(NamedTuple):
    """The child of ours that pods come from: a workload or a Job."""

    key: Key
    owner_uid: str  # of the TurboDeployment
    plan_hash: str  # of a workload; "" of a Job
    trains: bool = False
    routes: bool = False  # a Deployment of the router, whose pods hold no accelerator

    @property
    def owner(self) -> Owner:
        """Whose its pods are, for the inventory."""
        return self.key.owner.trainer if self.trains else self.key.owner


@dataclass(frozen=True, slots=True)
class _Controlled:
    """A ReplicaSet or StatefulSet, or a pod that may be ours."""

    kind: str
    namespace: str
    controller: str  # uid
    view: View | None = None  # of a pod that there is
    template_hash: str = ""  # by which a ReplicaSet selects its pods; none of one that is being deleted


class Pods:
    """All pods that the operator knows, and whose they are."""

    def __init__(self) -> None:
        self._roots: dict[str, Root] = {}  # by uid, as all of these
        self._roots_of: defaultdict[Key, set[str]] = defaultdict(set)
        self._controlled: dict[str, _Controlled] = {}
        self._under: defaultdict[str, set[str]] = defaultdict(set)  # what each controls
        self._gone: set[str] = set()  # whatever controls pods, until the last of those follows
        self._releasing: dict[str, Root] = {}  # ReplicaSets that are being deleted without their pods

    def __len__(self) -> int:
        kept: list[Sized] = [self._roots, self._roots_of, self._controlled, self._under, self._releasing]
        return sum(map(len, kept))

    # Where pods come from

    def put_root(self, uid: str, root: Root) -> None:
        """Store a Deployment or Job of ours."""
        self._gone.discard(uid)
        self._roots[uid] = root
        self._roots_of[root.key].add(uid)

    def drop_root(self, uid: str, *, disowned: bool = False) -> None:
        """Remove one that is gone, its pods go after it; or one that is no longer ours, nor are they."""
        self._drop(uid, at_once=disowned)

    def put_set(self, body: Mapping[str, Any]) -> set[Key]:
        """Store a ReplicaSet or StatefulSet as it is now; the keys that this is news to."""
        meta, owner = body["metadata"], controller(body)
        released = self._releasing.pop(meta["uid"], None)
        keys = {released.key} if released is not None else set()  # what waited for its name may be made
        if owner is not None:
            template_hash = "" if "deletionTimestamp" in meta else _template_hash(meta)
            place = body["kind"], meta["namespace"], owner["uid"]
            cached = _Controlled(*place, template_hash=template_hash)
            return keys | self._put(meta["uid"], cached)
        root = _orphans_root(meta)
        if root is None:
            return keys | self.drop_set(body, disowned=True)
        if "deletionTimestamp" in meta and "orphan" in (meta.get("finalizers") or ()):
            self._releasing[meta["uid"]] = root
        return keys | self._put_orphan(body["kind"], meta, root)

    def drop_set(self, body: Mapping[str, Any], *, disowned: bool = False) -> set[Key]:
        """Remove one that is gone, its pods go after it; or one that no workload owns, nor its pods."""
        uid = body["metadata"]["uid"]
        keys = self._keys(uid) if disowned else set()
        if (root := self._releasing.pop(uid, None)) is not None:
            keys.add(root.key)  # what waited for its name may be made
        self._drop(uid, at_once=disowned)
        return keys

    def root_of(self, uid: str) -> Root | None:
        """Return what a set or pod comes from; None for a stranger's."""
        for _ in range(MAX_DEPTH):
            if uid in self._controlled:
                uid = self._controlled[uid].controller
        return self._roots.get(uid)

    # Pods

    def put(self, body: Mapping[str, Any]) -> set[Key]:
        """Store a pod as it is now; the keys that this is news to."""
        meta, owner = body["metadata"], controller(body)
        root = _orphans_root(meta) if owner is None else None
        is_labeled = LABEL_DEPLOYMENT in (meta.get("labels") or {})
        if root is None and (owner is None or not (is_labeled or owner["uid"] in self._roots)):
            return self.drop(body)
        before = self._controlled.get(meta["uid"])
        view = _with_reports(pod(body), before.view if before is not None else None)
        if owner is not None:
            return self._put(meta["uid"], _Controlled("Pod", meta["namespace"], owner["uid"], view))
        if root is None or not isinstance(view, PodView):
            return self.drop(body)
        return self._put_orphan("Pod", meta, root, replace(view, orphan=meta["resourceVersion"]))

    def drop(self, body: Mapping[str, Any]) -> set[Key]:
        """Remove a pod; the keys that this is news to."""
        uid = body["metadata"]["uid"]
        keys = self._keys(uid)
        if uid in self._under and uid in self._controlled:  # a leader: its workers stay known while they end
            self._controlled[uid] = replace(self._controlled[uid], view=None)
        self._drop(uid, at_once=False)
        return keys

    def keep_only(self, kind: str, uids: Set[str], namespace: str | None) -> set[Key]:
        """Drop the pods or sets that a full list does not show; the keys that lost."""
        missing = [
            uid
            for uid, cached in self._controlled.items()
            if cached.kind == kind and uid not in uids and namespace in (None, cached.namespace)
        ]
        drop = self.drop if kind == "Pod" else self.drop_set
        return {key for uid in missing for key in drop({"metadata": {"uid": uid}})}

    def put_report(self, key: Key, name: str, at: float, report: Load | JobProgress) -> bool:
        """Store what a pod reports; whether that is the first of step times, another draft, or progress."""
        for uid, view, _ in self._pods_of(key):
            before: Load | JobProgress | None
            if isinstance(view, PodView) and view.name == name and isinstance(report, Load):
                before = view.load.load if view.load else None
                new: View = replace(view, load=LoadSample.after(view.load, at, report))
            elif isinstance(view, ReportingPod) and view.name == name and isinstance(report, JobProgress):
                before, new = view.progress, replace(view, progress=report)
            else:
                continue
            self._controlled[uid] = replace(self._controlled[uid], view=new)
            return _gist(before) != _gist(report)
        return False

    def put_traffic(self, key: Key, name: str, at: float, traffic: Traffic) -> None:
        """Store what the activator of a router's pod reports."""
        for uid, view, root in self._pods_of(key):
            if root.routes and isinstance(view, PodView) and view.name == name:
                new = replace(view, traffic=TrafficSample(at, traffic))
                self._controlled[uid] = replace(self._controlled[uid], view=new)

    # Reading

    def routers(self, key: Key) -> list[PodView]:
        """Return the pods of a TurboDeployment's router."""
        found = [view for _, view, root in self._pods_of(key) if root.routes]
        return [view for view in found if isinstance(view, PodView)]

    def releasing(self, key: Key, owner_uid: str) -> frozenset[str]:
        """Return the plan hashes of ReplicaSets that are being deleted without their pods."""
        roots = self._releasing.values()
        return frozenset(root.plan_hash for root in roots if (root.key, root.owner_uid) == (key, owner_uid))

    def of(self, key: Key, owner_uid: str | None = None) -> list[View]:
        """Return a TurboDeployment's pods by name; with a uid the pods of that very one."""
        views = [
            # A serving pod runs the plan of its Deployment, whatever its labels say.
            replace(view, plan_hash=root.plan_hash) if isinstance(view, PodView) else view
            for _, view, root in self._pods_of(key)
            if owner_uid in (None, root.owner_uid)
        ]
        return sorted(views, key=lambda view: view.name)

    def keys(self) -> Set[Key]:
        """Return the TurboDeployments that have, or had, what pods come from."""
        return self._roots_of.keys()

    def owners_of(self, key: Key) -> set[str]:
        """Return the uids of the TurboDeployments of a name that have, or had, what pods come from."""
        return {self._roots[uid].owner_uid for uid in self._roots_of.get(key, ())}

    def adoptable(self, key: Key, owner_uid: str) -> list[tuple[PodView, str]]:
        """Return the pods that nothing controls, each with the hash by which the ReplicaSet of its variant
        would select it, where that is another one.
        """
        wanted = {
            self._roots[root_uid].plan_hash: self._controlled[uid].template_hash
            for root_uid in self._roots_of.get(key, ())
            for uid in self._under.get(root_uid, ())
            if root_uid not in self._gone
            and self._roots[root_uid].owner_uid == owner_uid
            and self._controlled[uid].template_hash
        }
        return [
            (view, wanted[root.plan_hash])
            for uid, view, root in self._pods_of(key)
            if isinstance(view, PodView)
            and view.is_serving
            and (view.orphan is not None, root.owner_uid) == (True, owner_uid)
            and wanted.get(root.plan_hash, "") not in ("", self._controlled[uid].template_hash)
        ]

    def inspecting(self, key: Key, owner_uid: str) -> tuple[JobPod, ...]:
        """Return the pods of inspect Jobs, by name."""
        own = self.of(key, owner_uid)
        return tuple(pod for pod in own if isinstance(pod, JobPod) and not isinstance(pod, ReportingPod))

    def reporting(self) -> list[tuple[Key, PodView | ReportingPod]]:
        """Return every pod that reports its load, being ready or draining, or how far its Job is."""
        return [
            (key, view)
            for key in sorted(self._roots_of)
            for view in self.of(key)
            if view.ip
            and not (isinstance(view, PodView) and (view.worker or not view.plan_hash))
            and (
                (isinstance(view, ReportingPod) and view.runs)
                or (isinstance(view, PodView) and (view.ready or (view.terminating and view.load)))
            )
        ]

    def _pods_of(self, key: Key) -> Iterator[tuple[str, View, Root]]:
        for root_uid in self._roots_of.get(key, ()):
            for uid in self._controlled_by(root_uid, MAX_DEPTH):
                view = self._controlled[uid].view
                if view is not None:
                    yield uid, view, self._roots[root_uid]

    def _controlled_by(self, uid: str, depth: int) -> Iterator[str]:
        """Yield what it controls, directly or through at most so many others."""
        for child_uid in self._under.get(uid, ()):
            yield child_uid
            if depth > 1:
                yield from self._controlled_by(child_uid, depth - 1)

    def _keys(self, uid: str) -> set[Key]:
        """Return whom news of a set or pod concerns: nobody while it is a set without pods."""
        root, cached = self.root_of(uid), self._controlled.get(uid)
        has_pods = cached is not None and (cached.view is not None or uid in self._under)
        return {root.key} if root is not None and has_pods else set()

    def _put_orphan(
        self, kind: str, meta: Mapping[str, Any], root: Root, view: View | None = None
    ) -> set[Key]:
        """Store what nothing controls under a root of its own, which is kept for its sake alone."""
        owner_uid = f"orphan {meta['uid']}"
        self.put_root(owner_uid, root)
        cached = _Controlled(kind, meta["namespace"], owner_uid, view, _template_hash(meta))
        keys = self._put(meta["uid"], cached)
        self._gone.add(owner_uid)
        return keys

    def _put(self, uid: str, new: _Controlled) -> set[Key]:
        before, keys = self._controlled.get(uid), self._keys(uid)
        self._gone.discard(uid)
        if new == before:
            return set()
        if before is not None and before.controller != new.controller:
            self._drop(uid, at_once=True)
        self._controlled[uid] = new
        self._under[new.controller].add(uid)
        return keys | self._keys(uid)

    def _drop(self, uid: str, *, at_once: bool) -> None:
        """Remove what is gone, at once or with its last pod; and what was kept for its sake."""
        if uid in self._under and not at_once:
            self._gone.add(uid)
            return
        self._gone.discard(uid)
        if (root := self._roots.pop(uid, None)) is not None:
            _discard(self._roots_of, root.key, uid)
        if (cached := self._controlled.pop(uid, None)) is not None:
            _discard(self._under, cached.controller, uid)
            if cached.controller in self._gone:
                self._drop(cached.controller, at_once=False)


def _orphans_root(meta: Mapping[str, Any]) -> Root | None:
    """Return what an orphaned ReplicaSet or pod comes from; None for a stranger's."""
    labels = meta.get("labels") or {}
    name, plan_hash = labels.get(LABEL_DEPLOYMENT, ""), labels.get(LABEL_PLAN_HASH, "")
    owner_uid, role = labels.get(LABEL_OWNER_UID), labels.get(LABEL_ROLE)
    # What somebody isolates by another role is no longer ours, as it is no longer its ReplicaSet's.
    prefix = f"{name}-{plan_hash}-"[:_GENERATED_NAME]
    if not owner_uid or role != ROLE_SERVING or not meta["name"].startswith(prefix):
        return None
    return Root(Key(meta["namespace"], name), owner_uid, plan_hash)


def _template_hash(meta: Mapping[str, Any]) -> str:
    return str((meta.get("labels") or {}).get(LABEL_TEMPLATE_HASH, ""))


def _with_reports(view: View, before: View | None) -> View:
    """Keep what a pod reported itself: no watch knows it."""
    if isinstance(view, PodView) and isinstance(before, PodView):
        return replace(view, load=before.load, traffic=before.traffic)
    if isinstance(view, ReportingPod) and isinstance(before, ReportingPod):
        return replace(view, progress=before.progress)
    return view


def _gist(report: Load | JobProgress | None) -> tuple[object, ...]:
    """Return what of a report decides something: step times, a first answer, a draft; a tenth of a stage."""
    if isinstance(report, JobProgress):
        return (format_progress(report),)
    draft = (report.draft_version or "", report.draft_error or "") if report else ("", "")
    has_answered = report is not None and report.first_token_time is not None
    return report is not None and report.step_times is not None, has_answered, *draft


_Name = TypeVar("_Name")


def _discard(sets: dict[_Name, set[str]], name: _Name, uid: str) -> None:
    """Remove one uid, and with the last one the set: nothing is kept of what is gone."""
    sets[name].discard(uid)
    if not sets[name]:
        del sets[name]
