"""What the autoscaler decides, case by case, and the sentence it says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_dev.fleet import CAPACITY, FRESH, PERIOD, START, Fleet, loaded, planned, pod, spread, written
from turbo_operator.api import ScalingReason
from turbo_operator.autoscaler import Event, History, ScalingDecision, scale
from turbo_operator.plan import Plan
from turbo_operator.snapshot import Host, NodeSupply, Supply
from turbo_runtime.contract.documents import Load

demands = st.floats(0, 200_000)
counts = st.integers(1, 30)


# Up


def test_a_step_up_is_answered_at_once() -> None:
    fleet = Fleet(written())
    fleet.run(2_000, 600)
    answer = fleet.look(12_000)
    assert (answer.replicas, answer.reason) == (2, ScalingReason.SCALING)
    assert answer.detail == "The load asks for 2 replicas: from 1 to 2 now."


def test_replicas_double_at_most_in_a_minute() -> None:
    fleet = Fleet(written(), startup=0)
    assert fleet.run(100_000, 260) == [2, 2, 2, 2, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12, 12, 12]


def test_waiting_requests_count_with_the_answer_that_they_will_get() -> None:
    spec = written(workload={"outputTokens": {"mean": 1000}})
    capacity = replace(CAPACITY, concurrency=1000)

    def asked(waiting: int) -> int:
        pods = [pod("a", loaded(0, 0, waiting, prompt=100))]
        return scale(spec, planned(capacity=capacity), pods, None, START, present=1).replicas

    assert asked(7) == 1  # 7,700 of 10,000 tokens
    assert asked(8) == 2


def test_without_a_workload_the_mean_answer_is_what_the_pods_have_given() -> None:
    capacity = replace(CAPACITY, concurrency=1000)
    given_so_far = replace(loaded(0, 0, 8, prompt=100), prompts=10, generated_tokens=10_000)
    answer = scale(written(), planned(capacity=capacity), [pod("a", given_so_far)], None, START, present=1)
    assert answer.replicas == 2
    unknown = [pod("a", loaded(0, 0, 8, prompt=100))]  # 256 each
    assert scale(written(), planned(capacity=capacity), unknown, None, START, present=1).replicas == 1


def test_short_requests_run_out_of_slots_before_they_run_out_of_tokens() -> None:
    pods = [pod("a", loaded(200, requests=20))]
    assert scale(written(), planned(), pods, None, START, present=1).replicas == 2


def test_without_a_capacity_a_pod_carries_what_it_has_room_for() -> None:
    spec = written()

    def asked(load: Load) -> int:
        return scale(spec, planned(capacity=None), [pod("a", load)], None, START, present=1).replicas

    assert asked(loaded(16_000)) == 1  # of 20,000 tokens
    assert asked(loaded(18_000)) == 2
    assert asked(replace(loaded(100, requests=30), max_num_seqs=32)) == 2
    assert asked(replace(loaded(100, requests=20), max_num_seqs=32)) == 1


def test_work_of_a_pod_that_drains_or_fell_out_is_still_demand() -> None:
    drains = pod("a", loaded(6_000), terminating=True)
    fell = pod("b", loaded(6_000), ready=False)
    serves = pod("c", loaded(6_000))
    assert scale(written(), planned(), [drains, fell, serves], None, START, present=2).replicas == 3


# Down


def test_replicas_go_one_a_minute_once_the_window_has_passed() -> None:
    fleet = Fleet(written(), present=4)
    fleet.run(32_000, 600)
    assert fleet.present == 4
    replicas = fleet.run(1_000, 700)
    assert replicas[:19] == [4] * 19  # 300 s after the last look that wanted four
    assert replicas[19:] == [3] * 4 + [2] * 4 + [1] * (len(replicas) - 27)


def test_the_sentence_says_what_the_window_waits_for() -> None:
    fleet = Fleet(written(), present=3)
    fleet.run(25_000, 60)
    answer = fleet.look(1_000)
    assert answer.reason == ScalingReason.STABLE
    assert answer.detail == "3 replicas for the load. 1 would do now: one goes when that has held for 300 s."


def test_one_peak_within_the_window_keeps_the_replicas() -> None:
    fleet = Fleet(written(), present=2)
    assert set(fleet.run(lambda t: 16_000 if t % 240 < 15 else 1_000, 3600)) == {2}


def test_one_replica_is_kept_that_the_others_could_not_stand_in_for() -> None:
    """65 % of two is 130 % of one."""
    fleet = Fleet(written(), present=2)
    assert set(fleet.run(13_000, 3600)) == {2}


def test_policies_are_those_of_a_horizontal_pod_autoscaler() -> None:
    up = {
        "policies": [
            {"type": "Pods", "value": 3, "periodSeconds": 60},
            {"type": "Percent", "value": 50, "periodSeconds": 60},
        ]
    }
    for select, first in (("Max", 7), ("Min", 6), ("Disabled", 4)):
        spec = written(scaling={"behavior": {"scaleUp": {**up, "selectPolicy": select}}})
        assert Fleet(spec, present=4).look(150_000).replicas == first
    down = {
        "stabilizationWindowSeconds": 0,
        "policies": [
            {"type": "Pods", "value": 1, "periodSeconds": 60},
            {"type": "Percent", "value": 50, "periodSeconds": 60},
        ],
    }
    for select, second in (("Max", 4), ("Min", 7), ("Disabled", 8)):
        spec = written(scaling={"behavior": {"scaleDown": {**down, "selectPolicy": select}}})
        fleet = Fleet(spec, present=8)
        fleet.look(0)
        assert fleet.look(0).replicas == second


def test_a_window_holds_more_replicas_back_too() -> None:
    spec = written(scaling={"behavior": {"scaleUp": {"stabilizationWindowSeconds": 60}}})
    fleet = Fleet(spec)
    fleet.run(1_000, 120)
    assert fleet.run(16_000, 75) == [1, 1, 1, 2, 2]  # 60 s after the last look that wanted one


# Missing metrics


def test_a_silent_pod_holds_the_replicas_and_is_named() -> None:
    pods = [pod("says", loaded(100)), pod("silent", None), pod("stale", loaded(9_000), START - FRESH - 1)]
    answer = scale(written(), planned(), pods, None, START, present=3)
    assert (answer.replicas, answer.reason) == (3, ScalingReason.METRICS_UNAVAILABLE)
    assert answer.detail == "The load of silent, stale is not known: 3 replicas as before."


def test_a_pod_that_became_ready_just_now_is_not_silent_and_holds_the_others() -> None:
    hasty = written(scaling={"behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}})

    def asked(ready_for: float, load: float = 100, history: History | None = None) -> ScalingDecision:
        pods = [pod("says", loaded(load)), pod("new", None, ready_since=START - ready_for)]
        return scale(hasty, planned(), pods, history, START, present=2)

    seen = asked(5).history
    held = asked(FRESH, history=seen)
    assert (held.replicas, held.reason) == (2, ScalingReason.STABLE)
    assert held.detail == "2 replicas as before: new became ready just now: its load is read next."
    assert asked(FRESH + 1).reason == ScalingReason.METRICS_UNAVAILABLE
    assert asked(5, load=30_000).replicas == 4
    reported = [pod("says", loaded(100)), pod("new", loaded(0), ready_since=START - 5)]
    later = scale(hasty, planned(), reported, seen, START + PERIOD, present=2)
    assert later.replicas == 1


def test_a_lone_pod_that_became_ready_just_now_is_not_silent() -> None:
    answer = scale(written(), planned(), [pod("a", None, ready_since=START)], None, START, present=1)
    assert (answer.replicas, answer.reason) == (1, ScalingReason.STABLE)


def test_what_is_known_alone_may_ask_for_more() -> None:
    pods = [pod("says", loaded(30_000)), pod("silent", None)]
    answer = scale(written(), planned(), pods, None, START, present=2)
    assert (answer.replicas, answer.reason) == (4, ScalingReason.SCALING)


def test_while_nothing_answers_the_replicas_are_held() -> None:
    loading = [pod("a", None, ready=False), pod("b", None, ready=False)]
    fleet = History()
    for look in range(100):
        answer = scale(written(), planned(), loading, fleet, START + PERIOD * look, present=2)
        fleet = answer.history
        assert (answer.replicas, answer.reason) == (2, ScalingReason.METRICS_UNAVAILABLE)


def test_a_pod_that_never_becomes_ready_keeps_no_other() -> None:
    history = None
    for look in range(100):
        now = START + PERIOD * look
        pods = [pod("a", loaded(100), now), pod("b", loaded(0), now), pod("loads", None, ready=False)]
        answer = scale(written(), planned(), pods, history, now, present=3)
        history = answer.history
    assert answer.replicas == 2


def test_the_window_begins_anew_when_the_metrics_come_back() -> None:
    fleet = Fleet(written(), present=2)
    fleet.run(1_000, 250)
    fleet.look(0, silent=True)
    assert fleet.run(1_000, 285)[-1] == 2
    assert fleet.run(1_000, 30)[-1] == 1


# Bounds


def test_the_plan_s_floor_comes_at_once_and_stays() -> None:
    fleet = Fleet(written(), planned(floor=5))
    assert fleet.run(0, 1200) == [5] * 80
    assert fleet.answers[0].detail == "The plan needs 5 replicas: from 1 to 5 now."


@pytest.mark.parametrize(
    ("minimum", "floor", "demand", "message"),
    [
        (3, 1, 0, "3 replicas: spec.scaling.minReplicas allows no fewer."),
        (1, 3, 9_000, "3 replicas: the plan needs no fewer for spec.workload and spec.targets."),
        (3, 1, 25_000, "3 replicas for the load."),  # 83 % of three: none may go, whatever the bound
        (None, 1, 0, "1 replica for the load."),
    ],
)
def test_the_sentence_says_which_bound_holds_the_replicas(
    minimum: int | None, floor: int, demand: float, message: str
) -> None:
    spec = written(scaling={} if minimum is None else {"minReplicas": minimum})
    answer = Fleet(spec, planned(floor), present=max(floor, minimum or 1)).look(demand)
    assert (answer.reason, answer.detail) == (ScalingReason.STABLE, message)


def test_the_budget_stops_growth_with_the_sentence() -> None:
    answer = Fleet(written(cost={"maxPerHour": "5.00"}), present=2).look(90_000)
    assert (answer.replicas, answer.reason) == (2, ScalingReason.SCALING_LIMITED)
    assert answer.detail == (
        "11 replicas would be asked for, but one more would cost more than spec.cost.maxPerHour of "
        "5.00 $/h: 2 replicas now."
    )


def test_a_budget_that_is_cut_takes_replicas_at_once_even_without_metrics() -> None:
    fleet = Fleet(written(cost={"maxPerHour": "5.00"}), present=4)
    assert fleet.look(30_000, silent=True).replicas == 2


@pytest.mark.parametrize(
    "node", [NodeSupply("a", 2, 2), NodeSupply("a", 8, 8, Host(5000, 64 << 30))], ids=["devices", "cores"]
)
def test_a_supply_bounds_growth_and_takes_nothing_away(node: NodeSupply) -> None:
    supply = Supply((node,))

    def asked(present: int) -> ScalingDecision:
        pods = spread(90_000, 2, START)
        return scale(written(), planned(), pods, None, START, present=present, supply=supply)

    assert (asked(1).replicas, asked(1).reason) == (2, ScalingReason.SCALING)
    assert (asked(2).replicas, asked(2).reason) == (2, ScalingReason.SCALING_LIMITED)
    assert asked(3).replicas == 3
    assert "hold no more replicas on h100" in asked(3).detail


def test_nothing_more_is_asked_for_while_a_pod_has_waited_too_long() -> None:
    spec = written(accelerators={"pendingTimeout": "5m"})
    waits = pod("waits", None, ready=False, pending_since=START - 301)
    pods = [*spread(25_000, 1, START), waits]
    answer = scale(spec, planned(), pods, None, START, present=2)
    assert (answer.replicas, answer.reason) == (2, ScalingReason.SCALING_LIMITED)
    assert "pod waits has waited for an accelerator for longer than 5m" in answer.detail
    early = [*pods[:-1], replace(waits, pending_since=START - 299)]
    assert scale(spec, planned(), early, None, START, present=2).replicas == 3


# Policies, and what is remembered


@pytest.mark.parametrize("policy", ["External", "Planned", "Metrics"])
def test_a_suspended_deployment_has_no_replicas(policy: str) -> None:
    answer = scale(written(scaling={"mode": policy}, suspend=True), planned(3), present=3)
    assert (answer.replicas, answer.reason) == (0, ScalingReason.SUSPENDED)


def test_external_follows_spec_replicas() -> None:
    answer = scale(written(scaling={"mode": "External"}, replicas=7), planned(3), present=3)
    assert (answer.replicas, answer.reason) == (7, ScalingReason.EXTERNALLY_MANAGED)


def test_planned_follows_the_plan() -> None:
    answer = scale(written(scaling={"mode": "Planned"}), planned(3), present=1)
    assert (answer.replicas, answer.reason) == (3, ScalingReason.PLANNED)


@pytest.mark.parametrize("policy", ["Planned", "Metrics"])
@pytest.mark.parametrize("plan", [None, replace(planned(3), choice=None)])
def test_without_a_feasible_plan_what_runs_is_kept(policy: str, plan: Plan | None) -> None:
    spec = written(scaling={"mode": policy, "minReplicas": 2})
    assert scale(spec, plan, present=4).replicas == 4
    assert scale(spec, plan, present=None).replicas == 2


def test_a_resumed_deployment_comes_back_at_the_floor() -> None:
    assert scale(written(), planned(3), present=0).replicas == 3
    assert scale(written(), planned(3), present=None).replicas == 3


def test_every_change_of_the_replicas_is_remembered_with_its_reason() -> None:
    fleet = Fleet(written())
    fleet.look(1_000)
    fleet.look(16_000)
    event = Event(START + PERIOD, 1, 2, ScalingReason.SCALING)
    assert fleet.history.events == (event,)


@given(st.lists(demands, max_size=200), counts)
def test_the_memory_stays_small(steps: list[float], present: int) -> None:
    fleet = Fleet(written(), present=present)
    for demand in steps:
        fleet.look(demand)
    assert len(fleet.history.recommendations) <= 300 / PERIOD + 1
    recent = sum(event.at > fleet.now - PERIOD - 1800 for event in fleet.history.events)
    assert len(fleet.history.events) <= max(5, recent)


def test_a_change_that_came_while_the_operator_was_down_is_remembered_too() -> None:
    restored = History.restored([Event(START - 500, 1, 2, ScalingReason.SCALING)])
    answer = scale(written(), planned(), [pod("a")], restored, START, present=3)
    assert [(item.before, item.after) for item in answer.history.events] == [(1, 2), (2, 3)]
