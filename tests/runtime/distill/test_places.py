"""What heads are taught is what the answers say, and never reaches over an answer's end."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from types import SimpleNamespace

import torch
from hypothesis import given
from hypothesis import strategies as st

from turbo_runtime.distill.data.examples import UNKNOWN, TrainingExamples
from turbo_runtime.distill.data.responses import Completion, TokenizedPrompt
from turbo_runtime.distill.trainer import Shards

ANSWERS = st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=9), min_size=1, max_size=6)


def places_of(answers: list[list[int]]) -> TrainingExamples:
    """States, likeliest ids and their chances tell which row they are of."""
    rows = torch.arange(sum(map(len, answers)))
    return TrainingExamples.of(
        rows[:, None].float(), answers, rows[:, None].int(), 1.0 / (1.0 + rows[:, None])
    )


@given(ANSWERS, st.integers(1, 5))
def test_a_row_is_taught_what_follows_it_in_its_own_answer(answers: list[list[int]], heads: int) -> None:
    places = places_of(answers)
    where = [(number, at) for number, one in enumerate(answers) for at in range(len(one))]
    teaching = [row for row, (number, at) in enumerate(where) if at + 1 < len(answers[number])]
    assert places.teaching.tolist() == teaching
    lessons = places.pick(places.teaching, heads)
    for index, row in enumerate(teaching):
        number, at = where[row]
        assert lessons.hidden[index].tolist() == [row]
        for head in range(heads):
            if at + 1 + head < len(answers[number]):
                assert lessons.before[index, head] == answers[number][at + head]
                assert lessons.wanted[index, head] == answers[number][at + 1 + head]
                assert lessons.likely[index, head].tolist() == [row + 1 + head]
                assert lessons.chances[index, head].item() > 0
            else:
                assert lessons.wanted[index, head] == UNKNOWN
                assert lessons.chances[index, head].item() == 0


@given(ANSWERS, st.integers(1, 12), st.integers(0, 3))
def test_shards_hold_every_answer_once_and_no_more_rows_than_there_is_room_for(
    answers: list[list[int]], most: int, seed: int
) -> None:
    said = [
        Completion(TokenizedPrompt("training", "d", (number,)), tuple(one))
        for number, one in enumerate(answers)
    ]
    method = SimpleNamespace(rows=lambda one: len(one.tokens), read=lambda some: places_of([]))
    shards = Shards(method, said, most, seed)
    assert sorted(s.request.prompt for part in shards.parts for s in part) == [s.request.prompt for s in said]
    for part in shards.parts:
        assert len(part) == 1 or sum(len(s.tokens) for s in part) <= most
    for epoch in range(3):
        assert sorted(shards.order(epoch, seed)) == list(range(len(shards.parts)))


def test_one_part_is_in_memory_at_a_time_and_read_again_only_after_another() -> None:
    said = [Completion(TokenizedPrompt("training", "d", (number,)), (1, 2, 3)) for number in range(4)]
    read: list[weakref.ref[TrainingExamples]] = []

    def places(some: Sequence[Completion]) -> TrainingExamples:
        assert all(one() is None for one in read)
        found = places_of([list(one.tokens) for one in some])
        read.append(weakref.ref(found))
        return found

    shards = Shards(SimpleNamespace(rows=lambda one: len(one.tokens), read=places), said, 6, 0)
    for number in (0, 0, 1, 1, 0):
        shards.material(number)
    assert len(read) == 3
