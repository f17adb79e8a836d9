"""The cheapest mixture against every mixture."""

from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_operator.planner.solver import ReplicaOption, find_cheapest

kinds = st.builds(
    ReplicaOption,
    st.just("kind"),
    st.integers(0, 12).map(lambda tenths: tenths / 4),
    st.integers(0, 30).map(float),
    st.integers(0, 7),
)


def brute_force(offered: list[ReplicaOption], demand: float) -> float:
    """The price of the cheapest of all mixtures; inf where none serves the demand."""
    best = math.inf
    for counts in product(*(range(kind.max_replicas + 1) for kind in offered)):
        if sum(number * kind.serves for number, kind in zip(counts, offered, strict=True)) >= demand - 1e-9:
            best = min(best, sum(number * kind.price for number, kind in zip(counts, offered, strict=True)))
    return best


@given(st.lists(kinds, min_size=2, max_size=3), st.integers(1, 60).map(lambda tenths: tenths / 4))
def test_the_mixture_is_the_cheapest_of_all(offered: list[ReplicaOption], demand: float) -> None:
    actual = find_cheapest(offered, demand)
    best = brute_force(offered, demand)
    if actual is None:
        assert best == math.inf
        return
    assert all(0 <= number <= kind.max_replicas for number, kind in zip(actual, offered, strict=True))
    assert sum(number * kind.serves for number, kind in zip(actual, offered, strict=True)) >= demand - 1e-6
    assert sum(number * kind.price for number, kind in zip(actual, offered, strict=True)) == pytest.approx(
        best
    )


@given(st.lists(kinds, min_size=2, max_size=3), st.integers(1, 60).map(float), st.integers(0, 200).map(float))
def test_only_what_costs_less_is_found(offered: list[ReplicaOption], demand: float, below: float) -> None:
    actual = find_cheapest(offered, demand, below)
    best = brute_force(offered, demand)
    assert (actual is None) == (best >= below)


def test_two_kinds_together_can_beat_each_alone() -> None:
    offered = [ReplicaOption("large", 10.0, 8.0, 9), ReplicaOption("little", 2.0, 2.0, 9)]
    assert find_cheapest(offered, 12.0) == (1, 1)  # 10: two large cost 16, six little 12
