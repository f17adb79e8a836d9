"""The autoscaler's laws: up at once, down after the window, held on silence, never beyond a bound."""

from __future__ import annotations

import math

from hypothesis import example, given
from hypothesis import strategies as st

from turbo_dev.fleet import CAPACITY, PERIOD, START, Fleet, changes, loaded, planned, pod, written
from turbo_operator.api import ScalingReason
from turbo_operator.autoscaler import History, scale

demands = st.floats(0, 200_000)
counts = st.integers(1, 30)


# Laws


@given(demands, st.floats(0, 50_000), counts)
def test_more_load_never_asks_for_fewer_replicas(demand: float, extra: float, present: int) -> None:
    less, more = (Fleet(written(), present=present).look(item) for item in (demand, demand + extra))
    assert less.replicas <= more.replicas


@given(demands, counts, st.integers(0, 50), st.integers(0, 50))
def test_more_requests_never_ask_for_fewer_replicas(
    tokens: float, present: int, running: int, waiting: int
) -> None:
    def asked(running: int, waiting: int) -> int:
        pods = [pod("a", loaded(tokens, running, waiting, 100))]
        return scale(written(), planned(), pods, None, START, present=present).replicas

    assert asked(running, waiting) <= asked(running + 1, waiting)
    assert asked(running, waiting) <= asked(running, waiting + 1)


@given(
    st.lists(st.tuples(demands, st.booleans()), min_size=1, max_size=60),
    counts,
    st.integers(1, 5),
    st.integers(5, 20),
    st.integers(1, 5),
    st.none() | st.integers(10, 40),
    st.none() | st.integers(5, 40),
)
def test_no_load_moves_the_replicas_out_of_their_bounds(
    steps: list[tuple[float, bool]],
    present: int,
    minimum: int,
    maximum: int,
    floor: int,
    budget: int | None,
    total: int | None,
) -> None:
    spec = written(
        scaling={"minReplicas": minimum, "maxReplicas": maximum},
        **({} if budget is None else {"cost": {"maxPerHour": str(budget)}}),
        **({} if total is None else {"accelerators": {"maxTotal": total}}),
    )
    fleet = Fleet(spec, planned(floor), present=present)
    for demand, silent in steps:
        replicas = fleet.look(demand, silent).replicas
        assert replicas <= maximum
        assert budget is None or replicas * 2 <= budget
        assert total is None or replicas <= total
        assert replicas >= min(max(minimum, floor), maximum, (budget or 100) // 2, total or 100)


@given(st.lists(demands, min_size=1, max_size=40), counts, st.integers(1, 60))
def test_replicas_never_fall_while_a_pod_is_silent(
    before: list[float], present: int, silent_looks: int
) -> None:
    fleet = Fleet(
        written(scaling={"behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}}), present=present
    )
    for demand in before:
        fleet.look(demand)
    held = fleet.present
    for _ in range(silent_looks):
        assert fleet.look(0, silent=True).replicas >= held


@example(144_501.0, 1, 0.0)
@given(demands, st.integers(1, 10), st.floats(0, 120))
def test_a_constant_load_settles_and_changes_direction_never(
    demand: float, present: int, startup: float
) -> None:
    fleet = Fleet(written(), present=present, startup=startup)
    replicas = [present, *fleet.run(demand, 1200 + 60.0 * present)]
    assert len(set(changes(replicas))) <= 1
    assert len(set(replicas[-10:])) == 1
    assert fleet.answers[-1].reason == ScalingReason.STABLE
    utilisation = demand / (replicas[-1] * CAPACITY.tokens)
    rounded = 1 / CAPACITY.tokens  # each pod reports whole tokens
    assert utilisation <= 0.85 + rounded
    one_fewer = demand / (max(1, replicas[-1] - 1) * CAPACITY.tokens)
    assert replicas[-1] == 1 or utilisation >= 0.70 - rounded or one_fewer > 0.85 - rounded


@given(st.lists(st.tuples(demands, st.booleans()), max_size=40), counts)
def test_the_same_past_gives_the_same_answers(steps: list[tuple[float, bool]], present: int) -> None:
    one, other = Fleet(written(), present=present), Fleet(written(), present=present)
    for step in steps:
        one.look(*step)
        other.look(*step)
    assert one.answers == other.answers


@given(st.lists(demands, max_size=40), counts, demands)
def test_a_restart_never_takes_replicas_away_at_once(
    before: list[float], present: int, demand: float
) -> None:
    fleet = Fleet(
        written(scaling={"behavior": {"scaleDown": {"stabilizationWindowSeconds": 20}}}), present=present
    )
    for item in before:
        fleet.look(item)
    fleet.history = History.restored(fleet.history.events[-5:])
    held = fleet.present
    assert fleet.look(demand).replicas >= held
    assert fleet.look(0).replicas >= held


@given(demands, counts, st.integers(1, 40))
def test_pods_that_start_are_asked_for_once(demand: float, present: int, looks: int) -> None:
    """However long pods take to start: a fleet of pending pods asks for no more than one that serves."""
    slow = Fleet(written(), present=present, startup=math.inf)
    needed = max(present, math.ceil(demand / CAPACITY.tokens / 0.85))
    for _ in range(looks):
        assert slow.look(demand).replicas <= needed


@given(st.lists(st.integers(0, 400_000), min_size=1, max_size=120), counts)
def test_the_default_pace_is_kept(steps: list[int], present: int) -> None:
    """At most twice as many in a minute, at most one fewer."""
    fleet = Fleet(written(), present=present)
    replicas = [present]
    for demand in steps:
        replicas.append(fleet.look(demand).replicas)
        past = replicas[-5:]
        assert replicas[-1] <= 2 * max(1, past[0])
        assert replicas[-1] >= max(past[-4:]) - 1


@given(st.integers(1, 8), demands, counts)
def test_a_shorter_window_never_keeps_more(looks: int, demand: float, present: int) -> None:
    def after(window: int) -> int:
        behavior = {"scaleDown": {"stabilizationWindowSeconds": window}}
        fleet = Fleet(written(scaling={"behavior": behavior}), present=present)
        return fleet.run(demand, looks * PERIOD)[-1]

    assert after(30) <= after(60) <= after(300)
