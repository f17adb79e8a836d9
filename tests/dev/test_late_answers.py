"""What an API server logs late, and a client saw before: the rollout's judge takes it for no violation."""

from __future__ import annotations

import pytest

from turbo_dev.audit_log import KUBELET, NEW, OLD, serving


def test_an_answer_that_is_logged_late_makes_nothing_later() -> None:
    log = serving()
    log.scale(NEW, 1)
    log.pod("new-0", NEW)
    log.wait(60)
    log.pod("new-0", NEW, ready=False)
    log.wait(5)
    log.scale(OLD, 0)
    late = next(event for event in log.events if event["objectRef"]["resource"] == "pods")
    late["stageTimestamp"] = "2026-01-01T00:02:00Z"
    assert log.broken(lag=1.0) == ["availability"]


@pytest.mark.parametrize(("asked_first", "broken"), [(True, []), (False, ["drained"])])
def test_a_pod_whose_end_takes_hundreds_of_writes_has_ended_once_it_was_asked_for(
    asked_first: bool, broken: list[str]
) -> None:
    """Found by the storm on a busy machine: a watch shows the end, the log its answer much later."""
    log = serving(replicas=0)
    log.pod("aaaa-0", OLD, ready=False)
    asked = log.stamp()
    log.wait(1)
    log.remove(OLD)
    for _ in range(300):
        log.quota(8)
    log.gone("aaaa-0", OLD, received=asked if asked_first else None)
    assert log.broken() == broken


def test_a_pod_that_is_reported_after_its_end_was_asked_for_has_not_ended() -> None:
    log = serving(replicas=0)
    log.pod("aaaa-0", OLD)
    asked = log.stamp()
    log.wait(1)
    log.pod("aaaa-0", OLD)
    log.remove(OLD)
    log.wait(20)
    log.gone("aaaa-0", OLD, received=asked)
    assert "drained" in log.broken()


def test_a_pod_that_only_loses_its_labels_has_not_ended() -> None:
    log = serving(replicas=0)
    log.pod("aaaa-0", OLD)
    asked = log.stamp()
    log.wait(1)
    log.remove(OLD)
    log.write(KUBELET, "patch", "pods", "aaaa-0", {"metadata": {"labels": {}}}, received=asked)
    assert "drained" in log.broken()


@pytest.mark.parametrize(("seconds", "broken"), [(-0.1, []), (0.1, ["max-total"])])
def test_a_pod_whose_deletion_was_answered_before_a_write_holds_nothing_then(
    seconds: float, broken: list[str]
) -> None:
    """Found by the storm: a watch shows the end of its grace before the API server has removed it."""
    log = serving(accelerators={"maxTotal": 1}, rollout={"minReadySeconds": 1, "maxUnavailable": 1})
    log.scale(OLD, 0)
    log.end("aaaa-0", OLD)
    log.wait(5)
    log.scale(NEW, 1)
    log.wait(seconds)
    log.gone("aaaa-0", OLD)
    assert [name for name in log.broken() if name == "max-total"] == broken


def test_a_write_that_is_answered_late_is_judged_by_what_was_there_when_it_was_asked_for() -> None:
    """Found in review: whatever ended before a slow answer was taken for gone before the write."""
    log = serving(accelerators={"maxTotal": 1}, rollout={"minReadySeconds": 1, "maxUnavailable": 1})
    log.scale(OLD, 0)
    log.end("aaaa-0", OLD)
    log.wait(5)
    log.scale(NEW, 1)
    late = log.events[-1]
    log.wait(5)
    log.gone("aaaa-0", OLD)
    log.wait(5)
    late["requestReceivedTimestamp"] = late["stageTimestamp"]
    late["stageTimestamp"] = log.stamp()
    assert "max-total" in log.broken()
