"""What a new plan has to keep before more of its replicas follow, and what is evidence against it."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_dev import loads
from turbo_dev.simulated_variants import variant
from turbo_operator.api import Canary, Gates, RolloutReason, RolloutStatus, rfc3339
from turbo_operator.rollout import (
    Bounds,
    Reports,
    Wanted,
    describe_step,
    next_step,
    pass_gates,
    step_replicas,
)
from turbo_operator.rollout.gates import find_fault, is_above
from turbo_operator.snapshot import PodView

NOW = 1_700_000_000.0
CANARY = Canary.model_validate(
    {
        "steps": [
            {"replicasFraction": "0.25", "minDuration": "2m"},
            {"replicasFraction": "0.5", "minDuration": "5m"},
        ],
        "minGenerationDuration": "60s",
    }
)
BEGUN = RolloutStatus(plan_hash="new", spec_hash="spec")


def pod(plan: str, **reported: Any) -> PodView:
    return loads.pod(f"of-{plan}", loads.load(0.0, 0.0, **reported), plan)


def look(
    status: RolloutStatus, available: int, now: float, *pods: PodView, replicas: int = 8
) -> RolloutStatus:
    return pass_gates(status, CANARY, pods, "old", replicas, available, now)


def test_a_step_is_passed_once_its_replicas_were_available_for_its_time() -> None:
    waits = look(BEGUN, 1, NOW)
    assert waits == BEGUN, "two of eight are the step"
    begun = look(waits, 2, NOW)
    assert begun.step_time == rfc3339(NOW)
    assert look(begun, 2, NOW + 119) == begun
    passed = look(begun, 2, NOW + 120)
    assert (passed.passed_steps, passed.step_time) == (1, None)
    second = look(passed, 4, NOW + 200)
    last = look(second, 4, NOW + 500)
    assert (last.passed_steps, step_replicas(CANARY, 2, 8)) == (2, None)
    assert look(last, 8, NOW + 900) == last


def test_a_step_begins_again_where_a_replica_was_lost() -> None:
    begun = look(BEGUN, 2, NOW)
    assert look(begun, 1, NOW + 100).step_time is None


@given(st.integers(1, 1000), st.integers(1, 1000))
def test_a_step_has_a_replica_and_leaves_one_of_several(replicas: int, thousandths: int) -> None:
    part = {"replicasFraction": f"{Decimal(thousandths) / 1000:.3f}"}
    count = step_replicas(Canary.model_validate({"steps": [part]}), 0, replicas)
    assert count is not None
    assert 1 <= count <= max(1, replicas - 1)


def test_requests_that_fail_end_a_rollout_at_once_and_say_how_many() -> None:
    old = pod("old", finished_requests=1000, failed_requests=1)
    bad = pod("new", finished_requests=40, failed_requests=10)
    failed = look(look(BEGUN, 2, NOW), 2, NOW + 1, old, bad)
    assert (failed.reason, failed.failed_step) == (RolloutReason.ROLLED_BACK, 1)
    assert failed.message == ("10 of 40 requests failed, and 1 of 1000 on the pods of the earlier plan.")
    assert look(failed, 2, NOW + 2, old) == failed, "it stays so"
    # as many fail on either: what clients send is no fault of the plan
    same = pod("old", finished_requests=1000, failed_requests=250)
    assert look(BEGUN, 2, NOW, same, bad).reason is None


def test_an_answer_that_differs_without_drafts_ends_a_rollout_under_bitwise() -> None:
    bad = pod("new", guarantee="bitwise", audits=5, audit_mismatches=1)
    assert look(BEGUN, 2, NOW, pod("old"), bad).message == "1 of 5 audited answers differ without drafts."
    rounds = pod("new", guarantee="distribution", audits=100, audit_mismatches=1)
    assert look(BEGUN, 2, NOW, pod("old"), rounds).reason is None


@pytest.mark.parametrize(("plain", "is_fault"), [(100.0, True), (170.0, False)])
def test_a_plan_whose_drafts_help_far_less_is_given_up(plain: float, is_fault: bool) -> None:
    old = Reports(seconds=100.0, plain_seconds=200.0)
    fault = find_fault(Reports(seconds=100.0, plain_seconds=plain), old, Gates(), 60.0)
    assert (fault is not None) == is_fault
    assert find_fault(Reports(seconds=59.0, plain_seconds=plain), old, Gates(), 60.0) is None, "too little"


@given(st.integers(0, 400), st.integers(0, 400), st.floats(0.001, 1.0))
def test_more_than_a_share_is_evidence_only_beyond_chance(count: int, more: int, share: float) -> None:
    total = count + more
    if is_above(count, total, share):
        assert count > share * total
        assert is_above(2 * count, 2 * total, share), "twice the evidence is evidence, too"
    assert not is_above(0, total, share)


def test_a_plan_on_a_step_grows_no_further_and_what_serves_keeps_the_rest() -> None:
    wanted = Wanted("new", 4, "old", step=1)
    one = variant("new", 0).footprint
    first = next_step([variant("old", 4), variant("new", 0)], wanted, one, Bounds(), NOW)
    assert first.replicas == {"old": 4, "new": 1}
    kept = next_step([variant("old", 4), variant("new", 1)], wanted, one, Bounds(), NOW)
    assert kept.replicas == {"old": 3, "new": 1}
    assert not kept.is_over
    assert kept.waits is None
    on = next_step([variant("old", 3), variant("new", 1)], Wanted("new", 4, "old"), one, Bounds(), NOW)
    assert on.replicas == {"old": 3, "new": 2}


def test_a_single_replica_stays_beside_its_successor_until_the_step_is_passed() -> None:
    states, one = [variant("old", 1), variant("new", 1)], variant("new", 1).footprint
    kept = next_step(states, Wanted("new", 1, "old", step=1), one, Bounds(), NOW)
    assert (kept.replicas, kept.is_over) == ({"old": 1, "new": 1}, False)
    over = next_step(states, Wanted("new", 1, "old"), one, Bounds(), NOW)
    assert over.replicas["new"] == 1
    assert over.replicas.get("old", 0) == 0


def test_the_status_says_which_step_it_is_and_for_how_long() -> None:
    assert describe_step(BEGUN, CANARY, 8, 1) is None
    assert describe_step(BEGUN, CANARY, 8, 2) == (
        "Step 1 of 2: 2 of 8 replicas are of the new plan, and compared with the earlier one for 2m."
    )
