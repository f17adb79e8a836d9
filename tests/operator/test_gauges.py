"""Figures as gauges: what is not known is absent, and what is gone takes its figures with it."""

from __future__ import annotations

from decimal import Decimal

from prometheus_client import REGISTRY

from turbo_operator.api import CapacityType, Condition, ScalingReason, TrainingStatus
from turbo_operator.autoscaler import History, ScalingDecision
from turbo_operator.controller import deployment_metrics
from turbo_operator.controller.cache.store import Key
from turbo_operator.inventory.supply import ClusterInventory
from turbo_operator.snapshot import Accelerator, LoadSample, NodeSupply, PodView, Snapshot, TrainPod
from turbo_runtime.contract.documents import JobProgress, Load

KEY = Key("team", "chat")
NOW = 1_700_000_000.0
PRICES = {CapacityType.ON_DEMAND: Decimal("3.60")}
H100 = Accelerator("h100", "nvidia.com/gpu", Decimal(1), 80 << 30, prices=PRICES)
CORES = Accelerator("cpu", "cpu", Decimal(1), 4 << 30, prices=PRICES)
LOAD = Load(1, 0, 10, 0, 0.5, 1000, 0, 0, 0, 40, "bitwise", False)
SCALE = ScalingDecision(2, ScalingReason.PLANNED, "Two.", History())


def pod(name: str, rate: float | None = None, **more: object) -> PodView:
    load = None if rate is None else LoadSample(NOW, LOAD, rate)
    seen = {"phase": "Running", "ready": True, "ip": "10.0.0.1", "reason": None, "message": None}
    return PodView(name, "v1a", **(seen | {"accelerator": "h100", "load": load} | more))


def show(*pods: PodView) -> None:
    deployment_metrics.show(KEY, Snapshot({"h100": H100}, pods=pods), None, SCALE, NOW)


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, {"namespace": "team", "name": "chat"} | labels)


def test_present_cost_is_that_of_the_pods_that_hold_accelerators() -> None:
    show(pod("a", 100.0), pod("b", 100.0), pod("c", pending_since=NOW, ready=False))
    assert value("turbo_deployment_cost_per_hour", load="present") == 7.2
    assert value("turbo_deployment_tokens_per_second", load="present") == 200
    assert value("turbo_deployment_cost_per_million_tokens", load="present") == 10.0
    assert value("turbo_deployment_desired_replicas") == 2


def test_the_gain_is_shown_while_it_is_known() -> None:
    deployment_metrics.show(KEY, Snapshot({}, speedup=1.5), None, SCALE, NOW)
    assert value("turbo_deployment_speedup") == 1.5
    deployment_metrics.show(KEY, Snapshot({}), None, SCALE, NOW)
    assert value("turbo_deployment_speedup") is None


def condition(kind: str, status: str) -> Condition:
    return Condition(
        type=kind, status=status, reason="Because", message="So.", last_transition_time="2026-01-19T08:30:00Z"
    )


def test_conditions_are_one_or_zero_and_absent_while_unknown() -> None:
    def shown(kind: str) -> float | None:
        return value("turbo_deployment_condition", type=kind)

    deployment_metrics.show_conditions(KEY, [condition("Ready", "True"), condition("Stalled", "False")])
    assert (shown("Ready"), shown("Stalled"), shown("TargetsMet")) == (1, 0, None)
    deployment_metrics.show_conditions(KEY, [condition("Ready", "False"), condition("TargetsMet", "Unknown")])
    assert (shown("Ready"), shown("Stalled"), shown("TargetsMet")) == (0, None, None)
    deployment_metrics.forget(KEY)
    assert shown("Ready") is None


def test_what_is_not_known_is_absent_again() -> None:
    show(pod("a", 100.0))
    show(pod("a", 100.0), pod("b"))
    assert value("turbo_deployment_tokens_per_second", load="present") is None
    assert value("turbo_deployment_cost_per_million_tokens", load="present") is None
    show(pod("a", accelerator="unpriced"))
    assert value("turbo_deployment_cost_per_hour", load="present") is None
    assert value("turbo_deployment_cost_per_hour", load="planned") is None


def test_figures_go_with_their_object() -> None:
    show(pod("a", 100.0))
    deployment_metrics.forget(KEY)
    deployment_metrics.forget(KEY)
    assert value("turbo_deployment_cost_per_hour", load="present") is None
    assert value("turbo_deployment_desired_replicas") is None


def test_prices_of_nodes_bear_opencosts_name_and_cores_are_no_gpus() -> None:
    nodes = (NodeSupply("n", 8, 8),)
    catalog = {"h100": H100, "cpu": CORES}
    one = ClusterInventory(catalog, supply={"h100": nodes, "cpu": nodes})
    deployment_metrics.show_prices(ClusterInventory(), one)
    labels = {"node": "n", "accelerator": "h100"}
    assert REGISTRY.get_sample_value("node_gpu_hourly_cost", labels) == 3.6
    assert REGISTRY.get_sample_value("node_gpu_hourly_cost", {**labels, "accelerator": "cpu"}) is None
    held = deployment_metrics.NODE_GPU_HOURLY_COST.labels("n", "h100")
    two = ClusterInventory(catalog, supply={"h100": (*nodes, NodeSupply("m", 8, 8)), "cpu": ()})
    deployment_metrics.show_prices(one, two)
    assert (
        deployment_metrics.NODE_GPU_HOURLY_COST.labels("n", "h100") is held
    )  # at no moment was it taken away
    assert REGISTRY.get_sample_value("node_gpu_hourly_cost", {**labels, "node": "m"}) == 3.6
    deployment_metrics.show_prices(two, ClusterInventory(catalog, supply={"h100": (), "cpu": ()}))
    assert REGISTRY.get_sample_value("node_gpu_hourly_cost", labels) is None


def test_a_training_is_told_while_it_runs_and_counted_once_when_it_ends() -> None:
    def ended() -> float:
        return value("turbo_trainings_total", result="Trained") or 0.0

    begun = TrainingStatus(number=1, input_hash="a", spec_hash="b", cost="0.25")
    runs = TrainPod("t", "chat-train-1", "Running", progress=JobProgress("answers", 1, 4, "prompts"))
    deployment_metrics.show_training(KEY, begun, (runs,))
    assert value("turbo_training_progress", stage="answers") == 0.25
    assert value("turbo_training_spent_dollars") == 0.25
    before = ended()
    done = begun.model_copy(update={"result": "Trained"})
    deployment_metrics.show_training(KEY, done, ())
    for old, new in ((None, begun), (begun, done), (done, done), (done, None)):
        deployment_metrics.count_training(KEY, None if old is None else old.dump(), new)
    assert ended() == before + 1
    assert value("turbo_training_progress", stage="answers") is None
    deployment_metrics.forget(KEY)
    assert value("turbo_training_spent_dollars") is None
    assert value("turbo_trainings_total", result="Trained") is None
    deployment_metrics.count_training(KEY, begun.dump(), done)
    assert ended() == 1


def test_a_pod_that_trains_is_paid_for_while_it_runs() -> None:
    trains = TrainPod("t", "chat-train-1", "Running", accelerator="h100")
    both = Snapshot({"h100": H100}, pods=(pod("a", 100.0),), trainings=(trains,))
    deployment_metrics.show(KEY, both, None, SCALE, NOW)
    assert value("turbo_deployment_cost_per_hour", load="present") == 7.2
    ended = TrainPod("t", "chat-train-1", "Failed", exit_code=1, accelerator="h100")
    deployment_metrics.show(
        KEY, Snapshot({"h100": H100}, pods=both.pods, trainings=(ended,)), None, SCALE, NOW
    )
    assert value("turbo_deployment_cost_per_hour", load="present") == 3.6
