"""What one look at a training comes to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from turbo_operator.api import TrainingReason, TrainingStatus
from turbo_operator.planned import Choice
from turbo_runtime.training_contract import DraftFacts


@dataclass(frozen=True, slots=True)
class Told:
    """The condition DraftTrained without its bookkeeping."""

    status: Literal["True", "False", "Unknown"]
    reason: TrainingReason
    message: str


@dataclass(frozen=True, slots=True)
class Begin:
    """A Job that is to be made."""

    number: int
    choice: Choice  # what it runs on; the memory is that of a training
    serving: Choice  # what the model is served as
    deadline_seconds: int | None  # that the money left buys; None: no bound


@dataclass(frozen=True, slots=True)
class Made:
    """A TurboDraft that is to be applied."""

    number: int
    facts: DraftFacts


@dataclass(frozen=True, slots=True)
class Step:
    """What is told, what the status keeps, and what is to be done; all of nothing where none is asked for."""

    told: Told | None = None
    state: TrainingStatus | None = None
    asks: str | None = None  # the planner must choose: an accelerator's name, or empty for the best of all
    begin: Begin | None = None
    keep: str | None = None  # the Job that stays; every other one that trains goes
    made: Made | None = None

    def refused(self, message: str) -> Step:
        """The same where the API server did not take the Job or the TurboDraft: serving goes on."""
        told = Told("False", TrainingReason.REFUSED, f"The API server refused: {message}")
        return replace(self, told=told)
