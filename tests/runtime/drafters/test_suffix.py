"""The suffix drafter continues what was said before, in bounded memory, and makes nothing out of nothing."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from turbo_runtime.drafters.interface import Draft, DraftRequest
from turbo_runtime.drafters.proposer import Guarded, Proposer, propose
from turbo_runtime.drafters.suffix import REQUEST_TOKENS, Memory, SuffixDrafter

texts = st.lists(st.integers(0, 3), max_size=40)


def remember(
    suffix: SuffixDrafter, tokens: Sequence[int], prompt_length: int, scope: str, name: str = "old"
) -> None:
    """An answer ended, and the steps that followed read it."""
    suffix.finish(name, tokens, prompt_length, scope)
    while suffix.waiting:
        suffix.read(16)


def draft(
    suffix: SuffixDrafter, tokens: Sequence[int], limit: int = 8, *, request: str = "now", scope: str = ""
) -> Draft:
    """The draft behind `tokens`, the last of which is an answer's first."""
    begun = DraftRequest(request, tokens, len(tokens) - 1, limit, scope, 0, 0.0)
    (found,) = propose([Guarded(suffix)], [begun])
    return found


def test_what_followed_the_same_words_in_the_request_is_proposed() -> None:
    assert draft(SuffixDrafter(), [1, 2, 3, 4, 5, 9, 8, 1, 2, 3], 2).tokens == (4, 5)


def test_what_another_request_of_the_scope_was_answered_is_proposed() -> None:
    suffix = SuffixDrafter()
    remember(suffix, [50, 51, 1, 2, 3, 4, 5, 6], 2, "")
    assert draft(suffix, [60, 61, 1, 2], 3).tokens == (3, 4, 5)


def test_what_another_scope_was_answered_is_proposed_to_nobody_else() -> None:
    suffix = SuffixDrafter()
    remember(suffix, [50, 51, 1, 2, 3, 4, 5, 6], 2, "theirs")
    assert draft(suffix, [60, 61, 1, 2], scope="ours").tokens == ()
    assert draft(suffix, [60, 61, 1, 2], 3, request="other", scope="theirs").tokens == (3, 4, 5)


def test_a_draft_goes_on_from_recent_answers_into_the_request_itself() -> None:
    suffix = SuffixDrafter()
    remember(suffix, [50, 1, 2, 3, 4, 70, 71], 1, "")
    assert draft(suffix, [4, 60, 61, 62, 9, 1, 2], 5).tokens[:2] == (3, 4)
    remember(suffix, [50, 1, 2, 3, 4], 1, "")
    assert 60 in draft(suffix, [7, 3, 4, 60, 61, 62, 9, 1, 2], 5, request="next").tokens


def test_a_match_that_lost_learns_what_came_instead_and_wins_in_the_end() -> None:
    # behind 1 2 the prompt went on with 3, and the answer before with 4, which is what comes again and again
    suffix = SuffixDrafter()
    remember(suffix, [50, 2, 4, 51], 1, "")
    proposer = Proposer(suffix=suffix)
    first = []
    for number in range(40):
        tokens = [1, 2, 3, 60 + number, 1, 2]
        (found,) = proposer.propose([DraftRequest(str(number), tokens, 5, 1, "", 0, 0.0)])
        proposer.observe(found, [4])
        first.append(found.tokens)
    assert first[0] == (3,)
    assert first[-1] == (4,)
    ((_, cell, token),) = found.origins[0].losing_candidates
    assert token == 3
    assert suffix.confidence(cell, 1.0) < 0.2, "it learns from the drafts that it lost, too"


def test_nothing_is_proposed_where_nothing_matches() -> None:
    assert draft(SuffixDrafter(), [1, 2, 3]).tokens == ()


def test_a_prompt_is_read_while_it_is_computed_and_what_others_were_answered_is_proposed_before() -> None:
    suffix, prompt = SuffixDrafter(), [9, 8, 7, 1, 2]
    remember(suffix, [50, 1, 2, 3, 4, 5], 1, "")
    (found,) = propose([Guarded(suffix)], [DraftRequest("now", prompt, len(prompt), 3, "", 0, 0.0)])
    assert found.tokens == (3, 4, 5)
    assert suffix.waiting
    assert suffix.read(100) == len(prompt)


def test_a_request_is_followed_as_it_grows() -> None:
    suffix = SuffixDrafter()
    answer = [5, 6, 7, 8, 1, 2, 3, 4]
    tokens = [1, 2, 3, 4, *answer, 9]
    for length in range(3, len(tokens)):
        draft(suffix, tokens[:length])
    assert draft(suffix, [*tokens, 5, 6], 2).tokens == (7, 8)


def test_a_long_prompt_is_read_while_it_is_computed_and_known_when_the_answer_begins() -> None:
    suffix = SuffixDrafter()
    prompt = [*range(10, 4000), 10, 11]
    suffix.expect("now", prompt)
    slices = 0
    while suffix.waiting:
        assert suffix.read(512) <= 512
        slices += 1
    assert slices == 8
    assert draft(suffix, [*prompt, 12]).tokens[:3] == (13, 14, 15)


def test_a_long_text_that_nobody_announced_holds_up_no_step() -> None:
    suffix = SuffixDrafter()
    prompt = [*range(10, 4000), 10, 11]
    assert draft(suffix, prompt).tokens == ()
    assert suffix.num_bytes < 1000
    while suffix.waiting:
        suffix.read(512)
    assert draft(suffix, prompt).tokens[:3] == (12, 13, 14)


def test_slices_are_shared_by_all_that_is_to_be_read_the_oldest_prompt_first() -> None:
    suffix = SuffixDrafter()
    suffix.expect("a", [*range(100), 0, 1])
    suffix.finish("old", [1, *range(500, 540)], 1, "")
    suffix.expect("b", [*range(200, 300), 200, 201])
    assert suffix.read(150) == 150
    assert draft(suffix, [*range(100), 0, 1], 2, request="a").tokens == (2, 3)
    assert suffix.read(1000) == 2 * 102 + 41 - 150
    assert not suffix.waiting
    assert draft(suffix, [7, 500, 501], 2, request="c").tokens == (502, 503)


def test_a_request_that_ends_is_not_read_on() -> None:
    suffix = SuffixDrafter()
    suffix.expect("a", range(5000))
    suffix.read(100)
    suffix.finish("a", (), 0, "")
    assert not suffix.waiting
    assert suffix.num_bytes == 0


@given(st.lists(st.tuples(texts, texts), max_size=6), texts.filter(bool), st.integers(1, 8))
def test_every_proposed_token_was_heard_right_behind_the_one_before_it(
    past: list[tuple[list[int], list[int]]], context: list[int], limit: int
) -> None:
    suffix = SuffixDrafter()
    heard = [context]
    for prompt, answer in past:
        remember(suffix, prompt + answer, len(prompt), "")
        heard.append(prompt[-8:] + answer)
    found = draft(suffix, context, limit)
    assert len(found.tokens) == len(found.cumulative_acceptance) <= limit
    assert list(found.cumulative_acceptance) == sorted(found.cumulative_acceptance, reverse=True)
    assert all(0 < chance <= 1 for chance in found.cumulative_acceptance)
    seen = {pair for text in heard for pair in itertools.pairwise(text)}
    assert set(itertools.pairwise([context[-1], *found.tokens])) <= seen


def test_survival_becomes_what_happens_to_the_drafts() -> None:
    suffix = SuffixDrafter()
    context = [1, 2, 3, 4, 5, 9, 8, 1, 2, 3]
    hopeful = draft(suffix, context, 1)
    for _ in range(200):
        suffix.learn(hopeful.origins[0].cell, False)
    assert draft(suffix, context, 1, request="b").cumulative_acceptance == ()  # not worth a row any more
    for _ in range(2000):
        suffix.learn(hopeful.origins[0].cell, True)
    (sure,) = draft(suffix, context, 1, request="c").cumulative_acceptance
    assert sure > max(0.9, hopeful.cumulative_acceptance[0])


def test_recent_answers_take_bounded_memory_and_the_newest_stay() -> None:
    suffix = SuffixDrafter(Memory(max_tokens=200))
    for number in range(100):
        remember(suffix, [0, *range(number * 1000, number * 1000 + 50)], 1, "")
    assert suffix.num_bytes < 200 * 400
    assert draft(suffix, [7, 99_000, 99_001, 99_002], 2).tokens == (99_003, 99_004)
    assert draft(suffix, [7, 1000, 1001, 1002], 2, request="then").tokens == ()


def test_all_scopes_together_take_bounded_memory_and_the_least_recently_used_goes_first() -> None:
    memory = Memory(max_tokens=1000, max_bytes=200_000)
    suffix = SuffixDrafter(memory)
    for number in range(60):
        remember(suffix, [0, *range(number * 1000, number * 1000 + 200)], 1, f"scope-{number}")
        draft(suffix, [7, 1000, 1001], request=f"keep-{number}", scope="scope-1")
        assert memory.num_bytes <= 200_000
    assert len(memory._scopes) < 10
    assert draft(suffix, [7, 1000, 1001], 1, request="x", scope="scope-1").tokens == (1002,)
    assert draft(suffix, [7, 2000, 2001], request="y", scope="scope-2").tokens == ()


def test_the_bound_of_memory_holds_of_what_drafting_adds_too() -> None:
    memory, noise = Memory(max_tokens=2048, max_bytes=1 << 19), random.Random(1)
    suffix = SuffixDrafter(memory)
    for number in range(300):
        scope = f"t{number % 20}"
        tokens = [noise.randrange(20) for _ in range(16)]  # so few that the texts branch everywhere
        for _ in range(6):
            tokens += [noise.randrange(20) for _ in range(8)]
            draft(suffix, tokens, request=str(number), scope=scope)
        remember(suffix, tokens, 16, scope, str(number))
        held = sum(history.num_bytes for history in memory._scopes.values())
        assert held <= 1 << 19
        assert memory.num_bytes == held
    assert memory.num_bytes > 1 << 18
    assert len(memory._scopes) > 1


def test_answers_that_come_faster_than_they_are_read_do_not_pile_up() -> None:
    memory = Memory()
    for number in range(40):
        memory.remember("", [0, *range(number * 10_000, number * 10_000 + 10_000)], 1)
    assert memory.waiting <= 1 << 17
    suffix = SuffixDrafter(memory)
    while suffix.waiting:
        suffix.read(1000)
    assert draft(suffix, [7, 390_000, 390_001], 1).tokens == (390_002,)


def test_a_long_request_takes_bounded_memory() -> None:
    suffix = SuffixDrafter()
    tokens = list(range(3 * REQUEST_TOKENS))
    for end in range(1000, len(tokens), 1000):
        draft(suffix, tokens[:end])
    assert suffix.num_bytes < REQUEST_TOKENS * 400


def test_a_finished_request_leaves_nothing_of_its_own_behind() -> None:
    suffix = SuffixDrafter()
    draft(suffix, [1, 2, 1, 2], request="a")
    assert suffix.num_bytes > 0
    suffix.finish("a", [1, 2, 1, 2], 4, "")
    assert suffix.num_bytes == 0
