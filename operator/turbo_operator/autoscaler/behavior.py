"""How fast the replicas may change: a HorizontalPodAutoscaler's policies, in its semantics. Pure.

https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/#configurable-scaling-behavior
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from turbo_operator.api import PolicyType, RatePolicy, ScalingRules, SelectPolicy
from turbo_operator.autoscaler.history import Event

UP_WINDOW = 0.0  # seconds: more replicas at once
DOWN_WINDOW = 300.0
UP_POLICIES = (RatePolicy(type=PolicyType.PERCENT, value=100, period_seconds=60),)
DOWN_POLICIES = (RatePolicy(type=PolicyType.PODS, value=1, period_seconds=60),)


def window(rules: ScalingRules, default: float) -> float:
    """The stabilisation window of one direction in seconds."""
    return default if rules.stabilization_window_seconds is None else rules.stabilization_window_seconds


def ceiling(rules: ScalingRules, events: Sequence[Event], present: int, now: float) -> int:
    """The most replicas that may be asked for now; never below `present`."""
    if rules.select_policy == SelectPolicy.DISABLED:
        return present
    choose = min if rules.select_policy == SelectPolicy.MIN else max
    allowed = choose(
        _more(policy, _at_start(policy, events, present, now)) for policy in rules.policies or UP_POLICIES
    )
    return max(present, allowed)


def floor(rules: ScalingRules, events: Sequence[Event], present: int, now: float) -> int:
    """The fewest replicas that may be asked for now; never above `present`."""
    if rules.select_policy == SelectPolicy.DISABLED:
        return present
    choose = max if rules.select_policy == SelectPolicy.MIN else min  # Min is the smallest change
    allowed = choose(
        _fewer(policy, _at_start(policy, events, present, now)) for policy in rules.policies or DOWN_POLICIES
    )
    return min(present, max(0, allowed))


def _at_start(policy: RatePolicy, events: Sequence[Event], present: int, now: float) -> int:
    """Replicas at the start of the policy's period."""
    recent = (event for event in events if event.at > now - policy.period_seconds)
    return present - sum(event.after - event.before for event in recent)


def _more(policy: RatePolicy, start: int) -> int:
    if policy.type == PolicyType.PODS:
        return start + policy.value
    return math.ceil(start * (100 + policy.value) / 100)


def _fewer(policy: RatePolicy, start: int) -> int:
    if policy.type == PolicyType.PODS:
        return start - policy.value
    return math.floor(start * (100 - policy.value) / 100)
