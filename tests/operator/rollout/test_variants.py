"""Variants as their Deployments, revisions and pods show them."""

from __future__ import annotations

from dataclasses import replace

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
    assert serving_variant(states, "given-up", "old", 1, Bounds()) == "old", "it takes over as the wanted one"
    assert serving_variant(states, "old", "old", 1, Bounds()) == "old", "nothing was given up: a canary ends"
    few = (VariantState("old", 4, 3, ready=3), given_up, VariantState("new", 0))
    assert serving_variant(few, "new", "old", 4, Bounds(max_total=1)) == "old", "more of it answer"
