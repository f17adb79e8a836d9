"""How changes come to the pods: the part of a TurboDeployment about drafts that are tried first."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import Field

from turbo_operator.api.validation import Duration, Record, Rule, UpToAnHour, amount

Ratio = Annotated[Decimal, amount('write a ratio as a string, like "1.05"', positive=True)]


class Canary(Record):
    """How a new draft of the deployment is tried: by one pod of its own, before all take it."""

    min_generation_duration: UpToAnHour = Duration("60s")
    """Time that its pod has to spend on answers, once to warm up and once to be compared."""
    min_duration: UpToAnHour = Duration("10m")
    """Shortest trial."""
    min_speedup_ratio: Ratio = Decimal("1.02")
    """The gain that it must have, over that of the other pods in the same time. One that adds nothing to what
    these draft comes out about even with them.
    """


_Replicas = Annotated[int, Field(strict=True, ge=0, le=1000)]


class Rollout(Record):
    """How changes come to the pods."""

    max_surge: _Replicas | None = None
    """Replicas above the wanted ones while a new plan takes over. Default: 1 where accelerators, quota and
    budget have room for it, else 0.
    """
    max_unavailable: _Replicas | None = None
    """Wanted replicas that may be missing while a new plan takes over. Default: 0 where there is room for
    maxSurge, else 1; a single replica that answers goes first only where 1 is written.
    """
    min_ready_seconds: Annotated[int, Field(strict=True, ge=0, le=3600)] = 10
    """Seconds for which a new pod must be ready to count as available."""
    progress_deadline: UpToAnHour = Duration("10m")
    """Longest time without one more available replica, from when a node took a pod of the new plan. Then the
    last plan that served takes over again, until the spec changes.
    """
    canary: Canary = Field(default_factory=Canary)
    """How a new draft is tried."""

    rules = (
        Rule(
            "!has(self.maxSurge) || !has(self.maxUnavailable)"
            " || self.maxSurge > 0 || self.maxUnavailable > 0",
            "write 1 or more for maxSurge or maxUnavailable: with 0 for both no replica can be replaced",
            lambda it: it.max_surge != 0 or it.max_unavailable != 0,
            "maxUnavailable",
        ),
        Rule(
            "duration(self.progressDeadline).getSeconds() > self.minReadySeconds",
            "write a progressDeadline above minReadySeconds, within which no pod counts as available",
            lambda it: int(it.progress_deadline.seconds) > it.min_ready_seconds,
            "progressDeadline",
        ),
    )
