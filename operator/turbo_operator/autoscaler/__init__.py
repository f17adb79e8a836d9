"""How many replicas, and why. Pure: no client, no clock."""

from turbo_operator.autoscaler.policy import NUM_MISSED, Event, History, ScalingDecision, scale

__all__ = ["NUM_MISSED", "Event", "History", "ScalingDecision", "scale"]
