"""Training: steps of AdamW over shuffled rows in bounded memory, the same however often it is interrupted."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import accumulate, islice
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from turbo_runtime.distill.data.examples import chance_of_acceptance, choose_vocabulary, training_loss
from turbo_runtime.distill.data.responses import Completion, shuffled
from turbo_runtime.distill.eagle3 import Eagle3Method, Eagle3Student
from turbo_runtime.distill.heads import HeadsMethod, HeadsStudent
from turbo_runtime.distill.recipe import DistillError, Recipe

Method = HeadsMethod | Eagle3Method
Student = HeadsStudent | Eagle3Student
_CLIP = 1.0  # of the gradient's norm
_VALIDATION_SHARE = 16  # of the rows that fit the memory one such part is for validation


class Shards:
    """Responses dealt once into parts; memory holds the material of the part that was read last."""

    def __init__(self, method: Method, completions: Sequence[Completion], max_rows: int, seed: int) -> None:
        """Deal into parts of at most `max_rows`, but for a response that has more by itself."""
        self.parts: list[list[Completion]] = []
        num_free = 0
        for completion in shuffled(completions, seed):
            if not self.parts or method.rows(completion) > num_free:
                self.parts.append([])
                num_free = max_rows
            self.parts[-1].append(completion)
            num_free -= method.rows(completion)
        self.max_rows, self._read = max_rows, method.read
        self._number: int | None = None
        self._material: Any = None

    def order(self, epoch: int, seed: int) -> list[int]:
        """Number the parts in the order of an epoch."""
        return shuffled(range(len(self.parts)), f"{seed} {epoch}")

    def material(self, number: int) -> Any:
        """Return the material of a part."""
        if self._number != number:
            self._material = self._number = None  # first: there is memory for one
            self._material, self._number = self._read(self.parts[number]), number
        return self._material


@dataclass
class TrainingState:
    """Progress and results of the training: all that is saved besides tensors."""

    step: int = 0
    losses: list[float] = field(default_factory=list)  # mean, of each epoch
    judged: list[float] = field(default_factory=list)  # acceptance length in validation, of each epoch
    best: int = -1  # epoch
    running: float = 0.0  # sum of the losses of the epoch in progress
    counted: int = 0
    finished: bool = False  # `settle` is done too


class Training:
    """A training that `save` and `load` carry over a kill."""

    def __init__(
        self, student: Student, shards: Shards, read_validation: Callable[[], Any], recipe: Recipe
    ) -> None:
        """`read_validation` is called once, if at all."""
        self.student, self.recipe, self.progress = student, recipe, TrainingState()
        self._shards, self._read_validation = shards, read_validation
        self._optimizer = torch.optim.AdamW(
            student.guessers, lr=recipe.rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98)
        )
        self._best = deepcopy(student.module.state_dict())
        self._per_epoch = sum(student.steps(part) for part in shards.parts)
        self.steps = recipe.epochs * self._per_epoch

    def run(self, done: Callable[[int], None]) -> None:
        """Train to the end; `done` receives every step, and may save."""
        progress = self.progress
        if progress.finished:
            return
        validation = self._read_validation()
        for epoch in range(progress.step // self._per_epoch, self.recipe.epochs):
            for batches in self._batches(epoch, progress.step - epoch * self._per_epoch):
                self._descend(batches)
                progress.step += 1
                if progress.step == (epoch + 1) * self._per_epoch:
                    progress.losses.append(progress.running / progress.counted)
                    progress.running, progress.counted = 0.0, 0
                    progress.judged.append(self._acceptance_length(validation))
                    if progress.best < 0 or progress.judged[-1] > progress.judged[progress.best]:
                        progress.best, self._best = epoch, deepcopy(self.student.module.state_dict())
                done(progress.step)
        self.student.module.load_state_dict(self._best)
        self.student.settle(validation)
        progress.finished = True

    def save(self, path: Path) -> None:
        """Write everything that the rest of the run depends on."""
        state = {
            "vocabulary": self.student.vocabulary,
            "course": vars(self.progress),
            "student": self.student.module.state_dict(),
            "best": self._best,
            "optimizer": self._optimizer.state_dict(),
        }
        torch.save(state, path)

    def load(self, state: dict[str, Any]) -> None:
        """Continue where `save` was called."""
        self.progress = TrainingState(**state["course"])
        self.student.module.load_state_dict(state["student"])
        self._best = state["best"]
        self._optimizer.load_state_dict(state["optimizer"])

    def _batches(self, epoch: int, skip: int) -> Iterator[Sequence[Any]]:
        """Yield the epoch's steps but for the first `skip`. A part that is skipped is not read."""
        for part in self._shards.order(epoch, self.recipe.seed):
            count = self.student.steps(self._shards.parts[part])
            if skip < count:
                seed = random.Random(f"{self.recipe.seed} {epoch} {part}").getrandbits(63)  # noqa: S311
                # no name for the material: the next part takes its memory
                yield from islice(self.student.batches(self._shards.material(part), seed), skip, None)
            skip = max(0, skip - count)

    def _descend(self, batches: Sequence[Any]) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self.recipe.rate * _schedule(self.progress.step / self.steps, self.recipe.warm_up)
        self._optimizer.zero_grad()
        total = 0.0
        for material in batches:
            logits, batch = self.student.guess(material)
            loss = training_loss(logits, batch, self.student.words, self.recipe) / len(batches)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        if not math.isfinite(total):
            raise DistillError("the training has diverged: its loss is no number; give a lower --rate")
        nn.utils.clip_grad_norm_(self.student.guessers, _CLIP)
        self._optimizer.step()
        self.progress.running += total
        self.progress.counted += 1

    @torch.inference_mode()
    def _acceptance_length(self, validation: Any) -> float:
        """Return the mean tokens of a verification of whole drafts over all positions of the material."""
        accepted, rows = 0.0, 0
        batches: Iterator[Any] = self.student.review(validation)
        for material in batches:
            logits, batch = self.student.guess(material)
            taken = chance_of_acceptance(logits, batch, self.student.words, self.recipe.temperature)
            accepted += float(taken.cumprod(1).sum())
            rows += len(taken)
        return 1 + accepted / rows


def prepare_training(
    method: Method,
    recipe: Recipe,
    shards: Shards,
    first: int,
    validation: Sequence[Completion],
    state: dict[str, Any],
) -> Training:
    """Create a training that goes on with `state`, or begins, with the part `first`."""
    if state:
        method.begin(state["vocabulary"])
    else:
        answers = [completion.tokens for part in shards.parts for completion in part]
        examples = method.examples(shards.material(first))
        method.begin(choose_vocabulary(answers, examples, method.target_vocabulary, recipe.vocabulary))
    max_rows = shards.max_rows // _VALIDATION_SHARE
    num_fitting = sum(rows <= max_rows for rows in accumulate(map(method.rows, validation)))
    fitting = validation[: max(1, num_fitting)]
    training = Training(method.student, shards, lambda: method.read(fitting), recipe)
    if state:
        training.load(state)
    return training


def read_state(path: Path) -> dict[str, Any]:
    """Read what `Training.save` wrote. Raises DistillError where the disk has not kept it."""
    try:
        return dict(torch.load(path, weights_only=True))
    except torch.OutOfMemoryError:  # a RuntimeError, as what is damaged is to torch
        raise
    except (RuntimeError, ValueError, LookupError, EOFError, UnpicklingError) as error:
        raise DistillError(str(error).partition("\n")[0]) from error


def _schedule(progress: float, warm_up: float) -> float:
    """Rise over `warm_up`, then fall as a cosine does."""
    if progress < warm_up:
        return (progress + 1e-3) / (warm_up + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))
