"""A Job of which no pod has run is bound to nothing: it follows the spec, and leaves what cannot be had."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from turbo_dev.trainings import (
    CORES,
    HOUR,
    L4,
    NOW,
    ROOM,
    began,
    draft,
    job,
    look,
    message_of,
    pending,
    pod,
    ran,
    reason,
    seen,
    td,
)
from turbo_operator.api import CapacityType, Provisioning, TrainingStatus, TurboDeployment, rfc3339
from turbo_operator.drafts.training import job_state
from turbo_operator.drafts.training.manifests import training_job
from turbo_operator.settings import Settings
from turbo_operator.snapshot import Accelerator, Snapshot, Supply

TIMEOUT = 600.0  # spec.accelerators.pendingTimeout by itself
SETTINGS = Settings(runtime_image="r:1")


def rendered(it: TurboDeployment, observed: Snapshot) -> dict[str, Any]:
    begin = look(it, observed).job_request
    assert begin is not None
    assert observed.model is not None
    return training_job(it, begin, observed.model, SETTINGS)


def there(*pods: Any, **more: Any) -> Snapshot:
    return seen(children=(job(),), trainings=pods, **more)


def test_the_same_spec_comes_to_the_same_job_again_and_again() -> None:
    first = look(td(maxCost="1"), seen())
    it, waits = td(first.state, maxCost="1"), there(pending(placed=NOW))
    step = look(it, waits, NOW + 60)
    assert step.job_request == first.job_request
    assert (step.kept_job, step.state) == ("chat-train-1", first.state)
    assert rendered(it, waits) == rendered(td(maxCost="1"), seen())


def test_a_spec_that_is_mended_makes_another_job_before_any_pod_has_run() -> None:
    state, waits = began(), there(pending(placed=NOW))
    for right in (
        {"prompts": {"type": "ConfigMap", "configMap": {"name": "right"}}},
        {"persistentVolumeClaim": {"claimName": "right"}},
        {"spec": {"engine": {"type": "Turbo", "image": "right"}}},
        {"spec": {"podTemplate": {"spec": {"imagePullSecrets": [{"name": "right"}]}}}},
    ):
        step = look(td(state, **right), waits)
        assert step.job_request is not None
        # which gives way to what is rendered
        assert (step.job_request.number, step.kept_job) == (1, "chat-train-1")
        assert rendered(td(state, **right), waits) != rendered(td(state), waits)
        after = look(td(step.state, **right), waits)
        assert (after.job_request, after.state) == (step.job_request, step.state)


def test_a_job_that_has_run_is_not_asked_for_anew() -> None:
    state = ran()
    for pods in ((), (pending(placed=NOW),), (pending(NOW - HOUR),)):
        step = look(td(state, prompts={"type": "ConfigMap", "configMap": {"name": "other"}}), there(*pods))
        assert (step.kept_job, step.job_request, step.query) == ("chat-train-1", None, None)


def test_a_bound_that_is_set_before_any_pod_has_run_bounds_the_job() -> None:
    step = look(td(began(), maxCost="0.04"), there(pending(placed=NOW)))
    assert step.job_request is not None
    assert step.job_request.deadline_seconds == 3600


ELASTIC = {
    name: replace(
        L4,
        name=name,
        prices={CapacityType.ON_DEMAND: Decimal(price)},
        provisioning=Provisioning.ELASTIC,
    )
    for name, price in (("cheap", "1"), ("middle", "2"), ("dear", "3"))
}
NONE = dict.fromkeys(ELASTIC, Supply())


def clouded(*pods: Any, free: Any = NONE, accelerators: dict[str, Accelerator] = ELASTIC) -> Snapshot:
    """A cloud, of which nobody knows what it has, beside cores that serve."""
    everything = {"cpu": CORES} | accelerators
    jobs = (job(),) if pods else ()
    return seen(accelerators=everything, supply={**ROOM, **NONE}, free=free, children=jobs, trainings=pods)


def cloudy(state: TrainingStatus | None = None, **more: Any) -> TurboDeployment:
    return td(state, spec={"accelerators": {"allowed": [*ELASTIC, "cpu"]}}, **more)


def accelerator(step: Any) -> str:
    assert step.job_request is not None
    name: str = step.job_request.choice.accelerator.name
    return name


def test_what_its_pod_waits_for_in_vain_is_left_for_the_next_class_and_at_last_tried_again() -> None:
    crowded = {**NONE, "cpu": Supply()}
    step = look(cloudy(), clouded(free=crowded))
    names, now = [accelerator(step)], NOW
    for _ in range(4):
        there = clouded(pending(now, accelerator=names[-1]), free=crowded)
        waits = look(cloudy(step.state), there, now + TIMEOUT - 1)
        assert (accelerator(waits), reason(waits)) == (names[-1], "WaitingForAccelerator")
        now += TIMEOUT
        step = look(cloudy(waits.state), there, now)
        if step.job_request is None:  # nothing else is left: it waits on, and then all are tried again
            step = look(cloudy(step.state), there, now)
        assert step.kept_job == "chat-train-1"  # which gives way
        again = look(cloudy(step.state), there, now)  # its pod is of the class before
        assert (again.job_request, again.state) == (step.job_request, step.state)
        step = look(cloudy(step.state), clouded(free=crowded), now)
        names.append(accelerator(step))
    assert names == ["cheap", "middle", "dear", "cheap", "middle"]


def test_one_that_is_asked_for_by_name_is_waited_for() -> None:
    asked = {"acceleratorName": "cheap"}
    state = look(cloudy(**asked), clouded()).state
    step = look(cloudy(state, **asked), clouded(pending(NOW - HOUR, accelerator="cheap")))
    assert (accelerator(step), step.kept_job) == ("cheap", "chat-train-1")


def test_a_class_that_serving_waits_for_in_vain_is_passed_over() -> None:
    short = {**NONE, "cpu": Supply(), "cheap": Supply(unavailable_until=NOW + HOUR)}
    assert accelerator(look(cloudy(), clouded(free=short))) == "middle"


def test_a_job_that_is_made_again_is_planned_anew_unless_one_of_its_pods_has_run() -> None:
    short = {**ROOM, "cpu": Supply()}
    assert accelerator(look(td(began()), seen(free=short))) == "l4"
    assert accelerator(look(td(ran()), seen(free=short))) == "cpu"


def test_what_has_no_price_goes_once_a_bound_is_set() -> None:
    free = {"cpu": replace(CORES, prices={}), "l4": L4}
    there = {"children": (job(),), "trainings": (pending(placed=NOW),)}
    state = look(td(acceleratorName="cpu"), seen(accelerators=free)).state
    step = look(td(state, acceleratorName="cpu", maxCost="1"), seen(accelerators=free, **there))
    assert (reason(step), step.kept_job, step.job_request) == ("PriceUnknown", None, None)


def test_how_long_a_pod_has_been_starting_and_what_it_may_lack_is_told() -> None:
    it, waits = td(began()), there(pending(placed=NOW))
    assert message_of(look(it, waits, NOW + 60)) == "Training 1: Pod p starts."
    late = message_of(look(it, waits, NOW + job_state.STARTING_SECONDS))
    assert late == message_of(look(it, waits, NOW + HOUR))  # the status is written once
    assert f"has been starting since {rfc3339(NOW)}" in late
    assert "kubectl describe pod p" in late


def test_a_pod_that_goes_is_told_with_what_its_successor_waits_for() -> None:
    step = look(td(ran()), there(pod(terminating=True)))
    assert "Pod p is being removed" in message_of(step)
    assert "Node object" in message_of(step)
    assert "has made no pod yet" in message_of(look(td(ran()), there()))


def test_a_draft_that_is_there_already_ends_the_wait() -> None:
    step = look(td(began()), there(pending(placed=NOW), drafts=(draft(),)))
    assert (reason(step), step.kept_job, step.job_request) == ("Trained", None, None)


@pytest.mark.parametrize("serving", ["float32", "bfloat16"])
def test_it_is_planned_in_what_is_served(serving: str) -> None:
    dtype = {"float32": "Float32", "bfloat16": "BFloat16"}[serving]
    model = {"model": {"uri": "pvc://models/chat", "dtype": dtype}}
    begin = look(td(spec=model, acceleratorName="l4"), seen()).job_request
    assert begin is not None
    assert (begin.serving.dtype, begin.choice.dtype) == (serving, serving)


def test_what_serves_on_cores_in_float32_is_trained_in_it_on_a_device_too() -> None:
    cores = {"accelerators": {"allowed": ["cpu"]}}
    begin = look(td(spec=cores, acceleratorName="l4"), seen()).job_request
    assert begin is not None
    assert (begin.choice.accelerator.name, begin.choice.dtype) == ("l4", "float32")
