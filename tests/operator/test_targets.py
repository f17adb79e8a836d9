"""TargetsMet: what histograms of pods say of the requests of the last ten minutes, and no more."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_operator import autoscaler, status
from turbo_operator.api import ConditionType, TurboDeployment, TurboDeploymentStatus, parse
from turbo_operator.api.condition_state import ConditionState
from turbo_operator.snapshot import LoadSample, PodView, Snapshot
from turbo_operator.status.targets import MIN_REQUESTS, WINDOW_SECONDS, TargetTracker, targets_met
from turbo_operator.status.transitions import transitions
from turbo_runtime.contract.documents import LatencyHistogram, Load

NOW = 1_700_000_000.0
FIRST = {"timeToFirstToken": {"max": "500ms", "percentile": 90}}
LOAD = Load(1, 0, 10, 0, 0.5, 1000, 0, 0, 0, 40, "bitwise", False)


def td(targets: dict[str, Any], old: TurboDeploymentStatus | None = None) -> TurboDeployment:
    return parse(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboDeployment",
            "metadata": {"name": "chat", "namespace": "team", "uid": "u", "generation": 3},
            "spec": {"model": {"uri": "pvc://models/chat"}, "targets": targets},
            "status": old.dump() if old else {},
        }
    )


def histogram(bounds: list[float], times: list[float]) -> LatencyHistogram:
    """As an engine with buckets up to these bounds, and one for the rest, would count."""
    edges = [0.0, *sorted(bounds), float("inf")]
    counts = [sum(low < seconds <= high for seconds in times) for low, high in pairwise(edges)]
    found = [(low, high, count) for (low, high), count in zip(pairwise(edges), counts, strict=True) if count]
    above, up_to, kept = zip(*found, strict=True) if found else ((), (), ())
    return LatencyHistogram(above, up_to, kept)


def pod(name: str = "p", at: float = NOW, rate: float | None = None, **load: Any) -> PodView:
    sample = LoadSample(at, replace(LOAD, **load), rate)
    return PodView(name, "v1", "Running", True, "10.0.0.1", None, None, load=sample)


def first_tokens(times: list[float], bounds: list[float] = [0.25, 0.5, 1.0]) -> LatencyHistogram:  # noqa: B006
    return histogram(bounds, times)


def state_of(
    it: TurboDeployment, looks: list[list[PodView]], seconds: float = 60.0
) -> tuple[ConditionState | None, TargetTracker]:
    """The condition after several looks, and what was counted."""
    tracker, now = TargetTracker(), NOW
    for number, pods in enumerate(looks):
        now = NOW + number * seconds
        tracker = tracker.update(it.spec.targets, pods, now)
    return targets_met(it, Snapshot({}, pods=tuple(looks[-1])), tracker, now), tracker


def told(it: TurboDeployment, times: list[float]) -> tuple[str, str]:
    none = first_tokens([])
    looks = [[pod(time_to_first_token=each)] for each in (none, first_tokens(times))]
    state, _ = state_of(it, looks)
    assert state is not None
    assert state.message.endswith(".")
    return state.status, str(state.reason)


@pytest.mark.parametrize(
    ("times", "state"),
    [
        ([0.1] * 90 + [0.9] * 10, ("True", "Met")),
        ([0.1] * 89 + [0.9] * 11, ("False", "FirstTokenMissed")),
        ([], ("Unknown", "NoTraffic")),
        ([0.1] * (MIN_REQUESTS - 1), ("Unknown", "InsufficientSamples")),
    ],
)
def test_a_target_is_met_where_its_share_of_requests_kept_it(times: list[float], state: Any) -> None:
    assert told(td(FIRST), times) == state


def test_a_target_within_a_wide_bucket_is_neither_met_nor_missed() -> None:
    it = td({"timeToFirstToken": {"max": "600ms", "percentile": 90}})
    assert told(it, [0.1] * 80 + [0.55] * 20) == ("Unknown", "Inconclusive")
    assert told(it, [0.1] * 90 + [0.55] * 10) == ("True", "Met")
    assert told(it, [0.1] * 80 + [1.5] * 20) == ("False", "FirstTokenMissed")


@given(
    st.lists(st.floats(0.001, 2.0), min_size=100, max_size=150),
    st.lists(st.floats(0.01, 2.0), unique=True, max_size=8),
    st.integers(10, 1900),
    st.sampled_from([50, 90, 95, 99]),
)
def test_what_is_said_is_true_of_the_requests_whatever_the_buckets(
    times: list[float], bounds: list[float], milliseconds: int, percentile: int
) -> None:
    target = {"max": f"{milliseconds}ms", "percentile": percentile}
    it = td({"timePerOutputToken": target})
    looks = [[pod(time_per_output_token=histogram(bounds, each))] for each in ([], times)]
    state, _ = state_of(it, looks)
    assert state is not None
    kept = sum(seconds <= milliseconds / 1000 for seconds in times)
    if state.status == "True":
        assert 100 * kept >= percentile * len(times)
    if state.status == "False":
        assert state.reason == "OutputTokenMissed"
        assert 100 * kept < percentile * len(times)
    if milliseconds / 1000 in bounds:
        assert state.status != "Unknown"


def test_requests_of_more_than_ten_minutes_ago_say_nothing() -> None:
    slow = first_tokens([0.9] * 50)
    looks = [[pod(time_to_first_token=first_tokens([]))], *[[pod(time_to_first_token=slow)]] * 11]
    (state, tracker), (soon, _) = state_of(td(FIRST), looks), state_of(td(FIRST), looks[:10])
    assert soon is not None
    assert soon.reason == "FirstTokenMissed"
    assert state is not None
    assert state.reason == "NoTraffic"
    assert not tracker.recent


def test_what_a_pod_did_before_it_was_first_seen_is_left_out_and_a_restart_counts_from_zero() -> None:
    slow, fast = first_tokens([0.9] * 500), first_tokens([0.1] * 50)
    state, tracker = state_of(td(FIRST), [[pod(time_to_first_token=slow)], [pod(time_to_first_token=fast)]])
    assert state is not None
    assert state.reason == "Met"
    assert tracker.overall[0].requests == 50


def test_other_targets_count_from_now_on() -> None:
    looks = [[pod(time_to_first_token=first_tokens([0.9] * count))] for count in (0, 50)]
    _, tracker = state_of(td(FIRST), looks)
    other = td({"timeToFirstToken": {"max": "1s"}})
    assert not tracker.update(other.spec.targets, looks[1], NOW).recent


def test_an_operator_that_starts_leaves_the_condition_as_it_was_until_it_knows_more() -> None:
    looks = [[pod(time_to_first_token=first_tokens([0.9] * count))] for count in (0, 50)]
    it = td(FIRST)
    state, tracker = state_of(it, looks)
    observed = Snapshot({}, pods=tuple(looks[1]))
    outcome = status.Outcome(autoscaler.scale(it.spec))
    old = status.compute(it, observed, outcome, NOW + 60, tracker=tracker)
    condition = old.condition(ConditionType.TARGETS_MET)
    assert condition is not None
    assert state is not None
    assert (
        (condition.status, condition.reason) == (state.status, state.reason) == ("False", "FirstTokenMissed")
    )
    again = td(FIRST, old)
    fresh = TargetTracker().update(again.spec.targets, looks[1], NOW + 120)
    kept = targets_met(again, observed, fresh, NOW + 120)
    assert kept == state
    later = targets_met(again, observed, fresh, NOW + 120 + WINDOW_SECONDS)
    assert later is not None
    assert later.reason == "NoTraffic"
    (event,) = transitions({}, {"conditions": [condition.dump()]})
    assert (event.is_warning, event.reason) == (True, "FirstTokenMissed")


def test_a_pod_that_reports_no_latencies_is_no_reason_to_say_anything() -> None:
    state, _ = state_of(td(FIRST), [[pod()], [pod()]])
    assert state is not None
    assert (state.status, state.reason) == ("Unknown", "MetricsMissing")
    none, _ = state_of(td(FIRST), [[]])
    assert none is not None
    assert (none.status, none.reason) == ("Unknown", "NoTraffic")
    nothing, _ = state_of(td({}), [[pod()]])
    assert nothing is None


@pytest.mark.parametrize(
    ("rate", "waiting", "state"),
    [
        (50.0, 3, ("False", "ThroughputMissed")),
        (50.0, 0, ("True", "Met")),
        (200.0, 3, ("True", "Met")),
        (None, 3, ("Unknown", "MetricsMissing")),
    ],
)
def test_throughput_is_missed_where_requests_wait_and_less_comes_out(
    rate: float | None, waiting: int, state: Any
) -> None:
    found, _ = state_of(td({"tokensPerSecond": "100"}), [[pod(rate=rate, waiting_requests=waiting)]])
    assert found is not None
    assert (found.status, found.reason) == state
