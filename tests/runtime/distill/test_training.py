"""Training learns, and comes to the same bits wherever it is broken off."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from turbo_runtime.distill.data.examples import TrainingExamples
from turbo_runtime.distill.data.responses import Completion, TokenizedPrompt
from turbo_runtime.distill.heads import HeadsStudent
from turbo_runtime.distill.recipe import Recipe
from turbo_runtime.distill.trainer import Shards, Training, read_state
from turbo_runtime.drafters.heads import Heads, tensors_digest

WIDTH, WORDS = 16, 12
RECIPE = Recipe(depth=2, markov_rank=4, epochs=3, rows=16, rate=0.02)
EMBEDDING = torch.randn(WORDS, WIDTH, generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def answers(count: int, first: int) -> list[Completion]:
    """Each counts up from where it begins, in steps of its own."""
    found = []
    for number in range(first, first + count):
        step = 1 + number % 3
        found.append(
            Completion(
                TokenizedPrompt("training", "d", (number,)),
                tuple((number + step * at) % WORDS for at in range(9)),
            )
        )
    return found


def read(said: Sequence[Completion]) -> TrainingExamples:
    """A state that tells the token before and the step, as a model's would, but not for sure."""
    lots = torch.Generator().manual_seed(said[0].request.prompt[0])
    states = torch.cat(
        [
            EMBEDDING[torch.tensor(one.tokens)]
            + 3 * EMBEDDING[one.request.prompt[0] % 3]
            + 1.5 * torch.randn(len(one.tokens), WIDTH, generator=lots)
            for one in said
        ]
    )
    tokens = torch.tensor([token for one in said for token in one.tokens])
    chances = torch.full((len(tokens), 1), 0.9)
    return TrainingExamples.of(states, [one.tokens for one in said], tokens[:, None].int(), chances)


Trained = Training


def training(recipe: Recipe = RECIPE) -> Trained:
    method = SimpleNamespace(rows=lambda one: len(one.tokens), read=read)
    shards = Shards(method, answers(24, 0), 90, recipe.seed)
    assert len(shards.parts) == 3
    torch.manual_seed(0)
    heads = Heads(
        EMBEDDING, EMBEDDING, torch.arange(WORDS), heads=recipe.depth, markov_rank=recipe.markov_rank
    )
    student = HeadsStudent(heads, recipe)
    return Training(student, shards, lambda: read(answers(12, 24)), recipe)


def heads_of(trained: Trained) -> Heads:
    assert isinstance(trained.student, HeadsStudent)
    return trained.student.module


def digest_of(trained: Trained) -> str:
    return tensors_digest(heads_of(trained), trained.student.vocabulary)


class _KilledError(Exception):
    pass


def run_to(trained: Trained, step: int, saved: Path) -> None:
    """Save at that step, and be killed there."""

    def done(at: int) -> None:
        if at == step:
            trained.save(saved)
            raise _KilledError

    with pytest.raises(_KilledError):
        trained.run(done)


def test_it_learns_what_answers_say_and_keeps_the_best_epoch() -> None:
    trained = training()
    trained.run(lambda _: None)
    progress = trained.progress
    assert progress.losses[-1] < 0.8 * progress.losses[0]
    assert progress.judged[progress.best] == max(progress.judged) > progress.judged[0]
    assert progress.step == trained.steps


def test_confidences_are_higher_where_drafts_are_right() -> None:
    trained = training()
    trained.run(lambda _: None)
    places = read(answers(24, 48))
    lessons = places.pick(places.teaching, RECIPE.depth)
    heads = heads_of(trained)
    logits, states, m = heads(lessons.hidden, lessons.before)
    right = logits[:, 0].argmax(-1) == lessons.wanted[:, 0]
    sureness = heads.certainty(heads.clues(states[0], m[:, 0], logits[:, 0]), 0)
    assert 0 < right.float().mean() < 1
    assert sureness[right].mean() > sureness[~right].mean()
    assert abs(sureness.sigmoid().mean() - right.float().mean()) < 0.2


def test_broken_off_at_any_steps_it_comes_to_the_same_bits(tmp_path: Path) -> None:
    whole = training()
    whole.run(lambda _: None)
    file = tmp_path / "training.pt"
    for steps in (
        (1,),
        (5,),
        (whole.steps // RECIPE.epochs,),
        (7, 12, 13, 30),
        (whole.steps - 1, whole.steps),
    ):
        file.unlink(missing_ok=True)
        for step in steps:
            broken = training()
            if file.is_file():
                broken.load(read_state(file))
            run_to(broken, step, file)
        last = training()
        last.load(read_state(file))
        last.run(lambda _: None)
        assert digest_of(last) == digest_of(whole), steps
        assert last.progress == whole.progress
        last.save(file)
        again = training()
        again.load(read_state(file))
        again.run(lambda _: pytest.fail("it was done"))
        assert digest_of(again) == digest_of(whole)
        assert read_state(file)["vocabulary"].tolist() == list(range(WORDS))


def test_another_seed_learns_in_another_order() -> None:
    whole, other = training(), training(replace(RECIPE, seed=1))
    for one in (whole, other):
        one.run(lambda _: None)
    assert digest_of(other) != digest_of(whole)


def test_where_answers_do_not_fit_in_memory_one_part_is_there_at_a_time() -> None:
    alive: list[weakref.ref[TrainingExamples]] = []
    trained = training()

    def watched(some: Sequence[Completion]) -> TrainingExamples:
        assert all(one() is None for one in alive)
        alive.append(weakref.ref(places := read(some)))
        return places

    trained._shards._read = watched
    trained.run(lambda _: None)
    assert len(alive) > RECIPE.epochs
