"""What was decided for a TurboDeployment, as far as its status tells of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from turbo_operator.api import Calibrated, RolloutReason, RolloutStatus, TurboDeployment
from turbo_operator.autoscaler import ScalingDecision
from turbo_operator.drafts.canary import CanaryVerdict
from turbo_operator.drafts.training import NO_TRAINING, TrainingDecision
from turbo_operator.plan import Plan


@dataclass(frozen=True, slots=True)
class Takeover:
    """How far the plan of the spec is in taking over from the one that serves."""

    wanted: str | None = None  # hash of the plan of the spec; None while it has none
    target: str | None = None  # plan hash of the variant that all replicas shall be of
    serving: str | None = None  # and of the last one that had all of them available
    rollout: RolloutStatus | None = None  # None where both are the same
    waits: str | None = None  # what holds it up that is not a pod, as a sentence
    waits_for_spec: bool = False  # whether nothing but a change of the spec helps

    def is_over(self, reason: RolloutReason) -> bool:
        """Whether the takeover of the plan of the spec has ended so."""
        rollout = self.rollout
        return rollout is not None and (rollout.plan_hash, rollout.reason) == (self.wanted, reason)

    @property
    def rolled_back(self) -> bool:
        """Whether the plan of the spec was given up, and what served before it serves on."""
        return self.is_over(RolloutReason.ROLLED_BACK)

    def describe_failure(self, td: TurboDeployment) -> str:
        """Say in sentences why a plan was given up."""
        rollout = self.rollout
        if rollout is None:
            return ""
        deadline = td.spec.rollout.progress_deadline
        why = rollout.message or "Its pods start and do not become ready."
        message = f"Plan {rollout.plan_hash} made no progress for {deadline}: {why}"
        if self.rolled_back:
            return f"{message} Plan {self.serving} serves again: change the spec to try another one."
        return f"{message} No plan served before it, so it is tried on."


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that was decided, apart from the children."""

    scale: ScalingDecision
    plan: Plan | None = None  # None until the model is known
    plan_hash: str | None = None  # None while no plan is feasible
    takeover: Takeover = Takeover()  # how far the plan is in taking over from the one before
    calibrations: tuple[Calibrated, ...] = ()  # what pods have reported of their speed
    verdict: CanaryVerdict | None = None  # on the draft that is tried
    step: TrainingDecision = NO_TRAINING  # on the training of a draft
