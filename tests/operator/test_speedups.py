"""Gains are counted from what pods say of their own seconds, and lose nothing when a pod starts anew."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from turbo_dev.loads import load, pod
from turbo_operator.drafts.speedup import WINDOW_SECONDS, CanaryRun, GenerationStats, SpeedupTracker

WARM = 20.0


def test_the_gain_is_of_what_pods_did_since_they_were_first_heard() -> None:
    speedups = SpeedupTracker().update([pod("a", load(1000.0, 9000.0))], 0.0, WARM)
    assert speedups.overall is None
    speedups = speedups.update([pod("a", load(1040.0, 9080.0))], 60.0, WARM)
    assert speedups.overall == 2.0
    speedups = speedups.update([pod("a", load(1060.0, 9140.0)), pod("b", load(5.0, 5.0))], 120.0, WARM)
    assert speedups.overall == 140 / 60


def test_what_is_older_than_the_window_does_not_count() -> None:
    speedups = SpeedupTracker().update([pod("a", load(0.0, 0.0))], 0.0, WARM)
    speedups = speedups.update([pod("a", load(20.0, 100.0))], 1.0, WARM)
    speedups = speedups.update([pod("a", load(40.0, 120.0))], 1.0 + WINDOW_SECONDS, WARM)
    assert speedups.overall == 1.0


def test_a_pod_that_started_anew_counts_from_nothing_and_one_that_is_silent_loses_nothing() -> None:
    speedups = SpeedupTracker().update([pod("a", load(100.0, 100.0))], 0.0, WARM)
    speedups = speedups.update([pod("a", load(30.0, 90.0))], 60.0, WARM)
    assert speedups.overall == 3.0
    silent = replace(pod("a", load(0.0, 0.0)), load=None)
    speedups = speedups.update([silent], 120.0, WARM).update([pod("a", load(60.0, 120.0))], 180.0, WARM)
    assert speedups.overall == (90 + 30) / 60


def test_a_runtime_that_tells_no_seconds_counts_for_nothing() -> None:
    old = replace(load(1.0, 1.0), generation_seconds=None)
    speedups = SpeedupTracker().update([pod("a", old)], 0.0, WARM)
    assert speedups.update([pod("a", old)], 60.0, WARM).overall is None


def test_a_trial_counts_both_sides_from_when_its_pod_is_warm() -> None:
    speedups = SpeedupTracker(run=CanaryRun("v1try", 0.0, began=0.0))
    stable, trying = pod("a", load(100.0, 100.0)), pod("t", load(5.0, 5.0), variant="v1try")
    speedups = speedups.update([stable, trying], 0.0, WARM)
    for now, (seconds, plain) in enumerate(((25.0, 25.0), (45.0, 85.0)), 1):
        stable = pod("a", load(100.0 + 30.0 * now, 100.0 + 60.0 * now))
        trying = pod("t", load(seconds, plain), "v1try")
        speedups = speedups.update([stable, trying], 30.0 * now, WARM)
    assert speedups.run is not None
    assert speedups.run.warmup == GenerationStats(
        25.0, 25.0
    )  # its whole life: it has had the draft from its start
    assert speedups.run.canary == GenerationStats(20.0, 60.0)
    assert speedups.run.baseline == GenerationStats(30.0, 60.0)


@given(
    st.lists(st.tuples(st.floats(0.0, 50.0), st.floats(0.0, 100.0), st.booleans()), min_size=1, max_size=12)
)
def test_whatever_pods_say_the_seconds_counted_are_those_that_passed(
    steps: list[tuple[float, float, bool]],
) -> None:
    speedups = SpeedupTracker().update([pod("a", load(0.0, 0.0))], 0.0, WARM)
    at = plain = all_seconds = all_plain = 0.0
    for number, (more, more_plain, anew) in enumerate(steps):
        if anew and more < at:  # a process that has already done more than before cannot be told apart
            at = plain = 0.0
        elif anew:
            continue
        at, plain = at + more, plain + more_plain
        all_seconds, all_plain = all_seconds + more, all_plain + more_plain
        speedups = speedups.update([pod("a", load(at, plain))], number * 1.0, WARM)
    counted = sum((each for _, each in speedups.recent), GenerationStats())
    assert abs(counted.seconds - all_seconds) < 1e-6
    assert abs(counted.plain_seconds - all_plain) < 1e-6
