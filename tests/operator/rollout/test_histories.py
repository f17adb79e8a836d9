"""The laws of a rollout over random histories, and planners that break them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from turbo_dev import rollout_history
from turbo_dev.rollout_history import Planner
from turbo_dev.rollout_laws import BrokenLawError
from turbo_dev.rollout_run import history
from turbo_dev.sizes import size
from turbo_operator.budget import Footprint
from turbo_operator.rollout import (
    Bounds,
    Step,
    Variant,
    VariantState,
    Wanted,
    has_taken_over,
    next_step,
    serving_variant,
)

HISTORIES, AT_A_TIME = size(500, 10_000), 250
ENOUGH = 60  # histories in which a broken planner is caught for certain: most catch it


@pytest.mark.parametrize("first", range(0, HISTORIES, AT_A_TIME))
def test_every_law_is_kept_at_every_step_and_every_history_ends(first: int) -> None:
    """Available replicas, surge, accelerators, stock, dollars, the variant that serves; a second call."""
    for seed in range(first, first + AT_A_TIME):
        try:
            history(seed)
        except BrokenLawError as error:
            pytest.fail(f"seed {seed}: {error}")


def drops_early(
    states: Sequence[VariantState], wanted: Wanted, footprint: Footprint | None, bounds: Bounds, now: float
) -> Step:
    """The new variant is there, so the others go."""
    step = next_step(states, wanted, footprint, bounds, now)
    if len(step.variants) < 2 or wanted.replicas == 0:
        return step
    return replace(step, variants=(Variant(step.target or "", wanted.replicas),))


def surges_over_the_budget(
    states: Sequence[VariantState], wanted: Wanted, footprint: Footprint | None, bounds: Bounds, now: float
) -> Step:
    """No limit is known but the surge."""
    free = Bounds(bounds.max_surge, bounds.max_unavailable)
    return next_step(states, wanted, footprint, free, now)


def never_ends(
    states: Sequence[VariantState], wanted: Wanted, footprint: Footprint | None, bounds: Bounds, now: float
) -> Step:
    """The variant that served stays as it is, whoever is there."""
    step = next_step(states, wanted, footprint, bounds, now)
    before = {state.plan_hash: state.replicas for state in states}
    kept = [
        Variant(item.plan_hash, max(item.replicas, before.get(item.plan_hash, 0)))
        if item.plan_hash != step.target
        else item
        for item in step.variants
    ]
    return replace(step, variants=tuple(kept))


def says_that_fewer_fit(
    states: Sequence[VariantState], wanted: Wanted, footprint: Footprint | None, bounds: Bounds, now: float
) -> Step:
    """What is available is said to be all that fits: one look later nothing of what served is kept."""
    step = next_step(states, wanted, footprint, bounds, now)
    available = max((state.available for state in states if state.plan_hash == step.target), default=0)
    is_first = wanted.serving in (None, step.target)
    return step if is_first or not 0 < available < step.fitting else replace(step, fitting=available)


def takes_over_in_part(
    states: Sequence[VariantState], wanted: Wanted, footprint: Footprint | None, bounds: Bounds, now: float
) -> Step:
    """One replica is said to be all that fit: once it is available, nothing of what served is kept."""
    step = next_step(states, wanted, footprint, bounds, now)
    if step.fitting < 2 or not has_taken_over(states, step.target, 1):
        return step
    kept = tuple(variant for variant in step.variants if variant.replicas or variant.plan_hash == step.target)
    return replace(step, variants=kept, fitting=1)


BROKEN = [drops_early, surges_over_the_budget, never_ends, takes_over_in_part, says_that_fewer_fit]


@pytest.mark.parametrize("planner", BROKEN)
def test_a_planner_that_is_broken_on_purpose_is_caught(planner: Planner) -> None:
    caught = []
    for seed in range(ENOUGH):
        try:
            history(seed, planner)
        except BrokenLawError as error:
            caught.append(str(error))
    assert len(caught) > ENOUGH / 10, caught


def never_another(
    states: Sequence[VariantState], wanted: str | None, recorded: str | None, *rest: Any
) -> str | None:
    """What served is what one goes back to, though another has all its replicas."""
    is_there = any(state.plan_hash == recorded for state in states)
    return recorded if is_there else serving_variant(states, wanted, recorded, *rest)


def whatever_answers(
    states: Sequence[VariantState], wanted: str | None, recorded: str | None, *rest: Any
) -> str | None:
    """Of what answers in this second, the one with most replicas."""
    answering = [state for state in states if state.answering > 0 and state.plan_hash != wanted]
    best = max(answering, key=lambda state: (state.answering, state.plan_hash), default=None)
    return best.plan_hash if best else serving_variant(states, wanted, recorded, *rest)


@pytest.mark.parametrize("choose", [never_another, whatever_answers])
def test_a_wrong_plan_to_go_back_to_is_caught(monkeypatch: pytest.MonkeyPatch, choose: Any) -> None:
    monkeypatch.setattr(rollout_history, "serving_variant", choose)
    caught = []
    for seed in range(10 * ENOUGH):
        try:
            history(seed)
        except BrokenLawError as error:
            caught.append(str(error))
    assert [sentence for sentence in caught if "had all its" in sentence], caught


def test_histories_meet_all_that_they_are_about() -> None:
    """Else they would prove nothing: rollbacks, waits, surges and places that are given up first."""
    seen = set()
    for seed in range(250):
        world = history(seed)
        seen |= world.met
    rollouts = {"rolled back", "waited", "went first", "surged", "above a lowered limit", "took over"}
    assert seen >= rollouts | {"tried a draft", "trained", "went back", "broke for good", "on a step"}
