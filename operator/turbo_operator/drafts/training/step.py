"""What one look at a training comes to."""

from __future__ import annotations

from dataclasses import dataclass, replace

from turbo_operator.api import TrainingReason, TrainingStatus
from turbo_operator.api.conditions import ConditionState
from turbo_operator.plan import Choice
from turbo_runtime.contract.training import DraftManifest


@dataclass(frozen=True, slots=True)
class AcceleratorQuery:
    """A question to the planner for an accelerator."""

    pinned: str  # the only accelerator that will do, whether it has room or not; empty: the best of all
    dtype: str  # that it computes in
    passed_over: tuple[str, ...] = ()  # accelerators of which no more is to be had than nodes have free


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A Job that shall be; one of its name that was rendered otherwise, of which no pod ran, makes room."""

    number: int
    work: str  # hash of what decides the draft
    choice: Choice  # what it runs on; the memory is that of a training
    serving: Choice  # what the model is served as
    deadline_seconds: int | None  # that the money left buys; None: no bound


@dataclass(frozen=True, slots=True)
class FinishedDraft:
    """A TurboDraft that is to be applied."""

    number: int
    work: str
    facts: DraftManifest


@dataclass(frozen=True, slots=True)
class TrainingDecision:
    """The condition, what the status keeps, and what is to be done; empty without spec.training."""

    condition: ConditionState | None = None
    state: TrainingStatus | None = None
    query: AcceleratorQuery | None = None
    job_request: JobRequest | None = None
    kept_job: str | None = None  # the Job that stays; every other one that trains goes
    finished: FinishedDraft | None = None

    def refused(self, message: str) -> TrainingDecision:
        """Tell that the Job or the TurboDraft was not taken, as `message` says: serving goes on."""
        return replace(self, condition=unmet_condition(TrainingReason.APPLY_REJECTED, message))


NO_TRAINING = TrainingDecision()


def unmet_condition(reason: TrainingReason, message: str) -> ConditionState:
    """Say why no draft is trained yet, or any more."""
    return ConditionState("False", reason, message)
