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
    assert serving_variant(states, "new", "old", 0, Bounds()) == "old"
    assert serving_variant(states, "new", None, 0, Bounds()) == "older"
    assert serving_variant(states[2:], "new", "lost", 0, Bounds()) is None, "it serves once it has taken over"
    assert serving_variant((VariantState("new", 2, 1, ready=1),), "new", None, 2, Bounds()) is None


def test_a_plan_that_got_all_replicas_when_the_spec_had_changed_again_serves() -> None:
    """Found by the storm: it was removed, and what had served before it was kept in its place."""
    given_up = VariantState("given-up", 1, 1, ready=1)
    states = (VariantState("old", 0), given_up, VariantState("new", 0))
    assert serving_variant(states, "new", "old", 1, Bounds()) == "given-up"
    assert serving_variant(states, "new", "old", 2, Bounds()) == "old", "it lacks one"
    full = (replace(states[0], replicas=1, available=1, ready=1), *states[1:])
    assert serving_variant(full, "new", "old", 1, Bounds()) == "old"
    few = (VariantState("old", 4, 3, ready=3), given_up, VariantState("new", 0))
    assert serving_variant(few, "new", "old", 4, Bounds(max_total=1)) == "old", "more of it answer"


def test_what_asks_for_all_replicas_and_has_none_available_gives_way_to_what_has_all() -> None:
    """Found by the histories: what answered went with a change of the spec, and what hung was kept."""
    states = (VariantState("old", 1), VariantState("given-up", 1, 1, ready=1))
    assert serving_variant(states, "new", "old", 1, Bounds()) == "given-up"


def test_a_plan_that_lacks_a_replica_serves_at_no_count_that_dips() -> None:
    """Found in review: in a look with fewer nodes it had all that fitted, and nothing was rolled back to."""
    states = (VariantState("old", 1, 1, ready=1), VariantState("new", 3, 2, ready=2))
    assert serving_variant(states, "new", "old", 3, Bounds(max_total=2)) == "old"


def test_a_plan_that_has_all_its_replicas_serves_when_the_one_before_it_is_wanted_again() -> None:
    """Found in review: nothing could be rolled back to, and the only pod that answered was removed."""
    states = (VariantState("old", 0), VariantState("given-up", 1, 1, ready=1))
    assert serving_variant(states, "old", "old", 1, Bounds()) == "given-up"


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
    assert serving_variant((replace(old, **hurt), given_up), "new", "old", 4, SCARCE) == "old"
