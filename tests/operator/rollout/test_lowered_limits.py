"""Limits that are lowered below what serves: a takeover keeps them again, without a gap."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal

import pytest

from turbo_dev.simulated_variants import footprint
from turbo_operator.rollout import Bounds, Step, VariantState, Wanted, next_step

NOW = 1_700_000_000.0


def variant(name: str, replicas: int, accelerator: str) -> VariantState:
    return VariantState(name, replicas, replicas, pods=replicas, footprint=footprint(accelerator))


def roll_out(
    names: tuple[str, str], replicas: int, bounds: Bounds, wanted: int = 0
) -> tuple[list[Mapping[str, int]], Step]:
    """All steps from one accelerator to another where pods start and end at once, and the last one."""
    old, new = (footprint(name) for name in names)
    states = {"old": variant("old", replicas, names[0])}
    over_limits = bounds.is_overspent([(old, replicas)])
    asked = Wanted("new", wanted or replicas, "old", over_limits=over_limits)
    steps: list[Mapping[str, int]] = []
    for _ in range(20):
        last = next_step(tuple(states.values()), asked, new, bounds, NOW)
        if steps and steps[-1] == last.replicas:
            return steps, last
        steps.append(last.replicas)
        kinds = dict(zip(("old", "new"), names, strict=True))
        states = {name: variant(name, count, kinds[name]) for name, count in last.replicas.items()}
    raise AssertionError(f"it never ends: {steps}")


SLACKS = (
    Bounds(),
    Bounds(max_unavailable=0),
    Bounds(max_unavailable=1),
    Bounds(max_surge=0, max_unavailable=1),
    Bounds(max_surge=0),
    Bounds(max_surge=2),
)


@pytest.mark.parametrize("slack", SLACKS)
@pytest.mark.parametrize("names", [*itertools.product(("a100", "h100", "l40s"), repeat=2)])
@pytest.mark.parametrize("replicas", [1, 2, 3, 4])
def test_a_limit_that_was_lowered_below_what_serves_is_kept_again_by_a_takeover_without_a_gap(
    replicas: int, names: tuple[str, str], slack: Bounds
) -> None:
    old, new = (footprint(name) for name in names)
    limits = [replace(slack, max_total=new.accelerators(count)) for count in range(1, replicas + 1)]
    limits += [replace(slack, max_per_hour=new.cost_per_hour(count)) for count in range(1, replicas + 1)]
    for bounds in limits:
        if not bounds.is_overspent([(old, replicas)]):
            continue
        steps, last = roll_out(names, replicas, bounds)
        fitting = bounds.most(new, replicas)
        if last.replicas != {"new": fitting}:  # one alone cannot go first, nor be followed
            assert fitting == 1, steps
            assert slack.max_surge == 0, steps
            assert slack.max_unavailable is None, steps
            assert last.waits is not None
        olds = [item.get("old", 0) for item in steps]
        assert olds == sorted(olds, reverse=True), steps
        surge = 1 if slack.max_surge is None else slack.max_surge
        assert all(sum(item.values()) <= replicas + surge for item in steps), steps


def test_above_a_lowered_limit_no_replica_is_bought_of_the_plan_that_goes() -> None:
    bounds = Bounds(max_per_hour=Decimal(4))  # four of one dollar fit; two of three dollars serve
    cheap = replace(footprint("l40s"), per_replica=1)
    asked = Wanted("new", 4, "old", over_limits=True)
    serving = variant("old", 2, "h100")
    assert next_step((serving,), asked, cheap, bounds, NOW).replicas["old"] == 2


def test_what_fits_below_a_lowered_limit_says_which_one() -> None:
    bounds = Bounds(max_per_hour=Decimal(4))
    _, last = roll_out(("h100", "a100"), 4, bounds)
    assert last.replicas == {"new": 2}
    assert last.waits == "2 of 4 replicas fit: spec.cost.maxPerHour is 4."


def test_a_replica_that_answers_again_is_not_given_up_for_a_limit_that_was_lowered() -> None:
    """Found by the histories: the limit was lowered, and the plan of before wanted again."""
    new, given_up = variant("new", 1, "l40s"), variant("given-up", 1, "h100")
    asked = Wanted("new", 4, "new")
    bounds = Bounds(max_unavailable=2, max_per_hour=Decimal(3))
    again = replace(new, available=0, ready=1)  # its container has just started again
    for states in ((new, given_up), (again, given_up)):
        assert next_step(states, asked, new.footprint, bounds, NOW).replicas == {"new": 1, "given-up": 1}


def test_above_a_lowered_limit_nothing_is_restored_beside_pods_that_end_and_those_that_follow() -> None:
    """Found by the histories: somebody scaled the new plan to 0, and with both there was one too many."""
    asked = Wanted("new", 1, "old", over_limits=True)
    new = VariantState("new", 0, ending=2, pods=2, footprint=footprint("a100"))
    old = VariantState("old", 0, footprint=footprint("a100"))
    bounds = Bounds(max_surge=2, max_unavailable=0, max_total=3)
    assert next_step((new, old), asked, new.footprint, bounds, NOW).replicas == {"new": 1, "old": 0}
