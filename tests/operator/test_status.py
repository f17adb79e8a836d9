"""The status: Ready is derived from real reasons, and times move on flips only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_dev.plan_cases import plan as plan_of
from turbo_operator import autoscaler, render, status
from turbo_operator.api import (
    AvailableReason,
    CapacityType,
    ConditionType,
    ModelInspectedReason,
    PlanReason,
    ReadyReason,
    TurboDeployment,
    TurboDeploymentStatus,
    parse,
)
from turbo_operator.catalog import shapes
from turbo_operator.snapshot import Accelerator, ChildView, PodView, Snapshot, Supply
from turbo_operator.status import Outcome, RolloutState
from turbo_runtime.contract.documents import ModelInfo

GIB = 1 << 30
SHAPE = shapes.shipped("HuggingFaceTB/SmolLM2-135M")
assert SHAPE is not None
FACTS = ModelInfo(SHAPE, "sha256:ab", None, 270_000_000)
PRICES = {CapacityType.ON_DEMAND: Decimal("0.04")}
CPU = Accelerator("cpu", "cpu", Decimal(2), 6 * GIB, prices=PRICES, price_source="mine")
HASH = "v1new"
NOW = 1_700_000_000.0


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


def pod(
    name: str = "p", ready: bool = True, variant: str = HASH, reason: str | None = None, **more: Any
) -> PodView:
    return PodView(name, variant, "Running", ready, "10.0.0.1", reason, more.pop("message", None), **more)


def computed(
    it: TurboDeployment,
    *pods: PodView,
    children: tuple[ChildView, ...] = (),
    facts: ModelInfo | None = FACTS,
    error: str | None = None,
    now: float = NOW,
    refused: str | None = None,
    accelerator: Accelerator = CPU,
    supply: Mapping[str, Supply] | None = None,
    rollout: RolloutState | None = None,
) -> TurboDeploymentStatus:
    plan = plan_of(it.spec, FACTS.shape, {accelerator.name: accelerator}, supply) if facts else None
    variant = HASH if plan and plan.choice else None
    observed = Snapshot({"cpu": accelerator}, supply, children, pods, model=facts, model_error=error)
    outcome = Outcome(autoscaler.scale(it.spec), plan, variant, rollout or RolloutState())
    return status.compute(it, observed, outcome, now, refused)


def said(it: TurboDeploymentStatus, kind: ConditionType) -> tuple[str, str]:
    condition = it.condition(kind)
    assert condition is not None
    assert condition.message.endswith(".")
    return condition.status, condition.reason


def explained(it: TurboDeploymentStatus, kind: ConditionType) -> str:
    condition = it.condition(kind)
    assert condition is not None
    return condition.message


def test_a_ready_pod_makes_it_ready() -> None:
    new = computed(td(), pod())
    assert said(new, ConditionType.READY) == ("True", ReadyReason.SERVING)
    assert said(new, ConditionType.STALLED)[0] == "False"
    assert (new.replicas, new.ready_replicas, new.observed_generation) == (1, 1, 3)
    assert new.url == "http://chat.team.svc/v1"
    assert new.selector == ",".join(
        f"serving.turbo.dev/{each}" for each in ("deployment=chat", "owner-uid=u", "role=serving")
    )
    assert new.plan is not None
    assert new.plan.hash == HASH
    assert new.plan.predicted is not None
    assert new.plan.predicted.cost_per_hour == "0.04"
    assert new.model is not None
    assert new.model.shape is not None
    assert new.model.shape.layers == 30


def test_the_status_survives_the_api() -> None:
    new = computed(td(), pod())
    assert TurboDeploymentStatus.model_validate(new.dump()) == new


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("Unschedulable", AvailableReason.WAITING_FOR_ACCELERATOR),
        ("ImagePullBackOff", AvailableReason.IMAGE_PULL_BACK_OFF),
        ("CrashLoopBackOff", AvailableReason.CRASH_LOOP_BACK_OFF),
        ("OOMKilled", AvailableReason.OOM_KILLED),
        ("SomethingNew", AvailableReason.MODEL_LOADING),
        (None, AvailableReason.MODEL_LOADING),
    ],
)
def test_what_holds_up_the_pod_holds_up_the_deployment(reason: str | None, expected: AvailableReason) -> None:
    new = computed(td(), pod(ready=False, reason=reason, message="no luck"))
    assert said(new, ConditionType.AVAILABLE) == ("False", expected)
    assert said(new, ConditionType.READY) == ("False", expected)
    message = explained(new, ConditionType.AVAILABLE)
    assert reason is None or ("Pod p" in message and "no luck." in message)


def test_the_first_failing_pod_is_named() -> None:
    pods = [pod("b", False, reason="OOMKilled"), pod("a", False, reason="ErrImagePull"), pod("c", False)]
    new = computed(td(replicas=3), *pods)
    assert said(new, ConditionType.AVAILABLE) == ("False", AvailableReason.IMAGE_PULL_BACK_OFF)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ('pods "x" is forbidden: exceeded quota: compute', AvailableReason.QUOTA_EXCEEDED),
        ('pods "x" is forbidden: violates PodSecurity', AvailableReason.FAILED_CREATE),
    ],
)
def test_a_replica_set_that_makes_no_pods_says_why(message: str, expected: str) -> None:
    child = ChildView("Deployment", "chat-v1new", "d", None, plan_hash=HASH, message=message)
    assert said(computed(td(), children=(child,)), ConditionType.AVAILABLE) == ("False", expected)


def test_one_replica_of_several_may_be_away() -> None:
    it = td(replicas=3)
    assert said(computed(it, pod("a"), pod("b")), ConditionType.AVAILABLE)[0] == "True"
    assert said(computed(it, pod("a")), ConditionType.AVAILABLE)[0] == "False"


def test_a_terminating_pod_does_not_count() -> None:
    new = computed(td(), pod("old", terminating=True))
    assert (new.replicas, new.ready_replicas) == (0, 0)
    assert said(new, ConditionType.READY)[0] == "False"


def test_while_the_new_plan_comes_up_it_is_available_and_not_ready() -> None:
    new = computed(
        td(), pod("old", variant="v1old"), pod("new", False, reason="ErrImagePull", message="no image")
    )
    assert said(new, ConditionType.AVAILABLE)[0] == "True"
    assert said(new, ConditionType.READY) == ("False", AvailableReason.IMAGE_PULL_BACK_OFF)


@pytest.mark.parametrize("by_spec", [False, True])
def test_a_new_plan_that_the_spec_holds_back_does_not_say_that_it_waits_for_accelerators(
    by_spec: bool,
) -> None:
    rollout = RolloutState(HASH, HASH, "v1old", waits="It waits.", waits_for_spec=by_spec)
    new = computed(td(), pod("old", variant="v1old"), rollout=rollout)
    reason = ReadyReason.USER_ACTION_REQUIRED if by_spec else AvailableReason.WAITING_FOR_ACCELERATOR
    assert said(new, ConditionType.READY) == ("False", reason)
    assert said(new, ConditionType.STALLED)[0] == str(by_spec)


def test_a_new_plan_that_finds_no_room_beside_the_old_one_says_what_makes_some() -> None:
    waits = pod("new", ready=False, reason="Unschedulable", message="0/1 nodes are available")
    ready = computed(td(), pod("old", variant="v1old"), waits).condition(ConditionType.READY)
    assert ready is not None
    assert (ready.status, ready.reason) == ("False", AvailableReason.WAITING_FOR_ACCELERATOR)
    assert ready.message.startswith("The earlier plan serves on. Of the new plan: Pod new: Unschedulable")
    loads = computed(td(), pod("old", variant="v1old"), pod("new", ready=False))
    other = loads.condition(ConditionType.READY)
    assert other is not None
    assert other.reason == AvailableReason.MODEL_LOADING


def test_what_kubernetes_says_twice_is_quoted_once() -> None:
    failing = pod(ready=False, reason="Unschedulable", message='claim "models" not found. not found.')
    available = computed(td(), failing).condition(ConditionType.AVAILABLE)
    assert available is not None
    assert available.message == 'Pod p: Unschedulable: claim "models" not found.'


def test_an_infeasible_spec_leaves_the_last_plan_available_and_says_so() -> None:
    before = computed(td(), pod())
    new = computed(td(before, cost={"maxPerHour": "0.01"}), pod())
    assert said(new, ConditionType.PLAN_FEASIBLE) == ("False", PlanReason.BUDGET_EXCEEDED)
    assert said(new, ConditionType.READY) == ("False", PlanReason.BUDGET_EXCEEDED)
    assert said(new, ConditionType.AVAILABLE)[0] == "True"
    assert said(new, ConditionType.STALLED)[0] == "True"
    assert new.plan is not None
    assert (new.plan.hash, new.plan.reason) == (HASH, PlanReason.BUDGET_EXCEEDED)


def kstatus(it: TurboDeploymentStatus) -> str:
    """As kstatus reads what was observed in full (sigs.k8s.io/cli-utils, pkg/kstatus/README.md)."""
    if said(it, ConditionType.RECONCILING)[0] == "True":
        return "InProgress"
    if said(it, ConditionType.STALLED)[0] == "True":
        return "Failed"
    return "Current" if said(it, ConditionType.READY)[0] == "True" else "InProgress"


def test_kstatus_takes_an_object_for_current_only_while_its_spec_is_in_force() -> None:
    """Whoever waits for what was applied must not be told that it is there while an older plan serves."""
    before = computed(td(), pod())
    assert kstatus(before) == "Current"
    assert kstatus(computed(td(before, cost={"maxPerHour": "0.01"}), pod())) == "Failed"
    none_free = computed(td(before), pod(), supply={"cpu": Supply()})
    assert said(none_free, ConditionType.READY) == ("False", PlanReason.INSUFFICIENT_CAPACITY)
    assert said(none_free, ConditionType.AVAILABLE)[0] == "True"
    assert said(none_free, ConditionType.PLAN_FEASIBLE) == ("False", PlanReason.INSUFFICIENT_CAPACITY)
    assert kstatus(none_free) == "InProgress"
    assert kstatus(computed(td(), pod(ready=False))) == "InProgress"
    assert said(computed(td(suspend=True)), ConditionType.RECONCILING)[0] == "False"  # it is as asked


def test_an_infeasible_spec_with_nothing_running_is_not_ready() -> None:
    new = computed(td(cost={"maxPerHour": "0.01"}))
    assert said(new, ConditionType.READY) == ("False", PlanReason.BUDGET_EXCEEDED)
    assert said(new, ConditionType.AVAILABLE) == ("False", AvailableReason.NO_PLAN)
    nothing_asked_for = computed(td(cost={"maxPerHour": "0.01"}, replicas=0))  # costs nothing
    assert said(nothing_asked_for, ConditionType.READY)[0] == "True"


def test_until_the_model_is_known_there_is_no_plan() -> None:
    new = computed(td(), facts=None)
    assert said(new, ConditionType.MODEL_INSPECTED) == ("Unknown", ModelInspectedReason.INSPECTING)
    assert said(new, ConditionType.PLAN_FEASIBLE) == ("Unknown", PlanReason.MODEL_UNKNOWN)
    assert said(new, ConditionType.READY) == ("False", ModelInspectedReason.INSPECTING)
    assert said(new, ConditionType.STALLED)[0] == "False"
    assert new.plan is None


def test_a_failed_inspection_waits_for_the_user() -> None:
    job = ChildView("Job", render.job_name(td()), "j", None, failed=True)
    new = computed(td(), children=(job,), facts=None, error="no such file: /models/chat")
    assert said(new, ConditionType.MODEL_INSPECTED) == ("False", ModelInspectedReason.INSPECT_FAILED)
    assert said(new, ConditionType.READY) == ("False", ModelInspectedReason.INSPECT_FAILED)
    assert said(new, ConditionType.STALLED)[0] == "True"
    assert "no such file: /models/chat." in explained(new, ConditionType.READY)


def test_a_refused_child_is_shown_in_the_api_servers_words() -> None:
    new = computed(td(), pod(), refused="admission webhook said no")
    assert said(new, ConditionType.READY) == ("False", ReadyReason.APPLY_REJECTED)
    assert said(new, ConditionType.STALLED)[0] == "True"


def test_suspension_is_a_state_and_no_failure() -> None:
    new = computed(td(suspend=True))
    assert said(new, ConditionType.READY) == ("False", ReadyReason.SUSPENDED)
    assert said(new, ConditionType.AVAILABLE) == ("False", AvailableReason.SUSPENDED)
    assert said(new, ConditionType.SCALING_ACTIVE)[0] == "False"
    assert said(new, ConditionType.STALLED)[0] == "False"


def test_a_suspended_object_does_not_claim_that_no_pod_runs_while_some_do() -> None:
    new = computed(td(suspend=True), pod("a"), pod("b", terminating=True))
    for kind in (ConditionType.READY, ConditionType.AVAILABLE):
        assert "2 pods have yet to end." in explained(new, kind)


def test_an_evicted_pod_is_no_replica_and_hides_no_live_one() -> None:
    evicted = replace(pod("a", False, reason="Evicted", message="disk pressure"), phase="Failed")
    new = computed(td(), evicted, pod("b", False, reason="ErrImagePull"))
    assert new.replicas == 1
    assert said(new, ConditionType.AVAILABLE) == ("False", AvailableReason.IMAGE_PULL_BACK_OFF)
    starting = computed(td(), evicted, pod("b", False))
    assert said(starting, ConditionType.AVAILABLE) == ("False", AvailableReason.MODEL_LOADING)
    assert "disk pressure" in explained(computed(td(), evicted), ConditionType.AVAILABLE)


def test_scaled_to_zero_is_as_asked_and_says_that_nothing_answers() -> None:
    new = computed(td(replicas=0))
    assert said(new, ConditionType.READY) == ("True", ReadyReason.SCALED_TO_ZERO)
    assert "Nothing answers" in explained(new, ConditionType.READY)


def test_the_last_feasible_plan_is_available_with_its_own_replicas() -> None:
    first = computed(td(), pod())
    new = computed(td(first, replicas=3, cost={"maxPerHour": "0.05"}), pod())
    assert said(new, ConditionType.PLAN_FEASIBLE) == ("False", PlanReason.BUDGET_EXCEEDED)
    assert said(new, ConditionType.READY) == ("False", PlanReason.BUDGET_EXCEEDED)
    assert said(new, ConditionType.AVAILABLE)[0] == "True"


def test_five_rejected_candidates_are_kept() -> None:
    many = {f"a{index}": replace(CPU, name=f"a{index}") for index in range(9)}
    plan = plan_of(td().spec, FACTS.shape, many)
    outcome = Outcome(autoscaler.scale(td().spec), plan, HASH)
    new = status.compute(td(), Snapshot(many, model=FACTS), outcome, NOW)
    assert new.plan is not None
    assert len(new.plan.rejected) == 5


pods = st.lists(
    st.builds(
        pod,
        st.sampled_from("abcdef"),
        st.booleans(),
        st.sampled_from((HASH, "v1old")),
        st.sampled_from((None, "OOMKilled", "Unschedulable", "Odd")),
        terminating=st.booleans(),
    ),
    unique_by=lambda each: each.name,
    max_size=5,
)
situations = st.fixed_dictionaries(
    {
        "pods": pods,
        "spec": st.fixed_dictionaries(
            {"replicas": st.integers(0, 4), "suspend": st.booleans()},
            optional={"cost": st.just({"maxPerHour": "0.01"})},
        ),
        "facts": st.sampled_from((FACTS, None)),
        "refused": st.sampled_from((None, "no")),
    }
)


def of(situation: dict[str, Any], old: TurboDeploymentStatus | None, now: float) -> TurboDeploymentStatus:
    known = {name: situation[name] for name in ("facts", "refused")}
    return computed(td(old, **situation["spec"]), *situation["pods"], now=now, **known)


@given(situations)
def test_a_second_computation_changes_nothing(situation: dict[str, Any]) -> None:
    first = of(situation, None, NOW)
    assert of(situation, first, NOW + 1000).dump() == first.dump()


@given(situations, situations)
def test_a_transition_time_moves_exactly_when_its_status_flips(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    old = of(before, None, NOW)
    new = of(after, old, NOW + 1000)
    for condition in new.conditions:
        last = old.condition(condition.type)
        assert last is not None
        flipped = condition.status != last.status
        assert (condition.last_transition_time != last.last_transition_time) == flipped


@given(situations)
def test_ready_has_a_cause(situation: dict[str, Any]) -> None:
    new = of(situation, None, NOW)
    ready = said(new, ConditionType.READY)[0]
    if ready == "True":
        assert new.ready_replicas >= min(situation["spec"]["replicas"], 1)
        assert said(new, ConditionType.AVAILABLE)[0] == "True"
        assert not situation["refused"]


def test_an_unreadable_object_is_not_ready_with_the_problems_sentence() -> None:
    old = computed(td(), pod())
    document = {"metadata": {"name": "chat", "generation": 9}, "spec": {}, "status": old.dump()}
    new = status.invalid(document, "spec.model: is required", NOW + 60)
    assert said(new, ConditionType.READY) == ("False", ReadyReason.INVALID_SPEC)
    assert "spec.model: is required." in explained(new, ConditionType.READY)
    assert kstatus(new) == "Failed"
    assert {new.observed_generation, new.conditions[0].observed_generation} == {9}
    again = status.invalid({**document, "status": new.dump()}, "spec.model: is required", NOW + 600)
    assert again.dump() == new.dump()


def test_an_unreadable_status_is_written_anew() -> None:
    document = {"metadata": {"name": "chat"}, "status": {"conditions": "none"}}
    new = status.invalid(document, "spec: is required", NOW)
    assert said(new, ConditionType.READY)[0] == "False"


def test_a_complete_inspection_without_facts_waits_for_the_user() -> None:
    job = ChildView("Job", render.job_name(td()), "j", None, complete=True)
    new = computed(td(), children=(job,), facts=None, error="Pod p ended without the model's facts: not JSON")
    assert said(new, ConditionType.MODEL_INSPECTED) == ("False", ModelInspectedReason.INSPECT_FAILED)
    assert said(new, ConditionType.STALLED)[0] == "True"
    lost = computed(td(), children=(job,), facts=None)
    assert said(lost, ConditionType.MODEL_INSPECTED)[0] == "Unknown"
