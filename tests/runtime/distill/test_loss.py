"""The losses are those of their papers, counted by hand; what is outside the vocabulary teaches nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from turbo_runtime.distill.data.examples import (
    UNKNOWN,
    TrainingBatch,
    chance_of_acceptance,
    positions_in,
    training_loss,
)
from turbo_runtime.distill.recipe import Recipe

VOCABULARY = torch.tensor([2, 3, 5, 7])
ROWS, HEADS, KEPT, TARGET = 5, 3, 4, 11
WORDS = positions_in(VOCABULARY, TARGET)


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(ROWS, HEADS, len(VOCABULARY), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def lessons() -> TrainingBatch:
    generator = torch.Generator().manual_seed(2)
    wanted = torch.randint(0, TARGET, (ROWS, HEADS), generator=generator)
    wanted[3, 1:] = UNKNOWN
    likely = torch.stack(
        [torch.randperm(TARGET, generator=generator)[:KEPT] for _ in range(ROWS * HEADS)]
    ).view(ROWS, HEADS, KEPT)
    chances = torch.rand(ROWS, HEADS, KEPT, generator=generator).sort(-1, descending=True).values / KEPT
    chances = chances * (wanted != UNKNOWN)[..., None]
    return TrainingBatch(torch.zeros(ROWS, 1), torch.zeros(ROWS, HEADS).long(), wanted, likely.int(), chances)


def by_hand(logits: Tensor, lessons: TrainingBatch, recipe: Recipe) -> float:
    total = weights = 0.0
    for row in range(ROWS):
        for head in range(HEADS):
            heads_law = (logits[row, head] / recipe.learned_temperature).softmax(-1)
            q = dict(zip(VOCABULARY.tolist(), heads_law.tolist(), strict=True))
            word = int(lessons.wanted[row, head])
            if word == UNKNOWN:
                continue
            weight = recipe.head_decay**head
            weights += weight
            likely, chances = lessons.likely[row, head].tolist(), lessons.chances[row, head].tolist()
            for token, chance in zip(likely, chances, strict=True):
                if token in q:
                    log_q = torch.tensor(q[token]).log().item()
                    total -= weight * recipe.distribution_loss_weight * chance * log_q
                    total += weight * recipe.variation * (chance - min(chance, q[token]))
            if word in q:
                total -= weight * recipe.words * torch.tensor(q[word]).log().item()
    return total / weights


@pytest.mark.parametrize("kind", ["words", "distribution_loss_weight", "variation"])
def test_each_loss_is_what_it_is_by_hand(logits: Tensor, lessons: TrainingBatch, kind: str) -> None:
    recipe = replace(Recipe(words=0, distribution_loss_weight=0, variation=0), **{kind: 1.0})
    found = training_loss(logits, lessons, WORDS, recipe)
    assert found.item() == pytest.approx(by_hand(logits, lessons, recipe), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_they_add_up(logits: Tensor, lessons: TrainingBatch, temperature: float) -> None:
    recipe = Recipe(words=0.3, distribution_loss_weight=0.5, variation=2.0, temperature=temperature)
    found = training_loss(logits, lessons, WORDS, recipe)
    assert found.item() == pytest.approx(by_hand(logits, lessons, recipe), rel=1e-5)


def test_a_greedy_draft_is_taken_where_it_is_the_word(logits: Tensor, lessons: TrainingBatch) -> None:
    found = chance_of_acceptance(logits, lessons, WORDS, 0.0)
    assert found.tolist() == (VOCABULARY[logits.argmax(-1)] == lessons.wanted).float().tolist()


def test_a_sampled_one_as_often_as_both_laws_draw_it_with_the_same_noise() -> None:
    generator = torch.Generator().manual_seed(4)
    p = torch.rand(TARGET, generator=generator).softmax(0)
    guesses = 2 * torch.randn(1, 1, len(VOCABULARY), generator=generator)
    ids = torch.arange(TARGET)
    lessons = TrainingBatch(
        torch.zeros(1, 1),
        torch.zeros(1, 1).long(),
        torch.zeros(1, 1).long(),
        ids.int()[None, None],
        p[None, None],
    )
    temperature, draws = 0.7, 200_000
    gumbel = -(-torch.rand(draws, TARGET, generator=generator, dtype=torch.float64).log()).log()
    target = (p.log() + gumbel).argmax(1)
    draft = VOCABULARY[(guesses[0, 0] / temperature + gumbel[:, VOCABULARY]).argmax(1)]
    seen = (target == draft).double().mean().item()
    found = chance_of_acceptance(guesses, lessons, WORDS, temperature).item()
    assert found == pytest.approx(seen, abs=5 * (seen / draws) ** 0.5)


def test_ids_that_are_not_kept_count_as_one_rival(logits: Tensor) -> None:
    p = torch.tensor([0.5, 0.2])  # of ids 3 and 4; the draft cannot say 4
    lessons = TrainingBatch(
        torch.zeros(1, 1),
        torch.zeros(1, 1).long(),
        torch.zeros(1, 1).long(),
        torch.tensor([[[3, 4]]]).int(),
        p[None, None],
    )
    guesses = torch.tensor([[[0.1, 0.6, 0.2, 0.1]]]).log()
    rivals = 1 + 0.2 / 0.5 + max(0.3 / 0.5, 0.4 / 0.6)  # 3 itself, 4, all others
    assert chance_of_acceptance(guesses, lessons, WORDS, 1.0).item() == pytest.approx(1 / rivals)
