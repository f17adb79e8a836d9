"""A canary's verdict rests on more than chance: what differs by no more than its own noise is no better."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_dev.canaries import NEW, NOW, OLD, TRY, WITH_OLD, look, seen
from turbo_dev.loads import load, pod
from turbo_operator.api import CanaryReason
from turbo_operator.drafts.canary import CanaryVerdict
from turbo_operator.drafts.speedup import MIN_INCREMENTS, RatioStats, SpeedupTracker

increments = st.lists(
    st.tuples(st.floats(0.1, 100.0), st.floats(0.1, 100.0)), min_size=MIN_INCREMENTS, max_size=30
)


def summed(rows: list[tuple[float, float]]) -> RatioStats:
    stats = RatioStats()
    for upper, lower in rows:
        stats = stats.add(upper, lower)
    return stats


@given(increments)
def test_the_error_of_a_ratio_is_that_of_its_residuals(rows: list[tuple[float, float]]) -> None:
    upper, lower = np.array(rows).T
    residuals = upper - upper.sum() / lower.sum() * lower
    count = len(rows)
    expected = np.sqrt(count / (count - 1) * (residuals**2).sum()) / upper.sum()
    assert summed(rows).relative_error == pytest.approx(expected, rel=1e-3, abs=1e-6)


@given(st.floats(0.1, 10.0), st.lists(st.floats(0.1, 100.0), min_size=MIN_INCREMENTS, max_size=20))
def test_what_never_varies_has_no_error(ratio: float, lowers: list[float]) -> None:
    assert summed([(ratio * lower, lower) for lower in lowers]).relative_error == pytest.approx(0, abs=1e-6)


def test_too_few_increments_tell_of_no_error_and_empty_ones_are_none() -> None:
    rows = [(1.0, 1.0), (9.0, 1.0), (0.0, 0.0)]
    assert summed(rows).count == 2
    assert summed(rows).relative_error == 0.0


def verdict_of(new: float, old: float, noise: float, seed: int, looks: int = 200) -> CanaryVerdict:
    """What becomes of a draft of that speedup beside another one, on a machine whose time varies so."""
    dice, speedups, verdict = random.Random(seed), SpeedupTracker(), None
    done = {"t": [0.0, 0.0], "a": [500.0, 800.0]}
    for number in range(looks):
        for name, speedup in (("t", new), ("a", old)):
            seconds = 5.0 * dice.lognormvariate(0.0, noise)
            done[name] = [done[name][0] + seconds, done[name][1] + 5.0 * speedup]
        reported = load(*done["t"], draft_version=NEW.version, audits=3)
        stable = load(*done["a"], draft_version=OLD.version)
        pods = [pod("a", stable), pod("t", reported, variant=TRY)]
        speedups, verdict = look(WITH_OLD, seen(*pods), speedups, NOW + 15.0 * number)
        assert verdict is not None
        if verdict.is_over:
            break
    assert verdict is not None
    return verdict


def test_a_draft_that_is_no_better_is_hardly_ever_promoted_however_noisy_the_machine() -> None:
    """Found on a busy machine: one at 0.98 beside another one that was measured at 0.89 was promoted."""
    reasons = Counter(verdict_of(1.0, 1.0, 0.4, seed).reason for seed in range(100))
    assert reasons.total() == reasons[CanaryReason.PROMOTED] + reasons[CanaryReason.NO_IMPROVEMENT]
    assert reasons[CanaryReason.PROMOTED] <= 15


def test_a_draft_that_is_much_better_is_promoted_however_noisy_the_machine() -> None:
    reasons = Counter(verdict_of(1.5, 1.0, 0.4, seed).reason for seed in range(100))
    assert reasons[CanaryReason.PROMOTED] >= 90


def test_on_a_quiet_machine_a_small_gain_is_enough_and_is_seen_at_once() -> None:
    assert verdict_of(1.06, 1.0, 0.001, 0, looks=50).reason == CanaryReason.PROMOTED
    assert verdict_of(1.0, 1.0, 0.001, 0, looks=50).reason == CanaryReason.NO_IMPROVEMENT


def test_what_is_not_told_from_chance_is_said_and_ends() -> None:
    waiting = verdict_of(1.1, 1.0, 0.5, 0, looks=40)
    assert (waiting.reason, "may still be chance" in waiting.detail) == (CanaryReason.EVALUATING, True)
    ended = verdict_of(1.1, 1.0, 0.5, 0)
    assert ended.is_over
