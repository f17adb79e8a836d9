"""What `make bench NAME=distill` says of each drafter."""

from __future__ import annotations

import pytest
from distillation.by_drafter import Part, figures, is_new, rows, runs_of
from distillation.cases import Case
from token_runs import RUN

from turbo_runtime.distill.data.responses import Completion, TokenizedPrompt
from turbo_runtime.distill.evaluation.speedup_benchmark import Run

LEARNED = Completion(TokenizedPrompt("training", "json", (1, 2, 3)), tuple(range(10, 30)))


def answer(tokens: tuple[int, ...]) -> Completion:
    return Completion(TokenizedPrompt("test", "json", (7,)), tokens)


def test_an_answer_is_a_near_copy_from_a_shared_run_of_twelve_tokens_on() -> None:
    known = runs_of([LEARNED])
    assert not is_new(answer((99, *range(15, 15 + RUN), 98)), known)
    assert not is_new(answer((2, 3, *range(10, 10 + RUN - 2))), known)  # across prompt and answer
    assert is_new(answer((99, *range(15, 15 + RUN - 1), 98)), known)
    assert is_new(answer(tuple(range(10, 10 + RUN - 1))), known)  # shorter than a run


def test_each_way_has_its_speed_and_what_stands_beside_memory_is_held_against_it_alone() -> None:
    found = [
        Run("none", 0, ((1, 2, 3, 4),), 4.0, 0, 0),
        Run("memory", 0, ((1, 2, 3, 4),), 2.0, 2, 1),
        Run("eagle3", 0, ((1, 2, 3, 4),), 4.0, 1, 2),
        Run("memory_eagle3", 0, ((1, 2, 3, 5),), 1.0, 1, 3),
    ]
    part = Part(True, Case("json", 0.0, 1, whole=False, found=found, same=[True, True, False]))
    found_figures = figures([part])
    assert found_figures["json_memory_of_plain_new"] == pytest.approx(2.0)
    assert found_figures["json_memory_eagle3_acceptance_length_new"] == pytest.approx(4.0)
    assert found_figures["json_memory_eagle3_of_memory_new"] == pytest.approx(2.0)
    assert (found_figures["by_drafter_compared"], found_figures["by_drafter_differing"]) == (3, 1)
    assert [row["drafts"] for row in rows([part])] == ["memory", "eagle3", "memory_eagle3"]
