"""What `make bench NAME=distill` makes of its runs."""

from __future__ import annotations

import pytest
from distill import Case

from turbo_runtime.distill.gain import Run

FIRST = [
    Run("none", 0, ((1, 2), (3, 4)), 4.0, 0, 0),
    Run("memory", 0, ((1, 2), (3, 4)), 3.0, 1, 1),
    Run("heads", 0, ((1, 2), (3, 4)), 2.0, 2, 1),
]
MORE = [Run("none", 0, ((5,),), 2.0, 0, 0), Run("heads", 0, ((5,),), 0.5, 1, 1)]


def test_answers_that_were_seen_are_joined_by_time_for_the_ways_that_both_have() -> None:
    case = Case("json", 0.0, 1, whole=False, found=FIRST)
    whole = case.joined(MORE)
    assert case.ratios() == [pytest.approx(2.0)]
    assert (whole.whole, [run.way for run in whole.found]) == (True, ["none", "heads"])
    assert whole.ratios() == [pytest.approx((5 / 2.5) / (5 / 6.0))]
    assert whole.found[1] == Run("heads", 0, ((1, 2), (3, 4), (5,)), 2.5, 3, 2)


def test_an_answer_that_is_not_the_one_without_drafts_is_counted() -> None:
    assert Case("json", 0.0, 1, whole=False, found=FIRST).differing == 0
    other = [*FIRST[:2], Run("heads", 0, ((1, 2), (3, 5)), 2.0, 2, 1)]
    assert Case("json", 0.0, 1, whole=False, found=other).differing == 1
