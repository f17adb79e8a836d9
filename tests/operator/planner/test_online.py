"""The factor on step times that loads alone tell, against an engine whose true factor is known."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_operator.api import TurboDeploymentSpec
from turbo_operator.catalog import shapes
from turbo_operator.plan import Running
from turbo_operator.planner.performance import calibration, step_time
from turbo_operator.planner.performance.calibration import Calibration, OnlineCorrection, describe_replica
from turbo_operator.snapshot import Accelerator, LoadSample, PodView
from turbo_runtime.contract.documents import Load

L4 = Accelerator("l4", "nvidia.com/gpu", Decimal(1), 24 << 30, memory_bandwidth=300e9, flops={"bf16": 121e12})
RUNNING = Running("l4", 1, "Off")
SPEC = TurboDeploymentSpec.model_validate({"model": {"uri": "hf://Qwen/Qwen2.5-7B-Instruct"}})
SHAPE = shapes.shipped("Qwen/Qwen2.5-7B-Instruct")
assert SHAPE is not None
FOUND = describe_replica(SPEC, SHAPE, L4, RUNNING)
assert FOUND is not None
MACHINE, WORK = FOUND
PROMPT, ANSWER = 200, 100
START = 1_700_000_000.0
IDLE = Load(0, 0, 0, 0, 0.0, 100_000, 0, 0, 0, 0, "bitwise", draining=False, prompts=0, prompt_tokens=0)


@functools.cache
def decode(rows: int, context: int) -> float:
    return float(step_time.decode_seconds(MACHINE, WORK, rows, 0.0, float(context)))


READ = float(step_time.prefill_seconds(MACHINE, WORK, PROMPT))


def samples(rate: float, factor: float, seconds: float, seed: int = 1) -> Iterator[LoadSample]:
    """An engine to which `rate` requests come per second, read every 15 s; every pass takes `factor` times
    what the model says.
    """
    chance = random.Random(seed)
    now, due, arrival = 0.0, 0.0, chance.expovariate(rate)
    running: list[int] = []  # tokens that each has made
    load, sample = IDLE, None
    while now < seconds:
        while due <= now:
            seen = replace(
                load, running_requests=len(running), running_tokens=sum(PROMPT + result for result in running)
            )
            sample = LoadSample.after(sample, START + due, seen)
            yield sample
            due += 15.0
        if arrival <= now:
            arrival += chance.expovariate(rate)
            now += factor * READ
            running.append(1)
            load = replace(
                load,
                prompts=(load.prompts or 0) + 1,
                prompt_tokens=(load.prompt_tokens or 0) + PROMPT,
                generated_tokens=load.generated_tokens + 1,
            )
        elif running:
            now += factor * decode(len(running), PROMPT + round(sum(running) / len(running)))
            load = replace(load, generated_tokens=load.generated_tokens + len(running))
            running = [result + 1 for result in running if result + 1 < ANSWER]
        else:
            now = min(arrival, due)


def pod(sample: LoadSample | None, ready_since: float | None = START) -> PodView:
    return PodView("p", "hash", "Running", True, "10.0.0.1", None, None, ready_since=ready_since, load=sample)


def learnt(rate: float, factor: float, seconds: float, start: Calibration | None = None) -> OnlineCorrection:
    known = OnlineCorrection()
    for sample in samples(rate, factor, seconds):
        known = known.update([pod(sample)], MACHINE, WORK, start)
    return known


@pytest.mark.parametrize(("rate", "hours"), [(0.05, 4.0), (0.3, 2.0), (1.5, 0.5)])
@pytest.mark.parametrize("factor", [0.7, 1.0, 1.6])
def test_the_factor_is_found_at_any_load(rate: float, hours: float, factor: float) -> None:
    assert learnt(rate, factor, 3600 * hours).factor == pytest.approx(factor, rel=0.15)


def test_what_the_start_up_points_have_told_is_not_told_again() -> None:
    assert learnt(0.5, 1.6, 3600, Calibration(1.6, 1.6)).factor == pytest.approx(1.0, rel=0.11)


def test_the_first_minute_of_a_pod_teaches_nothing() -> None:
    known = OnlineCorrection()
    for sample in samples(1.0, 3.0, 600):
        known = known.update([pod(sample, ready_since=START + 541.0)], MACHINE, WORK, None)
    assert known == OnlineCorrection()
    assert (
        OnlineCorrection().update([pod(next(samples(1.0, 1.0, 1.0)), None)], MACHINE, WORK, None)
        == OnlineCorrection()
    )


def test_an_idle_pod_teaches_nothing() -> None:
    idle = LoadSample(START + 100.0, IDLE)
    known = OnlineCorrection().update([pod(idle)], MACHINE, WORK, None)
    for look in range(1, 1000):
        idle = LoadSample.after(idle, START + 100.0 + 15.0 * look, IDLE)
        known = known.update([pod(idle)], MACHINE, WORK, None)
    assert known.filter == OnlineCorrection().filter


def test_a_process_that_was_started_again_begins_a_new_stretch() -> None:
    known = learnt(1.0, 1.0, 1800)
    again = LoadSample(START + 1815.0, IDLE)
    heard = known.update([pod(again)], MACHINE, WORK, None)
    assert heard.filter == known.filter
    assert heard.marks == {"p": again}


def test_a_pod_that_is_gone_is_forgotten() -> None:
    assert learnt(1.0, 1.0, 600).update([], MACHINE, WORK, None).marks == {}


@given(st.lists(st.floats(0.9, 1.1), min_size=1, max_size=60))
def test_small_wanderings_make_no_plan_anew(factors: list[float]) -> None:
    known, reported = OnlineCorrection(), set()
    for step, factor in enumerate(factors):
        known = replace(known, filter=known.filter.update(factor, 1.0, START + 60.0 * step))
        known = known.update([], MACHINE, WORK, None)
        reported.add(known.reported)
    assert reported <= {0.0, calibration.STEP, -calibration.STEP}
    assert len(reported) <= 2


def test_an_accelerator_of_unknown_speed_has_no_model_to_compare_with() -> None:
    assert SHAPE is not None
    assert describe_replica(SPEC, SHAPE, replace(L4, memory_bandwidth=None), RUNNING) is None
    assert describe_replica(SPEC, SHAPE, replace(L4, flops={}), RUNNING) is None
    assert describe_replica(SPEC, SHAPE, L4, replace(RUNNING, tensor=2)) is None
    assert describe_replica(SPEC, SHAPE, L4, replace(RUNNING, nodes=2)) is None
