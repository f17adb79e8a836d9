"""What pods tell of their speed is kept in the status, where the planner reads it."""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal

import pytest

from turbo_operator import planner
from turbo_operator.api import (
    Accelerators,
    Calibrated,
    CapacityType,
    PlanReason,
    PlanStatus,
    Provenance,
    TurboDeployment,
    TurboDeploymentStatus,
    epoch,
    parse,
    rfc3339,
)
from turbo_operator.plan import Choice, Running
from turbo_operator.planner.performance.calibration import (
    Filter,
    OnlineCorrection,
    describe_replica,
    update_calibrations,
)
from turbo_operator.planner.performance.step_time import decode_seconds, prefill_seconds
from turbo_operator.snapshot import Accelerator, ChildView, LoadSample, PodView, Snapshot
from turbo_runtime.contract.documents import Load, ModelInfo, ModelShape, StepTime

NOW = 1_700_000_000.0
SHAPE = ModelShape("LlamaForCausalLM", 134515008, 30, 576, 9, 3, 64, 49152, 8192, "bfloat16")
FACTS = ModelInfo(SHAPE, "sha256:ab", None, 270_000_000)
CARD = Accelerator(
    "card",
    "nvidia.com/gpu",
    Decimal(1),
    24 << 30,
    memory_bandwidth=300e9,
    flops={"bf16": 120e12},
    prices={CapacityType.ON_DEMAND: Decimal("0.80")},
)
RUNNING = Running("card", 1, "Off")
PLAN = PlanStatus(hash="v1a", engine="Turbo", accelerator="card", method="Off")
DEPLOYMENT = ChildView("Deployment", "chat-v1a", "u", None, plan_hash="v1a", replicas=1)


def td(*calibrations: Calibrated, plan: PlanStatus = PLAN, target: str = "1h") -> TurboDeployment:
    return parse(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboDeployment",
            "metadata": {"name": "chat", "namespace": "team", "uid": "u", "generation": 3},
            "spec": {
                "model": {"uri": "pvc://models/chat"},
                "engine": {"type": "Turbo"},
                "speculation": {"mode": "Disabled"},
                "workload": {"requestsPerSecond": "1"},
                "targets": {"timePerOutputToken": {"max": target}},
            },
            "status": TurboDeploymentStatus(plan=plan, calibrations=calibrations).dump(),
        }
    )


def points(decode: float, prefill: float) -> tuple[StepTime, ...]:
    """What a machine that takes so many times the model's time would measure."""
    one = describe_replica(td().spec, SHAPE, CARD, RUNNING)
    assert one is not None
    return (
        StepTime(1, 1, 64, decode * float(decode_seconds(*one, 1.0, 0.0, 64.0))),
        StepTime(8, 1, 64, decode * float(decode_seconds(*one, 8.0, 0.0, 64.0))),
        StepTime(1, 512, 0, prefill * float(prefill_seconds(*one, 512.0))),
    )


def seen(*measured: tuple[float, float], row: Accelerator = CARD) -> Snapshot:
    pods = []
    for number, factors in enumerate(measured):
        load = Load(0, 0, 0, 0, 0.0, 1000, 0, 0, 0, 0, "bitwise", False, step_times=points(*factors))
        pods.append(
            PodView(f"p{number}", "v1a", "Running", True, "10.0.0.1", None, None, load=LoadSample(NOW, load))
        )
    return Snapshot({row.name: row}, children=(DEPLOYMENT,), pods=tuple(pods), model=FACTS)


def choose(deployment: TurboDeployment, observed: Snapshot) -> Choice | None:
    """The choice of its plan."""
    return planner.plan(planner.build_inputs(deployment, SHAPE, observed), NOW).choice


def test_the_factors_of_the_running_pods_are_told() -> None:
    told, _ = update_calibrations(td(), seen((1.5, 2.0), (1.5, 2.0)), None, NOW)
    assert told == (
        Calibrated(engine="Turbo", accelerator="card", decode="1.500", prefill="2.000", online="1.000"),
    )


def test_what_runs_is_calibrated_where_the_spec_does_not_allow_it_any_more() -> None:
    """Found in a trial: a misspelled accelerator in an object that serves ended each look with an error."""
    spec = td().spec.model_copy(update={"accelerators": Accelerators(allowed=("cards",))})
    misspelled = td().model_copy(update={"spec": spec})
    observed = seen((1.5, 2.0))
    assert update_calibrations(misspelled, observed, None, NOW)[0] == (
        Calibrated(engine="Turbo", accelerator="card", decode="1.500", prefill="2.000", online="1.000"),
    )
    decided = planner.plan(planner.build_inputs(misspelled, SHAPE, observed), NOW)
    assert decided.reason == PlanReason.ACCELERATOR_NOT_FOUND


def test_the_plan_rests_on_what_the_status_keeps_even_before_any_pod_has_spoken() -> None:
    told, _ = update_calibrations(td(), seen((1.5, 2.0)), None, NOW)
    before = choose(td(), seen())
    after = choose(td(*told), seen())
    assert before is not None
    assert after is not None
    assert before.predicted.provenance != Provenance.CALIBRATED
    assert before.predicted.time_per_output_token is not None
    assert after.predicted.time_per_output_token is not None
    ratio = after.predicted.time_per_output_token / before.predicted.time_per_output_token
    assert ratio == pytest.approx(1.5, rel=0.1)
    assert update_calibrations(td(*told), seen(), None, NOW)[0] == told


def test_hardly_another_measurement_changes_nothing_and_another_one_does() -> None:
    told, online = update_calibrations(td(), seen((1.5, 2.0)), None, NOW)
    assert update_calibrations(td(*told), seen((1.52, 1.97)), online, NOW)[0] == told
    (moved,), _ = update_calibrations(td(*told), seen((1.8, 2.0)), online, NOW)
    assert moved.decode == "1.800"


@pytest.mark.parametrize(
    "elsewhere",
    [
        PlanStatus(hash="v1a", engine="Turbo", accelerator="other"),
        PlanStatus(hash="v1gone", engine="Turbo", accelerator="card"),
    ],
    ids=["another accelerator", "no deployment of it"],
)
def test_what_does_not_run_any_more_is_not_forgotten(elsewhere: PlanStatus) -> None:
    told, _ = update_calibrations(td(), seen((1.5, 2.0)), None, NOW)
    assert update_calibrations(td(*told, plan=elsewhere), seen((1.8, 1.8)), None, NOW)[0] == told
    # A token of this model takes 3.3 ms on paper.
    assert choose(td(plan=elsewhere, target="4ms"), seen()) is not None
    assert choose(td(*told, plan=elsewhere, target="4ms"), seen()) is None


def test_an_accelerator_without_rates_is_not_measured_against() -> None:
    unknown = Accelerator("card", "nvidia.com/gpu", Decimal(1), 24 << 30)
    assert update_calibrations(td(), seen((1.5, 2.0), row=unknown), None, NOW) == ((), None)


def test_a_plan_that_leaves_an_accelerator_for_being_slow_does_not_come_back() -> None:
    cards = {
        name: replace(CARD, name=name, prices={CapacityType.ON_DEMAND: Decimal(price)})
        for name, price in (("cheap", "0.80"), ("dear", "1.00"))
    }
    slow = {"cheap": 1.8, "dear": 1.0}
    calibrations: tuple[Calibrated, ...] = ()
    plan: PlanStatus | None = None
    deployments: tuple[ChildView, ...] = ()
    online, went = None, []
    for _ in range(6):
        # What one look announces, what the next one makes of it, and what its pods then say.
        for _ in range(3):
            pods = seen((slow[plan.accelerator or ""],) * 2).pods if plan is not None and deployments else ()
            observed = Snapshot(cards, children=deployments, pods=pods, model=FACTS)
            asking = td(*calibrations, plan=plan or PlanStatus(), target="4ms")
            choice = choose(asking, observed)
            assert choice is not None
            calibrations, online = update_calibrations(asking, observed, online, NOW)
            if plan is None or plan.accelerator != choice.accelerator.name:
                went.append(choice.accelerator.name)
                plan = PLAN.model_copy(update={"accelerator": choice.accelerator.name})
                deployments = ()
            else:
                deployments = (DEPLOYMENT,)
    assert went == ["cheap", "dear"]
    assert [item.accelerator for item in calibrations] == ["dear", "cheap"]


def test_what_one_accelerator_has_learnt_under_load_says_nothing_of_another() -> None:
    learnt = OnlineCorrection(reported=math.log(1.5), key=("Turbo", "other"))
    (told,), online = update_calibrations(td(), seen((1.5, 2.0)), learnt, NOW)
    assert told.online == "1.000"
    assert online is not None
    assert online.key == ("Turbo", "card")


def kept(online: str, hours: float | None) -> Calibrated:
    """Of the running card, with so many hours left in which what was heard under load counts."""
    until = None if hours is None else rfc3339(NOW + hours * 3600)
    return Calibrated(
        engine="Turbo", accelerator="card", decode="1.500", prefill="2.000", online=online, until=until
    )


@pytest.mark.parametrize("accelerator", ["card", "other"])
@pytest.mark.parametrize(("hours", "counts"), [(1.0, True), (-1.0, False), (None, False)])
def test_what_was_heard_under_load_fades_once_it_is_not_heard_again(
    accelerator: str, hours: float | None, counts: bool
) -> None:
    """Else a bad hour on an accelerator would keep every later plan away from it."""
    elsewhere = PLAN.model_copy(update={"accelerator": accelerator})
    before = kept("1.822", hours)
    learnt = OnlineCorrection(filter=Filter(0.6), reported=0.6, key=("Turbo", "card"))
    (told,), _ = update_calibrations(td(before, plan=elsewhere), seen(), learnt, NOW)
    assert told == (before if counts else kept("1.000", None))


def after_an_hour_of_load(before: Calibrated, now: float, factor: float = 2.0) -> Calibrated:
    """What is kept once a pod's steps have taken so many times what its start told, until `now`."""
    one = describe_replica(td().spec, SHAPE, CARD, RUNNING)
    assert one is not None
    (pod,) = seen((1.5, 2.0)).pods
    assert pod.load is not None
    rows, seconds = 8, 3600.0
    step = 1.5 * factor * float(decode_seconds(*one, float(rows), 0.0, 64.0))
    load = replace(pod.load.load, running_requests=rows, running_tokens=rows * 64)
    first = LoadSample(now - seconds, load)
    last = LoadSample.after(first, now, replace(load, generated_tokens=int(rows * seconds / step)))
    told, online = (before,), None
    for sample in (first, last):
        serving = replace(pod, load=sample, ready_since=now - 2 * seconds)
        observed = Snapshot({CARD.name: CARD}, children=(DEPLOYMENT,), pods=(serving,), model=FACTS)
        told, online = update_calibrations(td(*told), observed, online, now)
    return told[0]


def test_what_is_heard_under_load_counts_for_days_and_is_seldom_written_anew() -> None:
    first = after_an_hour_of_load(kept("1.000", None), NOW)
    assert float(first.online) > 1.5
    assert first.until is not None
    assert 2 * 86400 < epoch(first.until) - NOW < 4 * 86400
    assert after_an_hour_of_load(first, NOW + 3600).until == first.until
    later = after_an_hour_of_load(first, NOW + 2 * 86400)
    assert later.until is not None
    assert epoch(later.until) - epoch(first.until) == 2 * 86400


@pytest.mark.parametrize(("factor", "written"), [(1e-9, "0.010"), (1e9, "100.000")])
def test_a_factor_that_nothing_real_has_is_bounded(factor: float, written: str) -> None:
    told, online = update_calibrations(td(), seen((factor, factor)), None, NOW)
    assert [(item.decode, item.prefill) for item in told] == [(written, written)]
    assert update_calibrations(td(*told), seen((factor, factor)), online, NOW)[0] == told
    assert choose(td(*told), seen()) is not None
