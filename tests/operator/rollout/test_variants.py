"""Variants as their Deployments, revisions and pods show them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from turbo_dev.simulated_variants import PRICES, SIZES, footprint
from turbo_operator.rollout import Bounds, VariantState, serving_variant, variant_states
from turbo_operator.snapshot import ChildView, PodView

NOW = 1_700_000_000.0


def test_a_replica_whose_pod_no_longer_answers_is_not_available_whatever_was_counted() -> None:
    """Found in review: the pod's event came before the Deployment's, and the last good replica went."""
    counted = ChildView("Deployment", "new", "u", None, "new", 2, 2, 1, 1)
    pods = [PodView(f"p{number}", "new", "Running", number > 0, None, None, None) for number in range(2)]
    (state,) = variant_states([counted], pods, {}, NOW)
    assert (state.available, state.replicas) == (1, 2)


def test_the_serving_variant_is_the_recorded_one_else_an_older_one_that_answers() -> None:
    states = (VariantState("old", 1, 1), VariantState("older", 2, 2), VariantState("new", 3, 3))
    assert serving_variant(states, "new", "old", 0, Bounds(), NOW) == "old"
    assert serving_variant(states, "new", None, 0, Bounds(), NOW) == "older"
    assert serving_variant(states[2:], "new", "lost", 0, Bounds(), NOW) is None, (
        "it serves once it has taken over"
    )
    assert serving_variant((VariantState("new", 2, 1, ready=1),), "new", None, 2, Bounds(), NOW) is None


def test_a_plan_that_got_all_replicas_when_the_spec_had_changed_again_serves() -> None:
    """Found by the storm: it was removed, and what had served before it was kept in its place."""
    given_up = VariantState("given-up", 1, 1, ready=1)
    states = (VariantState("old", 0), given_up, VariantState("new", 0))
    assert serving_variant(states, "new", "old", 1, Bounds(), NOW) == "given-up"
    assert serving_variant(states, "new", "old", 2, Bounds(), NOW) == "old", "it lacks one"
    full = (replace(states[0], replicas=1, available=1, ready=1), *states[1:])
    assert serving_variant(full, "new", "old", 1, Bounds(), NOW) == "old"
    few = (VariantState("old", 4, 3, ready=3), given_up, VariantState("new", 0))
    assert serving_variant(few, "new", "old", 4, Bounds(max_total=1), NOW) == "old", "more of it answer"


def test_what_asks_for_all_replicas_and_has_not_answered_for_long_gives_way_to_what_answers() -> None:
    """Found by the histories: what answered went, and what hung was kept."""
    given_up = VariantState("given-up", 1, 1, ready=1)
    for seconds, serves in ((59.0, "old"), (60.0, "given-up")):
        states = (VariantState("old", 1, silent_since=NOW - seconds), given_up)
        assert serving_variant(states, "new", "old", 1, Bounds(), NOW) == serves


def test_a_plan_that_has_all_its_replicas_serves_when_the_one_before_it_is_wanted_again() -> None:
    """Found in review: nothing could be rolled back to, and the only pod that answered was removed."""
    states = (VariantState("old", 0), VariantState("given-up", 1, 1, ready=1))
    assert serving_variant(states, "old", "old", 1, Bounds(), NOW) == "given-up"


NAMES = sorted(PRICES)
SCARCE = Bounds(stock={NAMES[0]: 40, NAMES[1]: SIZES[NAMES[1]]})  # one replica fits on the second


@pytest.mark.parametrize(
    "hurt",
    [
        {"available": 0, "ready": 0, "silent_since": NOW - 1},
        {"replicas": 0, "available": 0, "seen": False},
        {"replicas": 0, "available": 0, "ready": 0, "exists": False, "ending": 3},
    ],
    ids=["silent", "scaled", "deleted"],
)
def test_three_of_four_that_do_not_answer_for_a_moment_are_not_given_up_for_one(hurt: dict[str, Any]) -> None:
    """Found in review: in that look they went to 0 for the one that fits of a plan given up before."""
    old = VariantState("old", 3, 3, ready=3, footprint=footprint(NAMES[0]), pods=3)
    given_up = VariantState("given-up", 1, 1, ready=1, footprint=footprint(NAMES[1]), pods=1)
    assert serving_variant((replace(old, **hurt), given_up), "new", "old", 4, SCARCE, NOW) == "old"


def test_three_that_are_all_that_fit_serve_though_they_do_not_answer_for_a_moment() -> None:
    """Found by the histories: a replica of the plan before, which never answered, was kept in their place."""
    old = VariantState("old", 1, unschedulable=True, footprint=footprint(NAMES[1]))
    full = VariantState("new", 3, 3, ready=3, footprint=footprint(NAMES[0]), pods=3)
    bounds = replace(SCARCE, max_total=3 * SIZES[NAMES[0]])
    serving = serving_variant((old, full), "new", "old", 4, bounds, NOW)
    assert serving == "new"
    silent = replace(full, available=0, ready=0, silent_since=NOW - 1)
    assert serving_variant((old, silent), "newest", serving, 4, bounds, NOW) == "new"
