"""What pods tell of their speed is kept in the status, where the planner reads it."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from turbo_operator.api import (
    Calibrated,
    CapacityType,
    EngineName,
    PlanStatus,
    Provenance,
    TurboDeployment,
    TurboDeploymentStatus,
    parse,
)
from turbo_operator.calibrating import heard
from turbo_operator.observed import Accelerator, ChildView, LoadSample, Observed, PodView
from turbo_operator.planned import Running
from turbo_operator.planner.replica import replica
from turbo_operator.planner.steptime import decode_seconds, prefill_seconds
from turbo_operator.planning import plan_of
from turbo_runtime.contract import Load, ModelFacts, ModelShape, StepTime

NOW = 1_700_000_000.0
SHAPE = ModelShape("LlamaForCausalLM", 134515008, 30, 576, 9, 3, 64, 49152, 8192, "bfloat16")
FACTS = ModelFacts(SHAPE, "sha256:ab", None, 270_000_000)
CARD = Accelerator(
    "card",
    "nvidia.com/gpu",
    Decimal(1),
    24 << 30,
    memory_bandwidth=300e9,
    flops={"bf16": 120e12},
    prices={CapacityType.ON_DEMAND: Decimal("0.80")},
)
RUNNING = Running(EngineName.TURBO, "card", CapacityType.ON_DEMAND, 1, 1, "Off", None)
PLAN = PlanStatus(hash="v1a", engine="Turbo", accelerator="card", method="Off")
DEPLOYMENT = ChildView("Deployment", "chat-v1a", "u", None, plan_hash="v1a", replicas=1)


def td(calibration: Calibrated | None = None, plan: PlanStatus = PLAN) -> TurboDeployment:
    return parse(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboDeployment",
            "metadata": {"name": "chat", "namespace": "team", "uid": "u", "generation": 3},
            "spec": {
                "model": {"uri": "pvc://models/chat"},
                "speculation": {"mode": "Disabled"},
                "workload": {"requestsPerSecond": "1"},
            },
            "status": TurboDeploymentStatus(plan=plan, calibration=calibration).dump(),
        }
    )


def points(decode: float, prefill: float) -> tuple[StepTime, ...]:
    """What a machine that takes so many times the model's time would measure."""
    one = replica(td().spec, SHAPE, CARD, RUNNING)
    assert one is not None
    return (
        StepTime(1, 1, 64, decode * float(decode_seconds(*one, 1.0, 0.0, 64.0))),
        StepTime(8, 1, 64, decode * float(decode_seconds(*one, 8.0, 0.0, 64.0))),
        StepTime(1, 512, 0, prefill * float(prefill_seconds(*one, 512.0))),
    )


def seen(*measured: tuple[float, float], row: Accelerator = CARD) -> Observed:
    pods = []
    for number, factors in enumerate(measured):
        load = Load(0, 0, 0, 0, 0.0, 1000, 0, 0, 0, 0, "bytes", False, step_times=points(*factors))
        pods.append(
            PodView(f"p{number}", "v1a", "Running", True, "10.0.0.1", None, None, load=LoadSample(NOW, load))
        )
    return Observed({row.name: row}, children=(DEPLOYMENT,), pods=tuple(pods), model=FACTS)


def test_the_factors_of_the_running_pods_are_told() -> None:
    told, _ = heard(td(), seen((1.5, 2.0), (1.5, 2.0)), None)
    assert told == Calibrated(
        engine="Turbo", accelerator="card", decode="1.500", prefill="2.000", online="1.000"
    )


def test_the_plan_rests_on_what_the_status_keeps_even_before_any_pod_has_spoken() -> None:
    told, _ = heard(td(), seen((1.5, 2.0)), None)
    before = plan_of(td(), SHAPE, seen(), NOW).choice
    after = plan_of(td(told), SHAPE, seen(), NOW).choice
    assert before is not None
    assert after is not None
    assert before.predicted.provenance != Provenance.CALIBRATED
    assert before.predicted.time_per_output_token is not None
    assert after.predicted.time_per_output_token is not None
    ratio = after.predicted.time_per_output_token / before.predicted.time_per_output_token
    assert ratio == pytest.approx(1.5, rel=0.1)
    assert heard(td(told), seen(), None)[0] == told


def test_hardly_another_measurement_changes_nothing_and_another_one_does() -> None:
    told, online = heard(td(), seen((1.5, 2.0)), None)
    assert heard(td(told), seen((1.52, 1.97)), online)[0] == told
    moved, _ = heard(td(told), seen((1.8, 2.0)), online)
    assert moved is not None
    assert moved.decode == "1.800"


@pytest.mark.parametrize(
    "more",
    [
        {"plan": PlanStatus(hash="v1a", engine="Turbo", accelerator="other")},
        {"plan": PlanStatus(hash="v1gone", engine="Turbo", accelerator="card")},
    ],
    ids=["another accelerator", "no deployment of it"],
)
def test_what_does_not_run_is_not_told_of(more: dict[str, Any]) -> None:
    told, _ = heard(td(), seen((1.5, 2.0)), None)
    assert heard(td(told, **more), seen((1.5, 2.0)), None)[0] is None
    plan = plan_of(td(told, **more), SHAPE, seen(), NOW).choice
    assert plan is not None
    assert plan.predicted.provenance != Provenance.CALIBRATED


def test_an_accelerator_without_rates_is_not_measured_against() -> None:
    unknown = Accelerator("card", "nvidia.com/gpu", Decimal(1), 24 << 30)
    assert heard(td(), seen((1.5, 2.0), row=unknown), None) == (None, None)
