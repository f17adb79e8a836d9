"""Silence is counted from the last beat, and only while the server itself is awake."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_runtime.server.engine_client import MAX_PERIOD_SECONDS, Watchdog

LIMITS = st.floats(1, 1e4)
PAUSES = st.floats(0, 1e5)  # between two looks: on time, late, or after a night of suspension
LOOKS = st.lists(st.tuples(st.booleans(), PAUSES), max_size=50)  # whether the engine beat, and the pause


def watch(limit: float, looks: list[tuple[bool, float]]) -> tuple[Watchdog, int, float]:
    """A watchdog that has looked, the engine's count and the time."""
    watchdog, count, now = Watchdog(limit), 0, 100.0
    watchdog.check(count, now)
    for beat, pause in looks:
        count, now = count + beat, now + pause
        watchdog.check(count, now)
    return watchdog, count, now


def test_an_engine_is_late_after_half_of_the_limit_and_given_up_after_all_of_it() -> None:
    watchdog = Watchdog(60.0)
    watchdog.check(1, 0.0)
    found = []
    for second in range(1, 61):
        watchdog.check(1, float(second))
        found.append((watchdog.silent_seconds, watchdog.is_late, watchdog.is_expired))
    assert found == [(float(second), second >= 30, second >= 60) for second in range(1, 61)]


@given(LIMITS, st.integers(0, 1 << 63), PAUSES)
def test_the_first_look_adds_nothing_however_long_loading_took(limit: float, count: int, now: float) -> None:
    watchdog = Watchdog(limit)
    watchdog.check(count, now)
    assert watchdog.silent_seconds == 0


@given(LIMITS, LOOKS, PAUSES)
def test_a_beat_ends_any_silence(limit: float, looks: list[tuple[bool, float]], pause: float) -> None:
    watchdog, count, now = watch(limit, looks)
    watchdog.check(count + 1, now + pause)
    assert (watchdog.silent_seconds, watchdog.is_late, watchdog.is_expired) == (0.0, False, False)


@given(LIMITS, LOOKS, PAUSES)
def test_a_server_that_was_stopped_adds_two_periods_and_gives_no_engine_up_that_was_not_late(
    limit: float, looks: list[tuple[bool, float]], pause: float
) -> None:
    watchdog, count, now = watch(limit, looks)
    before, late = watchdog.silent_seconds, watchdog.is_late
    watchdog.check(count, now + pause)
    assert watchdog.silent_seconds - before <= 2 * MAX_PERIOD_SECONDS + 1e-6
    assert late or not watchdog.is_expired


@given(LIMITS, LOOKS)
def test_silence_is_the_awake_time_since_the_last_beat_and_the_limit_is_reached_by_it_alone(
    limit: float, looks: list[tuple[bool, float]]
) -> None:
    watchdog, *_ = watch(limit, looks)
    last = max((place for place, (beat, _) in enumerate(looks) if beat), default=-1)
    awake = sum(min(pause, 2 * watchdog.period_seconds) for _, pause in looks[last + 1 :])
    assert watchdog.silent_seconds == pytest.approx(awake, abs=1e-6)
    assert watchdog.is_expired == (watchdog.silent_seconds >= limit)


@given(LIMITS)
def test_an_engine_that_says_nothing_more_reaches_the_limit_once_at_a_look_within_a_period(
    limit: float,
) -> None:
    watchdog, now, expired = Watchdog(limit), 0.0, list[bool]()
    watchdog.check(0, now)
    while now < limit + 3 * watchdog.period_seconds:
        now += watchdog.period_seconds
        watchdog.check(0, now)
        expired.append(watchdog.is_expired)
    assert expired == sorted(expired)  # never again below
    reached = (expired.index(True) + 1) * watchdog.period_seconds
    assert limit * (1 - 1e-6) <= reached <= limit * (1 + 1e-6) + watchdog.period_seconds
