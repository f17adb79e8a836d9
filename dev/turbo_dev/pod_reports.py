"""What a kubelet reports about a pod: its status, as a merge patch. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from turbo_operator.api import LABEL_ROLE, ROLE_FETCH, ROLE_INSPECT, rfc3339
from turbo_operator.catalog import shapes
from turbo_runtime.contract.documents import ModelInfo, ModelShape

Body = Mapping[str, Any]

# A model that no test needs, as `turbo inspect` tells of it.
FACTS = ModelInfo(
    shape=ModelShape("LlamaForCausalLM", 134515008, 30, 576, 9, 3, 64, 49152, 8192, "Q4_1"),
    digest="sha256:" + "0" * 64,
    revision=None,
    weight_bytes=98_000_000,
)


def inspects(pod: Body) -> bool:
    """Whether it reads a model's shape."""
    return bool(pod["metadata"]["labels"].get(LABEL_ROLE) == ROLE_INSPECT)


def fetches(pod: Body) -> bool:
    """Whether it brings a model to a claim."""
    return bool(pod["metadata"]["labels"].get(LABEL_ROLE) == ROLE_FETCH)


def ended(pod: Body, now: float) -> dict[str, Any]:
    """It has done its work."""
    return report(pod, now, "Succeeded", {"terminated": {"exitCode": 0, "reason": "Completed"}})


def inspected(pod: Body, now: float, problem: str | None = None) -> dict[str, Any]:
    """It has ended with the facts, those of a shipped shape where there is one, or with what is wrong."""
    shape = shapes.shipped(pod["spec"]["containers"][0]["args"][0])
    facts = FACTS if shape is None else replace(FACTS, shape=shape, revision="0" * 40)
    end = {"exitCode": 0, "message": facts.to_json(), "reason": "Completed"}
    if problem is not None:
        end = {"exitCode": 1, "message": problem, "reason": "Error"}
    return report(pod, now, "Failed" if problem else "Succeeded", {"terminated": end})


def running(pod: Body, now: float, ready: bool = True) -> dict[str, Any]:
    """Its containers run, and are ready or not."""
    return report(pod, now, "Running", {"running": {"startedAt": rfc3339(now)}}, ready)


def waiting(pod: Body, now: float, reason: str, message: str) -> dict[str, Any]:
    """Its containers cannot start, or not go on: CrashLoopBackOff, ImagePullBackOff."""
    return report(pod, now, "Pending", {"waiting": {"reason": reason, "message": message}})


def lacking(pod: Body, now: float, path: str) -> dict[str, Any]:
    """Its check has not found a file of the model on the claim."""
    end = {
        "exitCode": 3,
        "reason": "Error",
        "message": f"the claim lacks {path}\n",
        "finishedAt": rfc3339(now),
    }
    checks = [
        {**each, "name": "check", "state": {"terminated": end}}
        for each in report(pod, now, "", {})["containerStatuses"]
    ]
    return waiting(pod, now, "PodInitializing", "") | {"initContainerStatuses": checks}


def evicted(pod: Body, now: float) -> dict[str, Any]:
    """Its node has put it out."""
    end = {"terminated": {"exitCode": 137, "reason": "Error"}}
    status: dict[str, Any] = report(pod, now, "Failed", end)
    return status | {"reason": "Evicted", "message": "The node was low on resource: memory."}


def report(pod: Body, now: float, phase: str, state: Body, ready: bool = False) -> dict[str, Any]:
    """A status in which all containers are in one state."""
    return {
        "phase": phase,
        "podIP": "127.0.0.2",
        "podIPs": [{"ip": "127.0.0.2"}],
        "conditions": [_condition(pod, kind, str(ready), now) for kind in ("Ready", "ContainersReady")]
        + [each for each in pod.get("status", {}).get("conditions", ()) if each["type"] == "PodScheduled"],
        "containerStatuses": [
            {
                "name": container["name"],
                "state": state,
                "ready": ready,
                "restartCount": 0,
                "image": "x",
                "imageID": "x",
            }
            for container in pod["spec"]["containers"]
        ],
    }


def _condition(pod: Body, kind: str, status: str, now: float) -> dict[str, Any]:
    """The time that it carries is when it last flipped."""
    for old in pod.get("status", {}).get("conditions", ()):
        if old["type"] == kind and old["status"] == status and old.get("lastTransitionTime"):
            return {"type": kind, "status": status, "lastTransitionTime": old["lastTransitionTime"]}
    return {"type": kind, "status": status, "lastTransitionTime": rfc3339(now)}
