"""The suffix drafter continues what was said before, in bounded memory, and makes nothing out of nothing."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from turbo_runtime.drafters.automaton import SuffixAutomaton
from turbo_runtime.drafters.suffix import SuffixDrafter

texts = st.lists(st.integers(0, 3), max_size=40)


def test_what_followed_the_same_words_in_the_request_is_proposed() -> None:
    drafter = SuffixDrafter()
    assert drafter.propose("a", [1, 2, 3, 4, 5, 9, 8, 1, 2, 3], 4)[:2] == [4, 5]


def test_what_another_request_was_answered_is_proposed() -> None:
    drafter = SuffixDrafter()
    drafter.observe("old", [50, 51, 1, 2, 3, 4, 5, 6], prompt_length=2)
    assert drafter.propose("new", [60, 61, 1, 2], 3) == [3, 4, 5]


def test_nothing_is_proposed_where_nothing_matches_and_never_more_than_asked_for() -> None:
    drafter = SuffixDrafter()
    assert drafter.propose("a", [1, 2, 3], 8) == []
    drafter.observe("a", [0, *([1, 2, 3] * 20)], prompt_length=1)
    for limit in range(6):
        assert len(drafter.propose("b", [9, 1, 2, 3, 1, 2], limit)) <= limit


@given(st.lists(st.tuples(texts, texts), max_size=6), texts.filter(bool), st.integers(0, 8))
def test_every_proposed_token_was_heard_right_behind_the_one_before_it(
    past: list[tuple[list[int], list[int]]], context: list[int], limit: int
) -> None:
    drafter = SuffixDrafter()
    heard = [context]
    for number, (prompt, answer) in enumerate(past):
        drafter.observe(str(number), prompt + answer, len(prompt))
        heard.append(prompt[-8:] + answer)
    proposed = drafter.propose("now", context, limit)
    assert len(proposed) <= limit
    seen = {pair for text in heard for pair in itertools.pairwise(text)}
    assert set(itertools.pairwise([context[-1], *proposed])) <= seen


@given(texts)
def test_the_automaton_knows_exactly_the_substrings(text: list[int]) -> None:
    automaton = SuffixAutomaton()
    for token in text:
        automaton.append(token)
    substrings = {tuple(text[i:j]) for i in range(len(text)) for j in range(i, len(text) + 1)}
    for start in range(len(text)):
        state = 0
        for end in range(start, len(text)):
            assert text[end] in automaton._next[state]
            state = automaton._next[state][text[end]]
    walks = {()}
    frontier: list[tuple[tuple[int, ...], int]] = [((), 0)]
    while frontier:
        word, state = frontier.pop()
        for token, target in automaton._next[state].items():
            walks.add((*word, token))
            frontier.append(((*word, token), target))
        assert len(walks) <= len(substrings) + 1
    assert walks == substrings | {()}


def test_memory_is_bounded_and_the_newest_answers_stay() -> None:
    drafter = SuffixDrafter(recent_tokens=200)
    for number in range(100):
        drafter.observe(str(number), [0, *range(number * 1000, number * 1000 + 50)], prompt_length=1)
    kept = sum(len(automaton) for automaton in drafter._generations.values())
    assert len(drafter._generations) <= 2
    assert kept <= 2 * (200 + 51 + 8)
    assert drafter.propose("now", [7, 99_000, 99_001, 99_002], 2) == [99_003, 99_004]
    assert drafter.propose("then", [7, 1000, 1001, 1002], 2) == []


def test_a_finished_request_leaves_no_context_behind() -> None:
    drafter = SuffixDrafter()
    drafter.propose("a", [1, 2, 1, 2], 2)
    drafter.observe("a", [1, 2, 1, 2], prompt_length=2)
    assert drafter._contexts == {}
