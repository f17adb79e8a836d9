"""The next step of a rollout, case by case: who grows, who gives way, and what is waited for."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from turbo_dev.simulated_variants import footprint, variant
from turbo_operator.rollout import (
    Bounds,
    Step,
    VariantState,
    Wanted,
    next_step,
    serving_variant,
    variant_states,
)
from turbo_operator.snapshot import ChildView, PodView

NOW = 1_700_000_000.0
ROOMY = Bounds()
A100 = footprint("a100")


def step(*states: VariantState, replicas: int, bounds: Bounds = ROOMY, wanted: Wanted | None = None) -> Step:
    recorded = "old" if any(state.plan_hash == "old" for state in states) else None
    serving = serving_variant(states, "new", recorded, replicas, bounds)
    asked = wanted or Wanted("new", replicas, serving)
    return next_step(states, asked, A100, bounds, NOW)


def test_a_first_plan_gets_all_its_replicas_at_once() -> None:
    assert step(replicas=3).replicas == {"new": 3}


def test_with_room_the_new_variant_grows_by_the_surge_and_the_old_one_gives_up_what_is_replaced() -> None:
    assert step(variant("old", 2), replicas=2).replicas == {"new": 1, "old": 2}
    assert step(variant("old", 2), variant("new", 1, 0), replicas=2).replicas == {"new": 1, "old": 2}
    assert step(variant("old", 2), variant("new", 1), replicas=2).replicas == {"new": 2, "old": 1}
    assert step(variant("old", 1), variant("new", 2, 1), replicas=2).replicas == {"new": 2, "old": 1}
    assert step(variant("old", 1), variant("new", 2), replicas=2).replicas == {"new": 2, "old": 0}


def test_a_written_surge_is_used_in_whole() -> None:
    assert step(variant("old", 3), replicas=3, bounds=Bounds(max_surge=2)).replicas == {"new": 2, "old": 3}


def test_the_variant_that_serves_goes_only_when_its_successor_has_all_replicas_and_its_pods_are_gone() -> (
    None
):
    ending = variant("old", 0, 0, pods=1, ending=1)
    assert step(ending, variant("new", 1), replicas=1).replicas == {"new": 1, "old": 0}
    gone = variant("old", 0, 0, pods=0)
    assert step(gone, variant("new", 1, 0), replicas=1).replicas["old"] == 1, "the new one has failed: back"
    assert step(gone, variant("new", 1), replicas=1).replicas == {"new": 1}


def test_without_room_one_replica_goes_first_and_nothing_grows_into_a_place_that_is_still_held() -> None:
    full = Bounds(max_total=2)
    assert step(variant("old", 2), replicas=2, bounds=full).replicas == {"new": 0, "old": 1}
    ending = variant("old", 1, ending=1, pods=2)
    assert step(ending, variant("new", 0), replicas=2, bounds=full).replicas == {"new": 0, "old": 1}
    free = step(variant("old", 1), variant("new", 0), replicas=2, bounds=full)
    assert free.replicas == {"new": 1, "old": 1}


def test_a_single_replica_that_answers_waits_for_room_and_says_so() -> None:
    full = Bounds(max_total=1)
    first = step(variant("old", 1), variant("new", 0), replicas=1, bounds=full)
    assert first.replicas == {"new": 0, "old": 1}
    assert first.waits is not None
    assert "spec.accelerators.maxTotal is 1" in first.waits
    assert "maxUnavailable: 1" in first.waits
    assert first.waits.endswith("before its successor is there and nothing answers until it is.")
    ending = step(variant("old", 1), variant("new", 0, ending=1), replicas=1, bounds=full)
    assert ending.waits is None, "its place is its own once the pod before has ended"
    assert first.waits_for_spec
    stocked = step(variant("old", 1), variant("new", 0), replicas=1, bounds=Bounds(stock={"a100": 1}))
    assert stocked.waits is not None
    assert not stocked.waits_for_spec, "a node may come"


def test_a_surge_of_zero_holds_a_rollout_back_whether_there_is_room_or_not() -> None:
    for stock, lack, make in ((9, "", ""), (1, " the cluster and its", " and make room")):
        held = step(variant("old", 1), replicas=1, bounds=Bounds(max_surge=0, stock={"a100": stock}))
        assert held.waits_for_spec
        waits = held.waits or ""
        assert waits.startswith(f"The new plan waits: spec.rollout.maxSurge is 0,{lack}")
        assert f"may be missing. Raise it{make}, or write spec.rollout.maxUnavailable: 1" in waits


def test_a_pod_that_finds_no_node_is_told_of_before_a_surge_of_zero_that_would_not_help() -> None:
    in_place = Bounds(max_surge=0, max_unavailable=1)
    held = step(variant("old", 2), variant("new", 1, 0, unschedulable=True), replicas=3, bounds=in_place)
    assert held.waits is not None
    assert "no node has room for its pod" in held.waits
    assert not held.waits_for_spec


def test_room_that_lacks_is_told_of_before_a_surge_of_zero_that_would_not_help() -> None:
    """Found on the real node: maxSurge was named, was raised as told, and nothing moved."""
    full = Bounds(max_surge=0, max_unavailable=1, stock={"a100": 1})
    held = step(variant("old", 1), variant("new", 0, pods=0), replicas=2, bounds=full)
    assert held.waits is not None
    assert "the cluster and its quotas hold 1 of a100" in held.waits
    assert "maxSurge" not in held.waits
    assert not held.waits_for_spec


def test_a_rollout_whose_own_pod_has_yet_to_start_waits_for_that_and_not_for_room() -> None:
    for written in (None, 1):
        full = Bounds(max_total=2, max_unavailable=written)
        actual = step(variant("old", 1), variant("new", 1, 0), replicas=2, bounds=full)
        assert actual.replicas == {"new": 1, "old": 1}
        assert (actual.waits, actual.waits_for_spec) == (None, False)


def test_a_single_replica_goes_first_where_that_is_written_or_where_it_does_not_answer_anyway() -> None:
    written = Bounds(max_total=1, max_unavailable=1)
    assert step(variant("old", 1), variant("new", 0), replicas=1, bounds=written).replicas["old"] == 0
    full = Bounds(max_total=1)
    stopped = variant("old", 1, 0, silent_since=NOW - 25)
    assert step(stopped, variant("new", 0), replicas=1, bounds=full).replicas["old"] == 1
    silent = variant("old", 1, 0, silent_since=NOW - 61)
    assert step(silent, variant("new", 0), replicas=1, bounds=full).replicas["old"] == 0
    gone = variant("old", 0, 0, pods=0)
    assert step(gone, variant("new", 0), replicas=1, bounds=full).replicas == {"new": 1, "old": 0}


def test_a_written_max_unavailable_takes_no_answer_away_where_there_is_room() -> None:
    assert step(variant("old", 1), replicas=1, bounds=Bounds(max_unavailable=1)).replicas == {
        "new": 1,
        "old": 1,
    }
    many = step(variant("old", 4), replicas=4, bounds=Bounds(max_unavailable=2))
    assert many.replicas == {"new": 1, "old": 2}, "it is made before the others are lowered"
    after = step(variant("old", 2), variant("new", 1, 0), replicas=4, bounds=Bounds(max_unavailable=2))
    assert after.replicas == {"new": 3, "old": 2}


def test_no_replica_goes_first_for_a_successor_that_would_still_have_no_room() -> None:
    other = footprint("h100")
    elsewhere = Bounds(stock={"a100": 2, "h100": 0})
    states = (variant("old", 2), variant("new", 0, footprint=other))
    actual = next_step(states, Wanted("new", 2, "old"), other, elsewhere, NOW)
    assert actual.replicas == {"old": 2, "new": 0}
    assert actual.waits is not None


def test_dollars_of_all_variants_and_of_what_is_reserved_stay_within_the_budget() -> None:
    tight = Bounds(max_per_hour=Decimal(5))
    assert step(variant("old", 2), replicas=2, bounds=tight).replicas == {"new": 0, "old": 1}
    training = Bounds(max_per_hour=Decimal(7), reserved=((A100, 1),))
    assert step(variant("old", 2), replicas=2, bounds=training).replicas == {"new": 0, "old": 1}
    assert step(variant("old", 2), replicas=2, bounds=Bounds(max_per_hour=Decimal(6))).replicas["new"] == 1


def test_as_many_as_fit_run_and_the_rest_waits_with_its_reason() -> None:
    actual = step(replicas=3, bounds=Bounds(stock={"a100": 2}))
    assert actual.replicas == {"new": 2}
    assert actual.waits == "2 of 3 replicas fit: the cluster and its quotas hold 2 of a100."


def test_what_runs_is_never_taken_away_for_want_of_room() -> None:
    assert step(variant("new", 2), replicas=2, bounds=Bounds(stock={"a100": 0})).replicas == {"new": 2}


def test_a_variant_that_never_answered_goes_at_once() -> None:
    broken = variant("broken", 2, 0)
    assert step(broken, replicas=2).replicas == {"new": 1, "broken": 0}
    assert step(variant("broken", 0, pods=0), variant("new", 1, 0), replicas=2).replicas == {"new": 2}


def test_what_is_lowered_is_written_before_what_is_raised_and_a_new_deployment_before_both() -> None:
    first = step(variant("broken", 2, 0), replicas=2)
    assert [item.plan_hash for item in first.variants] == ["new", "broken"]
    later = step(variant("old", 2), variant("new", 1), replicas=2)
    assert [item.plan_hash for item in later.variants] == ["old", "new"]


def test_replicas_that_do_not_fit_at_all_count_as_missing_ones() -> None:
    """With 2 of 3 that fit, the one that may be missing is missing already."""
    full = Bounds(max_total=2)
    waits = step(variant("old", 2), variant("new", 0), replicas=3, bounds=full)
    assert waits.replicas == {"new": 0, "old": 2}
    assert "spec.rollout.maxUnavailable: 2" in str(waits.waits)
    written = Bounds(max_total=2, max_unavailable=2)
    assert step(variant("old", 2), variant("new", 0), replicas=3, bounds=written).replicas["old"] == 1


def test_what_is_available_stays_until_what_is_restored_has_been_ready_for_min_ready_seconds() -> None:
    full, wanted = Bounds(max_total=2, max_unavailable=1), Wanted("new", 2, "old")
    abandoned, restored = variant("between", 1), variant("old", 1, 0, ready=1)
    made = variant("new", 0, 0)
    assert step(abandoned, restored, made, replicas=2, bounds=full, wanted=wanted).replicas["between"] == 1
    back = replace(wanted, rolled_back=True)
    assert step(restored, variant("new", 1), replicas=2, bounds=full, wanted=back).replicas["new"] == 1
    available = variant("old", 1)
    assert step(abandoned, available, made, replicas=2, bounds=full, wanted=wanted).replicas["between"] == 0


def test_a_replica_that_starts_and_lets_another_one_go_next_is_waited_for_and_no_room() -> None:
    full, wanted = Bounds(stock={"a100": 2}, max_unavailable=1), Wanted("new", 2, "old")
    abandoned, made = variant("between", 1), variant("new", 0, 0)
    for restored in (variant("old", 1, 0), variant("old", 1, 0, ready=1)):
        starting = step(abandoned, restored, made, replicas=2, bounds=full, wanted=wanted)
        assert starting.replicas == {"between": 1, "old": 1, "new": 0}
        assert starting.waits == "The new plan waits until the replicas before it that start are available."
        assert not starting.waits_for_spec


def test_pods_that_answer_count_before_their_controller_has_counted_them() -> None:
    late = variant("old", 2, 0, ready=2)
    assert step(late, variant("new", 1, 0), replicas=2).replicas == {"new": 1, "old": 2}
    assert serving_variant((late, variant("new", 1, 0)), "new", None, 1, ROOMY) == "old"


def test_a_plan_that_was_rolled_back_goes_to_zero_and_the_one_before_it_gets_its_replicas_back() -> None:
    back = Wanted("new", 2, "old", rolled_back=True)
    assert step(variant("old", 2), variant("new", 1, 0), replicas=2, wanted=back).replicas == {
        "old": 2,
        "new": 0,
    }
    full = Bounds(max_total=2)
    held = step(variant("old", 1), variant("new", 1, 0), replicas=2, wanted=back, bounds=full)
    assert held.replicas == {"old": 1, "new": 0}
    freed = variant("new", 0, 0, pods=0)
    assert step(variant("old", 1), freed, replicas=2, wanted=back, bounds=full).replicas == {"old": 2}


def test_without_a_plan_what_serves_is_kept_and_made_again_where_somebody_took_it_away() -> None:
    lost = VariantState("old", exists=False, footprint=A100)
    assert step(lost, replicas=2, wanted=Wanted(None, 2, "old")).replicas == {"old": 2}
    assert step(variant("old", 0), replicas=2, wanted=Wanted(None, 2, "old")).replicas == {"old": 2}


def orphans(plan_hash: str, number: int, ready: int) -> tuple[VariantState, ...]:
    """A variant whose Deployment is gone and whose pods run on."""
    revision = ChildView(
        kind="ControllerRevision", name=f"chat-{plan_hash}", uid="u", applied_hash=None, plan_hash=plan_hash
    )
    pods = [PodView(f"p{n}", plan_hash, "Running", n < ready, None, None, None) for n in range(number)]
    (state,) = variant_states([revision], pods, {}, NOW)
    return (replace(state, footprint=A100),)


@pytest.mark.parametrize("ready", [0, 1, 2])
def test_a_deployment_made_again_gets_as_many_replicas_as_pods_run_whatever_room_there_is(ready: int) -> None:
    full = Bounds(stock={"a100": 0})
    assert step(*orphans("new", 2, ready), replicas=2, bounds=full).replicas == {"new": 2}
    assert step(*orphans("new", 2, ready), replicas=1, bounds=full).replicas == {"new": 1}


def test_what_serves_and_lost_its_deployment_amid_a_rollout_keeps_its_pods_until_they_are_replaced() -> None:
    full = Bounds(max_total=2)
    assert step(*orphans("old", 2, 2), replicas=2, bounds=full).replicas == {"new": 0, "old": 1}
    assert step(*orphans("old", 1, 1), variant("new", 1, 0), replicas=2, bounds=full).replicas["old"] == 1
    assert step(*orphans("old", 2, 2), variant("new", 2), replicas=2).replicas == {"new": 2, "old": 0}
    suspended = step(*orphans("old", 2, 2), replicas=0)
    assert suspended.replicas == {"new": 0, "old": 0}, "it is adopted to be scaled down"


def test_what_serves_is_made_again_in_the_middle_of_a_rollout() -> None:
    lost = VariantState("old", exists=False, footprint=A100)
    assert step(lost, variant("new", 1, 0), replicas=2).replicas == {"new": 1, "old": 2}


def test_where_nothing_is_asked_for_all_stand_at_zero_and_the_plan_that_serves_is_kept() -> None:
    olds = (variant("broken", 2, 0), variant("old", 2))
    actual = step(*olds, replicas=0)
    assert actual.replicas == {"broken": 0, "old": 0, "new": 0}
    assert [item.plan_hash for item in actual.variants][-1] == "new", "pods end even where it is refused"
    rest = (variant("broken", 0, pods=0), variant("old", 0, pods=0), variant("new", 0, pods=0))
    assert step(*rest, replicas=0).replicas == {"old": 0, "new": 0}


def test_counts_that_a_controller_has_not_seen_yet_let_nothing_grow() -> None:
    lowered = variant("old", 1, 0, seen=False)
    assert step(lowered, variant("new", 0), replicas=2, bounds=Bounds(max_total=2)).replicas["new"] == 0


def test_a_pod_that_finds_no_node_of_a_fixed_cluster_is_no_room_for_a_surge() -> None:
    waiting = variant("new", 1, 0, unschedulable=True)
    assert step(variant("old", 2), waiting, replicas=2).replicas == {"new": 1, "old": 1}
    alone = step(variant("old", 1), waiting, replicas=1)
    assert alone.replicas == {"new": 1, "old": 1}
    assert alone.waits is not None
    assert "no node has room" in alone.waits


def test_a_first_plan_has_taken_over_once_all_its_replicas_are_available() -> None:
    assert not step(variant("new", 2, 1, ready=2), replicas=2).is_over
    assert step(variant("new", 2), replicas=2).is_over


def test_a_pod_that_cannot_end_holds_up_no_rollout() -> None:
    """Found in review: one on a lost node kept the new plan from growing for as long as the node was lost."""
    old = ChildView("Deployment", "chat-old", "d", None, plan_hash="old", replicas=1, available_replicas=1)
    alive = PodView("a", "old", "Running", True, None, None, None)
    stuck = PodView("b", "old", "Running", False, None, None, None, terminating=True, overdue=NOW - 1)
    full = Bounds(max_total=2)
    for now, replicas in ((NOW - 1, 0), (NOW, 1)):
        (state,) = variant_states([old], [alive, stuck], {}, now)
        states = replace(state, footprint=A100), variant("new", 0)
        assert step(*states, replicas=2, bounds=full).replicas == {"new": replicas, "old": 1}


def test_a_canary_stands_beside_a_single_replica_and_takes_the_place_of_one_of_several() -> None:
    def tried(
        *states: VariantState, replicas: int, bounds: Bounds = ROOMY, room: bool = False
    ) -> dict[str, int]:
        wanted = Wanted("new", replicas, "new", canary="try", canary_makes_room=room)
        return dict(next_step(states, wanted, A100, bounds, NOW).replicas)

    one, two, starting = variant("new", 1), variant("new", 2), variant("try", 1, 0)
    assert tried(one, replicas=1) == {"new": 1, "try": 1}
    assert tried(one, variant("try", 1), replicas=1) == {"new": 1, "try": 1}
    assert tried(two, starting, replicas=2) == {"new": 2, "try": 1}
    assert tried(two, variant("try", 1), replicas=2) == {"new": 1, "try": 1}
    full = Bounds(max_total=2)
    assert tried(two, replicas=2, bounds=full) == {"new": 2, "try": 0}
    assert tried(two, variant("try", 0), replicas=2, bounds=full) == {"new": 1, "try": 0}
    assert tried(variant("new", 1), variant("try", 0), replicas=2, bounds=full) == {"new": 1, "try": 1}
    assert tried(two, starting, replicas=2, room=True) == {"new": 1, "try": 1}
    assert tried(one, replicas=1, bounds=Bounds(max_total=1)) == {"new": 1}, "no place for it"
    assert tried(two, variant("old", 1), replicas=2) == {"new": 2, "old": 0}, "a rollout ends first"


def test_a_canary_keeps_the_surge_and_what_may_be_missing() -> None:
    """Found by histories with canaries in them."""

    def tried(new: VariantState, canary: VariantState, bounds: Bounds, replicas: int) -> dict[str, int]:
        wanted = Wanted("new", replicas, "new", canary="try")
        return dict(next_step((new, canary), wanted, A100, bounds, NOW).replicas)

    none, made = variant("try", 0, exists=False, pods=0), variant("try", 0, pods=0)
    no_surge = Bounds(max_surge=0, max_unavailable=1)
    assert tried(variant("new", 3), none, no_surge, 3) == {"new": 3, "try": 0}, "no fourth replica"
    assert tried(variant("new", 3), made, no_surge, 3) == {"new": 2, "try": 0}
    assert tried(variant("new", 3), replace(made, seen=False), no_surge, 3) == {"new": 3, "try": 0}
    assert tried(variant("new", 2, pods=2), made, no_surge, 3) == {"new": 2, "try": 1}
    full = Bounds(max_total=2, max_unavailable=1)
    assert tried(variant("new", 2), made, full, 4) == {"new": 2}, "two of four are fewer than may be missing"
    assert tried(variant("new", 3, seen=False), made, Bounds(), 3) == {"new": 3, "try": 0}


def test_what_serves_until_another_has_taken_over_is_not_given_up_for_a_canary() -> None:
    """Found in review: with one replica of the new plan available, the old template went."""
    states = variant("old", 0, pods=0), variant("new", 2, 1)
    wanted = Wanted("new", 2, "old", canary="try")
    assert dict(next_step(states, wanted, A100, Bounds(max_total=2), NOW).replicas) == {"new": 2, "old": 0}
    failed = replace(wanted, rolled_back=True)
    states = variant("old", 2), variant("try", 0, pods=0)
    assert dict(next_step(states, failed, A100, Bounds(max_total=2), NOW).replicas) == {"old": 2}


def test_a_plan_of_which_fewer_replicas_fit_than_are_wanted_does_not_take_over_from_one_that_has_more() -> (
    None
):
    elsewhere = Bounds(stock={"h100": 2})
    states = (variant("old", 3), variant("new", 2, footprint=footprint("h100")))
    actual = next_step(states, Wanted("new", 5, "old"), footprint("h100"), elsewhere, NOW)
    assert (actual.replicas, actual.is_over) == ({"old": 3, "new": 2}, False)
    alone = (variant("old", 0, pods=0), variant("new", 2, footprint=footprint("h100")))
    ended = next_step(alone, Wanted("new", 2, "old"), footprint("h100"), elsewhere, NOW)
    assert (ended.replicas, ended.is_over) == ({"new": 2}, True)


def test_what_serves_gets_its_replicas_back_where_nothing_of_the_new_plan_fits() -> None:
    other = footprint("h100")
    none = Bounds(stock={"a100": 2, "h100": 0})
    for old in (variant("old", 0, pods=0), VariantState("old", exists=False, footprint=A100)):
        states = (old, variant("new", 0, footprint=other))
        actual = next_step(states, Wanted("new", 2, "old"), other, none, NOW)
        assert actual.replicas == {"old": 2, "new": 0}
        assert "hold 0 of h100" in str(actual.waits)


def test_a_replica_that_went_first_is_not_given_back_once_its_successor_has_a_node() -> None:
    placed = variant("new", 1, 0)
    assert step(variant("old", 1), placed, replicas=2).replicas == {"new": 2, "old": 1}


def test_where_all_is_gone_a_plan_that_failed_is_better_than_none() -> None:
    failed = Wanted("new", 2, None, rolled_back=True)
    assert next_step((), failed, A100, ROOMY, NOW).replicas == {"new": 2}


def test_the_same_again_changes_nothing() -> None:
    first = step(variant("old", 2), replicas=2)
    after = (variant("old", 2), replace(VariantState("new", 1), pods=0))
    assert step(*after, replicas=2).replicas == first.replicas
