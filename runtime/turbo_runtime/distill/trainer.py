"""Training: steps of AdamW over shuffled rows, the same ones in the same order however often it is broken
off.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Generic

import torch
from torch import Tensor, nn

from turbo_runtime.distill.data.shards import Reader, Shards
from turbo_runtime.distill.errors import DamagedError, DistillError
from turbo_runtime.distill.loss import Words, chance_of_acceptance, guessing
from turbo_runtime.distill.method import Lesson, Read, Student
from turbo_runtime.distill.recipe import Recipe

_CLIP = 1.0  # of the gradient's norm


@dataclass
class Course:
    """How far the training is, and what it has shown: all that a checkpoint holds beside the tensors."""

    step: int = 0
    losses: list[float] = field(default_factory=list)  # mean of each epoch
    judged: list[float] = field(default_factory=list)  # acceptance length on the judges, of each epoch
    best: int = -1  # epoch
    running: float = 0.0  # sum of the losses of the epoch in progress
    counted: int = 0
    finished: bool = False  # what is learnt last is learnt too


class Training(Generic[Read, Lesson]):
    """One run; `save` and `load` carry it over a kill."""

    def __init__(
        self,
        student: Student[Read, Lesson],
        target_vocabulary: int,
        shards: Shards,
        reader: Reader[Read],
        judges: Callable[[], Read],
        recipe: Recipe,
    ) -> None:
        """`reader` reads `shards`; `judges` is called once, if at all."""
        self.student, self.recipe, self.course = student, recipe, Course()
        self._shards, self._reader, self._read_judges = shards, reader, judges
        self._words = Words(student.vocabulary, target_vocabulary)
        self._optimizer = torch.optim.AdamW(
            student.guessers, lr=recipe.rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98)
        )
        self._best = _copy(student.module)
        self._per_epoch = sum(student.steps(part) for part in shards.parts)
        self.steps = recipe.epochs * self._per_epoch

    def run(self, done: Callable[[int], None]) -> None:
        """Train to the end; `done` hears of every step, and may save."""
        if self.course.finished:
            return
        judges = self._read_judges()
        for epoch in range(self.course.step // self._per_epoch, self.recipe.epochs):
            for lessons in self._lessons(epoch, self.course.step - epoch * self._per_epoch):
                self._descend(lessons)
                self.course.step += 1
                if self.course.step == (epoch + 1) * self._per_epoch:
                    self._judge(epoch, judges)
                done(self.course.step)
        self.student.module.load_state_dict(self._best)
        self.student.settle(judges)
        self.course.finished = True

    def save(self, path: Path) -> None:
        """Write everything that the rest of the run depends on."""
        torch.save(
            {
                "vocabulary": self.student.vocabulary,
                "course": vars(self.course),
                "student": self.student.module.state_dict(),
                "best": self._best,
                "optimizer": self._optimizer.state_dict(),
            },
            path,
        )

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `save` was called."""
        self.course = Course(**state["course"])
        self.student.module.load_state_dict(state["student"])
        self._best = state["best"]
        self._optimizer.load_state_dict(state["optimizer"])

    def _lessons(self, epoch: int, skip: int) -> Iterator[Sequence[Lesson]]:
        """The epoch's steps but for the first `skip`. A part that is skipped is not read."""
        for part in self._shards.order(epoch, self.recipe.seed):
            count = self.student.steps(self._shards.parts[part])
            if skip < count:
                yield from self._lessons_of(part, epoch, skip)
            skip = max(0, skip - count)

    def _lessons_of(self, part: int, epoch: int, skip: int) -> Iterator[Sequence[Lesson]]:
        material = self._reader.part(part)  # let go when it is exhausted: the next part takes its memory
        lot = random.Random(f"{self.recipe.seed} {epoch} {part}").getrandbits(63)  # noqa: S311
        yield from itertools.islice(self.student.lessons(material, lot), skip, None)

    def _descend(self, lessons: Sequence[Lesson]) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self.recipe.rate * _schedule(self.course.step / self.steps, self.recipe.warm_up)
        self._optimizer.zero_grad()
        told = 0.0
        for lesson in lessons:
            logits, wanted = self.student.guess(lesson)
            loss = guessing(logits, wanted, self._words, self.recipe) / len(lessons)
            loss.backward()  # type: ignore[no-untyped-call]
            told += float(loss.detach())
        if not math.isfinite(told):
            raise DistillError("the training has diverged: its loss is no number; give a lower --rate")
        nn.utils.clip_grad_norm_(self.student.guessers, _CLIP)
        self._optimizer.step()
        self.course.running += told
        self.course.counted += 1

    def _judge(self, epoch: int, judges: Read) -> None:
        """Close an epoch: is it the best so far?"""
        course = self.course
        course.losses.append(course.running / course.counted)
        course.running, course.counted = 0.0, 0
        course.judged.append(self._acceptance_length(judges))
        if course.best < 0 or course.judged[-1] > course.judged[course.best]:
            course.best = epoch
            self._best = _copy(self.student.module)

    @torch.inference_mode()
    def _acceptance_length(self, judges: Read) -> float:
        """Tokens of a verification of whole drafts, at a place of the judges drawn at random."""
        accepted, rows = 0.0, 0
        for lesson in self.student.review(judges):
            logits, wanted = self.student.guess(lesson)
            taken = chance_of_acceptance(logits, wanted, self._words, self.recipe.temperature)
            accepted += float(taken.cumprod(1).sum())
            rows += len(taken)
        return 1 + accepted / rows


def read_state(path: Path) -> dict[str, Any]:
    """What `Training.save` wrote, the student's vocabulary among it. Raises DamagedError."""
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
    except torch.OutOfMemoryError:  # a RuntimeError, as what is damaged is to torch
        raise
    except (RuntimeError, ValueError, LookupError, EOFError, UnpicklingError) as error:
        raise DamagedError(str(error).partition("\n")[0]) from error
    return state


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _schedule(progress: float, warm_up: float) -> float:
    """Rises over `warm_up`, then falls as a cosine does."""
    if progress < warm_up:
        return (progress + 1e-3) / (warm_up + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))
