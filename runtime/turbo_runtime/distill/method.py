"""Interfaces of a drafting method: what it reads of the responses, what it trains, how it saves that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from turbo_runtime.distill.data.examples import TrainingBatch, TrainingExamples
from turbo_runtime.distill.data.responses import Completion
from turbo_runtime.drafters.heads.module import Heads


class Student(Protocol):
    """A draft in training; it takes the material and makes the lessons of its own method."""

    depth: int  # tokens that it drafts at once
    vocabulary: Tensor  # (V,) ids that it can draft, ascending
    module: nn.Module  # all that is learnt, as its state
    guessers: list[nn.Parameter]  # what guesses depend on

    def steps(self, completions: Sequence[Completion]) -> int:
        """Count the optimizer's steps over these responses."""

    def lessons(self, material: Any, lot: int) -> Iterator[Sequence[Any]]:
        """Yield the lessons of each step, in an order drawn by `lot`."""

    def review(self, material: Any) -> Iterator[Any]:
        """Yield everything once, in order."""

    def guess(self, lesson: Any) -> tuple[Tensor, TrainingBatch]:
        """Return logits (rows, depth, V), each token before a guessed one being known, and their batch."""

    def settle(self, judges: Any) -> None:
        """Learn what is learnt after the guesses, from responses that nothing else was learnt from."""


class Method(Protocol):
    """A way of drafting, with material and students of its own."""

    name: str  # as --method has it
    row_bytes: int  # memory of one row of material

    def rows(self, completion: Completion) -> int:
        """Count the rows of material of a response."""

    def read(self, completions: Sequence[Completion]) -> Any:
        """Compute the material: the target reads the responses again."""

    def examples(self, material: Any) -> TrainingExamples:
        """Return the examples in the material, one response behind the other."""

    def student(self, vocabulary: Tensor) -> Any:
        """Create an untrained one."""

    def taken(
        self, student: Any, completions: Sequence[Completion]
    ) -> Iterator[tuple[Completion, list[int]]]:
        """Yield each response with how many of the tokens drafted behind each of its tokens but the last are
        its own; the last one is never drafted.
        """

    def heads(self, student: Any) -> Heads | None:
        """Return heads as the engine would load them, where it can draft with what was learnt."""

    def draft_weights(self, student: Any) -> int:
        """Count the weights that are read for one draft of `depth` tokens."""

    def digest(self, student: Any) -> str:
        """Digest all that was learnt, in hex."""

    def save(
        self, folder: Path, student: Any, version: str, domain: str, training: Mapping[str, Any]
    ) -> None:
        """Write the checkpoint, its `config.json` last."""
