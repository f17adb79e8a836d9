"""The kind TurboBudget: what all TurboDeployments of a namespace may cost and hold together."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field

from turbo_operator.api.condition import Condition, Count, StatusRecord, Word
from turbo_operator.api.constants import API_VERSION, TURBOBUDGET
from turbo_operator.api.validation import Amount, Metadata, ObjectName, Record, Rule


class BudgetAccelerators(Record):
    """Limits of accelerators."""

    allowed: Annotated[tuple[ObjectName, ...], Field(max_length=64)] | None = None
    """TurboAccelerators that may be taken; an empty list allows none. Default: any."""
    max_total: Annotated[int, Field(strict=True, ge=0, le=100_000)] | None = None
    """Accelerators of all kinds together. Default: no limit."""

    rules = (
        Rule(
            "has(self.allowed) || has(self.maxTotal)",
            "write allowed or maxTotal, or leave accelerators out",
        ),
    )


class TurboBudgetSpec(Record):
    """Limits of all TurboDeployments of the namespace together, replicas and trainings; all budgets of a
    namespace apply together."""

    max_per_hour: (
        Annotated[Decimal, Amount('write dollars per hour as a string, like "40"', positive=False)] | None
    ) = None
    """Money for accelerators per hour. What has no price may then not grow. Default: no limit."""
    currency: Literal["USD"] = "USD"
    """US dollars."""
    accelerators: BudgetAccelerators | None = None
    """Limits of accelerators."""

    rules = (
        Rule(
            "has(self.maxPerHour) || has(self.accelerators)",
            "write maxPerHour, accelerators.maxTotal or accelerators.allowed: a budget has a limit",
        ),
    )


class BudgetUse(StatusRecord):
    """Accelerators and what they cost."""

    per_hour: Annotated[str, Field(max_length=32)]
    """US dollars per hour of those with a price."""
    accelerators: Count
    """How many they are."""


class DeploymentUse(StatusRecord):
    """What one TurboDeployment is committed to."""

    name: Word
    """Its name."""
    per_hour: Annotated[str, Field(max_length=32)]
    """US dollars per hour of those with a price."""
    accelerators: Count
    """How many accelerators."""


class TurboBudgetStatus(StatusRecord):
    """What is taken of it; written by the operator."""

    observed_generation: Count = 0
    """The generation of the spec that this speaks of."""
    in_use: BudgetUse | None = None
    """What replicas and trainings hold now."""
    committed: BudgetUse | None = None
    """The most that they may come to by the last decisions. Limits are compared with it."""
    deployments: Annotated[tuple[DeploymentUse, ...], Field(max_length=100)] = ()
    """What each TurboDeployment is committed to, the largest first."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=8)] = ()
    """WithinBudget: whether what is committed is within all limits."""


class TurboBudget(Record):
    """What all TurboDeployments of a namespace may cost and hold together. Lowered, it ends nothing that
    runs; nothing grows until there is room again."""

    api_version: Literal["serving.turbo.dev/v1alpha1"] = API_VERSION
    kind: Literal["TurboBudget"] = TURBOBUDGET
    metadata: Metadata
    spec: TurboBudgetSpec
    """Its limits."""
    status: TurboBudgetStatus = Field(default_factory=TurboBudgetStatus)
    """What is taken of it; written by the operator."""
