"""Capacity: its laws, and a replay of the queue as its referee on the lengths of a published trace."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from turbo_dev.replay import Replica, replay, replay_closed
from turbo_dev.sizes import size
from turbo_dev.typical import CASES, CURVES, Case, Curve, drawn, seen, trace
from turbo_operator.api import TurboDeploymentSpec
from turbo_operator.catalog import shapes
from turbo_operator.planner.arrays import Numbers
from turbo_operator.planner.feasibility import Speed, needed_replicas
from turbo_operator.planner.inputs import PlannerInputs
from turbo_operator.planner.performance.capacity import capacity, closed, keeps, saturated, served
from turbo_operator.planner.performance.queueing import Engines
from turbo_operator.planner.requirements import Bound, Demand, Lengths, build_requirements, demand

SEARCHED = 0.005  # of the saturated rate: the steps in which a capacity is sought, and more

# ---------------------------------------------------------------------------------------------- the referee

WITHIN = 0.10


def late(case: Case, lengths: np.ndarray, rate: float) -> float:
    """Share of replayed requests that miss the target."""
    return float((seen(case, lengths, rate) > case.bound.seconds).mean())


@pytest.mark.parametrize("case", CASES[:: size(3, 1)], ids=str)
def test_a_replay_keeps_the_target_a_tenth_below_the_capacity_and_breaks_it_a_tenth_above(case: Case) -> None:
    _, lengths = trace(case.service)
    asked = case.demand(lengths)
    actual = capacity(CURVES[case.curve].engines(asked.mean_context), asked)[0]
    allowed = 1.0 - case.bound.share
    assert late(case, lengths, actual / (1.0 + WITHIN)) <= allowed
    assert late(case, lengths, actual / (1.0 - WITHIN)) > allowed


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("running", [2, 4, 8, 16])
def test_requests_always_under_way_see_what_they_see_in_a_closed_replay(curve: str, running: int) -> None:
    # Of conversations: those of code end in fewer steps than a few of their prompts take to read.
    _, lengths = trace("conversation")
    _, prompts, answers = drawn(lengths, 3, 1.0, seed=0)
    times = replay_closed(CURVES[curve].replica(), running, prompts, answers)
    asked = Case(curve, "conversation", True, Bound(1.0, 0.95)).demand(lengths)
    actual = closed(CURVES[curve].engines(asked.mean_context), asked, np.array([float(running)]))
    first = np.percentile(times.to_first_token[600:], 95)
    token = np.percentile(times.per_output_token[600:], 95)
    assert actual.time_to_first_token[0] == pytest.approx(first, rel=WITHIN)
    assert actual.time_per_output_token[0] == pytest.approx(token, rel=WITHIN)


def test_the_next_request_comes_as_one_ends() -> None:
    replica = Replica(lambda n, held: 0.1 * n, 0.01, chunk=1000, first=0.0, slots=4)
    times = replay_closed(replica, 1, [10, 20, 10], [3, 1, 2])
    assert times.to_first_token == pytest.approx([0.1, 0.2, 0.1])
    assert times.per_output_token[[0, 2]] == pytest.approx([0.1, 0.1])


def test_a_request_alone_takes_its_own_time() -> None:
    replica = Replica(lambda n, held: 0.010 * n + 0.001 * held, 0.002, chunk=100, first=0.5, slots=4)
    times = replay(replica, [3.0], [250], [3])
    # Three chunks, then two tokens with 251 and 252 held.
    assert times.to_first_token == pytest.approx([0.5 + 250 * 0.002])
    assert times.per_output_token == pytest.approx([(0.020 + 0.251 + 0.252) / 2])


def test_a_request_waits_for_a_slot_until_the_one_before_has_ended() -> None:
    replica = Replica(lambda n, held: 0.1 * n, 0.01, chunk=1000, first=0.0, slots=1)
    times = replay(replica, [0.0, 0.0], [10, 10], [5, 1])
    assert times.to_first_token == pytest.approx([0.1, 0.1 + 4 * 0.1 + 0.1])
    assert math.isnan(times.per_output_token[1])


# -------------------------------------------------------------------------------------------------- the laws


def engine(step: float, row: float, prefill: float, chunk: int, first: float, slots: int) -> Engines:
    return Curve(step, row, 0.0, prefill, chunk, first, slots).engines(0.0)


engines = st.builds(
    engine,
    st.floats(1e-3, 0.2),
    st.floats(0.0, 5e-3),
    st.floats(1e-6, 1e-3),
    st.sampled_from((256, 512, 2048, 8192)),
    st.floats(0.0, 0.2),
    st.integers(1, 1024),
)
lengths = st.builds(
    lambda mean, times: Lengths(float(mean), mean * times), st.integers(1, 8000), st.floats(1.0, 10.0)
)
bounds = st.builds(Bound, st.floats(1e-3, 30.0), st.sampled_from((0.5, 0.9, 0.95, 0.99)))
demands = st.builds(
    lambda prompt, answer, first, token: Demand(
        prompt, answer, assumed=False, time_to_first_token=first, time_per_output_token=token
    ),
    lengths,
    lengths,
    st.none() | bounds,
    st.none() | bounds,
)
factors = st.floats(0.1, 1.0)


def most(actual: Numbers, engines: Engines, asked: Demand) -> float:
    """As much as a capacity may be for the search's sake."""
    return float(actual[0] + SEARCHED * saturated(engines, asked)[0])


def tightened(asked: Demand, factor: float, share: float | None = None) -> Demand:
    def tighter(bound: Bound | None) -> Bound | None:
        return bound and Bound(bound.seconds * factor, bound.share if share is None else share)

    return replace(
        asked,
        time_to_first_token=tighter(asked.time_to_first_token),
        time_per_output_token=tighter(asked.time_per_output_token),
    )


@given(engines, demands)
def test_capacity_is_finite_not_negative_and_below_the_saturated_rate(it: Engines, asked: Demand) -> None:
    actual = capacity(it, asked)[0]
    assert 0.0 <= actual < saturated(it, asked)[0] < math.inf


@given(engines, demands, factors)
def test_a_tighter_target_never_has_more_capacity(it: Engines, asked: Demand, factor: float) -> None:
    assert capacity(it, tightened(asked, factor))[0] <= capacity(it, asked)[0]


@given(engines, demands)
def test_a_higher_percentile_never_has_more_capacity(it: Engines, asked: Demand) -> None:
    actual = [capacity(it, tightened(asked, 1.0, share))[0] for share in (0.5, 0.9, 0.95, 0.99)]
    assert actual == sorted(actual, reverse=True)


@given(engines, demands, factors)
def test_a_faster_decode_never_has_less_capacity(it: Engines, asked: Demand, factor: float) -> None:
    faster = replace(it, decode=it.decode * factor)
    assert capacity(it, asked)[0] <= most(capacity(faster, asked), faster, asked)


@given(engines, demands, factors)
def test_a_faster_prefill_never_has_less_capacity(it: Engines, asked: Demand, factor: float) -> None:
    faster = replace(it, prefill=it.prefill * factor)
    assert capacity(it, asked)[0] <= most(capacity(faster, asked), faster, asked)


@given(engines, demands, factors)
def test_a_shorter_fixed_time_never_has_less_capacity(it: Engines, asked: Demand, factor: float) -> None:
    assert capacity(it, asked)[0] <= capacity(replace(it, first=it.first * factor), asked)[0]


@given(
    st.floats(1e-3, 0.2),
    st.floats(0.0, 5e-3),
    st.floats(1e-6, 1e-3),
    st.integers(1, 1024),
    st.integers(1, 1024),
    demands,
)
def test_more_slots_never_have_less_capacity_for_first_tokens(
    step: float, row: float, prefill: float, few: int, more: int, asked: Demand
) -> None:
    # Of output tokens they may: few slots bound what a step decodes, and let the others wait.
    assume(asked.output.mean >= 8)  # who decodes for a step or two holds no slot to speak of
    asked = replace(asked, time_per_output_token=None)
    less = engine(step, row, prefill, 2048, 0.05, min(few, more))
    it = engine(step, row, prefill, 2048, 0.05, max(few, more))
    assert capacity(less, asked)[0] <= most(capacity(it, asked), it, asked)


@given(engines, demands, factors)
def test_longer_answers_never_have_more_requests_per_second(
    it: Engines, asked: Demand, factor: float
) -> None:
    # Where output tokens are bounded they may: a long answer averages over the prompts that it meets.
    asked = replace(asked, time_per_output_token=None)
    shorter = Lengths(asked.output.mean * factor, asked.output.p95 * factor)
    less = replace(asked, output=shorter)
    assert capacity(it, asked)[0] <= most(capacity(it, less), it, less)


@given(st.lists(engines, min_size=1, max_size=5), demands)
def test_a_candidate_has_the_same_capacity_alone_and_among_others(
    several: list[Engines], asked: Demand
) -> None:
    together = Engines(
        *(
            np.concatenate([getattr(item, name) for item in several])
            for name in ("rows", "decode", "prefill", "chunk", "first")
        )
    )
    alone = [capacity(item, asked)[0] for item in several]
    assert capacity(together, asked) == pytest.approx(alone, rel=1e-9)


@settings(max_examples=40)
@given(engines, demands)
def test_at_the_capacity_the_percentiles_are_within_the_targets(it: Engines, asked: Demand) -> None:
    rate = capacity(it, asked)
    if rate[0] == 0.0:
        return
    seen = served(it, asked, rate)
    if bound := asked.time_to_first_token:
        assert seen.time_to_first_token[0] <= bound.seconds * 1.001
    if bound := asked.time_per_output_token:
        assert seen.time_per_output_token[0] <= bound.seconds * 1.001


@settings(max_examples=40)
@given(engines, demands, st.integers(1, 2000))
def test_requests_always_under_way_keep_the_targets_where_their_percentiles_do(
    it: Engines, asked: Demand, running: int
) -> None:
    under_way = np.array([float(running)])
    seen = closed(it, asked, under_way)
    inside = all(
        bound is None or bool(time[0] <= bound.seconds)
        for bound, time in (
            (asked.time_to_first_token, seen.time_to_first_token),
            (asked.time_per_output_token, seen.time_per_output_token),
        )
    )
    assert not inside or keeps(it, asked, under_way)[0]
    assert seen.concurrency[0] <= it.slots[0]


@given(lengths)
def test_lengths_have_the_mean_and_the_percentile_that_were_written(of: Lengths) -> None:
    exponential = -np.log1p(-(np.arange(20_000) + 0.5) / 20_000)
    drawn = of.shortest + (of.p95 - of.shortest) * np.minimum(1.0, exponential / -math.log(0.06)) ** of.power
    assert drawn.mean() == pytest.approx(of.mean, rel=0.02)
    assert np.percentile(drawn, 95) == pytest.approx(of.p95)
    assert (drawn**2).mean() == pytest.approx(of.second_moment, rel=0.02)


def test_a_spec_without_a_workload_has_the_assumed_one() -> None:
    asked = demand(TurboDeploymentSpec.model_validate({"model": {"uri": "hf://a/b"}}))
    assert asked.assumed
    assert (asked.prompt.mean, asked.output.mean) == (512, 256)
    assert asked.rate is asked.concurrency is asked.time_to_first_token is None


def test_a_spec_with_a_workload_and_targets_is_taken_at_its_word() -> None:
    written = {
        "model": {"uri": "hf://a/b"},
        "workload": {
            "inputTokens": {"mean": 1000, "p95": 4000},
            "outputTokens": {"mean": 200},
            "requestsPerSecond": "2.5",
        },
        "targets": {
            "timeToFirstToken": {"max": "500ms", "percentile": 90},
            "timePerOutputToken": {"max": "25ms"},
            "tokensPerSecond": "400",
        },
    }
    asked = demand(TurboDeploymentSpec.model_validate(written))
    assert not asked.assumed
    assert asked.prompt == Lengths(1000, 4000)
    assert asked.output == Lengths(200, 600)
    assert asked.rate == 2.5
    assert asked.time_to_first_token == Bound(0.5, 0.9)
    assert asked.time_per_output_token == Bound(0.025, 0.95)
    assert asked.tokens_per_second == 400


@pytest.mark.parametrize(("rate", "expected"), [("0.01", 1), ("0.1", 1), ("0.3", 3), ("0.31", 4)])
def test_replicas_are_as_many_as_the_load_needs_and_none_where_no_number_serves_it(
    rate: str, expected: int
) -> None:
    spec = TurboDeploymentSpec.model_validate(
        {"model": {"uri": "hf://a/b"}, "workload": {"requestsPerSecond": rate}}
    )
    model = shapes.shipped("HuggingFaceTB/SmolLM2-135M")
    assert model is not None
    speeds = Speed(np.array([0.1, 0.0]), np.full(2, np.nan), np.full(2, np.nan))
    required = build_requirements(PlannerInputs(spec, model, {}, None, None, {}, None), 0.0)
    needed = needed_replicas(required, speeds, np.arange(2))
    assert needed.tolist() == [expected, math.inf]
