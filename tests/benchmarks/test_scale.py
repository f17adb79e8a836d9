"""What `control_plane` reads, and what its emulator reports."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scale.emulator import IDLE, report
from scale.seen import percentile, quantile

from turbo_runtime.contract.documents import Load

BOUNDS = (0.1, 1.0, math.inf)


def buckets(*counts: float) -> dict[float, float]:
    return dict(zip(BOUNDS, counts, strict=True))


def test_a_quantile_is_the_bound_of_its_bucket_of_what_happened_in_between() -> None:
    before = buckets(1000, 1000, 1000)
    assert quantile(before, buckets(1099, 1100, 1100), 0.99) == 0.1
    assert quantile(before, buckets(1098, 1100, 1100), 0.99) == 1.0
    assert quantile(before, buckets(1000, 1000, 1001), 0.99) == math.inf
    assert quantile(before, before, 0.99) == 0.0
    assert quantile({}, buckets(99, 100, 100), 0.5) == 0.1


@given(st.lists(st.floats(0, 100), min_size=1), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_a_percentile_is_one_of_the_values_that_enough_are_at_most(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)


@pytest.mark.parametrize("seconds", [0.0, 7.0, 60.0, 100_000.0])
def test_emulated_pods_report_what_the_operator_reads(seconds: float) -> None:
    busy = report("127.32.0.7", seconds, is_busy=True)
    assert Load.from_json(busy.to_json()) == busy
    assert 0 < busy.running_requests <= 16
    assert report("127.32.0.7", seconds, is_busy=False) == IDLE
