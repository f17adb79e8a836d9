"""Each thing that a status cannot say at once is found, and a status that holds together is left alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from turbo_dev.status_coherence import check_writes, contradictions, impossible_changes

NOW = "2026-01-01T00:00:00Z"


def condition(kind: str, status: str, reason: str, message: str = "So it is.") -> dict[str, Any]:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": NOW,
        "observedGeneration": 2,
    }


def body(*changed: dict[str, Any], **status: Any) -> dict[str, Any]:
    """A deployment that serves with two replicas, with some conditions and fields of its status changed."""
    conditions = {
        "Ready": condition("Ready", "True", "Serving", "2 of 2 replicas serve chat at http://chat."),
        "PlanFeasible": condition("PlanFeasible", "True", "Feasible"),
        "Available": condition("Available", "True", "MinimumReplicasAvailable", "2 of 2 replicas answer."),
        "Reconciling": condition("Reconciling", "False", "UpToDate"),
        "Stalled": condition("Stalled", "False", "NotStalled"),
    } | {each["type"]: each for each in changed}
    return {
        "metadata": {
            "name": "chat",
            "namespace": "team",
            "uid": "u",
            "generation": 2,
            "resourceVersion": "7",
        },
        "spec": {"replicas": 2},
        "status": {
            "observedGeneration": 2,
            "replicas": 2,
            "readyReplicas": 2,
            "desiredReplicas": 2,
            "plan": {"hash": "aaaa"},
            "servingPlan": {"hash": "aaaa"},
            "conditions": list(conditions.values()),
        }
        | status,
    }


IN_ROLLOUT = (
    condition("Reconciling", "True", "ModelLoading"),
    condition("Ready", "False", "ModelLoading", "The earlier plan serves on."),
)
ROLLED_BACK = (
    condition("Ready", "False", "RolledBack"),
    condition("Reconciling", "False", "RolledBack"),
    condition("Stalled", "True", "RolledBack"),
)
SUSPENDED = (
    condition("Ready", "False", "Suspended"),
    condition("Available", "False", "Suspended"),
    condition("Reconciling", "False", "Suspended"),
)
SAID = "What runs costs 5.00 $/h, and spec.cost.maxPerHour is 4.00."
BACK = {"plan": {"hash": "bbbb"}, "rollout": {"planHash": "bbbb", "reason": "RolledBack"}}


def test_a_status_that_holds_together_has_no_contradiction() -> None:
    assert contradictions(body()) == []
    assert contradictions({"metadata": {"generation": 1}, "spec": {}}) == []
    under_way = {"plan": {"hash": "bbbb"}, "rollout": {"planHash": "bbbb"}, "replicas": 3}
    assert contradictions(body(*IN_ROLLOUT, **under_way)) == []
    assert contradictions(body(*ROLLED_BACK, **BACK)) == []
    two_too_many = condition("Available", "True", "MinimumReplicasAvailable", "2 of 2 replicas answer.")
    assert contradictions(body(*IN_ROLLOUT, two_too_many, replicas=4, readyReplicas=4)) == []
    at_zero = (
        condition("Ready", "True", "ScaledToZero"),
        condition("Available", "True", "MinimumReplicasAvailable"),
    )
    none = {"replicas": 0, "readyReplicas": 0, "desiredReplicas": 0}
    assert contradictions(body(*at_zero, **none, rollout={"planHash": "aaaa"}, servingPlan=None)) == []
    asleep = body(*SUSPENDED, replicas=0, readyReplicas=0, desiredReplicas=0)
    asleep["spec"]["suspend"] = True
    assert contradictions(asleep) == []


WRONG = {
    "ready-above-replicas": (body(*IN_ROLLOUT, readyReplicas=3), "readyReplicas is 3, and replicas 2"),
    "in-force-with-one-missing": (body(readyReplicas=1), "UpToDate, and replicas is 2, readyReplicas 1"),
    "in-force-with-pods-of-another": (body(replicas=3), "UpToDate, and replicas is 3"),
    "in-force-in-a-rollout": (body(rollout={"planHash": "bbbb"}), "rollout to bbbb is not over"),
    "in-force-and-not-ready": (
        body(condition("Ready", "False", "CrashLoopBackOff")),
        "Reconciling is False for UpToDate, and Ready is False",
    ),
    "in-force-and-stalled": (
        body(condition("Stalled", "True", "UserActionRequired")),
        "UpToDate, and Stalled is True",
    ),
    "in-force-and-infeasible": (
        body(condition("PlanFeasible", "False", "InsufficientCapacity")),
        "UpToDate, and PlanFeasible is False",
    ),
    "available-with-none": (body(*IN_ROLLOUT, replicas=0, readyReplicas=0), "none is ready"),
    "ready-and-unavailable": (
        body(condition("Available", "False", "CrashLoopBackOff")),
        "Ready is True, and Available is False",
    ),
    "ready-and-stalled": (
        body(condition("Stalled", "True", "UserActionRequired")),
        "Ready is True, and Stalled is True for UserActionRequired",
    ),
    "ready-and-infeasible": (
        body(condition("PlanFeasible", "False", "BudgetExceeded")),
        "Ready is True, and PlanFeasible is False for BudgetExceeded",
    ),
    "ready-and-inspecting": (
        body(condition("ModelInspected", "Unknown", "Inspecting")),
        "Ready is True, and ModelInspected is Unknown",
    ),
    "ready-in-a-rollout": (
        body(condition("Reconciling", "True", "Progressing"), rollout={"planHash": "bbbb"}),
        "Ready is True for Serving, and the rollout to bbbb is not over",
    ),
    "unavailable-with-all": (
        body(*IN_ROLLOUT, condition("Available", "False", "CrashLoopBackOff")),
        "Available is False for CrashLoopBackOff, and 2 of 2",
    ),
    "stalled-and-reconciling": (
        body(*IN_ROLLOUT, condition("Stalled", "True", "UserActionRequired")),
        "Stalled and Reconciling are both True",
    ),
    "serves-with-none": (body(readyReplicas=0), "Ready is True for Serving, and no replica is ready"),
    "scaled-to-zero-with-some": (
        body(condition("Ready", "True", "ScaledToZero")),
        "ScaledToZero, and 2 replicas are wanted",
    ),
    "unready-for-serving": (body(condition("Ready", "False", "Serving")), "Ready is False for Serving"),
    "waits-for-nothing": (
        body(
            condition("Ready", "False", "CrashLoopBackOff"),
            condition("Reconciling", "False", "CrashLoopBackOff"),
        ),
        "neither Reconciling nor Stalled says what it waits for",
    ),
    "of-the-future": (body(observedGeneration=3), "observedGeneration is 3, and the generation 2"),
    "condition-of-the-future": (body(observedGeneration=1), "speaks of generation 2, and the status of 1"),
    "count-in-the-message": (
        body(condition("Available", "True", "MinimumReplicasAvailable", "1 of 2 replicas answer.")),
        "Available says '1 of 2 replicas answer'",
    ),
    "total-in-the-message": (
        body(condition("Ready", "True", "Serving", "2 of 3 replicas serve chat.")),
        "Ready says '2 of 3 replicas serve'",
    ),
    "no-plan-with-pods": (
        body(*IN_ROLLOUT, condition("Available", "False", "NoPlan"), readyReplicas=1),
        "NoPlan, and 1 replicas are ready",
    ),
    "suspended-in-one": (body(condition("Available", "False", "Suspended"), *IN_ROLLOUT), "for ModelLoading"),
    "suspended-and-not-asked-to": (body(*SUSPENDED, desiredReplicas=0), "spec.suspend is not true"),
    "rolled-back-in-one": (body(ROLLED_BACK[0], **BACK), "Stalled is False for NotStalled"),
    "rolled-back-and-waits": (
        body(*ROLLED_BACK, condition("Reconciling", "True", "RolledBack"), **BACK),
        "Reconciling is True for RolledBack",
    ),
    "rolled-back-without-a-rollout": (body(*ROLLED_BACK), "status.rollout does not"),
    "rolled-back-to-nothing": (body(*ROLLED_BACK, **BACK, servingPlan=None), "no servingPlan"),
    "rollout-to-what-serves": (body(*IN_ROLLOUT, rollout={"planHash": "aaaa"}), "that is what serves"),
    "rollout-to-another-plan": (body(*IN_ROLLOUT, rollout={"planHash": "bbbb"}), "status.plan is aaaa"),
    "feasible-without-a-plan": (body(plan={}), "status.plan has no hash"),
    "another-plan-without-a-rollout": (
        body(*IN_ROLLOUT, plan={"hash": "bbbb"}),
        "there is no status.rollout",
    ),
    "rests-for-nothing": (
        body(condition("Reconciling", "False", "CrashLoopBackOff")),
        "Reconciling is False for CrashLoopBackOff, and Stalled is not True",
    ),
    "within-a-budget-that-is-exceeded": (
        body(condition("WithinBudget", "True", "WithinBudget", SAID)),
        "WithinBudget is True, and says 'costs 5.00 $/h",
    ),
    "no-budget": (
        body(condition("WithinBudget", "True", "WithinBudget")),
        "WithinBudget says WithinBudget, and of budgets there is none",
    ),
    "no-reason": (body(condition("Stalled", "False", "")), "Stalled has no reason"),
    "no-sentence": (body(condition("Stalled", "False", "NotStalled", "all well")), "is no sentence"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_contradiction_is_told(name: str) -> None:
    wrong, sentence = WRONG[name]
    assert any(sentence in told for told in contradictions(wrong)), contradictions(wrong)


def test_a_suspended_spec_that_is_ready_is_told() -> None:
    wrong = body()
    wrong["spec"]["suspend"] = True
    assert "spec.suspend is true, and Ready is True." in contradictions(wrong)
    wrong["metadata"]["generation"] = 3  # the status does not speak of it yet
    assert contradictions(wrong) == []


def test_a_condition_twice_and_one_that_is_missing_are_told() -> None:
    wrong = body()
    del wrong["status"]["conditions"][-1]
    wrong["status"]["conditions"].append(condition("Ready", "True", "Serving"))
    told = contradictions(wrong)
    assert "The condition Ready is there 2 times." in told
    assert "There is no condition Stalled." in told


def test_a_transition_time_moves_with_the_status_alone_and_never_back() -> None:
    later = "2026-01-01T00:00:09Z"
    flipped = condition("Stalled", "True", "UserActionRequired") | {"lastTransitionTime": later}
    kept = condition("Stalled", "False", "NotStalled") | {"lastTransitionTime": later}
    assert impossible_changes(body(), body(flipped)) == []
    assert "Stalled stayed False" in impossible_changes(body(), body(kept))[0]
    assert "went back" in impossible_changes(body(flipped), body())[0]
    assert "observedGeneration fell from 2 to 1" in impossible_changes(body(), body(observedGeneration=1))[0]


def event(document: dict[str, Any], revision: int, code: int = 200) -> dict[str, Any]:
    document = copy.deepcopy(document)
    document["metadata"]["resourceVersion"] = str(revision)
    return {
        "stageTimestamp": NOW,
        "objectRef": {"resource": "turbodeployments", "subresource": "status"},
        "responseStatus": {"code": code},
        "responseObject": document,
    }


def test_all_writes_of_a_log_are_checked_in_the_order_of_their_revisions() -> None:
    older = body(observedGeneration=1)
    older["status"]["conditions"] = [
        each | {"observedGeneration": 1} for each in body()["status"]["conditions"]
    ]
    assert check_writes([event(body(), 9), event(older, 8)]) == []
    (told,) = check_writes([event(older, 9), event(body(), 8), event(body(readyReplicas=0), 7, code=409)])
    assert told == f"{NOW} team/chat: observedGeneration fell from 2 to 1."


def test_after_a_write_whose_outcome_the_log_does_not_say_anything_may_have_become_of_a_status() -> None:
    """Found in a run: an operator was killed in a write that took place, and whose answer nobody got."""
    older = body(observedGeneration=1)
    older["status"]["conditions"] = [
        each | {"observedGeneration": 1} for each in body()["status"]["conditions"]
    ]
    unanswered = event(body(), 0, code=504) | {"responseObject": None}
    assert check_writes([event(body(), 8), unanswered, event(older, 9)]) == []
    elsewhere = unanswered | {"objectRef": {**unanswered["objectRef"], "name": "another"}}
    refused = event(body(), 0, code=409) | {"responseObject": None}
    for harmless in (elsewhere, refused):
        assert len(check_writes([event(body(), 8), harmless, event(older, 9)])) == 1
