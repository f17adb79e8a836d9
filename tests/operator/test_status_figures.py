"""What a status tells of plan, money and change: predicted and live, and rarely another figure."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_dev.plan_cases import plan as plan_of
from turbo_operator import autoscaler, status
from turbo_operator.api import (
    LABEL_ACCELERATOR,
    LABEL_ACCELERATOR_COUNT,
    CapacityType,
    ConditionType,
    PlanReason,
    Provenance,
    TurboDeployment,
    TurboDeploymentStatus,
    parse,
)
from turbo_operator.controller.cache.object_versions import Key
from turbo_operator.controller.cache.projection import serving_pod
from turbo_operator.controller.deployment_metrics import STARTUP_SECONDS, show_startup
from turbo_operator.plan import EvaluatedCandidate, Plan
from turbo_operator.snapshot import Accelerator, LoadSample, PodView, Snapshot, Supply
from turbo_operator.status import fields
from turbo_runtime.contract.documents import Load, ModelInfo, ModelShape

NOW = 1_700_000_000.0
HASH = "v1new"
CPU = Accelerator("cpu", "cpu", Decimal(2), 6 << 30, prices={CapacityType.ON_DEMAND: Decimal("0.04")})
SHAPE = ModelShape("LlamaForCausalLM", 134515008, 30, 576, 9, 3, 64, 49152, 8192, "bfloat16")
FACTS = ModelInfo(SHAPE, "sha256:ab", None, 270_000_000)
LOAD = Load(1, 0, 10, 0, 0.5, 1000, 0, 0, 0, 40, "bitwise", False)


def td(old: TurboDeploymentStatus | None = None, **spec: Any) -> TurboDeployment:
    return parse(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboDeployment",
            "metadata": {"name": "chat", "namespace": "team", "uid": "u", "generation": 3},
            "spec": {"model": {"uri": "pvc://models/chat"}, **spec},
            "status": old.dump() if old else {},
        }
    )


def pod(name: str, rate: float | None = None, **more: Any) -> PodView:
    load = None if rate is None else LoadSample(NOW, LOAD, rate)
    seen = {"phase": "Running", "ready": True, "ip": "10.0.0.1", "reason": None, "message": None}
    return PodView(name, HASH, **(seen | {"accelerator": "cpu", "load": load} | more))


def computed(
    it: TurboDeployment, *pods: PodView, rate_changed: float | None = None, **more: Any
) -> TurboDeploymentStatus:
    seen = Snapshot({"cpu": CPU}, pods=pods, model=FACTS, **more)
    plan = plan_of(it.spec, SHAPE, {"cpu": CPU})
    scale = autoscaler.scale(it.spec, plan, pods, now=NOW)
    outcome = status.Outcome(scale, plan, HASH)
    return status.compute(it, seen, outcome, NOW, rate_changed=rate_changed)


def test_the_plan_is_told_with_how_it_is_paid_for_and_what_its_figures_rest_on() -> None:
    told = computed(td()).plan
    assert told is not None
    assert (told.capacity_type, told.nodes, told.accelerators_per_replica) == ("OnDemand", 1, 1)
    assert told.predicted is not None
    assert told.predicted.cost_per_hour == "0.04"
    assert told.predicted.provenance in set(Provenance)


def test_rejected_rows_name_engine_capacity_type_and_nodes() -> None:
    row = EvaluatedCandidate("h100", 8, "Off", "VLLM", "Spot", 2, reason=PlanReason.INSUFFICIENT_CAPACITY)
    told = fields.plan(None, Plan(None, 1, PlanReason.INSUFFICIENT_CAPACITY, "None.", (row,) * 9), None)
    assert told is not None
    assert len(told.rejected) == fields.MAX_REJECTED
    first = told.rejected[0]
    assert (first.engine, first.capacity_type, first.tensor, first.nodes) == ("VLLM", "Spot", 8, 2)


def test_a_sentence_that_is_too_long_for_the_status_is_cut() -> None:
    """The planner names every accelerator there is where none of those that are allowed is one."""
    said = "There are: " + ", ".join(f"an-accelerator-of-{number:030}" for number in range(60)) + "."
    row = EvaluatedCandidate("h100", 2, "Off", reason=PlanReason.ACCELERATOR_NOT_FOUND, detail=said)
    for new in (
        Plan(None, 1, PlanReason.ACCELERATOR_NOT_FOUND, said, (row,)),
        replace(plan_of(td().spec, SHAPE, {"cpu": CPU}), detail=said, rejected=(row,)),
    ):
        told = fields.plan(None, new, None)
        assert told is not None
        assert TurboDeploymentStatus.model_validate({"plan": told.dump()}).plan == told
        assert told.message is not None
        assert told.message.startswith("There are: an-accelerator")
        assert told.message.endswith("...")


def test_a_pod_whose_label_says_that_it_holds_nothing_is_paid_for_all_the_same() -> None:
    whole = replace(CPU, price_per_node=True, count_per_node=4)
    body = {
        "metadata": {"name": "p", "labels": {LABEL_ACCELERATOR: "cpu", LABEL_ACCELERATOR_COUNT: "0"}},
        "status": {"phase": "Running"},
    }
    view = replace(serving_pod(body), plan_hash=HASH)
    assert fields.cost_per_hour(Snapshot({"cpu": whole}, pods=(view,))) == Decimal("0.16")


def test_what_runs_is_told_with_its_cost_at_the_present_load() -> None:
    live = computed(td(), pod("a", 50.0), pod("b", 50.0)).observed
    assert live is not None
    assert (live.tokens_per_second, live.cost_per_hour) == ("100", "0.08")
    assert live.cost_per_million_tokens == "0.2222"


def test_a_pod_that_is_silent_makes_the_sum_unknown_and_a_pending_one_costs_nothing() -> None:
    live = computed(td(), pod("a", 50.0), pod("b"), pod("c", pending_since=NOW, ready=False)).observed
    assert live is not None
    assert (live.tokens_per_second, live.cost_per_million_tokens) == (None, None)
    assert live.cost_per_hour == "0.08"


@given(st.floats(0.1, 1e6), st.floats(0.85, 1.15))
def test_a_figure_that_moves_by_less_than_a_tenth_stays(rate: float, factor: float) -> None:
    first = computed(td(), pod("a", rate))
    assert first.observed is not None
    assert first.observed.tokens_per_second is not None
    stands = float(first.observed.tokens_per_second)
    second = computed(td(first), pod("a", rate * factor))
    assert second.observed is not None
    if abs(rate * factor - stands) <= 0.1 * stands:
        assert second.observed == first.observed
    else:
        assert second.observed.tokens_per_second != first.observed.tokens_per_second


@pytest.mark.parametrize(
    ("old", "new", "seconds", "shown"),
    [
        (100.0, 300.0, 239.0, "100"),
        (100.0, 300.0, 240.0, "300"),
        (100.0, 300.0, None, "300"),
        (None, 300.0, 0.0, "300"),
        (100.0, None, 0.0, None),
    ],
)
def test_tokens_per_second_stay_for_four_minutes_unless_they_become_known_or_unknown(
    old: float | None, new: float | None, seconds: float | None, shown: str | None
) -> None:
    """Found in a benchmark: a load that comes and goes in minutes was a write with each scrape."""
    first = computed(td(), pod("a", old))
    changed = None if seconds is None else NOW - seconds
    second = computed(td(first), pod("a", new), rate_changed=changed)
    assert second.observed is not None
    assert second.observed.tokens_per_second == shown


def test_tokens_per_second_change_with_the_cost_so_that_a_tokens_price_is_of_one_time() -> None:
    first = computed(td(), pod("a", 100.0))
    second = computed(td(first), pod("a", 100.0), pod("b", 100.0), rate_changed=NOW - 1)
    assert first.observed is not None
    assert second.observed is not None
    assert second.observed.tokens_per_second == "200"
    assert second.observed.cost_per_million_tokens == first.observed.cost_per_million_tokens


@pytest.mark.parametrize(
    ("spec", "more", "expected"),
    [
        ({}, {}, ("True", "NoBudget")),
        ({"cost": {"maxPerHour": "0.08"}}, {}, ("True", "WithinBudget")),
        ({"cost": {"maxPerHour": "0.07"}}, {}, ("False", "BudgetExceeded")),
        ({"cost": {"maxPerHour": "0.07"}}, {"accelerator": "gone"}, ("Unknown", "PriceUnknown")),
    ],
)
def test_the_budget_is_held_against_what_runs(
    spec: dict[str, Any], more: dict[str, Any], expected: tuple[str, str]
) -> None:
    condition = computed(td(**spec), pod("a", **more), pod("b", **more)).condition(
        ConditionType.WITHIN_BUDGET
    )
    assert condition is not None
    assert (condition.status, condition.reason) == expected


def test_each_change_of_what_is_wanted_is_told_once_and_the_last_ones_are_kept() -> None:
    told = computed(td(replicas=1))
    assert (told.desired_replicas, told.scale_history) == (1, ())
    for replicas in (2, 2, 3, 4, 5, 6, 7, 7):
        told = computed(td(told, replicas=replicas))
    assert (told.ready_replicas, told.desired_replicas) == (0, 7)
    assert [(event.before, event.after) for event in told.scale_history] == [
        (number, number + 1) for number in range(2, 7)
    ]
    assert told.scale_history[-1].dump() == {
        "time": "2023-11-14T22:13:20Z",
        "from": 6,
        "to": 7,
        "reason": "ExternallyManaged",
    }


def test_what_is_passed_over_is_remembered() -> None:
    told = computed(td(), supply={"cpu": Supply(), "h100": Supply(unavailable_until=NOW)})
    assert [(row.accelerator, row.expiration_time) for row in told.unavailable_accelerators] == [
        ("h100", "2023-11-14T22:13:20Z")
    ]


def test_a_shortage_of_nodes_is_not_the_users_to_mend() -> None:
    it = td()
    plan = Plan(None, 1, PlanReason.INSUFFICIENT_CAPACITY, "There is no h100.")
    seen = Snapshot({"cpu": CPU}, model=FACTS)
    told = status.compute(it, seen, status.Outcome(autoscaler.scale(it.spec, plan), plan), NOW)
    assert [told.condition(kind).status for kind in (ConditionType.PLAN_FEASIBLE, ConditionType.STALLED)] == [
        "False",
        "False",
    ]


def test_the_replica_that_is_missing_says_why() -> None:
    waits = {"ready": False, "pending_since": NOW, "reason": "Unschedulable", "message": "0/3 nodes"}
    told = computed(td(replicas=2), pod("a"), pod("b", **waits))
    for kind in (ConditionType.READY, ConditionType.AVAILABLE):
        condition = told.condition(kind)
        assert condition is not None
        assert condition.status == "True"
        assert "Pod b: Unschedulable: 0/3 nodes." in condition.message


@pytest.mark.parametrize(("policy", "ignored"), [("Metrics", True), ("Planned", True), ("External", False)])
def test_replicas_that_nobody_follows_are_told(policy: str, ignored: bool) -> None:
    active = computed(td(replicas=5, scaling={"mode": policy})).condition(ConditionType.SCALING_ACTIVE)
    assert active is not None
    assert ("spec.replicas of 5 is not followed" in active.message) == ignored
    default = computed(td(scaling={"mode": policy})).condition(ConditionType.SCALING_ACTIVE)
    assert default is not None
    assert "not followed" not in default.message


def started(name: str, created: float, **more: Any) -> PodView:
    stages = {"created": created, "scheduled_since": created + 1, "started": created + 4}
    return pod(name, **(stages | {"ready_since": created + 15} | more))


def test_the_start_of_the_latest_pod_is_told_stage_by_stage() -> None:
    first, second = started("a", NOW - 60), started("b", NOW - 30)
    seen = Snapshot({}, pods=(second, first, started("c", NOW - 5, ready=False)))
    times = fields.startup(None, seen)
    assert times is not None
    assert (times.pod, times.scheduling, times.pulling, times.ready) == ("b", "1s", "3s", "15s")
    assert (times.loading, times.checking, times.first_token) == (None, None, None)
    load = replace(LOAD, load_seconds=4.25, check_seconds=2.5, first_token_time=NOW - 10)
    answering = replace(second, load=LoadSample(NOW, load), ready_since=NOW - 1)
    later = fields.startup(times, replace(seen, pods=(answering,)))
    assert later is not None
    assert (later.loading, later.checking, later.first_token) == ("4.2s", "2.5s", "20s")
    assert later.ready == "15s", "a pod that was not ready for a while has not started again"
    assert fields.startup(later, Snapshot({}, pods=())) == later, "what is gone is known on"


def test_a_first_token_long_after_the_start_is_none_of_its_stages() -> None:
    load = replace(LOAD, first_token_time=NOW)
    pods = [started("a", NOW - age, load=LoadSample(NOW, load)) for age in (70, 80)]
    soon, late = (fields.startup(None, Snapshot({}, pods=(it,))) for it in pods)
    assert soon is not None
    assert late is not None
    assert (soon.first_token, late.first_token) == ("70s", None)
    flapped = fields.startup(late, Snapshot({}, pods=(replace(pods[1], ready_since=NOW),)))
    assert flapped == late


@pytest.mark.parametrize("seconds", [0.04, 999999.4, 1999990.0, 31536000.5])
def test_a_start_may_take_weeks(seconds: float) -> None:
    """Found in review: seconds like 1.99999e+06s are no duration, and no status was written any more."""
    it = started("a", NOW - seconds - 1, ready_since=NOW, scheduled_since=NOW - 1)
    times = fields.startup(None, Snapshot({}, pods=(it,)))
    show_startup(Key("team", "chat"), times)
    labels = {"namespace": "team", "name": "chat"}
    (value,) = (
        sample.value
        for metric in STARTUP_SECONDS.collect()
        for sample in metric.samples
        if sample.labels == {**labels, "stage": "ready"}
    )
    assert value == pytest.approx(seconds + 1, abs=0.06)


def test_a_container_that_does_not_run_has_not_started() -> None:
    def seen(*states: dict[str, Any]) -> float | None:
        meta = {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"}
        statuses = [{"name": str(number), "state": state} for number, state in enumerate(states)]
        return serving_pod({"metadata": meta, "status": {"containerStatuses": statuses}}).started

    early, late = ({"running": {"startedAt": f"2026-01-01T00:00:0{number}Z"}} for number in (1, 2))
    assert seen() is None
    assert seen(early, {"waiting": {}}) is None
    assert seen(early, late) == pytest.approx((seen(early) or 0.0) + 1)
