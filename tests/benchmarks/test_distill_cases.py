"""What `make bench NAME=distill` makes of its runs."""

from __future__ import annotations

import pytest
from distillation.cases import Case, same

from turbo_runtime.distill.evaluation.speedup_benchmark import Run

FIRST = [
    Run("none", 0, ((1, 2), (3, 4)), 4.0, 0, 0),
    Run("memory", 0, ((1, 2), (3, 4)), 3.0, 1, 1),
    Run("heads", 0, ((1, 2), (3, 4)), 2.0, 2, 1),
]
MORE = [Run("none", 0, ((5,),), 2.0, 0, 0), Run("heads", 0, ((5,),), 0.5, 1, 1)]
TOLD = frozenset({(1, 2), (3, 4), (5,)})


def case(found: list[Run]) -> Case:
    return Case("json", 0.0, 1, whole=False, found=found, same=same(found, TOLD))


def test_answers_that_were_seen_are_joined_by_time_for_the_ways_that_both_have() -> None:
    whole = case(FIRST).joined(MORE, same(MORE, TOLD))
    assert case(FIRST).ratios() == [pytest.approx(2.0)]
    assert (whole.whole, [run.way for run in whole.found]) == (True, ["none", "heads"])
    assert whole.ratios() == [pytest.approx((5 / 2.5) / (5 / 6.0))]
    assert whole.found[1] == Run("heads", 0, ((1, 2), (3, 4), (5,)), 2.5, 3, 2)
    assert whole.same == [True]  # the others were compared before


def test_what_heads_add_to_memory_is_told_where_both_were_run() -> None:
    assert case(FIRST).ratios("heads", "memory") == [pytest.approx(1.5)]
    assert case(FIRST).joined(MORE, []).ratios("heads", "memory") == []


def test_an_answer_that_is_not_the_one_without_drafts_is_counted() -> None:
    assert same(FIRST, TOLD) == [True] * 4
    assert same([*FIRST[:2], Run("heads", 0, ((1, 2), (3, 5)), 2.0, 2, 1)], TOLD).count(False) == 1
    assert same(FIRST, TOLD - {(3, 4)}).count(False) == 2  # both ways with drafts
