"""Measured passes tell factors on the step-time model; the filter follows them and no outlier."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_operator.planner.performance import step_time
from turbo_operator.planner.performance.calibration import PATIENCE, Calibration, Filter, calibrate
from turbo_operator.planner.performance.step_time import Coefficients, ForwardCost, Machine
from turbo_runtime.contract.documents import StepTime

MACHINE = Machine(3.35e12, 989e12, 989e12, 989e12, math.inf, 1.0, Coefficients())
WORK = ForwardCost(15e9, 0.0, 15e9, 0.0, 4.0 * 32 * 4096, 131072.0, 32 * 4096 * 2.0, 32.0, 0.0, 0.0, 0.0)
factors = st.floats(0.2, 5.0)


def decodes(rows: int, context: int, factor: float, drafts: int = 0) -> StepTime:
    seconds = float(step_time.decode_seconds(MACHINE, WORK, float(rows), float(drafts), float(context)))
    return StepTime(rows=rows, tokens=1 + drafts, context=context, seconds=factor * seconds)


def reads(tokens: int, factor: float) -> StepTime:
    seconds = float(step_time.prefill_seconds(MACHINE, WORK, float(tokens)))
    return StepTime(rows=1, tokens=tokens, context=0, seconds=factor * seconds)


@given(factors, factors, st.integers(1, 64), st.integers(0, 8), st.integers(64, 4096))
def test_passes_that_take_a_factor_of_what_is_predicted_tell_that_factor(
    decode: float, prefill: float, rows: int, drafts: int, tokens: int
) -> None:
    points = (decodes(1, 512, decode), decodes(rows, 512, decode, drafts), reads(tokens, prefill))
    actual = calibrate(points, MACHINE, WORK)
    assert actual is not None
    assert actual.decode == pytest.approx(decode)
    assert actual.prefill == pytest.approx(prefill)


@given(factors, factors)
def test_points_that_disagree_tell_their_geometric_mean(one: float, other: float) -> None:
    actual = calibrate((decodes(1, 512, one), decodes(16, 512, other), reads(512, 1.0)), MACHINE, WORK)
    assert actual is not None
    assert actual.decode == pytest.approx(math.sqrt(one * other))


def test_more_points_of_one_kind_weigh_no_more_than_one() -> None:
    plain, several = decodes(1, 512, 1.5), decodes(8, 512, 1.2)
    few = calibrate((plain, decodes(1, 512, 2.0, 16), several), MACHINE, WORK)
    drafting = [decodes(1, 512, 2.0, count) for count in (5, 6, 8, 11, 16)]
    many = calibrate((plain, *drafting, several), MACHINE, WORK)
    assert few is not None
    assert many is not None
    assert many.decode == pytest.approx(few.decode)


@given(factors)
def test_one_kind_of_pass_speaks_for_the_other(factor: float) -> None:
    expected = pytest.approx(factor)
    assert calibrate((decodes(4, 512, factor),), MACHINE, WORK) == Calibration(expected, expected)
    assert calibrate((reads(512, factor),), MACHINE, WORK) == Calibration(expected, expected)


def test_nothing_measured_tells_nothing() -> None:
    assert calibrate((), MACHINE, WORK) is None
    assert calibrate((StepTime(rows=1, tokens=1, context=8, seconds=0.0),), MACHINE, WORK) is None


@given(st.floats(0.5, 2.0))
def test_the_filter_comes_to_a_factor_that_stays(factor: float) -> None:
    known = Filter()
    for minute in range(1, 60):
        known = known.update(factor, 1.0, 60.0 * minute)
    assert math.exp(known.logarithm) == pytest.approx(factor, rel=0.05)


@given(st.floats(0.5, 2.0), st.floats(0.1, 10.0), st.floats(0.0, 900.0))
def test_a_measurement_moves_what_is_known_towards_it_and_never_beyond(
    first: float, second: float, later: float
) -> None:
    before = Filter().update(first, 1.0, 60.0)
    after = before.update(second, 1.0, 60.0 + later)
    low, high = sorted((before.logarithm, math.log(second)))
    assert low - 1e-9 <= after.logarithm <= high + 1e-9


@given(st.floats(3.0, 100.0), st.booleans())
def test_outliers_change_nothing_until_so_many_follow_each_other(size: float, above: bool) -> None:
    known = Filter()
    for minute in range(1, 30):
        known = known.update(1.0, 1.0, 60.0 * minute)
    outlier = size if above else 1.0 / size
    gated = known
    for second in range(PATIENCE - 1):
        gated = gated.update(outlier, 1.0, 1800.0 + second)
        assert gated.logarithm == known.logarithm
    assert gated.update(1.0, 1.0, 1810.0).outliers == 0
    assert math.exp(gated.update(outlier, 1.0, 1810.0).logarithm) == pytest.approx(outlier)


@given(st.lists(st.floats(0.8, 1.25), min_size=1, max_size=30))
def test_what_is_known_is_the_surer_the_more_is_measured(ratios: list[float]) -> None:
    known = Filter()
    for ratio in ratios:
        after = known.update(ratio, 1.0, 60.0)
        assert after.variance < known.variance
        known = after
