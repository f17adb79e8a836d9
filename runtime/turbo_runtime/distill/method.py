"""What methods of drafting differ in: what is read of the answers, what learns from it, how that is judged
and written down.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from turbo_runtime.distill.data.examples import TrainingBatch, TrainingExamples
from turbo_runtime.distill.data.responses import Completion
from turbo_runtime.drafters.heads.module import Heads


class Material(Protocol):
    """What some answers taught with: the places of their tokens, and whatever a method sees beside them."""

    @property
    def places(self) -> TrainingExamples:
        """One answer behind the other."""


Read = TypeVar("Read", bound=Material)
Given = TypeVar("Given", bound=Material, covariant=True)  # what a method reads
Taught = TypeVar("Taught", bound=Material, contravariant=True)  # what a student takes
Lesson = TypeVar("Lesson")
Learner = TypeVar("Learner", bound="Student[Any, Any]")


class Student(Protocol[Taught, Lesson]):
    """What is trained."""

    @property
    def depth(self) -> int:
        """Tokens that it drafts at once."""

    @property
    def vocabulary(self) -> Tensor:
        """(V,) ids that it can draft, ascending."""

    @property
    def module(self) -> nn.Module:
        """All that is learnt, as its state."""

    @property
    def guessers(self) -> Sequence[nn.Parameter]:
        """What guesses depend on."""

    def steps(self, said: Sequence[Completion]) -> int:
        """How many steps of an optimiser one look at these answers takes."""

    def lessons(self, material: Taught, lot: int) -> Iterator[Sequence[Lesson]]:
        """That look: the lessons of each step, in an order drawn by `lot`."""

    def review(self, material: Taught) -> Iterator[Lesson]:
        """Everything once, in order."""

    def guess(self, lesson: Lesson) -> tuple[Tensor, TrainingBatch]:
        """Logits (rows, depth, V), each token before a guessed one being known, and what they should say."""

    def settle(self, judges: Taught) -> None:
        """Learn what is learnt when the guesses are, from answers that nothing else was learnt from."""


class Method(Protocol[Given, Learner]):
    """One way of drafting."""

    @property
    def name(self) -> str:
        """As it is asked for."""

    @property
    def row_bytes(self) -> int:
        """Memory of one row of material."""

    def rows(self, said: Completion) -> int:
        """How many rows of material an answer is."""

    def read(self, said: Sequence[Completion]) -> Given:
        """The target reads them again."""

    def student(self, vocabulary: Tensor) -> Learner:
        """One that has learnt nothing yet."""

    def taken(self, student: Learner, said: Sequence[Completion]) -> Iterator[tuple[Completion, list[int]]]:
        """For each answer, how many of the tokens drafted behind each of its tokens but the last are its own;
        the last one is never drafted.
        """

    def heads(self, student: Learner) -> Heads | None:
        """As the engine would load them, where it can draft with what was learnt."""

    def draft_weights(self, student: Learner) -> int:
        """Weights that are read for one draft of `depth` tokens."""

    def digest(self, student: Learner) -> str:
        """Of all that was learnt, in hex."""

    def save(
        self,
        folder: Path,
        student: Learner,
        version: str,
        domain: str,
        training: Mapping[str, Any],
    ) -> None:
        """Write the artefact, its `config.json` last."""
