"""The scaler's answer."""

from __future__ import annotations

from dataclasses import dataclass, replace

from turbo_operator.api import ScalingReason
from turbo_operator.autoscaler.history import History


@dataclass(frozen=True, slots=True)
class ScalingDecision:
    """Replicas wanted, with the reason as an enum and a sentence, and what to remember for the next look.

    The sentence holds no figure that moves with every look: a status is written only when it differs.
    """

    replicas: int
    reason: ScalingReason
    detail: str
    history: History

    def remembered(self) -> ScalingDecision:
        """The same, its reason kept for the event that will be seen when the replicas have changed."""
        return replace(self, history=replace(self.history, reason=self.reason))


def counted(replicas: int) -> str:
    """A number of replicas in words."""
    return "1 replica" if replicas == 1 else f"{replicas} replicas"
