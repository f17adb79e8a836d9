"""What is read of Jobs and of pods that train."""

from __future__ import annotations

from typing import Any

import pytest

from turbo_operator.api import epoch
from turbo_operator.controller.cache.projection import child, pod
from turbo_operator.snapshot import ChildView, TrainPod

AT, LATER = "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"


def trains(state: dict[str, Any] | None = None, **status: Any) -> TrainPod:
    containers = [] if state is None else [{"name": "train", "state": state}]
    node = {} if status.get("phase") == "Pending" and state is None else {"nodeName": "n"}
    owner = {"kind": "Job", "name": "chat-train-1", "uid": "j", "controller": True}
    seen = pod(
        {
            "metadata": {"name": "p", "creationTimestamp": AT, "ownerReferences": [owner]},
            "spec": node,
            "status": {"containerStatuses": containers, **status},
        }
    )
    assert isinstance(seen, TrainPod)
    return seen


def placed(status: str) -> list[dict[str, Any]]:
    return [{"type": "PodScheduled", "status": status, "lastTransitionTime": LATER}]


def test_a_pod_that_trains_says_since_when_it_waits_for_a_node_and_since_when_it_has_one() -> None:
    waits = trains(phase="Pending", conditions=placed("False"))
    assert (waits.pending_since, waits.scheduled_since) == (epoch(LATER), None)
    creating = {"waiting": {"reason": "ContainerCreating"}}
    starts = trains(creating, phase="Pending", conditions=placed("True"))
    assert (starts.pending_since, starts.scheduled_since) == (None, epoch(LATER))
    assert (starts.reason, starts.started) == (None, None)


def test_a_container_that_never_began_has_no_time_of_its_start() -> None:
    never = {"exitCode": 128, "reason": "StartError", "startedAt": "1970-01-01T00:00:00Z", "finishedAt": AT}
    ended = trains({"terminated": never}, phase="Failed")
    assert (ended.exit_code, ended.started, ended.ended) == (128, None, epoch(AT))
    ran = trains({"terminated": {"exitCode": 1, "startedAt": AT, "finishedAt": LATER}}, phase="Failed")
    assert (ran.started, ran.ended) == (epoch(AT), epoch(LATER))


def job(*conditions: str) -> ChildView:
    held = [{"type": each, "status": "True", "lastTransitionTime": LATER} for each in conditions]
    return child({"kind": "Job", "metadata": {"name": "j", "uid": "u"}, "status": {"conditions": held}})


def test_a_job_says_when_it_was_over() -> None:
    assert job().ended is None
    assert (job("Complete").ended, job("Complete").complete) == (epoch(LATER), True)
    assert (job("Failed").ended, job("Failed").failed) == (epoch(LATER), True)


@pytest.mark.parametrize("data", ["x", ["x"], {"metadata": "x"}, {"metadata": {"labels": ["x"]}}, None])
def test_a_controller_revision_may_hold_anything(data: Any) -> None:
    """Found in review: one of a stranger's making ended the process, and those that followed it."""
    owner = {"kind": "TurboDeployment", "name": "chat", "uid": "u", "controller": True}
    meta = {"name": "chat-abc", "uid": "r", "ownerReferences": [owner]}
    body = {"kind": "ControllerRevision", "metadata": meta, "data": data}
    assert child(body).accelerator is None
