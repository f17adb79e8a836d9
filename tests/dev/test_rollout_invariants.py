"""Each invariant of a rollout, kept and broken on purpose, in audit logs written by hand."""

from __future__ import annotations

from typing import Any

import pytest

from turbo_dev.audit_log import NEW, OLD, OPERATOR, ROLLOUT, START, USER, Log, serving
from turbo_dev.audit_timeline import serving_pod_counts
from turbo_dev.rollout_invariants import Judge, unfinished


def test_a_pod_counts_until_its_containers_have_ended_and_not_before_it_was_asked() -> None:
    log = serving(replicas=3)
    log.gone("aaaa-2", OLD)
    log.wait(1)
    began = START.timestamp() + log.seconds
    log.pod("bbbb-0", NEW, ready=False)
    log.end("aaaa-0", OLD)
    log.gone("aaaa-0", OLD)
    log.pod("bbbb-1", NEW)
    assert serving_pod_counts(log.events, ("team", "chat"), began) == [3, 3, 2, 3]


def test_a_rollout_with_a_surge_breaks_nothing() -> None:
    log = serving(replicas=2)
    log.scale(NEW, 1)
    log.pod("new-0", NEW)
    log.wait(5)
    log.scale(OLD, 1)
    log.end("aaaa-0", OLD)
    log.gone("aaaa-0", OLD)
    log.scale(NEW, 2)
    log.pod("new-1", NEW)
    log.wait(5)
    log.scale(OLD, 0)
    log.end("aaaa-1", OLD)
    log.gone("aaaa-1", OLD)
    log.remove(OLD)
    assert log.broken() == []


def test_taking_a_pod_that_answers_too_early_is_caught() -> None:
    log = serving()
    log.scale(NEW, 1)
    log.pod("new-0", NEW, ready=False)
    log.wait(5)
    log.scale(OLD, 0)
    assert log.broken() == ["availability"]


def test_with_max_unavailable_a_single_pod_may_go_first_and_without_a_surge_it_may_not() -> None:
    for rollout, broken in (
        ({"maxSurge": 0, "maxUnavailable": 1}, []),
        ({"maxSurge": 0}, ["availability"]),
    ):
        log = serving(rollout=ROLLOUT | rollout)
        log.scale(OLD, 0)
        assert log.broken() == broken


def test_of_two_one_may_go_first_only_where_there_is_no_room_for_a_third() -> None:
    for room, broken in ((2, []), (3, ["availability"])):
        log = serving(replicas=2)
        log.quota(room)
        log.scale(OLD, 1)
        assert log.broken() == broken
    for nodes, broken in ((2, []), (3, ["availability"])):
        log = Log(replicas=2)
        log.accelerator("gpu", "2.00", "Fixed")
        log.node("big", nodes)
        log.scale(OLD, 2)
        log.pod("old-0", OLD)
        log.pod("old-1", OLD)
        log.wait(5)
        log.scale(OLD, 1)
        assert log.broken() == broken


def test_pods_that_do_not_answer_may_go_at_any_time() -> None:
    log = serving(replicas=2)
    log.pod("aaaa-0", OLD, ready=False)
    log.scale(OLD, 1)
    assert log.broken() == []
    log.scale(OLD, 0)
    assert log.broken() == ["availability"]


def test_a_write_is_right_where_it_was_right_a_moment_ago() -> None:
    log = serving()
    log.scale(NEW, 1)
    log.pod("new-0", NEW)
    log.wait(5)
    log.pod("new-0", NEW, ready=False)
    log.wait(0.5)
    log.scale(OLD, 0)
    assert log.broken(lag=1.0) == []
    assert log.broken(lag=0.1) == ["availability"]


def test_more_replicas_than_the_surge_allows_are_caught() -> None:
    log = serving(replicas=2)
    log.scale(NEW, 2)
    assert log.broken() == ["surge"]
    log = serving(replicas=2, rollout=ROLLOUT | {"maxSurge": 2})
    log.scale(NEW, 2)
    assert log.broken() == []


def test_a_pod_that_tries_a_draft_is_none_of_the_surge_and_holds_its_accelerator() -> None:
    log = serving(replicas=2, accelerators={"maxTotal": 4}, rollout=ROLLOUT | {"maxSurge": 1})
    log.scale(NEW, 1)
    log.scale("cccc", 1, **{"draft-version": "1"})
    assert log.broken() == []
    log.scale("cccc", 2, **{"draft-version": "1"})
    assert log.broken() == ["max-total"]


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("max-total", {"accelerators": {"maxTotal": 2}}),
        ("budget", {"cost": {"maxPerHour": "5.00"}}),
        ("quota", {}),
    ],
)
def test_a_bound_on_accelerators_counts_pods_that_end_until_they_are_gone(
    name: str, spec: dict[str, Any]
) -> None:
    log = serving(replicas=2, **spec)
    log.quota(2)
    log.pod("aaaa-0", OLD, ready=False)
    log.scale(OLD, 1)
    log.end("aaaa-0", OLD)
    before = list(log.events)
    log.scale(NEW, 1)
    assert name in log.broken()
    log.events = before
    log.gone("aaaa-0", OLD)
    log.scale(NEW, 1)
    assert log.broken() == []


def test_the_quota_is_one_for_all_of_a_namespace() -> None:
    log = serving()
    log.quota(2)
    other = {"metadata": {"labels": log.labels("dddd", deployment="other")}}
    spec = {"replicas": 2, "template": other}
    log.write(USER, "create", "turbodeployments", "other", {"spec": {"replicas": 2}, "metadata": {}})
    log.write(OPERATOR, "patch", "deployments", "other-dddd", other | {"spec": spec})
    assert log.broken() == ["quota"]


def test_a_job_that_trains_holds_its_accelerator_until_it_has_ended() -> None:
    log = serving(accelerators={"maxTotal": 1})
    own = {"metadata": {"labels": log.labels("", role="train")}}
    body = own | {"spec": {"template": own}}
    log.write(OPERATOR, "patch", "jobs", "chat-train-1", body)
    assert log.broken() == ["max-total"]


def test_removing_what_served_last_is_caught_and_so_is_its_revision() -> None:
    log = serving()
    log.pod("aaaa-0", OLD, ready=False)
    log.scale(OLD, 0)
    log.gone("aaaa-0", OLD)
    log.scale(NEW, 1)
    log.remove(OLD)
    assert log.broken() == ["keeps-last", "keeps-last"]


def test_what_served_may_go_once_another_has_all_its_replicas_for_min_ready_seconds() -> None:
    for seconds, broken in ((3, ["keeps-last"]), (10, [])):
        log = serving(rollout={"minReadySeconds": 5, "maxSurge": 0, "maxUnavailable": 1})
        log.scale(OLD, 0)
        log.gone("aaaa-0", OLD)
        log.scale(NEW, 1)
        log.pod("new-0", NEW)
        log.wait(seconds)
        log.remove(OLD, "controllerrevisions")
        assert log.broken() == broken


@pytest.mark.parametrize(("gpus", "broken"), [(1, []), (2, ["keeps-last", "keeps-last"])])
def test_where_fewer_fit_than_are_wanted_those_that_fit_are_all(gpus: int, broken: list[str]) -> None:
    """Found by the storm: another one had taken the place of the second replica."""
    log = serving(replicas=2, rollout={"minReadySeconds": 1, "maxSurge": 0, "maxUnavailable": 2})
    log.scale(OLD, 0)
    for number in range(2):
        log.gone(f"{OLD}-{number}", OLD)
    log.quota(gpus)
    log.scale(NEW, 1)
    log.pod("new-0", NEW)
    log.wait(5)
    log.remove(OLD)
    assert log.broken() == broken


def test_what_never_had_all_replicas_may_go_where_one_that_had_is_kept() -> None:
    """Found by the storm: an abandoned plan had one of two replicas for longer than what served before it."""
    for kept, broken in ((True, []), (False, ["keeps-last"])):
        log = serving(replicas=2, rollout={"minReadySeconds": 1, "maxSurge": 0, "maxUnavailable": 2})
        log.scale(OLD, 0)
        for number in range(2):
            log.gone(f"{OLD}-{number}", OLD)
        log.scale("half", 2)
        log.pod("half-0", "half")
        if not kept:
            log.write(USER, "delete", "deployments", f"chat-{OLD}", None)
        log.wait(30)
        log.scale("half", 0)
        log.gone("half-0", "half")
        log.wait(5)
        log.remove("half", "deployments")
        assert log.broken() == broken


def test_a_deployment_that_goes_before_its_pods_is_caught() -> None:
    log = serving()
    log.scale(NEW, 1)
    log.pod("new-0", NEW)
    log.wait(5)
    log.scale(OLD, 0)
    log.end("aaaa-0", OLD)
    log.remove(OLD)
    assert log.broken() == ["drained"]


def test_going_back_to_a_plan_of_before_loses_the_one_that_serves_only_for_as_many() -> None:
    log = serving(replicas=2, rollout={"minReadySeconds": 1, "maxUnavailable": 2, "maxSurge": 0})
    for old, new in ((OLD, NEW), (NEW, OLD)):
        log.scale(old, 0)
        for name in ("0", "1"):
            log.gone(f"{'aaaa' if old == OLD else 'new'}-{name}", old)
        log.scale(new, 2)
        log.pod(f"{'new' if new == NEW else 'again'}-0", new)
        if new == NEW:
            log.pod("new-1", new)
        log.wait(600)
        log.remove(old)
    assert log.broken() == ["keeps-last", "keeps-last"]


def test_what_others_than_the_operator_do_is_not_held_against_it() -> None:
    log = serving()
    log.write("gc", "delete", "deployments", "chat-aaaa", None)
    log.gone("aaaa-0", OLD)
    assert log.broken() == []


def condition(kind: str, status: str, reason: str) -> dict[str, Any]:
    said = {"type": kind, "status": status, "reason": reason, "message": "So it is."}
    return said | {"observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"}


def status(reconciling: tuple[str, str], ready: int = 1, replicas: int = 1) -> dict[str, Any]:
    conditions = [
        condition("Ready", "True", "Serving"),
        condition("Available", "True", "MinimumReplicasAvailable"),
        condition("Reconciling", *reconciling),
        condition("Stalled", "False", "NotStalled"),
    ]
    counts = {"replicas": replicas, "readyReplicas": ready, "desiredReplicas": 1, "observedGeneration": 1}
    return counts | {"conditions": conditions}


def ends(log: Log) -> list[str]:
    judge = Judge(OPERATOR)
    judge.follow(log.events)
    return [each.detail for each in unfinished(judge.state)]


def test_a_rollout_ends_alone_and_in_force() -> None:
    log = serving()
    log.spec(status(("False", "UpToDate")), replicas=1)
    assert ends(log) == []
    log.spec(status(("False", "Suspended")), replicas=1)
    assert "All its replicas serve" in ends(log)[0]


def test_a_rollout_that_does_not_end_says_what_it_waits_for() -> None:
    log = serving()
    log.scale(NEW, 1)
    log.spec(status(("True", "WaitingForAccelerator")), replicas=1)
    assert ends(log) == []
    log.spec(status(("False", "UpToDate")), replicas=1)
    assert "UpToDate, and its variants are {'chat-aaaa': 1, 'chat-bbbb': 1}" in ends(log)[0]
    log.spec(status(("False", "Suspended")), replicas=1)
    assert "does not say what it waits for" in ends(log)[0]


def test_a_status_that_counts_other_pods_than_there_are_is_caught() -> None:
    log = serving()
    log.spec(status(("True", "ModelLoading"), replicas=2), replicas=1)
    assert "replicas is 2, and 1 are there." in ends(log)


def test_what_waits_for_a_change_of_the_spec_and_goes_on_without_is_caught() -> None:
    log = serving()
    stalled = status(("False", "UserActionRequired"))
    stalled["conditions"][3] = condition("Stalled", "True", "UserActionRequired")
    log.told(stalled)
    log.wait(5)
    log.told(status(("True", "ModelLoading")))
    assert log.broken() == ["stalled"]
    log = serving()
    log.told(stalled)
    log.wait(5)
    log.told(status(("True", "ModelLoading")) | {"observedGeneration": 2})
    assert log.broken() == []


@pytest.mark.parametrize("ends", [False, True])
def test_pods_of_its_own_that_end_take_no_room_from_those_that_are_to_come(ends: bool) -> None:
    """Found in review: beside pods that ended, one of three replicas was taken for all that fit."""
    log = serving(replicas=3, rollout={"minReadySeconds": 1, "maxSurge": 0, "maxUnavailable": 3})
    log.scale(OLD, 0)
    log.scale(NEW, 1)
    log.quota(3)
    log.pod("new-0", NEW)
    for number in range(3):
        if ends:
            log.end(f"{OLD}-{number}", OLD)
            log.wait(5)
        log.gone(f"{OLD}-{number}", OLD)
    log.wait(5)
    log.pod("new-0", NEW)
    log.remove(OLD)
    assert log.broken() == ["keeps-last", "keeps-last"]


def test_what_others_ask_for_and_have_no_pods_of_takes_no_room() -> None:
    log = Log(replicas=3, rollout={"minReadySeconds": 1, "maxUnavailable": 3})
    log.accelerator("gpu", "2.00", "Fixed")
    log.node("n", 3)
    log.scale(OLD, 3)
    for number in range(3):
        log.pod(f"{OLD}-{number}", OLD)
    log.wait(5)
    log.pod(f"{OLD}-0", OLD)
    labels = {"serving.turbo.dev/deployment": "other", "serving.turbo.dev/role": "serving"}
    labels |= {"serving.turbo.dev/plan-hash": "cccc", "serving.turbo.dev/accelerator": "gpu"}
    other = {"spec": {"replicas": 5, "template": {"metadata": {"labels": labels}}}}
    log.write(USER, "update", "turbodeployments", "other", {"metadata": {}, "spec": {"replicas": 5}})
    log.write(OPERATOR, "patch", "deployments", "other-cccc", {"metadata": {"labels": labels}} | other)
    log.scale(OLD, 0)
    for number in range(3):
        log.gone(f"{OLD}-{number}", OLD)
    log.scale(NEW, 1)
    log.pod("new-0", NEW)
    log.wait(10)
    log.pod("new-0", NEW)
    log.remove(OLD)
    assert log.broken() == ["keeps-last", "keeps-last"]
