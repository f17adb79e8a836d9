"""An answer that says one thing over and over is found; a list or a table is not taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_runtime.distill.data.responses import is_looping


@given(st.lists(st.integers(0, 9), max_size=30), st.lists(st.integers(0, 9), min_size=1, max_size=12))
def test_an_end_that_comes_three_times_over_24_tokens_loops(begin: list[int], again: list[int]) -> None:
    times = max(3, -(-24 // len(again)))
    assert is_looping(begin + again * times)


@pytest.mark.parametrize("tokens", [[], [1], list(range(200)), [1, 2] * 8, [5] * 20, list(range(40)) * 2])
def test_short_repeats_and_two_of_a_kind_do_not(tokens: list[int]) -> None:
    assert not is_looping(tokens)
