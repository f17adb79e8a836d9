"""Figures of each TurboDeployment as gauges, and the prices of nodes under OpenCost's name.

A figure that is not known is absent, never zero; those of a TurboDeployment go with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from prometheus_client import Counter, Gauge

from turbo_operator.api import CapacityType, Provenance, TrainingReason, TrainingStatus
from turbo_operator.autoscaler import ScalingDecision
from turbo_operator.controller.cache.store import Key
from turbo_operator.inventory.supply import CPU, ClusterInventory
from turbo_operator.plan import Plan, Predicted
from turbo_operator.snapshot import Snapshot, TrainPod
from turbo_operator.status import fields

_OBJECT = ["namespace", "name"]
PLANNED, PRESENT = "planned", "present"
UNKNOWN = Predicted(None, None, None, None, None, None, Provenance.ASSUMED)

COST_PER_HOUR = Gauge(
    "turbo_deployment_cost_per_hour",
    "US dollars per hour of a TurboDeployment, by load: planned, or present for the pods that run.",
    [*_OBJECT, "load"],
)
COST_PER_MILLION_TOKENS = Gauge(
    "turbo_deployment_cost_per_million_tokens",
    "US dollars of a million output tokens of a TurboDeployment, by load: planned or present.",
    [*_OBJECT, "load"],
)
TOKENS_PER_SECOND = Gauge(
    "turbo_deployment_tokens_per_second",
    "Output tokens per second of a TurboDeployment, by load: planned or present.",
    [*_OBJECT, "load"],
)
GAIN = Gauge(
    "turbo_deployment_speedup",
    "Speed of answers over that without drafts, of all pods in the last ten minutes.",
    _OBJECT,
)
DESIRED_REPLICAS = Gauge("turbo_deployment_desired_replicas", "Replicas that are wanted now.", _OBJECT)
TIME_TO_FIRST_TOKEN = Gauge(
    "turbo_deployment_predicted_time_to_first_token_seconds",
    "Time to first token that the plan expects, at the target's percentile.",
    _OBJECT,
)
TIME_PER_OUTPUT_TOKEN = Gauge(
    "turbo_deployment_predicted_time_per_output_token_seconds",
    "Time per output token that the plan expects, at the target's percentile.",
    _OBJECT,
)
TRAINING_PROGRESS = Gauge(
    "turbo_training_progress",
    "Share of the stage, by name, that the training of a draft is at.",
    [*_OBJECT, "stage"],
)
TRAINING_SPENT = Gauge(
    "turbo_training_spent_dollars",
    "US dollars that the training that runs, or the last one, has cost, counted now and then.",
    _OBJECT,
)
TRAININGS = Counter(
    "turbo_trainings",
    "Trainings that ended, by result: Trained, BudgetExceeded, TrainingFailed.",
    [*_OBJECT, "result"],
)
NODE_GPU_HOURLY_COST = Gauge(
    "node_gpu_hourly_cost",
    "US dollars per hour of one accelerator of this node, on demand, as its TurboAccelerator says.",
    ["node", "accelerator"],
)

_BY_LOAD = (COST_PER_HOUR, COST_PER_MILLION_TOKENS, TOKENS_PER_SECOND)
_BY_OBJECT = (GAIN, DESIRED_REPLICAS, TIME_TO_FIRST_TOKEN, TIME_PER_OUTPUT_TOKEN, TRAINING_SPENT)
ENDS = (TrainingReason.TRAINED, TrainingReason.BUDGET_EXCEEDED, TrainingReason.TRAINING_FAILED)
_stages: dict[Key, set[str]] = {}  # that a gauge is set for


def show(key: Key, observed: Snapshot, plan: Plan | None, scale: ScalingDecision, now: float) -> None:
    """Set what is known of one TurboDeployment, and remove what is not."""
    expected = plan.choice.predicted if plan is not None and plan.choice is not None else UNKNOWN
    paid, rate = fields.cost_per_hour(observed), fields.tokens_per_second(observed, now)
    labels = (key.namespace, key.name)
    planned = (expected.cost_per_hour, expected.cost_per_million_tokens, expected.tokens_per_second)
    present = (paid, fields.cost_per_million_tokens(paid, rate), rate)
    for load, figures in ((PLANNED, planned), (PRESENT, present)):
        for gauge, value in zip(_BY_LOAD, figures, strict=True):
            _set(gauge, (*labels, load), value)
    _set(GAIN, labels, observed.gain)
    _set(DESIRED_REPLICAS, labels, float(scale.replicas))
    _set(TIME_TO_FIRST_TOKEN, labels, expected.time_to_first_token)
    _set(TIME_PER_OUTPUT_TOKEN, labels, expected.time_per_output_token)


def show_training(key: Key, new: TrainingStatus | None, pods: Sequence[TrainPod]) -> None:
    """Set how far a training is and what it has cost."""
    labels = (key.namespace, key.name)
    progress = next((pod.progress for pod in pods if pod.runs and pod.progress), None)
    stage = "" if progress is None else progress.stage[:40]
    for before in _stages.pop(key, set()) - {stage}:
        _remove(TRAINING_PROGRESS, (*labels, before))
    if progress is not None:
        _stages[key] = {stage}
        share = progress.done / progress.total if progress.total > 0 else 0.0
        _set(TRAINING_PROGRESS, (*labels, stage), share)
    _set(TRAINING_SPENT, labels, float(new.cost) if new is not None and new.cost else None)


def count_training(key: Key, old: Mapping[str, Any] | None, new: TrainingStatus | None) -> None:
    """Count one that has ended since `old`, which the status held before `new` was written there."""
    last = None if old is None else (old.get("number"), old.get("result"))
    if new is not None and new.input_hash and new.result and last != (new.number, new.result):
        TRAININGS.labels(key.namespace, key.name, new.result).inc()


def forget(key: Key) -> None:
    """Remove all of a TurboDeployment that is gone, or cannot be read."""
    labels = (key.namespace, key.name)
    for stage in _stages.pop(key, set()):
        _remove(TRAINING_PROGRESS, (*labels, stage))
    for gauge in _BY_LOAD:
        for load in (PLANNED, PRESENT):
            _remove(gauge, (*labels, load))
    for gauge in _BY_OBJECT:
        _remove(gauge, labels)
    for result in ENDS:
        _remove(TRAININGS, (*labels, result))


def show_prices(before: ClusterInventory, after: ClusterInventory) -> None:
    """Set the price of one accelerator on each node that has it; cores are no GPU.

    Only what differs is touched: Prometheus may ask at any moment, from another thread.
    """
    old, new = _prices(before), _prices(after)
    for labels in old.keys() | new.keys():
        if old.get(labels) != new.get(labels):
            _set(NODE_GPU_HOURLY_COST, labels, new.get(labels))


def _prices(stock: ClusterInventory) -> dict[tuple[str, str], Decimal]:
    """Return prices by node and accelerator."""
    return {
        (node.name, name): price
        for name, row in stock.accelerators.items()
        if row.resource_name != CPU and (price := row.prices.get(CapacityType.ON_DEMAND)) is not None
        for node in stock.supply[name]
    }


def _set(gauge: Gauge, labels: tuple[str, ...], value: Decimal | float | None) -> None:
    if value is not None:
        gauge.labels(*labels).set(float(value))
    else:
        _remove(gauge, labels)


def _remove(metric: Gauge | Counter, labels: tuple[str, ...]) -> None:
    with contextlib.suppress(KeyError):  # was not there
        metric.remove(*labels)
