"""What a status tells of a rollout: which plan serves, and how far the next one is. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from turbo_operator.api import RolloutReason, RolloutStatus, TurboDeployment


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


NO_TAKEOVER = Takeover()


def failure(td: TurboDeployment, takeover: Takeover) -> str:
    """Why a plan was given up, in sentences."""
    rollout = takeover.rollout
    if rollout is None:
        return ""
    deadline = td.spec.rollout.progress_deadline
    why = rollout.message or "Its pods start and do not become ready."
    said = f"Plan {rollout.plan_hash} made no progress for {deadline}: {why}"
    if takeover.rolled_back:
        return f"{said} Plan {takeover.serving} serves again: change the spec to try another one."
    return f"{said} No plan served before it, so it is tried on."
