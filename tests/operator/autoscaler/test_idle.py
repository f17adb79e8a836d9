"""To zero and back: without requests for long no replica is left, and what is not known is no silence."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_dev.fleet import START, loaded, planned, pod, written
from turbo_operator.activator.report import Traffic
from turbo_operator.api import PlanReason, ScalingReason
from turbo_operator.autoscaler import History, ScalingDecision, scale
from turbo_operator.plan import Plan
from turbo_operator.snapshot import PodView, TrafficSample

AFTER = 600.0
SPEC = written(scaling={"minReplicas": 0}, routing="Router")


def router(
    idle: float = 0.0,
    waiting: int = 0,
    running: int = 0,
    held: float | None = None,
    age: float = 1.0,
    **more: Any,
) -> PodView:
    sample = TrafficSample(START - age, Traffic(waiting, running, idle, held))
    fields = {"ready": True, "traffic": sample, **more}
    return PodView("r", "", "Running", ip="10.0.0.9", reason=None, message=None, **fields)


def replica(ready_for: float = 2 * AFTER, requests: int = 0) -> PodView:
    return pod("a", loaded(100 * requests, requests=requests), ready_since=START - ready_for)


def decided(
    *routers: PodView, present: int | None = 1, pods: tuple[PodView, ...] = (replica(),), spec: Any = SPEC
) -> ScalingDecision:
    return scale(spec, planned(), pods, None, START, present=present, routers=routers)


def test_the_last_replica_goes_once_no_request_has_come_for_as_long_as_the_spec_says() -> None:
    for age in (1.0, 20.0, 45.0):  # what has come since then is not known
        assert decided(router(AFTER - 0.5, age=age)).replicas == 1
        assert decided(router(AFTER, age=age)).replicas == 0
    idle = decided(router(AFTER), router(AFTER + 9))
    assert (idle.replicas, idle.reason) == (0, ScalingReason.IDLE)
    assert idle.detail.startswith("No request came for 10m, and spec.scaling.minReplicas is 0")
    short = written(scaling={"minReplicas": 0, "idleAfter": "20s"}, routing="Router")
    assert decided(router(20.0), spec=short).replicas == 0


@pytest.mark.parametrize(
    "routers",
    [
        (),
        (router(AFTER), router(AFTER, ready=True, traffic=None)),
        (router(AFTER), router(AFTER, age=120.0)),
        (router(AFTER), router(0.0)),
        (router(AFTER), router(0.0, running=1)),
        (router(AFTER), router(0.0, running=1, terminating=True)),
        (router(AFTER, ready=False),),
    ],
)
def test_what_is_not_known_is_no_silence(routers: tuple[PodView, ...]) -> None:
    assert decided(*routers).replicas == 1


def test_a_replica_that_answers_past_the_routers_is_not_idle() -> None:
    assert decided(router(AFTER), pods=(replica(requests=1),)).replicas == 1


def test_a_model_that_loads_for_longer_than_that_is_not_given_up_on_the_way() -> None:
    loading = PodView("a", "v2", "Running", ready=False, ip="10.0.0.1", reason=None, message=None)
    assert decided(router(2 * AFTER), pods=(loading,)).replicas == 1
    assert decided(router(2 * AFTER), pods=(replica(ready_for=5.0),)).replicas == 1
    assert decided(router(2 * AFTER), present=None, pods=()).replicas == 1, "the first one starts"


def test_a_request_that_waits_starts_a_replica_and_so_does_one_that_was_given_up_just_now() -> None:
    def woken(*routers: PodView) -> int:
        return decided(*routers, present=0, pods=()).replicas

    assert woken(router(AFTER)) == 0
    assert woken(router(AFTER), router(waiting=1)) == 1
    assert woken(router(5.0, held=5.0)) == 1
    assert woken(router(5.0)) == 0, "what never waited for a replica needs none: an answer without one"
    assert woken(router(AFTER, held=10.0, age=25.0)) == 0, "that was long ago"


def test_without_a_router_that_would_notice_a_request_there_is_a_replica() -> None:
    def kept(*routers: PodView, since: float) -> int:
        past = History(since=START - since)
        return scale(SPEC, planned(), (), past, START, present=0, routers=routers).replicas

    unseen = router(traffic=None)
    assert kept(since=0.0) == kept(since=1000.0) == 1
    assert kept(router(AFTER), unseen, since=1000.0) == 0
    for blind in (unseen, router(AFTER, age=120.0), router(AFTER, ready=False)):
        assert kept(blind, since=1000.0) == 1
        assert kept(blind, since=5.0) == 0, "a start of the operator wakes nobody"


def test_what_sleeps_sleeps_on_without_a_feasible_plan_until_it_is_asked() -> None:
    """Found in review: each start of the operator, and each plan that failed, woke what slept."""
    for plan in (None, Plan(None, 1, PlanReason.INSUFFICIENT_CAPACITY, "There is no h100.")):
        assert scale(SPEC, plan, now=START, present=0, routers=(router(AFTER),)).replicas == 0
        assert scale(SPEC, plan, now=START, present=0, routers=(router(waiting=1),)).replicas == 1


def test_it_is_the_same_where_the_plan_sets_the_replicas() -> None:
    spec = written(
        scaling={"mode": "Planned", "minReplicas": 0}, routing="Router", workload={"requestsPerSecond": "1"}
    )
    assert decided(router(AFTER), spec=spec).replicas == 0
    assert decided(router(waiting=1), present=0, pods=(), spec=spec).replicas == planned().replicas


@given(
    idle=st.lists(st.floats(0, 2 * AFTER), max_size=3),
    waiting=st.integers(0, 2),
    present=st.sampled_from([None, 0, 1, 3]),
)
def test_none_is_left_only_under_a_minimum_of_zero_and_never_while_a_request_waits(
    idle: list[float], waiting: int, present: int | None
) -> None:
    routers = [router(seconds) for seconds in idle]
    if waiting:
        routers.append(router(waiting=waiting))
        assert decided(*routers, present=present).replicas > 0
    assert decided(*routers, present=present, spec=written(routing="Router")).replicas > 0
