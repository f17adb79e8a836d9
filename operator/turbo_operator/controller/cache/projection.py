"""From the API server's dictionaries to the few fields that are used: a pod as a dictionary is 43 KB. Pure.

Every projection takes an object as a watch or a list delivers it and tolerates missing parts: an object may
be seen before its controller has written its status.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from turbo_operator.api import (
    ANNOTATION_APPLIED_HASH,
    LABEL_ACCELERATOR,
    LABEL_ACCELERATOR_COUNT,
    LABEL_CAPACITY_TYPE,
    LABEL_PLAN_HASH,
    CapacityType,
    TurboDraft,
    epoch,
)
from turbo_operator.snapshot import ChildView, DraftView, PodView, TrainPod

# What a container that is about to run says; no reason for anything.
_STARTING = {"ContainerCreating", "PodInitializing"}


@dataclass(frozen=True, slots=True)
class InspectPod:
    """A pod of an inspect Job. `message` is what the container left as its termination message."""

    name: str
    job: str
    succeeded: bool  # the container ended with exit code 0
    reason: str | None  # what holds it up or ended it, as Kubernetes says it
    message: str | None


def child(body: Mapping[str, Any]) -> ChildView:
    """A child of ours, of any kind."""
    meta, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    kind = body["kind"]
    failed, reason, message = _failure(kind, status.get("conditions") or ())
    is_deployment = kind == "Deployment"
    template = (body.get("data") if kind == "ControllerRevision" else spec.get("template")) or {}
    template_labels = (template.get("metadata") or {}).get("labels") or {}
    return ChildView(
        kind=kind,
        name=meta["name"],
        uid=meta["uid"],
        applied_hash=(meta.get("annotations") or {}).get(ANNOTATION_APPLIED_HASH),
        plan_hash=_plan_hash(body),
        replicas=spec.get("replicas") if is_deployment else None,
        available_replicas=status.get("availableReplicas") or 0,
        observed_generation=status.get("observedGeneration") or 0,
        generation=meta.get("generation") or 0,
        pods=(status.get("replicas") or 0) if is_deployment else 0,
        unavailable_since=_since(status, "Available", "False") if is_deployment else None,
        accelerator=template_labels.get(LABEL_ACCELERATOR),
        accelerators=_count(template_labels),
        capacity_type=template_labels.get(LABEL_CAPACITY_TYPE, CapacityType.ON_DEMAND),
        terminating="deletionTimestamp" in meta,
        finalizers=tuple(meta.get("finalizers") or ()),
        data=body.get("data") if kind in ("ConfigMap", "ControllerRevision") else None,
        failed=failed,
        complete=kind == "Job" and _holds(status, "Complete"),
        message=message,
        reason=reason if failed else None,
        ended=_since(status, "Failed" if failed else "Complete", "True") if kind == "Job" else None,
    )


def controller(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The owner reference of whatever controls an object, None when nothing does."""
    for owner in body["metadata"].get("ownerReferences") or ():
        if owner.get("controller"):
            found: Mapping[str, Any] = owner
            return found
    return None


def is_controlled_by(body: Mapping[str, Any], uid: str) -> bool:
    """Whether the object of that uid controls it."""
    owner = controller(body)
    return owner is not None and owner["uid"] == uid


def _plan_hash(body: Mapping[str, Any]) -> str | None:
    """A variant's, from the name `NAME-HASH` that nobody can edit."""
    owner, name = controller(body), body["metadata"]["name"]
    if body["kind"] not in ("Deployment", "ControllerRevision") or owner is None:
        return None
    prefix = f"{owner['name']}-"
    return name.removeprefix(prefix) if name.startswith(prefix) else None


def draft(it: TurboDraft) -> DraftView:
    """A TurboDraft as it is looked at."""
    spec = it.spec
    return DraftView(
        it.metadata.name,
        spec.method,
        spec.location.claim_name,
        spec.location.path,
        spec.version,
        spec.target_digest,
        digest=spec.digest,
        deployment=spec.deployment,
        created=epoch(created) if (created := it.metadata.creation_timestamp) else 0.0,
    )


def _holds(status: Mapping[str, Any], condition_type: str) -> bool:
    return any(
        condition["type"] == condition_type and condition["status"] == "True"
        for condition in status.get("conditions") or ()
    )


def _failure(kind: str, conditions: Iterable[Mapping[str, Any]]) -> tuple[bool, str | None, str | None]:
    """Whether a Job failed for good, and reason and sentence of a Job's or a Deployment's failure."""
    wanted = {"Job": "Failed", "Deployment": "ReplicaFailure"}.get(kind)
    for condition in conditions:
        if condition["type"] == wanted and condition["status"] == "True":
            return kind == "Job", condition.get("reason"), condition.get("message")
    return False, None, None


def pod(body: Mapping[str, Any]) -> PodView | InspectPod | TrainPod:
    """A pod of ours, by what it is there for."""
    job = _job(body["metadata"])
    if not job:
        return serving_pod(body)
    return train_pod(body) if trains(job) else inspect_pod(body)


def trains(job: str) -> bool:
    """Whether a Job of ours trains, by its name, as `training.names` makes it: labels can be edited."""
    return re.fullmatch(r".+-train-[0-9]+", job) is not None


def serving_pod(body: Mapping[str, Any]) -> PodView:
    """A serving pod, with what holds it up."""
    meta, status = body["metadata"], body.get("status") or {}
    labels = meta.get("labels") or {}
    ready = _holds(status, "Ready")
    reason, message = (None, None) if ready else _trouble(status)
    return PodView(
        name=meta["name"],
        plan_hash=labels.get(LABEL_PLAN_HASH, ""),
        phase=status.get("phase", "Pending"),
        ready=ready,
        ip=status.get("podIP"),
        reason=reason,
        message=message,
        terminating="deletionTimestamp" in meta,
        pending_since=_pending_since(body),
        ready_since=_since(status, "Ready", "True"),
        placed_since=_since(status, "PodScheduled", "True"),
        accelerator=labels.get(LABEL_ACCELERATOR),
        accelerators=_count(labels),
        capacity_type=labels.get(LABEL_CAPACITY_TYPE, CapacityType.ON_DEMAND),
    )


def _count(labels: Mapping[str, str]) -> int:
    """Accelerators of a pod, as its label says."""
    count = labels.get(LABEL_ACCELERATOR_COUNT, "")
    return max(1, int(count)) if count.isdecimal() else 1


def _pending_since(body: Mapping[str, Any]) -> float | None:
    """Since when no node has taken the pod; None when one has."""
    if (body.get("spec") or {}).get("nodeName") or (body.get("status") or {}).get("phase") != "Pending":
        return None
    refused = _since(body.get("status") or {}, "PodScheduled", "False")
    created = body["metadata"].get("creationTimestamp")
    return refused if refused is not None or created is None else epoch(created)


def _since(status: Mapping[str, Any], condition_type: str, value: str) -> float | None:
    """Since when the condition has had the value, in seconds since the epoch; None when it has another."""
    for condition in status.get("conditions") or ():
        if condition["type"] == condition_type and condition["status"] == value:
            stamp = condition.get("lastTransitionTime")
            return None if stamp is None else epoch(stamp)
    return None


def inspect_pod(body: Mapping[str, Any]) -> InspectPod:
    """A pod of an inspect Job."""
    meta, status = body["metadata"], body.get("status") or {}
    ended = [
        state["terminated"]
        for container in status.get("containerStatuses") or ()
        if (state := container.get("state") or {}).get("terminated")
    ]
    succeeded = bool(ended) and all(end.get("exitCode") == 0 for end in ended)
    reason, message = (None, ended[0].get("message")) if succeeded else _trouble(status)
    return InspectPod(
        name=meta["name"],
        job=_job(meta),
        succeeded=succeeded,
        reason=reason,
        message=message,
    )


def train_pod(body: Mapping[str, Any]) -> TrainPod:
    """A pod that trains a draft; it has one container."""
    meta, status = body["metadata"], body.get("status") or {}
    labels = meta.get("labels") or {}
    state = next((each.get("state") or {} for each in status.get("containerStatuses") or ()), {})
    end, phase = state.get("terminated"), status.get("phase", "Pending")
    exit_code = end.get("exitCode", 1) if end else 1 if phase == "Failed" else None
    reason, message = (None, end.get("message")) if end and exit_code == 0 else _trouble(status)
    began = (end or state.get("running") or {}).get("startedAt")
    return TrainPod(
        name=meta["name"],
        job=_job(meta),
        phase=phase,
        ip=status.get("podIP"),
        exit_code=exit_code,
        reason=reason,
        message=message,
        started=(epoch(began) or None) if began else None,  # 1970 is of a container that never began
        ended=epoch(stamp) if end and (stamp := end.get("finishedAt")) else None,
        pending_since=_pending_since(body),
        placed_since=_since(status, "PodScheduled", "True"),
        terminating="deletionTimestamp" in meta,
        accelerator=labels.get(LABEL_ACCELERATOR),
        accelerators=_count(labels),
        capacity_type=labels.get(LABEL_CAPACITY_TYPE, CapacityType.ON_DEMAND),
    )


def _job(meta: Mapping[str, Any]) -> str:
    """The Job that made a pod; empty where none did."""
    owners = [owner["name"] for owner in meta.get("ownerReferences") or () if owner["kind"] == "Job"]
    return owners[0] if owners else ""


def _trouble(status: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The first reason why a pod is not ready, in Kubernetes' own words; none while it merely starts."""
    for container in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        state, last = container.get("state") or {}, container.get("lastState") or {}
        waiting = state.get("waiting") or {}
        ended = state.get("terminated") or last.get("terminated") or {}
        if ended.get("reason") == "OOMKilled":  # what a crash loop hides
            return "OOMKilled", ended.get("message") or f"container {container['name']} ran out of memory"
        if waiting.get("reason") and waiting["reason"] not in _STARTING:
            return waiting["reason"], ended.get("message") or waiting.get("message")
        if state.get("terminated") and ended.get("exitCode"):
            return ended.get("reason") or "Error", ended.get("message")
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return condition.get("reason"), condition.get("message")
    return status.get("reason"), status.get("message")
