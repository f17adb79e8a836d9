"""Pods that restart, or answer for less than minReadySeconds, beside a limit."""

from __future__ import annotations

import random
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise

import pytest

from turbo_dev.rollout_history import TICK, World
from turbo_dev.simulated_variants import PRICES, Deployment, Pod, footprint, variant
from turbo_operator.rollout import Bounds, Wanted, next_step, serving_variant

NOW = 1_700_000_000.0
A100 = footprint("a100")


@pytest.mark.parametrize(
    ("replicas", "surge", "unavailable", "ready"),
    [(1, 0, None, 1), (2, None, 0, 2), (1, 0, 0, 1), (2, 0, 1, 2)],
)
def test_what_answers_only_now_stays_where_fewer_are_wanted_and_nothing_else_answers(
    replicas: int, surge: int | None, unavailable: int | None, ready: int
) -> None:
    """Found in review: the only pod that answered went."""
    old = variant("old", replicas, 0, silent_since=NOW - 5)
    new = variant("new", ready, 0, ready=ready)
    bounds = Bounds(max_surge=surge, max_unavailable=unavailable)
    planned = next_step((old, new), Wanted("new", replicas, "old"), A100, bounds, NOW)
    may_miss = int(replicas > 1) if unavailable is None else unavailable
    assert min(ready, planned.replicas["new"]) >= replicas - may_miss


def test_a_replica_that_makes_up_for_one_that_does_not_fit_may_restart() -> None:
    """Found in review: it went, and two of three were left."""
    new = variant("new", 2, footprint=footprint("h100"))
    for seconds, max_total, kept in ((1, None, 1), (60, None, 0), (1, 2, 0)):
        bounds = Bounds(stock={"a100": 2, "h100": 2}, max_total=max_total)
        old = variant("old", 1, 0, silent_since=NOW - seconds)
        assert serving_variant((old, new), "new", "old", 3, bounds) == "new"
        planned = next_step((old, new), Wanted("new", 3, "new"), new.footprint, bounds, NOW)
        assert planned.replicas["old"] == kept
        assert planned.is_over == (kept == 0)


def amid_repairs(
    kinds: tuple[str, str, str], replicas: int, answering: int, bounds: Bounds
) -> tuple[World, int]:
    """Ten minutes with a dead plan that served, of which one pod is left, a fix of which some answer, and a
    third plan that works; and how often replicas changed.
    """
    nodes = dict.fromkeys(PRICES, 40)
    world = World(random.Random(1), replicas=replicas, nodes=nodes, bounds=replace(bounds, stock=nodes))
    world.qualities = {name: (kind, 1) for name, kind in zip(("v1", "v2", "v3"), kinds, strict=True)}
    world.wanted, world.serving = "v3", "v1"
    world.variants["v1"] = Deployment(kinds[0], None, 1, pods=[Pod(True)], silent_since=world.now - 500)
    pods = [Pod(True, 9, ready=True) for _ in range(answering)]
    world.variants["v2"] = Deployment(kinds[1], 1, answering, pods=pods, counted=answering)
    steps = []
    for _ in range(120):
        world.now += TICK
        world.controllers_act(lag=False)
        steps.append(world.look().replicas)
    return world, sum(before != after for before, after in pairwise(steps))


def test_a_plan_that_works_takes_over_from_a_dead_one_of_another_size_and_its_fix() -> None:
    """Found in review: the dead plan's pod went and came back each minute, and the third never started."""
    bounds = Bounds(max_total=4, max_unavailable=2, max_per_hour=Decimal(6))
    world, _ = amid_repairs(("l40s", "a100", "a100"), 4, 2, bounds)
    assert world.serving == "v3", world.last


def test_a_plan_that_has_no_room_beside_a_dead_one_and_its_fix_says_what_helps_and_nothing_moves() -> None:
    world, num_changes = amid_repairs(("a100", "a100", "l40s"), 2, 1, Bounds(max_total=2))
    assert num_changes < 5
    assert world.last is not None
    assert "maxUnavailable: 2" in (world.last.waits or ""), world.last
