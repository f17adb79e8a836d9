"""Which method pays, by a small training of each: `--method auto`.

A draft of acceptance length t whose making reads a share c of the weights that a step of the target reads
brings about t / (1 + c) tokens in the time of one, where both are bound by memory and a few rows more are
verified for nothing (Leviathan, Kalman, Matias, arXiv 2211.17192, section 3). Told by counts alone: the same
answers lead to the same choice on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from turbo_runtime.distill.data.responses import Completion
from turbo_runtime.distill.data.shards import JUDGES_SHARE, Reader, Shards, fitting
from turbo_runtime.distill.data.vocabulary import choose_vocabulary, counted
from turbo_runtime.distill.errors import DistillError
from turbo_runtime.distill.method import Method
from turbo_runtime.distill.progress import Advance
from turbo_runtime.distill.recipe import AUTO, OTHERWISE, Recipe
from turbo_runtime.distill.trainer import Training

ANSWERS, EPOCHS = 96, 2  # that each method learns from, and how often
LEAST = 1.05  # tokens in the time of one, below which no draft pays


@dataclass(frozen=True, slots=True)
class Pilot:
    """What a small training of one method has shown."""

    method: str
    acceptance_length: float
    cost: float  # weights that a draft reads, over those of a step

    @property
    def expected(self) -> float:
        """Tokens in the time of a step without drafts."""
        return self.acceptance_length / (1 + self.cost)


def settings(recipe: Recipe, method: str) -> Recipe:
    """The recipe for a method: its own settings where none were asked for."""
    default = Recipe(method=method, **OTHERWISE[method])
    own = {name: getattr(default, name) for name in OTHERWISE[AUTO] if not getattr(recipe, name)}
    return replace(recipe, method=method, **own)


def pilot(
    method: Method[Any, Any],
    learnt: Sequence[Completion],
    judges: Sequence[Completion],
    recipe: Recipe,
    most_rows: int,
    words: int,
    active_parameters: int,
    advance: Advance,
) -> Pilot:
    """`most_rows` of material are in memory at a time; `words`: of the target's vocabulary;
    `active_parameters`: of the target, those that a token passes.
    """
    mixed = list(learnt)
    random.Random(recipe.seed).shuffle(mixed)  # noqa: S311  a shuffle, no secret
    few = mixed[:ANSWERS]
    shards = Shards.of(few, method.rows, most_rows, recipe.seed)
    some = fitting(judges, method.rows, most_rows // JUDGES_SHARE)
    reader = Reader(shards, method.read)
    vocabulary = choose_vocabulary(
        counted([one.tokens for one in few], words), reader.part(0).places, recipe.vocabulary
    )
    student = method.student(vocabulary)
    short = replace(recipe, epochs=EPOCHS)
    training = Training(student, words, shards, reader, lambda: method.read(some), short)
    training.run(lambda _: None)
    advance()
    length = max(training.course.judged)
    return Pilot(method.name, length, method.draft_weights(student) / active_parameters)


def best(found: Mapping[str, Pilot]) -> str:
    """Raises DistillError where none pays."""
    first = max(found.values(), key=lambda one: one.expected)
    if first.expected < LEAST:
        told = ", ".join(
            f"{one.method} {one.acceptance_length:.2f} tokens a draft at {one.cost:.0%} of a step's cost"
            for one in found.values()
        )
        raise DistillError(
            f"a pilot says that no draft pays here ({told}); give more prompts of one kind, or name a "
            "--method"
        )
    return first.method
