"""A rollout: never fewer answering pods than before the change, and it always ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from turbo_operator.observed import ChildView
from turbo_operator.rollout import Variant, next_variants, present_replicas

hashes = st.sampled_from(("v1a", "v1b", "v1c", "v1d"))


def variant(plan_hash: str, replicas: int, available: int, seen: bool = True) -> ChildView:
    return ChildView(
        "Deployment",
        f"chat-{plan_hash}",
        plan_hash,
        None,
        plan_hash=plan_hash,
        replicas=replicas,
        available_replicas=available,
        generation=2,
        observed_generation=2 if seen else 1,
    )


deployments = st.lists(
    st.builds(variant, hashes, st.integers(0, 4), st.integers(0, 4), st.booleans()),
    unique_by=lambda view: view.name,
    max_size=4,
)


def test_the_old_variant_gives_up_a_replica_for_each_of_the_new_one_that_answers() -> None:
    old, starting, up = variant("old", 2, 2), variant("new", 2, 1), variant("new", 2, 2)
    assert next_variants([old], "new", 2) == (Variant("new", 2), Variant("old", 2))
    assert next_variants([old, starting], "new", 2) == (Variant("new", 2), Variant("old", 1))
    assert next_variants([old, up], "new", 2) == (Variant("new", 2),)


def test_counts_of_an_older_generation_prove_nothing() -> None:
    stale = variant("new", 2, 2, seen=False)
    assert Variant("old", 2) in next_variants([variant("old", 2, 2), stale], "new", 2)


def test_a_variant_that_never_answered_goes_at_once() -> None:
    assert next_variants([variant("broken", 2, 0)], "new", 2) == (Variant("new", 2),)


def test_without_a_feasible_plan_what_runs_keeps_running() -> None:
    assert next_variants([variant("old", 2, 0)], None, 2) == (Variant("old", 2),)
    assert next_variants([variant("old", 3, 3)], None, 1) == (Variant("old", 1),)


def test_old_variants_stand_at_0_while_no_replica_is_wanted_until_the_wanted_one_is_there() -> None:
    olds = [variant("broken", 2, 0), variant("old", 2, 2)]
    assert next_variants(olds, "new", 0) == (Variant("broken", 0), Variant("old", 0), Variant("new", 0))
    assert next_variants([*olds, variant("new", 0, 0)], "new", 0) == (Variant("new", 0),)


@given(deployments, hashes, st.integers(0, 4))
def test_old_variants_never_grow_and_the_wanted_one_is_always_there(
    there: list[ChildView], wanted: str, replicas: int
) -> None:
    before = {view.plan_hash: view.replicas or 0 for view in there}
    steps = next_variants(there, wanted, replicas)
    assert [step for step in steps if step.plan_hash == wanted] == [Variant(wanted, replicas)]
    for old in steps:
        if old.plan_hash == wanted:
            continue
        assert old.replicas <= before[old.plan_hash]


@given(deployments, hashes, st.integers(0, 4))
def test_every_rollout_ends_with_the_wanted_variant_alone(
    there: list[ChildView], wanted: str, replicas: int
) -> None:
    state: Sequence[ChildView] = there
    for _ in range(3):  # asked for, come up, others gone
        steps = next_variants(state, wanted, replicas)
        state = [_controlled(step, state) for step in steps]
    assert next_variants(state, wanted, replicas) == (Variant(wanted, replicas),)


@given(st.integers(1, 6), st.integers(1, 3))
def test_a_rollout_ends_where_there_is_room_for_one_replica_more_and_as_many_answer_all_along(
    replicas: int, spare: int
) -> None:
    old, new = replicas, 0
    for _ in range(replicas + 1):
        there = (
            [variant("old", old, old), variant("new", replicas, new)] if new else [variant("old", old, old)]
        )
        steps = {step.plan_hash: step.replicas for step in next_variants(there, "new", replicas)}
        old = steps.get("old", 0)
        assert old + new >= replicas
        new = min(replicas, replicas + spare - old)  # as many pods as find an accelerator
        if new == replicas:
            old = 0
    assert (old, new) == (0, replicas)


def _controlled(step: Variant, state: Sequence[ChildView]) -> ChildView:
    """What a Deployment's controller makes of a step in a cluster with room."""
    made = variant(step.plan_hash, step.replicas, step.replicas)
    old = next((view for view in state if view.plan_hash == step.plan_hash), None)
    return (
        made
        if old is None
        else replace(
            old,
            replicas=step.replicas,
            available_replicas=step.replicas,
            observed_generation=old.generation,
        )
    )


def test_present_are_the_replicas_of_the_largest_variant() -> None:
    assert present_replicas([]) is None
    assert present_replicas([variant("old", 4, 4), variant("new", 2, 0)]) == 4
    assert present_replicas([variant("new", 0, 0)]) == 0


def test_a_canary_takes_the_place_of_one_of_several_and_stands_beside_a_single_one() -> None:
    one, two, trying = variant("now", 1, 1), variant("now", 2, 2), Variant("try", 1)
    assert next_variants([one], "now", 1, "try") == (Variant("now", 1), trying)
    assert next_variants([one, variant("try", 1, 1)], "now", 1, "try") == (Variant("now", 1), trying)
    assert next_variants([two, variant("try", 1, 0)], "now", 2, "try") == (Variant("now", 2), trying)
    assert next_variants([two, variant("try", 1, 1)], "now", 2, "try") == (Variant("now", 1), trying)


def test_one_of_several_goes_for_a_canary_that_is_there_and_has_no_room_beside_them() -> None:
    one, two = variant("now", 1, 1), variant("now", 2, 2)
    assert next_variants([two], "now", 2, "try", True) == (Variant("now", 2), Variant("try", 1))
    there = variant("try", 1, 0)
    assert next_variants([two, there], "now", 2, "try", True) == (Variant("now", 1), Variant("try", 1))
    assert next_variants([one, there], "now", 1, "try", True) == (Variant("now", 1), Variant("try", 1))


def test_a_canary_waits_for_a_rollout_and_stays_while_the_others_grow_again() -> None:
    assert next_variants([variant("old", 1, 1)], "now", 1, "try") == (Variant("now", 1), Variant("old", 1))
    after = [variant("now", 2, 1), variant("try", 1, 1)]
    assert next_variants(after, "now", 2) == (Variant("now", 2), Variant("try", 1))
    assert next_variants([variant("now", 2, 2), variant("try", 1, 1)], "now", 2) == (Variant("now", 2),)


@given(st.integers(1, 5), st.integers(0, 12), st.booleans())
def test_with_a_canary_never_fewer_pods_answer_than_are_wanted(
    replicas: int, end: int, comes_up: bool
) -> None:
    now = {"now": (replicas, replicas)}
    for step in range(24):
        views = [variant(name, wanted, available) for name, (wanted, available) in now.items()]
        steps = next_variants(views, "now", replicas, "try" if step < end else None)
        before = now
        now = {}
        for each in steps:  # what shrinks goes at once, what grows comes up by the next look
            was = before.get(each.plan_hash, (0, 0))[1]
            now[each.plan_hash] = (each.replicas, min(was, each.replicas))
        assert sum(available for _, available in now.values()) >= replicas
        now = {
            name: (wanted, wanted if name == "now" or comes_up else available)
            for name, (wanted, available) in now.items()
        }
    if end < 20:
        assert now == {"now": (replicas, replicas)}
