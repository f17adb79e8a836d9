"""What is read of Jobs and of pods that train."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from turbo_operator.api import epoch
from turbo_operator.controller.cache.groups import merge_groups
from turbo_operator.controller.cache.projection import child, pod
from turbo_operator.snapshot import ChildView, MissingFile, PodView, TrainPod

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


CHECK = {"exitCode": 3, "message": "the claim lacks /cache/hub/models--a--b/refs/main\n", "finishedAt": LATER}


@pytest.mark.parametrize(
    ("state", "missing"),
    [
        ({"terminated": CHECK}, MissingFile("/cache/hub/models--a--b/refs/main", epoch(LATER))),
        (
            {"waiting": {"reason": "CrashLoopBackOff"}},
            MissingFile("/cache/hub/models--a--b/refs/main", epoch(LATER)),
        ),
        ({"terminated": {"exitCode": 0, "finishedAt": LATER}}, None),
        ({"terminated": {"exitCode": 137, "reason": "OOMKilled", "finishedAt": LATER}}, None),
    ],
)
def test_a_pod_says_what_it_does_not_find_of_a_model_until_it_finds_all(
    state: dict[str, Any], missing: MissingFile | None
) -> None:
    check = {"name": "check", "state": state, "lastState": {"terminated": CHECK}}
    assert trains(phase="Pending", initContainerStatuses=[check]).lacks == missing
    labels = {"serving.turbo.dev/plan-hash": "v2abc"}
    status = {"phase": "Pending", "initContainerStatuses": [check]}
    serves = pod({"metadata": {"name": "p", "labels": labels}, "status": status})
    assert serves.lacks == missing


def test_a_pod_that_a_kubelet_makes_no_folder_for_lacks_all_since_it_was_placed() -> None:
    message = 'failed to create subPath directory for volumeMount "cache" of container "check"'
    waits = {"waiting": {"reason": "CreateContainerConfigError", "message": message}}
    check = {"name": "check", "state": waits}
    seen = trains(phase="Pending", conditions=placed("True"), initContainerStatuses=[check])
    assert seen.lacks == MissingFile("", epoch(LATER))


def test_of_a_replica_on_several_nodes_any_pod_says_what_is_missing() -> None:
    leader = PodView("l", "v2abc", "Pending", False, None, None, None, group="0")
    lacks = MissingFile("/cache/hub", 1.0)
    worker = replace(leader, name="w", worker=1, reason="Error", lacks=lacks)
    (merged,) = merge_groups([leader, worker])
    assert merged.lacks == lacks


def test_a_pod_says_whether_it_mounts_an_image() -> None:
    for volume, has_image in (({"emptyDir": {}}, False), ({"image": {"reference": "a:1"}}, True)):
        body = {"metadata": {"name": "p"}, "spec": {"volumes": [{"name": "m", **volume}]}}
        seen = pod(body)
        assert isinstance(seen, PodView)
        assert seen.has_image == has_image
