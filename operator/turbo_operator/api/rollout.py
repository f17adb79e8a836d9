"""How changes come to the pods: the part of a TurboDeployment about drafts that are tried first."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import Field

from turbo_operator.api.fields import Amount, Duration, Record, seconds

Ratio = Annotated[Decimal, Amount('write a ratio as a string, like "1.05"', positive=True)]


class Canary(Record):
    """How a new draft of the deployment is tried: by one pod of its own, before all take it."""

    answering: Duration = "60s"
    """Time that its pod has to spend on answers, once to warm up and once to be compared."""
    window: Duration = "10m"
    """Shortest trial."""
    min_gain: Ratio = Decimal("1.02")
    """The gain that it must have, over that of the other pods in the same time. One that adds nothing to what
    these draft comes out about even with them.
    """

    @property
    def answering_seconds(self) -> float:
        """The same in seconds."""
        return seconds(self.answering)

    @property
    def window_seconds(self) -> float:
        """The same in seconds."""
        return seconds(self.window)


class Rollout(Record):
    """How changes come to the pods."""

    canary: Canary = Field(default_factory=Canary)
    """How a new draft is tried."""
