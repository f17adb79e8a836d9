"""Heads can draft what was said most, and what the model might have said; never what neither knows of."""

from __future__ import annotations

import torch

from turbo_runtime.distill.data.examples import TrainingExamples, choose_vocabulary

ANSWERS = [(3, 3, 3, 9), (3, 9, 5, 5)]


def places(likely: list[int], chance: float) -> TrainingExamples:
    tokens = [token for one in ANSWERS for token in one]
    rows = len(tokens)
    return TrainingExamples.of(
        torch.zeros(rows, 2),
        ANSWERS,
        torch.tensor([likely] * rows).int(),
        torch.full((rows, len(likely)), chance),
    )


def test_what_was_said_most_goes_first_and_ids_ascend() -> None:
    assert choose_vocabulary(ANSWERS, places([3], 0.0), 12, 2).tolist() in ([3, 5], [3, 9])
    assert choose_vocabulary(ANSWERS, places([3], 0.0), 12, 12).tolist() == [3, 5, 9]


def test_what_the_model_might_have_said_counts_by_its_probability() -> None:
    assert choose_vocabulary(ANSWERS, places([7], 0.4), 12, 2).tolist() == [3, 7]  # 3.2 of 8 places
    assert choose_vocabulary(ANSWERS, places([7], 0.01), 12, 12).tolist() == [3, 5, 7, 9]
