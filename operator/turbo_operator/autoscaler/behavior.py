"""How fast the replicas may change: a HorizontalPodAutoscaler's policies, in its semantics. Pure.

https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/#configurable-scaling-behavior
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from turbo_operator.api import PolicyType, RatePolicy, ScalingRules, SelectPolicy
from turbo_operator.autoscaler.decision import Event

UP_WINDOW = 0.0  # seconds: more replicas at once
DOWN_WINDOW = 300.0
UP_POLICIES = (RatePolicy(type=PolicyType.PERCENT, value=100, period_seconds=60),)
DOWN_POLICIES = (RatePolicy(type=PolicyType.PODS, value=1, period_seconds=60),)


def stabilization_window(rules: ScalingRules, default: float) -> float:
    """Return the stabilization window of one direction in seconds."""
    return default if rules.stabilization_window_seconds is None else rules.stabilization_window_seconds


def max_replicas(rules: ScalingRules, events: Sequence[Event], present: int, now: float) -> int:
    """Return the maximum of replicas that may be requested now; never below `present`."""
    return max(present, _limit(rules, UP_POLICIES, 1, events, present, now))


def min_replicas(rules: ScalingRules, events: Sequence[Event], present: int, now: float) -> int:
    """Return the minimum of replicas that may be requested now; never above `present`."""
    return min(present, max(0, _limit(rules, DOWN_POLICIES, -1, events, present, now)))


def _limit(
    rules: ScalingRules,
    defaults: Sequence[RatePolicy],
    sign: int,
    events: Sequence[Event],
    present: int,
    now: float,
) -> int:
    """Apply the policies of one direction: more replicas with `sign` 1, fewer with -1."""
    if rules.select_policy == SelectPolicy.DISABLED:
        return present
    limits = []
    for policy in rules.policies or defaults:
        recent = (event for event in events if event.at > now - policy.period_seconds)
        start = present - sum(event.after - event.before for event in recent)
        if policy.type == PolicyType.PODS:
            limits.append(start + sign * policy.value)
        else:
            limits.append(sign * math.ceil(sign * start * (100 + sign * policy.value) / 100))
    is_smallest_change = rules.select_policy == SelectPolicy.MIN
    return max(limits) if is_smallest_change != (sign > 0) else min(limits)
