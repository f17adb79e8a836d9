"""The load of a Deployment, from the counters of its pods: of the busiest ten minutes, whatever restarts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_operator.reference import (
    MEMORY_SECONDS,
    MIN_REQUESTS,
    MIN_SECONDS,
    WINDOW_SECONDS,
    Counters,
    LoadTracker,
    MeasuredLoad,
)

NOW = 1_700_000_000.0
STEP = 15.0


def follow(
    tracker: LoadTracker, rates: list[float], start: float = NOW, done: int = 0, name: str = "p"
) -> tuple[float, int]:
    """Look every 15 s at a pod that ends requests of 300 and 40 tokens; when that ended, and their number."""
    now, total = start, float(done)
    tracker.add(now, {name: Counters(int(total), int(total) * 300, int(total) * 40)}, [name])
    for rate in rates:
        now, total = now + STEP, total + rate * STEP
        tracker.add(now, {name: Counters(int(total), int(total) * 300, int(total) * 40)}, [name])
    return now, int(total)


def test_a_load_is_known_after_a_minute_and_by_enough_requests() -> None:
    tracker = LoadTracker()
    follow(tracker, [2.0] * int(MIN_SECONDS / STEP - 1))
    assert tracker.busiest is None
    follow(slow := LoadTracker(), [0.1] * 4)
    assert MIN_REQUESTS > 0.1 * 60
    assert slow.busiest is None
    follow(tracker := LoadTracker(), [2.0] * 4)
    assert tracker.busiest == MeasuredLoad(2.0, 300.0, 40.0, NOW + 60.0)


def test_what_pods_did_before_they_were_seen_does_not_count() -> None:
    tracker = LoadTracker()
    follow(tracker, [1.0] * 8, done=1_000_000)
    assert tracker.busiest is not None
    assert tracker.busiest.requests_per_second == pytest.approx(1.0)


def test_the_busiest_ten_minutes_of_a_day_count_and_are_forgotten_after_it() -> None:
    tracker = LoadTracker()
    steps = int(WINDOW_SECONDS / STEP)
    now, done = follow(tracker, [1.0] * steps)
    now, done = follow(tracker, [5.0] * steps, now, done)
    peak = tracker.busiest
    assert peak is not None
    assert peak.requests_per_second == pytest.approx(5.0)
    now, done = follow(tracker, [1.0] * (2 * steps), now, done)
    assert tracker.busiest == peak
    now, _ = follow(tracker, [1.0] * int((MEMORY_SECONDS + WINDOW_SECONDS) / STEP), now, done)
    assert tracker.busiest.requests_per_second == pytest.approx(1.0)


def test_a_burst_of_a_minute_is_no_busy_ten_minutes() -> None:
    tracker = LoadTracker()
    steps = int(WINDOW_SECONDS / STEP)
    follow(tracker, [1.0] * steps + [20.0] * 4 + [1.0] * steps)
    assert tracker.busiest is not None
    assert tracker.busiest.requests_per_second == pytest.approx((20 * 60 + 540) / 600)


def test_a_start_of_the_operator_remembers_what_the_status_tells() -> None:
    told = MeasuredLoad(9.0, 100.0, 10.0, NOW - 3600)
    tracker = LoadTracker(told)
    follow(tracker, [1.0] * 8)
    assert tracker.busiest == told
    follow(old := LoadTracker(told._replace(time=NOW - MEMORY_SECONDS - 1)), [1.0] * 8)
    assert old.busiest is not None
    assert old.busiest.requests_per_second == pytest.approx(1.0)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 50), st.booleans()), min_size=1, max_size=60)
)
def test_requests_are_counted_once_whatever_restarts_and_is_silent(
    history: list[tuple[str, int, bool]],
) -> None:
    """Of pods a, b and c one looks again at each step, after so many requests, and perhaps a restart."""
    tracker, counts = LoadTracker(), dict.fromkeys("abc", 0)
    tracker.add(NOW, {name: Counters() for name in counts}, counts)
    seen = 0
    for step, (name, requests, restarts) in enumerate(history, start=1):
        counts[name] = requests if restarts and requests < counts[name] else counts[name] + requests
        seen += requests
        tracker.add(NOW + step, {name: Counters(counts[name])}, counts)
    assert tracker.add(NOW + 100.0, {}, counts) is None
    rate = 0.0 if tracker.busiest is None else tracker.busiest.requests_per_second
    assert rate == pytest.approx(seen / 100.0 if seen >= MIN_REQUESTS else 0.0)
