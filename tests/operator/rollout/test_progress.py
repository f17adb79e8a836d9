"""When a plan makes no progress, and what is no failure of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from turbo_operator.api import RolloutReason, RolloutStatus, rfc3339
from turbo_operator.rollout import Progress, follow, seconds_left
from turbo_operator.snapshot import PodView

NOW = 1_700_000_000.0
DEADLINE = 600.0
FAILING = Progress("new", "spec", 2, 0, has_placed=True, failure="Pod p: ImagePullBackOff: no such image.")


def begun(at: float = NOW, available: int = 0) -> RolloutStatus:
    return RolloutStatus(
        plan_hash="new", spec_hash="spec", available_replicas=available, last_progress_time=rfc3339(at)
    )


def test_the_clock_begins_when_a_node_has_a_pod_that_is_not_ready() -> None:
    nothing = Progress("new", "spec", 2, 0)
    assert follow(None, nothing, "old", NOW, DEADLINE) == RolloutStatus(plan_hash="new", spec_hash="spec")
    assert follow(None, FAILING, "old", NOW, DEADLINE) == begun()


def test_a_plan_without_progress_goes_back_with_what_its_pod_said() -> None:
    assert follow(begun(), FAILING, "old", NOW + DEADLINE - 1, DEADLINE) == begun()
    back = follow(begun(), FAILING, "old", NOW + DEADLINE, DEADLINE)
    assert back is not None
    assert (back.reason, back.message) == (RolloutReason.ROLLED_BACK, FAILING.failure)
    # its pods are gone, and it stays so
    gone = Progress("new", "spec", 0, 0)
    assert follow(back, gone, "old", NOW + 10 * DEADLINE, DEADLINE) == back
    assert follow(back, replace(gone, spec_hash="other"), "old", NOW, DEADLINE) == RolloutStatus(
        plan_hash="new", spec_hash="other"
    )


def test_a_first_plan_has_none_to_go_back_to_and_is_tried_on() -> None:
    late = follow(begun(), FAILING, None, NOW + DEADLINE, DEADLINE)
    assert late is not None
    assert late.reason == RolloutReason.PROGRESS_DEADLINE_EXCEEDED
    up = follow(late, replace(FAILING, available=1), None, NOW + 2 * DEADLINE, DEADLINE)
    assert up is not None
    assert (up.reason, up.available_replicas) == (None, 1)


def test_one_more_available_replica_is_progress_and_the_same_one_again_is_none() -> None:
    first = follow(begun(), replace(FAILING, available=1), "old", NOW + 500, DEADLINE)
    assert first == begun(NOW + 500, 1)
    flapped = follow(first, FAILING, "old", NOW + 900, DEADLINE)
    assert flapped == first
    again = follow(flapped, replace(FAILING, available=1), "old", NOW + 1000, DEADLINE)
    assert again == first, "it was available before"


@pytest.mark.parametrize(
    "waiting",
    [
        replace(FAILING, has_placed=False, is_waiting=True),  # for a node
        replace(FAILING, replicas=1, available=1),  # for others to end
    ],
)
def test_waiting_for_room_is_no_failure(waiting: Progress) -> None:
    state = begun(available=1)
    actual = follow(state, waiting, "old", NOW + 5 * DEADLINE, DEADLINE)
    assert actual == state.model_copy(update={"last_progress_time": None})
    assert follow(actual, replace(FAILING, available=1), "old", NOW + 6 * DEADLINE, DEADLINE) == begun(
        NOW + 6 * DEADLINE, 1
    )


def test_there_is_no_rollout_once_the_plan_serves() -> None:
    assert follow(begun(), replace(FAILING, available=2), "new", NOW, DEADLINE) is None


def test_the_next_look_is_due_at_the_deadline() -> None:
    assert seconds_left(begun(), NOW + 100, DEADLINE) == 500
    assert seconds_left(begun(), NOW + 2 * DEADLINE, DEADLINE) == 0
    assert seconds_left(None, NOW, DEADLINE) is None


def test_progress_is_read_from_pods_that_are_there_to_stay() -> None:
    placed = PodView("a", "new", "Running", False, None, None, None)
    unplaced = PodView("b", "new", "Pending", False, None, "Unschedulable", None, pending_since=NOW)
    ready = replace(placed, ready=True)
    for pods, expected in (
        ((placed, unplaced), (True, True)),
        ((unplaced, ready), (False, True)),
        ((replace(placed, terminating=True),), (False, False)),
        ((replace(placed, phase="Failed", reason="UnexpectedAdmissionError"), unplaced), (True, True)),
    ):
        actual = Progress.of_pods("new", "spec", 2, 0, pods)
        assert (actual.has_placed, actual.is_waiting) == expected


def test_a_new_pod_that_the_scheduler_has_not_seen_yet_stops_no_clock() -> None:
    """Found in review: a pod that was replaced at 590 of 600 seconds began them anew."""
    new = PodView("b", "new", "Pending", False, None, None, None, pending_since=NOW)
    assert not Progress.of_pods("new", "spec", 1, 0, [new]).is_waiting
    gated = replace(new, reason="SchedulingGated")
    assert Progress.of_pods("new", "spec", 1, 0, [gated]).is_waiting
    progress = Progress.of_pods("new", "spec", 1, 0, [new])
    assert follow(begun(), progress, "old", NOW + 590, DEADLINE) == begun()


def test_a_plan_whose_pods_nodes_fail_again_and_again_goes_back() -> None:
    """As a kubelet does that has no healthy device: the pod ends as Failed, and another one is made."""
    failed = PodView("a", "new", "Failed", False, None, "UnexpectedAdmissionError", "no healthy devices")
    unplaced = PodView("b", "new", "Pending", False, None, "Unschedulable", None, pending_since=NOW)
    state: RolloutStatus | None = None
    for seconds in range(0, 1200, 60):
        pods = (failed, unplaced) if seconds % 300 == 0 else (failed,)
        progress = Progress.of_pods("new", "spec", 1, 0, pods)
        state = follow(state, progress, "old", NOW + seconds, DEADLINE)
    assert state is not None
    assert state.reason == RolloutReason.ROLLED_BACK


def test_a_stamp_that_no_clock_of_ours_can_have_written_holds_nothing_up() -> None:
    ahead = begun(NOW + 1e8)
    assert follow(ahead, FAILING, "old", NOW, DEADLINE) == ahead
    assert seconds_left(ahead, NOW, DEADLINE) == DEADLINE
    odd = begun().model_copy(update={"last_progress_time": "yesterday"})
    assert seconds_left(odd, NOW, DEADLINE) == DEADLINE


def test_a_plan_whose_pods_are_all_ready_is_waited_for_beyond_the_deadline() -> None:
    """Found in review: it was rolled back in the middle of minReadySeconds, as if its pods had failed."""
    late = NOW + DEADLINE + 1
    assert follow(begun(), replace(FAILING, ready=2), "old", late, DEADLINE) == begun()
    back = follow(begun(), replace(FAILING, ready=1), "old", late, DEADLINE)
    assert back is not None
    assert back.reason == RolloutReason.ROLLED_BACK
    pods = [PodView(f"p{number}", "new", "Running", number > 0, None, None, None) for number in range(3)]
    leaving = replace(pods[2], terminating=True)
    assert Progress.of_pods("new", "spec", 3, 0, [*pods, leaving]).ready == 2
