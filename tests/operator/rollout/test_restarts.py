"""Pods that restart, or answer for less than minReadySeconds, beside a limit."""

from __future__ import annotations

import pytest

from turbo_dev.simulated_variants import footprint, variant
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
