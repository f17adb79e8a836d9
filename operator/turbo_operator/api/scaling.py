"""How many replicas there are, who decides it within what bounds, and how changes come to them."""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from turbo_operator.api.validation import (
    Amount,
    Duration,
    Fraction,
    PositiveFraction,
    Record,
    Rule,
    TenSecondsToADay,
    UpToAnHour,
    duration_cel,
)

IDLE_AFTER = Duration("10m")  # by default
_Replicas = Annotated[int, Field(strict=True, ge=1, le=1000)]
_SomeReplicas = Annotated[int, Field(strict=True, ge=0, le=1000)]
Ratio = Annotated[Decimal, Amount('write a ratio as a string, like "1.05"')]


class ScalingMode(StrEnum):
    """Who decides on the number of replicas."""

    PLANNED = "Planned"
    METRICS = "Metrics"
    EXTERNAL = "External"


class RatePolicy(Record):
    """The largest change within a period."""

    type: Literal["Pods", "Percent"]
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
    select_policy: Literal["Max", "Min", "Disabled"] = "Max"
    """Max takes the policy that allows the largest change, Min the smallest; Disabled never goes this way."""

    rules = (
        Rule(
            "!has(self.policies) || self.policies.size() > 0",
            "write a policy with type, value and periodSeconds, or leave policies out",
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
    min_replicas: _SomeReplicas | None = None
    """At least so many; 0 removes all of them while no request comes. Default: 1."""
    max_replicas: _Replicas | None = None
    """At most so many. Default: what budget and accelerators allow."""
    idle_after: TenSecondsToADay | None = None
    """With minReplicas 0, how long no request must have come for all replicas to go. Default: 10m."""
    behavior: Behavior = Field(default_factory=Behavior)
    """How fast the autoscaler may go."""

    rules = (
        Rule(
            "!has(self.idleAfter) || has(self.minReplicas) && self.minReplicas == 0",
            "write minReplicas: 0 with idleAfter, or leave idleAfter out: else a replica always stays",
            "idleAfter",
        ),
        Rule(
            "!has(self.minReplicas) || !has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
            "write a minReplicas that is not above maxReplicas",
            "minReplicas",
        ),
    )


class CanaryStep(Record):
    """A part of the replicas that has a new plan, while it is compared with what serves."""

    replicas_fraction: PositiveFraction
    """Part of the replicas, rounded up. Of several, one always stays as it is; a single one stays while the
    new one answers too.
    """
    min_duration: UpToAnHour = Duration("2m")
    """Time for which all of them must be available without evidence against the plan."""


class Gates(Record):
    """What a new plan has to keep on its steps. Audited answers that differ end it, too."""

    max_error_fraction: Fraction = Decimal("0.01")
    """Failed requests that it may have above those of the earlier plan, as a part of its requests."""
    min_speedup_ratio: Ratio = Decimal("0.8")
    """Its speedup by drafts over that of the earlier plan must be at least this, where both are known: less
    than even, since its pods start without a memory of answers."""


class Canary(Record):
    """How what is new is tried: a draft by one pod of its own, a plan in steps."""

    steps: Annotated[tuple[CanaryStep, ...], Field(min_length=1, max_length=10)] | None = None
    """Steps of each rollout to another plan. Without any, the new plan takes over as fast as its pods become
    available.
    """
    gates: Gates = Field(default_factory=Gates)
    """What the new plan has to keep on these."""

    min_generation_duration: UpToAnHour = Duration("60s")
    """Time that the pod of a draft has to spend on outputs, once to warm up (by the clock too), once to be
    compared.
    """
    min_duration: UpToAnHour = Duration("10m")
    """Shortest canary of a draft, compared in eight or more blocks of an eighth of this. It goes on while the
    difference may be chance.
    """
    min_speedup_ratio: Ratio = Decimal("1.02")
    """The speedup with a draft over that of the other pods in the same time must be at least this. A draft
    that adds nothing to theirs comes out about even."""


class Rollout(Record):
    """How changes come to the pods."""

    max_surge: _SomeReplicas | None = None
    """Replicas above the wanted ones while a new plan takes over. Default: 1 where accelerators, quota and
    budget have room for it, else 0.
    """
    max_unavailable: _SomeReplicas | None = None
    """Wanted replicas that may be missing while a new plan takes over. Default: 0 where there is room for
    maxSurge, else 1; a single replica that answers goes first only where 1 is written.
    """
    min_ready_seconds: Annotated[int, Field(strict=True, ge=0, le=3599)] = 10
    """Seconds for which a new pod must be ready to count as available."""
    progress_deadline: UpToAnHour = Duration("10m")
    """Longest time without one more available replica, from when a node took a pod of the new plan. Then the
    last plan that served takes over again, until the spec changes.
    """
    canary: Canary = Field(default_factory=Canary)
    """How new drafts and plans are tried."""

    rules = (
        Rule(
            "!has(self.maxSurge) || !has(self.maxUnavailable)"
            " || self.maxSurge > 0 || self.maxUnavailable > 0",
            "write 1 or more for maxSurge or maxUnavailable: with 0 for both no replica can be replaced",
            "maxUnavailable",
        ),
        Rule(
            # getSeconds leaves out the fraction, and minReadySeconds as a duration would cost too much.
            duration_cel(
                "duration(self.progressDeadline) > duration('0s') && "
                "(duration(self.progressDeadline) - duration('1us')).getSeconds() >= self.minReadySeconds",
                "self.progressDeadline",
            ),
            "write a progressDeadline above minReadySeconds, within which no pod counts as available",
            "progressDeadline",
            holds=lambda it: it.progress_deadline.seconds > it.min_ready_seconds,
        ),
    )
