"""An acceptance length is that of decoding: counted draft by draft."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from turbo_runtime.distill.data.responses import Completion, TokenizedPrompt
from turbo_runtime.distill.evaluation.record import evaluate

HEADS = 3


def said(length: int) -> Completion:
    return Completion(TokenizedPrompt("test", "d", (1, 2)), tuple(range(length)))


def test_a_draft_begins_behind_what_was_accepted() -> None:
    # behind token 0 two drafts of three are right, so 1, 2 and the engine's own 3 come; 4 is the last
    found = evaluate([(said(5), [2, 0, 0, 0])], HEADS)
    assert found.acceptance_length == 4 / 2
    assert found.acceptance_per_position == (1.0, 1.0, 0.0)
    assert (found.answers, found.tokens) == (1, 5)


def test_the_last_token_of_an_answer_is_not_drafted() -> None:
    found = evaluate([(said(4), [2, 1, 0])], HEADS)
    assert found.acceptance_length == 3.0
    assert found.acceptance_per_position == (1.0, 1.0, 0.0)


def test_no_answers_have_no_length() -> None:
    assert evaluate([], HEADS).acceptance_length is None
    assert evaluate([(said(1), [])], HEADS).acceptance_length is None


@given(st.lists(st.lists(st.integers(0, HEADS), max_size=12), max_size=4))
def test_it_is_tokens_over_verifications_of_a_walk(taken: list[list[int]]) -> None:
    taken = [[min(count, len(one) - 1 - at) for at, count in enumerate(one)] for one in taken]
    found = evaluate([(said(len(one) + 1), one) for one in taken], HEADS)
    walks = 0
    for one in taken:
        at = 0
        while at < len(one):
            walks += 1
            at += one[at] + 1
    tokens = sum(map(len, taken))
    assert found.acceptance_length == (tokens / walks if walks else None)
    assert all(0 <= share <= 1 for share in found.acceptance_per_position)
