"""The suffix drafter continues what was said before, in bounded memory, and makes nothing out of nothing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from turbo_runtime.drafters.draft import Coupling, Draft, Want
from turbo_runtime.drafters.hybrid import propose
from turbo_runtime.drafters.memory import Memory
from turbo_runtime.drafters.suffix import REQUEST_TOKENS, Suffix

texts = st.lists(st.integers(0, 3), max_size=40)


def draft(
    suffix: Suffix, tokens: Sequence[int], limit: int = 8, *, request: str = "now", tenant: str = ""
) -> Draft:
    (found,) = propose([suffix], [Want(request, tokens, len(tokens), limit, tenant, Coupling(0, 0.0))])
    return found


def test_what_followed_the_same_words_in_the_request_is_proposed() -> None:
    assert draft(Suffix(), [1, 2, 3, 4, 5, 9, 8, 1, 2, 3], 2).tokens == (4, 5)


def test_what_another_request_of_the_tenant_was_answered_is_proposed() -> None:
    suffix = Suffix()
    suffix.finish("old", [50, 51, 1, 2, 3, 4, 5, 6], 2, "")
    assert draft(suffix, [60, 61, 1, 2], 3).tokens == (3, 4, 5)


def test_what_another_tenant_was_answered_is_proposed_to_nobody_else() -> None:
    suffix = Suffix()
    suffix.finish("old", [50, 51, 1, 2, 3, 4, 5, 6], 2, "theirs")
    assert draft(suffix, [60, 61, 1, 2], tenant="ours").tokens == ()
    assert draft(suffix, [60, 61, 1, 2], 3, request="other", tenant="theirs").tokens == (3, 4, 5)


def test_a_draft_goes_on_from_recent_answers_into_the_request_itself() -> None:
    suffix = Suffix()
    suffix.finish("old", [50, 1, 2, 3, 4, 70, 71], 1, "")
    assert draft(suffix, [4, 60, 61, 62, 9, 1, 2], 5).tokens[:2] == (3, 4)
    suffix.finish("older", [50, 1, 2, 3, 4], 1, "")
    assert 60 in draft(suffix, [7, 3, 4, 60, 61, 62, 9, 1, 2], 5, request="next").tokens


def test_nothing_is_proposed_where_nothing_matches() -> None:
    assert draft(Suffix(), [1, 2, 3]).tokens == ()


def test_a_request_is_followed_as_it_grows() -> None:
    suffix = Suffix()
    answer = [5, 6, 7, 8, 1, 2, 3, 4]
    tokens = [1, 2, 3, 4, *answer, 9]
    for length in range(3, len(tokens)):
        draft(suffix, tokens[:length])
    assert draft(suffix, [*tokens, 5, 6], 2).tokens == (7, 8)


def test_a_long_prompt_is_read_in_several_steps_and_known_in_the_end() -> None:
    suffix = Suffix()
    prompt = [*range(10, 4000), 10, 11]
    drafts = [draft(suffix, prompt).tokens for _ in range(5)]
    assert drafts[0] == ()
    assert drafts[-1][:3] == (12, 13, 14)


@given(st.lists(st.tuples(texts, texts), max_size=6), texts.filter(bool), st.integers(1, 8))
def test_every_proposed_token_was_heard_right_behind_the_one_before_it(
    past: list[tuple[list[int], list[int]]], context: list[int], limit: int
) -> None:
    suffix = Suffix()
    heard = [context]
    for number, (prompt, answer) in enumerate(past):
        suffix.finish(str(number), prompt + answer, len(prompt), "")
        heard.append(prompt[-8:] + answer)
    found = draft(suffix, context, limit)
    assert len(found.tokens) == len(found.survival) <= limit
    assert list(found.survival) == sorted(found.survival, reverse=True)
    assert all(0 < chance <= 1 for chance in found.survival)
    seen = {pair for text in heard for pair in itertools.pairwise(text)}
    assert set(itertools.pairwise([context[-1], *found.tokens])) <= seen


def test_survival_becomes_what_happens_to_the_drafts() -> None:
    suffix = Suffix()
    context = [1, 2, 3, 4, 5, 9, 8, 1, 2, 3]
    hopeful = draft(suffix, context, 1)
    for _ in range(200):
        suffix.learn(hopeful.evidence[0].cell, False)
    assert draft(suffix, context, 1, request="b").survival == ()  # not worth a row any more
    for _ in range(2000):
        suffix.learn(hopeful.evidence[0].cell, True)
    (sure,) = draft(suffix, context, 1, request="c").survival
    assert sure > max(0.9, hopeful.survival[0])


def test_recent_answers_take_bounded_memory_and_the_newest_stay() -> None:
    suffix = Suffix(Memory(most_tokens=200))
    for number in range(100):
        suffix.finish(str(number), [0, *range(number * 1000, number * 1000 + 50)], 1, "")
    assert suffix.num_bytes < 200 * 400
    assert draft(suffix, [7, 99_000, 99_001, 99_002], 2).tokens == (99_003, 99_004)
    assert draft(suffix, [7, 1000, 1001, 1002], 2, request="then").tokens == ()


def test_all_tenants_together_take_bounded_memory_and_the_least_recently_used_goes_first() -> None:
    memory = Memory(most_tokens=1000, most_bytes=200_000)
    suffix = Suffix(memory)
    for number in range(60):
        suffix.finish("", [0, *range(number * 1000, number * 1000 + 200)], 1, f"tenant-{number}")
        draft(suffix, [7, 1000, 1001], request=f"keep-{number}", tenant="tenant-1")
        assert memory.num_bytes <= 200_000
    assert len(memory) < 10
    assert draft(suffix, [7, 1000, 1001], 1, request="x", tenant="tenant-1").tokens == (1002,)
    assert draft(suffix, [7, 2000, 2001], request="y", tenant="tenant-2").tokens == ()


def test_a_long_request_takes_bounded_memory() -> None:
    suffix = Suffix()
    tokens = list(range(3 * REQUEST_TOKENS))
    for end in range(1000, len(tokens), 1000):
        draft(suffix, tokens[:end])
    assert suffix.num_bytes < REQUEST_TOKENS * 400


def test_a_finished_request_leaves_nothing_of_its_own_behind() -> None:
    suffix = Suffix()
    draft(suffix, [1, 2, 1, 2], request="a")
    assert suffix.num_bytes > 0
    suffix.finish("a", [1, 2, 1, 2], 4, "")
    assert suffix.num_bytes == 0
