"""Projects the API server's dictionaries to the few fields that are used: a pod as one is 43 KB. Pure.

Every projection takes an object as a watch or a list delivers it and tolerates missing parts: an object may
be seen before its controller has written its status.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from turbo_operator import api
from turbo_operator.commitments import Budget
from turbo_operator.inventory.usage import overdue
from turbo_operator.render import fetch
from turbo_operator.resources import LABEL_GROUPED, WORKLOADS
from turbo_operator.snapshot import (
    ChildView,
    DraftView,
    FetchPod,
    GatewayView,
    JobPod,
    MissingFile,
    PodView,
    TrainPod,
)

# What a container that is about to run says; no reason for anything.
_STARTING = {"ContainerCreating", "PodInitializing"}
_NO_FOLDER = "failed to create subPath directory"  # what a kubelet says of one that is not there
# Of pods that a LeaderWorkerSet makes: which group of it, and which pod of the group; 0 is the leader.
_LABEL_GROUP = "leaderworkerset.sigs.k8s.io/group-index"
_LABEL_WORKER = "leaderworkerset.sigs.k8s.io/worker-index"


def deployment(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a TurboDeployment without its managedFields."""
    meta = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
    return {**body, "metadata": meta}


def child(body: Mapping[str, Any]) -> ChildView:
    """Project a child of ours, of any kind."""
    meta, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    kind = body["kind"]
    is_deployment, is_job, is_workload = kind == "Deployment", kind == "Job", kind in WORKLOADS
    failure = _condition(status, {"Job": "Failed", "Deployment": "ReplicaFailure"}.get(kind, ""))
    failed = is_job and failure is not None
    return ChildView(
        kind=kind,
        name=meta["name"],
        uid=meta["uid"],
        applied_hash=(meta.get("annotations") or {}).get(api.ANNOTATION_APPLIED_HASH),
        plan_hash=_plan_hash(body),
        replicas=spec.get("replicas") if is_workload else None,
        available_replicas=status.get("availableReplicas") or 0,
        observed_generation=status.get("observedGeneration") or 0,
        generation=meta.get("generation") or 0,
        pods=(status.get("replicas") or 0) if is_deployment else 0,
        unavailable_since=_since(status, "Available", "False") if is_workload else None,
        terminating="deletionTimestamp" in meta,
        finalizers=tuple(meta.get("finalizers") or ()),
        data=body.get("data") if kind == "ConfigMap" else _frozen_template(body),
        failed=failed,
        complete=is_job and _condition(status, "Complete") is not None,
        has_image=is_job and _has_image((spec.get("template") or {}).get("spec")),
        message=failure.get("message") if failure else None,
        reason=failure.get("reason") if failure and failed else None,
        ended=_since(status, "Failed" if failed else "Complete") if is_job else None,
        gateways=tuple(_gateway(meta, parent) for parent in status.get("parents") or ()),
        **_placement(template_labels(body)),
    )


def _gateway(meta: Mapping[str, Any], parent: Mapping[str, Any]) -> GatewayView:
    """Project what one gateway says of an InferencePool; what it said of an earlier spec is left out."""
    ref, generation = parent.get("parentRef") or {}, meta.get("generation") or 0
    conditions = {
        item["type"]: item
        for item in parent.get("conditions") or ()
        if (item.get("observedGeneration") or generation) >= generation
    }
    found = [conditions.get(kind) or {} for kind in ("Accepted", "ResolvedRefs")]
    wrong = next((item for item in found if item.get("status") == "False"), None)
    name = f"{ref.get('kind', 'Gateway')} {ref.get('namespace') or meta['namespace']}/{ref.get('name')}"
    error = f"{wrong.get('reason')}: {wrong.get('message') or 'it gives no message'}" if wrong else None
    return GatewayView(name, found[0].get("status") == "True" and not wrong, error)


def _has_image(spec: Mapping[str, Any] | None) -> bool:
    """Whether a pod of a spec mounts an image."""
    return any("image" in volume for volume in (spec or {}).get("volumes") or ())


def _frozen_template(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the pod template that a ControllerRevision holds; None where it is none, or of another kind."""
    data = body.get("data") if body["kind"] == "ControllerRevision" else None
    parts = [data.get(name) for name in ("metadata", "spec")] if isinstance(data, Mapping) else [None]
    return data if all(isinstance(part, Mapping) for part in parts) else None


def template_labels(body: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the labels of the pod template in a child; a ControllerRevision may hold anything."""
    is_revision = body["kind"] == "ControllerRevision"
    labels: Any = body.get("data") if is_revision else _leading_template(body.get("spec") or {})
    for name in ("metadata", "labels"):
        labels = labels.get(name) if isinstance(labels, Mapping) else None
    if not isinstance(labels, Mapping):
        return {}
    return {name: value for name, value in labels.items() if isinstance(value, str)}


def _leading_template(spec: Mapping[str, Any]) -> Any:
    return (spec.get("leaderWorkerTemplate") or {}).get("leaderTemplate") or spec.get("template")


def controller(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the owner reference of whatever controls an object, None when nothing does."""
    owners: Iterable[Mapping[str, Any]] = body["metadata"].get("ownerReferences") or ()
    return next((owner for owner in owners if owner.get("controller")), None)


def is_controlled_by(body: Mapping[str, Any], uid: str) -> bool:
    """Whether the object of that uid controls it."""
    owner = controller(body)
    return owner is not None and owner["uid"] == uid


def _plan_hash(body: Mapping[str, Any]) -> str | None:
    """Read a variant's plan hash from the name `NAME-HASH` that nobody can edit."""
    owner, name = controller(body), body["metadata"]["name"]
    if body["kind"] not in (*WORKLOADS, "ControllerRevision") or owner is None:
        return None
    prefix = f"{owner['name']}-"
    return name.removeprefix(prefix) if name.startswith(prefix) and name != f"{prefix}router" else None


def draft(body: api.TurboDraft) -> DraftView:
    """Project a TurboDraft."""
    spec, created = body.spec, body.metadata.creation_timestamp
    rows = [(row.acceptance_length, row.acceptance_per_position) for row in spec.evaluation or ()]
    known = [(length, shares) for length, shares in rows if length is not None and shares]
    _, worst = min(known, default=(None, ()))
    return DraftView(
        body.metadata.name,
        spec.method,
        spec.location.claim_name,
        spec.location.path,
        spec.version,
        spec.target_digest,
        digest=spec.digest,
        deployment=spec.deployment_name,
        created=api.epoch(created) if created else 0.0,
        acceptance=tuple(min(1.0, float(share)) for share in worst),
    )


def budget(body: api.TurboBudget) -> Budget:
    """Project a TurboBudget."""
    spec = body.spec
    limits = spec.accelerators
    return Budget(
        body.metadata.name,
        spec.max_per_hour,
        None if limits is None else limits.max_total,
        None if limits is None or limits.allowed is None else frozenset(limits.allowed),
        uid=body.metadata.uid,
        generation=body.metadata.generation,
        conditions=body.status.conditions,
    )


def pod(body: Mapping[str, Any]) -> PodView | JobPod:
    """Project a pod of ours, by what it is there for."""
    return job_pod(body) if _job(body["metadata"]) else serving_pod(body)


def trains(job: str) -> bool:
    """Whether a Job of ours trains, by its name, as `training.manifests` makes it: labels can be edited."""
    return re.fullmatch(r".+-train-[0-9]+", job) is not None


def _view_of(job: str) -> type[JobPod]:
    """Return what a pod of a Job of ours is there for, by the Job's name, as `render.fetch` makes it."""
    if trains(job):
        return TrainPod
    return FetchPod if re.fullmatch(r".+-fetch-[a-z2-7]{4}", job) else JobPod


def serving_pod(body: Mapping[str, Any]) -> PodView:
    """Project a serving pod, with what holds it up."""
    meta, status = body["metadata"], body.get("status") or {}
    ready, labels = _condition(status, "Ready") is not None, meta.get("labels") or {}
    return PodView(
        plan_hash=labels.get(api.LABEL_PLAN_HASH, ""),
        owner_uid=labels.get(api.LABEL_OWNER_UID),
        ready=ready,
        ready_since=_since(status, "Ready"),
        created=api.epoch(stamp) if (stamp := meta.get("creationTimestamp")) else None,
        started=_started(status),
        overdue=overdue(meta),
        engine=labels.get(api.LABEL_ENGINE, api.EngineName.TURBO),
        group=labels.get(_LABEL_GROUP) if LABEL_GROUPED in labels else None,
        worker=_number(labels, _LABEL_WORKER, 0),
        draft_label=labels.get(api.LABEL_DRAFT_VERSION),
        has_image=_has_image(body.get("spec")),
        **_pod(body, (None, None) if ready else _trouble(status)),
    )


def job_pod(body: Mapping[str, Any]) -> JobPod:
    """Project a pod of a Job; `message` is what its container left as its termination message."""
    job, status = _job(body["metadata"]), body.get("status") or {}
    states = [container.get("state") or {} for container in status.get("containerStatuses") or ()]
    ends = [state["terminated"] for state in states if state.get("terminated")]
    end = next((end for end in ends if end.get("exitCode") != 0), ends[0] if ends else None)
    exit_code = end.get("exitCode", 1) if end else 1 if status.get("phase") == "Failed" else None
    start = (end or (states[0].get("running") if states else None) or {}).get("startedAt")
    return _view_of(job)(
        job=job,
        exit_code=exit_code,
        started=(api.epoch(start) or None) if start else None,  # 1970 is of a container that never began
        ended=api.epoch(stamp) if end and (stamp := end.get("finishedAt")) else None,
        **_pod(body, (None, end.get("message")) if end and exit_code == 0 else _trouble(status)),
    )


def _pod(body: Mapping[str, Any], trouble: tuple[str | None, str | None]) -> dict[str, Any]:
    """Project what views of pods share; `trouble` is a reason and a message."""
    meta, status = body["metadata"], body.get("status") or {}
    return {
        "name": meta["name"],
        "phase": status.get("phase", "Pending"),
        "ip": status.get("podIP"),
        "reason": trouble[0],
        "message": trouble[1],
        "terminating": "deletionTimestamp" in meta,
        "pending_since": _pending_since(body),
        "scheduled_since": _since(status, "PodScheduled"),
        "lacks": _missing_file(status),
        **_placement(meta.get("labels") or {}),
    }


def _missing_file(status: Mapping[str, Any]) -> MissingFile | None:
    """Return what the check before the engine did not find; None where it found all, or has not run."""
    for container in status.get("initContainerStatuses") or ():
        if container["name"] != fetch.CHECK_CONTAINER:
            continue
        state = container.get("state") or {}
        end = state.get("terminated") or (container.get("lastState") or {}).get("terminated") or {}
        message = (end.get("message") or "").strip()
        if end.get("exitCode") and message.startswith(fetch.LACKS):
            return MissingFile(message.removeprefix(fetch.LACKS), api.epoch(end["finishedAt"]))
        # A kubelet cannot make the folder on a claim that it has mounted read-only.
        waits, placed = state.get("waiting") or {}, _since(status, "PodScheduled")
        if _NO_FOLDER in (waits.get("message") or "") and placed is not None:
            return MissingFile("", placed)
    return None


def _placement(labels: Mapping[str, str]) -> dict[str, Any]:
    return {
        "accelerator": labels.get(api.LABEL_ACCELERATOR),
        "accelerators": max(1, _number(labels, api.LABEL_ACCELERATOR_COUNT, 1)),
        "capacity_type": labels.get(api.LABEL_CAPACITY_TYPE, api.CapacityType.ON_DEMAND),
        "nodes": max(1, _number(labels, api.LABEL_NODES, 1)),
    }


def _number(labels: Mapping[str, str], name: str, default: int) -> int:
    text = labels.get(name, "")
    return int(text) if text.isdecimal() else default


def _condition(status: Mapping[str, Any], kind: str, value: str = "True") -> Mapping[str, Any] | None:
    """Return the condition of a type where it has the value."""
    conditions: Iterable[Mapping[str, Any]] = status.get("conditions") or ()
    return next((item for item in conditions if (item["type"], item["status"]) == (kind, value)), None)


def _since(status: Mapping[str, Any], kind: str, value: str = "True") -> float | None:
    """Return since when a condition has had the value, in epoch seconds; None when it has another."""
    stamp = (_condition(status, kind, value) or {}).get("lastTransitionTime")
    return None if stamp is None else api.epoch(stamp)


def _started(status: Mapping[str, Any]) -> float | None:
    """Return since when all containers have run, in epoch seconds; None while one does not."""
    states = [container.get("state") or {} for container in status.get("containerStatuses") or ()]
    stamps: list[str] = [(state.get("running") or {}).get("startedAt", "") for state in states]
    return max(map(api.epoch, stamps)) if stamps and all(stamps) else None


def _pending_since(body: Mapping[str, Any]) -> float | None:
    """Return since when no node has taken the pod; None when one has."""
    status = body.get("status") or {}
    if (body.get("spec") or {}).get("nodeName") or status.get("phase") != "Pending":
        return None
    refused = _since(status, "PodScheduled", "False")
    created = body["metadata"].get("creationTimestamp")
    return refused if refused is not None or created is None else api.epoch(created)


def _job(meta: Mapping[str, Any]) -> str:
    """Return the Job that made a pod; empty where none did."""
    owners = meta.get("ownerReferences") or ()
    return next((owner["name"] for owner in owners if owner["kind"] == "Job"), "")


def _trouble(status: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return the first reason why a pod is not ready, as Kubernetes says it; none while it merely starts."""
    for container in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        state, last = container.get("state") or {}, container.get("lastState") or {}
        waiting = state.get("waiting") or {}
        end = state.get("terminated") or last.get("terminated") or {}
        if end.get("reason") == "OOMKilled":  # what a crash loop hides
            return "OOMKilled", end.get("message") or f"container {container['name']} ran out of memory"
        if waiting.get("reason") and waiting["reason"] not in _STARTING:
            return waiting["reason"], end.get("message") or waiting.get("message")
        if state.get("terminated") and end.get("exitCode"):
            return end.get("reason") or "Error", end.get("message")
    source = _condition(status, "PodScheduled", "False") or status
    return source.get("reason"), source.get("message")
