"""What a cluster was at every instant, from the API server's audit log (level RequestResponse). Pure.

`replay` orders the writes as etcd did, by resource version, and gives the state before and after each one.
States share what did not change.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from turbo_operator.api import (
    LABEL_ACCELERATOR,
    LABEL_ACCELERATOR_COUNT,
    LABEL_CAPACITY_TYPE,
    LABEL_DEPLOYMENT,
    LABEL_DRAFT_VERSION,
    LABEL_PLAN_HASH,
    LABEL_ROLE,
    CapacityType,
    label_value,
)

Body = Mapping[str, Any]
Key = tuple[str, str]  # namespace and name

_ENDED = ("Succeeded", "Failed")
_JOB_NAME = "batch.kubernetes.io/job-name"
_TRACKED = frozenset(
    {
        "turbodeployments",
        "turboaccelerators",
        "deployments",
        "jobs",
        "controllerrevisions",
        "pods",
        "nodes",
        "resourcequotas",
    }
)


@dataclass(frozen=True, slots=True)
class Devices:
    """What one pod holds and is paid for as."""

    accelerator: str | None  # as its label holds it
    count: int
    capacity_type: str

    @classmethod
    def of(cls, labels: Mapping[str, str]) -> Devices:
        """By the labels of a pod or a pod template; nothing where no accelerator is named."""
        name = labels.get(LABEL_ACCELERATOR)
        count = int(labels.get(LABEL_ACCELERATOR_COUNT, "1")) if name else 0
        return cls(name, count, labels.get(LABEL_CAPACITY_TYPE, CapacityType.ON_DEMAND))


@dataclass(frozen=True, slots=True)
class PodState:
    """A pod that exists."""

    name: str
    owner: Key  # the TurboDeployment
    workload: Key  # kind, and name of the Deployment or Job
    devices: Devices
    ready_since: float | None
    ended: bool
    terminating: bool
    node: str | None

    @property
    def is_active(self) -> bool:
        """Whether its controller counts it."""
        return not self.ended and not self.terminating

    @property
    def is_ready(self) -> bool:
        """Whether it answers and stays."""
        return self.is_active and self.ready_since is not None


@dataclass(frozen=True, slots=True)
class Workload:
    """A Deployment, or a Job that trains: pods that are asked for."""

    name: str
    owner: Key
    devices: Devices
    replicas: int
    is_canary: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """The cluster at one instant."""

    time: float = 0.0
    deployments: Mapping[Key, Body] = field(default_factory=dict)  # TurboDeployments, bodies
    workloads: Mapping[tuple[str, Key], Workload] = field(default_factory=dict)  # kind, namespace and name
    revisions: Mapping[Key, Key] = field(default_factory=dict)  # ControllerRevisions, their TurboDeployment
    pods: Mapping[Key, PodState] = field(default_factory=dict)
    accelerators: Mapping[str, Body] = field(default_factory=dict)  # by what a label holds of the name
    nodes: Mapping[str, Body] = field(default_factory=dict)
    quotas: Mapping[Key, Mapping[str, str]] = field(default_factory=dict)  # spec.hard

    def variants(self, owner: Key) -> dict[str, Workload]:
        """Deployments of a TurboDeployment, by name."""
        found = self.workloads.items()
        return {each.name: each for (kind, _), each in found if kind == "Deployment" and each.owner == owner}

    def pods_of(self, owner: Key, workload: str | None = None) -> list[PodState]:
        """Pods of a TurboDeployment, or of one Deployment or Job of it; those that inspect left out."""
        return [
            pod
            for pod in self.pods.values()
            if pod.owner == owner and (workload is None or pod.workload[1] == workload)
        ]


@dataclass(frozen=True, slots=True)
class Write:
    """One write that the API server took."""

    time: float
    stamp: str  # when it was answered
    received: str  # when it was asked for
    user: str
    verb: str
    resource: str
    subresource: str
    key: Key
    body: Body | None  # the object as it is after it; None where it is gone
    revision: int = 0

    def __str__(self) -> str:
        place = "/".join(part for part in (self.resource, *self.key, self.subresource) if part)
        return f"{self.stamp} {self.user.rpartition(':')[2]} {self.verb} {place} at revision {self.revision}"


def seconds(stamp: str) -> float:
    """An RFC 3339 time in seconds since the epoch."""
    return datetime.datetime.fromisoformat(stamp).timestamp()


def read_writes(events: Iterable[Body]) -> list[Write]:
    """The writes of audit events, in the order of etcd; what was refused or only tried is left out.

    The answer to a deletion may hold no revision: it then follows all that was answered before it. A busy
    API server may say much later that it has answered: what was written before has happened before.
    """
    writes = []
    for event in events:
        write = _write(event)
        if write is not None:
            writes.append(write)
    writes.sort(key=lambda write: write.stamp)
    ordered, latest = [], 0
    for write in writes:
        latest = max(latest, write.revision)
        ordered.append(write if write.revision else replace(write, revision=latest))
    ordered.sort(key=lambda write: write.revision)
    earliest, timed = float("inf"), []
    for write in reversed(ordered):
        earliest = min(earliest, write.time)
        timed.append(replace(write, time=earliest))
    return timed[::-1]


def replay(writes: Iterable[Write]) -> Iterator[tuple[State, Write, State]]:
    """Each write with the state before and after it."""
    state = State()
    for write in writes:
        before = replace(state, time=write.time)
        state = _after(before, write)
        yield before, write, state


def serving_pod_counts(events: Iterable[Body], owner: Key, since: float) -> list[int]:
    """Serving pods of a TurboDeployment that had not ended, after each write from `since` (epoch seconds) on.

    A pod that terminates counts until its containers have ended: only then are its places given away.
    """
    return [
        sum(pod.workload[0] == "Deployment" and not pod.ended for pod in state.pods_of(owner))
        for _, write, state in replay(read_writes(events))
        if write.time >= since
    ]


def _write(event: Body) -> Write | None:
    target, answer = event.get("objectRef") or {}, event.get("responseStatus") or {}
    verb = event["verb"]
    if target.get("resource") not in _TRACKED or answer.get("code", 500) >= 300:
        return None
    if "dryRun=" in event.get("requestURI", "") or verb == "deletecollection":
        return None
    body: Body | None = event.get("responseObject") or {}
    assert body is not None
    if target.get("subresource") in ("binding", "eviction", "scale"):
        return None  # their effect is in the object's next write
    gone = body.get("kind") == "Status" and verb == "delete"
    if not gone and "metadata" not in body:
        return None
    meta = {} if gone else body["metadata"]
    key = (
        str(target.get("namespace") or meta.get("namespace") or ""),
        str(target.get("name") or meta.get("name")),
    )
    return Write(
        seconds(event["stageTimestamp"]),
        event["stageTimestamp"],
        event.get("requestReceivedTimestamp", event["stageTimestamp"]),
        event["user"]["username"],
        verb,
        target["resource"],
        target.get("subresource") or "",
        key,
        None if gone or _has_gone(verb, meta) else body,
        int(meta.get("resourceVersion") or 0),
    )


def _has_gone(verb: str, meta: Body) -> bool:
    """Whether this write was the object's last one."""
    if meta.get("finalizers"):
        return False
    if "deletionTimestamp" in meta:
        return int(meta.get("deletionGracePeriodSeconds") or 0) == 0
    return verb == "delete"  # at once: the answer is the object as it was


def _after(state: State, write: Write) -> State:
    key, body = write.key, write.body
    if write.resource == "turbodeployments":
        return replace(state, deployments=_put(state.deployments, key, body))
    if write.resource == "turboaccelerators":
        return replace(state, accelerators=_put(state.accelerators, label_value(key[1]), body))
    if write.resource == "nodes":
        return replace(state, nodes=_put(state.nodes, key[1], body))
    if write.resource == "resourcequotas":
        hard = None if body is None else (body.get("spec") or {}).get("hard") or {}
        return replace(state, quotas=_put(state.quotas, key, hard))
    if write.resource == "pods":
        old = state.pods.get(key)
        return replace(state, pods=_put(state.pods, key, _pod(body, old, write.time)))
    if write.resource == "controllerrevisions":
        return replace(state, revisions=_put(state.revisions, key, _owner(body)))
    kind = "Deployment" if write.resource == "deployments" else "Job"
    return replace(state, workloads=_put(state.workloads, (kind, key), _workload(kind, body)))


def _put(table: Mapping[Any, Any], key: Any, value: Any) -> Mapping[Any, Any]:
    if value is None:
        return {name: item for name, item in table.items() if name != key} if key in table else table
    return {**table, key: value}


def _owner(body: Body | None) -> Key | None:
    if body is None:
        return None
    meta = body["metadata"]
    name = (meta.get("labels") or {}).get(LABEL_DEPLOYMENT)
    return (meta.get("namespace", ""), name) if name else None


def _pod(body: Body | None, old: PodState | None, time: float) -> PodState | None:
    owner = _owner(body)
    if body is None or owner is None:
        return None
    meta, status = body["metadata"], body.get("status") or {}
    labels, name = meta["labels"], owner[1]
    role = labels.get(LABEL_ROLE)
    if role == "inspect":
        return None
    serves = role == "serving"
    workload = f"{name}-{labels.get(LABEL_PLAN_HASH)}" if serves else labels.get(_JOB_NAME, "")
    conditions = status.get("conditions") or ()
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
    ready_since = (old.ready_since if old and old.ready_since is not None else time) if ready else None
    return PodState(
        meta["name"],
        owner,
        ("Deployment" if serves else "Job", workload),
        Devices.of(labels),
        ready_since,
        status.get("phase") in _ENDED,
        "deletionTimestamp" in meta,
        (body.get("spec") or {}).get("nodeName"),
    )


def _workload(kind: str, body: Body | None) -> Workload | None:
    owner = _owner(body)
    if body is None or owner is None:
        return None
    spec = body.get("spec") or {}
    labels = ((spec.get("template") or {}).get("metadata") or {}).get("labels") or {}
    replicas = spec.get("replicas", 1)
    if kind == "Job":
        if labels.get(LABEL_ROLE) != "train":
            return None
        ended = (body.get("status") or {}).get("conditions") or ()
        replicas = 0 if any(each["status"] == "True" for each in ended) else 1
    return Workload(
        body["metadata"]["name"], owner, Devices.of(labels), replicas, LABEL_DRAFT_VERSION in labels
    )


def price_of(state: State, devices: Devices) -> Decimal:
    """US dollars per hour of one pod; 0 where the price is not known. Nodes bought whole are not counted."""
    body = state.accelerators.get(devices.accelerator or "")
    if body is None:
        return Decimal(0)
    prices = ((body["spec"].get("pricing") or {}).get("perAcceleratorHour")) or {}
    kind = devices.capacity_type[:1].lower() + devices.capacity_type[1:]
    return Decimal(prices.get(kind, "0")) * devices.count


def describe(write: Write) -> str:
    """A write in one line, for whoever looks into what happened."""
    if write.body is None:
        return f"{write}: gone"
    spec, status = write.body.get("spec") or {}, write.body.get("status") or {}
    said = {
        each["type"]: f"{each['status']}/{each.get('reason', '')}" for each in status.get("conditions") or ()
    }
    if write.resource == "pods":
        ending = ", ends" if "deletionTimestamp" in write.body["metadata"] else ""
        return f"{write}: {status.get('phase')}, Ready {said.get('Ready', '')}{ending}"
    if write.resource == "deployments":
        there = [
            f"{status.get(name, 0)} {name}" for name in ("replicas", "readyReplicas", "availableReplicas")
        ]
        return f"{write}: asks for {spec.get('replicas')}; {', '.join(there)}"
    if write.resource == "turbodeployments" and write.subresource:
        hashes = [(status.get(name) or {}).get("hash") for name in ("plan", "servingPlan")]
        told = {kind: said.get(kind) for kind in ("Ready", "Available", "Reconciling", "Stalled")}
        counts = [status.get(name) for name in ("desiredReplicas", "replicas", "readyReplicas")]
        return f"{write}: plans {hashes}, {counts}, {told}, rollout {status.get('rollout')}"
    if write.resource == "turbodeployments":
        return f"{write}: generation {write.body['metadata'].get('generation')}, {spec}"
    return str(write)
