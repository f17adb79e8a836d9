"""Who decides on the number of replicas, and within what bounds."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from turbo_operator.api.validation import Record, Rule

_Replicas = Annotated[int, Field(strict=True, ge=1, le=1000)]


class ScalingMode(StrEnum):
    """Who decides on the number of replicas."""

    PLANNED = "Planned"
    METRICS = "Metrics"
    EXTERNAL = "External"


class PolicyType(StrEnum):
    """What a scaling policy counts."""

    PODS = "Pods"
    PERCENT = "Percent"


class SelectPolicy(StrEnum):
    """Which of several policies counts."""

    MAX = "Max"
    MIN = "Min"
    DISABLED = "Disabled"


class RatePolicy(Record):
    """The largest change within a period."""

    type: PolicyType
    """Pods counts replicas, Percent a share of those at the period's start."""
    value: Annotated[int, Field(strict=True, ge=1, le=10_000)]
    """So many replicas, or so many per cent, rounded up to whole replicas."""
    period_seconds: Annotated[int, Field(strict=True, ge=1, le=1800)]
    """Within so many seconds."""


class ScalingRules(Record):
    """How fast one direction may go, in the words of a HorizontalPodAutoscaler."""

    stabilization_window_seconds: Annotated[int, Field(strict=True, ge=0, le=3600)] | None = None
    """The direction must have been wanted for this long. Default: up 0, down 300."""
    policies: Annotated[tuple[RatePolicy, ...], Field(max_length=8)] | None = None
    """Bounds on the change within a period. Default: up 100 Percent, down 1 of Pods, in 60 seconds."""
    select_policy: SelectPolicy = SelectPolicy.MAX
    """Max takes the policy that allows the largest change, Min the smallest; Disabled never goes this way."""

    rules = (
        Rule(
            "!has(self.policies) || self.policies.size() > 0",
            "write a policy with type, value and periodSeconds, or leave policies out",
            lambda it: it.policies is None or len(it.policies) > 0,
            "policies",
        ),
    )


class Behavior(Record):
    """How fast the autoscaler may go, in the words of a HorizontalPodAutoscaler."""

    scale_up: ScalingRules = Field(default_factory=ScalingRules)
    """More replicas."""
    scale_down: ScalingRules = Field(default_factory=ScalingRules)
    """Fewer replicas."""


class Scaling(Record):
    """How many replicas there are."""

    mode: ScalingMode | None = None
    """Planned: what the workload needs. Metrics: what the pods' load needs, between the bounds. External:
    spec.replicas, which kubectl scale or an autoscaler may write. Default: Planned where spec.workload names
    a rate or a concurrency or spec.targets.tokensPerSecond is set, else External."""
    min_replicas: _Replicas | None = None
    """At least so many. Default: 1."""
    max_replicas: _Replicas | None = None
    """At most so many. Default: what budget and accelerators allow."""
    behavior: Behavior = Field(default_factory=Behavior)
    """How fast the autoscaler may go."""

    rules = (
        Rule(
            "!has(self.minReplicas) || !has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
            "write a minReplicas that is not above maxReplicas",
            lambda it: (
                it.min_replicas is None or it.max_replicas is None or it.min_replicas <= it.max_replicas
            ),
            "minReplicas",
        ),
    )
