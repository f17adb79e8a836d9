"""Times of requests are counted in narrow buckets."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from turbo_runtime.contract.documents import LatencyHistogram
from turbo_runtime.server.latency import RATIO, LatencyCounter

TIMES = st.lists(st.floats(2e-4, 5e3), max_size=50)


def counted(times: list[float]) -> LatencyHistogram:
    counter = LatencyCounter()
    for seconds in times:
        counter.add(seconds)
    return counter.histogram()


@given(TIMES)
def test_each_time_is_counted_in_a_bucket_that_it_lies_in_and_that_is_a_tenth_wide(
    times: list[float],
) -> None:
    histogram = counted(times)
    buckets = list(zip(histogram.above, histogram.up_to, histogram.counts, strict=True))
    assert all(math.isclose(up_to, RATIO * above, rel_tol=1e-4) for above, up_to, _ in buckets)
    found: Counter[tuple[float, float]] = Counter()
    for seconds in times:
        near = [(a, b) for a, b, _ in buckets if a * (1 - 1e-5) <= seconds <= b * (1 + 1e-5)]
        assert near
        found[near[0]] += 1
    assert sum(found.values()) == sum(histogram.counts) == len(times)
    if not any(math.isclose(seconds, b, rel_tol=1e-4) for seconds in times for _, b, _ in buckets):
        assert found == {(a, b): count for a, b, count in buckets}


def test_what_no_clock_should_give_is_counted_at_the_ends() -> None:
    histogram = counted([-1.0, 0.0, math.inf])
    assert histogram.counts == (2, 1)
    assert histogram.up_to[0] < 1e-3 < 1e3 < histogram.up_to[1]
