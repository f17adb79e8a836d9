"""How far a rollout is, as conditions tell of it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from turbo_operator import api
from turbo_operator.snapshot import PodView


@dataclass(frozen=True, slots=True)
class RolloutState:
    """How far the plan of the spec is in taking over from the one that serves."""

    wanted: str | None = None  # hash of the plan of the spec; None while it has none
    target: str | None = None  # plan hash of the variant that all replicas shall be of
    serving: str | None = None  # and of the last one that had all of them available
    status: api.RolloutStatus | None = None  # None where both are the same
    waits: str | None = None  # what holds it up that is not a pod, as a sentence
    waits_for_spec: bool = False  # whether nothing but a change of the spec helps
    step: str | None = None  # how far the step is that it is on, as a sentence
    is_outdated: bool = False  # whether it waits for nothing but newer data

    def is_over(self, reason: api.RolloutReason) -> bool:
        """Whether the takeover of the plan of the spec has ended so."""
        status = self.status
        return status is not None and (status.plan_hash, status.reason) == (self.wanted, reason)

    @property
    def rolled_back(self) -> bool:
        """Whether the plan of the spec was given up, and what served before it serves on."""
        return self.is_over(api.RolloutReason.ROLLED_BACK)

    def describe_failure(self, td: api.TurboDeployment, pods: Iterable[PodView]) -> str:
        """Say in sentences why a plan was given up, and whether pods of the one before it answer."""
        status = self.status
        assert status is not None  # that was given up
        deadline = td.spec.rollout.progress_deadline
        why = status.message or "Its pods start and do not become ready."
        message = f"Plan {status.plan_hash} made no progress for {deadline}: {why}"
        if status.failed_step is not None:
            message = f"Plan {status.plan_hash} failed on step {status.failed_step} of its rollout: {why}"
        if self.rolled_back:
            answers = any(pod.ready and pod.plan_hash == self.serving for pod in pods)
            does = "serves on" if answers else "gets its replicas back"
            return f"{message} Plan {self.serving} {does}: change the spec to try another one."
        return f"{message} No plan served before it, so it is tried on."


NO_ROLLOUT = RolloutState()
