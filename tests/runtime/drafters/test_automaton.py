"""The automaton knows the substrings of what it was told, how often each occurred, and its own size."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_runtime.drafters.automaton import ROOT, Cursor, SuffixAutomaton

texts = st.lists(st.lists(st.integers(0, 3), max_size=30), max_size=4)


def told(*parts: Sequence[int]) -> SuffixAutomaton:
    automaton = SuffixAutomaton()
    for part in parts:
        automaton.separate()
        for token in part:
            automaton.append(token)
    return automaton


def occurrences(parts: Sequence[Sequence[int]], word: Sequence[int]) -> int:
    size = len(word)
    return sum(list(p[i : i + size]) == list(word) for p in parts for i in range(len(p) - size + 1))


@given(texts)
def test_a_walk_from_the_root_exists_exactly_for_the_substrings(parts: list[list[int]]) -> None:
    automaton = told(*parts)
    substrings = {tuple(p[i:j]) for p in parts for i in range(len(p)) for j in range(i, len(p) + 1)} | {()}
    walks: set[tuple[int, ...]] = {()}
    frontier: list[tuple[tuple[int, ...], int]] = [((), ROOT)]
    while frontier:
        word, state = frontier.pop()
        for token in range(4):
            target = automaton.follow(state, token)
            if target >= 0:
                walks.add((*word, token))
                frontier.append(((*word, token), target))
        assert len(walks) <= len(substrings)
    assert walks == substrings


@given(texts, st.lists(st.integers(0, 3), max_size=12))
def test_a_cursor_stands_at_the_longest_end_of_the_context_that_occurred(
    parts: list[list[int]], context: list[int]
) -> None:
    cursor = reduce(told(*parts).advance, context, Cursor())
    ends = [context[len(context) - size :] for size in range(len(context) + 1)]
    assert cursor.length == max(len(end) for end in ends if not end or occurrences(parts, end))


@given(texts, st.lists(st.integers(0, 3), min_size=1, max_size=3))
def test_counts_and_what_followed_are_those_of_the_text(parts: list[list[int]], word: list[int]) -> None:
    automaton = told(*parts)
    cursor = reduce(automaton.advance, word, Cursor())
    if cursor.length < len(word):
        return
    followed = [occurrences(parts, [*word, token]) for token in range(4)]
    found, total = automaton.followers(cursor)
    assert dict(found) == {token: count for token, count in enumerate(followed) if count}
    assert [count for _, count in found] == sorted(followed, reverse=True)[: len(found)]
    assert total == occurrences(parts, word)


def test_of_many_followers_the_most_frequent_are_told_and_of_equals_the_newest() -> None:
    automaton = told(*[[99, token] for token in [*range(20), *range(15, 9, -1), 12]])
    found, total = automaton.followers(automaton.advance(Cursor(), 99))
    assert found == [(12, 3), (15, 2), (14, 2), (13, 2), (11, 2), (10, 2), (19, 1), (18, 1)]
    assert total == 27


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_the_repeat_is_the_longest_end_of_the_text_that_occurred_before(text: list[int]) -> None:
    cursor = told(text).repeat()
    sizes = [s for s in range(len(text)) if s == 0 or occurrences([text], text[-s:]) > 1]
    assert cursor.length == max(sizes)


def test_a_cursor_set_before_its_state_was_split_still_stands_at_its_own_match() -> None:
    automaton = told([1, 2, 3])
    cursor = automaton.advance(Cursor(), 2)
    automaton.separate()
    for token in [9, 2, 7, 2, 7]:
        automaton.append(token)
    assert automaton.followers(cursor) == ([(7, 2), (3, 1)], 3)


# Alone in a process: tracing while another thread allocates, as those of other fixtures do, may crash Python.
MEASURE = """
import random, sys, tracemalloc
from turbo_runtime.drafters.automaton import SuffixAutomaton

vocabulary = int(sys.argv[1])
draw = random.Random(0)
text = [draw.randrange(vocabulary) for _ in range(20_000)]
tracemalloc.start()
automaton = SuffixAutomaton()
automaton.separate()
for token in text:
    automaton.append(token)
print(tracemalloc.get_traced_memory()[0], automaton.num_bytes)
"""


@pytest.mark.parametrize("vocabulary", [2, 30, 1000, 50_000])
def test_the_stated_memory_is_an_upper_bound_that_is_not_far_off(vocabulary: int) -> None:
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, str(vocabulary)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    taken, stated = map(int, measured.stdout.split())
    assert taken <= stated <= 2.5 * taken
