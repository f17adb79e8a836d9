"""Figures of each TurboDeployment as gauges, and the prices of nodes under OpenCost's name.

A figure that is not known is absent, never zero; those of a TurboDeployment go with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from decimal import Decimal
from typing import Any

from prometheus_client import Counter, Gauge

from turbo_operator.api import (
    CapacityType,
    Condition,
    ConditionType,
    Duration,
    Provenance,
    StartupTimes,
    TrainingStatus,
)
from turbo_operator.autoscaler import ScalingDecision
from turbo_operator.controller.cache.store import Key
from turbo_operator.inventory.supply import CPU, ClusterInventory
from turbo_operator.plan import Plan, Predicted
from turbo_operator.snapshot import Snapshot, TrainPod
from turbo_operator.status import fields

_VALUES = {"True": 1, "False": 0}
UNKNOWN = Predicted(None, None, None, None, None, None, Provenance.ASSUMED)


_gauges: list[Gauge] = []  # of one TurboDeployment


def _gauge(name: str, documentation: str, *labels: str) -> Gauge:
    _gauges.append(Gauge(name, documentation, ["namespace", "name", *labels]))
    return _gauges[-1]


COST_PER_HOUR = _gauge(
    "turbo_deployment_cost_per_hour",
    "US dollars per hour of a TurboDeployment, by load: planned, or present for the pods that run.",
    "load",
)
COST_PER_MILLION_TOKENS = _gauge(
    "turbo_deployment_cost_per_million_tokens",
    "US dollars of a million output tokens of a TurboDeployment, by load: planned or present.",
    "load",
)
TOKENS_PER_SECOND = _gauge(
    "turbo_deployment_tokens_per_second",
    "Output tokens per second of a TurboDeployment, by load: planned or present.",
    "load",
)
SPEEDUP = _gauge(
    "turbo_deployment_speedup",
    "Speed of outputs over that without drafts, of all pods in the last ten minutes.",
)
DESIRED_REPLICAS = _gauge("turbo_deployment_desired_replicas", "Replicas that are wanted now.")
TIME_TO_FIRST_TOKEN = _gauge(
    "turbo_deployment_predicted_time_to_first_token_seconds",
    "Time to first token that the plan expects, at the target's percentile.",
)
TIME_PER_OUTPUT_TOKEN = _gauge(
    "turbo_deployment_predicted_time_per_output_token_seconds",
    "Time per output token that the plan expects, at the target's percentile.",
)
CONDITION = _gauge(
    "turbo_deployment_condition",
    "1 while a condition of a TurboDeployment, by type, is True, 0 while it is False; absent while Unknown.",
    "type",
)
STARTUP_SECONDS = _gauge(
    "turbo_deployment_startup_seconds",
    "Time that the latest pod took to start, by stage: scheduling, pulling, loading, checking, and from its "
    "creation ready and first_token.",
    "stage",
)
TRAINING_PROGRESS = _gauge(
    "turbo_training_progress", "Share of the stage, by name, that the training of a draft is at.", "stage"
)
TRAINING_SPENT = _gauge(
    "turbo_training_spent_dollars",
    "US dollars that the training that runs, or the last one, has cost, counted now and then.",
)
TRAININGS = Counter(
    "turbo_trainings",
    "Trainings that ended, by result: Trained, BudgetExceeded, TrainingFailed.",
    ["namespace", "name", "result"],
)
NODE_GPU_HOURLY_COST = Gauge(
    "node_gpu_hourly_cost",
    "US dollars per hour of one accelerator of this node, on demand, as its TurboAccelerator says.",
    ["node", "accelerator"],
)


def show(key: Key, observed: Snapshot, plan: Plan | None, scale: ScalingDecision, now: float) -> None:
    """Set what is known of one TurboDeployment, and remove what is not."""
    expected = plan.choice.predicted if plan is not None and plan.choice is not None else UNKNOWN
    paid, rate = fields.cost_per_hour(observed), fields.tokens_per_second(observed, now)
    per_million = fields.cost_per_million_tokens(paid, rate)
    for gauge, planned, present in (
        (COST_PER_HOUR, expected.cost_per_hour, paid),
        (COST_PER_MILLION_TOKENS, expected.cost_per_million_tokens, per_million),
        (TOKENS_PER_SECOND, expected.tokens_per_second, rate),
    ):
        _set(gauge, planned, **asdict(key), load="planned")
        _set(gauge, present, **asdict(key), load="present")
    for gauge, value in (
        (SPEEDUP, observed.speedup),
        (DESIRED_REPLICAS, scale.replicas),
        (TIME_TO_FIRST_TOKEN, expected.time_to_first_token),
        (TIME_PER_OUTPUT_TOKEN, expected.time_per_output_token),
    ):
        _set(gauge, value, **asdict(key))


def show_startup(key: Key, startup: StartupTimes | None) -> None:
    """Set how long the latest pod took to start."""
    stages = startup.model_dump(exclude={"pod"}) if startup is not None else {}
    for stage, text in stages.items():
        _set(STARTUP_SECONDS, Duration(text).seconds if text else None, **asdict(key), stage=stage)


def show_conditions(key: Key, conditions: Iterable[Condition]) -> None:
    """Set which conditions are True and which are False."""
    values = {each.type: _VALUES.get(each.status) for each in conditions}
    for kind in ConditionType:
        if (value := values.get(kind)) is not None:
            CONDITION.labels(key.namespace, key.name, kind).set(value)
        else:  # by all labels: to look for a part of them would look at every series
            CONDITION.remove(key.namespace, key.name, kind)


def show_training(key: Key, new: TrainingStatus | None, pods: Sequence[TrainPod]) -> None:
    """Set how far a training is and what it has cost."""
    progress = next((pod.progress for pod in pods if pod.runs and pod.progress), None)
    TRAINING_PROGRESS.remove_by_labels(asdict(key))
    if progress is not None:
        share = progress.done / progress.total if progress.total > 0 else 0.0
        _set(TRAINING_PROGRESS, share, **asdict(key), stage=progress.stage[:40])
    _set(TRAINING_SPENT, float(new.cost) if new is not None and new.cost else None, **asdict(key))


def count_training(key: Key, old: Mapping[str, Any] | None, new: TrainingStatus | None) -> None:
    """Count one that has ended since `old`, which the status held before `new` was written there."""
    last = None if old is None else (old.get("number"), old.get("result"))
    if new is not None and new.input_hash and new.result and last != (new.number, new.result):
        TRAININGS.labels(**asdict(key), result=new.result).inc()


def forget(key: Key) -> None:
    """Remove all of a TurboDeployment that is gone, or cannot be read."""
    for metric in (*_gauges, TRAININGS):
        metric.remove_by_labels(asdict(key))


def show_prices(before: ClusterInventory, after: ClusterInventory) -> None:
    """Set the price of one accelerator on each node that has it; cores are no GPU.

    Only what differs is touched: Prometheus may ask at any moment, from another thread.
    """
    old, new = _prices(before), _prices(after)
    for node, name in {place for place, _ in old.items() ^ new.items()}:
        _set(NODE_GPU_HOURLY_COST, new.get((node, name)), node=node, accelerator=name)


def _prices(stock: ClusterInventory) -> dict[tuple[str, str], Decimal]:
    """Return prices by node and accelerator."""
    return {
        (node.name, name): price
        for name, row in stock.accelerators.items()
        if row.resource_name != CPU and (price := row.prices.get(CapacityType.ON_DEMAND)) is not None
        for node in stock.supply[name]
    }


def _set(gauge: Gauge, value: Decimal | float | None, **labels: str) -> None:
    if value is not None:
        gauge.labels(**labels).set(float(value))
    else:
        gauge.remove_by_labels(labels)
