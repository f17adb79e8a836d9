"""How many replicas, and why. Pure: no client, no clock.

The only policy yet: whoever writes `spec.replicas` decides, a person or an autoscaler through the scale
subresource.
"""

from __future__ import annotations

from dataclasses import dataclass

from turbo_operator.api import ScalingReason, TurboDeploymentSpec


@dataclass(frozen=True, slots=True)
class Scale:
    """Replicas wanted, with the reason as an enum and a sentence."""

    replicas: int
    reason: ScalingReason
    detail: str


def scale(spec: TurboDeploymentSpec) -> Scale:
    """The replicas that the spec asks for; none while it is suspended."""
    if spec.suspend:
        return Scale(0, ScalingReason.SUSPENDED, "spec.suspend is true: no pod is wanted until it is false.")
    detail = f"spec.replicas asks for {spec.replicas}; kubectl scale or an autoscaler may change it."
    return Scale(spec.replicas, ScalingReason.EXTERNALLY_MANAGED, detail)
