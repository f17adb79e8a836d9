"""What blocks the spec is told by Ready and Stalled, of this generation alone; Available says what serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from turbo_dev.plan_cases import plan as plan_of
from turbo_dev.status_coherence import contradictions
from turbo_operator import autoscaler, render
from turbo_operator.api import CapacityType, TurboDeployment, parse
from turbo_operator.autoscaler import History
from turbo_operator.catalog import shapes
from turbo_operator.controller.decision import decide
from turbo_operator.controller.snapshot_builder import read_model
from turbo_operator.render import plan_hash
from turbo_operator.settings import Settings
from turbo_operator.snapshot import Accelerator, ChildView, JobPod, PodView, Snapshot
from turbo_operator.status import compute
from turbo_runtime.contract.documents import AdapterInfo, ModelInfo

NOW = 1_700_000_000.0
SHAPE = shapes.shipped("HuggingFaceTB/SmolLM2-135M")
assert SHAPE is not None
FACTS = ModelInfo(SHAPE, "sha256:ab", None, 270_000_000)
CPU = Accelerator("cpu", "cpu", Decimal(2), 6 << 30, prices={CapacityType.ON_DEMAND: Decimal("0.04")})
SETTINGS = Settings(runtime_image="runtime:1")
OLD = "v1old00000"
Status = Mapping[str, Any]


def td(spec: Mapping[str, Any], status: Status | None = None) -> TurboDeployment:
    return parse(document(spec, status or {}))


def document(spec: Mapping[str, Any], status: Status) -> dict[str, Any]:
    return {
        "apiVersion": "serving.turbo.dev/v1alpha1",
        "kind": "TurboDeployment",
        "metadata": {"name": "chat", "namespace": "team", "uid": "u", "generation": 2},
        "spec": {"model": {"uri": "pvc://models/chat"}, **spec},
        "status": dict(status),
    }


def wanted(spec: Mapping[str, Any]) -> str:
    it = td(spec)
    choice = plan_of(it.spec, FACTS.shape, {"cpu": CPU}, None).served
    assert choice is not None
    return plan_hash(it, choice, FACTS)


def pod(name: str, variant: str, ready: bool = True, **more: Any) -> PodView:
    return PodView(
        name,
        variant,
        "Running",
        ready,
        "10.0.0.1",
        None,
        None,
        accelerator="cpu",
        scheduled_since=NOW,
        **more,
    )


def variant(name: str, replicas: int, available: int) -> tuple[ChildView, ...]:
    own: dict[str, Any] = {"plan_hash": name, "accelerator": "cpu"}
    counts: dict[str, Any] = {"replicas": replicas, "available_replicas": available}
    return (
        ChildView("Deployment", f"chat-{name}", f"d-{name}", None, **own, **counts),
        ChildView("ControllerRevision", f"chat-{name}", f"r-{name}", None, **own, data={"spec": {}}),
    )


def look(
    spec: Mapping[str, Any], status: Status, observed: Snapshot, now: float = NOW
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the next status, which contradicts itself nowhere, and its conditions by type."""
    it = td(spec, status)
    plan = plan_of(it.spec, FACTS.shape, {"cpu": CPU}, None) if observed.model else None
    decision = decide(it, observed, SETTINGS, now, plan, History())
    new = compute(it, observed, decision, now).dump()
    assert contradictions(document(spec, new)) == []
    return new, {each["type"]: each for each in new["conditions"]}


def seen(*pods: PodView, children: tuple[ChildView, ...] = (), **more: Any) -> Snapshot:
    return Snapshot({"cpu": CPU}, None, children, pods, **{"model": FACTS, **more})


def told(conditions: Mapping[str, dict[str, Any]], kind: str) -> tuple[str, str]:
    return conditions[kind]["status"], conditions[kind]["reason"]


def inspecting(spec: Mapping[str, Any], **fields: Any) -> Snapshot:
    own = JobPod("i", render.job_name(td(spec)), "Pending", **fields)
    job = inspect_job(spec)
    _, error = read_model(td(spec), [job], [own])
    return seen(model=None, model_error=error, inspecting=(own,), children=(job,))


def inspect_job(spec: Mapping[str, Any], **fields: Any) -> ChildView:
    manifest = render.inspect_job(td(spec), SETTINGS)
    applied = manifest["metadata"]["annotations"]["serving.turbo.dev/applied-hash"]
    return ChildView("Job", manifest["metadata"]["name"], "j", applied, **fields)


PULLS = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "nope"', "scheduled_since": NOW}


def test_an_inspection_whose_image_cannot_be_pulled_stalls_at_the_deadline_and_names_the_field() -> None:
    engine = {"type": "Turbo", "image": "registry.invalid/nope"}
    spec = {"engine": engine, "rollout": {"progressDeadline": "20s"}}
    status, before = look(spec, {}, inspecting(spec, **PULLS), NOW + 19)
    assert told(before, "Stalled")[0] == "False"
    assert "spec.engine.image" in before["Ready"]["message"]
    status, after = look(spec, status, inspecting(spec, **PULLS), NOW + 21)
    assert told(after, "Stalled") == ("True", "ProgressDeadlineExceeded")
    assert told(after, "Ready") == ("False", "InspectRetrying")
    for kind in ("Stalled", "Ready"):
        assert 'Back-off pulling image "nope"' in after[kind]["message"]
        assert "Correct spec.engine.image" in after[kind]["message"]
    runs = inspecting(spec, scheduled_since=NOW + 40)
    _, again = look(spec, status, runs, NOW + 41)  # the image appeared, and the pod is another one
    assert told(again, "Stalled")[0] == "False"


def test_an_inspection_that_no_node_takes_does_not_stall() -> None:
    spec = {"rollout": {"progressDeadline": "20s"}}
    waits = inspecting(spec, reason="Unschedulable", message="no node", pending_since=NOW)
    assert told(look(spec, {}, waits, NOW + 500)[1], "Stalled")[0] == "False"


def test_a_claim_that_is_not_there_is_told_with_the_remedy() -> None:
    spec = {"model": {"uri": "pvc://modles/smollm2.gguf"}}
    said = '0/1 nodes are available: persistentvolumeclaim "modles" not found. preemption: 0/1 nodes.'
    waits = inspecting(spec, reason="Unschedulable", message=said, pending_since=NOW)
    _, conditions = look(spec, {}, waits)
    for kind in ("ModelInspected", "Ready"):
        assert "Correct the name of the claim" in conditions[kind]["message"]
    full = inspecting(spec, reason="Unschedulable", message="0/1 nodes: Insufficient cpu.", pending_since=NOW)
    assert "claim" not in look(spec, {}, full)[1]["Ready"]["message"]


def test_what_is_wrong_with_the_model_is_told_where_it_belongs_and_by_ready_and_stalled() -> None:
    said = "Cannot inspect /model: there is no file smollm2.gguf"
    job = inspect_job({}, failed=True)
    _, conditions = look({}, {}, seen(model=None, model_error=said, children=(job,)))
    tell = {kind for kind, each in conditions.items() if said in each["message"]}
    assert tell == {"ModelInspected", "Ready", "Stalled"}


def test_of_adapters_those_that_fit_are_named_and_the_one_that_does_not_asks_to_be_corrected() -> None:
    spec = {"engine": {"type": "VLLM"}, "adapters": [{"name": "sql", "uri": "pvc://tuned/sql"}]}
    fit = replace(FACTS, adapters=(AdapterInfo("sql", 16),))
    _, conditions = look(spec, {}, seen(model=fit))
    assert conditions["ModelInspected"]["message"].endswith("Adapters that fit it: sql (rank 16).")
    said = "Cannot inspect /models/chat: adapter sql (/adapters/tuned/sql): there is no such folder"
    job = inspect_job(spec, failed=True)
    _, conditions = look(spec, {}, seen(model=None, model_error=said, children=(job,)))
    assert f"{said}. Correct spec.model or spec.adapters" in conditions["ModelInspected"]["message"]


def test_a_failed_inspection_of_another_model_or_image_is_not_told_of_this_generation() -> None:
    spec: dict[str, Any] = {"model": {"uri": "pvc://models/other"}}
    before: dict[str, Any] = {}
    failed = inspect_job(before, failed=True, message="Container inspect failed with exit code 3")
    _, conditions = look(spec, {}, seen(model=None, children=(failed,)))
    assert told(conditions, "Stalled")[0] == "False"
    assert told(conditions, "ModelInspected") == ("Unknown", "Inspecting")
    assert "exit code" not in conditions["ModelInspected"]["message"]
    image = {"engine": {"type": "Turbo", "image": "good:1"}, "rollout": {"progressDeadline": "20s"}}
    stale = replace(inspecting(image, **PULLS), children=(inspect_job(before),))
    _, conditions = look(image, {}, stale, NOW + 100)
    assert told(conditions, "Stalled")[0] == "False"
    assert "Back-off" not in conditions["Ready"]["message"]


def test_a_job_whose_failed_pod_is_gone_is_told_without_the_words_of_kubernetes() -> None:
    raw = "Container inspect for pod team/i failed with exit code 3 matching FailJob rule at index 0"
    job = inspect_job({}, failed=True, reason="PodFailurePolicy", message=raw)
    _, error = read_model(td({}), [job], [])
    assert error is not None
    assert "FailJob" not in error
    _, conditions = look({}, {}, seen(model=None, model_error=error, children=(job,)))
    assert told(conditions, "Stalled") == ("True", "UserActionRequired")
    assert "FailJob" not in conditions["Stalled"]["message"]
    assert f"delete the Job {job.name}" in conditions["Stalled"]["message"]


def test_ready_is_false_until_a_rollout_is_over() -> None:
    spec = {"replicas": 2}
    new = wanted(spec)
    status = {"servingPlan": {"hash": OLD, "replicas": 2}, "desiredReplicas": 2}
    children = (*variant(OLD, 1, 1), *variant(new, 2, 1))
    half = seen(pod("old", OLD), pod("a", new), pod("b", new, ready=False), children=children)
    status, conditions = look(spec, status, half)
    assert told(conditions, "Ready") == ("False", "ModelLoading")
    assert told(conditions, "Available")[0] == "True"
    unproven = seen(pod("a", new), pod("b", new), children=(*variant(OLD, 0, 0), *variant(new, 2, 1)))
    status, conditions = look(spec, status, unproven)
    assert told(conditions, "Ready") == ("False", "Progressing")
    assert "serves on" not in conditions["Ready"]["message"]  # no pod of the plan before does
    over = seen(pod("a", new), pod("b", new), children=(*variant(OLD, 0, 0), *variant(new, 2, 2)))
    assert told(look(spec, status, over)[1], "Ready") == ("True", "Serving")


def rolled_back(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the status after the plan of `spec` was rolled back."""
    children = (*variant(OLD, 1, 1), *variant(wanted(spec), 1, 0))
    status: dict[str, Any] = {"servingPlan": {"hash": OLD, "replicas": 1}, "desiredReplicas": 1}
    for now in (NOW, NOW + 700):
        stuck = seen(pod("old", OLD), pod("a", wanted(spec), ready=False), children=children)
        status, conditions = look(spec, status, stuck, now)
    assert told(conditions, "Ready") == ("False", "RolledBack")
    return status


def test_a_rollback_of_pods_that_load_too_long_names_the_pod_and_the_deadline() -> None:
    message = rolled_back({})["rollout"]["message"]
    assert "Pod a" in message
    assert "raise spec.rollout.progressDeadline" in message


def test_a_rolled_back_object_without_replicas_is_scaled_to_zero_and_tries_nothing_anew() -> None:
    status = rolled_back({})
    none = seen(children=(*variant(OLD, 0, 0), *variant(wanted({}), 0, 0)))
    status, conditions = look({"replicas": 0}, status, none)
    assert told(conditions, "Ready") == ("True", "ScaledToZero")
    assert told(conditions, "Stalled")[0] == "False"
    status, conditions = look({"replicas": 1}, status, none)
    assert told(conditions, "Ready") == ("False", "RolledBack")
    assert "serves on" not in conditions["Ready"]["message"]  # no pod of it answers yet
    status, conditions = look({"replicas": 1}, status, seen(pod("old", OLD), children=variant(OLD, 1, 1)))
    assert f"Plan {OLD} serves on" in conditions["Ready"]["message"]


def test_a_change_of_the_spec_without_replicas_forgets_a_rollback() -> None:
    status = rolled_back({"scaling": {"mode": "Planned"}})
    none = seen(children=variant(OLD, 0, 0))
    status, conditions = look({"replicas": 0}, status, none)
    assert "rollout" not in status
    assert told(conditions, "Stalled")[0] == "False"


@pytest.mark.parametrize("known", [True, False])
def test_what_serves_without_a_plan_of_the_spec_is_available_and_not_ready(known: bool) -> None:
    spec: dict[str, Any] = {"cost": {"maxPerHour": "0.01"}} if known else {}
    status = {"servingPlan": {"hash": OLD, "replicas": 1}, "desiredReplicas": 1}
    job = () if known else (inspect_job({}, failed=True),)
    observed = seen(pod("old", OLD), children=(*variant(OLD, 1, 1), *job))
    if not known:
        observed = replace(observed, model=None, model_error="no such file")
    _, conditions = look(spec, status, observed)
    assert told(conditions, "Ready") == ("False", "BudgetExceeded" if known else "InspectFailed")
    assert "serves on" in conditions["Ready"]["message"]
    assert told(conditions, "Available")[0] == told(conditions, "Stalled")[0] == "True"


def test_a_suspended_object_says_what_starts_it_and_shows_no_speedup_of_before() -> None:
    status = {"observed": {"speedup": "0.90"}}
    new, conditions = look({"suspend": True}, status, seen(speedup=0.9))
    assert "spec.suspend" in conditions["Stalled"]["message"]
    assert "speedup" not in new.get("observed", {})
    assert told(conditions, "SpeculationEffective") == ("Unknown", "InsufficientSamples")


def test_a_deadline_with_a_fraction_may_be_just_above_min_ready_seconds() -> None:
    written = td({"rollout": {"progressDeadline": "10.5s", "minReadySeconds": 10}})
    assert written.spec.rollout.progress_deadline.seconds == 10.5


def test_min_replicas_is_named_where_it_asks_for_the_replicas() -> None:
    spec = td({"scaling": {"mode": "Planned", "minReplicas": 2}}).spec
    decision = autoscaler.scale(spec, plan_of(spec, FACTS.shape, {"cpu": CPU}, None))
    assert decision.replicas == 2
    assert decision.detail.startswith("spec.scaling.minReplicas asks for 2 replicas")


def test_what_served_and_is_silent_is_named_before_what_holds_up_its_successor() -> None:
    """Found on the real node: the frozen pod was named nowhere, only the next one's image."""
    new = wanted({})
    status = {"servingPlan": {"hash": OLD, "replicas": 1}, "desiredReplicas": 1}
    stuck = replace(pod("next", new, ready=False), reason="ImagePullBackOff", message="no such image")
    observed = seen(pod("old", OLD, ready=False), stuck, children=(*variant(OLD, 1, 0), *variant(new, 1, 0)))
    status, conditions = look({}, status, observed)
    assert f"Pod old of plan {OLD}, which serves, does not answer." in conditions["Available"]["message"]
    deadline = f"Plan {new} has 10m from its last progress to make some."
    assert (told(conditions, "Stalled")[0], conditions["Stalled"]["message"]) == ("False", deadline)


@pytest.mark.parametrize(
    ("finalizer", "why"),
    [
        ("example.com/hold", "and finalizer example.com/hold keeps it: remove that."),
        ("foregroundDeletion", "and is made again when its pods have ended."),
    ],
)
def test_a_deployment_that_was_deleted_and_is_still_there_is_named(finalizer: str, why: str) -> None:
    """Found in review: its pods were said to start or load for ever."""
    new = wanted({})
    going = [replace(each, terminating=each.kind == "Deployment") for each in variant(new, 1, 0)]
    going = [replace(each, finalizers=(finalizer,) if each.terminating else ()) for each in going]
    status: dict[str, Any] = {}
    for hours in range(3):
        status, conditions = look({}, status, seen(children=tuple(going)), NOW + 3600 * hours)
        assert f"Deployment chat-{new} was deleted, {why}" in conditions["Ready"]["message"]


def test_a_finalizer_that_keeps_what_served_is_named_where_its_successor_has_no_pod_yet() -> None:
    """Found on the real node: nothing started or loaded, and all conditions said so."""
    new = wanted({})
    old = [replace(each, terminating=each.kind == "Deployment") for each in variant(OLD, 0, 0)]
    old = [replace(each, finalizers=("example.com/hold",) if each.terminating else ()) for each in old]
    status = {"servingPlan": {"hash": OLD, "replicas": 1}, "desiredReplicas": 1}
    _, conditions = look({}, status, seen(children=(*old, *variant(new, 0, 0))))
    for kind in ("Ready", "Available"):
        assert "finalizer example.com/hold keeps it: remove that." in conditions[kind]["message"]
